"""The timeline of a step: what a few ranks compute and send, and when, for some strategies.

python -m planner step deepseek-v4 --strategy sharded fsdp2 --timeline step.png
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from analysis.charts import _style
from planner.plans import Plan
from planner.step.steps import StepCost, step_cost
from planner.step.streams import (
    BACKWARD,
    COMPUTE,
    FORWARD,
    GRADIENTS,
    MATRICES,
    ORTHOGONALISE,
    PARAMETERS,
    PIPELINE,
    UPDATE,
    Span,
)
from planner.time.step_time import duration
from tracking.spelling import display_name

MOST = 4  # strategies of one picture
WHOLE = 0.4  # share of a step that its end must have to be seen without a lens
APART = 1 / 500  # of the width of a picture: what an eye tells apart
LANE = 0.42  # height of a lane, in rows
# kind: what the legend calls it, its colour
KINDS = {
    FORWARD: ("forward", "#56B4E9"),
    BACKWARD: ("backward", "#0072B2"),
    PIPELINE: ("bubble of the pipeline", "#BDBDBD"),
    ORTHOGONALISE: ("orthogonalisation", "#D55E00"),
    UPDATE: ("update of weights", "#E69F00"),
    GRADIENTS: ("gradients", "#009E73"),
    MATRICES: ("matrices to orthogonalise", "#882255"),
    PARAMETERS: ("parameters", "#CC79A7"),
}
UNITS = (_style.Unit(1e-6, "us"), _style.Unit(1e-3, "ms"), _style.Unit(1, "s"))


def draw(plan: Plan, strategies: Sequence[str]) -> Figure:
    """The plan's optimizer in some strategies."""
    return draw_costs(
        [
            step_cost(
                plan.model, plan.rule, strategy, plan.cluster, plan.setting, plan.iteration, draws=1
            )
            for strategy in strategies
        ]
    )


def draw_costs(costs: Sequence[StepCost]) -> Figure:
    """Some strategies below each other, on one axis of time."""
    stops = [_stop(cost) for cost in costs]
    begin, stop = _window(costs), max(stops)
    least = min(range(len(costs)), key=lambda each: stops[each])
    first = costs[0]
    ending = f"the last {duration(stop - begin)} of " if begin else ""
    figure = _style.new_figure(
        f"{first.model} with {display_name(first.optimizer)} on {first.ranks:,} ranks: "
        f"{ending}a step, "
        + (f"shortest with {costs[least].strategy}" if len(costs) > 1 else first.strategy),
        "Each rank has two lanes: what it computes, and below it what it sends and gets. White in "
        "the upper lane: the rank waits for communication or for other ranks. A line ends each "
        "step. All ranks belong to one stage of the pipeline.",
        "Simulated with one draw of stragglers: planner/step/streams.py. Seconds of passes, "
        "orthogonalisation and links are computed, not measured.",
        0.9 + sum(0.42 * len(cost.watched) + 0.4 for cost in costs),
    )
    heights = [0.9, *(len(cost.watched) + 0.6 for cost in costs)]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    legend = figure.add_subplot(grid[0])
    rows = [figure.add_subplot(grid[1])]
    rows += [figure.add_subplot(grid[row], sharex=rows[0]) for row in range(2, len(heights))]
    unit = _style.unit(stop - begin, UNITS)
    for axes, cost, end in zip(rows, costs, stops, strict=True):
        _strategy(axes, cost, unit, begin)
        axes.axvline(end / unit.size, color=_style.INK, linewidth=1.2)
        axes.set_title(f"{cost.strategy}: {duration(end)}")
        axes.tick_params(axis="x", labelbottom=axes is rows[-1])
    rows[-1].set_xlim(begin / unit.size, (stop + 0.01 * (stop - begin)) / unit.size)
    rows[-1].set_xlabel(f"time from the beginning of the step, {unit.name}")
    seen = {span.kind for cost in costs for span in cost.spans if span.stop_s > begin}
    handles = [
        Patch(color=color, label=name) for kind, (name, color) in KINDS.items() if kind in seen
    ]
    legend.legend(handles=handles, loc="center", ncols=4)
    legend.set_axis_off()
    return figure


def _stop(cost: StepCost) -> float:
    """The end of the first draw's step, which has the spans."""
    return cost.draw_seconds[0]


def _window(costs: Sequence[StepCost]) -> float:
    """Where the picture begins: at 0, or late enough for what follows the passes to be seen."""
    passed = min(
        max((s.stop_s for s in cost.spans if s.kind == BACKWARD), default=0.0) for cost in costs
    )
    stop = max(_stop(cost) for cost in costs)
    tail = stop - passed
    return 0.0 if tail > WHOLE * stop else max(0.0, stop - tail / WHOLE)


def _joined(spans: Sequence[Span], gap_s: float) -> list[tuple[float, float]]:
    """Beginning and end of spans, those joined that no eye could tell apart."""
    found: list[tuple[float, float]] = []
    for span in sorted(spans, key=lambda each: each.start_s):
        if found and span.start_s - found[-1][1] < gap_s and span.stop_s - found[-1][0] < 4 * gap_s:
            found[-1] = found[-1][0], max(found[-1][1], span.stop_s)
        else:
            found.append((span.start_s, span.stop_s))
    return found


def _strategy(axes: Axes, cost: StepCost, unit: _style.Unit, begin: float) -> None:
    """The lanes of the watched ranks."""
    for row, (rank, _) in enumerate(cost.watched):
        spans = [span for span in cost.spans if span.rank == rank and span.stop_s > begin]
        for kind, (_, color) in KINDS.items():
            same = [span for span in spans if span.kind == kind and span.stop_s > span.start_s]
            if same:
                stream = same[0].stream
                lane = row - LANE if stream == COMPUTE else row + 0.02
                bars = [
                    (start / unit.size, (stop - start) / unit.size)
                    for start, stop in _joined(same, (cost.draw_seconds[0] - begin) * APART)
                ]
                axes.broken_barh(
                    bars, (lane, LANE - 0.02), facecolors=color,
                    edgecolors="white" if len(bars) < 100 else color, linewidth=0.2,
                )  # fmt: skip
    names = [f"rank {rank:,}: {why}" for rank, why in cost.watched]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for between in range(len(names) - 1):
        axes.axhline(between + 0.5, color=_style.FAINT, linewidth=0.8)
