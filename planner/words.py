"""Will Muon pay on your cluster? Time, traffic, memory and money of a training, as ranges.

    python -m planner verdict deepseek-v4
    python -m planner verdict llama-405b --cluster b200 --ranks 8192 --mfu 0.35
    python -m planner verdict --from-model gpt2 --cluster a100 --ranks 8 --strategy round-robin

A step of Muon and a step of AdamW, in the faster strategy that divides its state alike, are
simulated on the same cluster with the same stragglers (planner/step/steps.py). Their ratio is the
gain in steps that Muon needs to break even. The gains that others measured at that size, each with
its source, then give hours and money (planner/gains.py). What rests on an assumption is shown again
with the assumption changed.
"""

import argparse
import textwrap
from collections.abc import Callable, Iterable, Sequence

from analysis.table import aligned
from errors import UserError
from host import entry
from planner import gains, models, plans
from planner.assumptions import Moved, sensitivity
from planner.memory import update_rules
from planner.step.steps import BASELINE
from planner.tables import add_csv, short, size, write_csv
from planner.verdict import Span, Verdict, judge
from tracking.spelling import display_name

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
        f"{seconds(verdict.adamw.seconds)} with AdamW in "
        f"{verdict.adamw.strategy} and {seconds(verdict.muon.seconds)} with {name} in "
        f"{plan.strategy}: {verdict.price - 1:+.2%} "
        f"({percents(verdict.prices)}). {orthogonalisation(verdict)} {exposed(verdict)}",
        f"Both take as long if {name} needs {1 - 1 / verdict.price:.1%} fewer steps, a gain of "
        f"{verdict.price:.3f}x. {basis} "
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
        f"{seconds(muon.orthogonalise_mean_seconds)} on average. The step is "
        f"{seconds(max(0.0, muon.seconds - verdict.adamw.seconds))} longer: "
        f"{verdict.exposed_share:.0%} of it is exposed.{bound}"
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
    lacking = [display_name(each) for each in (BASELINE, rule) if not verdict.fits(each)]
    kind = verdict.plan.cluster.kind
    lacks = f" This does not fit {kind.name}: {' and '.join(lacking)}." if lacking else ""
    total, least = verdict.total_state_bytes(BASELINE), verdict.total_state_bytes(rule)
    return (
        f"Optimizer state of the whole model falls from {size(total)} to {size(least)} "
        f"({least / total - 1:+.1%}). The rank that holds most has {size(before.state_bytes)} of "
        f"it with AdamW and {size(after.state_bytes)} with {display_name(rule)}; all of its memory "
        f"goes from {size(before.total_bytes)} to {size(after.total_bytes)} "
        f"({after.total_bytes / before.total_bytes - 1:+.1%}).{lacks}"
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


def ranges(moved: Sequence[Moved]) -> str:
    """What changed choices do to break-even and to memory, as a sentence."""
    prices, spared = [each.price for each in moved], [each.spared_bytes for each in moved]
    return (
        f"With one choice changed, break-even is at a gain of {min(prices):.3f}x to "
        f"{max(prices):.3f}x, and the rank that holds most is spared {signed(min(spared))} to "
        f"{signed(max(spared))} of memory."
    )


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
            "memory spared",
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
                signed(each.spared_bytes),
            ]
        )
    return rows


# ---- The command -------------------------------------------------------------------------------


def command(arguments: argparse.Namespace) -> None:
    """Print the verdict. Raises UserError."""
    if not update_rules.find(arguments.optimizer).orthogonalises:
        raise UserError(
            f"--optimizer {arguments.optimizer}: gains in steps are known of Muon alone; "
            f"run: python -m planner step MODEL --optimizer {arguments.optimizer}"
        )
    plan = plans.chosen(arguments, models.chosen(arguments))
    verdict = judge(plan)
    for paragraph in sentences(verdict):
        print(textwrap.fill(paragraph, 100, break_on_hyphens=False), end="\n\n")
    print(aligned(gain_rows(verdict)), end="\n\n")
    moved = sensitivity(plan)
    print(textwrap.fill(ranges(moved), 100), end="\n\n")
    rows = sensitivity_rows(verdict, moved)
    print(aligned([[cell.replace("`", "") for cell in row] for row in rows]))
    for note in plan.assumed + plan.model.assumed:
        print(textwrap.fill(f"assumed: {note}", 100, subsequent_indent="  "))
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
