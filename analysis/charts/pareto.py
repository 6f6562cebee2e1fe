"""Training time to the target against the memory of the optimizer's state."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._wording import footer

OF_RACE = True
LABEL_IN = 0.19  # between names beside the chart


def draw(inputs: Inputs) -> Figure:
    """Seconds to the target against bytes of optimizer state; the front of the two."""
    if len(inputs.entrants) < 3:
        raise MissingDataError("it needs three optimizers; run: make compare")
    cost = {e.label: c.value for e in inputs.entrants if (c := e.cost("seconds"))}
    if not cost:
        raise MissingDataError("no run reached the target; run: make tune")
    state = {e.label: max(run.state_bytes for run in e.runs) for e in inputs.entrants}
    front = _front([e for e in inputs.entrants if e.label in cost], cost, state)
    size = _style.unit(max(state.values()) or 1, _style.BYTES)
    limit = inputs.largest_on_axis("seconds")
    shown = [value for value in cost.values() if value < limit] or [min(cost.values())]
    time = _style.unit(max(shown), _style.SECONDS)
    on = [
        f"{e.name} ({_style.number(cost[e.label] / time.size)}\N{NO-BREAK SPACE}{time.name}, "
        f"{_style.number(state[e.label] / size.size)}\N{NO-BREAK SPACE}{size.name})"
        for e in front
    ]
    named = " or ".join(filter(None, [", ".join(on[:-1]), on[-1]]))
    figure = _style.new_figure(
        f"On average no optimizer needs both less time and less state than {named}",
        "Marker: expected training time to the target; whisker: its 95% interval, cut off at the "
        "edge. Dotted line: joins the optimizers of the title. An optimizer near the line may not "
        "be distinguishable from one on the line; see chart significance. Open marker at the top: "
        "the target was not reached, or by so few runs that the expected time is beyond the axis.",
        footer(inputs),
        max(4.0, LABEL_IN * len(inputs.entrants) + 0.9),
    )
    axes = figure.subplots()
    low, high = min(shown) / time.size, max(shown) / time.size
    pad = 0.12 * (high - low) or 0.1 * high
    axes.set_ylim(max(0, low - pad), high + 2 * pad)
    axes.set_xlim(-0.03 * max(state.values()) / size.size, 1.06 * max(state.values()) / size.size)
    top = axes.get_ylim()[1]
    height = {label: value / time.size for label, value in cost.items() if value in shown}
    for entrant in inputs.entrants:
        x, estimate = state[entrant.label] / size.size, entrant.cost("seconds")
        known = entrant.label in height
        if known and estimate and estimate.low is not None and estimate.high is not None:
            whisker = [estimate.low / time.size, estimate.high / time.size]
            axes.plot([x, x], whisker, color=entrant.look.color, linewidth=1, alpha=0.6)
        axes.plot(
            x, height.get(entrant.label, top),
            marker=entrant.look.marker, markersize=7, color=entrant.look.color,
            mfc=entrant.look.color if known else "white", mew=0.6 if known else 1.5,
            mec="white" if known else entrant.look.color, clip_on=False, zorder=4,
        )  # fmt: skip
    xs = [state[e.label] / size.size for e in front]
    ys = [cost[e.label] / time.size for e in front]
    axes.step(xs, ys, where="post", color=_style.MUTED, linewidth=1, linestyle=":", zorder=1)
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    notes = []
    for entrant in inputs.entrants:
        label = names[entrant.label]
        if entrant.label not in height:
            far = cost.get(entrant.label)
            label += f": {_style.number(far / time.size)} {time.name}" if far else ": not reached"
        at = (state[entrant.label] / size.size, height.get(entrant.label, top))
        notes.append(_style.Note(label, *at, entrant.look))
    _style.notes_beside(axes, notes)
    axes.set_xlabel(f"optimizer state ({size.name})")
    axes.set_ylabel(f"training time to target ({time.name})")
    axes.xaxis.set_major_locator(_style.ticks(8))
    return figure


def _front(
    entrants: Sequence[Series], cost: dict[str, float], state: dict[str, int]
) -> list[Series]:
    """The entrants that no other beats in both time and memory; the smallest memory first."""
    front: list[Series] = []
    for entrant in sorted(entrants, key=lambda e: (state[e.label], cost[e.label])):
        if not front or cost[entrant.label] < cost[front[-1].label]:
            front.append(entrant)
    return front
