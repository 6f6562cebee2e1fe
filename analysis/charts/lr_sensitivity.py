"""Final loss against learning rate in the trials of a search, a panel for each recipe."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._lr import MANY, best_of, footer, grid, panel
from analysis.sweep import learning_rate
from tracking.schema import Trial
from tracking.spelling import display_name

OF_RACE = False


def draw(inputs: Inputs) -> Figure:
    """Panels that share their loss axis; the best trial is ringed, diverged ones at the top."""
    by_recipe: dict[str, list[Trial]] = {}
    for trial in inputs.trials:
        if learning_rate(trial) is not None:
            by_recipe.setdefault(trial.recipe, []).append(trial)
    losses = [t.final_loss for ts in by_recipe.values() for t in ts if t.final_loss is not None]
    if not losses:
        raise MissingDataError("no search trials in tuning.csv; run: make tune")
    # The few worst trials would squeeze the rest: they stand at the top edge.
    top = min(losses) + 1.1 * (float(np.quantile(losses, 0.85)) - min(losses)) or 0.1
    caption = (
        "Marker: one trial of the search, in which the other options vary too. Ring: the best "
        "trial; a check with more seeds may have preferred another. Line: lower hull of the trials."
    )
    if max(losses) > top:
        caption += " Open triangle: a loss above the axis."
    if len(losses) < sum(map(len, by_recipe.values())):
        caption += " Cross: diverged."
    figure, panels = grid(
        _title(by_recipe), caption, footer(by_recipe, "search, refinement"), len(by_recipe)
    )
    many = len(by_recipe) >= MANY
    for axes, (recipe, trials) in zip(panels.flat, by_recipe.items(), strict=False):
        panel(axes, trials, inputs.recipe_looks[recipe], top, "\n" if many else ": ")
        if many:
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
    panels[0, 0].set_ylim(min(losses) - 0.12 * (top - min(losses)), top)
    return figure


def _title(by_recipe: dict[str, list[Trial]]) -> str:
    best = {recipe: found for recipe, trials in by_recipe.items() if (found := best_of(trials))}
    ends = sorted(best, key=lambda recipe: best[recipe][1])
    if len(ends) > 2:  # the order of neighbours is chance: a trial has one seed
        low, high = (
            f"{best[recipe][1]:.3f} ({display_name(recipe)})" for recipe in (ends[0], ends[-1])
        )
        return f"The best trials of the searches end at losses from {low} to {high}"
    words = [
        f"{display_name(recipe)}'s best trial ends at {loss:.3f}, at lr {lr:.2g}"
        for recipe in ends
        for lr, loss in [best[recipe]]
    ]
    return "; ".join(words)
