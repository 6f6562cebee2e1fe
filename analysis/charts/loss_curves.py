"""Validation loss against steps, tokens and seconds, and where each entrant meets the target."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._curves import (
    LABEL_IN,
    MANY,
    PANEL_IN,
    QUANTITIES,
    Quantity,
    Window,
    mean_curve,
    window_of,
)
from analysis.charts._inputs import Inputs, Series
from analysis.charts._wording import footer, significance_note
from analysis.pairs import UNITS
from analysis.report import change
from analysis.stats import costs, mean
from tracking.schema import DIVERGED, REACHED, Validation

OF_RACE = True
PANEL_WIDTH_IN = 2.5  # at least


@dataclass(frozen=True)
class Panel:
    """One set of axes, what its x axis counts, and its limits in units of that axis."""

    axes: Axes
    quantity: Quantity
    unit: _style.Unit
    right: float
    window: Window
    target: float

    def column(self, points: Sequence[Validation]) -> np.ndarray:
        """Where validations stand on the x axis."""
        return np.array([getattr(p, self.quantity.column) for p in points]) / self.unit.size


def draw(inputs: Inputs) -> Figure:
    """Three panels that share their y axis: mean and range over seeds, target, crossings."""
    window = window_of(inputs)
    caption = "Line: mean over seeds. Band: lowest to highest seed." if _repeated(inputs) else ""
    if any(entrant.cost("steps") for entrant in inputs.entrants):
        caption += (
            " Marker on the target and number below: mean over the runs that reached the target."
        )
    if any(run.status == DIVERGED for run in inputs.runs):
        caption += " Thin line that ends in a cross: a run that diverged."
    if len(inputs.entrants) >= MANY:
        caption += " Charts loss_by_steps and loss_by_seconds have a panel for each optimizer."
    height = PANEL_IN + LABEL_IN * len(inputs.entrants) + 0.6
    figure = _style.new_figure(_title(inputs), caption.strip(), footer(inputs), height)
    panels = figure.subplots(1, len(QUANTITIES), sharey=True)
    for axes, quantity in zip(panels, QUANTITIES.values(), strict=True):
        _panel(axes, inputs, quantity, window)
    panels[0].set_ylabel("validation loss (nats per token)", loc="top")
    ticks = _style.ticks(6).tick_values(window.floor, window.top)
    panels[0].set_yticks([t for t in ticks if window.floor <= t <= window.top])
    panels[0].set_ylim(window.bottom, window.top)
    return figure


def _repeated(inputs: Inputs) -> bool:
    return any(len(entrant.finished()) > 1 for entrant in inputs.entrants)


def _title(inputs: Inputs) -> str:
    ranking, target = inputs.ranking("steps"), f"{inputs.target:g}"
    winner = ranking[0]
    cost, loss = winner.cost("steps"), winner.final_loss()
    if cost is None:
        closest = f"; {winner.name} comes closest, at {loss:.3f}" if loss is not None else ""
        return f"No run reaches a validation loss of {target}{closest}"
    rival = next((e for e in [inputs.baseline, *ranking] if e and e is not winner), None)
    reaches = f"{winner.name} reaches loss {target}"
    if rival is None:
        return f"{reaches} after {_style.number(cost.value)} steps"
    steps, time = (inputs.pairs(unit).of(rival.label, winner.label).ratio for unit in UNITS)
    if rival.cost("steps") is None or steps is None or time is None:
        return f"{reaches} after {_style.number(cost.value)} steps; {rival.name} does not reach it"
    link = "and" if (steps.estimate.value > 1) == (time.estimate.value > 1) else "but"
    return (
        f"{reaches} in {change(steps, 'fewer')} steps {link} {change(time, 'less')} time "
        f"than {rival.name}{significance_note(inputs, rival, winner, 'steps', 'seconds')}"
    )


def _panel(axes: Axes, inputs: Inputs, quantity: Quantity, window: Window) -> None:
    largest = quantity.largest(inputs)
    unit = _style.unit(largest, quantity.units)
    panel = Panel(axes, quantity, unit, 1.03 * largest / unit.size, window, inputs.target)
    for entrant in inputs.entrants:
        _curves(panel, entrant)
    axes.axhline(panel.target, color=_style.INK, linewidth=1, dashes=(4, 2), zorder=1.5)
    axes.annotate(
        f"target {panel.target:g}",
        (0, panel.target),
        xytext=(3, 2),
        textcoords="offset points",
        size=_style.SMALL_PT,
    )
    _crossing_labels(panel, inputs.entrants)
    axes.set_xlim(0, panel.right)
    axes.set_xlabel(quantity.label.format(f" ({unit.name})" if unit.name else ""))
    axes.xaxis.set_major_locator(_style.ticks(5))
    axes.grid(False, axis="x")
    axes.spines.left.set_bounds(window.floor, window.top)


def _curves(panel: Panel, entrant: Series) -> None:
    axes, look = panel.axes, entrant.look
    means = mean_curve(entrant.finished(), panel.quantity.column)
    x = means.x / panel.unit.size
    axes.fill_between(x, means.low, means.high, color=look.color, alpha=0.22, linewidth=0)
    axes.plot(
        x,
        means.loss,
        color=look.color,
        linestyle=look.dashes,
        linewidth=1.6,
        marker=look.marker,
        markersize=3.5,
        markevery=max(1, len(x) // 8),
    )
    for run, curve in zip(entrant.runs, entrant.curves, strict=True):
        if run.status != DIVERGED or not curve:
            continue
        at, losses = panel.column(curve), [point.val_loss for point in curve]
        axes.plot(at, losses, color=look.color, linewidth=0.7, alpha=0.8)
        end = min(losses[-1], panel.window.top)
        axes.plot(at[-1], end, "x", color=look.color, markersize=7, mew=1.8, clip_on=False)


def _crossing_labels(panel: Panel, entrants: Sequence[Series]) -> None:
    """Drop lines from the crossings to a name and number each, one line of text below another.

    The earliest crossing has the uppermost line of text, so that the drop lines of the others
    pass to its right.
    """
    names = _style.short_names([entrant.label for entrant in entrants])
    met: dict[str, float] = {}
    for entrant in entrants:
        sample = costs(entrant.runs, panel.quantity.unit)
        values = [v for v, ok in zip(sample.spent, sample.reached, strict=True) if ok]
        if values:
            met[entrant.label] = mean(values).value / panel.unit.size
    order = sorted(entrants, key=lambda e: met.get(e.label, float("inf")))
    step = (panel.window.floor - panel.window.bottom) / (len(entrants) + 0.1 / LABEL_IN)
    for row, entrant in enumerate(order):
        y = panel.window.floor - (row + 0.6) * step
        _crossing_label(panel, entrant, names[entrant.label], met.get(entrant.label), y)


def _crossing_label(panel: Panel, entrant: Series, name: str, x: float | None, y: float) -> None:
    """One line of text, at loss y; x is the mean crossing, None when no run met the target."""
    look = entrant.look
    if x is None:
        text, end_pt = f"{name}: not reached", 10.0
        end, marker_y = panel.right, y
        marker_x = panel.right * (1 - end_pt / 2 / 72 / PANEL_WIDTH_IN)
    else:
        text, end_pt = f"{name} {_style.number(x)} {panel.unit.name}".rstrip(), 3.0
        reached = sum(run.status == REACHED for run in entrant.runs)
        text += f" ({reached}/{len(entrant.runs)})" if reached < len(entrant.runs) else ""
        end, marker_x, marker_y = x, x, panel.target
        panel.axes.plot([x, x], [panel.target, y], color=look.color, linewidth=1, zorder=1)
    panel.axes.plot(
        marker_x,
        marker_y,
        marker=look.marker,
        color=look.color,
        markersize=7,
        markeredgecolor="white",
        zorder=4,
    )
    width_in = _style.text_width_in(text, _style.SMALL_PT, bold=True) + 0.1
    note = panel.axes.annotate(
        text,
        (max(end, panel.right * width_in / PANEL_WIDTH_IN), y),
        xytext=(-end_pt, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        size=_style.SMALL_PT,
        weight="bold",
        color=look.text,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )
    note.set_in_layout(False)  # it lies within the axes
