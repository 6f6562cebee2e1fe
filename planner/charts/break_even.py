"""The gain in steps that Muon needs to break even, against tokens of a step and ranks.

Fields that cannot be trained, with fewer sequences than replicas, stay empty. Black lines are the
smallest and the largest gain that count at the model's size, where they are within the map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis.charts import _style
from errors import UserError
from planner import verdict
from planner.plans import Plan
from planner.verdict import amount

FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the plan's tokens and ranks


@dataclass(frozen=True)
class Map:
    """The break-even gain at each size of a step and number of ranks; nan: impossible."""

    plan: Plan
    tokens: Sequence[int]
    ranks: Sequence[int]
    prices: np.ndarray  # (ranks, tokens)
    gain_low: float
    gain_high: float


def compute(plan: Plan, factors: Sequence[float] = FACTORS) -> Map:
    """The map around a plan, one draw of stragglers for each field."""
    tokens = [round(plan.tokens * factor) for factor in factors]
    ranks = [_ranks(plan, factor) for factor in factors]
    ranks = list(dict.fromkeys(n for n in ranks if n))
    prices = np.full((len(ranks), len(tokens)), np.nan)
    for row, n in enumerate(ranks):
        for column, size in enumerate(tokens):
            try:
                other = replace(plan.with_cluster(ranks=n).with_setting(batch_tokens=size), draws=1)
                other.setting.check(other.model, n)
                prices[row, column] = verdict.judge(other).price
            except UserError:  # too few sequences
                continue
    found = verdict.judge(replace(plan, draws=1)).gains
    return Map(plan, tokens, ranks, prices, found.low, found.high)


def _ranks(plan: Plan, factor: float) -> int:
    """A number of ranks that the layout divides; 0: too few."""
    ranks = int(plan.cluster.ranks * factor)
    unit = plan.setting.pipeline * plan.setting.expert_parallel
    node = plan.cluster.ranks_per_node
    return 0 if ranks < 1 or ranks % unit or (ranks > node and ranks % node) else ranks


def draw(found: Map) -> Figure:
    """The map as a picture."""
    plan, model = found.plan, found.plan.model
    here = verdict_at(found)
    figure = _style.new_figure(
        f"{model.title}: Muon breaks even from {here:.3f}x fewer steps on",
        "The gain in steps at which AdamW and Muon train as long, by the size of a step and the "
        "number of GPUs; the black ring is the plan. Empty: fewer sequences than replicas.",
        f"{plan.cluster.kind.name}, strategy {plan.strategy}, {plan.iteration.steps} steps of "
        f"Newton-Schulz. Gains that count at this size: {found.gain_low:.2f}x to "
        f"{found.gain_high:.2f}x.",
        3.6,
    )
    axes = figure.add_subplot()
    least = max(1.0001, np.nanmin(found.prices))
    most = max(np.nanmax(found.prices), least + 0.001)
    over = np.where(np.isnan(found.prices), np.nan, np.maximum(found.prices - 1, 1e-4))
    image = axes.pcolormesh(
        over, cmap="YlOrBr", norm=LogNorm(max(1e-4, least - 1), most - 1), edgecolors="white"
    )
    for row in range(len(found.ranks)):
        for column in range(len(found.tokens)):
            price = found.prices[row, column]
            if not np.isnan(price):
                dark = over[row, column] > (least - 1) ** 0.3 * (most - 1) ** 0.7
                axes.text(
                    column + 0.5, row + 0.5, f"{price:.3f}", ha="center", va="center",
                    size=_style.SMALL_PT, color="white" if dark else _style.INK,
                )  # fmt: skip
    own = found.tokens.index(plan.tokens) + 0.5, found.ranks.index(plan.cluster.ranks) + 0.5
    axes.plot(*own, "o", ms=26, mfc="none", mec=_style.INK)
    axes.set_xticks(np.arange(len(found.tokens)) + 0.5, [amount(n) for n in found.tokens])
    axes.set_yticks(np.arange(len(found.ranks)) + 0.5, [f"{n:,}" for n in found.ranks])
    axes.set_xlabel("tokens of a step")
    axes.set_ylabel("GPUs")
    axes.grid(False)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("break-even gain")
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{1 + value:.4g}x"))
    return figure


def verdict_at(found: Map) -> float:
    """The break-even gain of the plan itself."""
    row = found.ranks.index(found.plan.cluster.ranks)
    return float(found.prices[row, found.tokens.index(found.plan.tokens)])
