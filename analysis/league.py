"""The league table of a race of many entrants: the cost of the target, against the baseline.

    python -m analysis.report        # prints it for a race of more than two entrants

Claims: entrants that miss the target or diverge stay in the table. A difference that the test of
all pairs does not find is called not distinguishable (`analysis.pairs`). `detectable_note` says how
large a difference must be to be found.
"""

from collections.abc import Callable, Mapping, Sequence

from analysis.pairs import UNITS, Detectable, Pair, Pairs, detectable_differences
from analysis.price import Prices
from analysis.stats import POWER, SIGNIFICANT, Estimate, Ratio, costs
from analysis.table import (
    BASELINE,
    CHALLENGER,
    Row,
    aligned,
    by_label,
    find,
    markdown_grid,
    standing,
    summarise,
    turn_lengths,
)
from tracking.schema import DIVERGED, MISSED, REACHED, Run
from tracking.spelling import display_name

NOTE = (
    "Brackets are 95% confidence intervals.",
    "If runs missed the target, cost = total spent / number of runs that reached, without an "
    "interval.",
    "If no run reached the target, the cost is a bound: the cost is more than the mean of what the "
    "runs spent.",
    'A ratio with "over" or "under" is a bound: runs of the slower entrant missed and no run of '
    "the faster entrant did, so each miss counts with what it spent. Its brackets are the interval "
    "of the bound.",
    "Two entrants are distinguishable if Welch's t-test on the logarithms of their costs has p < "
    f"{SIGNIFICANT:.2g} after Holm's correction for all pairs of the race. For an entrant that "
    "never reached the target, the test takes the other entrant's spread.",
    "The test covers the variation between seeds, not the variation between searches for settings.",
    "Final losses are not compared, because the entrants have different horizons.",
)
IN_TURNS = (
    "Seconds to target are the sums of each run's own clock. A ratio in seconds is the ratio in "
    "steps divided by the price of a step, which is estimated from neighbouring turns. It has the "
    "errors of both.",
)


def notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """What the table means, in sentences."""
    return NOTE + IN_TURNS if turn_lengths(runs) else NOTE


def text(runs: Sequence[Run], prices: Prices) -> str:
    """The table as aligned plain text. prices: of the race."""
    return aligned(_grid(runs, prices))


def markdown(runs: Sequence[Run], prices: Prices) -> str:
    """The table as Markdown, with its notes as a list. prices: of the race."""
    headings, *cells = _grid(runs, prices)
    listed = "\n".join(f"- {sentence}" for sentence in notes(runs))
    return f"{markdown_grid(headings, cells)}\n\n{listed}"


def _grid(runs: Sequence[Run], prices: Prices) -> list[list[str]]:
    """Headings, then a row for each entrant. The lowest cost in seconds is first."""
    groups, rows = by_label(runs), {row.label: row for row in summarise(runs)}
    base = find(groups, BASELINE)
    order = sorted(groups, key=lambda label: standing(groups[label], "seconds"))
    steps, seconds = (Pairs(groups, unit, prices) for unit in UNITS)
    against = display_name(base) if base else "baseline"
    in_turns = bool(turn_lengths(runs))
    headings = [
        "entrant", "reached/missed/diverged", "steps to target", "seconds to target",
        f"{against}'s steps over its own", f"{against}'s seconds over its own",
        *([f"its step over {against}'s"] if in_turns else []), "ms per step",
        "optimizer state", "final loss",
    ]  # fmt: skip
    grid = [headings]
    for label in order:
        row = rows[label]
        grid.append(
            [
                label,
                _tally(row),
                _cost(groups[label], row, "steps", "{:,.1f}".format),
                _cost(groups[label], row, "seconds", "{:,.1f}".format),
                _against(steps, base, label),
                _against(seconds, base, label),
                *([_price(prices, base, label)] if in_turns else []),
                "-" if row.step_ms is None else f"{row.step_ms:.1f}",
                f"{row.state_bytes / 1e6:,.2f} MB",
                _loss(row),
            ]
        )
    return grid


def _tally(row: Row) -> str:
    counts = {REACHED: row.reached, MISSED: row.missed, DIVERGED: row.diverged}
    only = [status for status, n in counts.items() if n == row.n]
    return f"{row.reached}/{row.missed}/{row.diverged}{f' {only[0]}' if only else ''}"


def _cost(runs: Sequence[Run], row: Row, unit: str, form: Callable[[float], str]) -> str:
    cost = {"steps": row.steps, "seconds": row.seconds}[unit]
    if cost is None:
        if row.diverged == row.n:
            return "-"
        spent = costs(runs, unit).spent
        return f"over {form(sum(spent) / len(spent))}"
    return f"{form(cost.expected.value)}{_brackets(cost.expected, form)}"


def _brackets(estimate: Estimate, form: Callable[[float], str]) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{form(estimate.low)}, {form(estimate.high)}]"


def _against(pairs: Pairs, base: str | None, label: str) -> str:
    if base is None:
        return "-"
    if base == label:
        return "1"
    pair = pairs.of(base, label)
    return "-" if pair.ratio is None else f"{times(pair.ratio)}{verdict(pair)}"


def _price(prices: Prices, base: str | None, label: str) -> str:
    if base == label:
        return "1"
    found = None if base is None else prices.of(base, label)
    return "-" if found is None else f"{found.value:.3f}x{_brackets(found, '{:.3f}'.format)}"


def times(ratio: Ratio) -> str:
    """A speed-up as text with its interval: "1.35x [1.20, 1.50]"."""
    return f"{multiple(ratio)}{_brackets(ratio.estimate, '{:.2f}'.format)}"


def multiple(ratio: Ratio) -> str:
    """A speed-up as text: "1.35x", "over 1.35x" or "under 1.35x"."""
    bound = "over " if ratio.at_least else "under " if ratio.at_most else ""
    return f"{bound}{ratio.estimate.value:.2f}x"


def verdict(pair: Pair) -> str:
    """The words after a ratio whose entrants are not distinguishable; else empty."""
    return "" if pair.distinct or pair.p is None else ", not distinguishable"


def _loss(row: Row) -> str:
    if row.final_loss is None:
        return "-"
    sd = "" if row.final_loss_sd is None else f" ± {row.final_loss_sd:.4f}"
    return f"{row.final_loss:.4f}{sd}"


# ---- What the pairs show -----------------------------------------------------------------------


def verdicts(runs: Sequence[Run], prices: Prices) -> str:
    """Who needs less and who more than the baseline and the challenger, as Markdown.

    prices: of the race. An entrant that has no test against the other is not distinguishable.
    """
    groups = by_label(runs)
    found = (find(groups, name) for name in (BASELINE, CHALLENGER))
    rows = []
    for reference in [label for label in found if label is not None]:
        for unit in UNITS:
            pairs = Pairs(groups, unit, prices)
            cells: dict[str, list[str]] = {"less": [], "more": [], "neither": []}
            for label in sorted(groups, key=lambda label: standing(groups[label], unit)):
                if label != reference:
                    cells[_side(pairs.of(reference, label))].append(display_name(label))
            name = display_name(reference)
            rows.append([f"{unit}, against {name}", *(", ".join(c) or "-" for c in cells.values())])
    headings = ["target in", "shown to need less", "shown to need more", "not distinguishable"]
    return markdown_grid(headings, rows)


def _side(pair: Pair) -> str:
    """What the test says of the challenger of a pair: less, more or neither."""
    if pair.ratio is None or not pair.distinct:
        return "neither"
    return "less" if pair.ratio.estimate.value > 1 else "more"


# ---- The differences that the seeds can show ---------------------------------------------------


def detectable_note(runs: Sequence[Run]) -> str:
    """The smallest differences that a race's number of seeds can show, in a few sentences."""
    groups = by_label(runs)
    found = {each.quantity: each for each in detectable_differences(groups)}
    if not found:
        return f"Race {runs[0].race} has single runs, so it can show no difference."
    seeds, entrants = min(map(len, groups.values())), len(groups)
    sentences = (
        f"With {seeds} seeds each, a test of two entrants finds a difference of "
        f"{_listed(found, lambda each: each.single_pair, 'or')} with a probability of {POWER:.0%} "
        f"(Welch's t-test, p < {SIGNIFICANT:.2g})."
    )
    if entrants > 2:
        pairs = entrants * (entrants - 1) // 2
        sentences += (
            f" Among all {pairs} pairs of the {entrants} entrants, the strictest level of Holm's "
            f"method needs {_listed(found, lambda each: each.among_all, 'or')}."
        )
    of_reached = (
        "Steps are of the runs that reached the target. A ratio in seconds varies as the ratio in "
        "steps does; the error of the price of a step is added."
        if turn_lengths(runs)
        else "Steps and seconds are of the runs that reached the target."
    )
    return (
        f"{sentences} The standard deviations between seeds, pooled over the entrants of race "
        f"{runs[0].race}, are {_listed(found, lambda each: each.deviation)}. {of_reached}"
    )


def _listed(
    found: Mapping[str, Detectable], value: Callable[[Detectable], float], last: str = "and"
) -> str:
    words = [
        f"{value(each):.1%} in {name}"
        if name != "loss"
        else f"{value(each):.4f} in final loss at one horizon"
        for name, each in found.items()
    ]
    return f" {last} ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
