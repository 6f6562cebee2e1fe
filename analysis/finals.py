"""Final losses of races at one horizon, on one track or several, and the largest attention logits.

For what losses alone decide: no target is in it and no second, so the runs may share the machine.
A part of the README that is marked `finals` is made here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path

from analysis.stats import (
    POWER,
    SIGNIFICANT,
    Estimate,
    detectable,
    differ,
    holm,
    mean,
    pooled_deviation,
)
from analysis.table import by_label, count, markdown_grid
from errors import UserError
from tracking.schema import DIVERGED, Logit, Run
from tracking.spelling import split
from tracking.store import read_logits

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

    The largest logit is that of a run, all layers and heads, at the steps at which all runs were
    measured that were measured at all; "-" where none was.
    """
    rows: list[list[str]] = []
    groups: dict[str, list[float]] = {}  # by the number of the row
    logits = {
        run.run: largest_by_step(read_logits(root, run.run)) for run in runs if run.race in races
    }
    common = common_steps(logits.values())
    for race in races:
        mine = [run for run in runs if run.race == race]
        if not mine:
            raise UserError(f"no race {race!r} in runs.csv; see its column race")
        for label, group in by_label(mine).items():
            number = f"{len(rows) + 1}"
            groups[number] = comparable(group)
            peaks = [max(logits[r.run][step] for step in common) for r in group if logits[r.run]]
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
    compared = [run for run in runs if run.race in races]
    about = [
        f"Runs of {horizons[0]} steps; brackets: 95% intervals of the means.",
        f"Logits are those of steps {listed(common)}." if common else "",
        differences(compared),
        told_apart(groups),
        resolution(list(groups.values())),
    ]
    return f"{markdown_grid(HEADINGS, rows)}\n\n{' '.join(filter(None, about))}"


def largest_by_step(rows: Iterable[Logit]) -> dict[int, float]:
    """The largest attention logit of each step over all layers and heads."""
    found: dict[int, float] = {}
    for row in rows:
        found[row.step] = max(found.get(row.step, row.max_logit), row.max_logit)
    return found


def common_steps(measured: Iterable[Collection[int]]) -> list[int]:
    """The steps that all have which have any, in order; none where that leaves nothing."""
    steps = [set(each) for each in measured if each]
    return sorted(set.intersection(*steps)) if steps else []


def listed(steps: Sequence[int]) -> str:
    """Steps as a sentence has them: "1 to 70" if none is left out, else each."""
    if len(steps) > 2 and list(steps) == list(range(steps[0], steps[-1] + 1)):
        return f"{steps[0]} to {steps[-1]}"
    return ", ".join(map(str, steps))


def differences(runs: Sequence[Run]) -> str:
    """The options in which the entrants differ, whatever was typed and whatever was a default."""
    settings = [option_values(entrant) for entrant in dict.fromkeys(r.entrant for r in runs)]
    keys = dict.fromkeys(key for found in settings for key in found)
    varied = [key for key in keys if len({found.get(key) for found in settings}) > 1]
    return f"The entrants differ in {', '.join(varied)}." if varied else ""


def option_values(entrant: str) -> dict[str, str]:
    """All options of an entrant with every option written out, its recipe among them."""
    name, options = split(entrant)
    assigned = (assignment.partition("=") for assignment in options.split(",") if assignment)
    return {"recipe": name} | {key: value for key, _, value in assigned}


def _shown(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    found: Estimate = mean(values)
    text = form.format(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{form.format(found.low)}, {form.format(found.high)}]"


def resolution(groups: Sequence[Sequence[float]]) -> str:
    """The smallest difference of means that would be told apart, at Holm's strictest level."""
    kept = [values for values in groups if len(values) > 1]
    sd = pooled_deviation(kept)
    if len(kept) < 2 or sd is None:
        return ""
    level = SIGNIFICANT / comb(len(kept), 2)
    least = detectable(min(map(len, kept)), sd, level, POWER)
    return f"With a probability of {POWER:.0%} that shows a difference of {least:.4f}."


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
