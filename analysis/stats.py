"""The statistics of a race: what a target costs, and what a few seeds can say about it.

Everything is computed from the rows of the CSVs. Every interval is a two-sided 95% interval from
Student's t, because a race has few seeds. `analysis.along` compares two optimizers along their
curves, and `analysis.power` says how many seeds a difference needs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from errors import UserError
from tracking.schema import DIVERGED, REACHED, Run

CONFIDENCE = 0.95
ALPHA = 0.01  # largest p at which a mean is below a target
SIGNIFICANT = 1 - CONFIDENCE  # largest p at which two entrants differ
POWER = 0.8  # probability that a test finds a difference which is called detectable
TRACK3 = "gpt2"  # the track with the setting of modded-nanogpt's track 3, its optimization track
TRACK3_SIGMA = 0.0013  # nats per token: the deviation of final losses, which track 3 assumes
TRACK3_MARGIN = 0.004  # nats per token: 3.08 times TRACK3_SIGMA, a one-sided p of 0.001
TRACK3_SLOPE = 0.0045 / 100  # nats per token: what a step is worth near the end of a run there

# ---- The runs of one or two entrants -----------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number estimated from n runs, and its 95% interval; None where n is too small for one."""

    value: float
    low: float | None
    high: float | None
    n: int

    def inverse(self) -> "Estimate":
        """The estimate of the reciprocal of a positive number."""
        low, high = (None if x is None else 1 / x for x in (self.high, self.low))
        return Estimate(1 / self.value, low, high, self.n)


@dataclass(frozen=True)
class Costs:
    """What each run of one entrant spent, in one unit, and whether it reached the target."""

    spent: Sequence[float]  # until the target; by the whole run where it was not reached
    reached: Sequence[bool]


def costs(runs: Sequence[Run], unit: str) -> Costs:
    """The cost of each run in `unit`: "steps", "tokens" or "seconds" (on the training clock).

    Raises UserError for a run that reached its target but does not say where.
    """
    whole = {"steps": "steps", "tokens": "tokens", "seconds": "train_seconds"}[unit]
    spent = []
    for run in runs:
        value = getattr(run, f"{unit}_to_target" if run.status == REACHED else whole)
        if value is None:
            raise UserError(
                f"run {run.run} reached its target but has no {unit}_to_target; "
                "run: python -m leaderboard verify"
            )
        spent.append(value)
    return Costs(spent, [run.status == REACHED for run in runs])


def losses(runs: Sequence[Run]) -> list[float]:
    """Final losses of the runs that did not diverge, nats per token."""
    ended = (run for run in runs if run.status != DIVERGED)
    return [run.final_loss for run in ended if run.final_loss is not None]


def expected_cost(sample: Costs) -> Estimate | None:
    """What it costs to reach the target when some runs miss it; None if no run reached it.

    The total that all runs spent, divided by the number of runs that reached the target. This is
    the expected running time (ERT) of COCO (Hansen et al., arXiv:1605.03560), with interpolated
    crossings. If every run reached the target, it is the mean, and its interval is computed for the
    logarithm by the delta method. If some runs missed, there is no interval, because a few runs do
    not tell how often the next run would miss.
    """
    cost = _log_cost(sample)
    if cost is None:
        return None
    return _estimate(cost if all(sample.reached) else cost.without_variance(), exponentiate=True)


@dataclass(frozen=True)
class Ratio:
    """A speed-up of one entrant over another, and the p-value of the test for no difference."""

    estimate: Estimate  # n counts the runs of both entrants
    p: float | None  # two-sided; None where an entrant that reached the target has a single run
    at_least: bool = False  # the slower entrant, the baseline, missed: this is a lower bound
    at_most: bool = False  # the slower entrant, the challenger, missed: this is an upper bound

    @property
    def bound(self) -> bool:
        """Whether the ratio is a bound."""
        return self.at_least or self.at_most

    def inverse(self) -> "Ratio":
        """The same with baseline and challenger exchanged."""
        return Ratio(self.estimate.inverse(), self.p, self.at_most, self.at_least)


def speedup(baseline: Costs, challenger: Costs, price: Estimate | None = None) -> Ratio | None:
    """Expected cost of the baseline over the cost of the challenger: above 1, the challenger wins.

    The test is Welch's t-test on the logarithms of the expected costs. The interval is computed for
    their difference, with the degrees of freedom of Welch and Satterthwaite.

    price: what a unit of the challenger's cost costs in units of the baseline's, such as the price
    of its step. The challenger's costs are multiplied by it, and the variance of its logarithm is
    added: so a ratio in steps becomes a ratio in seconds.

    A run that missed is censored: the target costs at least what the run spent.
    - If runs of the slower entrant missed and no run of the faster entrant did, the ratio is a
      lower bound: the ratio of what the runs of each spent on average. This holds if the bound is
      above 1. It need not be, as the slower entrant may have had a shorter horizon; then the ratio
      of the expected costs stays.
    - If the slower entrant never reached the target, its spread is unknown. The test takes the
      spread of the other entrant. If the bound is not above 1, there is no ratio: None.
    - If no run of either entrant reached the target, there is no ratio: None.
    """
    if price is None:
        return _speedup(baseline, challenger, None)
    spent = [price.value * cost for cost in challenger.spent]
    return _speedup(baseline, Costs(spent, challenger.reached), _error_of(price))


def _speedup(baseline: Costs, challenger: Costs, error: "_Sample | None") -> Ratio | None:
    """As `speedup`, perhaps with a further error of the logarithm."""
    a, b = _log_cost(baseline), _log_cost(challenger)
    if a is None and b is None:
        return None
    if b is None or (a is not None and a.value < b.value):
        other = _speedup(challenger, baseline, error)
        return None if other is None else other.inverse()
    assert b is not None  # the faster one
    slower, at_least = a, False
    if not all(baseline.reached) and (a is None or all(challenger.reached)):
        least = _log_cost(Costs(baseline.spent, [True] * len(baseline.spent)))
        if least is not None and least.value > b.value:
            slower, at_least = least, True
    if slower is None:
        return None
    if a is None and b.variance is not None:
        slower = replace(slower, variance=b.variance * b.n / slower.n, df=b.df)
        difference, known = replace(_difference(slower, b), df=b.df), False
    else:
        difference, known = _difference(slower, b), True
    if error is not None:
        difference = _difference(difference, error)
    interval = difference if known else difference.without_variance()
    return Ratio(_estimate(interval, exponentiate=True), _two_sided(difference), at_least)


def iso_loss(
    by_steps: Mapping[int, Sequence[float]], reference: Sequence[float]
) -> Estimate | None:
    """The horizon at which one entrant ends at the loss of another: its steps, with an interval.

    by_steps: final losses of the entrant's runs by their horizon, in steps. Each run went to the
    end of its own schedule. reference: final losses of the other entrant. The mean loss is
    interpolated linearly in the logarithm of the steps, between two neighbouring horizons. None if
    the reference lies outside of the means: nothing is extrapolated. n counts the runs behind the
    estimate.
    """
    wanted, known = _mean(reference), [(math.log(n), _mean(by_steps[n])) for n in sorted(by_steps)]
    for (x, a), (y, b) in pairwise(known):
        if not a.value >= wanted.value >= b.value or a.value == b.value:
            continue
        w = (a.value - wanted.value) / (a.value - b.value)
        slope = (b.value - a.value) / (y - x)
        parts = [(wanted, 1.0), (a, 1 - w), (b, w)]
        place, n = x + w * (y - x), sum(sample.n for sample, _ in parts)
        if any(sample.variance is None for sample, _ in parts):
            return _estimate(_Sample(place, None, 0, n), exponentiate=True)
        terms = [((k / slope) ** 2 * (s.variance or 0.0), s.df) for s, k in parts]
        variance = sum(v for v, _ in terms)
        spread = sum(v**2 / df for v, df in terms)
        df = variance**2 / spread if spread else sum(df for _, df in terms)
        return _estimate(_Sample(place, variance, df, n), exponentiate=True)
    return None


def mean(values: Sequence[float]) -> Estimate:
    """The mean of at least one value."""
    return _estimate(_mean(values))


def deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1); None for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups; None if no group has two values."""
    df = sum(len(group) - 1 for group in groups if group)
    if df < 1:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in groups if group)
    return math.sqrt(squares / df)


# ---- Many comparisons, and the differences that they can show ----------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by the step-down method of Holm (1979).

    If every test with an adjusted p below alpha is rejected, the probability of any false rejection
    in the family is at most alpha.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def min_detectable_difference(
    n: int, sd: float, alpha: float = SIGNIFICANT, power: float = POWER
) -> float:
    """The smallest difference of two means that n values each can show, in the unit of `sd`.

    Welch's two-sided t-test at level alpha finds this difference with probability `power`, if the
    values of both groups are normal with standard deviation `sd`. n >= 2.

    For equal n, Welch's statistic is Student's: a noncentral t with 2 (n - 1) degrees of freedom.
    Only the critical value differs. It depends on the share (1 + sin u) / 2 of the first sample in
    the sum of both variances. The share is independent of the statistic, so the power is averaged
    over u. A difference with the wrong sign is not counted: from a power of one half on, it is
    found less than once in 10,000 tests.
    """
    from scipy import optimize, stats  # here, because a race needs neither, and they take a second

    df = 2 * (n - 1)
    u = (np.arange(16) + 0.5) / 16 * math.pi / 2
    weights = np.cos(u) ** (n - 2)  # density of u
    critical = -stdtrit(df / (1 + np.sin(u) ** 2), alpha / 2)

    def missing(difference: float) -> float:
        """The power that is missing at a difference, which is in standard deviations."""
        found = stats.nct.sf(critical, df, difference * math.sqrt(n / 2))
        return power - float(np.average(found, weights=weights))

    high = 1.0
    while missing(high) > 0:
        high *= 2
    return sd * float(optimize.brentq(missing, 0, high))


# ---- Means -------------------------------------------------------------------------------------


def one_sample(values: Sequence[float], target: float) -> float | None:
    """One-sided p of Student's t-test that the mean is below the target; None for a single value.

    A small p says that the mean is below.
    """
    sample = _mean(values)
    return _below_zero(replace(sample, value=sample.value - target))


def mean_below_target(values: Sequence[float], target: float) -> bool:
    """Whether the mean of the losses is below the target: Student's t-test, p < ALPHA."""
    p = one_sample(values, target)
    return p is not None and p < ALPHA


def next_below_target(values: Sequence[float], target: float) -> bool:
    """Whether a further run is expected to end below the target, with a probability of 1 - ALPHA.

    The one-sided prediction bound for one more value of a normal sample: mean + t sd sqrt(1 + 1/n)
    with t of n - 1 degrees of freedom. It is stricter than a test of the mean. False for a single
    value.
    """
    n, sd = len(values), deviation(values)
    if sd is None:
        return False
    room = -float(stdtrit(n - 1, ALPHA)) * sd * math.sqrt(1 + 1 / n)
    return float(np.mean(values)) + room < target


class Mean(NamedTuple):
    """The mean final loss of n runs, which is all that some published results say."""

    value: float  # nats per token
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """The mean of at least one loss."""
        return cls(float(np.mean(values)), len(values))


def track3_statistic(losses: Sequence[float] | Mean, target: float) -> float:
    """How far the mean of n losses is below the target, times the square root of n."""
    mean = losses if isinstance(losses, Mean) else Mean.of(losses)
    return (target - mean.value) * math.sqrt(mean.n)


def counts_in_track3(losses: Sequence[float] | Mean, target: float) -> bool:
    """Whether final losses meet the target by the rule of modded-nanogpt's track 3.

    The rule is a `track3_statistic` of at least TRACK3_MARGIN over all runs, with none left out.
    Source: records/track_3_optimization there, and its pull requests 312 and 345. It is a one-sided
    z-test: the deviation between seeds is not estimated but assumed to be TRACK3_SIGMA, which holds
    in that setting only. So a single run may count, if it ends 0.004 below the target. If one run
    diverged (an infinite loss), the runs do not count.
    """
    return _reaches_margin(track3_statistic(losses, target))


def pairwise_track3(new: Mean, standing: Mean, steps_fewer: float = 0) -> float:
    """The statistic of track 3 for a new result against a standing one: positive is better.

    (standing loss - new loss + TRACK3_SLOPE * steps_fewer) / sqrt(1 / n of new + 1 / n of standing)

    steps_fewer: the steps of the standing result minus the steps of the new one. A shorter run is
    credited with the loss that the saved steps would have gained. Source of the slope: 0.0091 over
    200 steps, measured there on a Muon. It holds for runs of about 3,000 steps in that setting.
    """
    credit = standing.value - new.value + TRACK3_SLOPE * steps_fewer
    return credit / math.sqrt(1 / new.n + 1 / standing.n)


def beats_in_track3(new: Mean, standing: Mean, steps_fewer: float = 0) -> bool:
    """Whether a new result is better than a standing one by the pairwise rule of track 3."""
    return _reaches_margin(pairwise_track3(new, standing, steps_fewer))


def _reaches_margin(statistic: float) -> bool:
    return round(statistic, 9) >= TRACK3_MARGIN  # rounding errors of floats


def differ(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t-test for two means; None if either is a single value."""
    return _two_sided(_difference(_mean(values), _mean(others)))


def lower(values: Sequence[float], others: Sequence[float]) -> float | None:
    """One-sided p of Welch's t-test that the first mean loss is lower; None for a single value.

    A small p says that it is lower. A run that diverged has an infinite loss: among the first
    losses it makes p 1, and among the second only it leaves no test.
    """
    if any(map(math.isinf, values)):
        return 1.0
    if any(map(math.isinf, others)):
        return None
    return _below_zero(_difference(_mean(values), _mean(others)))


def cheaper(challenger: Costs, standing: Costs) -> float | None:
    """One-sided p that the challenger reaches the target at a lower cost than the standing record.

    The test is that of `speedup`, with runs that missed as censored. If the ratio is a bound, so is
    p: the true one is at most this where the standing record missed, and at least this where the
    challenger did. None without a test.
    """
    ratio = speedup(standing, challenger)
    if ratio is None or ratio.p is None:
        return None
    return ratio.p / 2 if ratio.estimate.value > 1 else 1 - ratio.p / 2


def paired_worse(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the first losses are above the second, seed by seed.

    One-sided t-test of the paired differences, p < 0.05. A run that diverged has an infinite loss
    and is worse than a run that did not.
    """
    pairs = list(zip(values, others, strict=True))
    if any(math.isinf(loss) and not math.isinf(other) for loss, other in pairs):
        return True
    lower = [other - loss for loss, other in pairs if not math.isinf(other)]
    p = one_sample(lower, 0.0) if lower else None
    return p is not None and p < SIGNIFICANT


@dataclass(frozen=True)
class _Sample:
    """An estimate, the variance of its error (None: unknown, n = 1) and its degrees of freedom."""

    value: float
    variance: float | None
    df: float
    n: int

    def without_variance(self) -> "_Sample":
        """The estimate with an unknown error."""
        return _Sample(self.value, None, 0, self.n)


def _mean(values: Sequence[float]) -> _Sample:
    n = len(values)
    sd = deviation(values)
    return _Sample(float(np.mean(values)), None if sd is None else sd**2 / n, n - 1, n)


def _log_cost(sample: Costs) -> _Sample | None:
    spent, reached = np.array(sample.spent, float), np.array(sample.reached, float)
    if not (reached.any() and spent.any()):  # a cost of zero has no logarithm
        return None
    # The delta method: each run's part of the error of log(mean spent) - log(mean reached).
    error = _mean(list(spent / spent.mean() - reached / reached.mean()))
    return _Sample(math.log(spent.sum() / reached.sum()), error.variance, error.df, error.n)


def _error_of(estimate: Estimate) -> _Sample:
    """The error of an estimate's logarithm, from its 95% interval, around zero.

    n is 0, so that a ratio goes on to count runs.
    """
    if estimate.low is None or estimate.high is None:
        return _Sample(0.0, None, 0, 0)
    wide = math.log(estimate.high / estimate.low)
    deviation = wide / (2 * -float(ndtri((1 - CONFIDENCE) / 2)))
    return _Sample(0.0, deviation**2, math.inf, 0)


def _difference(a: _Sample, b: _Sample) -> _Sample:
    value, n = a.value - b.value, a.n + b.n
    if a.variance is None or b.variance is None:
        return _Sample(value, None, 0, n)
    variance = a.variance + b.variance
    spread = a.variance**2 / a.df + b.variance**2 / b.df
    df = variance**2 / spread if spread else a.df + b.df  # Welch-Satterthwaite
    return _Sample(value, variance, df, n)


def _estimate(sample: _Sample, exponentiate: bool = False) -> Estimate:
    scale = math.exp if exponentiate else float
    if sample.variance is None:
        return Estimate(scale(sample.value), None, None, sample.n)
    half = -float(stdtrit(sample.df, (1 - CONFIDENCE) / 2)) * math.sqrt(sample.variance)
    low, high = sample.value - half, sample.value + half
    return Estimate(scale(sample.value), scale(low), scale(high), sample.n)


def _t(sample: _Sample) -> float:
    """Distance from zero in standard errors; infinite if the seeds agree on another value."""
    if sample.variance:
        return sample.value / math.sqrt(sample.variance)
    return math.copysign(math.inf, sample.value) if sample.value else 0.0


def _two_sided(sample: _Sample) -> float | None:
    """The p-value of an estimate, if its true value is zero; None if its error is unknown."""
    return None if sample.variance is None else 2 * float(stdtr(sample.df, -abs(_t(sample))))


def _below_zero(sample: _Sample) -> float | None:
    """The one-sided p-value that the true value is below zero; None if the error is unknown."""
    return None if sample.variance is None else float(stdtr(sample.df, _t(sample)))
