"""A race of many: a panel of curves for each entrant, time against memory, and who differs."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.charts import _style
from analysis.charts._inputs import Entrant, Inputs, MissingDataError
from analysis.charts._wording import footer
from analysis.charts.loss_curves import MANY, QUANTITIES, Window, mean_curve, window_of
from analysis.charts.speedup import FAR
from analysis.pairs import Pair
from analysis.stats import costs
from tracking.schema import DIVERGED, REACHED

COLUMNS = 4
PANEL_IN = 1.55
OTHERS = "#CFCFCF"
LABEL_IN = 0.19  # between names beside a chart
AHEAD, BEHIND, ALIKE = "#9CC9E8", "#F6B48A", "#EFEFEF"  # blue and orange: all can tell them apart


# ---- A panel each ------------------------------------------------------------------------------


def loss_by(inputs: Inputs, unit: str) -> Figure:
    """Loss against "steps" or "seconds": each entrant in front of all others."""
    if len(inputs.entrants) < MANY:
        raise MissingDataError(
            f"it needs {MANY} entrants, loss_curves shows fewer; run: make compare"
        )
    quantity = next(q for q in QUANTITIES if q.unit == unit)
    points = [p for e in inputs.entrants for curve in e.curves for p in curve]
    largest = max((float(getattr(p, quantity.column)) for p in points), default=0.0) or 1.0
    scale = _style.unit(largest, quantity.units)
    ranking, window = inputs.ranking(unit), window_of(inputs)
    rows = math.ceil(len(ranking) / COLUMNS)
    caption = (
        "Bold: mean over the seeds of the entrant that the panel names, with their range; number: "
        "what the target costs it. In every panel, grey: all others"
    )
    references = [e for e in inputs.entrants if e.label in _style.RESERVED]
    caption += "".join(f"; {_hue(e)}: {e.name}" for e in references)
    caption += f". Dashed: the target {inputs.target:g}. In order of the cost."
    figure = _style.sheet(
        _order(inputs, ranking, unit), caption, footer(inputs), PANEL_IN * rows + 0.4
    )
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    names = _style.short_names([entrant.label for entrant in inputs.entrants])
    means = {
        entrant.label: mean_curve(entrant.finished(), quantity.column)
        for entrant in inputs.entrants
    }
    for axes, entrant in zip(panels.flat, ranking, strict=False):
        for label, (x, loss, *_) in means.items():
            if label == entrant.label:
                continue
            look = next(e.look for e in inputs.entrants if e.label == label)
            color = look.color if label in _style.RESERVED else OTHERS
            front = 2 if label in _style.RESERVED else 1
            axes.plot(x / scale.size, loss, color=color, linewidth=0.9, zorder=front)
        x, loss, low, high = means[entrant.label]
        axes.fill_between(x / scale.size, low, high, color=entrant.look.color, alpha=0.3, lw=0)
        axes.plot(x / scale.size, loss, color=entrant.look.color, linewidth=2.2, zorder=3)
        _diverged(axes, entrant, quantity.column, scale.size, window)
        axes.axhline(inputs.target, color=_style.INK, linewidth=0.8, dashes=(4, 2), zorder=1.5)
        axes.set_title(f"{names[entrant.label]}\n{_cost(entrant, unit)}", color=entrant.look.text)
        axes.set_xlim(0, 1.03 * largest / scale.size)
        axes.set_ylim(window.floor, window.top)
        axes.xaxis.set_major_locator(_style.ticks(4))
    for axes in panels.flat[len(ranking) :]:
        axes.set_visible(False)
    last = panels.flat[len(ranking) - COLUMNS : len(ranking)]
    for axes in last:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(quantity.label.format(f" ({scale.name})" if scale.name else ""))
    for axes in panels[:, 0]:
        axes.set_ylabel("validation loss")
    return figure


def _hue(entrant: Entrant) -> str:
    return {"adamw": "blue", "muon": "vermilion"}[entrant.label]


def _diverged(axes: Axes, entrant: Entrant, column: str, size: float, window: Window) -> None:
    """Thin lines of the runs that diverged, to a cross."""
    for run, curve in zip(entrant.runs, entrant.curves, strict=True):
        if run.status == DIVERGED and curve:
            x = [getattr(point, column) / size for point in curve]
            y = [point.val_loss for point in curve]
            axes.plot(x, y, color=entrant.look.color, linewidth=0.7)
            end = min(y[-1], window.top)
            axes.plot(x[-1], end, "x", color=entrant.look.color, ms=6, mew=1.6, clip_on=False)


def _cost(entrant: Entrant, unit: str) -> str:
    """What the target costs an entrant, and how many of its runs reached it where not all did."""
    cost, runs = entrant.cost(unit), entrant.runs
    reached = sum(run.status == REACHED for run in runs)
    if cost is None:
        return "diverged" if all(run.status == DIVERGED for run in runs) else "missed"
    tally = f", {reached} of {len(runs)} runs" if reached < len(runs) else ""
    value = (
        _style.unit(cost.value, _style.SECONDS) if unit == "seconds" else _style.Unit(1, "steps")
    )
    return f"{_style.number(cost.value / value.size)} {value.name}{tally}"


def _order(inputs: Inputs, ranking: Sequence[Entrant], unit: str) -> str:
    first, *others = ranking
    if first.cost(unit) is None:
        return "No run reaches the target"
    always = sum(all(run.status == REACHED for run in e.runs) for e in ranking)
    some = sum(e.cost(unit) is not None for e in ranking) - always
    tally = f"{always} of {len(ranking)} entrants reach the target with all runs"
    tally += f", {some} with some" if some else ""
    pairs = inputs.pairs(unit)
    known = [(e, pair) for e in others if (pair := pairs.of(e.label, first.label)).ratio]
    near = [e.name for e, pair in known if not pair.distinct]
    alike = near[0] if len(near) == 1 else f"{len(near)} others"
    told = f", not told apart from {alike}" if near else ", ahead of all others that reach it"
    return f"{tally}; in {unit} {first.name} is first ({_cost(first, unit)}){told}"


# ---- Time against memory -----------------------------------------------------------------------


def pareto(inputs: Inputs) -> Figure:
    """Seconds to the target against bytes of optimizer state; the front of the two."""
    if len(inputs.entrants) < 3:
        raise MissingDataError("it needs three entrants; run: make compare")
    cost = {e.label: c.value for e in inputs.entrants if (c := e.cost("seconds"))}
    if not cost:
        raise MissingDataError("no run reached the target; run: make tune")
    state = {e.label: max(run.state_bytes for run in e.runs) for e in inputs.entrants}
    front = _front([e for e in inputs.entrants if e.label in cost], cost, state)
    size = _style.unit(max(state.values()) or 1, _style.BYTES)
    longest = max(value for e in inputs.entrants for value in costs(e.runs, "seconds").spent)
    shown = [value for value in cost.values() if value < FAR * longest] or [min(cost.values())]
    time = _style.unit(max(shown), _style.SECONDS)
    on = " or ".join(
        f"{e.name} ({_style.number(cost[e.label] / time.size)}\N{NO-BREAK SPACE}{time.name}, "
        f"{_style.number(state[e.label] / size.size)}\N{NO-BREAK SPACE}{size.name})"
        for e in front
    )
    figure = _style.sheet(
        f"By their means nobody is both faster and smaller than {on}",
        "Marker: expected training time to the target; whisker: its 95% interval, cut off at the "
        "edge. Line: the front of the means; entrants near it may not be distinguishable from "
        "those on it, see chart significance. Open, at the top: not reached, or by so few runs "
        "that the expected time is off the axis.",
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
    entrants: Sequence[Entrant], cost: dict[str, float], state: dict[str, int]
) -> list[Entrant]:
    """Those that no other beats in time or memory without losing in the other; smallest first."""
    front: list[Entrant] = []
    for entrant in sorted(entrants, key=lambda e: (state[e.label], cost[e.label])):
        if not front or cost[entrant.label] < cost[front[-1].label]:
            front.append(entrant)
    return front


# ---- Who differs from whom ---------------------------------------------------------------------


def significance(inputs: Inputs) -> Figure:
    """A matrix of all pairs: above the diagonal in seconds, below it in steps."""
    ranking = inputs.ranking("seconds")
    if len(ranking) < 3:
        raise MissingDataError("it needs three entrants; run: make compare")
    steps, seconds = inputs.pairs("steps"), inputs.pairs("seconds")
    labels = [entrant.label for entrant in ranking]
    n = len(labels)
    differ = {
        unit: sum(pairs.of(a, b).distinct for i, a in enumerate(labels) for b in labels[i + 1 :])
        for unit, pairs in (("steps", steps), ("seconds", seconds))
    }
    figure = _style.sheet(
        f"Of {n * (n - 1) // 2} pairs, the seeds tell {differ['seconds']} apart in time to the "
        f"target and {differ['steps']} in steps",
        "How many times as fast the entrant of the row reaches the target as that of the column, "
        "and p: above the diagonal in seconds, below it in steps. Blue: the row is ahead; orange: "
        "behind; grey: not distinguishable. Welch's t-test on the logarithm of the cost, p by "
        f"Holm's method over all {steps.family} pairs; significant below 0.05. > and <: bounds, as "
        "the slower one missed and what it spent is counted; where it never reached it is given "
        "the other's spread. –: undecided. Final losses are not compared, as horizons differ.",
        footer(inputs),
        min(7.6, 0.44 * n + 1.1),
    )
    axes = figure.subplots()
    for row, a in enumerate(labels):
        for column, b in enumerate(labels):
            if row != column:
                _cell(axes, row, column, (seconds if column > row else steps).of(b, a))
    names = _style.short_names(labels)
    axes.set_xlim(-0.5, n - 0.5)
    axes.set_ylim(n - 0.5, -0.5)
    axes.set_xticks(range(n), [names[label] for label in labels], rotation=90)
    axes.set_yticks(range(n), [names[label] for label in labels])
    axes.xaxis.tick_top()
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, entrant in zip(ticks, ranking, strict=True):
            tick.set_color(entrant.look.text)
            tick.set_fontweight("bold")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def _cell(axes: Axes, row: int, column: int, pair: Pair) -> None:
    ratio = pair.ratio
    color, text = "white", "–"
    if ratio is not None:
        ahead = ratio.estimate.value > 1
        color = (AHEAD if ahead else BEHIND) if pair.distinct else ALIKE
        bound = ">" if ratio.at_least else "<" if ratio.at_most else ""
        text = f"{bound}{ratio.estimate.value:.2f}"
        if pair.p is not None:
            text += f"\n{probability(pair.p)}"
    box = Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, facecolor=color, edgecolor="none")
    axes.add_patch(box)
    axes.text(column, row, text, ha="center", va="center", size=_style.SMALL_PT, linespacing=1.15)


def probability(p: float) -> str:
    """A p-value in at most five characters."""
    if p < 0.001:
        return "<.001"
    return "1" if p > 0.995 else f"{p:.3f}"[1:] if p < 0.1 else f"{p:.2f}"[1:]
