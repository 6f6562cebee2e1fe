"""The league table of a race of many entrants: who reaches the target for how much, and who is who.

    python -m analysis.report        # prints it for a race of more than two entrants

Claims: entrants that miss the target stay in the table as missed, those that diverge as diverged.
A difference that the seeds cannot carry is called not distinguishable (`analysis.pairs`), and
`resolution` says how large one must be to be seen.
"""

from collections.abc import Callable, Mapping, Sequence

from analysis.pairs import Pair, Pairs, Resolution, resolutions
from analysis.stats import POWER, SIGNIFICANT, Estimate, Ratio, costs
from analysis.table import (
    BASELINE,
    Row,
    aligned,
    by_label,
    find,
    markdown_grid,
    standing,
    summarise,
)
from errors import UserError
from tracking.schema import DIVERGED, MISSED, REACHED, Run
from tracking.spelling import display_name

NONE_YET = "No race of more than two entrants is recorded yet: `make compare` runs it."
NOTE = (
    "Brackets: 95% intervals, of a bound where the ratio is one. Of an entrant whose runs did not "
    "all reach the target, the cost is all that they spent over the number that reached, without "
    "an interval, and the ratio to a faster one that never missed is a bound, which counts a miss "
    "at what it spent, where that is more than the other's cost. If none reached, their mean "
    "spending bounds the cost. "
    "Entrants are called distinguishable where Welch's t-test on the logarithm of the cost, "
    f"corrected by Holm's method over all pairs of the race, has p < {SIGNIFICANT:.2g}; one that "
    "never reached is given the other's spread. That is about the luck of the seeds, not of the "
    "search for settings. Final losses belong to different horizons and are not compared."
)


def newest(runs: Sequence[Run], race: str | None = None) -> list[Run]:
    """The named race, or the newest one on a frozen track with more than two entrants.

    Empty when there is none, and for the name "none". Raises UserError for an unknown name.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.race, []).append(run)
    if race is not None and race != "none" and race not in groups:
        raise UserError(f"no race {race}: must be none or one of {', '.join(groups)}")
    if race is not None:
        return groups.get(race, [])
    fields = [g for g in groups.values() if g[0].track != "custom" and len(by_label(g)) > 2]
    return max(fields, key=lambda group: max(run.started for run in group), default=[])


def text(runs: Sequence[Run]) -> str:
    """The table as aligned plain text."""
    return aligned(_grid(runs))


def markdown(runs: Sequence[Run]) -> str:
    """The table as Markdown, with its note."""
    headings, *cells = _grid(runs)
    return f"{markdown_grid(headings, cells)}\n\n{NOTE}"


def _grid(runs: Sequence[Run]) -> list[list[str]]:
    """Headings, then an entrant a row: the cheapest in seconds first, those that missed last."""
    groups, rows = by_label(runs), {row.label: row for row in summarise(runs)}
    base = find(groups, BASELINE)
    order = sorted(groups, key=lambda label: standing(groups[label], "seconds"))
    steps, seconds = Pairs(groups, "steps"), Pairs(groups, "seconds")
    against = display_name(base) if base else "baseline"
    headings = [
        "entrant", "reached/missed/diverged", "steps to target", "seconds to target",
        f"{against}'s steps over its own", f"{against}'s seconds over its own", "ms per step",
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


def times(ratio: Ratio) -> str:
    """A speed-up as text with its interval: "1.35x [1.20, 1.50]"."""
    return f"{multiple(ratio)}{_brackets(ratio.estimate, '{:.2f}'.format)}"


def multiple(ratio: Ratio) -> str:
    """A speed-up as text: "1.35x", "over 1.35x" or "under 1.35x"."""
    bound = "over " if ratio.at_least else "under " if ratio.at_most else ""
    return f"{bound}{ratio.estimate.value:.2f}x"


def verdict(pair: Pair) -> str:
    """What follows a ratio that the seeds cannot carry; empty for one that they can."""
    return "" if pair.distinct or pair.p is None else ", not distinguishable"


def _loss(row: Row) -> str:
    if row.final_loss is None:
        return "-"
    sd = "" if row.final_loss_sd is None else f" ± {row.final_loss_sd:.4f}"
    return f"{row.final_loss:.4f}{sd}"


# ---- What the seeds can show -------------------------------------------------------------------


def resolution(runs: Sequence[Run]) -> str:
    """The smallest differences that a race's number of seeds can show, in a sentence or two."""
    groups = by_label(runs)
    found = {r.quantity: r for r in resolutions(groups)}
    if not found:
        return f"Race {runs[0].race} has single runs: it shows no difference."
    seeds, entrants = min(map(len, groups.values())), len(groups)
    sentences = (
        f"With {seeds} seeds each, two entrants that are compared alone must differ by "
        f"{_listed(found, lambda r: r.alone)} to be told apart with a probability of {POWER:.0%} "
        f"(Welch's t-test, p < {SIGNIFICANT:.2g}; deviation between seeds, of steps and seconds "
        f"between those that reached, pooled over the entrants of race {runs[0].race}: "
        f"{_listed(found, lambda r: r.deviation)})."
    )
    if entrants < 3:
        return sentences
    pairs = entrants * (entrants - 1) // 2
    return (
        f"{sentences} Among all {pairs} pairs of its {entrants} entrants, at the strictest level "
        f"of Holm's method, it takes {_listed(found, lambda r: r.among_all)}."
    )


def _listed(found: Mapping[str, Resolution], value: Callable[[Resolution], float]) -> str:
    words = [
        f"{value(r):.1%} in {name}"
        if name != "loss"
        else f"{value(r):.4f} in final loss at one horizon"
        for name, r in found.items()
    ]
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
