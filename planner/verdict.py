"""Will Muon pay on your cluster? Time, traffic, memory and money of a training, as ranges.

    python -m planner verdict deepseek-v4
    python -m planner verdict llama-405b --cluster b200 --ranks 8192 --mfu 0.35
    python -m planner verdict --from-model gpt2 --cluster a100 --ranks 8 --strategy round-robin

A step of AdamW and a step of Muon are simulated on the same cluster, with the same stragglers
(planner/steps.py). Their ratio is the gain in steps that Muon needs to break even. The gains that
others measured at that size, each with its source, then give hours and money (planner/gains.py).
What rests on an assumption is shown again with the assumption changed.
"""

import argparse
import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.table import aligned
from errors import UserError
from host import entry, paths
from planner import failures, gains, models, plans
from planner.footprint import Footprint, footprint
from planner.plans import Plan
from planner.steps import StepCost, step_cost

BASELINE = "adamw"
# The engine whose memory a strategy's ranks have.
ENGINE = {
    "ddp": "ddp", "round-robin": "sharded", "sharded": "sharded", "fsdp2": "fsdp2",
    "zero1": "zero1", "zero2": "zero2", "zero3": "zero3", "moonlight": "zero1",
    "layer-wise": "sharded",
}  # fmt: skip


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
        return Span(
            self.muon.low_seconds / self.adamw.low_seconds,
            self.muon.high_seconds / self.adamw.high_seconds,
        )

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

    def memory(self, rule: str) -> Footprint:
        """Memory of the rank that holds most."""
        plan = self.plan
        engine = ENGINE[plan.strategy]
        return footprint(plan.model, rule, engine, plan.setting, plan.cluster.ranks)


def judge(plan: Plan) -> Verdict:
    """The verdict on a plan. Raises UserError for one that cannot be simulated."""

    def cost(rule: str) -> StepCost:
        return step_cost(
            plan.model, rule, plan.strategy, plan.cluster, plan.setting, plan.iteration,
            draws=plan.draws,
        )  # fmt: skip

    return Verdict(plan, cost(BASELINE), cost(plan.rule))


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
        other = plan.with_setting(batch_tokens=tokens)
        try:
            other.setting.check(plan.model, cluster.ranks)
        except UserError:  # fewer sequences than replicas
            continue
        yield Change("tokens of a step", f"--batch-tokens {tokens}", f"{plan.tokens}", other)
    for factor in (0.5, 2.0):
        speed = cluster.net_bytes_per_s * factor
        yield Change(
            "link between nodes, bytes/s", f"--net-bytes-per-s {speed:g}",
            f"{cluster.net_bytes_per_s:g}", plan.with_cluster(net_bytes_per_s=speed),
        )  # fmt: skip
    yield Change(
        "spread of the ranks' times", "--straggler-sd 0.1", f"{cluster.straggler_sd:g}",
        plan.with_cluster(straggler_sd=0.1),
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


@dataclass(frozen=True)
class Moved:
    """What a changed assumption does to a verdict."""

    change: Change
    price: float
    saved_hours: Span


def sensitivity(plan: Plan) -> list[Moved]:
    """The verdict with each assumption changed, one at a time."""
    found = []
    for change in changes(plan):
        verdict = judge(change.plan)
        found.append(Moved(change, verdict.price, verdict.saved_hours))
    return found


# ---- In words ----------------------------------------------------------------------------------


def sentences(verdict: Verdict) -> list[str]:
    """The verdict in words, a paragraph each."""
    plan, muon, adamw = verdict.plan, verdict.muon, verdict.adamw
    cluster, found = plan.cluster, verdict.gains
    gpus = f"{cluster.ranks:,} {cluster.kind.name}"
    saved, money = verdict.saved_hours, verdict.saved_dollars
    share = muon.orthogonalise_seconds / muon.seconds
    hidden = max(0.0, muon.exposed_seconds - adamw.exposed_seconds)
    basis = (
        "No gain has been published at its size. Those that were shown with a billion parameters "
        "or more reach from"
        if found.extrapolated
        else "The gains that were published at about its size reach from"
    )
    price = f" and {dollars(money)}" if cluster.price_per_gpu_hour else ""
    return [
        f"A step of {plan.model.title} on {gpus} ({plan.tokens / 1e6:,.2f}M tokens, strategy "
        f"{plan.strategy}) takes {seconds(adamw.seconds)} with AdamW and {seconds(muon.seconds)} "
        f"with {plan.rule}: {verdict.price - 1:+.2%} ({percents(verdict.prices)}). "
        f"Orthogonalisation takes {seconds(muon.orthogonalise_seconds)} on the busiest rank, "
        f"{share:.2%} of the step. Communication that no computation hides takes "
        f"{seconds(muon.exposed_seconds)}, {seconds(hidden)} more than with AdamW.",
        f"Both take as long if {plan.rule} needs {verdict.price:.3f}x fewer steps. {basis} "
        f"{found.low:.2f}x to {found.high:.2f}x. With them, a training of "
        f"{amount(plan.train_tokens)} tokens takes {verdict.hours(found.high):,.0f} to "
        f"{verdict.hours(found.low):,.0f} hours in place of {verdict.adamw_hours:,.0f}: it saves "
        f"{ends(saved, '{:,.0f}')} hours, "
        f"{ends(verdict.saved_gpu_hours, '{:,.0f}')} GPU hours{price}.",
        *_memory_sentences(verdict),
    ]


def _memory_sentences(verdict: Verdict) -> list[str]:
    rule = verdict.plan.rule
    before, after = verdict.memory(BASELINE), verdict.memory(rule)
    state, total = before.state_bytes, before.total_bytes
    return [
        f"Optimizer state of the rank that holds most falls from {gigabytes(state)} to "
        f"{gigabytes(after.state_bytes)} ({after.state_bytes / state - 1:+.1%}), all of its memory "
        f"from {gigabytes(total)} to {gigabytes(after.total_bytes)} "
        f"({after.total_bytes / total - 1:+.1%})."
    ]


def seconds(value: float) -> str:
    """A time with a unit that keeps it short."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def gigabytes(size: float) -> str:
    """A size in GB with three digits."""
    return f"{size / 1e9:#.3g} GB".replace(". GB", " GB")


def amount(number: float) -> str:
    """A count with a unit that keeps it short."""
    for size, name in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"


def ends(span: Span, form: str) -> str:
    """A range in words."""
    return f"{form.format(span.low)} to {form.format(span.high)}"


def percents(span: Span) -> str:
    """The range of a price, as percentages over 1."""
    low, high = sorted((span.low - 1, span.high - 1))
    return f"{low:+.2%} to {high:+.2%} over the draws of stragglers"


def dollars(span: Span) -> str:
    """A range of money."""
    form = "${:,.2f}" if max(abs(span.low), abs(span.high)) < 1000 else "${:,.0f}"
    return ends(span, form).replace("$-", "-$")


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
                "-" if gain.basis == "seconds" else _ends(hours, "{:,.0f}"),
                "-" if gain.basis == "seconds" else _ends(saved, "{:,.0f}"),
                "-" if gain.basis == "seconds" else _ends(ratios, "{:.2f}x"),
                counts,
                gain.source,
            ]
        )
    return rows


def _ends(values: Sequence[float], form: str) -> str:
    return " to ".join(dict.fromkeys(form.format(value) for value in values))


def sensitivity_rows(verdict: Verdict, moved: Sequence[Moved]) -> list[list[str]]:
    """The assumptions, what changes with them, and by how much; the first row is a heading."""
    rows = [["assumption", "here", "changed by", "break-even gain", "moves by", "hours saved"]]
    rows.append(["the plan", "", "", f"{verdict.price:.3f}x", "", _hours(verdict.saved_hours)])
    for each in moved:
        rows.append(
            [
                each.change.what,
                each.change.before,
                f"`{each.change.option}`",
                f"{each.price:.3f}x",
                f"{each.price - verdict.price:+.3f}",
                _hours(each.saved_hours),
            ]
        )
    return rows


def _hours(span: Span) -> str:
    return ends(span, "{:,.0f}" if abs(span.high) >= 10 else "{:,.2f}")


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
        write(arguments.csv, verdict)


FIELDS: dict[str, Callable[[Verdict], object]] = {
    "model": lambda v: v.plan.model.name,
    "gpu": lambda v: v.plan.cluster.gpu,
    "ranks": lambda v: v.plan.cluster.ranks,
    "strategy": lambda v: v.plan.strategy,
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


def write(path: paths.Path, verdict: Verdict) -> None:
    """The verdict as a CSV of one row. Raises UserError if it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(FIELDS)
            writer.writerow([value(verdict) for value in FIELDS.values()])
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}; choose another file") from error


def main(argv: Sequence[str]) -> int:
    """The subcommand `verdict`; its exit code."""
    parser = entry.parser("planner verdict", __doc__)
    models.add(parser)
    plans.add(parser)
    parser.add_argument("--csv", type=paths.typed, metavar="FILE", help="write a row there, too")
    return entry.run(parser, argv, command)
