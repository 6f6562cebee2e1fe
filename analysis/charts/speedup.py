"""The speed-up of each optimizer over AdamW as the product of its two factors."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._ratios import Decomposition, decompose, mark_ratios
from analysis.charts._wording import footer, interval, significance_note
from analysis.league import multiple
from analysis.report import change
from analysis.stats import Estimate

OF_RACE = True
BAR_IN = 0.26
MOST = 6  # entrants whose speed-up is taken apart


def draw(inputs: Inputs) -> Figure:
    """Three bars for each challenger on a log axis: the first two, end to end, make the third."""
    baseline = inputs.baseline
    if baseline is None or len(inputs.entrants) < 2:
        raise MissingDataError(
            "it needs adamw and another optimizer; run: python speedrun.py adamw muon"
        )
    others = [e for e in inputs.ranking("seconds") if e is not baseline]
    prices = {e.label: inputs.prices.of(baseline.label, e.label) for e in others}
    found = [(e, s) for e in others if (s := decompose(baseline, e, prices[e.label])) is not None]
    if not found:
        raise MissingDataError(
            f"{baseline.name} and another optimizer must both reach {inputs.target:g}, and runs "
            "that miss must bound both ratios or none; run: make tune"
        )
    caption = (
        f"Ratios to {baseline.name} on a log axis, above 1 where the optimizer is better than "
        f"{baseline.name}. The bar for steps and the bar for the cost of a step, end to end, give "
        "the bar for time."
    )
    if any(parts.clock.estimate.low is not None for _, parts in found):
        caption += " Whiskers: 95% intervals."
    shown = {entrant.label for entrant, _ in found}
    left_out = [entrant.name for entrant in others if entrant.label not in shown]
    if left_out:
        caption += f" Left out, because runs did not reach the target: {', '.join(left_out)}."
    if len(found) > MOST:
        caption += f" Shown are the {MOST} fastest of {len(found)}; chart significance has all."
        found = found[:MOST]
    if any(parts.clock.bound for _, parts in found):
        caption += (
            ' "over" and "under" mark bounds, where the slower optimizer missed the target in some '
            "runs; the whiskers there are intervals of the bounds."
        )
    figure = _style.new_figure(
        _speedup_title(inputs, baseline, *found[0]),
        caption,
        footer(inputs),
        4 * BAR_IN * len(found) + 0.6,
    )
    axes = figure.subplots()
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    for index, (entrant, parts) in enumerate(found):
        _waterfall(axes, 4 * index, names[entrant.label], entrant.look, parts)
    _ratio_axis(axes, found, baseline.name)
    return figure


def _speedup_title(inputs: Inputs, baseline: Series, entrant: Series, parts: Decomposition) -> str:
    return (
        f"{entrant.name} is {multiple(parts.clock)} as fast as {baseline.name}: "
        f"{change(parts.samples, 'fewer')} steps, each {1 / parts.step.value:.2f}x as long"
        f"{significance_note(inputs, baseline, entrant, 'seconds')}"
    )


def _waterfall(axes: Axes, top: int, name: str, look: _style.Look, parts: Decomposition) -> None:
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
        # A bar that does not start at 1 cannot be read off the axis: only its numbers are shown.
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


def _ratio_axis(axes: Axes, found: Sequence[tuple[Series, Decomposition]], baseline: str) -> None:
    ends = [1.0]
    ticks, labels = [], []
    for index, (_, parts) in enumerate(found):
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
    mark_ratios(axes.xaxis, low, high, most=9)
    axes.axvline(1, color=_style.INK, linewidth=1)
    axes.set_yticks(ticks, labels)
    axes.set_ylim(4 * len(found) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines.left.set_visible(False)
    axes.set_xlabel(f"speed-up over {baseline} (ratio, log scale)")
