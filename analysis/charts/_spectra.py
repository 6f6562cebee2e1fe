"""What the charts of measured spectra share: their rows, a legend, panels over the steps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis import spectra
from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._wording import footer

COLUMNS = 6  # panels beside each other, at most
PANEL_IN = 1.5  # height of a panel
LEGEND_IN = 0.22  # height of a line of the legend
LEGEND_COLUMNS = 5


def measured(inputs: Inputs) -> tuple[list[Series], pd.DataFrame]:
    """The entrants that were measured, and their rows. Raises MissingDataError without any."""
    rows = spectra.measured(
        pair for e in inputs.entrants for pair in zip(e.runs, e.spectra, strict=True)
    )
    shown = [e for e in inputs.entrants if e.label in set(rows["label"])]
    if not shown:
        raise MissingDataError("this race measured no spectra; run: make why")
    return shown, rows


def means(rows: pd.DataFrame) -> str:
    """What a caption says of the lines: what each is the mean of."""
    seeds = " and seeds" if rows["seed"].nunique() > 1 else ""
    return f"Lines: geometric means over layers{seeds}."


def extremes(
    rows: pd.DataFrame, entrants: Sequence[Series], column: str, spell: Callable[[float], str]
) -> str:
    """The largest and the smallest figure, each with its entrant: "7.1 with Muon and 2 with SGD".

    With a single entrant, its figure alone.
    """
    found = [
        (entrant, figure.value)
        for entrant in entrants
        if (figure := spectra.figure(rows[rows["label"] == entrant.label], column))
    ]
    found.sort(key=lambda pair: -pair[1])
    ends = found if len(found) < 2 else [found[0], found[-1]]
    return " and ".join(f"{spell(value)} with {entrant.name}" for entrant, value in ends)


def middle_updates(rows: pd.DataFrame) -> pd.DataFrame:
    """The updates of the hidden matrices in the middle of training."""
    return spectra.hidden(spectra.at(rows, spectra.MIDDLE), spectra.UPDATE)


def legend(axes: Axes, handles: Sequence[Line2D]) -> None:
    """Makes axes a legend in lines of LEGEND_COLUMNS names."""
    axes.set_axis_off()
    axes.legend(handles=list(handles), loc="center", ncols=LEGEND_COLUMNS, handlelength=2.8)


def legend_lines(count: int) -> int:
    """The number of lines of a legend of this many names."""
    return math.ceil(count / LEGEND_COLUMNS)


def handles(entrants: Sequence[Series]) -> list[Line2D]:
    """The line of each entrant with its name, for a legend."""
    names = _style.short_names([entrant.label for entrant in entrants])
    return [
        Line2D(
            [], [], color=e.look.color, linestyle=e.look.dashes, marker=e.look.marker,
            markersize=4, linewidth=1.6, label=names[e.label],
        )
        for e in entrants
    ]  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A quantity, drawn against the steps in a panel for each group of parameters."""

    label: str  # of the y axis, in two short lines
    rows: pd.DataFrame
    column: str


def over_steps(
    inputs: Inputs,
    entrants: Sequence[Series],
    blocks: Sequence[Block],
    families: Sequence[Sequence[str]],
    title: str,
    caption: str,
) -> Figure:
    """A row of panels for each block, a line for each entrant.

    families: groups of parameters that share a log axis for each block. A family begins in a new
    row. One of more than COLUMNS goes on in further rows, the blocks of the same groups below each
    other.
    """
    chunks = [(family, chunk) for family in families for chunk in _chunks(family)]
    wide = max(len(chunk) for _, chunk in chunks)
    heights = [LEGEND_IN * legend_lines(len(entrants)), *[PANEL_IN] * (len(chunks) * len(blocks))]
    figure = _style.new_figure(title, caption, footer(inputs), sum(heights) + 0.35)
    grid = figure.add_gridspec(len(heights), wide, height_ratios=heights)
    legend(figure.add_subplot(grid[0, :]), handles(entrants))
    drawn = {block.label: _lines(block, entrants) for block in blocks}
    last = max(step for lines in drawn.values() for line in lines.values() for step in line.steps)
    rows_of_figure = [(*pair, block) for pair in chunks for block in blocks]
    for place, (family, chunk, block) in enumerate(rows_of_figure, start=1):
        lines = drawn[block.label]
        values = [v for (_, group), line in lines.items() if group in family for v in line.values]
        for column, group in enumerate(chunk):
            axes = figure.add_subplot(grid[place, column])
            for entrant in entrants:
                if (entrant.label, group) in lines:
                    _line(axes, entrant, lines[entrant.label, group])
            log_axis(axes, values)
            axes.set_xlim(0, 1.05 * last)
            axes.xaxis.set_major_locator(_style.ticks(3))
            axes.tick_params(labelleft=column == 0)
            axes.tick_params(labelbottom=block is blocks[-1])
            if column == 0:
                axes.set_ylabel(block.label)
            if block is blocks[0]:
                axes.set_title(group)
            if block is blocks[-1]:
                axes.set_xlabel("steps")
    return figure


def _chunks(family: Sequence[str]) -> list[Sequence[str]]:
    """The rows of panels of a family, of like lengths."""
    wide = math.ceil(len(family) / math.ceil(len(family) / COLUMNS))
    return [family[i : i + wide] for i in range(0, len(family), wide)]


def _lines(block: Block, entrants: Sequence[Series]) -> dict[tuple[str, str], spectra.Line]:
    """The line of each entrant and group that has values."""
    found = {}
    for entrant in entrants:
        own = block.rows[block.rows["label"] == entrant.label]
        for group in own["group"].unique():
            line = spectra.line(own[own["group"] == group], block.column)
            if len(line.values):
                found[entrant.label, group] = line
    return found


def _line(axes: Axes, entrant: Series, line: spectra.Line) -> None:
    look = entrant.look
    axes.plot(
        line.steps, line.values, color=look.color, linestyle=look.dashes, linewidth=1.6,
        marker=look.marker, markersize=3.5,
    )  # fmt: skip


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """A log axis that holds the values, with three to seven marks written as plain numbers."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    low, high = low / 1.2, high * 1.2
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    decades = math.log10(high / low)
    subs = (1, 2, 5) if decades < 2 else (1,)
    axes.yaxis.set_major_locator(LogLocator(10, subs=subs, numticks=8))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(False, axis="x")
