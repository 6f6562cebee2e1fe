"""Where the memory of a step goes: bytes by kind, and the peak of the process or the GPU."""

from collections.abc import Callable

from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._bars import OPTIMIZER, Kind, Panel, stacked_bars, totals
from analysis.charts._inputs import Inputs, Series

OF_RACE = True


def _largest(column: str) -> Callable[[Series], float]:
    return lambda entrant: float(max(getattr(run, column) for run in entrant.runs))


MEMORY = (
    Kind("parameters", _largest("param_bytes"), "#4B5A6B", "white"),
    Kind("gradients", _largest("grad_bytes"), "#A9B6C3", _style.INK),
    Kind("optimizer state", _largest("state_bytes"), OPTIMIZER, _style.INK),
)
PEAK = (Kind("peak", _largest("peak_memory_bytes"), "#D3DAE1", _style.INK),)


def draw(inputs: Inputs) -> Figure:
    """Bytes by kind, and beside them the peak of the process or the GPU."""
    unit = _style.unit(max(totals(inputs.entrants, MEMORY)), _style.BYTES)
    peak = _style.unit(max(totals(inputs.entrants, PEAK)), _style.BYTES)
    return stacked_bars(
        inputs,
        _title(inputs),
        "Each bar: the largest of an optimizer's runs. Right: the peak of the GPU, or of the whole "
        "process on a CPU, with activations and data.",
        Panel(MEMORY, f"by kind ({unit.name})", unit),
        Panel(PEAK, f"peak ({peak.name})", peak),
    )


def _title(inputs: Inputs) -> str:
    shown, base = inputs.subject, inputs.baseline
    param, state = _largest("param_bytes"), _largest("state_bytes")
    title = (
        f"{shown.name}'s optimizer state is {state(shown) / param(shown):.2f}x the size of the "
        "parameters"
    )
    if base is None or base is shown or not state(base):
        return title
    less = 1 - state(shown) / state(base)
    than = f"{abs(less):.0%} {'less' if less > 0 else 'more'} than" if less else "as much as"
    return f"{title}, {than} {base.name}'s"
