"""The losses of one race on several engines: all curves, and how far each is from one process.

Drawn where `make engines` has run.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts.engine_costs import _footer
from analysis.engines import REFERENCE, Measured

OF_RACE = False
LEAST = 1e-8  # nats; smaller differences are drawn there
HIGHEST = 1e-3  # nats: the axis of differences goes up to it, at least
HEIGHT_IN = 4.6


def draw(inputs: Inputs) -> Figure:
    """Two columns, one for each optimizer: losses above, differences below."""
    points = inputs.on_engines
    recipes = list(dict.fromkeys(point.recipe for point in points))
    if not any(point.run.engine == REFERENCE for point in points):
        raise MissingDataError("no race on several engines; run: make engines")
    looks = _style.looks_in_order([p.run.engine for p in points])
    several = [p for p in points if p.run.engine != REFERENCE]
    widest = max(several, key=lambda p: p.gap, default=points[0])
    figure = _style.new_figure(
        f"The largest difference of a validation loss from one process is {widest.gap:.1e} nats "
        f"({widest.name} on {widest.run.engine})",
        "Above: validation loss, all engines over each other. Below: its difference from the loss "
        f"of the engine {REFERENCE}; what is below {LEAST:g} is drawn there.",
        _footer(points),
        HEIGHT_IN,
    )
    panels = figure.subplots(2, len(recipes), sharex=True, sharey="row", squeeze=False)
    for column, recipe in enumerate(recipes):
        shown = [point for point in points if point.recipe == recipe]
        _losses(panels[0, column], shown, looks)
        _differences(panels[1, column], shown, looks)
        panels[0, column].set_title(shown[0].name)
        panels[1, column].set_xlabel("step")
    panels[0, 0].set_ylabel("validation loss (nats)")
    panels[1, 0].set_ylabel("difference (nats)")
    panels[1, 0].set_ylim(LEAST / 2, max(HIGHEST, 2 * widest.gap))
    panels[0, -1].legend(loc="upper left", bbox_to_anchor=(1.02, 1))
    return figure


def _losses(axes: Axes, points: Sequence[Measured], looks: dict[str, _style.Look]) -> None:
    for place, point in enumerate(points):
        look = looks[point.run.engine]
        steps, losses = [v.step for v in point.curve], [v.val_loss for v in point.curve]
        axes.plot(
            steps, losses, color=look.color, linestyle=look.dashes, marker=look.marker,
            markevery=(place, len(points)), markersize=5, linewidth=1.2, label=point.run.engine,
        )  # fmt: skip


def _differences(axes: Axes, points: Sequence[Measured], looks: dict[str, _style.Look]) -> None:
    reference = next(point for point in points if point.run.engine == REFERENCE)
    for point in points:
        if point is reference:
            continue
        look = looks[point.run.engine]
        gaps = [
            max(LEAST, abs(a.val_loss - b.val_loss))
            for a, b in zip(point.curve, reference.curve, strict=True)
        ]
        axes.plot(
            [v.step for v in point.curve], gaps, color=look.color, linestyle=look.dashes,
            marker=look.marker, markersize=4, linewidth=1,
        )  # fmt: skip
    axes.set_yscale("log")
