"""Curves of validation loss: what they are drawn against, their mean over seeds, their range.

Used by charts loss_curves, loss_by_steps and loss_by_seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.charts import _style
from analysis.charts._inputs import Inputs
from tracking.schema import Validation

PANEL_IN = 2.7  # height of the part of loss_curves with the curves
LABEL_IN = 0.17  # height of one line of text below them
MANY = 7  # entrants from which on each also has a panel of its own


@dataclass(frozen=True)
class Quantity:
    """What one panel has on its x axis."""

    unit: str  # as in `stats.costs`
    column: str  # of Validation
    label: str  # {} is the unit's name
    units: Sequence[_style.Unit]

    def largest(self, inputs: Inputs) -> float:
        """The largest value of all curves."""
        points = [p for e in inputs.entrants for curve in e.curves for p in curve]
        return max((float(getattr(p, self.column)) for p in points), default=0.0) or 1.0


QUANTITIES = {
    "steps": Quantity("steps", "step", "optimizer steps", (_style.Unit(1, ""),)),
    "tokens": Quantity("tokens", "tokens", "training tokens{}", _style.COUNTS),
    "seconds": Quantity("seconds", "train_seconds", "training time{}", _style.SECONDS),
}


@dataclass(frozen=True)
class Window:
    """The range of losses that is shown: curves above `floor`, text down to `bottom`."""

    bottom: float
    floor: float
    top: float


def window_of(inputs: Inputs) -> Window:
    """The losses near the target: the last three fifths of the runs that met it."""
    shown = [e for e in inputs.entrants if e.cost("steps")] or inputs.entrants
    tops, floors = [inputs.target], [inputs.target]
    for entrant in shown:
        curve = mean_curve(entrant.finished(), "step")
        if len(curve):
            tops.append(float(np.interp(0.4 * curve.x.iloc[-1], curve.x, curve.loss)))
            floors.append(float(curve.low.min()))
    spread = max(max(tops) - min(floors), 0.1)
    floor, top = min(floors) - 0.03 * spread, max(tops) + 0.03 * spread
    labels = (LABEL_IN * len(inputs.entrants) + 0.1) / PANEL_IN
    return Window(floor - labels * (top - floor), floor, top)


def mean_curve(curves: Sequence[Sequence[Validation]], column: str) -> pd.DataFrame:
    """A row for each step where every curve has a validation; no row without a curve.

    Columns: x, the mean of `column` over curves, and loss, low and high: the mean, the lowest and
    the highest validation loss.
    """
    rows = [(p.step, float(getattr(p, column)), p.val_loss) for curve in curves for p in curve]
    steps = pd.DataFrame(rows, columns=["step", "x", "loss"]).astype(float).groupby("step")
    means = steps.mean().assign(low=steps["loss"].min(), high=steps["loss"].max())
    return means[steps.size() == len(curves)]
