"""Where the time of a step goes: milliseconds by kind, and the small kinds enlarged."""

from collections.abc import Callable

from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._bars import OPTIMIZER, Kind, Panel, stacked_bars, totals
from analysis.charts._inputs import Inputs, Series

OF_RACE = True
VISIBLE_MS = 0.01  # a kind that takes less of every entrant's step is left out


def _per_step(part: str) -> Callable[[Series], float]:
    return lambda entrant: entrant.step_ms(part)


def _unattributed(entrant: Series) -> float:
    parts = ("data", "forward_backward", "optimizer", "communication")
    return max(0.0, entrant.step_ms() - sum(entrant.step_ms(part) for part in parts))


FORWARD_BACKWARD = Kind("forward and backward", _per_step("forward_backward"), "#4B5A6B", "white")
OTHERS = (
    Kind("optimizer", _per_step("optimizer"), OPTIMIZER, _style.INK),
    Kind("data", _per_step("data"), "#B9D7EA", _style.INK),
    Kind("communication", _per_step("communication"), "#7A5C8E", "white"),
    Kind("other", _unattributed, "#C4C4C4", _style.INK),
)


def draw(inputs: Inputs) -> Figure:
    """Milliseconds of a step by kind, and beside it an enlargement of the small kinds."""
    others = [k for k in OTHERS if max(totals(inputs.entrants, [k])) > VISIBLE_MS]
    unit = _style.Unit(1, "ms")
    return stacked_bars(
        inputs,
        _title(inputs),
        "Mean over all steps of all runs; validation, compilation and warm-up are not counted. "
        "Right: the same without forward and backward, enlarged.",
        Panel((FORWARD_BACKWARD, *others), "whole step (ms)", unit),
        Panel(others, "without forward and backward (ms)", unit),
    )


def _title(inputs: Inputs) -> str:
    shown, base = inputs.subject, inputs.baseline
    fraction = shown.step_ms("optimizer") / (shown.step_ms() or 1)
    title = f"{shown.name}: the optimizer takes {fraction:.1%} of a step"
    if base is None or base is shown or not base.step_ms():
        return title
    price = inputs.prices.of(base.label, shown.label)
    longer = (price.value if price else shown.step_ms() / base.step_ms()) - 1
    comparative = "longer" if longer >= 0 else "shorter"
    return f"{title}; a step is {abs(longer):.1%} {comparative} than {base.name}'s"
