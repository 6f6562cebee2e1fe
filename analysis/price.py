"""The price of a step: what a step of one entrant costs in steps of another, from turns.

In a lockstep race the entrants of a seed take turns of a few steps, so two turns of one round are
neighbours in time: whatever the machine does meets both alike. The price is estimated from the
ratios of these pairs, over all rounds and seeds. It is robust: something else that uses the machine
half of the time moves single ratios by a factor of ten, but hardly moves their median.

A median alone is blind to work that returns every so many steps, such as a new preconditioner. So
pairs with equally much of this work are a stratum, with its own median, and the price is a ratio of
mean steps that are made from the strata (`_Model`). docs/rules.md has the formula; `bench.coverage`
checks the intervals by simulation.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.stats import norm, t

from analysis.stats import CONFIDENCE, Estimate
from analysis.table import by_label
from tracking.schema import Run, Turn
from tracking.spelling import options_of
from tracking.store import read_turns

BLOCK = 2  # rounds that the bootstrap keeps together: one in each order of the entrants
DRAWS = 1000  # of the bootstrap
WORTH = 3  # pairs whose mean misfit a further kind of turn must save
DECIDES = 0.01  # weight of equations that only decide what the others leave open
# Options with such a name say after how many steps some work returns.
PERIODIC = re.compile(r"(frequency|freq|every|interval|gap|period|compute_steps)$")

# ---- The prices of a race ----------------------------------------------------------------------


@dataclass(frozen=True)
class Duel:
    """The turns of two runs that took turns with each other."""

    turn_steps: int
    baseline: Sequence[Turn]
    challenger: Sequence[Turn]


class Prices:
    """The price of a step for each pair of entrants of one race; none where they ran alone.

    A price is computed when it is first asked for.
    """

    def __init__(self, runs: Sequence[Run], turns: Mapping[str, Sequence[Turn]]) -> None:
        """turns: the turns of each run that took turns, by the id of the run."""
        self._groups = by_label(runs)
        self._turns = turns
        self._known: dict[tuple[str, str], Estimate | None] = {}

    def of(self, baseline: str, challenger: str) -> Estimate | None:
        """Seconds of a challenger's step over seconds of a baseline's step, by their labels.

        n counts the pairs of turns. None if no turns of the two are neighbours.
        """
        if (challenger, baseline) in self._known:
            known = self._known[challenger, baseline]
            return None if known is None else known.inverse()
        if (baseline, challenger) not in self._known:
            self._known[baseline, challenger] = self._estimate(baseline, challenger)
        return self._known[baseline, challenger]

    def _estimate(self, baseline: str, challenger: str) -> Estimate | None:
        a, b = self._groups.get(baseline, []), self._groups.get(challenger, [])
        duels = [
            Duel(run.turn_steps, self._turns[run.run], self._turns[other.run])
            for run in a
            for other in b
            if run.heat and (run.race, run.seed, run.heat) == (other.race, other.seed, other.heat)
        ]
        return price(duels, periods(a[0].entrant), periods(b[0].entrant)) if duels else None


def read_prices(root: Path, runs: Sequence[Run]) -> Prices:
    """The prices of one race, from the turns of its runs in a results folder."""
    return Prices(runs, {run.run: read_turns(root, run.run) for run in runs if run.heat})


def periods(entrant: str) -> list[int]:
    """After how many steps work of an optimizer returns, by its spelled-out options.

    Work that returns in every step is left out.
    """
    options = options_of(entrant).items()
    found = {int(value) for key, value in options if PERIODIC.search(key) and value.isdigit()}
    return sorted(found - {0, 1})


# ---- One price ---------------------------------------------------------------------------------

Median = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of values, given the block of each


def price(
    duels: Sequence[Duel], baseline: Sequence[int] = (), challenger: Sequence[int] = ()
) -> Estimate | None:
    """Seconds of a challenger's step over seconds of a baseline's step; None without a pair.

    A pair is a turn of each in one round, of equally many steps. baseline, challenger: the
    `periods` of each.

    The 95% interval is of a Bayesian bootstrap: each block of BLOCK rounds of a duel gets a random
    weight. Its percentiles are widened as Student's t is wider than the normal distribution
    (Hesterberg's expanded percentiles). There is none for a single block.
    """
    rounds = _Rounds.of(duels)
    n, blocks = int(rounds.paired.sum()), len(np.unique(rounds.block[rounds.paired]))
    if not n:
        return None
    model = min(_models(rounds, baseline, challenger), key=_Model.misfit)
    value = float(model.price(lambda values, _: np.median(values)))
    if blocks < 2:
        return Estimate(value, None, None, n)
    shape = (DRAWS, int(rounds.block.max()) + 1)
    weights = np.random.default_rng(0).standard_exponential(shape, dtype=np.float32)
    draws = model.price(lambda values, block: _weighted_medians(values, weights[:, block]))
    wide = float(t.isf((1 - CONFIDENCE) / 2, blocks - 1)) * (blocks / (blocks - 1)) ** 0.5
    low, high = np.quantile(draws, [norm.sf(wide), norm.cdf(wide)])
    return Estimate(value, min(float(low), value), max(float(high), value), n)


@dataclass(frozen=True)
class _Rounds:
    """The rounds of all duels in order, and the turns in them; no steps after a run's end."""

    duel: np.ndarray
    number: np.ndarray
    turn_steps: np.ndarray
    block: np.ndarray  # of the bootstrap
    steps: np.ndarray  # of each turn: a row for the baseline and one for the challenger
    log_seconds: np.ndarray  # of a step, likewise; 0 in rounds without a pair
    paired: np.ndarray  # whether both have a turn, of equally many steps

    @classmethod
    def of(cls, duels: Sequence[Duel]) -> "_Rounds":
        rows = []
        for index, duel in enumerate(duels):
            runs = [{turn.round: turn for turn in x} for x in (duel.baseline, duel.challenger)]
            for number in sorted(runs[0].keys() | runs[1].keys()):
                a, b = (run.get(number, Turn(number, 0, 0.0)) for run in runs)
                times = (a.train_seconds, b.train_seconds)
                rows.append((index, number, duel.turn_steps, a.steps, b.steps, *times))
        table = np.array(rows, float).reshape(-1, 7).T
        index, number, turn_steps = table[:3].astype(int)
        _, block = np.unique(np.stack([index, number // BLOCK]), axis=1, return_inverse=True)
        steps, seconds = table[3:5], table[5:]
        paired = (steps[0] == steps[1]) & (seconds > 0).all(axis=0)
        log_seconds = np.log(np.where(paired, seconds, 1) / np.where(paired, steps, 1))
        return cls(index, number, turn_steps, block.ravel(), steps, log_seconds, paired)


@dataclass(frozen=True)
class _Begin:
    """How work that returns every `period` steps may begin; steps count from 1."""

    with_first: bool  # it is in step 1, then in period + 1, ...; else in period, 2 period, ...
    all_first: bool  # and in each of the first `period` steps, as in Shampoo

    def times(self, steps: np.ndarray, period: int) -> np.ndarray:
        """How many of the first steps have the work."""
        shift = period - 1 if self.with_first else 0
        regular = (steps + shift) // period
        if not self.all_first:
            return regular
        return np.where(steps <= period, steps, period + regular - (period + shift) // period)


def _models(
    rounds: _Rounds, baseline: Sequence[int], challenger: Sequence[int]
) -> Iterator["_Model"]:
    """A model for each way in which the returning work may begin, as this is not declared."""
    ways = [_Begin(a, b) for b in (False, True) for a in (False, True)]
    for begins in product(ways, repeat=len(baseline) + len(challenger)):
        first, second = begins[: len(baseline)], begins[len(baseline) :]
        kinds = _kinds(rounds, baseline, first), _kinds(rounds, challenger, second)
        yield _Model.of(rounds, *kinds, changes=bool(baseline and challenger))


def _kinds(rounds: _Rounds, periods: Sequence[int], begins: Sequence[_Begin]) -> np.ndarray:
    """The kind of an entrant's turn in each round, from 0, by how much work returns in it."""
    first = rounds.number * rounds.turn_steps
    last = first + rounds.turn_steps
    works = list(zip(periods, begins, strict=True))
    counts = [begin.times(last, period) - begin.times(first, period) for period, begin in works]
    keys = np.stack([*counts, rounds.turn_steps if works else np.zeros_like(first)])
    return np.unique(keys, axis=1, return_inverse=True)[1].ravel()


@dataclass(frozen=True)
class _Stratum:
    """What was measured of one combination of the unknowns of a `_Model`."""

    combination: np.ndarray
    values: np.ndarray
    block: np.ndarray  # of each value


def _strata(combinations: np.ndarray, values: np.ndarray, block: np.ndarray) -> list[_Stratum]:
    """Values by the combination, a row each, that they measure; its negative is the same one."""
    rows = np.arange(len(combinations))
    sign = np.where(combinations[rows, (combinations != 0).argmax(axis=1)] < 0, -1, 1)
    known, place = np.unique(combinations * sign[:, None], axis=0, return_inverse=True)
    members = [place.ravel() == k for k in range(len(known))]
    return [
        _Stratum(row, (sign * values)[m], block[m]) for row, m in zip(known, members, strict=True)
    ]


@dataclass(frozen=True)
class _Model:
    """The seconds of a step depend on the kind of the turn, and on a factor that all turns share.

    The unknowns are the logarithms of these costs: first of the baseline's kinds, then of the
    challenger's. The median of each stratum of pairs is an equation. If work returns in both
    entrants, these may leave open which of the two steps became longer. Then the changes from one
    round to the next decide, as further equations.
    """

    strata: Sequence[_Stratum]
    solve: np.ndarray  # from the medians of the strata to the unknowns: weighted least squares
    shares: np.ndarray  # of each kind in the steps of its entrant
    kinds: int  # of the baseline

    @classmethod
    def of(
        cls, rounds: _Rounds, baseline: np.ndarray, challenger: np.ndarray, changes: bool
    ) -> "_Model":
        """baseline, challenger: the kind of the turn of each in each round.

        changes: whether changes from one round to the next are equations too.
        """
        kinds = int(baseline.max()) + 1
        unknowns = np.eye(kinds + int(challenger.max()) + 1)
        a, b = unknowns[baseline], unknowns[kinds + challenger]  # by round
        pairs, logs = rounds.paired, rounds.log_seconds
        strata = _strata((b - a)[pairs], (logs[1] - logs[0])[pairs], rounds.block[pairs])
        weights = [len(stratum.values) ** 0.5 for stratum in strata]
        if changes:
            follows = pairs[:-1] & pairs[1:] & (np.diff(rounds.duel) == 0)
            steps, change = np.diff((a + b) / 2, axis=0), np.diff(logs.mean(axis=0))
            strata += _strata(steps[follows], change[follows], rounds.block[1:][follows])
            weights += [DECIDES * len(stratum.values) ** 0.5 for stratum in strata[len(weights) :]]
        scale = np.array(weights)
        equations = np.array([stratum.combination for stratum in strata])
        known = (a + b)[pairs].any(axis=0)  # kinds of turns that are in a pair
        shares = (rounds.steps[0] @ a + rounds.steps[1] @ b) * known
        shares[:kinds] /= shares[:kinds].sum()
        shares[kinds:] /= shares[kinds:].sum()
        solve = np.linalg.pinv(equations * scale[:, None]) * scale
        return cls(strata, solve, shares, kinds)

    def logs(self, median: Median) -> np.ndarray:
        """The unknowns."""
        return self.solve @ np.array([median(each.values, each.block) for each in self.strata])

    def price(self, median: Median) -> np.ndarray:
        """The challenger's mean step over the baseline's."""
        costs, k = np.exp(self.logs(median)), self.kinds
        return (self.shares[k:] @ costs[k:]) / (self.shares[:k] @ costs[:k])

    def misfit(self) -> float:
        """How far the values are from the model, with a charge for each kind of turn.

        Work cannot make a step shorter: where a model says so, it fits badly. The roots of the
        distances are added, so that a disturbed turn counts little.
        """
        found, k = self.logs(lambda values, _: np.median(values)), self.kinds
        found = np.concatenate(
            [
                logs.clip(logs[np.argmax(shares > 0)])  # the kind with the least work in a pair
                for logs, shares in ((found[:k], self.shares[:k]), (found[k:], self.shares[k:]))
            ]
        )
        distances = [np.abs(each.values - each.combination @ found) for each in self.strata]
        total = sum(float(np.sqrt(each).sum()) for each in distances)
        return total * (1 + WORTH * len(found) / sum(map(len, distances)))


def _weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median of values for each row of weights, interpolated as the plain median is."""
    if len(values) == 1:
        return np.repeat(values, len(weights))
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[:, order]
    middle = np.cumsum(weights, axis=1)
    half = middle[:, -1] / 2
    middle -= weights / 2
    after = (middle < half[:, None]).sum(axis=1).clip(1, len(values) - 1)
    rows = np.arange(len(weights))
    low, high = middle[rows, after - 1], middle[rows, after]
    share = ((half - low) / (high - low)).clip(0, 1)
    return values[after - 1] + share * (values[after] - values[after - 1])
