"""How much a search varies: optimizers that were searched again, in nats and in steps.

    markdown(trials)      # docs/comparison.md shows it

Of the trials with one number only the newest counts, so an earlier outcome of a search is still
among the rows. Two outcomes are compared if both are confirmed with as many fresh seeds, and under
like conditions. Differences are paired by seed. What a difference is worth in steps follows from
the horizons at which the better setting ran.
"""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis import stats
from analysis.moved import CONDITIONS
from analysis.stats import Estimate
from tracking.schema import SEARCHED, Trial
from tracking.spelling import display_name, options_of, recipe_of, spell


class Outcome(NamedTuple):
    """A confirmed setting of a search."""

    setting: str  # the entrant without its steps
    losses: Mapping[int, float]  # by seed, nats per token

    @property
    def mean(self) -> float:
        return statistics.fmean(self.losses.values())


class Repeat(NamedTuple):
    """Two searches of one optimizer."""

    recipe: str
    counts: Outcome
    other: Outcome
    fall: float | None  # of the loss, in nats, if the horizon is e times as long

    @property
    def difference(self) -> Estimate:
        """How much higher the other one ended, with its 95% interval over seeds."""
        return stats.mean([self.other.losses[s] - x for s, x in self.counts.losses.items()])


def repeats(trials: Sequence[Trial]) -> list[Repeat]:
    """The optimizers that were searched again under the conditions of the newest confirmed trial.

    trials: of one track, in the order in which they were written.
    """
    newest = {(row.recipe, row.trial): row.entrant for row in trials if row.stage in SEARCHED}
    losses: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
    for row in _alike(trials, CONDITIONS):
        if row.stage == "confirm" and row.final_loss is not None:
            losses[row.recipe, row.trial, row.entrant][row.seed] = row.final_loss
    most = max(map(len, losses.values()), default=0)
    best: dict[tuple[str, bool], Outcome] = {}
    for (recipe, trial, entrant), by_seed in losses.items():
        if len(by_seed) == most:
            key, outcome = (
                (recipe, newest.get((recipe, trial)) == entrant),
                Outcome(_setting(entrant), by_seed),
            )
            best[key] = min(best.get(key, outcome), outcome, key=lambda each: each.mean)
    return [
        Repeat(recipe, best[recipe, True], other, _fall(trials, best[recipe, True]))
        for (recipe, counts), other in sorted(best.items(), key=lambda item: item[0])
        if not counts
        and (recipe, True) in best
        and best[recipe, True].losses.keys() == other.losses.keys()
    ]


def markdown(trials: Sequence[Trial]) -> str:
    """What the searches of `repeats` show, a line for each optimizer."""
    lines = []
    for each in repeats(trials):
        gap = each.difference
        interval = "" if gap.low is None else f" [{gap.low:.4f}, {gap.high:.4f}]"
        line = (
            f"{display_name(each.recipe)} was searched again, and that search ended at "
            f"{each.other.mean:.4f} in place of {each.counts.mean:.4f}: {abs(gap.value):.4f} nats "
            f"{'higher' if gap.value >= 0 else 'lower'}{interval}."
        )
        if each.fall is not None and each.fall > 0:
            more = math.expm1(abs(gap.value) / each.fall)
            line += f" Around the tuned horizon so much is worth {more:.0%} of the steps."
        lines.append(f"- {line}")
    return "\n".join(lines) or "No optimizer was searched again."


def _alike(trials: Sequence[Trial], names: Sequence[str]) -> list[Trial]:
    """The trials with the conditions of the newest confirmed one."""
    confirmed = [row for row in trials if row.stage == "confirm"][-1:]
    return [
        row
        for row in trials
        if all(getattr(row, name) == getattr(last, name) for last in confirmed for name in names)
    ]


def _setting(entrant: str) -> str:
    options = options_of(entrant)
    return spell(recipe_of(entrant), {n: v for n, v in options.items() if n != "steps"})


def _fall(trials: Sequence[Trial], outcome: Outcome) -> float | None:
    """Least squares of the losses of a setting on the logarithm of its horizon, within seeds."""
    by_seed: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for row in _alike(trials, [name for name in CONDITIONS if name != "steps"]):
        of_it = row.stage in ("confirm", "horizon") and _setting(row.entrant) == outcome.setting
        if of_it and row.final_loss is not None:
            by_seed[row.seed].append((math.log(row.steps), row.final_loss))
    above = below = 0.0
    for points in by_seed.values():
        x, y = (statistics.fmean(values) for values in zip(*points, strict=True))
        above -= sum((a - x) * (b - y) for a, b in points)
        below += sum((a - x) ** 2 for a, _ in points)
    return above / below if below else None
