"""A test of every pair of entrants: which of them a race tells apart."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError
from analysis.charts._wording import footer
from analysis.pairs import Pair

OF_RACE = True
# Blue and orange differ for colour-blind readers too.
AHEAD, BEHIND, ALIKE = "#9CC9E8", "#F6B48A", "#EFEFEF"


def draw(inputs: Inputs) -> Figure:
    """A matrix of all pairs: above the diagonal in seconds, below it in steps."""
    ranking = inputs.ranking("seconds")
    if len(ranking) < 3:
        raise MissingDataError("it needs three optimizers; run: make compare")
    steps, seconds = inputs.pairs("steps"), inputs.pairs("seconds")
    labels = [entrant.label for entrant in ranking]
    n = len(labels)
    differ = {
        unit: sum(pairs.of(a, b).distinct for i, a in enumerate(labels) for b in labels[i + 1 :])
        for unit, pairs in (("steps", steps), ("seconds", seconds))
    }
    figure = _style.new_figure(
        f"{differ['seconds']} of {steps.family} pairs of optimizers differ significantly in time "
        f"to the target, {differ['steps']} in steps",
        "Each cell: how many times as fast the row's optimizer reaches the target as the column's, "
        "and the p-value; above the diagonal in seconds, below it in steps. Blue: the row's is "
        "faster; orange: slower; grey: not distinguishable. Welch's t-test on the logarithm of the "
        f"cost; p is corrected by Holm's method over all {steps.family} pairs and significant "
        "below 0.05. > and <: bounds, because runs of the slower one missed the target and count "
        "with what they spent; if it never reached the target, it is given the other's spread. "
        "–: undecided. Final losses are not compared, because horizons differ.",
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
