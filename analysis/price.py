"""The price of a step: what a step of one entrant costs in steps of another, from turns.

In a lockstep race the entrants of a seed take turns of a few steps, so two turns of one round are
neighbours in time: whatever the machine does meets both alike. The price is estimated from the
ratios of these pairs, over all rounds and seeds. It is robust: something else that uses the machine
half of the time moves single ratios by a factor of ten, but hardly moves their median.

A median alone is blind to work that returns every so many steps, such as a new preconditioner. So
pairs with equally much of this work are a stratum, with its own median, and the price is a ratio of
mean steps that are made from the strata. docs/rules.md has the formula; `bench.coverage` checks the
intervals by simulation.

`price` lays out the turns by round (`_Rounds`), fits a `_Model` for each way in which the returning
work may begin (`_Work`), and keeps the best. `_interval` bootstraps the kept model.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from scipy.special import ndtr, stdtrit

from analysis.stats import CONFIDENCE, Estimate
from analysis.table import by_label
from tracking.schema import Run, Turn
from tracking.spelling import options_of
from tracking.store import read_turns

BLOCK_ROUNDS = 2  # rounds that the bootstrap keeps together: one in each order of the entrants
DRAWS = 1000  # sets of random weights of the bootstrap
KIND_CHARGE = 3  # a further kind of turn must save the misfit of so many pairs
CHANGE_WEIGHT = 0.01  # of an equation of changes, where an equation of pairs has 1
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


NO_TURNS = Prices((), {})  # of a race whose runs took no turns


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


# ---- One price and its interval ----------------------------------------------------------------


def price(
    duels: Sequence[Duel], baseline: Sequence[int] = (), challenger: Sequence[int] = ()
) -> Estimate | None:
    """Seconds of a challenger's step over seconds of a baseline's step; None without a pair.

    A pair is a turn of each in one round, of equally many steps; n counts them. baseline,
    challenger: the `periods` of each.
    """
    rounds = _Rounds.of(duels)
    n = int(rounds.paired.sum())
    if not n:
        return None
    model = min(_models(rounds, baseline, challenger), key=_Model.misfit)
    value = float(model.price(_median))
    interval = _interval(model, rounds)
    if interval is None:
        return Estimate(value, None, None, n)
    low, high = interval
    return Estimate(value, min(low, value), max(high, value), n)


def _interval(model: "_Model", rounds: "_Rounds") -> tuple[float, float] | None:
    """The 95% interval of a model's price, by a Bayesian bootstrap.

    None where each stratum of pairs lies in a single block: then random weights move no median.

    In each draw, each block of BLOCK_ROUNDS rounds of a duel has a random weight. The percentiles
    of the draws are widened as Student's t is wider than the normal distribution (Hesterberg's
    expanded percentiles), because percentiles are too narrow where there are few blocks. The model
    is not chosen anew in each draw: the interval takes the choice for granted.
    """
    if all(len(np.unique(each.block)) < 2 for each in model.of_pairs):
        return None
    blocks = len(np.unique(rounds.block[rounds.paired]))
    shape = (DRAWS, int(rounds.block.max()) + 1)
    # Always the same seed, so that the same turns give the same interval.
    weights = np.random.default_rng(0).standard_exponential(shape, dtype=np.float32)
    draws = model.price(lambda each: _weighted_medians(each.values, weights[:, each.block]))
    z = -float(stdtrit(blocks - 1, (1 - CONFIDENCE) / 2)) * (blocks / (blocks - 1)) ** 0.5
    low, high = np.quantile(draws, [ndtr(-z), ndtr(z)])
    return float(low), float(high)


# ---- The turns, by round -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Rounds:
    """The rounds of all duels, one after the other, as arrays.

    Shapes: (rounds,), or (2, rounds) with a row for the baseline and a row for the challenger.
    """

    duel: np.ndarray  # (rounds,), from 0
    number: np.ndarray  # (rounds,), within the duel, from 0
    turn_steps: np.ndarray  # (rounds,), steps of a whole turn of the duel
    block: np.ndarray  # (rounds,), of the bootstrap, from 0
    steps: np.ndarray  # (2, rounds), of the turn; 0 after the end of a run
    log_seconds: np.ndarray  # (2, rounds), logarithm of the seconds of a step; 0 without a pair
    paired: np.ndarray  # (rounds,), whether both have a turn, of equally many steps

    @classmethod
    def of(cls, duels: Sequence[Duel]) -> "_Rounds":
        keys, turn_rows = [], []  # a row for each round
        for index, duel in enumerate(duels):
            runs = [{turn.round: turn for turn in x} for x in (duel.baseline, duel.challenger)]
            for number in sorted(runs[0].keys() | runs[1].keys()):
                both = [run.get(number, Turn(number, 0, 0.0)) for run in runs]
                keys.append((index, number, duel.turn_steps))
                turn_rows.append([(turn.steps, turn.train_seconds) for turn in both])
        of_duel, numbers, turn_steps = np.array(keys, int).reshape(-1, 3).T
        steps, seconds = np.array(turn_rows, float).reshape(-1, 2, 2).T  # (2, rounds) each
        _, block = np.unique([of_duel, numbers // BLOCK_ROUNDS], axis=1, return_inverse=True)
        # A missing turn has no steps. A time that is not positive, or no number, has no logarithm.
        paired = (steps[0] == steps[1]) & (steps[0] > 0) & (seconds > 0).all(axis=0)
        log_seconds = np.log(np.where(paired, seconds, 1) / np.where(paired, steps, 1))
        return cls(of_duel, numbers, turn_steps, block.ravel(), steps, log_seconds, paired)


# ---- Work that returns, and the kinds of turns -------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """Work that returns every `period` steps, and how it begins; steps count from 1."""

    period: int
    with_first: bool  # it is in step 1, then in period + 1, ...; else in period, 2 period, ...
    all_first: bool  # and in each of the first `period` steps, as in Shampoo

    def count(self, steps: np.ndarray) -> np.ndarray:
        """How many of the first `steps` steps have the work."""
        shift = self.period - 1 if self.with_first else 0
        regular = (steps + shift) // self.period
        if not self.all_first:
            return regular
        regular_of_first = (self.period + shift) // self.period
        return np.where(steps <= self.period, steps, self.period + regular - regular_of_first)


def _models(
    rounds: _Rounds, baseline: Sequence[int], challenger: Sequence[int]
) -> Iterator["_Model"]:
    """A model for each way in which the returning work may begin, as no option declares it.

    baseline, challenger: the periods of each. Four ways for each period are combined.
    """
    ways = [
        [_Work(period, with_first, all_first) for all_first in (False, True)
         for with_first in (False, True)]
        for period in (*baseline, *challenger)
    ]  # fmt: skip
    for works in product(*ways):
        first, second = works[: len(baseline)], works[len(baseline) :]
        kinds = _kinds(rounds, rounds.steps[0], first), _kinds(rounds, rounds.steps[1], second)
        yield _Model.fit(rounds, *kinds, changes=bool(baseline and challenger))


def _kinds(rounds: _Rounds, steps: np.ndarray, works: Sequence[_Work]) -> np.ndarray:
    """The kind of an entrant's turn in each round (rounds,), from 0: how much work returns in it.

    Kinds are numbered in the order of the amounts of work. The last turn of a run may be shorter:
    it is of the kind of a whole turn with as much work, or with the least that a whole turn has.
    A kind of its own would have one pair a seed, or none.

    steps: of the entrant's turns (rounds,).
    """
    before = rounds.number * rounds.turn_steps  # steps before the turn
    counts = []
    for work in works:
        count = work.count(before + steps) - work.count(before)
        counts.append(np.maximum(count, rounds.turn_steps // work.period))
    # The same work adds more to the mean step of a short turn than of a long one. So the length is
    # a part of the kind; it matters where the duels of a race have turns of different lengths.
    length = rounds.turn_steps if works else np.zeros_like(before)
    _, kind = np.unique([*counts, length], axis=1, return_inverse=True)
    return kind.ravel()


# ---- The model ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stratum:
    """Values that measure the same contrast: one weighted sum of the unknowns of a `_Model`."""

    contrast: np.ndarray  # (unknowns,), the weights of the sum
    values: np.ndarray  # (values,)
    block: np.ndarray  # (values,), of the bootstrap
    weight: float  # of the median in the least squares


# The median of a stratum: a number, or with random weights an array (draws,).
_Estimator = Callable[[_Stratum], np.ndarray]


def _median(stratum: _Stratum) -> np.ndarray:
    """The plain median: an `_Estimator`."""
    return np.median(stratum.values)


@dataclass(frozen=True)
class _Model:
    """The seconds of a step are the cost of its turn's kind, times how slow the machine is then.

    The unknowns are the logarithms of the costs: first of the baseline's kinds, then of the
    challenger's. How slow the machine is drops out of the difference of a pair's logarithms. Each
    stratum makes one equation: its contrast of the unknowns is its median.

    The differences leave open one constant, by which all log costs may be larger. The price, a
    ratio, does not depend on it.
    """

    strata: Sequence[_Stratum]
    of_pairs: Sequence[_Stratum]  # the strata of pairs; any others are of changes
    inverse: np.ndarray  # (unknowns, strata), from medians to unknowns: weighted least squares
    shares: np.ndarray  # (unknowns,), of each kind in the steps of its entrant
    parts: tuple[slice, slice]  # where the unknowns of baseline and challenger are

    @classmethod
    def fit(
        cls, rounds: _Rounds, baseline: np.ndarray, challenger: np.ndarray, changes: bool
    ) -> "_Model":
        """baseline, challenger: the kind of the turn of each (rounds,).

        changes: whether changes from one round to the next are equations too. If work returns in
        both entrants, in the same turns, the pairs leave open which of the two steps became longer.
        The changes of both together tell. But in them is the change of the machine, so they have
        so little weight that they only decide what the pairs leave open.
        """
        split = int(baseline.max()) + 1  # from here on, the unknowns are the challenger's
        unknowns = split + int(challenger.max()) + 1
        # Rows of a unit matrix pick an unknown: (rounds, unknowns) each.
        a, b = np.eye(unknowns)[baseline], np.eye(unknowns)[split + challenger]
        pairs, logs = rounds.paired, rounds.log_seconds
        of_pairs = _strata((b - a)[pairs], (logs[1] - logs[0])[pairs], rounds.block[pairs])
        strata = of_pairs
        if changes:
            follows = pairs[:-1] & pairs[1:] & (np.diff(rounds.duel) == 0)
            # The mean of both turns: it tells when their steps became longer together.
            contrasts, values = np.diff((a + b) / 2, axis=0), np.diff(logs.mean(axis=0))
            block = rounds.block[1:]
            strata = of_pairs + _strata(
                contrasts[follows], values[follows], block[follows], weight=CHANGE_WEIGHT
            )
        weights = np.array([each.weight for each in strata])
        design = np.array([each.contrast for each in strata])  # (strata, unknowns)
        # The pseudoinverse also solves what is open: it takes the smallest unknowns.
        inverse = np.linalg.pinv(design * weights[:, None]) * weights
        measured = (a + b)[pairs].any(axis=0)  # (unknowns,), the kind is in a pair
        shares = (rounds.steps[0] @ a + rounds.steps[1] @ b) * measured
        parts = slice(split), slice(split, None)
        for part in parts:
            shares[part] /= shares[part].sum()
        return cls(strata, of_pairs, inverse, shares, parts)

    def price(self, estimator: _Estimator) -> np.ndarray:
        """The challenger's mean step over the baseline's: () or (draws,), as the estimator has."""
        costs = np.exp(self.log_costs(estimator))
        baseline, challenger = (self.shares[part] @ costs[part] for part in self.parts)
        return challenger / baseline

    def log_costs(self, estimator: _Estimator) -> np.ndarray:
        """The unknowns: (unknowns,) or (unknowns, draws), as the estimator has."""
        return self.inverse @ np.array([estimator(each) for each in self.strata])

    def misfit(self) -> float:
        """How far the values are from the model, with a charge for each kind of turn.

        Work cannot make a step shorter: where a model says so, it is made to fit badly. The roots
        of the residuals are added, so that a disturbed turn counts little. The charge keeps a model
        with more kinds from being the best by chance.
        """
        log_costs = self.log_costs(_median)
        for part in self.parts:
            # Kinds are sorted by work, so the first that is in a pair has the least.
            least = log_costs[part][np.argmax(self.shares[part] > 0)]
            log_costs[part] = np.maximum(log_costs[part], least)
        residuals = [np.abs(each.values - each.contrast @ log_costs) for each in self.strata]
        total = sum(float(np.sqrt(each).sum()) for each in residuals)
        return total * (1 + KIND_CHARGE * len(log_costs) / sum(map(len, residuals)))


def _strata(
    contrasts: np.ndarray, values: np.ndarray, block: np.ndarray, weight: float = 1.0
) -> list[_Stratum]:
    """The strata of values (values,), by the contrasts (values, unknowns) that they measure.

    A value of a contrast is also the negative value of the negative contrast, such as for a change
    from much work to little and for one from little to much. These are one stratum.

    weight: of a single value. The variance of a median falls with the number of values, so the
    weight of a stratum is its root times this.
    """
    rows = np.arange(len(contrasts))
    leading = contrasts[rows, (contrasts != 0).argmax(axis=1)]  # the first that is not 0
    sign = np.where(leading < 0, -1, 1)
    distinct, place = np.unique(contrasts * sign[:, None], axis=0, return_inverse=True)
    strata = []
    for index, contrast in enumerate(distinct):
        member = place.ravel() == index
        size = int(member.sum())
        strata.append(
            _Stratum(contrast, (sign * values)[member], block[member], weight * size**0.5)
        )
    return strata


def _weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The median of values (values,) for each row of weights (draws, values): (draws,).

    A value stands in the middle of its weight, on an axis of cumulative weights. The median is
    interpolated linearly at half of all weight, so equal weights give the plain median.
    """
    if len(values) == 1:  # nothing to interpolate between
        return np.repeat(values, len(weights))
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[:, order]
    middle = np.cumsum(weights, axis=1)
    half = middle[:, -1] / 2
    middle -= weights / 2  # in place: a long race has many megabytes of weights
    after = (middle < half[:, None]).sum(axis=1).clip(1, len(values) - 1)
    rows = np.arange(len(weights))
    low, high = middle[rows, after - 1], middle[rows, after]
    share = ((half - low) / (high - low)).clip(0, 1)  # a heavy value at an end is the median
    return values[after - 1] + share * (values[after] - values[after - 1])
