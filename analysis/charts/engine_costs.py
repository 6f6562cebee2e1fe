"""What each engine costs a process: memory by kind, traffic, and the time of a step by part.

Drawn where `make engines` has run. Black bars are what the formulas of planner/memory/layouts.py
say.
"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.charts import _style
from analysis.charts._bars import OPTIMIZER, Kind, Panel, drop_wide, stacks, totals
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._wording import device
from analysis.engines import REFERENCE, USUAL, Measured
from analysis.table import CHALLENGER

OF_RACE = False
ROW_IN = 0.4


def _bytes(column: str) -> Callable[[Measured], float]:
    return lambda point: float(getattr(point.run, column))


def _ms(part: str) -> Callable[[Measured], float]:
    return lambda point: point.step_ms(part)


MEMORY = (
    Kind("parameters", _bytes("param_bytes"), "#4B5A6B", "white"),
    Kind("gradients", _bytes("grad_bytes"), "#A9B6C3", _style.INK),
    Kind("optimizer state", _bytes("state_bytes"), OPTIMIZER, _style.INK),
)
STEP = (
    Kind("forward and backward", _ms("forward_backward"), "#4B5A6B", "white"),
    Kind("optimizer", _ms("optimizer"), OPTIMIZER, _style.INK),
    Kind("communication not hidden", _ms("communication"), "#7A5C8E", "white"),
)
SENT = (Kind("sent", lambda p: p.run.communication_bytes / p.run.steps, "#7A5C8E", "white"),)


def draw(inputs: Inputs) -> Figure:
    """A row for each engine, for one optimizer."""
    points = [p for p in inputs.on_engines if p.recipe == CHALLENGER]
    if not points:
        raise MissingDataError("no race on several engines; run: make engines")
    memory = _style.unit(max(totals(points, MEMORY)), _style.BYTES)
    sent = _style.unit(max(totals(points, SENT)), _style.BYTES)
    panels = (
        Panel(MEMORY, f"memory of a process ({memory.name})", memory),
        Panel(SENT, f"sent in a step ({sent.name})", sent),
        Panel(STEP, "a step (ms)", _style.Unit(1, "ms")),
    )
    figure = _style.new_figure(
        _title(points),
        "Parameters, gradients and optimizer state of the process that holds most; activations are "
        "the same on all engines. Black: what the formula says. A step of one process has the "
        "batch and the machine for itself.",
        _footer(points),
        ROW_IN * len(points) + 1.1,
    )
    inside = []
    every = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 3))
    for axes, panel in zip(every, panels, strict=True):
        inside += stacks(axes, points, panel)
        axes.set_xlabel(panel.label)
        axes.xaxis.set_major_locator(_style.ticks(4))
        axes.tick_params(axis="y", length=0)
    _formulas(every[0], points, memory, lambda p: _planned_memory(p))
    _formulas(every[1], points, sent, lambda p: p.planned.communication_bytes / p.run.steps)
    every[0].set_yticks(range(len(points)), [p.run.engine for p in points])
    every[0].set_ylim(len(points) - 0.5, -0.5)
    for axes, kinds in ((every[0], MEMORY), (every[2], STEP)):
        _legend(axes, kinds)
    drop_wide(figure, inside)
    return figure


def _planned_memory(point: Measured) -> float:
    planned = point.planned
    return planned.param_bytes + planned.grad_bytes + planned.state_bytes


def _formulas(
    axes: Axes, points: Sequence[Measured], unit: _style.Unit, of: Callable[[Measured], float]
) -> None:
    for row, point in enumerate(points):
        x = of(point) / unit.size
        axes.plot([x, x], [row - 0.38, row + 0.38], color=_style.INK, linewidth=1.6, zorder=5)


def _legend(axes: Axes, kinds: Sequence[Kind]) -> None:
    handles: list[Any] = [Rectangle((0, 0), 1, 1, color=kind.color) for kind in kinds]
    legend = axes.legend(
        handles=handles,
        labels=[kind.name for kind in kinds],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
        handlelength=1,
        handleheight=1,
    )
    legend.set_in_layout(False)
    axes.set_title("\n\n\n")  # keeps its lines free


def _title(points: Sequence[Measured]) -> str:
    usual = next((p for p in points if p.run.engine == USUAL), points[0])
    several = [p for p in points if p.run.engine not in (REFERENCE, USUAL)]
    if not several:
        return f"{points[0].name} on one engine"
    least = min(several, key=lambda p: totals([p], MEMORY)[0])
    share = totals([least], MEMORY)[0] / totals([usual], MEMORY)[0]
    title = (
        f"{usual.name} on {usual.run.world_size} processes: {least.run.engine} holds {share:.0%} "
        f"of the memory of {usual.run.engine}"
    )
    if least.price is None:
        return title
    return f"{title}, and its step takes {least.price.value:.2f}x as long"


def _footer(points: Sequence[Measured]) -> str:
    run = next((p.run for p in points if p.run.engine != REFERENCE), points[0].run)
    threads = f"{run.threads} {'thread' if run.threads == 1 else 'threads'}"
    return (
        f"Track {run.track} · 1 seed · {run.world_size} x {device(run)}, {threads} each, "
        f"{run.dtype}, {'compiled' if run.compiled else 'not compiled'}"
    )
