"""The share of orthogonalisation in a step's FLOPs and in its time, against the batch size.

python -m planner time llama-405b --chart share.png
"""

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.charts import _style
from planner.cluster.setting import Setting
from planner.models import Model
from planner.time import optimizer_time
from planner.time.newton_schulz import Iteration
from planner.time.optimizer_time import EVERY_RANK, Timing
from planner.time.owners import WAYS

FEWEST, MOST = 1 / 64, 16  # of the batch, at the ends of the axis
HINT = 0.01  # a share to compare the others with
LEAST = 1e-5  # of the axis of shares
NAMES = ("dense matrices", "experts", "all of the step", EVERY_RANK, *WAYS)
Values = npt.NDArray[np.float64]


def draw(model: Model, iteration: Iteration, timing: Timing, setting: Setting) -> Figure:
    """A panel of FLOPs by kind of matrix, and one of time by who does the work."""
    own, ranks = setting.tokens(model), timing.of_ranks(model, setting)
    batches = np.geomspace(own * FEWEST, own * MOST, 61)
    at_own = optimizer_time.shares(model, iteration, own)
    prices = optimizer_time.prices(model, iteration, timing, setting)
    everyone, balanced = (
        next(each for each in prices if each.way == way) for way in (EVERY_RANK, "balanced")
    )
    whole = list(at_own)[-1]
    figure = _style.new_figure(
        f"{model.title}: orthogonalisation is {_percent(at_own[whole])} of a step's FLOPs; of its "
        f"time, {_percent(balanced.share)} with balanced owners and {_percent(everyone.share)} "
        "if every rank does all",
        f"At {_tokens(own)} tokens a step, the vertical line. Left: of the FLOPs of forward and "
        "backward in these matrices, on the tokens that they see, and of the whole step. Right: of "
        f"the time of a step on {ranks:,} {timing.kind.name}, with nothing hidden, from the batch "
        "on that gives each replica of the model one sequence.",
        f"Newton-Schulz: {iteration.steps} steps, {iteration.ns_form} form"
        f"{', symmetric kernels' if iteration.symmetric else ''}"
        f"{', Muon Split' if iteration.split else ''}. Forward and backward at {timing.mfu:.0%} of "
        f"the peak (assumed). Stages of the pipeline: {setting.pipeline}; parts of its experts: "
        f"{setting.expert_parallel}. Curve of efficiency: {timing.efficiency.name}. Model: "
        f"{_source(model)}.",
        3.6,
    )
    flops, time = figure.subplots(1, 2, sharey=True)
    columns = [optimizer_time.shares(model, iteration, batch) for batch in batches]
    by_kind = {name: np.array([column[name] for column in columns]) for name in at_own}
    fits = batches[batches >= ranks // setting.pipeline * model.seq_len * (1 - 1e-9)]
    step = np.array([optimizer_time.model_seconds(model, timing, batch, ranks) for batch in fits])
    by_way = {price.way: price.seconds / (price.seconds + step) for price in prices}
    _lines(flops, batches, by_kind, at_own, own)
    _lines(time, fits, by_way, {price.way: price.share for price in prices}, own)
    least = min(values.min() for values in [*by_kind.values(), *by_way.values()])
    flops.set_ylim(max(least, LEAST), max(1.0, max(values.max() for values in by_kind.values())))
    flops.set_title("share of FLOPs")
    time.set_title(f"share of the time on {ranks:,} {timing.kind.name}")
    flops.set_ylabel("orthogonalisation's share")
    return figure


def _lines(
    axes: Axes, batches: Values, shares: dict[str, Values], at_own: dict[str, float], own: float
) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    looks = _style.looks_in_order(NAMES)
    for name, values in shares.items():
        look = looks[name]
        # Often as good as balanced owners, so it is drawn as a broad line below theirs.
        width, alpha = (5.0, 0.45) if name == "round-robin" else (1.8, 1.0)
        for x, y, marker in ((batches, values, ""), ([own], [at_own[name]], look.marker)):
            axes.plot(
                x, y, color=look.color, linestyle=look.dashes, linewidth=width, alpha=alpha,
                marker=marker, markersize=6, label=name if marker else None,
                clip_on=not marker, zorder=4 if marker else 2,
            )  # fmt: skip
    axes.axvline(own, color=_style.INK, linewidth=0.8)
    axes.axhline(HINT, color=_style.MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlim(own * FEWEST, own * MOST)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tokens(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _percent(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens of a step")
    axes.legend(loc="lower left")


def _percent(share: float) -> str:
    return f"{100 * share:.2g}%" if share < 0.995 else f"{100 * share:.0f}%"


def _tokens(count: float) -> str:
    for size, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:.3g}"


def _source(model: Model) -> str:
    """The first source of a model, which may be a paragraph."""
    return " ".join(model.source.split()).partition(";")[0] or "your own file"
