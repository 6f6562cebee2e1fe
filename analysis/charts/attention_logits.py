"""The largest attention logit against steps: whether it grows, and whether QK-Clip holds it.

Drawn where a race measured logits: with --log-logits, and for every entrant that clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._wording import footer
from analysis.finals import common_steps, largest_by_step
from tracking.spelling import options_of, recipe_of

OF_RACE = True
CLIPS = "muonclip"  # the recipe whose option tau is QK-Clip's
BODY_IN = 3.4
PANEL_IN = 2.7  # height of the axes, at least
PANEL_WIDTH_IN = 8.0
LINE_IN = _style.SMALL_PT * _style.LINE_SPACING / 72


@dataclass(frozen=True)
class Growth:
    """One entrant's largest logit over all layers and heads, for each seed and step."""

    entrant: Series
    steps: np.ndarray  # (steps,): the steps measured in every seed
    largest: np.ndarray  # (seeds, steps)
    tau: float | None  # logit above which QK-Clip scales a head down

    def peak(self, steps: Sequence[int]) -> float:
        """The largest logit of each run at these steps, averaged over runs."""
        return float(self.largest[:, np.isin(self.steps, steps)].max(axis=1).mean())

    @property
    def mean(self) -> np.ndarray:
        """Over seeds, at each step."""
        return np.asarray(self.largest.mean(axis=0))


def draw(inputs: Inputs) -> Figure:
    """A line for each entrant that was measured, and each tau. Raises MissingDataError."""
    growths = [growth for e in inputs.entrants if (growth := _growth(e)) is not None]
    if not growths:
        raise MissingDataError(
            "this race measured no attention logits; "
            "run: python speedrun.py muonclip:tau=20 muonclip:tau=1e9 --track tiny-mla"
        )
    caption = (
        "The largest logit before the softmax, over all layers, heads and tokens of a step's batch."
    )
    if any(len(growth.largest) > 1 for growth in growths):
        caption += " Line: mean over seeds. Band: lowest to highest seed."
    if any(growth.tau is not None for growth in growths):
        caption += (
            " After each step QK-Clip scales heads above tau down to tau; the next update can lift "
            "them above it again."
        )
    if len({tuple(growth.steps) for growth in growths}) > 1:
        caption += (
            " Optimizers were measured at different steps; optimizers without QK-Clip at "
            "validations only. The title compares them at the steps at which all were measured."
        )
    names = _style.short_names([growth.entrant.label for growth in growths])
    figure = _style.new_figure(_title(growths, names), caption, footer(inputs), BODY_IN)
    axes = figure.subplots()
    low = min(float(growth.largest.min()) for growth in growths)
    high = max(float(growth.largest.max()) for growth in growths)
    low, high = max(low, 1e-4 * high) / 1.1, 1.15 * high
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    for growth in growths:
        _line(axes, growth)
    _labels(axes, growths, names)
    _taus(axes, growths)
    axes.set_ylabel("largest attention logit")
    axes.set_xlabel("optimizer steps")
    last = max(float(growth.steps[-1]) for growth in growths)
    axes.set_xticks([tick for tick in _style.ticks(8).tick_values(0, last) if tick <= last])
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(False, axis="x")
    return figure


def _growth(entrant: Series) -> Growth | None:
    """None if no run of the entrant was measured."""
    runs = [largest_by_step(rows) for rows in entrant.logits if rows]
    steps = common_steps(runs)
    if not steps:
        return None
    largest = np.array([[run[step] for step in steps] for run in runs])
    entrant_text = entrant.runs[0].entrant
    tau = options_of(entrant_text).get("tau") if recipe_of(entrant_text) == CLIPS else None
    return Growth(entrant, np.array(steps), largest, float(tau) if tau else None)


def _title(growths: Sequence[Growth], names: Mapping[str, str]) -> str:
    """The highest peak without QK-Clip and the lowest with it, at steps measured in all runs."""
    common = common_steps(growth.steps.tolist() for growth in growths)
    if not common:
        return "The largest attention logit"
    free = [growth for growth in growths if growth.tau is None]
    held = [growth for growth in growths if growth.tau is not None]
    shown = [max(free, key=lambda g: g.peak(common))] if free else []
    shown += [min(held, key=lambda g: g.peak(common))] if held else []
    peaks = [
        f"{_style.number(growth.peak(common))} with {name}"
        + ("" if growth.tau is None or "tau=" in name else f" at tau {growth.tau:g}")
        for growth in shown
        for name in [names[growth.entrant.label]]
    ]
    return f"The largest attention logit peaks at {', '.join(peaks)}"


def _line(axes: Axes, growth: Growth) -> None:
    look = growth.entrant.look
    low, high = growth.largest.min(axis=0), growth.largest.max(axis=0)
    axes.fill_between(growth.steps, low, high, color=look.color, alpha=0.22, linewidth=0)
    axes.plot(
        growth.steps,
        growth.mean,
        color=look.color,
        linestyle=look.dashes,
        linewidth=1.6,
        marker=look.marker,
        markersize=4,
        markevery=max(1, len(growth.steps) // 8),
    )


def _labels(axes: Axes, growths: Sequence[Growth], names: Mapping[str, str]) -> None:
    """A name and the last value right of each line, near its height, but clear of other names."""
    texts = [
        f"{names[growth.entrant.label]}: {_style.number(growth.mean[-1])}" for growth in growths
    ]
    room_in = 0.15 + max(_style.text_width_in(text, _style.SMALL_PT, bold=True) for text in texts)
    last = max(float(growth.steps[-1]) for growth in growths)
    axes.set_xlim(0, last * PANEL_WIDTH_IN / (PANEL_WIDTH_IN - room_in))
    places = _spread(axes, [float(growth.mean[-1]) for growth in growths])
    for growth, text, y in zip(growths, texts, places, strict=True):
        look = growth.entrant.look
        end = float(growth.steps[-1])
        axes.plot([end, last], [growth.mean[-1], y], color=look.color, linewidth=0.6, alpha=0.6)
        note = axes.annotate(
            text, (last, y), xytext=(5, 0), textcoords="offset points", va="center",
            size=_style.SMALL_PT, weight="bold", color=look.text,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
        note.set_in_layout(False)  # it lies within the axes


def _spread(axes: Axes, values: Sequence[float]) -> list[float]:
    """Heights near these values, on the log axis, at least a line of text apart and inside."""
    low, high = (float(np.log(limit)) for limit in axes.get_ylim())
    gap = (high - low) * LINE_IN / PANEL_IN
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = np.zeros(len(values))
    floor = low + gap / 2
    for i in order:
        floor = places[i] = max(float(np.log(max(values[i], 1e-30))), floor)
        floor += gap
    ceiling = high - gap / 2
    for i in reversed(order):
        ceiling = places[i] = min(places[i], ceiling)
        ceiling -= gap
    return [float(place) for place in np.exp(places)]


def _taus(axes: Axes, growths: Sequence[Growth]) -> None:
    """A dashed line at each tau that is within the axes, its name at the left end."""
    low, high = axes.get_ylim()
    last = max(float(growth.steps[-1]) for growth in growths)
    taus = dict.fromkeys(growth.tau for growth in growths if growth.tau is not None)
    shown = [tau for tau in taus if low < tau < high]
    for tau, y in zip(shown, _spread(axes, shown), strict=True):
        axes.plot([0, last], [tau, tau], color=_style.INK, linewidth=1, dashes=(4, 2), zorder=1.5)
        axes.annotate(
            f"tau {tau:g}", (0, y), xytext=(4, 3), textcoords="offset points",
            size=_style.SMALL_PT, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
