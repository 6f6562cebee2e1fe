"""The price of the optimizer against the number of ranks, a line for each strategy.

The price is over AdamW in its fastest strategy of those that are shown: some strategies are slow
for both.

python -m planner step deepseek-v4 --by-ranks ranks.png
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from analysis.charts import _style
from errors import UserError
from planner.plans import Plan
from planner.step.steps import BASELINE, price, step_cost
from planner.step.strategies import STRATEGIES
from tracking.spelling import display_name

MOST = 16_384  # ranks
LINEAR = 0.01  # prices below it, in either direction, are on a linear part of a logarithmic axis
LARGE = 0.1  # a price that makes the axis logarithmic


@dataclass(frozen=True)
class Lines:
    """The prices of each strategy, as shares of AdamW's fastest step, at each number of ranks."""

    plan: Plan
    ranks: Sequence[int]
    prices: dict[str, list[float]]  # over AdamW in its fastest strategy


def compute(plan: Plan, strategies: Sequence[str]) -> Lines:
    """From as few ranks as the layout needs up to 16,384, without stragglers."""
    smooth = replace(plan.cluster, straggler_sd=0.0)
    cut = plan.setting.pipeline * plan.setting.expert_parallel
    counts = sorted({plan.cluster.ranks, *(cut * 2**power for power in range(15))})
    ranks: list[int] = []
    prices: dict[str, list[float]] = {name: [] for name in strategies}
    for count in counts:
        if count > max(MOST, plan.cluster.ranks):
            break
        try:
            cluster = replace(smooth, ranks=count)
            plan.setting.check(plan.model, count)
        except UserError:  # nodes that are not full, more replicas than sequences
            continue
        ranks.append(count)
        found = {
            (rule, name): step_cost(
                plan.model, rule, name, cluster, plan.setting, plan.iteration, draws=1
            )
            for name in strategies
            for rule in (plan.rule, BASELINE)
        }
        base = min((found[BASELINE, name] for name in strategies), key=lambda each: each.seconds)
        for name in strategies:
            prices[name].append(price(found[plan.rule, name], base).mean)
    return Lines(plan, ranks, prices)


def draw(plan: Plan, strategies: Sequence[str] = tuple(STRATEGIES)) -> Figure:
    """Simulate and draw."""
    return draw_lines(compute(plan, strategies))


def draw_lines(lines: Lines) -> Figure:
    """One panel; the names stand beside the ends of the lines."""
    plan, most = lines.plan, lines.ranks[-1]
    ends = {name: values[-1] for name, values in lines.prices.items()}
    best, worst = min(ends, key=lambda n: ends[n]), max(ends, key=lambda n: ends[n])
    setting, large = plan.setting, max(map(max, lines.prices.values())) > LARGE
    scale = "From 1% on, the axis is logarithmic. " if large else ""
    worst_too = f", {_longer(ends[worst])} with {worst}" if worst != best else ""
    figure = _style.new_figure(
        f"{plan.model.title} on {most:,} ranks: a step of {display_name(plan.rule)} takes "
        f"{_longer(ends[best])} with {best}{worst_too}, than AdamW in its fastest strategy",
        f"{plan.tokens:,} tokens a step, whatever the number of ranks is, so passes get shorter. "
        f"{scale}The vertical line: the plan's {plan.cluster.ranks:,} ranks.",
        f"Simulated without stragglers: {plan.cluster.kind.name}, {plan.cluster.mfu:.0%} of the "
        f"peak in the passes (assumed); stages of the pipeline: {setting.pipeline}; ranks that "
        f"share a layer's experts: {setting.expert_parallel}; microbatches: "
        f"{setting.microbatches}. Whether a rank has "
        "memory for a strategy is another question.",
        3.9,
    )
    axes = figure.subplots()
    looks = _style.looks_in_order([*STRATEGIES])
    notes = []
    for name, values in lines.prices.items():
        look = looks[name]
        axes.plot(
            lines.ranks, values, color=look.color, linestyle=look.dashes, linewidth=1.6,
            marker=look.marker, markersize=4,
        )  # fmt: skip
        notes.append(_style.Note(f"{name} {values[-1]:+.1%}", most, values[-1], look))
    _style.notes_beside(axes, notes)
    axes.axvline(plan.cluster.ranks, color=_style.INK, linewidth=0.8)
    axes.axhline(0, color=_style.MUTED, linewidth=0.8)
    _scales(axes, lines, large)
    return figure


def _longer(share: float) -> str:
    return f"{abs(share):,.1%} {'longer' if share >= 0 else 'less'}"


def _scales(axes: Axes, lines: Lines, large: bool) -> None:
    values = np.array([*lines.prices.values()])
    if large:
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.6)
    axes.set_ylim(min(-LINEAR / 10, 1.2 * values.min()), 1.15 * max(values.max(), LINEAR))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:+,.3g}%"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xscale("log", base=2)
    axes.set_xticks(lines.ranks, [f"{count:,}" for count in lines.ranks], rotation=0)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("ranks")
    axes.set_ylabel("step over AdamW's fastest")
