"""What the target costs each entrant, and the speed-up as the product of its two factors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from analysis.charts import _style
from analysis.charts._inputs import Entrant, Inputs, MissingDataError, Split, split
from analysis.charts._wording import doubt, footer, interval
from analysis.league import multiple
from analysis.report import change
from analysis.stats import Estimate, costs
from tracking.schema import DIVERGED, MISSED, REACHED

ROW_IN = 0.62  # at least, for an entrant
BAR_IN = 0.26
MOST = 6  # entrants whose speed-up is taken apart
FAR = 1.5  # times the longest run: an expected cost beyond it is off the axis

# Marks of a logarithmic axis of ratios; the first set with few enough of them in range is used.
RATIO_TICKS = (
    tuple(round(0.5 + 0.05 * i, 2) for i in range(51)),
    tuple(round(0.1 + 0.1 * i, 1) for i in range(50)),
    (0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10),
    (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100),
)


# ---- Time to target ----------------------------------------------------------------------------


def time_to_target(inputs: Inputs) -> Figure:
    """A row for each entrant, cheapest in seconds first: every run, the mean and its interval."""
    ranking = inputs.ranking("seconds")
    row_in = max(ROW_IN, _style.row_height_in([e.label for e in ranking]) + 0.12)
    figure = _style.sheet(
        _title(inputs), _caption(inputs), footer(inputs), row_in * len(ranking) + 0.75
    )
    panels = figure.subplots(1, 2, sharey=True)
    for axes, unit in zip(panels, ("steps", "seconds"), strict=True):
        _costs_panel(axes, ranking, unit)
    _style.row_labels(panels[0], [e.label for e in ranking], {e.label: e.look for e in ranking})
    panels[1].tick_params(axis="y", length=0)
    return figure


def _caption(inputs: Inputs) -> str:
    statuses = {run.status for run in inputs.runs}
    parts = []
    if REACHED in statuses:
        parts.append("Filled: a run that reached the target.")
    if MISSED in statuses:
        parts.append("Open: one that missed it, at all that it spent.")
    if DIVERGED in statuses:
        parts.append("Cross: one that diverged, at what it spent.")
    if REACHED in statuses:
        repeated = any(len(entrant.runs) > 1 for entrant in inputs.entrants)
        shared = (
            "; where runs failed, what all of them spent over the number that reached, which gives "
            "no interval"
        )
        whisker = " and its 95% interval, cut off at the edge"
        parts.append(
            f"Bar and numbers: mean{whisker if repeated else ''}"
            f"{shared if statuses != {REACHED} else ''}."
        )
    return " ".join(parts)


def _title(inputs: Inputs) -> str:
    target = f"{inputs.target:g}"
    ranking = inputs.ranking("seconds")
    winner = ranking[0]
    if winner.cost("seconds") is None:
        return f"No run reaches loss {target}"
    title = f"{winner.name} takes {_steps_and_time(winner)} to loss {target}"
    rival = next((e for e in [inputs.baseline, *ranking] if e and e is not winner), None)
    if rival is None:
        return title
    if rival.cost("seconds") is None:
        return f"{title}; {rival.name} does not reach it"
    failed = any(run.status != REACHED for e in (winner, rival) for run in e.runs)
    counted = ", failed runs counted" if failed else ""
    return f"{title}, {rival.name} {_steps_and_time(rival)}{counted}"


def _steps_and_time(entrant: Entrant) -> str:
    steps, seconds = entrant.cost("steps"), entrant.cost("seconds")
    assert steps is not None and seconds is not None
    unit = _style.unit(seconds.value, _style.SECONDS)
    time = _style.number(seconds.value / unit.size)
    return f"{_style.number(steps.value)} steps and {time}\N{NO-BREAK SPACE}{unit.name}"


def _costs_panel(axes: Axes, entrants: Sequence[Entrant], quantity: str) -> None:
    spent = [v for e in entrants for v in costs(e.runs, quantity).spent]
    expected = [cost.value for e in entrants if (cost := e.cost(quantity))]
    # That of an entrant which nearly always failed is far beyond all runs: it stands as a number.
    shown = [*spent, *(cost for cost in expected if cost < FAR * max(spent))]
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


def _cost_row(axes: Axes, row: int, entrant: Entrant, quantity: str, unit: _style.Unit) -> None:
    look = entrant.look
    spent = np.array(costs(entrant.runs, quantity).spent) / unit.size
    lanes = row - 0.2 + 0.1 * (np.arange(len(spent)) % 3 - 1)  # so that like runs do not hide
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


# ---- Speed-up ----------------------------------------------------------------------------------


def speedup(inputs: Inputs) -> Figure:
    """Three bars for each challenger on a log axis: the first two, end to end, make the third."""
    baseline = inputs.baseline
    if baseline is None or len(inputs.entrants) < 2:
        raise MissingDataError(
            "it needs adamw and another entrant; run: python speedrun.py adamw muon"
        )
    others = [e for e in inputs.ranking("seconds") if e is not baseline]
    splits = [(e, s) for e in others if (s := split(baseline, e)) is not None]
    if not splits:
        raise MissingDataError(
            f"{baseline.name} and another entrant must both reach {inputs.target:g}, and misses "
            "must bound both ratios or none; run: python speedrun.py tune adamw muon"
        )
    caption = (
        f"Ratios to {baseline.name}, above 1 where the entrant is ahead, on a log axis: the bar of "
        "the steps and that of the step's cost, end to end, give that of the time."
    )
    if any(parts.clock.estimate.low is not None for _, parts in splits):
        caption += " Whiskers: 95% intervals."
    shown = {entrant.label for entrant, _ in splits}
    left_out = [entrant.name for entrant in others if entrant.label not in shown]
    if left_out:
        caption += f" Left out, as runs missed the target: {', '.join(left_out)}."
    if len(splits) > MOST:
        caption += f" Shown are the {MOST} fastest of {len(splits)}; all are in chart significance."
        splits = splits[:MOST]
    if any(parts.clock.bound for _, parts in splits):
        caption += (
            " Over and under: bounds, as the slower one missed the target in some runs; theirs are "
            "the whiskers."
        )
    figure = _style.sheet(
        _speedup_title(inputs, baseline, *splits[0]),
        caption,
        footer(inputs),
        4 * BAR_IN * len(splits) + 0.6,
    )
    axes = figure.subplots()
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    for index, (entrant, parts) in enumerate(splits):
        _waterfall(axes, 4 * index, names[entrant.label], entrant.look, parts)
    _ratio_axis(axes, splits, baseline.name)
    return figure


def _speedup_title(inputs: Inputs, baseline: Entrant, entrant: Entrant, parts: Split) -> str:
    return (
        f"{entrant.name} is {multiple(parts.clock)} as fast as {baseline.name}: "
        f"{change(parts.samples, 'fewer')} steps, each {1 / parts.step.value:.2f}x as long"
        f"{doubt(inputs, baseline, entrant, 'seconds')}"
    )


def _waterfall(axes: Axes, top: int, name: str, look: _style.Look, parts: Split) -> None:
    samples, clock = parts.samples.estimate, parts.clock.estimate
    middle = samples.value
    bars: tuple[tuple[Estimate, str, float, dict[str, Any]], ...] = (
        (samples, multiple(parts.samples), 1.0, {"alpha": 0.45}),
        (parts.step, f"{parts.step.value:.2f}x", middle, {"alpha": 0.45, "hatch": "////"}),
        (clock, multiple(parts.clock), 1.0, {}),
    )
    axes.annotate(
        name,
        (1.0, top),
        xytext=(3, 0),
        textcoords="offset points",
        size=_style.BODY_PT,
        weight="bold",
        color=look.text,
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
    )
    for offset, (ratio, value, start, shade) in enumerate(bars, start=1):
        y, end = top + offset, start * ratio.value
        axes.barh(
            y,
            end - start,
            left=start,
            height=0.62,
            color=look.color,
            edgecolor="white" if "hatch" in shade else look.color,
            linewidth=0,
            **shade,
        )
        # The one that starts elsewhere could not be read off the axis: its numbers stand beside it.
        if start == 1.0 and ratio.low is not None and ratio.high is not None:
            axes.plot([ratio.low, ratio.high], [y, y], color=_style.INK, lw=1.2)
            for x in (ratio.low, ratio.high):
                axes.plot([x, x], [y - 0.13, y + 0.13], color=_style.INK, lw=1.2)
        text = f"{value}   {interval(ratio, '{:.2f}'.format)}"
        axes.text(
            1.01,
            y,
            text.strip(),
            transform=axes.get_yaxis_transform(),
            size=_style.SMALL_PT,
            va="center",
        )
    for x, first in ((middle, 1), (middle * parts.step.value, 2)):
        axes.plot([x, x], [top + first, top + first + 1], color=_style.MUTED, lw=0.8, ls=":")


def _ratio_axis(axes: Axes, splits: Sequence[tuple[Entrant, Split]], baseline: str) -> None:
    ends = [1.0]
    ticks, labels = [], []
    for index, (_, parts) in enumerate(splits):
        samples, clock = parts.samples.estimate, parts.clock.estimate
        for ratio in (samples, clock):
            ends += [x for x in (ratio.value, ratio.low, ratio.high) if x is not None]
        ticks += [4 * index + offset for offset in (1, 2, 3)]
        labels += [
            "steps (sample efficiency)",
            "× steps per second (step cost)",
            "= time (wall clock)",
        ]
    axes.set_xscale("log")
    span = max(max(ends) / min(ends), 1.1)
    low, high = min(ends) / span**0.06, max(ends) * span**0.06
    axes.set_xlim(low, high)
    chosen = [[t for t in marks if low <= t <= high] for marks in RATIO_TICKS]
    marks = next((c for c in chosen if 2 <= len(c) <= 9), chosen[-1])
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.axvline(1, color=_style.INK, linewidth=1)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(4 * len(splits) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines.left.set_visible(False)
    axes.set_xlabel(f"speed-up over {baseline} (ratio, log scale)")
