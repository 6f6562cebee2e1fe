"""A panel of curves for each entrant: the body of charts loss_by_steps and loss_by_seconds."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._curves import MANY, QUANTITIES, Window, mean_curve, window_of
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._wording import footer
from tracking.schema import DIVERGED, REACHED

COLUMNS = 4
PANEL_IN = 1.55
OTHERS = "#CFCFCF"
HUES = {"adamw": "blue", "muon": "dark orange"}  # what captions call _style.RESERVED


def loss_by(inputs: Inputs, unit: str) -> Figure:
    """Loss against "steps" or "seconds": each entrant in front of all others."""
    if len(inputs.entrants) < MANY:
        raise MissingDataError(
            f"it needs {MANY} optimizers; loss_curves shows fewer; run: make compare"
        )
    quantity = QUANTITIES[unit]
    largest = quantity.largest(inputs)
    scale = _style.unit(largest, quantity.units)
    ranking, window = inputs.ranking(unit), window_of(inputs)
    rows = math.ceil(len(ranking) / COLUMNS)
    references = [e for e in inputs.entrants if e.label in _style.RESERVED]
    caption = (
        "Bold line and band: mean and range over the seeds of the optimizer that the panel names. "
        "Number: its cost to reach the target. Thin lines, in every panel: all other optimizers"
        + "".join(f", {e.name} in {HUES[e.label]}" for e in references)
        + f". Dashed: the target {inputs.target:g}. The panels are in order of cost."
    )
    figure = _style.new_figure(
        _title(inputs, ranking, unit), caption, footer(inputs), PANEL_IN * rows + 0.4
    )
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    means = {
        entrant.label: mean_curve(entrant.finished(), quantity.column)
        for entrant in inputs.entrants
    }
    for axes, entrant in zip(panels.flat, ranking, strict=False):
        for other in inputs.entrants:
            reserved = other.label in _style.RESERVED
            color, front = (other.look.color, 2) if reserved else (OTHERS, 1)
            curve = means[other.label]
            if other is not entrant:
                x = curve.x / scale.size
                axes.plot(x, curve.loss, color=color, linewidth=0.9, zorder=front)
        curve, color = means[entrant.label], entrant.look.color
        x = curve.x / scale.size
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.3, linewidth=0)
        axes.plot(x, curve.loss, color=color, linewidth=2.2, zorder=3)
        _diverged(axes, entrant, quantity.column, scale.size, window)
        axes.axhline(inputs.target, color=_style.INK, linewidth=0.8, dashes=(4, 2), zorder=1.5)
        axes.set_title(f"{names[entrant.label]}\n{_cost(entrant, unit)}", color=entrant.look.text)
        axes.set_xlim(0, 1.03 * largest / scale.size)
        axes.set_ylim(window.floor, window.top)
        axes.xaxis.set_major_locator(_style.ticks(4))
    for axes in panels.flat[len(ranking) :]:
        axes.set_visible(False)
    last = panels.flat[len(ranking) - COLUMNS : len(ranking)]
    for axes in last:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(quantity.label.format(f" ({scale.name})" if scale.name else ""))
    for axes in panels[:, 0]:
        axes.set_ylabel("validation loss")
    return figure


def _diverged(axes: Axes, entrant: Series, column: str, size: float, window: Window) -> None:
    """Thin lines of the runs that diverged, to a cross."""
    for run, curve in zip(entrant.runs, entrant.curves, strict=True):
        if run.status == DIVERGED and curve:
            x = [getattr(point, column) / size for point in curve]
            y = [point.val_loss for point in curve]
            axes.plot(x, y, color=entrant.look.color, linewidth=0.7)
            end = min(y[-1], window.top)
            axes.plot(x[-1], end, "x", color=entrant.look.color, ms=6, mew=1.6, clip_on=False)


def _cost(entrant: Series, unit: str) -> str:
    """What the target costs an entrant, and how many of its runs reached it where not all did."""
    cost, runs = entrant.cost(unit), entrant.runs
    reached = sum(run.status == REACHED for run in runs)
    if cost is None:
        return "diverged" if all(run.status == DIVERGED for run in runs) else "missed"
    tally = f", {reached} of {len(runs)} runs" if reached < len(runs) else ""
    value = (
        _style.unit(cost.value, _style.SECONDS) if unit == "seconds" else _style.Unit(1, "steps")
    )
    return f"{_style.number(cost.value / value.size)} {value.name}{tally}"


def _title(inputs: Inputs, ranking: Sequence[Series], unit: str) -> str:
    first, *others = ranking
    if first.cost(unit) is None:
        return "No run reaches the target"
    always = sum(all(run.status == REACHED for run in e.runs) for e in ranking)
    some = sum(e.cost(unit) is not None for e in ranking) - always
    tally = f"{always} of {len(ranking)} optimizers reach the target in all runs"
    tally += f", {some} in some" if some else ""
    pairs = inputs.pairs(unit)
    known = [(e, pair) for e in others if (pair := pairs.of(e.label, first.label)).ratio]
    near = [e.name for e, pair in known if not pair.distinct]
    alike = near[0] if len(near) == 1 else f"{len(near)} others"
    told = f", not distinguishable from {alike}" if near else ", ahead of all others that reach it"
    least = "the fewest steps" if unit == "steps" else "the least time"
    return f"{tally}; {first.name} takes {least} ({_cost(first, unit)}){told}"
