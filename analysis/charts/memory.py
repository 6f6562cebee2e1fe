"""Where the memory and the time of a step go: stacked bars by kind, a row for each entrant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from analysis.charts import _style
from analysis.charts._inputs import Entrant, Inputs
from analysis.charts._wording import footer

ROW_IN = 0.36  # at least, for an entrant
VISIBLE_MS = 0.01  # a kind that takes less of every entrant's step is left out


@dataclass(frozen=True)
class Kind:
    """One kind of segment: its amount for an entrant, in bytes or milliseconds."""

    name: str
    amount: Callable[[Entrant], float]
    color: str
    ink: str  # of the number inside it


Side = tuple[Sequence[Kind], str, _style.Unit]  # one panel: kinds, axis label, unit


def _largest(column: str) -> Callable[[Entrant], float]:
    return lambda entrant: float(max(getattr(run, column) for run in entrant.runs))


def _per_step(part: str) -> Callable[[Entrant], float]:
    return lambda entrant: entrant.step_ms(part)


def _unattributed(entrant: Entrant) -> float:
    parts = ("data", "forward_backward", "optimizer", "communication")
    return max(0.0, entrant.step_ms() - sum(entrant.step_ms(part) for part in parts))


OPTIMIZER = "#F2CF1D"  # the subject of both charts; a yellow that no entrant has
MEMORY = (
    Kind("parameters", _largest("param_bytes"), "#4B5A6B", "white"),
    Kind("gradients", _largest("grad_bytes"), "#A9B6C3", _style.INK),
    Kind("optimizer state", _largest("state_bytes"), OPTIMIZER, _style.INK),
)
PEAK = (Kind("peak", _largest("peak_memory_bytes"), "#D3DAE1", _style.INK),)
FORWARD_BACKWARD = Kind("forward and backward", _per_step("forward_backward"), "#4B5A6B", "white")
AROUND = (
    Kind("optimizer", _per_step("optimizer"), OPTIMIZER, _style.INK),
    Kind("data", _per_step("data"), "#B9D7EA", _style.INK),
    Kind("communication", _per_step("communication"), "#7A5C8E", "white"),
    Kind("other", _unattributed, "#C4C4C4", _style.INK),
)


def memory(inputs: Inputs) -> Figure:
    """Bytes by kind, and beside them the peak of the process or the GPU."""
    unit = _style.unit(max(_totals(inputs.entrants, MEMORY)), _style.BYTES)
    peak = _style.unit(max(_totals(inputs.entrants, PEAK)), _style.BYTES)
    return _chart(
        inputs,
        _memory_title(inputs),
        "Right: the peak of the GPU, or of the whole process where there is none; it holds "
        "activations, data and libraries too. Both: the largest of an entrant's runs.",
        (MEMORY, f"by kind ({unit.name})", unit),
        (PEAK, f"peak ({peak.name})", peak),
    )


def step_time(inputs: Inputs) -> Figure:
    """Milliseconds of a step by kind, and beside it an enlargement of the small kinds."""
    around = [k for k in AROUND if max(_totals(inputs.entrants, [k])) > VISIBLE_MS]
    unit = _style.Unit(1, "ms")
    return _chart(
        inputs,
        _step_title(inputs),
        "Mean over all steps of all runs; validation, compilation and warm-up are off the clock. "
        "Right: the same without forward and backward, enlarged.",
        ((FORWARD_BACKWARD, *around), "whole step (ms)", unit),
        (around, "without forward and backward (ms)", unit),
    )


def _memory_title(inputs: Inputs) -> str:
    shown, base = inputs.subject, inputs.baseline
    param, state = _largest("param_bytes"), _largest("state_bytes")
    title = (
        f"{shown.name} keeps {state(shown) / param(shown):.2f}x its parameters in optimizer state"
    )
    if base is None or base is shown or not state(base):
        return title
    less = 1 - state(shown) / state(base)
    than = f"{abs(less):.0%} {'less' if less > 0 else 'more'} than" if less else "as much as"
    return f"{title}, {than} {base.name}"


def _step_title(inputs: Inputs) -> str:
    shown, base = inputs.subject, inputs.baseline
    share = shown.step_ms("optimizer") / (shown.step_ms() or 1)
    title = f"{shown.name}: the optimizer takes {share:.1%} of a step"
    if base is None or base is shown or not base.step_ms():
        return title
    longer = shown.step_ms() / base.step_ms() - 1
    comparative = "longer" if longer >= 0 else "shorter"
    return f"{title}; a step is {abs(longer):.1%} {comparative} than {base.name}'s"


def _totals(entrants: Sequence[Entrant], kinds: Sequence[Kind]) -> list[float]:
    return [sum(kind.amount(entrant) for kind in kinds) for entrant in entrants]


def _chart(inputs: Inputs, title: str, caption: str, left: Side, right: Side) -> Figure:
    entrants = inputs.entrants
    labels = [entrant.label for entrant in entrants]
    row_in = max(ROW_IN, _style.row_height_in(labels) + 0.1)
    figure = _style.sheet(title, caption, footer(inputs), row_in * len(entrants) + 0.95)
    panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    inside: list[tuple[Text, Rectangle]] = []
    for axes, (kinds, label, unit) in zip(panels, (left, right), strict=True):
        inside += _stacks(axes, entrants, kinds, unit)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(_style.ticks(5))
    _style.row_labels(panels[0], labels, {e.label: e.look for e in entrants})
    panels[1].tick_params(axis="y", length=0)
    kinds = left[0]
    legend = panels[0].legend(
        handles=[Rectangle((0, 0), 1, 1, color=kind.color) for kind in kinds],
        labels=[kind.name for kind in kinds],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.3,
        borderpad=0,
        ncols=len(kinds),
        handlelength=1,
        handleheight=1,
    )
    legend.set_in_layout(False)  # it may be wider than its panel, over the next one
    panels[0].set_title(" ")  # keeps its line free
    _style.settle(figure)  # segments have no width before
    for text, bar in inside:
        if text.get_window_extent().width > 0.9 * bar.get_window_extent().width:
            text.remove()  # the total at the end of the bar stays
    return figure


def _stacks(
    axes: Axes, entrants: Sequence[Entrant], kinds: Sequence[Kind], unit: _style.Unit
) -> list[tuple[Text, Rectangle]]:
    """Draws the bars. Returns the numbers inside segments, each with its segment."""
    inside = []
    for row, entrant in enumerate(entrants):
        left = 0.0
        for kind in kinds:
            width = kind.amount(entrant) / unit.size
            bar = axes.barh(row, width, left=left, height=0.6, color=kind.color)[0]
            if len(kinds) > 1:
                text = axes.text(
                    left + width / 2,
                    row,
                    _style.number(width),
                    size=_style.SMALL_PT,
                    color=kind.ink,
                    ha="center",
                    va="center",
                )
                text.set_in_layout(False)
                inside.append((text, bar))
            left += width
        axes.annotate(
            _style.number(left),
            (left, row),
            xytext=(4, 0),
            textcoords="offset points",
            size=_style.SMALL_PT,
            weight="bold",
            va="center",
        )
    axes.set_xlim(0, 1.02 * max(_totals(entrants, kinds)) / unit.size or 1)
    axes.grid(False, axis="y")
    return inside
