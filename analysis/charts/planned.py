"""What the planner predicts against what was measured: bytes of all engines, and times of a step.

Drawn where `make planned` has run.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import engines
from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._wording import device
from analysis.planned import TIME_TOLERANCE, Predicted, error
from tracking.schema import StepTime
from tracking.spelling import display_name

OF_RACE = False
ROW_IN = 0.22
NAMES = {
    "param_bytes": "parameters",
    "grad_bytes": "gradients",
    "state_bytes": "optimizer state",
    "communication_bytes": "sent in all steps",
}


def draw(inputs: Inputs) -> Figure:
    """Bytes as points on a diagonal; a row for the time of each engine, optimizer and number."""
    found = inputs.predictions
    if not found:
        raise MissingDataError("no predictions of the planner; run: make planned")
    caption = "bytes of the process that has most; on the line, prediction and count are equal."
    if found.times:
        caption = (
            f"Left: {caption} Right: engine, optimizer and processes; a bar is the median over "
            "turns, black is what was predicted, and its whiskers are "
            f"{TIME_TOLERANCE:.0%} of the bar."
        )
    body_in = max(3.2, ROW_IN * len(found.times) + 0.7)
    figure = _style.new_figure(
        _title(found), caption[0].upper() + caption[1:], _footer(found), body_in
    )
    if found.times:
        left, right = figure.subplots(1, 2, width_ratios=(4, 5))
        _times(right, found.times)
    else:
        left = figure.subplots()
    _bytes(left, found)
    return figure


def _bytes(axes: Axes, found: Predicted) -> None:
    looks = _style.looks_in_order([*NAMES.values()])
    pairs = {
        kind: [(getattr(run, kind), getattr(plan, kind)) for run, plan in found.runs]
        for kind in engines.KINDS
    }
    most = max(value for each in pairs.values() for pair in each for value in pair)
    unit = _style.unit(most, _style.BYTES)
    shown = {
        kind: [(held / unit.size, said / unit.size) for held, said in each if held and said]
        for kind, each in pairs.items()
    }
    every = [value for each in shown.values() for pair in each for value in pair]
    ends = (min(every) / 1.3, max(every) * 1.3)
    axes.plot(ends, ends, color=_style.INK, linewidth=0.8, zorder=1)
    for kind, each in shown.items():
        look = looks[NAMES[kind]]
        axes.plot(
            *zip(*each, strict=True),
            look.marker,
            color=look.color,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=NAMES[kind],
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter(lambda value, _: "")
    axes.set_xlabel(f"counted ({unit.name})")
    axes.set_ylabel(f"predicted ({unit.name})")
    axes.legend(loc="upper left")


def _times(axes: Axes, times: Sequence[StepTime]) -> None:
    looks = _style.looks(dict.fromkeys(row.recipe for row in times))
    for place, row in enumerate(times):
        axes.barh(place, row.measured_ms, height=0.7, color=looks[row.recipe].color)
        axes.errorbar(
            row.predicted_ms, place, xerr=TIME_TOLERANCE * row.measured_ms, fmt="|",
            color=_style.INK, markersize=8, markeredgewidth=1.6, elinewidth=0.7, zorder=5,
        )  # fmt: skip
    axes.set_yticks(range(len(times)), [_name(row) for row in times])
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("a step (ms)")
    axes.xaxis.set_major_locator(_style.ticks(5))


def _name(row: StepTime) -> str:
    return f"{row.engine}, {display_name(row.recipe)}, {row.processes}"


def _title(found: Predicted) -> str:
    worst = max((abs(e) for pair in found.runs for e in engines.errors(*pair).values()), default=0)
    title = f"The bytes of {len(found.runs)} runs are predicted within {worst:.1%}"
    if not found.times:
        return title
    late = max(abs(error(row)) for row in found.times)
    return f"{title}, the step times of {len(found.times)} within {late:.0%}"


def _footer(found: Predicted) -> str:
    run = found.runs[-1][0]
    counts = sorted({run.world_size for run, _ in found.runs})
    return (
        f"The model of track tiny · {counts[0]} to {counts[-1]} processes of one thread on "
        f"{device(run)}, {run.dtype}, not compiled"
    )
