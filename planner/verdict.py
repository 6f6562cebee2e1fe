"""Both optimizers on one cluster: what a step of each takes, holds and costs.

    found = judge(plan)
    found.price, found.gains, found.saved_hours

A step of Muon and a step of AdamW, in the faster strategy that divides its state alike, are
simulated on the same cluster with the same stragglers (planner/step/steps.py). Their ratio is the
gain in steps that Muon needs to break even. The gains that others measured at that size give hours
and money (planner/gains.py). assumptions.py changes what it rests on, words.py says it in words.
"""

from dataclasses import dataclass
from functools import cached_property

from planner import gains
from planner.memory import update_rules
from planner.memory.footprint import Footprint, footprint
from planner.models.shares import Question
from planner.plans import Plan
from planner.step import failures
from planner.step.steps import BASELINE, StepCost, step_cost
from planner.step.steps import price as price_of
from planner.time import efficiency

# The engine whose memory a strategy's ranks have. Of round-robin and layer-wise it is a little too
# low: they keep AdamW's state of all else whole.
ENGINE = {
    "ddp": "ddp", "round-robin": "sharded", "sharded": "sharded", "sharded-early": "sharded",
    "fsdp2": "fsdp2", "zero1": "deepspeed-zero1", "zero2": "deepspeed-zero2",
    "zero3": "deepspeed-zero3", "moonlight": "zero1", "layer-wise": "sharded",
}  # fmt: skip
# Strategies that divide AdamW's work and state as Muon's owners divide theirs. The faster one, or
# Muon's own strategy if that is faster still, is compared with.
OF_ADAMW = ("sharded-early", "sharded")


@dataclass(frozen=True)
class Span:
    """A number as a range."""

    low: float
    high: float

    def times(self, factor: float) -> "Span":
        """The range with both ends multiplied, in order."""
        ends = self.low * factor, self.high * factor
        return Span(min(ends), max(ends))


@dataclass(frozen=True)
class Verdict:
    """Both optimizers on one cluster."""

    plan: Plan
    adamw: StepCost
    muon: StepCost

    @property
    def price(self) -> float:
        """A step of Muon over a step of AdamW: the gain in steps at which both take as long."""
        return self.muon.seconds / self.adamw.seconds

    @property
    def prices(self) -> Span:
        """Over the draws of stragglers, which both optimizers share."""
        found = price_of(self.muon, self.adamw)
        return Span(1 + found.low, 1 + found.high)

    @cached_property
    def gains(self) -> gains.Range:
        """The gains in steps that others measured at about this size."""
        return gains.for_model(self.plan.model, gains.known())

    def speedup(self, gain: float) -> float:
        """AdamW's time over Muon's, for a gain in steps."""
        return gain / self.price

    @cached_property
    def adamw_hours(self) -> float:
        """Hours of AdamW's training, failures included."""
        hours = self.plan.steps * self.adamw.seconds / 3600
        return failures.expected_hours(hours, self.plan.cluster)

    def hours(self, gain: float) -> float:
        """Hours of Muon's training for a gain in steps, failures included."""
        hours = self.plan.steps / gain * self.muon.seconds / 3600
        return failures.expected_hours(hours, self.plan.cluster)

    @property
    def saved_hours(self) -> Span:
        """Hours that the range of gains saves; below 0: that Muon takes longer."""
        ends = [self.adamw_hours - self.hours(g) for g in (self.gains.low, self.gains.high)]
        return Span(min(ends), max(ends))

    @property
    def saved_gpu_hours(self) -> Span:
        return self.saved_hours.times(self.plan.cluster.ranks)

    @property
    def saved_dollars(self) -> Span:
        return self.saved_gpu_hours.times(self.plan.cluster.price_per_gpu_hour)

    @cached_property
    def largest_matrix_seconds(self) -> float:
        """To orthogonalise the matrix that takes longest, on one rank."""
        iteration, kind = self.plan.iteration, self.plan.cluster.kind
        curve = self.plan.cluster.efficiency
        return max(
            efficiency.orthogonalise_seconds(kind, iteration, m, n, count, curve)
            for weight in self.plan.model.weights
            if weight.hidden
            for m, n, count in [iteration.matrices(weight)]
        )

    def total_state_bytes(self, rule: str) -> float:
        """Optimizer state of the whole model."""
        question = Question(update_rules.find(rule), self.plan.setting, self.plan.iteration)
        return question.state_bytes(self.plan.model.weights)

    @property
    def spared_bytes(self) -> float:
        """Of all memory, on the rank that holds most; below 0: it has more."""
        return self.memory(BASELINE).total_bytes - self.memory(self.plan.rule).total_bytes

    def memory(self, rule: str) -> Footprint:
        """Memory of the rank that holds most, of AdamW in its own strategy."""
        strategy = self.adamw.strategy if rule == BASELINE else self.plan.strategy
        return held(self.plan, rule, strategy)

    def fits(self, rule: str) -> bool:
        """Whether that rank has the memory."""
        return self.memory(rule).fits(self.plan.cluster.kind.memory_bytes)

    @property
    def exposed_share(self) -> float:
        """The part of orthogonalisation, on the busiest rank, that lengthens the step."""
        longer = self.muon.seconds - self.adamw.seconds
        whole = self.muon.orthogonalise_seconds
        return min(1.0, max(0.0, longer / whole)) if whole else 0.0


def judge(plan: Plan) -> Verdict:
    """The verdict on a plan. Raises UserError for one that cannot be simulated."""

    def cost(rule: str, strategy: str) -> StepCost:
        return step_cost(
            plan.model, rule, strategy, plan.cluster, plan.setting, plan.iteration,
            draws=plan.draws,
        )  # fmt: skip

    muon = cost(plan.rule, plan.strategy)
    costs = [cost(BASELINE, each) for each in dict.fromkeys((*OF_ADAMW, plan.strategy))]
    return Verdict(plan, min(costs, key=lambda each: each.seconds), muon)


def held(plan: Plan, rule: str, strategy: str) -> Footprint:
    """Memory of the rank that holds most, with an optimizer in a strategy."""
    found = update_rules.find(rule)
    ranks = plan.cluster.ranks
    return footprint(plan.model, found, ENGINE[strategy], plan.setting, ranks, plan.kept)
