"""Bytes of a rank by kind: a bar for each optimizer and engine, and lines where GPUs are full.

python -m planner memory llama-405b --ranks 1024 --chart memory.png
"""

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from analysis.charts import _style
from analysis.charts._bars import OPTIMIZER
from planner.footprint import Footprint
from planner.hardware import GPU, GPUS
from planner.memory import RESERVED_FRACTION
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
UNITS = (*_style.BYTES, _style.Unit(10**12, "TB"))


def draw(
    rows: Sequence[Footprint], title: str, caption: str = "", gpus: Sequence[GPU] = ()
) -> Figure:
    """A bar for each row, those of an engine side by side. gpus: () means all that are known."""
    engines = list(dict.fromkeys(row.engine for row in rows))
    rows = sorted(rows, key=lambda row: engines.index(row.engine))
    most = max(row.total_bytes for row in rows)
    unit = _style.unit(most, UNITS)
    figure = _style.new_figure(
        title,
        f"{caption}. Each bar: the rank that holds most." if caption else "",
        f"A line: the memory of GPUs, of which {RESERVED_FRACTION:.0%} stays free.",
        0.9 + 0.24 * (len(rows) + 0.6 * len(engines)),
    )
    axes = figure.add_subplot()
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
    for place, total in zip(places, left, strict=True):
        label = f" {_style.number(total)} {unit.name}"
        axes.text(total, place, label, va="center", size=_style.SMALL_PT)
    axes.set_xlim(0, 1.13 * most / unit.size)
    axes.set_ylim(max(places) + 0.7, -0.7)
    axes.set_yticks(places, [f"{row.engine}  {display_name(row.rule)}" for row in rows])
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(f"memory of a rank ({unit.name})")
    limits = _limits(gpus or tuple(GPUS.values()), 1.13 * most)
    above = blended_transform_factory(axes.transData, axes.transAxes)
    for limit, names in limits.items():
        x = limit / unit.size
        axes.axvline(x, color=_style.INK, linewidth=0.9, linestyle=(0, (4, 2)))
        axes.text(x, 1.01, names, transform=above, size=_style.SMALL_PT, ha="center", va="bottom")
    figure.legend(loc="outside lower center", ncols=4)
    return figure


def _places(rows: Sequence[Footprint]) -> list[float]:
    """Heights of the bars, with a gap between engines."""
    places, y = [], 0.0
    for i, row in enumerate(rows):
        if i and row.engine != rows[i - 1].engine:
            y += 0.6
        places.append(y)
        y += 1
    return places


def _limits(gpus: Sequence[GPU], most: float) -> dict[float, str]:
    """The memory that may be filled, of those that are within the axis and not too close."""
    found: dict[float, list[str]] = {}
    for gpu in gpus:
        limit = (1 - RESERVED_FRACTION) * gpu.memory_bytes
        found.setdefault(limit, []).append(gpu.name.removesuffix(" 80GB"))
    shown: dict[float, str] = {}
    for limit, names in sorted(found.items()):
        if limit > most:
            continue
        near = [x for x in shown if limit - x < 0.16 * most]
        if near:  # no room beside the last name
            shown[near[-1]] = f"{shown[near[-1]]}; {', '.join(names)}"
            continue
        shown[limit] = ", ".join(names)
    return shown
