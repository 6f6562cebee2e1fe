"""The statistics of a race: where a curve meets its target, and what a few seeds say about it.

Computed from the rows of the CSVs with numpy and math alone. Every interval is a two-sided 95%
interval from Student's t, because a race has few seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from itertools import pairwise

import numpy as np

from errors import UserError
from tracking.schema import REACHED, Run

CONFIDENCE = 0.95
ALPHA = 0.01  # a mean meets a target when chance explains it less often than this
SIGNIFICANT = 1 - CONFIDENCE  # two entrants differ when chance explains it less often than this
POWER = 0.8  # how often a difference that is called detectable is found
TRACK3 = "gpt2"  # the track in the setting of modded-nanogpt's track 3, its optimization track
TRACK3_SIGMA = 0.0013  # nats per token: deviation of final losses that track 3 takes as known
TRACK3_PRECISION = 0.004  # nats per token: 3.08 times that, a one-sided p of 0.001

# ---- The runs of one or two entrants -----------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A number estimated from n runs, and its 95% interval; None where n is too small for one."""

    value: float
    low: float | None
    high: float | None
    n: int


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
                "run: python -m leaderboard.verify"
            )
        spent.append(value)
    return Costs(spent, [run.status == REACHED for run in runs])


def expected_cost(sample: Costs) -> Estimate | None:
    """What it costs to reach the target when some runs miss it; None if no run reached it.

    All that was spent, by the runs that missed too, over the number of runs that reached: the
    ERT of COCO (Hansen et al., arXiv:1605.03560), here with interpolated crossings. It is the
    mean when every run reached; the interval is that of the logarithm, by the delta method. Where
    some missed there is none: a few runs do not tell how often the next one would.
    """
    cost = _log_cost(sample)
    if cost is None:
        return None
    return _estimate(cost if all(sample.reached) else cost.alone(), exponentiate=True)


@dataclass(frozen=True)
class Ratio:
    """A speed-up of one entrant over another and how likely chance makes it as large."""

    estimate: Estimate  # n counts the runs of both
    p: float | None  # two-sided; None where an entrant that reached has a single run
    at_least: bool = False  # the slower one missed the target: this is a lower bound
    at_most: bool = False  # the same where the challenger is the slower one

    @property
    def bound(self) -> bool:
        """Whether the ratio is known on one side alone."""
        return self.at_least or self.at_most

    def inverse(self) -> "Ratio":
        """The same with baseline and challenger exchanged."""
        value, low, high, n = astuple(self.estimate)
        low, high = (None if x is None else 1 / x for x in (high, low))
        return Ratio(Estimate(1 / value, low, high, n), self.p, self.at_most, self.at_least)


def speedup(baseline: Costs, challenger: Costs) -> Ratio | None:
    """Expected cost of the baseline over that of the challenger: above 1, the challenger wins.

    Tested by Welch's t-test on the logarithms of the expected costs. The interval is that of their
    difference, with the degrees of freedom of Welch and Satterthwaite.

    A run that missed is censored: the target costs at least what it spent. So where the slower
    entrant missed and the faster one did not, the ratio is a lower bound, of what the runs of each
    spent on average, if that is above 1; it stays that of the expected costs if not, as the slower
    one may have missed at the end of a shorter horizon. An entrant that never reached the target
    has no spread of its own: it is taken to be that of the other, in the test alone; where its
    bound is not above 1 either, or neither reached, there is no ratio: None.
    """
    a, b = _log_cost(baseline), _log_cost(challenger)
    if a is None and b is None:
        return None
    if b is None or (a is not None and a.value < b.value):
        other = speedup(challenger, baseline)
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
        difference = replace(_difference(slower, b), df=b.df)
        estimate = _estimate(difference.alone(), exponentiate=True)
    else:
        difference = _difference(slower, b)
        estimate = _estimate(difference, exponentiate=True)
    return Ratio(estimate, _two_sided(difference), at_least)


def iso_loss(losses: Mapping[int, Sequence[float]], reference: Sequence[float]) -> Estimate | None:
    """The horizon at which one entrant's final loss is another's: its steps, and an interval.

    losses: final losses of the entrant's runs by their horizon, in steps; each went to the end of
    its own schedule. reference: final losses of the other. Between two neighbouring horizons the
    mean loss is taken to be linear in the logarithm of the steps. None where the reference lies
    outside of the means: nothing is extrapolated. n counts the runs behind the estimate.
    """
    wanted, known = _mean(reference), [(math.log(n), _mean(losses[n])) for n in sorted(losses)]
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
    """Standard deviation of the population that the values are from; None for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def pooled_deviation(groups: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within groups; None where no group has two values."""
    df = sum(len(group) - 1 for group in groups if group)
    if df < 1:
        return None
    squares = sum(float(np.var(group)) * len(group) for group in groups if group)
    return math.sqrt(squares / df)


# ---- Many comparisons, and what they can show --------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family of tests, adjusted by the step-down method of Holm (1979).

    Rejecting those below alpha errs anywhere in the family with a probability of at most alpha.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def detectable(n: int, sd: float, alpha: float = SIGNIFICANT, power: float = POWER) -> float:
    """The smallest difference of two means that n values each show, in the unit of `sd`.

    That is: Welch's two-sided t-test at level alpha finds it with a probability of `power`, where
    the values of both are normal with deviation `sd`. n >= 2.
    """
    found = _power(n, alpha)
    low, high = 0.0, 1.0
    while found(high) < power:
        low, high = high, 2 * high
    for _ in range(32):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high * sd


def _power(n: float, alpha: float) -> Callable[[float], float]:
    """How often Welch's two-sided t-test of n values each finds a difference, in deviations.

    By integrating the normal distribution of the difference over those of the pooled deviation s
    and of (1 + sin u) / 2, one sample's share of the pooled variance, which are independent. The
    share decides the degrees of freedom, between n - 1 and 2 (n - 1).
    """
    df = 2 * (n - 1)
    u = (np.arange(16) + 0.5) / 16 * math.pi / 2
    weights = np.cos(u) ** (n - 2)
    critical = [t_quantile(1 - alpha / 2, df / (1 + x * x)) for x in np.sin(u).tolist()]
    s = np.linspace(0, 1 + 10 / math.sqrt(df), 401)[1:]  # estimated over true deviation
    density = np.exp(
        (df - 1) * np.log(s) - df * s**2 / 2
        + math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    )  # fmt: skip

    def found(difference: float) -> float:
        shift = difference * math.sqrt(n / 2)
        beyond = np.outer(critical, s)
        rejects = _normal(shift - beyond) + _normal(-shift - beyond)
        return float(np.average(np.trapezoid(density * rejects, s), weights=weights))

    return found


_erfc = np.vectorize(math.erfc, otypes=[float])


def _normal(z: np.ndarray) -> np.ndarray:
    """The probabilities that a standard normal variable is below each z."""
    return np.asarray(_erfc(-z / math.sqrt(2)) / 2)


# ---- Means -------------------------------------------------------------------------------------


def one_sample(values: Sequence[float], target: float) -> float | None:
    """One-sided p of a mean below the target, by Student's t-test: small means it is below.

    None for a single value.
    """
    sample = _mean(values)
    if sample.variance is None:
        return None
    return t_cdf(_t(replace(sample, value=sample.value - target)), sample.df)


def meets(losses: Sequence[float], target: float) -> bool:
    """Whether the mean of the losses is at or below the target by more than chance."""
    p = one_sample(losses, target)
    return p is not None and p < ALPHA


def precision(losses: Sequence[float], target: float) -> float:
    """How far the mean of n losses is below the target, times the square root of n."""
    return (target - float(np.mean(losses))) * math.sqrt(len(losses))


def counts(losses: Sequence[float], target: float) -> bool:
    """Whether final losses meet the target by the rule of modded-nanogpt's track 3.

    That is a `precision` of at least TRACK3_PRECISION over all runs, none left out
    (records/track_3_optimization there; worked out in its pull requests 312 and 345). It is a
    one-sided z-test: the deviation between seeds is not estimated but taken to be TRACK3_SIGMA,
    which holds in that setting alone. So a single run may count, if it ends 0.004 below. An
    infinite loss, of a run that diverged, lets none count.
    """
    return round(precision(losses, target), 9) >= TRACK3_PRECISION  # decimals are no exact floats


def differ(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of two means that differ, by Welch's t-test; None where one is a single value."""
    return _two_sided(_difference(_mean(values), _mean(others)))


def worse(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the first losses are above the second, seed by seed, by more than chance.

    One-sided t-test of the paired differences, p < 0.05. A run that diverged is above any other.
    """
    pairs = list(zip(losses, others, strict=True))
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

    def alone(self) -> "_Sample":
        """The estimate without its error."""
        return _Sample(self.value, None, 0, self.n)


def _mean(values: Sequence[float]) -> _Sample:
    n = len(values)
    sd = deviation(values)
    return _Sample(float(np.mean(values)), None if sd is None else sd**2 / n, n - 1, n)


def _log_cost(sample: Costs) -> _Sample | None:
    spent, reached = np.array(sample.spent, float), np.array(sample.reached, float)
    if not (reached.any() and spent.any()):  # without any cost there is no logarithm
        return None
    # The delta method: what each run adds to the error of log(mean spent) - log(mean reached).
    error = _mean(list(spent / spent.mean() - reached / reached.mean()))
    return _Sample(math.log(spent.sum() / reached.sum()), error.variance, error.df, error.n)


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
    half = t_quantile((1 + CONFIDENCE) / 2, sample.df) * math.sqrt(sample.variance)
    low, high = sample.value - half, sample.value + half
    return Estimate(scale(sample.value), scale(low), scale(high), sample.n)


def _t(sample: _Sample) -> float:
    """Distance from zero in standard errors; infinite when seeds that never differ are off it."""
    if sample.variance:
        return sample.value / math.sqrt(sample.variance)
    return math.copysign(math.inf, sample.value) if sample.value else 0.0


def _two_sided(sample: _Sample) -> float | None:
    """The probability that chance takes an estimate of zero as far from it."""
    return None if sample.variance is None else 2 * t_cdf(-abs(_t(sample)), sample.df)


# ---- Student's t -------------------------------------------------------------------------------


def t_quantile(p: float, df: float) -> float:
    """The t that Student's distribution with df >= 1 degrees of freedom stays below, 0 < p < 1.

    By bisection of `t_cdf`, until two neighbouring floats are left.
    """
    if p < 0.5:
        return -t_quantile(1 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if t_cdf(middle, df) < p:
            low = middle
        else:
            high = middle
    return middle


def t_cdf(t: float, df: float) -> float:
    """The probability that Student's t with df > 0 degrees of freedom is at most t."""
    tail = _incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2
    return 1 - tail if t > 0 else tail


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1.

    By its continued fraction and the modified Lentz method: Press et al., Numerical Recipes,
    3rd ed., sections 5.2 and 6.4.
    """
    if x in (0, 1):
        return float(x)
    if x > (a + 1) / (a + b + 2):  # the fraction converges quickly on the other side only
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300  # keeps a division by a term that happens to be zero finite
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 1000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for numerator in (even, odd):
            d = 1 / (1 + numerator * d or tiny)
            c = 1 + numerator / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(log_front) * fraction / a
