"""What a training step takes with an optimizer, by strategy: seconds, traffic, and who waits.

    cost = step_cost(model, "muon", "sharded", cluster, setting)
    price(cost, step_cost(model, "adamw", "sharded", cluster, setting)).mean

Ranks are late by chance: each draw has a factor for every rank, and a step has its mean, its lowest
and its highest time over the draws. Draws of the same number and seed have the same factors, so two
optimizers on one cluster meet the same stragglers. In a pipeline, a replica is as late as its
latest stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.cluster.clusters import Cluster
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.models import Model
from planner.step import jobs, strategies
from planner.step.collectives import links_of
from planner.step.streams import (
    BACKWARD,
    FORWARD,
    ORTHOGONALISE,
    PIPELINE,
    Floats,
    Operation,
    Span,
    resolve,
)
from planner.tables import size
from planner.time.newton_schulz import Iteration
from planner.time.step_time import duration
from runtime import command_line
from runtime.command_line import knob
from tracking.spelling import display_name

BASELINE = "adamw"
DRAWS = 8


@dataclass(frozen=True)
class Draws:
    """How stragglers are drawn. Its fields are flags of the command line."""

    draws: int = knob("steps whose stragglers are drawn", DRAWS)
    seed: int = knob("of these draws", 0)
    bucket_numbers: int = knob(
        "gradients that travel together; 0: the larger of 40M and 1M for each rank, as in "
        "Megatron-LM", 0,
    )  # fmt: skip

    def __post_init__(self) -> None:
        command_line.at_least(self, draws=1, seed=0, bucket_numbers=0)


@dataclass(frozen=True)
class StepCost:
    """A step of one optimizer in one strategy."""

    model: str
    optimizer: str
    strategy: str
    ranks: int
    draw_seconds: tuple[float, ...]  # of a step in each draw
    bubble_seconds: float  # of the pipeline; this and the next ones are means over ranks and draws
    compute_seconds: float  # forward and backward
    orthogonalise_mean_seconds: float
    orthogonalise_seconds: float  # of the busiest rank
    exposed_seconds: float  # communication that no computation hides
    idle_seconds: float  # waiting for other ranks
    sent_bytes: float  # by one rank
    watched: tuple[tuple[int, str], ...]  # ranks whose spans are kept, and why
    spans: tuple[Span, ...]  # of the first draw

    @property
    def seconds(self) -> float:
        """The mean over the draws."""
        return float(np.mean(self.draw_seconds))

    @property
    def low_seconds(self) -> float:
        return min(self.draw_seconds)

    @property
    def high_seconds(self) -> float:
        return max(self.draw_seconds)


@dataclass(frozen=True)
class Price:
    """What a step costs more than another one, as a share of that one."""

    mean: float
    low: float  # over the draws
    high: float


def price(cost: StepCost, base: StepCost) -> Price:
    """What a step costs more than a step of the baseline on the same cluster."""
    pairs = zip(cost.draw_seconds, base.draw_seconds, strict=True)
    ratios = [one / other - 1 for one, other in pairs]
    return Price(cost.seconds / base.seconds - 1, min(ratios), max(ratios))


def slowness(cluster: Cluster, pipeline: int, seed: int, draw: int) -> Floats:
    """The factor of each rank of a stage in a draw; of all ranks of the cluster, 1 on average."""
    random, sd = np.random.default_rng([seed, draw]), cluster.straggler_sd
    factors = random.lognormal(-(sd**2) / 2, sd, cluster.ranks)
    latest: Floats = factors.reshape(-1, pipeline).max(axis=1)
    return latest


def step_cost(
    model: Model,
    rule: str,
    strategy: str,
    cluster: Cluster,
    setting: Setting,
    iteration: Iteration | None = None,
    seed: int = 0,
    draws: int = DRAWS,
    bucket_numbers: int = 0,
) -> StepCost:
    """Simulate a step. Raises UserError for what does not fit, is unknown or is not planned."""
    found = update_rules.find(rule)
    slow = [slowness(cluster, setting.pipeline, seed, draw) for draw in range(draws)]
    latest = _mean([each.max() for each in slow])
    job = jobs.job(model, found, iteration or Iteration(), setting, cluster, bucket_numbers, latest)
    program = strategies.program(job, strategy, links_of(cluster))
    watched = _watched(program, slow[0])
    first = [rank for rank, _ in watched]
    results = [
        resolve(program, job.ranks, factors, () if draw else first)
        for draw, factors in enumerate(slow)
    ]

    def mean(*kinds: str) -> float:
        return float(np.mean([sum(each.busy[kind].mean() for kind in kinds) for each in results]))

    return StepCost(
        model=model.title,
        optimizer=found.name,
        strategy=strategy,
        ranks=cluster.ranks,
        draw_seconds=tuple(each.seconds for each in results),
        bubble_seconds=mean(PIPELINE),
        compute_seconds=mean(FORWARD, BACKWARD),
        orthogonalise_mean_seconds=mean(ORTHOGONALISE),
        orthogonalise_seconds=_mean([each.busy[ORTHOGONALISE].max() for each in results]),
        exposed_seconds=_mean([each.exposed.mean() for each in results]),
        idle_seconds=_mean([each.idle.mean() for each in results]),
        sent_bytes=results[0].sent_bytes,
        watched=watched,
        spans=tuple(results[0].spans),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _watched(program: Sequence[Operation], slow: Floats) -> tuple[tuple[int, str], ...]:
    """The first and the slowest rank, and the owners with most and with least to do."""
    work = np.zeros(len(slow))
    for each in program:
        if each.kind == ORTHOGONALISE:
            work += each.seconds
    reasons: dict[int, list[str]] = {0: ["first"]}
    if slow.max() > slow.min():
        reasons.setdefault(int(slow.argmax()), []).append("slowest")
    if work.max() > work.min():
        reasons.setdefault(int(work.argmax()), []).append("busiest owner")
        reasons.setdefault(int(work.argmin()), []).append("least busy owner")
    return tuple((rank, ", ".join(why)) for rank, why in sorted(reasons.items()))


def table(costs: Sequence[StepCost]) -> list[list[str]]:
    """A row for each, the first one a heading.

    The price is over AdamW in the same strategy, and over AdamW in its fastest one of the table.
    """
    headings = [
        "strategy", "optimizer", "step", "low to high", "passes", "bubble", "orthogonalised",
        "of mean", "exposed", "waits", "sent", "price", "of best",
    ]  # fmt: skip
    bases = {cost.strategy: cost for cost in costs if cost.optimizer == BASELINE}
    best = min(bases.values(), key=lambda base: base.seconds, default=None)
    rows = [headings]
    for cost in costs:
        base = bases.get(cost.strategy)
        rows.append(
            [
                cost.strategy,
                display_name(cost.optimizer),
                duration(cost.seconds),
                f"{duration(cost.low_seconds)} to {duration(cost.high_seconds)}",
                *(
                    duration(each) if each else "0"
                    for each in (
                        cost.compute_seconds,
                        cost.bubble_seconds,
                        cost.orthogonalise_seconds,
                        cost.orthogonalise_mean_seconds,
                        cost.exposed_seconds,
                        cost.idle_seconds,
                    )
                ),
                size(cost.sent_bytes),
                f"{price(cost, base).mean:+.2%}" if base and base is not cost else "",
                f"{price(cost, best).mean:+.2%}" if best and best is not cost else "",
            ]
        )
    return rows
