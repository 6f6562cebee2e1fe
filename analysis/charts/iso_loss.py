"""Speed-up over AdamW at every validation loss, from the curves of a race."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.along import Curve, costs_of_loss
from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._ratios import mark_ratios
from analysis.charts._wording import footer, significance_note
from analysis.stats import Costs, Estimate, speedup
from tracking.schema import DIVERGED, REACHED

OF_RACE = True
COLUMNS = 4
LOSSES = 48  # at which the ratio is taken
DASHES = (0, (4, 1.6))


def draw(inputs: Inputs) -> Figure:
    """A panel for each challenger: the baseline's cost of a loss over its own."""
    baseline = inputs.baseline
    others = [e for e in inputs.ranking("seconds") if e is not baseline]
    if baseline is None or not others:
        raise MissingDataError(
            "it needs adamw and another optimizer; run: python speedrun.py adamw muon"
        )
    losses = _losses(inputs, baseline)
    prices = {e.label: inputs.prices.of(baseline.label, e.label) for e in others}
    lines = {e.label: _lines(baseline, e, losses, prices[e.label]) for e in others}
    shown = {label: found for label, found in lines.items() if found["steps"]}
    if not shown:
        raise MissingDataError("no loss that two optimizers both reach; run: make compare")
    drawn = [entrant for entrant in others if entrant.label in shown]
    columns = min(COLUMNS, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    left_out = ", ".join(entrant.name for entrant in others if entrant not in drawn)
    figure = _style.new_figure(
        _title(inputs, baseline, drawn[0], shown[drawn[0].label]),
        f"{baseline.name}'s cost to reach a validation loss, divided by the optimizer's cost. "
        "Solid: in seconds, with its 95% interval. Dashed: in steps. Vertical line: the target. A "
        "loss is shown where all runs of both reached it; diverged runs are left out. Schedules "
        "end near the target, so at higher losses the lr is still high, and an optimizer whose lr "
        "falls later looks slower there than with a schedule made for that loss. Only the ratio at "
        "the target is the race's result, and only where all runs of both reached the target."
        f"{f' Reaches no loss of the range: {left_out}.' if left_out else ''}",
        footer(inputs),
        (1.65 if rows > 1 else 2.8) * rows + 0.5,
    )
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    for axes, entrant in zip(panels.flat, drawn, strict=False):
        _panel(axes, entrant, names[entrant.label], shown[entrant.label], inputs.target)
    for axes in panels.flat[len(drawn) :]:
        axes.set_visible(False)
    for axes in panels.flat[len(drawn) - columns : len(drawn)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("validation loss reached")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"times {baseline.name}")
    _scales(panels[0, 0], losses, list(shown.values()))
    return figure


Lines = dict[str, list[tuple[float, Estimate]]]  # by unit: loss and ratio, losses falling


def _losses(inputs: Inputs, baseline: Series) -> np.ndarray:
    """Losses of the x axis, falling: from early in the baseline's runs to their end."""
    curves = [curve for curve in baseline.finished() if curve]
    if not curves:
        raise MissingDataError(f"every run of {baseline.name} diverged; run: make tune")
    early = min(float(np.interp(0.25 * c[-1].step, *_xy(c))) for c in curves)
    last = max(min(point.val_loss for point in curve) for curve in curves)
    grid = np.linspace(max(early, last + 0.05), last, LOSSES)
    inside = last <= inputs.target <= grid[0]
    return np.sort(np.append(grid, inputs.target if inside else []))[::-1]


def _xy(curve: Sequence) -> tuple[list[float], list[float]]:
    return [point.step for point in curve], [point.val_loss for point in curve]


def _lines(baseline: Series, entrant: Series, losses: np.ndarray, price: Estimate | None) -> Lines:
    """price: of the entrant's step over the baseline's; None if the two did not take turns."""
    lines: Lines = {"steps": [], "seconds": []}
    for loss in losses.tolist():
        for unit, line in lines.items():
            rate = price if unit == "seconds" else None
            counted = "steps" if rate else unit
            a, b = _costs(baseline, counted, loss), _costs(entrant, counted, loss)
            ratio = None if a is None or b is None else speedup(a, b, rate)
            if ratio is not None:
                line.append((loss, ratio.estimate))
    return lines


def _costs(entrant: Series, unit: str, loss: float) -> Costs | None:
    """What the runs that did not diverge spent to a loss; None unless all of them met it.

    Also None where a run is there at its first validation already: what it spent is unknown.
    """
    curves = [
        Curve(
            [p.step if unit == "steps" else p.train_seconds for p in curve],
            [p.val_loss for p in curve],
        )
        for curve in entrant.finished()
    ]
    costs = costs_of_loss(curves, loss)
    return costs if costs is not None and all(costs.reached) else None


def _title(inputs: Inputs, baseline: Series, entrant: Series, lines: Lines) -> str:
    ratios, target = dict(lines["seconds"]), f"{inputs.target:g}"
    loss = min(ratios)
    statuses = {run.status for e in (baseline, entrant) for run in e.runs}
    if statuses == {REACHED} and inputs.target in ratios:
        loss, where = inputs.target, f"the target {target}"
        note = significance_note(inputs, baseline, entrant, "seconds")
    else:
        where = f"loss {loss:.3f}"
        left_out = "; diverged runs are left out" if DIVERGED in statuses else ""
        note = f" (not all runs of both reach {target}{left_out})"
    ratio = ratios[loss].value
    return f"{entrant.name} is {ratio:.2f}x as fast as {baseline.name} to {where}{note}"


def _panel(axes: Axes, entrant: Series, name: str, lines: Lines, target: float) -> None:
    look = entrant.look
    x = [loss for loss, _ in lines["seconds"]]
    low = [r.value if r.low is None else r.low for _, r in lines["seconds"]]
    high = [r.value if r.high is None else r.high for _, r in lines["seconds"]]
    axes.fill_between(x, low, high, color=look.color, alpha=0.22, linewidth=0)
    axes.plot(x, [r.value for _, r in lines["seconds"]], color=look.color, linewidth=1.8)
    steps = lines["steps"]
    axes.plot(
        [loss for loss, _ in steps], [r.value for _, r in steps],
        color=look.color, linewidth=1.2, linestyle=DASHES,
    )  # fmt: skip
    axes.axhline(1, color=_style.INK, linewidth=0.8)
    axes.axvline(target, color=_style.MUTED, linewidth=0.8, dashes=(4, 2))
    axes.set_title(name, color=look.text)


def _scales(axes: Axes, losses: np.ndarray, shown: Sequence[Lines]) -> None:
    ratios = [r for lines in shown for line in lines.values() for _, r in line]
    values = [r.value for r in ratios]
    widest = 1.3 * max(values)  # of a band that is shown whole
    values += [min(r.high, widest) for r in ratios if r.high is not None]
    span = max(max(*values, 1.0) / min(*values, 1.0), 1.1)
    low, high = min(*values, 1.0) / span**0.12, max(*values, 1.0) * span**0.06
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    mark_ratios(axes.yaxis, low, high, most=7)
    margin = 0.03 * (losses[0] - losses[-1])
    axes.set_xlim(losses[0] + margin, losses[-1] - margin)  # towards lower losses
    axes.xaxis.set_major_locator(_style.ticks(4))
