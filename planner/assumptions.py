"""What a verdict rests on: each assumption of a plan, with another value and what that moves.

    for moved in sensitivity(plan): ...

Each change is an option of `python -m planner verdict`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from errors import UserError
from planner.memory.footprint import passes_of_one_sequence
from planner.plans import Plan
from planner.tables import size
from planner.verdict import Span, judge


@dataclass(frozen=True)
class Change:
    """An assumption in a plan, and another value for it."""

    what: str
    option: str  # of the command line
    before: str
    plan: Plan


def changes(plan: Plan) -> Iterator[Change]:
    """Plans that differ in one assumption each."""
    cluster, setting, iteration = plan.cluster, plan.setting, plan.iteration
    for mfu in (0.3, 0.5):
        yield Change(
            "share of the peak that the passes get", f"--mfu {mfu}", f"{cluster.mfu:g}",
            plan.with_cluster(mfu=mfu),
        )  # fmt: skip
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
    for factor in (0.5, 2.0):
        speed = cluster.net_bytes_per_s * factor
        yield Change(
            "link between nodes", f"--net-bytes-per-s {speed:g}",
            f"{size(cluster.net_bytes_per_s)}/s", plan.with_cluster(net_bytes_per_s=speed),
        )  # fmt: skip
    yield Change(
        "spread of the ranks' times", "--straggler-sd 0.1", f"{cluster.straggler_sd:g}",
        plan.with_cluster(straggler_sd=0.1),
    )  # fmt: skip
    slower = "assumed" if cluster.efficiency.name != "assumed" else "h800-published"
    yield Change(
        "curve of efficiency of products", f"--curve {slower}", cluster.efficiency.name,
        plan.with_cluster(curve=slower),
    )  # fmt: skip
    yield Change(
        "microseconds of a launch", "--launch-us 50",
        f"{cluster.efficiency.launch_seconds * 1e6:g}", plan.with_cluster(launch_us=50.0),
    )  # fmt: skip
    yield Change(
        "GPU hours between failures", "--gpu-hours-per-failure 10000",
        f"{cluster.gpu_hours_per_failure:,.0f}", plan.with_cluster(gpu_hours_per_failure=10_000.0),
    )  # fmt: skip
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


@dataclass(frozen=True)
class Moved:
    """What a changed assumption does to a verdict."""

    change: Change
    price: float
    saved_hours: Span
    state_bytes: float  # that the rank which holds most is spared


def sensitivity(plan: Plan) -> list[Moved]:
    """The verdict with each assumption changed, one at a time."""
    found = []
    for change in changes(plan):
        verdict = judge(change.plan)
        spared = verdict.spared_bytes
        found.append(Moved(change, verdict.price, verdict.saved_hours, spared))
    return found
