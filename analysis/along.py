"""The speed-up of one optimizer over another along their curves: at every loss, not only the last.

At a loss, each run costs what it had spent when it first met that loss, interpolated linearly
between two validations. Only the first time counts, so a noisy curve is read as if it never rose:
the cost of a lower loss is never less than the cost of a higher one.

The ratio of the costs is `stats.speedup`. With several runs of each optimizer, its interval is
Welch's on the logarithms of the mean costs (the delta method), and a run that never met the loss is
censored at its end: it is not dropped, and makes the ratio a bound. With one curve each, such as
two mean curves, the ratio has no interval.

Schedules matter more than this interval. A curve far from its end was made with a learning rate
that is still high. A run that aimed at that loss would have ended earlier and cooled down.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.stats import Costs, Ratio, speedup
from tracking.crossing import first_met


@dataclass(frozen=True)
class Curve:
    """What one run had spent at each validation, in steps or another unit, and its loss there."""

    spent: Sequence[float]  # rising
    losses: Sequence[float]  # nats per token


def costs_of_loss(curves: Sequence[Curve], loss: float) -> Costs | None:
    """What each run spent until it first met a loss, or in the whole where it never did.

    None if a run has no validation, or is there at its first one: what it spent is unknown.
    """
    spent, reached = [], []
    for curve in curves:
        if not curve.losses or curve.losses[0] <= loss:
            return None
        met = first_met(curve.losses, loss)
        if met is None:
            spent.append(curve.spent[-1])
        else:
            at, fraction = met
            spent.append(curve.spent[at - 1] + fraction * (curve.spent[at] - curve.spent[at - 1]))
        reached.append(met is not None)
    return Costs(spent, reached) if curves else None


def new_minima(curve: Curve) -> list[float]:
    """The losses of a curve that are below all before them: a noisy curve, without its rises."""
    minima: list[float] = []
    for loss in curve.losses:
        if not minima or loss < minima[-1]:
            minima.append(loss)
    return minima


def speedups(
    baseline: Sequence[Curve], challenger: Sequence[Curve], losses: Sequence[float]
) -> list[tuple[float, Ratio]]:
    """The baseline's cost of each loss over the challenger's; losses without a ratio are left out.

    The natural losses are those of the challenger's mean curve: its `new_minima`.
    """
    found = []
    for loss in losses:
        a, b = costs_of_loss(baseline, loss), costs_of_loss(challenger, loss)
        ratio = None if a is None or b is None else speedup(a, b)
        if ratio is not None:
            found.append((loss, ratio))
    return found
