"""What a verdict rests on: each assumption of a plan, with another value and what that moves.

    for moved in sensitivity(plan): ...

Each change is an option of `python -m planner verdict`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from errors import UserError
from planner.memory.footprint import passes_of_one_sequence
from planner.plans import Plan
from planner.tables import size
from planner.verdict import Span, judge
from runtime import command_line


@dataclass(frozen=True)
class Change:
    """An assumption in a plan, and another value for it."""

    what: str
    option: str  # of the command line
    before: str
    plan: Plan


def changes(plan: Plan) -> Iterator[Change]:
    """Plans that differ in one choice each."""
    yield from _of_step(plan)
    yield from _of_cluster(plan)
    yield from _of_iteration(plan)


def _of_step(plan: Plan) -> Iterator[Change]:
    """Batch, strategy, bubble and types."""
    cluster, setting = plan.cluster, plan.setting
    for factor in (0.25, 4.0):
        tokens = round(plan.tokens * factor)
        other, option = plan.with_setting(batch_tokens=tokens), f"--batch-tokens {tokens}"
        if setting.microbatches > 1:  # passes of the same size, at least of a sequence
            most = passes_of_one_sequence(plan.model, other.setting, cluster.ranks)
            passes = max(1, min(most, round(setting.microbatches * factor)))
            other = other.with_setting(microbatches=passes)
            option += f" --microbatches {passes}"
        try:
            other.setting.check(plan.model, cluster.ranks)
        except UserError:  # fewer sequences than replicas
            continue
        yield Change("tokens of a step", option, f"{plan.tokens:,}", other)
    for strategy in ("ddp", "round-robin", "fsdp2"):
        if strategy != plan.strategy:
            other = replace(plan, strategy=strategy)
            yield Change("strategy", f"--strategy {strategy}", plan.strategy, other)
    if setting.pipeline > 1 and not setting.bubble:
        yield Change(
            "the pipeline's bubble on top of the share", "--bubble", "no",
            plan.with_setting(bubble=True),
        )  # fmt: skip
    if setting.grad_dtype == "float32":
        yield Change(
            "type of gradients", "--grad-dtype bfloat16", "float32",
            plan.with_setting(grad_dtype="bfloat16"),
        )  # fmt: skip
    if setting.state_dtype == "float32":
        yield Change(
            "type of optimizer state", "--state-dtype bfloat16", "float32",
            plan.with_setting(state_dtype="bfloat16"),
        )  # fmt: skip


def _of_cluster(plan: Plan) -> Iterator[Change]:
    """What GPUs and links deliver, and how often they are late or fail."""
    cluster = plan.cluster
    for mfu in (0.3, 0.5):
        yield Change(
            "share of the peak that the passes get", f"--mfu {mfu}", f"{cluster.mfu:g}",
            plan.with_cluster(mfu=mfu),
        )  # fmt: skip
    inside = cluster.ranks <= cluster.ranks_per_node
    what = "link in a node" if inside else "link between nodes"
    name = "node_bytes_per_s" if inside else "net_bytes_per_s"
    for factor in (0.5, 2.0):
        before = getattr(cluster, name)
        speed = before * factor
        yield Change(
            what, f"{command_line.flag(name)} {speed:g}", f"{size(before)}/s",
            plan.with_cluster(**{name: speed}),
        )  # fmt: skip
    yield Change(
        "spread of the ranks' times", "--straggler-sd 0.1", f"{cluster.straggler_sd:g}",
        plan.with_cluster(straggler_sd=0.1),
    )  # fmt: skip
    for curve in ("h200", "assumed"):
        if curve != cluster.efficiency.name:
            yield Change(
                "curve of efficiency of products", f"--curve {curve}", cluster.efficiency.name,
                plan.with_cluster(curve=curve),
            )  # fmt: skip
    yield Change(
        "microseconds of a launch", "--launch-us 50",
        f"{cluster.efficiency.launch_seconds * 1e6:g}", plan.with_cluster(launch_us=50.0),
    )  # fmt: skip
    yield Change(
        "minutes that a failure costs", "--restart-minutes 5", f"{cluster.restart_minutes:g}",
        plan.with_cluster(restart_minutes=5.0),
    )  # fmt: skip
    yield Change(
        "GPU hours between failures", "--gpu-hours-per-failure 10000",
        f"{cluster.gpu_hours_per_failure:,.0f}", plan.with_cluster(gpu_hours_per_failure=10_000.0),
    )  # fmt: skip


def _of_iteration(plan: Plan) -> Iterator[Change]:
    """How Muon orthogonalises."""
    iteration = plan.iteration
    other_table = "jordan" if iteration.ns_coefficients != "jordan" else "deepseek-v4"
    yield Change(
        "table of coefficients", f"--ns-coefficients {other_table}", iteration.ns_coefficients,
        plan.with_iteration(ns_coefficients=other_table),
    )  # fmt: skip
    if not iteration.symmetric:
        yield Change(
            "kernels for symmetric products", "--symmetric", "no",
            plan.with_iteration(symmetric=True),
        )  # fmt: skip
    if iteration.ns_form == "plain":
        yield Change(
            "form of the iteration", "--ns-form cheaper", "plain",
            plan.with_iteration(ns_form="cheaper"),
        )  # fmt: skip
    if not iteration.split:
        yield Change(
            "each head a matrix of its own", "--split", "no", plan.with_iteration(split=True)
        )


@dataclass(frozen=True)
class Moved:
    """What a changed assumption does to a verdict."""

    change: Change
    price: float
    saved_hours: Span
    spared_bytes: float  # of all memory, on the rank that holds most


def sensitivity(plan: Plan) -> list[Moved]:
    """The verdict with each assumption changed, one at a time."""
    found = []
    for change in changes(plan):
        verdict = judge(change.plan)
        spared = verdict.spared_bytes
        found.append(Moved(change, verdict.price, verdict.saved_hours, spared))
    return found
