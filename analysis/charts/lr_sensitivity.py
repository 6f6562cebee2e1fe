"""Final loss against learning rate, a panel for each recipe: of the search, and of sweeps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._style import Look
from analysis.charts._wording import device
from tracking.schema import Trial
from tracking.spelling import display_name, split

COLUMNS, PANEL_IN = 3, 2.6
MANY, MANY_COLUMNS, MANY_PANEL_IN = 7, 4, 1.75  # from so many recipes on, smaller panels


def lr_sensitivity(inputs: Inputs) -> Figure:
    """Panels that share their loss axis; the best trial is ringed, diverged ones at the top."""
    by_recipe: dict[str, list[Trial]] = {}
    for trial in inputs.trials:
        if learning_rate(trial) is not None:
            by_recipe.setdefault(trial.recipe, []).append(trial)
    losses = [t.final_loss for ts in by_recipe.values() for t in ts if t.final_loss is not None]
    if not losses:
        raise MissingDataError(
            "no search trials in tuning.csv; run: python speedrun.py tune adamw muon"
        )
    # A few hopeless trials must not squeeze the rest: they stand at the top edge.
    top = min(losses) + 1.1 * (float(np.quantile(losses, 0.85)) - min(losses)) or 0.1
    caption = (
        "A marker is one trial of the search, in which the other options vary too; ringed: the "
        "best, which more seeds may yet have overruled. Line: lower hull of the trials."
    )
    if max(losses) > top:
        caption += " Open triangle: higher than shown."
    if len(losses) < sum(map(len, by_recipe.values())):
        caption += " Cross: diverged."
    figure, panels = _grid(_title(by_recipe), caption, _footer(by_recipe), len(by_recipe))
    many = len(by_recipe) >= MANY
    for axes, (recipe, trials) in zip(panels.flat, by_recipe.items(), strict=False):
        _panel(axes, trials, inputs.recipe_looks[recipe], top, "\n" if many else ": ")
        if many:
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
    panels[0, 0].set_ylim(min(losses) - 0.12 * (top - min(losses)), top)
    return figure


def _grid(title: str, caption: str, footer: str, count: int) -> tuple[Figure, np.ndarray]:
    """A sheet with `count` visible panels that share their loss axis."""
    most, height = (MANY_COLUMNS, MANY_PANEL_IN) if count >= MANY else (COLUMNS, PANEL_IN)
    columns = min(most, count)
    rows = math.ceil(count / columns)
    figure = _style.sheet(title, caption, footer, height * rows + 0.2)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for axes in panels.flat[count:]:
        axes.set_visible(False)
    for axes in panels[:, 0]:
        axes.set_ylabel(
            "final loss" if count >= MANY else "final validation loss\n(nats per token)"
        )
    return figure, panels


def lr_sweep(inputs: Inputs) -> Figure:
    """The tuned settings with other learning rates, at one horizon: what a wrong lr costs."""
    by_recipe: dict[str, list[Trial]] = {}
    for trial in inputs.sweeps:
        by_recipe.setdefault(trial.recipe, []).append(trial)
    best = {recipe: found for recipe, trials in by_recipe.items() if (found := _best(trials))}
    if not best:
        raise MissingDataError("no sweep of an lr in tuning.csv; run: make sweep")
    losses = [loss for trials in by_recipe.values() for _, loss in _finished(trials)]
    low = min(losses)
    top = low + 1.1 * (float(np.quantile(losses, 0.8)) - low) or low + 0.1
    caption = (
        "Each marker: the tuned settings with another lr, all else as tuned (learning rates of "
        "embedding, head and vectors that a recipe has beside it too), at one horizon and one "
        "seed. Dashed: the tuned lr; ringed: the best."
    )
    if max(losses) > top:
        caption += " Open triangle: higher than shown."
    if any(trial.final_loss is None for trial in inputs.sweeps):
        caption += " Cross: diverged."
    title, footer = sweep_title(by_recipe), _footer(by_recipe, "sweep of lr")
    figure, panels = _grid(title, caption, footer, len(best))
    for axes, recipe in zip(panels.flat, best, strict=False):
        trials = sorted(by_recipe[recipe], key=lambda trial: learning_rate(trial) or 0.0)
        separator = "\n" if len(best) >= MANY else ": "
        look = inputs.recipe_looks[recipe]
        _panel(axes, trials, look, top, separator, line=_finished(trials))
        axes.axvline(_middle(trials), color=_style.MUTED, linewidth=0.8, dashes=(4, 2), zorder=1)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
    panels[0, 0].set_ylim(low - 0.12 * (top - low), top)
    return figure


def _middle(trials: Sequence[Trial]) -> float:
    """The lr that was swept around: of the trial in the middle of the sweep."""
    lrs = sorted(lr for trial in trials if (lr := learning_rate(trial)))
    return lrs[len(lrs) // 2]


def sweep_title(by_recipe: dict[str, list[Trial]]) -> str:
    """What a wrong lr costs each, or of more than two the range: a sweep has one seed."""
    costs = {recipe: cost_of_error(trials) for recipe, trials in by_recipe.items()}
    known = sorted((cost, recipe) for recipe, cost in costs.items() if cost is not None)
    if not known:
        return "Every best lr is the first or the last of its sweep"
    least, most = known[0][0], known[-1][0]
    if len(known) > 2 and least < math.inf:
        return f"Half or twice the best lr costs from {least:.3f} to {_price(most)}"
    words = [f"{display_name(recipe)} {_price(cost)}" for cost, recipe in known]
    return f"Half or twice the best lr costs {', '.join(words)}"


def _price(cost: float) -> str:
    return f"{cost:.3f} nats per token" if cost < math.inf else "the run"


def cost_of_error(trials: Sequence[Trial]) -> float | None:
    """How much the loss rises, on average, at half and at twice the best lr of a sweep.

    By interpolation in the logarithm of lr; infinite beside a trial that diverged. None where the
    best is at an end of the sweep, or all diverged.
    """
    pairs = ((learning_rate(trial), trial.final_loss) for trial in trials)
    points = sorted((lr, math.inf if loss is None else loss) for lr, loss in pairs if lr)
    lr, loss = min(points, key=lambda point: point[1])
    if math.isinf(loss) or not points[0][0] <= lr / 2 < lr * 2 <= points[-1][0]:
        return None
    x, y = [math.log(lr) for lr, _ in points], [loss for _, loss in points]
    return float(np.mean(np.interp(np.log([lr / 2, lr * 2]), x, y))) - loss


def learning_rate(trial: Trial) -> float | None:
    """The option `lr` of a trial's entrant, name:key=value,...; None if it has none."""
    options = dict(part.partition("=")[::2] for part in split(trial.entrant)[1].split(","))
    try:
        return float(options["lr"])
    except (KeyError, ValueError):
        return None


def _best(trials: Sequence[Trial]) -> tuple[float, float] | None:
    """Learning rate and loss of the best trial; None if all diverged."""
    finished = _finished(trials)
    return min(finished, key=lambda point: point[1]) if finished else None


def _finished(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Learning rate and loss of the trials that did not diverge, by learning rate."""
    pairs = ((learning_rate(trial), trial.final_loss) for trial in trials)
    return sorted((lr, loss) for lr, loss in pairs if lr is not None and loss is not None)


def _title(by_recipe: dict[str, list[Trial]]) -> str:
    best = {recipe: found for recipe, trials in by_recipe.items() if (found := _best(trials))}
    ends = sorted(best, key=lambda recipe: best[recipe][1])
    if len(ends) > 2:  # between neighbours there is the luck of one seed
        low, high = (
            f"{best[recipe][1]:.3f} ({display_name(recipe)})" for recipe in (ends[0], ends[-1])
        )
        return f"The best trials of the searches end between {low} and {high}"
    words = [
        f"{display_name(recipe)}'s best trial ends at {best[recipe][1]:.3f}, at lr {best[recipe][0]:.2g}"
        for recipe in ends
    ]
    return "; ".join(words)


def _footer(by_recipe: dict[str, list[Trial]], stages: str = "search, refinement") -> str:
    trials = [trial for group in by_recipe.values() for trial in group]
    counts = sorted({len(group) for group in by_recipe.values()})
    each = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    seeds = len({trial.seed for trial in trials})
    devices = " / ".join(dict.fromkeys(map(device, trials)))
    return (
        f"Track {trials[0].track} · {each} trials each of {trials[0].steps} steps, "
        f"{seeds} {'seed' if seeds == 1 else 'seeds'} · {devices} · {stages}"
    )


def _panel(
    axes: Axes,
    trials: Sequence[Trial],
    look: Look,
    top: float,
    separator: str,
    line: Sequence[tuple[float, float]] | None = None,
) -> None:
    """separator: between name and best in the title. line: in place of the lower hull."""
    points = _finished(trials)
    inside = [(lr, loss) for lr, loss in points if loss <= top]
    above = [(lr, top) for lr, loss in points if loss > top]
    diverged = [(lr, top) for t in trials if t.final_loss is None and (lr := learning_rate(t))]
    color: dict[str, Any] = {"color": look.color, "linestyle": "none"}
    axes.plot(*_xy(inside), look.marker, markersize=5, mec="white", mew=0.5, zorder=3, **color)
    # Without a point, an unclipped line takes the page's corner for its place in the layout.
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
    best = _best(trials)
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
