"""Stacked bars by kind, a row for each entrant: the body of charts memory and step_time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from analysis.charts import _style
from analysis.charts._inputs import Inputs
from analysis.charts._wording import footer

ROW_IN = 0.36  # at least, for an entrant
OPTIMIZER = "#F2CF1D"  # the subject of both charts; a yellow that no entrant has


@dataclass(frozen=True)
class Kind:
    """One kind of segment: its amount for a row of the chart, in bytes or milliseconds."""

    name: str
    amount: Callable[[Any], float]
    color: str
    ink: str  # of the number inside it


@dataclass(frozen=True)
class Panel:
    """One of the two sets of bars."""

    kinds: Sequence[Kind]
    label: str  # of the x axis
    unit: _style.Unit


def totals(rows: Sequence[Any], kinds: Sequence[Kind]) -> list[float]:
    """The length of each row's bar."""
    return [sum(kind.amount(row) for kind in kinds) for row in rows]


def stacked_bars(inputs: Inputs, title: str, caption: str, left: Panel, right: Panel) -> Figure:
    """Two panels of bars beside each other, with one legend: the kinds of the left one."""
    entrants = inputs.entrants
    labels = [entrant.label for entrant in entrants]
    row_in = max(ROW_IN, _style.row_height_in(labels) + 0.1)
    figure = _style.new_figure(title, caption, footer(inputs), row_in * len(entrants) + 0.95)
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    inside: list[tuple[Text, Rectangle]] = []
    for axes, panel in zip(panels, (left, right), strict=True):
        inside += stacks(axes, entrants, panel)
        axes.set_xlabel(panel.label)
        axes.xaxis.set_major_locator(_style.ticks(5))
    _style.row_labels(panels[0], labels, {e.label: e.look for e in entrants})
    panels[1].tick_params(axis="y", length=0)
    kinds = left.kinds
    legend = panels[0].legend(
        handles=[Rectangle((0, 0), 1, 1, color=kind.color) for kind in kinds],
        labels=[kind.name for kind in kinds],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
        ncols=len(kinds),
        handlelength=1,
        handleheight=1,
    )
    legend.set_in_layout(False)  # it may be wider than its panel, over the next one
    panels[0].set_title(" ")  # keeps its line free
    drop_wide(figure, inside)
    return figure


def drop_wide(figure: Figure, inside: Sequence[tuple[Text, Rectangle]]) -> None:
    """Lays the figure out, and removes numbers that do not fit their segments."""
    _style.freeze_layout(figure)  # before it, segments have no width in pixels
    for text, bar in inside:
        if text.get_window_extent().width > 0.9 * bar.get_window_extent().width:
            text.remove()  # the total at the end of the bar stays


def stacks(axes: Axes, entrants: Sequence[Any], panel: Panel) -> list[tuple[Text, Rectangle]]:
    """Draws a bar for each row. Returns the numbers inside segments, each with its segment."""
    inside = []
    for row, entrant in enumerate(entrants):
        left = 0.0
        for kind in panel.kinds:
            width = kind.amount(entrant) / panel.unit.size
            bar = axes.barh(row, width, left=left, height=0.6, color=kind.color)[0]
            if len(panel.kinds) > 1:
                text = axes.text(
                    left + width / 2,
                    row,
                    _style.number(width),
                    size=_style.SMALL_PT,
                    color=kind.ink,
                    ha="center",
                    va="center",
                )
                text.set_in_layout(False)
                inside.append((text, bar))
            left += width
        axes.annotate(
            _style.number(left),
            (left, row),
            xytext=(4, 0),
            textcoords="offset points",
            size=_style.SMALL_PT,
            weight="bold",
            va="center",
        )
    axes.set_xlim(0, 1.02 * max(totals(entrants, panel.kinds)) / panel.unit.size or 1)
    axes.grid(False, axis="y")
    return inside
