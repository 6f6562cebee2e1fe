"""What the target costs each optimizer, in steps and in training time."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._inputs import Inputs, Series
from analysis.charts._wording import footer, interval
from analysis.stats import Estimate, costs
from tracking.schema import DIVERGED, MISSED, REACHED

OF_RACE = True
ROW_IN = 0.62  # at least, for an entrant


def draw(inputs: Inputs) -> Figure:
    """A row for each entrant, cheapest in seconds first: every run, the mean and its interval."""
    ranking = inputs.ranking("seconds")
    row_in = max(ROW_IN, _style.row_height_in([e.label for e in ranking]) + 0.12)
    figure = _style.new_figure(
        _title(inputs), _caption(inputs), footer(inputs), row_in * len(ranking) + 0.75
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("steps", "seconds"), strict=True):
        _costs_panel(axes, inputs, ranking, unit)
    _style.row_labels(panels[0], [e.label for e in ranking], {e.label: e.look for e in ranking})
    panels[1].tick_params(axis="y", length=0)
    return figure


def _caption(inputs: Inputs) -> str:
    statuses = {run.status for run in inputs.runs}
    parts = []
    if REACHED in statuses:
        parts.append("Filled marker: a run that reached the target.")
    if MISSED in statuses:
        parts.append("Open marker: a run that missed the target, at all that it spent.")
    if DIVERGED in statuses:
        parts.append("Cross: a run that diverged, at what it spent until then.")
    if REACHED in statuses:
        repeated = any(len(entrant.runs) > 1 for entrant in inputs.entrants)
        whisker = " and its 95% interval, cut off at the edge of the panel"
        parts.append(f"Bar and numbers: mean{whisker if repeated else ''}.")
        if statuses != {REACHED}:
            parts.append(
                "Where runs failed: what all runs spent, divided by the number of runs that "
                "reached the target, without an interval."
            )
    return " ".join(parts)


def _title(inputs: Inputs) -> str:
    target = f"{inputs.target:g}"
    ranking = inputs.ranking("seconds")
    winner = ranking[0]
    if winner.cost("seconds") is None:
        return f"No run reaches loss {target}"
    title = f"{winner.name} takes {_steps_and_time(winner)} to reach loss {target}"
    rival = next((e for e in [inputs.baseline, *ranking] if e and e is not winner), None)
    if rival is None:
        return title
    if rival.cost("seconds") is None:
        return f"{title}; {rival.name} does not reach it"
    failed = any(run.status != REACHED for e in (winner, rival) for run in e.runs)
    counted = ", failed runs included" if failed else ""
    return f"{title}, {rival.name} {_steps_and_time(rival)}{counted}"


def _steps_and_time(entrant: Series) -> str:
    steps, seconds = entrant.cost("steps"), entrant.cost("seconds")
    assert steps is not None and seconds is not None
    unit = _style.unit(seconds.value, _style.SECONDS)
    time = _style.number(seconds.value / unit.size)
    return f"{_style.number(steps.value)} steps and {time}\N{NO-BREAK SPACE}{unit.name}"


def _costs_panel(axes: Axes, inputs: Inputs, entrants: Sequence[Series], quantity: str) -> None:
    spent = [v for e in entrants for v in costs(e.runs, quantity).spent]
    expected = [cost.value for e in entrants if (cost := e.cost(quantity))]
    shown = [*spent, *(cost for cost in expected if cost < inputs.largest_on_axis(quantity))]
    low, high = min(shown), max(shown) or 1.0
    units = _style.SECONDS if quantity == "seconds" else (_style.Unit(1, ""),)
    unit = _style.unit(high, units)
    margin = max(0.08 * (high - low), 0.02 * high)
    axes.set_xlim(max(0, low - margin) / unit.size, (high + margin) / unit.size)
    for row, entrant in enumerate(entrants):
        _cost_row(axes, row, entrant, quantity, unit)
    name = "optimizer steps to target" if quantity == "steps" else "training time to target"
    axes.set_xlabel(f"{name} ({unit.name})" if unit.name else name)
    axes.xaxis.set_major_locator(_style.ticks(6))
    axes.grid(False, axis="y")


def _cost_row(axes: Axes, row: int, entrant: Series, quantity: str, unit: _style.Unit) -> None:
    look = entrant.look
    spent = np.array(costs(entrant.runs, quantity).spent) / unit.size
    lanes = (
        row - 0.2 + 0.1 * (np.arange(len(spent)) % 3 - 1)
    )  # so that equal runs do not hide each other
    for x, y, run in zip(spent, lanes, entrant.runs, strict=True):
        filled = run.status == REACHED
        marker = "x" if run.status == DIVERGED else look.marker
        axes.plot(
            x,
            y,
            marker=marker,
            markersize=6,
            color=look.color,
            markerfacecolor=look.color if filled else "white",
            markeredgecolor="white" if filled else look.color,
            markeredgewidth=0.6 if filled else 1.5,
            clip_on=False,
        )
    cost = entrant.cost(quantity)
    if cost is None:
        text = "not reached"
    else:
        cost = _scaled(cost, unit)
        text = f"{_style.number(cost.value)}\n{interval(cost, _style.number)}"
        if cost.low is not None and cost.high is not None:
            axes.plot([cost.low, cost.high], [row + 0.17] * 2, color=look.color, linewidth=2)
        axes.plot([cost.value] * 2, [row + 0.06, row + 0.28], color=look.color, linewidth=3)
    axes.text(
        1.02,
        row,
        text.strip(),
        transform=axes.get_yaxis_transform(),
        size=_style.SMALL_PT,
        color=look.text,
        va="center",
        linespacing=_style.LINE_SPACING,
    )


def _scaled(estimate: Estimate, unit: _style.Unit) -> Estimate:
    low, high = (None if x is None else x / unit.size for x in (estimate.low, estimate.high))
    return Estimate(estimate.value / unit.size, low, high, estimate.n)
