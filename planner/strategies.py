"""How the work of a step is divided over ranks: the program of a step for each strategy.

    simulate(job, "sharded", links).seconds

- ddp: gradients are averaged in buckets during the backward pass; every rank updates all.
- round-robin: likewise; rank i orthogonalises the matrices i, i + N, ..., and after each round the
  parameters are gathered (Keller Jordan's Muon). All else is updated everywhere.
- sharded: as engines/sharded.py. Gradients are reduced to owners after the backward pass, owners
  update, parameters are gathered. Only one stack's update hides another one's traffic.
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
from planner import dealing
from planner.collectives import (
    Cost,
    Group,
    Links,
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    rooted,
)
from planner.jobs import Job, Stack, Unit
from planner.streams import (
    BACKWARD,
    COMMUNICATE,
    COMPUTE,
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

Done = tuple[int, ...]  # places in a program of operations that something waits for
Collective = Callable[[Links, Group, float], Cost]

LIVE_NUMBERS = 1e9  # of parameters that ZeRO-3 keeps for the backward pass: DeepSpeed's default
ZERO3_BUCKET_NUMBERS = 5e8  # of the matrices that it gathers at once: DeepSpeed's default
UPDATE_BYTES = 2  # of a number that Moonlight gathers


class Round(NamedTuple):
    """Matrices of which each rank has one at most, and how often it happens."""

    matrices: dealing.Counts  # the number of the stack of each
    times: int


class Step:
    """A program in the making."""

    def __init__(self, job: Job, links: Links) -> None:
        self.job, self.links = job, links
        self.program: list[Operation] = []
        self.last: Done = ()  # the last computation
        self._blocking: Done = ()  # communication that stops the next computation

    def compute(self, kind: str, seconds: float | Floats, after: Done = ()) -> Done:
        """Add a computation."""
        after, self._blocking = (*after, *self._blocking), ()
        self.program.append(Operation(COMPUTE, kind, seconds, after))
        self.last = (len(self.program) - 1,)
        return self.last

    def send(self, kind: str, cost: Cost, experts: bool, after: Done = ()) -> Done:
        """Add a collective of all ranks, or of each group of experts."""
        if not cost.sent_bytes:
            return ()
        groups = self.job.expert_groups if experts else 1
        if not self.job.hides:
            after = (*after, *self.last)
        self.program.append(
            Operation(COMMUNICATE, kind, cost.seconds, after, groups, cost.sent_bytes)
        )
        done = (len(self.program) - 1,)
        self._blocking = () if self.job.hides else done
        return done

    def group(self, experts: bool) -> Group:
        """The ranks that share the dense parameters, or one group's experts."""
        stride = self.job.expert_groups if experts else 1
        return self.links.group(self.job.ranks // stride, stride)

    def collect(
        self,
        kind: str,
        collective: Collective,
        experts: bool,
        total_bytes: float,
        after: Done = (),
        times: int = 1,
    ) -> Done:
        """Add a collective that takes one number of bytes, or some of them in a row."""
        cost = collective(self.links, self.group(experts), total_bytes)
        return self.send(kind, Cost(*(times * each for each in cost)), experts, after)

    def places(self, values: Floats, experts: bool) -> Floats:
        """Values of the ranks of a group as values of all ranks."""
        return np.repeat(values, self.job.expert_groups) if experts else values

    def of(self, experts: bool) -> list[Stack]:
        """The stacks of the dense matrices, or of the experts."""
        return [stack for stack in self.job.stacks if stack.experts == experts]

    def kinds(self) -> Iterator[tuple[bool, list[Stack], int]]:
        """Dense parameters and experts: their stacks, and the size of their group."""
        for experts in (False, True):
            if self.job.numbers(experts):
                yield experts, self.of(experts), self.group(experts).size

    def elements(self, experts: bool) -> float:
        """Numbers of the parameters in no stack."""
        return max(0.0, self.job.numbers(experts) - self.job.matrix_numbers(experts))

    def update_elements(self, divided: bool, after: Done = ()) -> Done:
        """Update the parameters in no stack: all of them on each rank, or a part."""
        share = sum(self.elements(x) / (size if divided else 1) for x, _, size in self.kinds())
        return self.compute(UPDATE, share * self.job.update_seconds, after)

    def orthogonalise(
        self,
        deal: Sequence[dealing.Counts],
        stacks: Sequence[Stack],
        experts: bool,
        batched: bool,
        after: Done = (),
    ) -> Done:
        """Orthogonalise and update the matrices that each rank was dealt."""
        size, total = self.group(experts).size, np.zeros(self.group(experts).size)
        for stack, counts in zip(stacks, deal, strict=True):
            total += dealing.seconds(stack, counts, batched)
        self.compute(ORTHOGONALISE, self.places(total, experts), after)
        own = dealing.numbers(stacks, deal, size) * self.job.matrix_update_seconds
        return self.compute(UPDATE, self.places(own, experts))


class Buckets:
    """Gradients that travel once enough of them are there."""

    def __init__(self, step: Step, collective: Collective) -> None:
        self.step, self.collective = step, collective
        self.waiting = {False: 0.0, True: 0.0}  # bytes, of dense parameters and of experts
        self.sent: Done = ()  # the last one; those before it have ended earlier

    def add(self, unit: Unit, ready: Done) -> None:
        """Take the gradients of a unit."""
        for experts, numbers in ((False, unit.dense), (True, unit.experts)):
            self.waiting[experts] += numbers * self.step.job.grad_number_bytes
            if self.waiting[experts] >= self.step.job.bucket_bytes:
                self._send(experts, ready)

    def flush(self, ready: Done) -> None:
        """Send what is left."""
        for experts in (False, True):
            self._send(experts, ready)

    def _send(self, experts: bool, ready: Done) -> None:
        total, self.waiting[experts] = self.waiting[experts], 0.0
        sent = self.step.collect(GRADIENTS, self.collective, experts, total, ready)
        self.sent = sent or self.sent


def _passes(step: Step, collective: Collective | None, every: bool = False) -> Done:
    """The passes of replicas, and a collective for their gradients; the last operation.

    every: after each microbatch, not only after the last one.
    """
    job = step.job
    forward = sum(unit.forward_seconds for unit in job.units)
    backward = sum(unit.backward_seconds for unit in job.units)
    step.compute(PIPELINE, job.bubble_seconds)
    early = 0 if every else job.microbatches - 1
    if early:
        step.compute(FORWARD, early * forward)
        step.compute(BACKWARD, early * backward)
    if collective is None:
        step.compute(FORWARD, forward)
        return step.compute(BACKWARD, backward)
    buckets = Buckets(step, collective)
    for _ in range(job.microbatches - early):
        step.compute(FORWARD, forward)
        for unit in reversed(job.units):
            ready = step.compute(BACKWARD, unit.backward_seconds)
            buckets.add(unit, ready)
        buckets.flush(ready)
    return buckets.sent


def _ddp(step: Step) -> None:
    averaged = _passes(step, all_reduce)
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
    ready = _passes(step, all_reduce)
    step.update_elements(divided=False, after=ready)
    for experts, stacks, size in step.kinds():
        for one in _rounds(dealing.largest_first(stacks), size):
            updated = _round(step, stacks, one, experts, ready)
            moved = float(_numbers(stacks, one.matrices).sum()) * step.job.param_number_bytes
            ready = step.collect(PARAMETERS, all_gather, experts, moved, updated, one.times)


def _layer_wise(step: Step) -> None:
    averaged = _passes(step, all_reduce)
    if not step.job.stacks:
        step.update_elements(divided=False, after=averaged)
        return
    step.update_elements(divided=True, after=averaged)
    for experts, stacks, size in step.kinds():
        deal = dealing.back_and_forth(stacks, size)
        updated = step.orthogonalise(deal, stacks, experts, batched=False, after=averaged)
        whole = step.job.numbers(experts) * step.job.param_number_bytes
        step.collect(PARAMETERS, all_gather, experts, whole, updated)


def _sharded(step: Step) -> None:
    """Buffers in the order of engines/_buffers.py: the smallest stack, the rows of elements, then
    the other stacks, the largest first."""
    job = step.job
    passed = _passes(step, None)
    rows: list[tuple[bool, Stack | None, dealing.Counts | None]] = []
    held: list[tuple[bool, Stack | None, dealing.Counts | None]] = []
    for experts, stacks, size in step.kinds():
        rows += [(experts, None, None)] if step.elements(experts) else []
        deal = dealing.balanced(stacks, size)
        held += [(experts, stack, counts) for stack, counts in zip(stacks, deal, strict=True)]
    held.sort(key=lambda each: -each[1].numbers * each[1].count if each[1] else 0.0)
    buffers = [*held[-1:], *rows, *held[:-1]]

    def move(kind: str, buffer: int, number_bytes: int, way: Collective, after: Done) -> Done:
        experts, stack, _ = buffers[buffer]
        if stack is None:
            total = step.elements(experts) * number_bytes
            return step.collect(kind, way, experts, total, after)
        left = stack.count % step.group(experts).size
        even = (stack.count - left) * stack.numbers * number_bytes
        moved = step.collect(kind, way, experts, even, after)
        single = rooted(step.links, step.group(experts), left * stack.numbers * number_bytes, left)
        return step.send(kind, single, experts, after) or moved

    averaged = [
        move(GRADIENTS, each, job.grad_number_bytes, reduce_scatter, passed)
        for each in range(len(buffers))
    ]
    for each, (experts, stack, counts) in enumerate(buffers):
        if stack is None or counts is None:
            part = step.elements(experts) / step.group(experts).size
            updated = step.compute(UPDATE, part * job.update_seconds, averaged[each])
        else:
            updated = step.orthogonalise([counts], [stack], experts, True, averaged[each])
        move(PARAMETERS, each, job.param_number_bytes, all_gather, updated)


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
    averaged = _passes(step, all_reduce, every)
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
    job = step.job
    number_bytes = job.grad_number_bytes + job.state_number_bytes
    ready = averaged
    for experts, stacks, size in step.kinds():
        for bucket in _merged(_zero3_buckets(stacks)):
            total = float(_numbers(stacks, bucket.matrices).sum()) * number_bytes
            ready = step.collect(MATRICES, all_gather, experts, total, ready, bucket.times) or ready
            for one in _rounds(bucket.matrices, size):
                times = one.times * bucket.times
                done = _round(step, stacks, Round(one.matrices, times), experts, ready)
                total = size * float(_numbers(stacks, one.matrices).max()) * number_bytes
                ready = step.collect(MATRICES, all_gather, experts, total, done, times)
    step.compute(UPDATE, 0.0, ready)


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
    averaged = _passes(step, reduce_scatter)
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
