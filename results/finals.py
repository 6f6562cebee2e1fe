"""Final losses of races at one horizon, on one track or several, and the largest attention logits.

For what losses alone decide: no target is in it and no second, so the runs may share the machine.
A part of the README that is marked `finals` is made here.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from errors import UserError
from results.schema import DIVERGED, Run
from results.stats import SIGNIFICANT, Estimate, differ, holm, mean
from results.store import read_logits
from results.table import by_label, count, markdown_grid

HEADINGS = ["row", "track", "entrant", "runs", "final loss", "largest attention logit"]


def losses(runs: Sequence[Run]) -> list[float]:
    """Of the runs that did not diverge."""
    ended = (run for run in runs if run.status != DIVERGED)
    return [run.final_loss for run in ended if run.final_loss is not None]


def comparable(runs: Sequence[Run]) -> list[float]:
    """The losses, or none where a run diverged: those that are left are not what it does."""
    return [] if count(runs, DIVERGED) else losses(runs)


def tally(runs: Sequence[Run]) -> str:
    """How many runs there are, and how many of them diverged: "5", "5, 2 diverged"."""
    diverged = count(runs, DIVERGED)
    return f"{len(runs)}, {diverged} diverged" if diverged else f"{len(runs)}"


def markdown(root: Path, runs: Sequence[Run], races: Sequence[str]) -> str:
    """A row for each entrant of each race, then who is told apart. Raises UserError.

    The largest logit is that of a run, all steps, layers and heads; "-" where it was not measured.
    """
    rows: list[list[str]] = []
    groups: dict[str, list[float]] = {}  # by the number of the row
    for race in races:
        mine = [run for run in runs if run.race == race]
        if not mine:
            raise UserError(f"no race {race!r} in runs.csv; see its column race")
        for label, group in by_label(mine).items():
            number = f"{len(rows) + 1}"
            groups[number] = comparable(group)
            measured = [[row.max_logit for row in read_logits(root, r.run)] for r in group]
            peaks = [max(logits) for logits in measured if logits]
            rows.append(
                [
                    number,
                    mine[0].track,
                    label,
                    tally(group),
                    _shown(losses(group), "{:.4f}"),
                    _shown(peaks, "{:.1f}"),
                ]
            )
    horizons = sorted({run.steps_planned for run in runs if run.race in races})
    if len(horizons) > 1:
        raise UserError(f"races {', '.join(races)}: horizons {horizons} do not compare; race again")
    return (
        f"{markdown_grid(HEADINGS, rows)}\n\nRuns of {horizons[0]} steps; brackets: 95% intervals "
        f"of the means. {told_apart(groups)}"
    )


def _shown(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    found: Estimate = mean(values)
    text = form.format(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{form.format(found.low)}, {form.format(found.high)}]"


def told_apart(groups: Mapping[str, Sequence[float]]) -> str:
    """Which pairs of entrants, by their names, their `comparable` losses tell apart."""
    tests = {
        pair: p
        for pair in combinations(groups, 2)
        if all(groups[name] for name in pair)
        and (p := differ(groups[pair[0]], groups[pair[1]])) is not None
    }
    adjusted = zip(tests, holm(list(tests.values())), strict=True)
    pairs = [" and ".join(pair) for pair, p in adjusted if p < SIGNIFICANT]
    untested = [name for name, values in groups.items() if not values]
    left_out = f" Not tested, as runs diverged: {', '.join(untested)}." if untested else ""
    return (
        f"Told apart by Welch's t-test, p < {SIGNIFICANT:.2g} by Holm's method over "
        f"{len(tests)} {'pair' if len(tests) == 1 else 'pairs'}: {'; '.join(pairs) or 'none'}."
        f"{left_out}"
    )
