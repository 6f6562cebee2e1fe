"""The singular values of momentum and update at the beginning, middle and end of training.

Drawn where a race measured spectra, with --log-spectra. Each matrix is divided by its own largest
singular value.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from analysis import spectra
from analysis.charts import _spectra, _style
from analysis.charts._inputs import Inputs, Series
from analysis.charts._wording import footer

OF_RACE = True
COLUMNS = 4
PANEL_IN = 2.1
DASHES = {spectra.MOMENTUM: _style.DASHES[1], spectra.UPDATE: _style.DASHES[0]}
SHADES = {spectra.BEGINNING: 0.35, spectra.MIDDLE: 0.65, spectra.END: 1.0}
LOWEST = 1e-6  # of the largest: below it float32 has no singular values


def draw(inputs: Inputs) -> Figure:
    """A panel for each entrant, three lines for each tensor. Raises MissingDataError."""
    entrants, rows = _spectra.measured(inputs)
    tall, wide = math.ceil(len(entrants) / COLUMNS), min(COLUMNS, len(entrants))
    caption = (
        "All hidden matrices: the part of their singular values that is above a value, each matrix "
        "relative to its largest. Points: seven quantiles, as geometric means. Updates have the "
        f"colour of the optimizer. {_steps(rows)}"
    )
    heights = [2 * _spectra.LEGEND_IN, *[PANEL_IN] * tall]
    figure = _style.new_figure(_title(rows, entrants), caption, footer(inputs), sum(heights) + 0.35)
    grid = figure.add_gridspec(1 + tall, wide, height_ratios=heights)
    _legend(figure.add_subplot(grid[0, :]))
    names = _style.short_names([entrant.label for entrant in entrants])
    panels, drawn = [], [1.0]
    for place, entrant in enumerate(entrants):
        row, column = divmod(place, wide)
        axes = figure.add_subplot(grid[1 + row, column])
        panels.append(axes)
        drawn += _panel(axes, rows[rows["label"] == entrant.label], entrant.look.color)
        axes.set_title(names[entrant.label], color=entrant.look.text)
        axes.tick_params(labelleft=column == 0)
        if column == 0:
            axes.set_ylabel("value / largest")
        axes.set_xlabel("values above it")
    for axes in panels:
        _spectra.log_axis(axes, drawn)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.5, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, color: str) -> list[float]:
    """Draws the lines of an entrant; returns their values."""
    drawn: list[float] = []
    for tensor, own in ((spectra.MOMENTUM, _style.MUTED), (spectra.UPDATE, color)):
        for moment in spectra.MOMENTS:
            line = spectra.profile(spectra.hidden(spectra.at(rows, moment), tensor))
            values = np.maximum(line.values, LOWEST)
            drawn += values.tolist()
            axes.plot(
                line.steps, values, color=_shade(own, moment),
                linestyle=DASHES[tensor], linewidth=1.6, marker="o", markersize=2.5,
            )  # fmt: skip
    return drawn


def _shade(color: str, moment: str) -> tuple[float, float, float]:
    """The colour, mixed with white: the earlier, the lighter."""
    r, g, b = (1 - SHADES[moment] * (1 - part) for part in to_rgb(color))
    return (r, g, b)


def _legend(axes: Axes) -> None:
    """A column for each moment, momentum above update."""
    lines = [
        Line2D(
            [], [], color=_shade(color, moment), linestyle=DASHES[tensor], linewidth=1.6,
            marker="o", markersize=2.5, label=f"{tensor}, {moment}",
        )
        for moment in spectra.MOMENTS
        for tensor, color in ((spectra.MOMENTUM, _style.MUTED), (spectra.UPDATE, _style.INK))
    ]  # fmt: skip
    axes.set_axis_off()
    axes.legend(handles=lines, loc="center", ncols=len(spectra.MOMENTS), handlelength=2.8)


def _steps(rows: pd.DataFrame) -> str:
    """At which steps the moments are, over all entrants."""
    found = []
    for moment in spectra.MOMENTS:
        steps = sorted(spectra.at(rows, moment)["step"].unique())
        ends = dict.fromkeys((int(steps[0]), int(steps[-1])))
        found.append(f"{moment}: step {' to '.join(map(str, ends))}")
    return f"{'; '.join(found).capitalize()}."


def _title(rows: pd.DataFrame, entrants: Sequence[Series]) -> str:
    steepest = _spectra.extremes(
        _spectra.middle_updates(rows), entrants, "over_median",
        lambda value: f"{_style.number(value)} times the median",
    )  # fmt: skip
    return f"In mid-training the largest singular value of an update is {steepest}"
