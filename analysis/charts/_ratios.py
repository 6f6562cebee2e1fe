"""A speed-up over the baseline, the two factors that make it, and the marks of an axis of ratios.

Used by charts speedup and iso_loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from analysis.charts._inputs import Series
from analysis.pairs import UNITS, ratio
from analysis.stats import Costs, Estimate, Ratio, costs, speedup
from tracking.schema import Run

# Marks of a logarithmic axis of ratios; the first set with few enough of them in range is used.
TICKS = (
    tuple(round(0.5 + 0.05 * i, 2) for i in range(51)),
    tuple(round(0.1 + 0.1 * i, 1) for i in range(50)),
    (0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
)


@dataclass(frozen=True)
class Decomposition:
    """A speed-up over the baseline, and the two factors whose product it is.

    Each is the baseline's cost over the challenger's, above 1 where the challenger is better.
    """

    samples: Ratio  # of steps to the target
    step: Estimate  # of seconds a step
    clock: Ratio  # of seconds to the target; a bound where `samples` is one


def decompose(baseline: Series, challenger: Series, price: Estimate | None) -> Decomposition | None:
    """The speed-up of one entrant over another; None if either never reached the target.

    Also None where runs that missed turn only one of the two ratios into a bound. price: of the
    challenger's step over the baseline's; None if the two did not take turns.
    """
    samples, clock = (ratio(baseline.runs, challenger.runs, unit, price) for unit in UNITS)
    if samples is None or clock is None:
        return None
    if baseline.cost("steps") is None or challenger.cost("steps") is None:
        return None
    if (samples.at_least, samples.at_most) != (clock.at_least, clock.at_most):
        return None
    if price is not None:
        return Decomposition(samples, price.inverse(), clock)
    step = speedup(_per_step(baseline.runs), _per_step(challenger.runs))
    assert step is not None  # runs that spent steps and seconds have seconds a step
    # The mean over runs weighs each alike; the quotient is what makes the product exact.
    exact = clock.estimate.value / samples.estimate.value
    return Decomposition(samples, replace(step.estimate, value=exact), clock)


def _per_step(runs: Sequence[Run]) -> Costs:
    steps, seconds = (costs(runs, unit).spent for unit in UNITS)
    values = [s / n for s, n in zip(seconds, steps, strict=True) if n]
    return Costs(values, [True] * len(values))


def mark_ratios(axis: Axis, low: float, high: float, most: int) -> None:
    """Sets the tick marks of a logarithmic axis of ratios from low to high, `most` at most."""
    chosen = [[t for t in marks if low <= t <= high] for marks in TICKS]
    marks = next((c for c in chosen if 2 <= len(c) <= most), chosen[-1])
    axis.set_major_locator(FixedLocator(marks))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: f"{value:g}x")
