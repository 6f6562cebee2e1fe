"""The tuned settings with other learning rates, a panel for each recipe: what a wrong lr costs."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._lr import MANY, best_of, finished, footer, grid, panel
from analysis.sweep import learning_rate
from tracking.schema import Trial
from tracking.spelling import display_name

OF_RACE = False


def draw(inputs: Inputs) -> Figure:
    """The tuned settings with other learning rates, at one horizon: what a wrong lr costs."""
    by_recipe: dict[str, list[Trial]] = {}
    for trial in inputs.sweeps:
        by_recipe.setdefault(trial.recipe, []).append(trial)
    best = {recipe: found for recipe, trials in by_recipe.items() if (found := best_of(trials))}
    if not best:
        raise MissingDataError("no sweep of an lr in tuning.csv; run: make sweep")
    losses = [loss for trials in by_recipe.values() for _, loss in finished(trials)]
    low = min(losses)
    top = low + 1.1 * (float(np.quantile(losses, 0.8)) - low) or low + 0.1
    caption = (
        "Marker: the tuned settings with another lr and all else unchanged, the separate learning "
        "rates of embedding, head and vectors too; one horizon, one seed. Dashed: the tuned lr. "
        "Ring: the best."
    )
    if max(losses) > top:
        caption += " Open triangle: a loss above the axis."
    if any(trial.final_loss is None for trial in inputs.sweeps):
        caption += " Cross: diverged."
    figure, panels = grid(
        sweep_title(by_recipe), caption, footer(by_recipe, "sweep of lr"), len(best)
    )
    for axes, recipe in zip(panels.flat, best, strict=False):
        trials = sorted(by_recipe[recipe], key=lambda trial: learning_rate(trial) or 0.0)
        separator = "\n" if len(best) >= MANY else ": "
        look = inputs.recipe_looks[recipe]
        panel(axes, trials, look, top, separator, line=finished(trials))
        axes.axvline(_middle(trials), color=_style.MUTED, linewidth=0.8, dashes=(4, 2), zorder=1)
        axes.xaxis.set_major_locator(LogLocator(numticks=6))
    panels[0, 0].set_ylim(low - 0.12 * (top - low), top)
    return figure


def _middle(trials: Sequence[Trial]) -> float:
    """The tuned lr: the sweep's middle trial has it."""
    lrs = sorted(lr for trial in trials if (lr := learning_rate(trial)))
    return lrs[len(lrs) // 2]


def sweep_title(by_recipe: dict[str, list[Trial]]) -> str:
    """What a wrong lr costs each recipe; for more than two the range, as a sweep has one seed."""
    costs = {recipe: cost_of_error(trials) for recipe, trials in by_recipe.items()}
    known = sorted((cost, recipe) for recipe, cost in costs.items() if cost is not None)
    if not known:
        return "Every best lr is the first or the last of its sweep"
    finite = [cost for cost, _ in known if cost < math.inf]
    if len(known) > 2 and finite:
        if len(finite) < len(known):
            rise = f"at least {finite[0]:.3f} nats per token, and {len(known) - len(finite)} of "
            rise += f"{len(known)} optimizers diverge"
        else:
            rise = f"{finite[0]:.3f} to {finite[-1]:.3f} nats per token"
        return f"At half or twice the best lr the final loss rises by {rise}"
    words = [
        f"{display_name(recipe)} {f'loses {c:.3f} nats per token' if c < math.inf else 'diverges'}"
        for c, recipe in known
    ]
    return f"At half or twice the best lr {', '.join(words)}"


def cost_of_error(trials: Sequence[Trial]) -> float | None:
    """How much the loss rises, on average, at half and at twice the best lr of a sweep.

    Interpolated in the logarithm of lr; infinite next to a trial that diverged. None where the
    best is at an end of the sweep, and where all trials diverged.
    """
    pairs = ((learning_rate(trial), trial.final_loss) for trial in trials)
    points = sorted((lr, math.inf if loss is None else loss) for lr, loss in pairs if lr)
    lr, loss = min(points, key=lambda point: point[1])
    if math.isinf(loss) or not points[0][0] <= lr / 2 < lr * 2 <= points[-1][0]:
        return None
    x, y = [math.log(lr) for lr, _ in points], [loss for _, loss in points]
    return float(np.mean(np.interp(np.log([lr / 2, lr * 2]), x, y))) - loss
