"""Panels of final loss against learning rate: the body of charts lr_sensitivity and lr_sweep."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analysis.charts import _style
from analysis.charts._style import Look
from analysis.charts._wording import device
from analysis.sweep import learning_rate
from tracking.schema import Trial
from tracking.spelling import display_name

COLUMNS, PANEL_IN = 3, 2.6
MANY, MANY_COLUMNS, MANY_PANEL_IN = 7, 4, 1.75  # from so many recipes on, smaller panels


def grid(title: str, caption: str, footer: str, count: int) -> tuple[Figure, np.ndarray]:
    """A figure with `count` visible panels that share their loss axis."""
    most, height = (MANY_COLUMNS, MANY_PANEL_IN) if count >= MANY else (COLUMNS, PANEL_IN)
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = _style.new_figure(title, caption, footer, height * rows + 0.2)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(
            "final loss" if count >= MANY else "final validation loss\n(nats per token)"
        )
    return figure, panels


def best_of(trials: Sequence[Trial]) -> tuple[float, float] | None:
    """Learning rate and loss of the best trial; None if all diverged."""
    return min(finished(trials), key=lambda point: point[1], default=None)


def finished(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Learning rate and loss of the trials that did not diverge, by learning rate."""
    pairs = ((learning_rate(trial), trial.final_loss) for trial in trials)
    return sorted((lr, loss) for lr, loss in pairs if lr is not None and loss is not None)


def footer(by_recipe: dict[str, list[Trial]], stages: str) -> str:
    trials = [trial for group in by_recipe.values() for trial in group]
    counts = sorted({len(group) for group in by_recipe.values()})
    each = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    seeds = len({trial.seed for trial in trials})
    devices = " / ".join(dict.fromkeys(map(device, trials)))
    return (
        f"Track {trials[0].track} · {each} trials each of {trials[0].steps} steps, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} · {devices} · {stages}"
    )


def panel(
    axes: Axes,
    trials: Sequence[Trial],
    look: Look,
    top: float,
    separator: str,
    line: Sequence[tuple[float, float]] | None = None,
) -> None:
    """One recipe's trials, losses above `top` at the top edge; diverged trials there too.

    separator: between the name and the best trial in the panel's title.
    line: learning rates and losses; None for the lower hull of the trials.
    """
    points = finished(trials)
    inside = [(lr, loss) for lr, loss in points if loss <= top]
    above = [(lr, top) for lr, loss in points if loss > top]
    diverged = [(lr, top) for t in trials if t.final_loss is None and (lr := learning_rate(t))]
    color: dict[str, Any] = {"color": look.color, "linestyle": "none"}
    axes.plot(*_xy(inside), look.marker, markersize=5, mec="white", mew=0.5, zorder=3, **color)
    # An unclipped line without a point would count in the layout as a point in the page's corner.
    if above:
        axes.plot(*_xy(above), "^", markersize=6, mfc="white", mew=1.2, clip_on=False, **color)
    if diverged:
        axes.plot(*_xy(diverged), "x", markersize=6, mew=1.6, clip_on=False, **color)
    line = _lower_hull(points) if line is None else line
    axes.plot(*_xy(line), color=look.color, linewidth=1, alpha=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (lr)")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=12))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    title = display_name(trials[0].recipe)
    best = best_of(trials)
    if best is not None:
        axes.plot(*best, "o", markersize=11, mfc="none", mec=_style.INK, mew=1.2, zorder=4)
        title += f"{separator}{best[1]:.3f} at lr {best[0]:.2g}"
    axes.set_title(title, color=look.text, pad=8)


def _xy(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _lower_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the convex curve below all points, with lr on a log scale; lr ascending."""
    hull: list[tuple[float, float]] = []
    for point in points:
        while len(hull) > 1 and _turns_down(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _turns_down(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or above the line from a to c."""
    ab, ac = math.log(b[0] / a[0]), math.log(c[0] / a[0])
    return (b[1] - a[1]) * ac >= (c[1] - a[1]) * ab
