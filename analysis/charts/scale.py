"""Muon's speed-up over AdamW against batch size and model size, beside what others report."""

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.scale import Measured, published
from analysis.stats import Estimate
from tracking.schema import Published

OF_RACE = False
OURS = _style.RESERVED["muon"]
BODY_IN = 6.4
GREY = _style.Look("#8A97A5", (0.29, 0.35, 0.42), "d", "-")


def draw(inputs: Inputs) -> Figure:
    """Two panels: batch sizes at the width of tiny, widths at its batch; with published points."""
    points, others = inputs.scale, published()
    if not points:
        raise MissingDataError("no races at other batch sizes and widths; run: make scale")
    batches = _axis(points, lambda m: m.width, lambda m: m.batch_tokens)
    widths = _axis(points, lambda m: m.batch_tokens, lambda m: m.params)
    seeds = min(m.speedup.n for m in points)
    bound = "; arrow: a bound" if any(m.bound for m in points) else ""
    figure = _style.new_figure(
        _title(batches, widths),
        "Filled: our races, in steps to an equal final loss, each run to the end of its own "
        f"schedule; whiskers: 95% intervals{bound}. Grey: published speed-ups, each with its own "
        "basis (in brackets), corpus and tuning, so that their levels compare only loosely.",
        f"Ours: track tiny with other batches and widths, at least {seeds} runs a point, settings "
        "transferred from tiny and checked again · results/published",
        BODY_IN,
    )
    panels = figure.subplots(2, 1, sharey=True)
    batch_points = [p for p in others if p.batch_tokens]
    _panel(panels[0], batches, lambda m: m.batch_tokens, batch_points, _batch_range)
    _panel(panels[1], widths, lambda m: m.params, others, _size_range)
    panels[0].set_xlabel("tokens of a step")
    panels[1].set_xlabel("parameters")
    for axes in panels:
        axes.set_ylabel("Muon's speed-up over AdamW")
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    return figure


def _axis(
    points: Sequence[Measured], fixed: Callable[[Measured], int], along: Callable[[Measured], int]
) -> list[Measured]:
    """The longest row of points that share one size, in the order of the other."""
    rows: dict[int, list[Measured]] = {}
    for point in points:
        rows.setdefault(fixed(point), []).append(point)
    longest: list[Measured] = max(rows.values(), key=len)
    return sorted(longest, key=along)


def _title(batches: Sequence[Measured], widths: Sequence[Measured]) -> str:
    (a, b), (c, d) = (batches[0], batches[-1]), (widths[0], widths[-1])
    return (
        f"AdamW takes {_value(a)} as many steps as Muon at {a.batch_tokens:,} tokens a step and "
        f"{_value(b)} at {b.batch_tokens:,}; {_value(c)} at width {c.width} and {_value(d)} at "
        f"width {d.width}"
    )


def _value(point: Measured) -> str:
    ratio = point.speedup
    chance = ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high
    value = f"{point.bound} {ratio.value:.2f}x".strip()
    return f"{value} (may be chance)" if chance else value


def _batch_range(point: Published) -> tuple[float, float]:
    assert point.batch_tokens
    return point.batch_tokens, point.batch_tokens


def _size_range(point: Published) -> tuple[float, float]:
    return point.params_low, point.params_high


def _panel(
    axes: Axes,
    points: Sequence[Measured],
    along: Callable[[Measured], int],
    others: Sequence[Published],
    place: Callable[[Published], tuple[float, float]],
) -> None:
    ratios = [point.speedup.value for point in points]
    axes.plot([along(point) for point in points], ratios, color=OURS, linewidth=1, alpha=0.6)
    for point in points:
        _marker(axes, along(point), point.speedup, point.bound)
    notes = []
    for other in others:
        low, high = place(other)
        middle = (other.speedup_low + other.speedup_high) / 2
        axes.plot([low, high], [middle] * 2, color=GREY.color, linewidth=1.5, alpha=0.6)
        axes.plot([high, high], [other.speedup_low, other.speedup_high], color=GREY.color, lw=1.5)
        axes.plot(high, middle, "d", color=GREY.color, markersize=6, mfc="white", zorder=3)
        twice = sum(other.source == each.source for each in others) > 1
        name = f"{other.source}, {_short(other.params_high)}" if twice else other.source
        notes.append(_style.Note(f"{name} ({other.basis})", high, middle, GREY))
    axes.axhline(1, color=_style.INK, linewidth=0.9)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=24))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    _style.notes_beside(axes, notes)


def _marker(axes: Axes, x: float, ratio: Estimate, bound: str) -> None:
    if ratio.low is not None and ratio.high is not None:
        axes.plot([x, x], [ratio.low, ratio.high], color=OURS, linewidth=1.2)
    axes.plot(x, ratio.value, marker="s", markersize=7, color=OURS, mec="white", mew=0.6, zorder=4)
    if bound:
        axes.annotate(
            "", (x, ratio.value), xytext=(0, 16 if bound == "over" else -16),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": OURS, "linewidth": 1.2},
        )  # fmt: skip


def _short(value: float) -> str:
    unit = _style.Unit(1, "")
    for candidate in _style.COUNTS:
        if value >= candidate.size:
            unit = candidate
    return f"{value / unit.size:g}{unit.name}"
