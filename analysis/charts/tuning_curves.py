"""The best loss so far against the number of trials, a panel for each recipe: what trials find."""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import tuning
from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._lr import MANY, footer, grid
from analysis.charts._style import RESERVED, Look
from analysis.tuning import Search
from tracking.spelling import display_name

OF_RACE = False
ABOVE = 0.1  # nats of the panels above the search that ended highest


def draw(inputs: Inputs) -> Figure:
    """Panels that share both axes; AdamW's and Muon's curves are behind all others, too."""
    found = [s for s in tuning.searches(inputs.trials) if math.isfinite(s.best_so_far[-1])]
    if not found:
        raise MissingDataError("no search trials in tuning.csv; run: make tune")
    caption = (
        "Line: the best loss after so many trials, in the order of their numbers. Dot: a trial; "
        "those of worse losses are above the axis. Grey ground: trials close to the best one "
        "before them (stage refine). Ring: the best of all, of one seed. Thin lines: AdamW (blue) "
        "and Muon (vermilion)."
    )
    by_recipe = {search.recipe: list(search.trials) for search in found}
    figure, panels = grid(
        _title(found), caption, footer(by_recipe, "search, refinement"), len(found)
    )
    low, top = found[0].best_so_far[-1], found[-1].best_so_far[-1] + ABOVE
    most = max(len(search.trials) for search in found)
    for axes, search in zip(panels.flat, found, strict=False):
        for other in found:
            if other.recipe in RESERVED and other is not search:
                look = inputs.recipe_looks[other.recipe]
                axes.step(*_curve(other), where="post", color=look.color, linewidth=0.8, alpha=0.5)
        _panel(axes, search, inputs.recipe_looks[search.recipe], top, len(found) >= MANY)
        axes.set_xlim(0, 1.06 * most)  # room for a ring at the end
    panels[0, 0].set_ylim(low - 0.08 * (top - low), top)
    return figure


def _curve(search: Search) -> tuple[list[int], list[float]]:
    """Numbers of trials from the first that finished, and the best loss after each."""
    points = [(n, x) for n, x in enumerate(search.best_so_far, start=1) if math.isfinite(x)]
    return [n for n, _ in points], [loss for _, loss in points]


def _panel(axes: Axes, search: Search, look: Look, top: float, many: bool) -> None:
    """One search: its stages, its trials, and the best so far."""
    place = 0
    for stage, group in groupby(search.trials, key=lambda trial: trial.stage):
        count = len(list(group))
        if stage == "refine":
            axes.axvspan(place + 0.5, place + count + 0.5, color=_style.FAINT, lw=0, zorder=0)
        place += count
    losses = [(n, t.final_loss) for n, t in enumerate(search.trials, start=1)]
    inside = [(n, loss) for n, loss in losses if loss is not None and loss <= top]
    style: dict[str, Any] = {"color": look.color, "linestyle": "none"}
    axes.plot([n for n, _ in inside], [x for _, x in inside], ".", ms=3, alpha=0.5, **style)
    width = 2.4 if search.recipe in RESERVED else 1.6
    axes.step(*_curve(search), where="post", color=look.color, linewidth=width, zorder=3)
    best = search.best_so_far[-1]
    axes.plot(search.best, best, "o", ms=9, mfc="none", mec=_style.INK, mew=1.2, zorder=4)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("trials")
    separator = "\n" if many else ": "
    title = f"{display_name(search.recipe)}{separator}{best:.3f} after {search.best} trials"
    axes.set_title(title, color=look.text, pad=8)


def _title(found: Sequence[Search]) -> str:
    """What a quarter of the trials costs."""
    gains = []
    for search in found:
        losses = search.best_so_far
        gain = losses[math.ceil(len(losses) / 4) - 1] - losses[-1]
        gains.append((gain, search.recipe))
    finite = sorted(gain for gain in gains if math.isfinite(gain[0]))
    if not finite:
        return "No search had a finished trial in its first quarter"
    words = f"{finite[0][0]:.3f} nats per token ({display_name(finite[0][1])})"
    if len(finite) > 1:
        last = f"{finite[-1][0]:.3f} ({display_name(finite[-1][1])})"
        words = f"{finite[0][0]:.3f} ({display_name(finite[0][1])}) to {last} nats per token"
    return f"A search of a quarter of the trials would have ended higher by {words}"
