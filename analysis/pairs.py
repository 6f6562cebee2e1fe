"""Which entrants of a race differ: all pairs are tested, with a correction for their number.

What is compared is the cost of the target, in steps or in seconds. Final losses are not compared,
because entrants stop at different horizons. A run that misses the target is censored: the target
costs at least what the run spent (`stats.speedup`). Two entrants differ if Welch's t-test of the
logarithms, corrected by Holm's method over all pairs of the race, has p < 0.05. Otherwise they are
not distinguishable. The tests in steps are one family, and the tests in seconds another.

In a lockstep race the ratio in seconds is the ratio in steps divided by the price of the
challenger's step (`analysis.price`), with the errors of both. Else it is a ratio of the clocks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from analysis.price import Prices
from analysis.stats import (
    POWER,
    SIGNIFICANT,
    Estimate,
    Ratio,
    costs,
    holm,
    losses,
    min_detectable_difference,
    pooled_deviation,
    speedup,
)
from analysis.table import turn_lengths
from tracking.schema import DIVERGED, REACHED, Run

UNITS = ("steps", "seconds")


@dataclass(frozen=True)
class Pair:
    """The speed-up of one entrant over another, and whether the race can tell them apart."""

    ratio: Ratio | None  # cost of the baseline over the challenger's; None if the runs give none
    p: float | None  # adjusted by Holm's method; None without a test
    family: int  # number of pairs in the adjustment

    @property
    def distinct(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


class Pairs:
    """All pairs of the entrants of one race, in "steps" or in "seconds"."""

    def __init__(self, groups: Mapping[str, Sequence[Run]], unit: str, prices: Prices) -> None:
        """groups: the runs of each entrant by its label. prices: of their race."""
        ended = {label for label in groups if any(r.status != DIVERGED for r in groups[label])}
        self._ratios = {
            (a, b): ratio(groups[a], groups[b], unit, prices.of(a, b)) if {a, b} <= ended else None
            for a in groups
            for b in groups
            if a != b
        }
        pairs = list(combinations(groups, 2))
        self.family = len(pairs)
        tests = [found.p if (found := self._ratios[pair]) else None for pair in pairs]
        # A pair without a test stays in the family, as if its p were 1.
        adjusted = zip(pairs, tests, holm([1.0 if p is None else p for p in tests]), strict=True)
        self._adjusted = {pair: None if p is None else holms for pair, p, holms in adjusted}

    def of(self, baseline: str, challenger: str) -> Pair:
        """One pair, by its labels. The reverse pair has the inverse ratio and the same p."""
        pair = (baseline, challenger)
        p = self._adjusted[pair if pair in self._adjusted else pair[::-1]]
        return Pair(self._ratios[pair], p, self.family)


def ratio(
    baseline: Sequence[Run], challenger: Sequence[Run], unit: str, price: Estimate | None
) -> Ratio | None:
    """The speed-up in one unit. price: of the challenger's step; None if the two ran alone."""
    if unit == "seconds" and price is not None:
        return speedup(costs(baseline, "steps"), costs(challenger, "steps"), price)
    return speedup(costs(baseline, unit), costs(challenger, unit))


@dataclass(frozen=True)
class Detectable:
    """The smallest difference in one quantity that a race's number of seeds can show.

    Differences are relative for steps and seconds, and in nats per token for losses.
    """

    quantity: str  # steps, seconds or loss
    deviation: float  # between seeds, pooled over entrants: of the logarithm, or of the loss
    single_pair: float  # for two entrants, compared without any other
    among_all: float  # for any pair of the race, at the strictest level of Holm's method


def detectable_differences(groups: Mapping[str, Sequence[Run]]) -> list[Detectable]:
    """The differences that the race finds with probability `stats.POWER`; none from single runs.

    The number of seeds is the smallest of any entrant. Deviations of steps and seconds are between
    the runs that reached the target, and deviations of losses are between runs of one horizon. In a
    lockstep race the clocks of two runs are not compared, so there is nothing to say of seconds.
    """
    seeds, tests = min(map(len, groups.values())), math.comb(len(groups), 2)
    if seeds < 2:
        return []
    alone = not turn_lengths(run for runs in groups.values() for run in runs)
    found = []
    for quantity in ("steps", *(["seconds"] if alone else []), "loss"):
        sd = pooled_deviation([values_of(runs, quantity) for runs in groups.values()])
        if sd is None:
            continue
        levels = (SIGNIFICANT, SIGNIFICANT / max(tests, 1))
        least = [min_detectable_difference(seeds, sd, alpha, POWER) for alpha in levels]
        single, among_all = least if quantity == "loss" else map(math.expm1, least)
        found.append(Detectable(quantity, sd, single, among_all))
    return found


def values_of(runs: Sequence[Run], quantity: str) -> list[float]:
    """Final losses ("loss") of the runs, or the logarithms of what those that reached spent."""
    if quantity == "loss":
        return losses(runs)
    reached = [run for run in runs if run.status == REACHED]
    return [math.log(spent) for spent in costs(reached, quantity).spent if spent > 0]
