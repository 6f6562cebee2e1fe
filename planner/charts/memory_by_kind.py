"""Bytes of a rank by kind: a bar for each optimizer and engine, and lines where GPUs are full.

python -m planner memory llama-405b --ranks 1024 --chart memory.png
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._bars import OPTIMIZER
from planner.cluster.hardware import GPU, GPUS
from planner.memory.activations import RESERVED_FRACTION
from planner.memory.footprint import Footprint
from tracking.spelling import display_name

# field of Footprint: name, colour, hatch. What the optimizer decides is yellow.
KINDS = {
    "params_bytes": ("parameters", "#4B5A6B", ""),
    "master_bytes": ("master copies", "#7B8A9A", ""),
    "grads_bytes": ("gradients", "#A9B6C3", ""),
    "matrix_state_bytes": ("state of hidden matrices", OPTIMIZER, ""),
    "other_state_bytes": ("AdamW's state of all else", "#F8E78E", ""),
    "buffers_bytes": ("communication buffers", "#FFFFFF", "/////"),
    "activations_bytes": ("activations and logits", "#E3E7EB", ""),
}
ROOM = 1.13  # of the axis, over the longest bar: for its number
UNITS = (*_style.BYTES, _style.Unit(10**12, "TB"))


def draw(
    rows: Sequence[Footprint], title: str, caption: str = "", gpus: Sequence[GPU] = ()
) -> Figure:
    """A bar for each row, those of an engine side by side. gpus: () means all that are known."""
    engines = list(dict.fromkeys(row.engine for row in rows))
    rows = sorted(rows, key=lambda row: engines.index(row.engine))
    limits = _limits(gpus or tuple(GPUS.values()))
    end = _end([row.total_bytes for row in rows], limits)
    unit = _style.unit(end / ROOM, UNITS)
    shown = {limit: names for limit, names in limits.items() if limit <= end}
    height = 0.24 * (len(rows) + 0.6 * len(engines)) + 0.15 * len(shown)
    figure = _style.new_figure(
        title,
        f"{caption}. Each bar: the rank that holds most." if caption else "",
        _footer(limits, shown, cut=any(row.total_bytes > end for row in rows)),
        1.1 + height,
    )
    axes, below = figure.subplots(2, height_ratios=(height + 0.5, 0.35))
    places = _places(rows)
    left = [0.0] * len(rows)
    for field, (name, color, hatch) in KINDS.items():
        sizes = [getattr(row, field) / unit.size for row in rows]
        if any(size > 0 for size in sizes):
            axes.barh(
                places, sizes, 0.82, left, label=name, color=color, hatch=hatch,
                edgecolor=_style.MUTED, linewidth=0.4,
            )  # fmt: skip
        left = [a + b for a, b in zip(left, sizes, strict=True)]
    for level, (limit, names) in enumerate(shown.items()):
        x = limit / unit.size
        axes.axvline(x, color=_style.INK, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.annotate(
            names, (x, 1), (0, 2 + 11 * (len(shown) - 1 - level)), size=_style.SMALL_PT,
            xycoords=axes.get_xaxis_transform(), textcoords="offset points", ha="left",
        )  # fmt: skip
    for place, row in zip(places, rows, strict=True):
        own = _style.unit(row.total_bytes, UNITS)
        words = f"{_style.number(row.total_bytes / own.size)} {own.name}"
        cut = row.total_bytes > end
        axes.text(
            (0.995 * end if cut else 1.004 * row.total_bytes) / unit.size, place,
            f"{words} »" if cut else words, ha="right" if cut else "left", va="center",
            size=_style.SMALL_PT, bbox={"color": "white", "pad": 0.6},
        )  # fmt: skip
    axes.set_xlim(0, end / unit.size)
    axes.set_ylim(max(places) + 0.7, -0.7)
    axes.set_yticks(places, [f"{row.engine}  {display_name(row.rule)}" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"memory of a rank ({unit.name})")
    below.axis("off")
    below.legend(*axes.get_legend_handles_labels(), loc="center", ncols=4)
    return figure


def _end(totals: Sequence[float], limits: dict[float, str]) -> float:
    """The end of the axis. Bars that would make the others unreadable go on beyond it."""
    most = max(totals)
    if 8 * min(totals) > most:
        return ROOM * most
    return ROOM * min(most, 2 * max(*limits, *(x for x in totals if 8 * x <= most)))


def _footer(limits: dict[float, str], shown: dict[float, str], cut: bool) -> str:
    """What the lines are, and what lies beyond the axis."""
    free = f"of whose memory {RESERVED_FRACTION:.0%} stays free"
    beyond = [names for limit, names in limits.items() if limit not in shown]
    words = [f"Lines: GPUs that are full, {free}."] if shown else []
    if beyond:
        words.append(f"All bars fit {', '.join(beyond)}{'' if shown else ', ' + free}.")
    if cut:
        words.append("A bar with » goes on beyond the axis.")
    return " ".join(words)


def _places(rows: Sequence[Footprint]) -> list[float]:
    """Heights of the bars, with a gap between engines."""
    places, y = [], 0.0
    for i, row in enumerate(rows):
        if i and row.engine != rows[i - 1].engine:
            y += 0.6
        places.append(y)
        y += 1
    return places


def _limits(gpus: Sequence[GPU]) -> dict[float, str]:
    """The memory that may be filled, smallest first, and the GPUs that have it."""
    found: dict[float, list[str]] = {}
    for gpu in gpus:
        limit = (1 - RESERVED_FRACTION) * gpu.memory_bytes
        found.setdefault(limit, []).append(gpu.name.removesuffix(" 80GB"))
    return {limit: ", ".join(found[limit]) for limit in sorted(found)}
