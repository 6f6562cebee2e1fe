"""Final losses of races at one horizon, on one track or on several, and their attention logits.

For questions about losses only: no target and no time is compared, and runs may share a machine.
The generated parts named `finals` are made here.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from math import comb
from pathlib import Path

from analysis.stats import (
    POWER,
    SIGNIFICANT,
    differ,
    holm,
    losses,
    mean,
    min_detectable_difference,
    pooled_deviation,
)
from analysis.table import by_label, count, markdown_grid
from errors import UserError
from tracking.schema import DIVERGED, Logit, Run
from tracking.spelling import options_of, recipe_of
from tracking.store import read_logits

HEADINGS = ["row", "track", "entrant", "runs", "final loss", "largest attention logit"]


def comparable(runs: Sequence[Run]) -> list[float]:
    """The final losses; none if a run diverged, because the others are then a selection."""
    return [] if count(runs, DIVERGED) else losses(runs)


def tally(runs: Sequence[Run]) -> str:
    """How many runs there are, and how many of them diverged: "5", "5, 2 diverged"."""
    diverged = count(runs, DIVERGED)
    return f"{len(runs)}, {diverged} diverged" if diverged else f"{len(runs)}"


def markdown(races: Sequence[tuple[Path, Sequence[Run]]]) -> str:
    """A row for each entrant of each race, then the pairs that differ.

    races: the folder of each race's logits, and its runs. The largest logit of a run is over all
    layers and heads, and over the steps measured in every run that has measurements; "-" if no run
    of the entrant has any. Raises UserError if the races have different horizons.
    """
    compared = [run for _, runs in races for run in runs]
    horizons = sorted({run.steps_planned for run in compared})
    if len(horizons) > 1:
        names = ", ".join(dict.fromkeys(run.race for run in compared))
        raise UserError(
            f"races {names}: horizons {horizons} do not compare; name races of one horizon"
        )
    logits = {
        run.run: largest_by_step(read_logits(root, run.run)) for root, runs in races for run in runs
    }
    common = common_steps(logits.values())
    rows: list[list[str]] = []
    groups: dict[str, list[float]] = {}  # by the number of the row
    for _, runs in races:
        for label, group in by_label(runs).items():
            number = f"{len(rows) + 1}"
            groups[number] = comparable(group)
            peaks = [max(logits[r.run][step] for step in common) for r in group if logits[r.run]]
            rows.append(
                [
                    number,
                    group[0].track,
                    label,
                    tally(group),
                    _shown(losses(group), "{:.4f}"),
                    _shown(peaks, "{:.1f}"),
                ]
            )
    about = [
        f"Runs of {horizons[0]} steps. Brackets are 95% confidence intervals of the means.",
        f"Logits are the largest at steps {listed(common)}." if common else "",
        differences(compared),
        told_apart(groups),
        detectable_note(list(groups.values())),
    ]
    return f"{markdown_grid(HEADINGS, rows)}\n\n{' '.join(filter(None, about))}"


def largest_by_step(rows: Iterable[Logit]) -> dict[int, float]:
    """The largest attention logit of each step over all layers and heads."""
    found: dict[int, float] = {}
    for row in rows:
        found[row.step] = max(found.get(row.step, row.max_logit), row.max_logit)
    return found


def common_steps(measured: Iterable[Collection[int]]) -> list[int]:
    """Steps measured in every run that has measurements, in order."""
    steps = [set(each) for each in measured if each]
    return sorted(set.intersection(*steps)) if steps else []


def listed(steps: Sequence[int]) -> str:
    """Steps for a sentence: "1 to 70" if they are consecutive, else each."""
    if len(steps) > 2 and list(steps) == list(range(steps[0], steps[-1] + 1)):
        return f"{steps[0]} to {steps[-1]}"
    return ", ".join(map(str, steps))


def differences(runs: Sequence[Run]) -> str:
    """The options in which the entrants differ, typed or default."""
    settings = [option_values(entrant) for entrant in dict.fromkeys(r.entrant for r in runs)]
    keys = dict.fromkeys(key for found in settings for key in found)
    varied = [key for key in keys if len({found.get(key) for found in settings}) > 1]
    return f"The entrants differ in {', '.join(varied)}." if varied else ""


def option_values(entrant: str) -> dict[str, str]:
    """The options of an entrant with every option written out, and its recipe."""
    return {"recipe": recipe_of(entrant)} | options_of(entrant)


def _shown(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    found = mean(values)
    text = form.format(found.value)
    if found.low is None or found.high is None:
        return text
    return f"{text} [{form.format(found.low)}, {form.format(found.high)}]"


def detectable_note(groups: Sequence[Sequence[float]]) -> str:
    """The smallest difference of two means that would be found, at Holm's strictest level."""
    kept = [values for values in groups if len(values) > 1]
    sd = pooled_deviation(kept)
    if len(kept) < 2 or sd is None:
        return ""
    level = SIGNIFICANT / comb(len(kept), 2)
    least = min_detectable_difference(min(map(len, kept)), sd, level, POWER)
    return f"This test finds a difference of {least:.4f} with a probability of {POWER:.0%}."


def told_apart(groups: Mapping[str, Sequence[float]]) -> str:
    """The pairs of entrants, by their names, whose `comparable` losses differ."""
    tests = {
        pair: p
        for pair in combinations(groups, 2)
        if all(groups[name] for name in pair)
        and (p := differ(groups[pair[0]], groups[pair[1]])) is not None
    }
    adjusted = zip(tests, holm(list(tests.values())), strict=True)
    pairs = [" and ".join(pair) for pair, p in adjusted if p < SIGNIFICANT]
    untested = [name for name, values in groups.items() if not values]
    left_out = f" Not tested, because runs diverged: {', '.join(untested)}." if untested else ""
    return (
        f"Pairs that differ (Welch's t-test, p < {SIGNIFICANT:.2g} after Holm's correction for "
        f"{len(tests)} {'pair' if len(tests) == 1 else 'pairs'}): {'; '.join(pairs) or 'none'}."
        f"{left_out}"
    )
