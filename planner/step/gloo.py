"""The step of a small model on processes of one machine, predicted from what was measured apart.

    predict(machine, model, update_rules.find("muon"), "sharded", 4).seconds

A `Machine` is what was calibrated: passes and updates of one process alone, collectives over gloo,
and how much passes slow each other. `studies.planned` measures it. Stated rules: n processes of one
thread on c cores compute n / c times as long where n is above c, and longer by `beside` where all
cores are busy; a pass divides into layers by FLOPs; Muon's time divides into matrices as n m^2; no
communication hides behind computation, because gloo's threads need the cores that compute.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from errors import UserError
from host import owners
from planner.memory import update_rules
from planner.memory.update_rules import UpdateRule
from planner.models import Model, Weight
from planner.step import links
from planner.step.collectives import Links
from planner.step.jobs import Job, Stack, Unit
from planner.step.strategies import simulate
from planner.step.streams import BACKWARD, FORWARD, ORTHOGONALISE, UPDATE

# The collectives that an engine waits for. Its links are fitted to the times of these alone, since
# gloo does not do all of them as a ring does: its reduce-scatter is an all-reduce.
USED = {
    "ddp": ("all-reduce",),
    "sharded": ("reduce-scatter", "all-gather"),
    "fsdp2": ("reduce-scatter", "all-gather", "all-to-all"),
}


class Passes(NamedTuple):
    """Seconds of one process alone, on one thread."""

    forward: float
    both: float  # forward and backward


@dataclass(frozen=True)
class Machine:
    """What was calibrated."""

    cores: int
    beside: float  # factor on a pass while all cores do passes
    passes: Mapping[int, Passes]  # by the number of processes that share a batch
    whole_seconds: Mapping[str, float]  # by rule: an update of all hidden matrices
    other_seconds: Mapping[str, float]  # by rule: an update of all else, or of all parameters
    transfers: Mapping[tuple[str, int], Sequence[links.Transfer]]  # by collective and processes

    def slowness(self, processes: int) -> float:
        """Factor on computation where each of some processes has one thread."""
        shared = max(1.0, processes / self.cores)
        return shared * (self.beside if processes > 1 and processes >= self.cores else 1.0)

    def links(self, engine: str, processes: int) -> Links:
        """What connects processes, by the collectives that an engine uses. Raises UserError."""
        if processes == 1:
            return Links(1, 1.0, 1.0)
        measured = [t for name in USED[engine] for t in self.transfers.get((name, processes), ())]
        link = links.fit(measured)
        return Links(processes, link.bytes_per_s, link.bytes_per_s, link.latency_s, link.latency_s)


@dataclass(frozen=True)
class Step:
    """A predicted step, and its parts, of the process that takes longest."""

    seconds: float
    passes_seconds: float  # computation of forward and backward
    update_seconds: float  # computation of the optimizer

    @property
    def exposed_seconds(self) -> float:
        """Communication, and waiting for others."""
        return self.seconds - self.passes_seconds - self.update_seconds


def predict(machine: Machine, model: Model, rule: UpdateRule, engine: str, processes: int) -> Step:
    """A step of an engine. Raises UserError for one without a program, or without calibration."""
    if engine not in USED:
        raise UserError(f"engine {engine}: its step is not predicted, only {', '.join(USED)}")
    if processes not in machine.passes:
        known = ", ".join(map(str, machine.passes))
        raise UserError(f"{processes} processes: passes were calibrated for {known} alone")
    job = job_of(machine, model, rule, processes)
    found = simulate(job, engine, machine.links(engine, processes), machine.slowness(processes))
    passes, update = (
        float(max(map(sum, zip(*(found.busy[kind] for kind in kinds), strict=True))))
        for kinds in ((FORWARD, BACKWARD), (ORTHOGONALISE, UPDATE))
    )
    return Step(found.seconds, passes, update)


def job_of(machine: Machine, model: Model, rule: UpdateRule, processes: int) -> Job:
    """The work of a step of one process."""
    hidden = sum(w.params for w in model.weights if w.hidden)
    others = model.params - (hidden if rule.whole else 0)
    return Job(
        ranks=processes,
        units=_units(model, machine.passes[processes]),
        stacks=_stacks(model, rule, machine.whole_seconds[rule.name]) if rule.whole else (),
        update_seconds=machine.other_seconds[rule.name] / others,
        param_number_bytes=4,
        hides=False,
    )


def _units(model: Model, passes: Passes) -> tuple[Unit, ...]:
    """The embedding, the layers and the head, with their shares of the passes."""
    head = float(sum(w.params for w in model.of_roles(("head",))))
    layers = float(sum(w.params for w in model.weights if w.hidden))
    layers += model.n_layer * model.n_head * (model.qk_size + model.v_size) * model.attended
    backward = passes.both - passes.forward

    def unit(name: str, flops: float, numbers: float, root: bool = False) -> Unit:
        share = flops / (layers + head)
        return Unit(name, share * passes.forward, share * backward, numbers, root=root)

    ends = {role: sum(w.params for w in model.of_roles((role,))) for role in ("embed", "head")}
    each = (model.params - sum(ends.values())) / model.n_layer
    return (
        unit("embed", 0.0, ends["embed"], root=True),
        *(unit(f"layer {i}", layers / model.n_layer, each) for i in range(model.n_layer)),
        unit("head", head, ends["head"], root=True),
    )


def _stacks(model: Model, rule: UpdateRule, seconds: float) -> tuple[Stack, ...]:
    """The hidden matrices by their weights. seconds: of an update of all of them."""
    weights = [w for w in model.weights if w.hidden]
    total = sum(w.count * _cost(rule, w) for w in weights)
    rows: dict[tuple[int, ...], int] = {}

    def stack(weight: Weight) -> Stack:
        cost = _cost(rule, weight)
        each = seconds * cost / total
        row = rows.setdefault(update_rules.blocks(rule, weight), len(rows))
        return Stack(
            weight.name, weight.size, weight.count, cost, lambda count: count * each, row=row
        )

    return tuple(map(stack, weights))


def _cost(rule: UpdateRule, weight: Weight) -> float:
    return owners.orthogonal_cost((weight.rows, weight.cols), update_rules.blocks(rule, weight))
