"""Who differs from whom in a race: every pair of entrants, corrected for how many there are.

The quantity is the cost of the target, in steps or in seconds. Final losses are not compared:
entrants stop at different horizons. A run that misses the target is censored: the target costs at
least what it spent (`stats.speedup`). Two entrants differ where Welch's t-test of the logarithms,
corrected by Holm's method over all pairs of the race, has p < 0.05; otherwise they are not
distinguishable. Steps and seconds are a family of tests each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from analysis.stats import (
    POWER,
    SIGNIFICANT,
    Ratio,
    costs,
    detectable,
    holm,
    pooled_deviation,
    speedup,
)
from tracking.schema import DIVERGED, REACHED, Run

UNITS = ("steps", "seconds")


@dataclass(frozen=True)
class Pair:
    """The speed-up of one entrant over another, and whether the race can tell them apart."""

    ratio: Ratio | None  # cost of the baseline over the challenger's; None: no runs decide it
    p: float | None  # adjusted by Holm's method; None where there is no test
    family: int  # number of pairs that it was adjusted for

    @property
    def distinct(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


class Pairs:
    """All pairs of the entrants of one race in one unit of `stats.costs`."""

    def __init__(self, groups: Mapping[str, Sequence[Run]], unit: str) -> None:
        """groups: the runs of each entrant by its label."""
        spent = {label: costs(runs, unit) for label, runs in groups.items()}
        ended = {label for label in groups if any(r.status != DIVERGED for r in groups[label])}
        self._ratios = {
            (a, b): speedup(spent[a], spent[b]) if {a, b} <= ended else None
            for a in spent
            for b in spent
            if a != b
        }
        pairs = list(combinations(spent, 2))
        self.family = len(pairs)
        tests = [ratio.p if (ratio := self._ratios[pair]) else None for pair in pairs]
        # What the runs do not decide might be anything: it stays in the family.
        adjusted = zip(pairs, tests, holm([1.0 if p is None else p for p in tests]), strict=True)
        self._adjusted = {pair: None if p is None else holms for pair, p, holms in adjusted}

    def of(self, baseline: str, challenger: str) -> Pair:
        """One pair, by its labels; the other way round it has the inverse ratio and the same p."""
        pair = (baseline, challenger)
        p = self._adjusted[pair if pair in self._adjusted else pair[::-1]]
        return Pair(self._ratios[pair], p, self.family)


@dataclass(frozen=True)
class Resolution:
    """The smallest difference in one quantity that a race's number of seeds can show."""

    quantity: str  # steps, seconds or loss
    deviation: float  # between seeds, within entrants: of the logarithm; of the loss itself
    alone: float  # two entrants that are compared alone: relative; of the loss, absolute
    among_all: float  # any pair, at the strictest level of Holm's method


def resolutions(groups: Mapping[str, Sequence[Run]]) -> list[Resolution]:
    """What the race can show with the fewest seeds of its entrants; nothing from single runs.

    Steps and seconds are those of the runs that reached the target, losses those of one horizon.
    Pairs that differ by so much are told apart with a probability of `stats.POWER`.
    """
    seeds, tests = min(map(len, groups.values())), math.comb(len(groups), 2)
    if seeds < 2:
        return []
    found = []
    for quantity in (*UNITS, "loss"):
        sd = pooled_deviation([_values(runs, quantity) for runs in groups.values()])
        if sd is None:
            continue
        levels = (SIGNIFICANT, SIGNIFICANT / max(tests, 1))
        least = [detectable(seeds, sd, alpha, POWER) for alpha in levels]
        alone, among_all = least if quantity == "loss" else map(math.expm1, least)
        found.append(Resolution(quantity, sd, alone, among_all))
    return found


def _values(runs: Sequence[Run], quantity: str) -> list[float]:
    if quantity == "loss":
        return [r.final_loss for r in runs if r.status != DIVERGED and r.final_loss is not None]
    reached = [run for run in runs if run.status == REACHED]
    return [math.log(spent) for spent in costs(reached, quantity).spent if spent > 0]
