"""Will Muon pay on your cluster? Time, traffic, memory and money of a training, as ranges.

    python -m planner verdict deepseek-v4
    python -m planner verdict llama-405b --cluster b200 --ranks 8192 --mfu 0.35
    python -m planner verdict --from-model gpt2 --cluster a100 --ranks 8 --strategy round-robin

A step of Muon and a step of AdamW, in the strategy that is fastest for AdamW, are simulated on the
same cluster with the same stragglers (planner/step/steps.py). Their ratio is the gain in steps that
Muon needs to break even. The gains that others measured at that size, each with its source, then
give hours and money (planner/gains.py). What rests on an assumption is shown again with the
assumption changed.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.table import aligned
from errors import UserError
from host import entry
from planner import gains, models, plans
from planner.memory import update_rules
from planner.memory.footprint import Footprint, footprint, passes_of_one_sequence
from planner.models.shares import Question
from planner.plans import Plan
from planner.step import failures
from planner.step.steps import BASELINE, StepCost, step_cost
from planner.step.steps import price as price_of
from planner.tables import add_csv, short, size, write_csv
from planner.time import efficiency
from tracking.spelling import display_name

# The engine whose memory a strategy's ranks have. Of round-robin and layer-wise it is a little too
# low: they keep AdamW's state of all else whole.
ENGINE = {
    "ddp": "ddp", "round-robin": "sharded", "sharded": "sharded", "sharded-early": "sharded",
    "fsdp2": "fsdp2", "zero1": "deepspeed-zero1", "zero2": "deepspeed-zero2",
    "zero3": "deepspeed-zero3", "moonlight": "zero1", "layer-wise": "sharded",
}  # fmt: skip
# Strategies in which AdamW's step differs. Its fastest one is compared with.
OF_ADAMW = ("sharded-early", "sharded", "ddp", "fsdp2", "zero1")


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
        """Of optimizer state, on the rank that holds most; below 0: it has more."""
        return self.memory(BASELINE).state_bytes - self.memory(self.plan.rule).state_bytes

    def memory(self, rule: str) -> Footprint:
        """Memory of the rank that holds most."""
        plan = self.plan
        return footprint(
            plan.model, update_rules.find(rule), ENGINE[plan.strategy], plan.setting,
            plan.cluster.ranks, plan.kept,
        )  # fmt: skip


def judge(plan: Plan) -> Verdict:
    """The verdict on a plan. Raises UserError for one that cannot be simulated."""

    def cost(rule: str, strategy: str) -> StepCost:
        return step_cost(
            plan.model, rule, strategy, plan.cluster, plan.setting, plan.iteration,
            draws=plan.draws,
        )  # fmt: skip

    muon = cost(plan.rule, plan.strategy)
    adamw = min((cost(BASELINE, each) for each in OF_ADAMW), key=lambda each: each.seconds)
    return Verdict(plan, adamw, muon)


# ---- What it rests on --------------------------------------------------------------------------


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


# ---- In words ----------------------------------------------------------------------------------


def sentences(verdict: Verdict) -> list[str]:
    """The verdict in words, a paragraph each."""
    plan, name = verdict.plan, display_name(verdict.plan.rule)
    cluster, found = plan.cluster, verdict.gains
    gpus = f"{cluster.ranks:,} {cluster.kind.name}"
    basis = (
        "No gain has been published at its size. Those that were shown with a billion parameters "
        "or more reach from"
        if found.extrapolated
        else "The gains that were published at about its size reach from"
    )
    money = f" and {dollars(verdict.saved_dollars)}" if cluster.price_per_gpu_hour else ""
    hours = Span(verdict.hours(found.high), verdict.hours(found.low))
    return [
        f"A step of {plan.model.title} on {gpus} ({plan.tokens:,} tokens) takes "
        f"{seconds(verdict.adamw.seconds)} with AdamW in its fastest strategy, "
        f"{verdict.adamw.strategy}, and {seconds(verdict.muon.seconds)} with {name} in "
        f"{plan.strategy}: {verdict.price - 1:+.2%} "
        f"({percents(verdict.prices)}). {orthogonalisation(verdict)} {exposed(verdict)}",
        f"Both take as long if {name} needs {verdict.price:.3f}x fewer steps. {basis} "
        f"{found.low:.2f}x to {found.high:.2f}x. With them, a training of "
        f"{short(plan.train_tokens)} tokens takes {ends(hours)} hours in place of "
        f"{rounded(verdict.adamw_hours)}: {name} saves {ends(verdict.saved_hours)} hours, "
        f"{ends(verdict.saved_gpu_hours)} GPU hours{money}.",
        memory_sentence(verdict),
    ]


def orthogonalisation(verdict: Verdict) -> str:
    """What Newton-Schulz takes, as a sentence or two."""
    muon, largest = verdict.muon, verdict.largest_matrix_seconds
    bound = (
        f" The largest matrix alone takes {seconds(largest)}: more ranks do not shorten it."
        if largest > muon.orthogonalise_seconds / 2
        else ""
    )
    return (
        f"Orthogonalisation takes {seconds(muon.orthogonalise_seconds)} on the busiest rank, "
        f"{muon.orthogonalise_seconds / muon.seconds:.2%} of the step, and "
        f"{seconds(muon.orthogonalise_mean_seconds)} on average.{bound}"
    )


def exposed(verdict: Verdict) -> str:
    """The communication that no computation hides, as a sentence."""
    muon, adamw = verdict.muon.exposed_seconds, verdict.adamw.exposed_seconds
    than = (
        f"{seconds(muon - adamw)} more than with AdamW"
        if muon > adamw
        else f"{seconds(adamw - muon)} less than with AdamW, whose update hides less of it"
    )
    return f"Communication that no computation hides takes {seconds(muon)}, {than}."


def memory_sentence(verdict: Verdict) -> str:
    """Optimizer state and all memory with both optimizers, as a sentence or two."""
    rule = verdict.plan.rule
    before, after = verdict.memory(BASELINE), verdict.memory(rule)
    total, least = verdict.total_state_bytes(BASELINE), verdict.total_state_bytes(rule)
    return (
        f"Optimizer state of the whole model falls from {size(total)} to {size(least)} "
        f"({least / total - 1:+.1%}). The rank that holds most has {size(before.state_bytes)} of "
        f"it with AdamW and {size(after.state_bytes)} with {display_name(rule)}; all of its memory "
        f"goes from {size(before.total_bytes)} to {size(after.total_bytes)} "
        f"({after.total_bytes / before.total_bytes - 1:+.1%})."
    )


def seconds(value: float) -> str:
    """A time with a unit that keeps it short."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def signed(size_bytes: float) -> str:
    """Bytes, which may be below 0."""
    return f"-{size(-size_bytes)}" if size_bytes < 0 else size(size_bytes)


def rounded(number: float) -> str:
    """A number in about three digits, with all digits before the point."""
    if abs(number) >= 100 or number == 0:
        return f"{number:,.0f}"
    return f"{number:#.3g}".rstrip(".")


def ends(span: Span) -> str:
    """A range in words."""
    return f"{rounded(span.low)} to {rounded(span.high)}"


def percents(span: Span) -> str:
    """The range of a price, as percentages over 1."""
    low, high = sorted((span.low - 1, span.high - 1))
    return f"{low:+.2%} to {high:+.2%} over the draws of stragglers"


def dollars(span: Span) -> str:
    """A range of money."""
    return " to ".join(f"${rounded(each)}".replace("$-", "-$") for each in (span.low, span.high))


def gain_rows(verdict: Verdict) -> list[list[str]]:
    """What each published gain gives, and why some do not count; the first row is a heading."""
    rows = [["gain in steps", "hours", "GPU hours saved", "time", "counts", "source"]]
    for gain in gains.known():
        ratios = [verdict.speedup(g) for g in dict.fromkeys((gain.low, gain.high))]
        hours = [verdict.hours(g) for g in (gain.high, gain.low)]
        saved = [(verdict.adamw_hours - h) * verdict.plan.cluster.ranks for h in hours[::-1]]
        if gain.basis == "seconds":
            counts = "no: in seconds"
        elif not gain.tuned:
            counts = "no: not both tuned"
        elif gain in verdict.gains.gains:
            counts = "yes"
        else:
            counts = "no: another size"
        low, high = f"{gain.low:.2f}x", f"{gain.high:.2f}x"
        rows.append(
            [
                low if low == high else f"{low} to {high}",
                "-" if gain.basis == "seconds" else _several(map(rounded, hours)),
                "-" if gain.basis == "seconds" else _several(map(rounded, saved)),
                "-" if gain.basis == "seconds" else _several(f"{each:.2f}x" for each in ratios),
                counts,
                gain.source,
            ]
        )
    return rows


def _several(texts: Iterable[str]) -> str:
    return " to ".join(dict.fromkeys(texts))


def sensitivity_rows(verdict: Verdict, moved: Sequence[Moved]) -> list[list[str]]:
    """The assumptions, what changes with them, and by how much; the first row is a heading."""
    rows = [
        [
            "assumption",
            "here",
            "changed by",
            "break-even gain",
            "moves by",
            "hours saved",
            "state spared",
        ]
    ]
    rows.append(
        ["the plan", "", "", f"{verdict.price:.3f}x", "", ends(verdict.saved_hours),
         signed(verdict.spared_bytes)]
    )  # fmt: skip
    for each in moved:
        rows.append(
            [
                each.change.what,
                each.change.before,
                f"`{each.change.option}`",
                f"{each.price:.3f}x",
                f"{each.price - verdict.price:+.3f}",
                ends(each.saved_hours),
                signed(each.state_bytes),
            ]
        )
    return rows


# ---- The command -------------------------------------------------------------------------------


def command(arguments: argparse.Namespace) -> None:
    """Print the verdict. Raises UserError."""
    plan = plans.chosen(arguments, models.chosen(arguments))
    verdict = judge(plan)
    print(*sentences(verdict), sep="\n\n", end="\n\n")
    print(aligned(gain_rows(verdict)), end="\n\n")
    rows = sensitivity_rows(verdict, sensitivity(plan))
    print(aligned([[cell.replace("`", "") for cell in row] for row in rows]))
    for note in plan.assumed + plan.model.assumed:
        print(f"assumed: {note}")
    if arguments.csv:
        write_csv(arguments.csv, [[*FIELDS], [value(verdict) for value in FIELDS.values()]])


FIELDS: dict[str, Callable[[Verdict], object]] = {
    "model": lambda v: v.plan.model.name,
    "gpu": lambda v: v.plan.cluster.gpu,
    "ranks": lambda v: v.plan.cluster.ranks,
    "strategy": lambda v: v.plan.strategy,
    "adamw_strategy": lambda v: v.adamw.strategy,
    "optimizer": lambda v: v.plan.rule,
    "batch_tokens": lambda v: v.plan.tokens,
    "adamw_step_seconds": lambda v: v.adamw.seconds,
    "step_seconds": lambda v: v.muon.seconds,
    "orthogonalise_seconds": lambda v: v.muon.orthogonalise_seconds,
    "adamw_exposed_seconds": lambda v: v.adamw.exposed_seconds,
    "exposed_seconds": lambda v: v.muon.exposed_seconds,
    "break_even_gain": lambda v: v.price,
    "gain_low": lambda v: v.gains.low,
    "gain_high": lambda v: v.gains.high,
    "adamw_hours": lambda v: v.adamw_hours,
    "saved_hours_low": lambda v: v.saved_hours.low,
    "saved_hours_high": lambda v: v.saved_hours.high,
    "adamw_state_bytes": lambda v: v.memory(BASELINE).state_bytes,
    "state_bytes": lambda v: v.memory(v.plan.rule).state_bytes,
    "adamw_total_bytes": lambda v: v.memory(BASELINE).total_bytes,
    "total_bytes": lambda v: v.memory(v.plan.rule).total_bytes,
}


def main(argv: Sequence[str]) -> int:
    """The subcommand `verdict`; its exit code."""
    parser = entry.parser("planner verdict", __doc__)
    models.add(parser)
    plans.add(parser)
    add_csv(parser)
    return entry.run(parser, argv, command)
