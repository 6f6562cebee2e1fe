"""How the work of a step is divided over ranks: the program of a step for each strategy.

    simulate(job, "sharded", links).seconds

- ddp: gradients are averaged in buckets during the backward pass; every rank updates all.
- round-robin: likewise; rank i orthogonalises the matrices i, i + N, ..., and after each round the
  parameters are gathered (Keller Jordan's Muon). All else is updated everywhere.
- sharded: as engines/sharded.py. Gradients are reduced to owners after the backward pass, owners
  update, parameters are gathered. Only one stack's update hides another one's traffic.
- sharded-early: likewise, but gradients are reduced in buckets during the backward pass, and what
  is left over travels with the rest. No engine here does so; training at scale would.
- fsdp2: as engines/fsdp2.py. Each layer is gathered for its passes, its gradients are
  reduce-scattered in every backward pass. Matrices go to their owners and back by an all-to-all.
- zero1, zero2, zero3: DeepSpeed's stages with its Muon, which needs all-reduced gradients; with
  its `overlap_comm`. Stage 3 gathers whole gradients and momenta, orthogonalises in rounds, and
  gathers updates and momenta.
- moonlight: ZeRO-1; gradients are reduce-scattered in buckets during the backward pass. Updates
  are gathered in bfloat16, and every rank orthogonalises all (2502.16982, algorithm 1).
- layer-wise: gradients are averaged in buckets; whole parameters are dealt to ranks, and gathered.

A rule that works on each element needs no exchange of its own: its part of a strategy is what is
left, and of round-robin and layer-wise that is ddp.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np

from errors import UserError
from planner.step import dealing
from planner.step.collectives import (
    Links,
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    rooted,
)
from planner.step.jobs import Job, Stack, Unit
from planner.step.programs import Buckets, Collective, Done, Step, passes
from planner.step.streams import (
    BACKWARD,
    FORWARD,
    GRADIENTS,
    MATRICES,
    ORTHOGONALISE,
    PARAMETERS,
    PIPELINE,
    UPDATE,
    Floats,
    Operation,
    Resolved,
    resolve,
)

LIVE_NUMBERS = 1e9  # of parameters that ZeRO-3 keeps for the backward pass: DeepSpeed's default
ZERO3_BUCKET_NUMBERS = 5e8  # of the matrices that it gathers at once: DeepSpeed's default
UPDATE_BYTES = 2  # of a number that Moonlight gathers


class Round(NamedTuple):
    """Matrices of which each rank has one at most, and how often it happens."""

    matrices: dealing.Counts  # the number of the stack of each
    times: int


def _ddp(step: Step) -> None:
    averaged = passes(step, all_reduce)
    _every_rank_orthogonalises(step, averaged)
    step.update_elements(divided=False, after=averaged)


def _every_rank_orthogonalises(step: Step, after: Done) -> None:
    job = step.job
    step.compute(ORTHOGONALISE, sum(stack.seconds(stack.count) for stack in job.stacks), after)
    numbers = job.matrix_numbers(False) + job.matrix_numbers(True)
    step.compute(UPDATE, numbers * job.matrix_update_seconds)


def _round(step: Step, stacks: Sequence[Stack], one: Round, experts: bool, after: Done) -> Done:
    """Deal the matrices of a round, one to each rank and again from the first, in turn."""
    size = step.group(experts).size
    places = np.arange(len(one.matrices)) % size
    each = np.array([stack.seconds(1) for stack in stacks])
    alone = each[one.matrices] * one.times
    own = _numbers(stacks, one.matrices) * step.job.matrix_update_seconds * one.times
    for kind, weights in ((ORTHOGONALISE, alone), (UPDATE, own)):
        total = np.bincount(places, weights=weights, minlength=size).astype(np.float64)
        after = step.compute(kind, step.places(total, experts), after)
    return after


def _rounds(order: dealing.Counts, size: int) -> Iterator[Round]:
    """As many matrices as there are ranks, and again; on one rank all of them."""
    length = size if size > 1 else max(1, len(order))
    cuts = [order[begin : begin + length] for begin in range(0, len(order), length)]
    yield from _merged(cuts)


def _merged(cuts: Sequence[dealing.Counts]) -> Iterator[Round]:
    """Equal neighbours as one. No two of them go on at once, so their times add up."""
    for _, equal in groupby(cuts, key=lambda cut: cut.tobytes()):
        same = list(equal)
        yield Round(same[0], len(same))


def _numbers(stacks: Sequence[Stack], some: dealing.Counts) -> Floats:
    """Numbers of each of these matrices."""
    each = np.array([stack.numbers for stack in stacks], dtype=np.float64)
    return each[some]


def _round_robin(step: Step) -> None:
    ready = passes(step, all_reduce)
    step.update_elements(divided=False, after=ready)
    for experts, stacks, size in step.kinds():
        for one in _rounds(dealing.largest_first(stacks), size):
            updated = _round(step, stacks, one, experts, ready)
            moved = float(_numbers(stacks, one.matrices).sum()) * step.job.param_number_bytes
            ready = step.collect(PARAMETERS, all_gather, experts, moved, updated, one.times)


def _layer_wise(step: Step) -> None:
    averaged = passes(step, all_reduce)
    if not step.job.stacks:
        step.update_elements(divided=False, after=averaged)
        return
    step.update_elements(divided=True, after=averaged)
    for experts, stacks, size in step.kinds():
        deal = dealing.back_and_forth(stacks, size)
        updated = step.orthogonalise(deal, stacks, experts, batched=False, after=averaged)
        whole = step.job.numbers(experts) * step.job.param_number_bytes
        step.collect(PARAMETERS, all_gather, experts, whole, updated)


class Buffer(NamedTuple):
    """Parameters that are reduced, updated and gathered together."""

    experts: bool
    stack: Stack | None  # None: the parameters in no stack
    counts: dealing.Counts  # of the matrices that each rank owns

    @property
    def numbers(self) -> float:
        return self.stack.numbers * self.stack.count if self.stack else 0.0


def _buffers(step: Step) -> list[Buffer]:
    """In the order of engines/_buffers.py: the smallest stack, the rows of elements, then the other
    stacks, the largest first."""
    rows, held = [], []
    for experts, stacks, size in step.kinds():
        if step.elements(experts):
            rows.append(Buffer(experts, None, np.zeros(size, np.int64)))
        deal = dealing.balanced(stacks, size)
        held += [Buffer(experts, *each) for each in zip(stacks, deal, strict=True)]
    held.sort(key=lambda buffer: -buffer.numbers)
    return [*held[-1:], *rows, *held[:-1]]


def _move(
    step: Step, buffer: Buffer, kind: str, number_bytes: int, way: Collective, after: Done
) -> Done:
    """Reduce a buffer to its owners, or gather it; what is left over moves one by one."""
    if buffer.stack is None:
        total = step.elements(buffer.experts) * number_bytes
        return step.collect(kind, way, buffer.experts, total, after)
    group = step.group(buffer.experts)
    one, left = buffer.stack.numbers * number_bytes, buffer.stack.count % group.size
    even = (buffer.stack.count - left) * one
    moved = step.collect(kind, way, buffer.experts, even, after)
    single = rooted(step.links, group, left * one, left)
    return step.send(kind, single, buffer.experts, after) or moved


def _update(step: Step, buffer: Buffer, after: Done) -> Done:
    """Owners update a buffer."""
    if buffer.stack is None:
        part = step.elements(buffer.experts) / step.group(buffer.experts).size
        return step.compute(UPDATE, part * step.job.update_seconds, after)
    return step.orthogonalise([buffer.counts], [buffer.stack], buffer.experts, True, after)


def _sharded(step: Step) -> None:
    buffers, passed = _buffers(step), passes(step, None)
    averaged = [
        _move(step, each, GRADIENTS, step.job.grad_number_bytes, reduce_scatter, passed)
        for each in buffers
    ]
    for each, ready in zip(buffers, averaged, strict=True):
        updated = _update(step, each, ready)
        _move(step, each, PARAMETERS, step.job.param_number_bytes, all_gather, updated)


def _sharded_early(step: Step) -> None:
    averaged = passes(step, reduce_scatter)
    for each in _buffers(step):
        updated = _update(step, each, averaged)
        whole = each.numbers if each.stack else step.elements(each.experts)
        total = whole * step.job.param_number_bytes
        step.collect(PARAMETERS, all_gather, each.experts, total, updated)


def _fsdp2(step: Step) -> None:
    step.compute(PIPELINE, step.job.bubble_seconds)
    for _ in range(step.job.microbatches):
        scattered = _fsdp2_passes(step)
    job, arrived = step.job, {}
    deals = {experts: dealing.by_cost(stacks, size) for experts, stacks, size in step.kinds()}
    travel = {}
    for experts, stacks, size in step.kinds():
        most = dealing.numbers(stacks, deals[experts], size).max()
        travel[experts] = (job.matrix_numbers(experts) / size, float(most))
        arrived[experts] = _exchange(
            step, travel[experts], job.grad_number_bytes, experts, scattered
        )
    step.update_elements(divided=True, after=scattered)
    for experts, stacks, _ in step.kinds():
        after = (*scattered, *arrived[experts])
        updated = step.orthogonalise(deals[experts], stacks, experts, True, after)
        _exchange(step, travel[experts], job.param_number_bytes, experts, updated)


def _exchange(
    step: Step, numbers: tuple[float, float], number_bytes: int, experts: bool, after: Done
) -> Done:
    """Matrices go to their owners, or come back. numbers: of a shard, and of the busiest owner."""
    mean, most = (each * number_bytes for each in numbers)
    cost = all_to_all(step.links, step.group(experts), mean, most)
    return step.send(MATRICES, cost, experts, after)


def _move_unit(step: Step, unit: Unit, gather: bool, after: Done) -> Done:
    """Gather the parameters of a unit, or scatter its gradients."""
    moved: Done = ()
    for experts, numbers in ((False, unit.dense), (True, unit.experts)):
        if gather:
            total = numbers * step.job.param_number_bytes
            moved += step.collect(PARAMETERS, all_gather, experts, total, after)
        else:
            total = numbers * step.job.grad_number_bytes
            moved += step.collect(GRADIENTS, reduce_scatter, experts, total, after)
    return moved


def _fsdp2_passes(step: Step) -> Done:
    """The passes of a microbatch; the last scattering.

    While a layer computes, the next one is gathered, and its memory is that of the one before.
    """
    units = step.job.units
    layers = [unit for unit in units if not unit.root]
    roots = [unit for unit in units if unit.root]
    gathered_roots = tuple(x for unit in roots for x in _move_unit(step, unit, True, ()))
    scattered: Done = ()
    for backward in (False, True):
        order = layers[::-1] if backward else layers
        coming = _move_unit(step, order[0], True, step.last) if order else ()
        number = 0
        for unit in reversed(units) if backward else units:
            seconds = unit.backward_seconds if backward else unit.forward_seconds
            kind = BACKWARD if backward else FORWARD
            if unit.root:
                step.compute(kind, seconds, gathered_roots)
                continue
            here, number = coming, number + 1
            if number < len(order):
                coming = _move_unit(step, order[number], True, step.last)
            computed = step.compute(kind, seconds, here)
            if backward:
                scattered = _move_unit(step, unit, False, computed) or scattered
    for unit in roots:
        scattered = _move_unit(step, unit, False, step.last) or scattered
    return scattered


def _zero1(step: Step) -> None:
    _zero_replicas(step, every=False)


def _zero2(step: Step) -> None:
    _zero_replicas(step, every=True)


def _zero_replicas(step: Step, every: bool) -> None:
    averaged = passes(step, all_reduce, every)
    step.update_elements(divided=True, after=averaged)
    for experts, stacks, size in step.kinds():
        deal = dealing.overlapping(stacks, size)
        step.orthogonalise(deal, stacks, experts, batched=False, after=averaged)
    for experts, _, _ in step.kinds():
        whole = step.job.numbers(experts) * step.job.param_number_bytes
        step.collect(PARAMETERS, all_gather, experts, whole, step.last)


def _zero3(step: Step) -> None:
    job = step.job
    step.compute(PIPELINE, job.bubble_seconds)
    keeps = job.numbers(False) + job.numbers(True) <= LIVE_NUMBERS
    buckets = Buckets(step, all_reduce)
    for _ in range(job.microbatches):
        for backward in (False, True):
            order = job.units[::-1] if backward else job.units
            gathers = not (backward and keeps)
            coming = _move_unit(step, order[0], True, step.last) if gathers else ()
            for number, unit in enumerate(order):
                here = coming
                if gathers and number + 1 < len(order):
                    coming = _move_unit(step, order[number + 1], True, step.last)
                seconds = unit.backward_seconds if backward else unit.forward_seconds
                done = step.compute(BACKWARD if backward else FORWARD, seconds, here)
                if backward:
                    buckets.add(unit, done)
        buckets.flush(done)
    _zero3_matrices(step, buckets.sent)
    step.update_elements(divided=True, after=buckets.sent)


def _zero3_matrices(step: Step, averaged: Done) -> None:
    """Gather gradients and momenta of some matrices, orthogonalise in rounds, and gather updates
    and momenta: every rank takes part with as much as the largest matrix of the round."""
    ready = averaged
    for experts, stacks, size in step.kinds():
        for row in dict.fromkeys(each.row for each in stacks):
            mine = [each for each in stacks if each.row == row]
            ready = _zero3_row(step, mine, experts, size, ready)
    step.compute(UPDATE, 0.0, ready)


def _zero3_row(step: Step, stacks: Sequence[Stack], experts: bool, size: int, ready: Done) -> Done:
    """The matrices of one flat row."""
    number_bytes = step.job.grad_number_bytes + step.job.state_number_bytes
    for bucket in _merged(_zero3_buckets(stacks)):
        total = float(_numbers(stacks, bucket.matrices).sum()) * number_bytes
        ready = step.collect(MATRICES, all_gather, experts, total, ready, bucket.times) or ready
        for one in _rounds(bucket.matrices, size):
            times = one.times * bucket.times
            done = _round(step, stacks, Round(one.matrices, times), experts, ready)
            total = size * float(_numbers(stacks, one.matrices).max()) * number_bytes
            ready = step.collect(MATRICES, all_gather, experts, total, done, times)
    return ready


def _zero3_buckets(stacks: Sequence[Stack]) -> list[dealing.Counts]:
    """The matrices that are gathered at once."""
    order = dealing.largest_first(stacks)
    upto = np.cumsum(_numbers(stacks, order)) if stacks else np.zeros(0)
    cuts = [0]
    while cuts[-1] < len(order):
        before = upto[cuts[-1] - 1] if cuts[-1] else 0.0
        fits = int(np.searchsorted(upto, before + ZERO3_BUCKET_NUMBERS, side="right"))
        cuts.append(max(fits, cuts[-1] + 1))
    return [order[start:stop] for start, stop in pairwise(cuts)]


def _moonlight(step: Step) -> None:
    job = step.job
    averaged = passes(step, reduce_scatter)
    step.update_elements(divided=True, after=averaged)
    for experts, stacks, size in step.kinds():
        part = job.matrix_numbers(experts) / size
        step.compute(UPDATE, part * job.matrix_update_seconds, averaged)
        elements = step.elements(experts) * job.param_number_bytes
        step.collect(PARAMETERS, all_gather, experts, elements, step.last)
        gathered = [
            step.collect(
                MATRICES, all_gather, experts, each.numbers * each.count * UPDATE_BYTES, averaged
            )
            for each in stacks
        ]
        for stack, arrived in zip(stacks, gathered, strict=True):
            done = step.compute(ORTHOGONALISE, stack.count * stack.seconds(1), arrived)
            whole = stack.numbers * stack.count * job.param_number_bytes
            step.collect(PARAMETERS, all_gather, experts, whole, done)


STRATEGIES: dict[str, Callable[[Step], None]] = {
    "ddp": _ddp,
    "round-robin": _round_robin,
    "sharded": _sharded,
    "sharded-early": _sharded_early,
    "fsdp2": _fsdp2,
    "zero1": _zero1,
    "zero2": _zero2,
    "zero3": _zero3,
    "moonlight": _moonlight,
    "layer-wise": _layer_wise,
}


def known(strategy: str) -> str:
    """The strategy itself. Raises UserError for an unknown one."""
    if strategy not in STRATEGIES:
        near = difflib.get_close_matches(strategy, STRATEGIES, 1)
        hint = f"did you mean {near[0]}?" if near else "run with --strategy sharded"
        raise UserError(f"--strategy {strategy}: must be one of {', '.join(STRATEGIES)}; {hint}")
    return strategy


def program(job: Job, strategy: str, links: Links) -> list[Operation]:
    """The program of a step. Raises UserError for an unknown strategy."""
    step = Step(job, links)
    STRATEGIES[known(strategy)](step)
    return step.program


def simulate(
    job: Job,
    strategy: str,
    links: Links,
    slowness: Floats | float = 1.0,
    watched: Sequence[int] = (),
) -> Resolved:
    """Simulate a step: see `streams.resolve`."""
    return resolve(program(job, strategy, links), job.ranks, slowness, watched)
