"""Final losses of optimizers on several tracks: how the model changes their order.

Drawn where races on more than one track are named. All runs must have the same horizon, because a
loss in the middle of a schedule says little.
"""

from collections.abc import Sequence
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _style
from analysis.charts._inputs import Inputs, MissingDataError, Series
from analysis.charts._wording import footer, interval
from analysis.finals import comparable, losses, tally, told_apart
from analysis.stats import mean

OF_RACE = True
ROW_IN = 0.5  # for an entrant


def draw(inputs: Inputs) -> Figure:
    """A row for each entrant and track, lowest mean first: every run, the mean and its interval."""
    entrants = (*inputs.entrants, *inputs.others)
    rows = [e for e in entrants if losses(e.runs)]
    if len({entrant.track for entrant in rows}) < 2:
        raise MissingDataError(
            "it needs races on two tracks; run: python -m analysis.charts --race ID --race ID"
        )
    horizons = {run.steps_planned for entrant in rows for run in entrant.runs}
    if len(horizons) > 1:
        raise MissingDataError(
            f"runs of {min(horizons)} and {max(horizons)} steps do not compare; "
            f"race all of them with steps={max(horizons)}"
        )
    rows.sort(key=lambda entrant: mean(losses(entrant.runs)).value)
    names = _names(rows)
    caption = "Marker: one run. Bar and numbers: mean and its 95% interval. "
    unstable = [
        f"{e.name} on {e.track} ({tally(e.runs)})"
        for e in entrants
        if len(losses(e.runs)) < len(e.runs)
    ]
    if unstable:
        caption += f"Runs that diverged are not drawn: {', '.join(unstable)}. "
    figure = _style.new_figure(
        _title(rows, names),
        caption + told_apart({n: comparable(e.runs) for n, e in zip(names, rows, strict=True)}),
        footer(replace(inputs, entrants=rows)),
        ROW_IN * len(rows) + 0.6,
    )
    axes = figure.subplots()
    for row, entrant in enumerate(rows):
        _row(axes, row, entrant)
    axes.set_yticks(range(len(rows)), [name.replace(" on ", "\non ") for name in names])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    for tick, entrant in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(entrant.look.text)
        tick.set_fontweight("bold")
    axes.set_xlabel("final validation loss (nats per token)")
    axes.xaxis.set_major_locator(_style.ticks(8))
    return figure


def _names(rows: Sequence[Series]) -> list[str]:
    """The shortest name of each entrant that is unique on its track, and the track."""
    tracks = {
        e.track: _style.short_names([o.label for o in rows if o.track == e.track]) for e in rows
    }
    return [f"{tracks[entrant.track][entrant.label]} on {entrant.track}" for entrant in rows]


def _title(rows: Sequence[Series], names: Sequence[str]) -> str:
    steps = rows[0].runs[0].steps_planned
    low, high = (f"{names[i]} at {mean(losses(rows[i].runs)).value:.3f}" for i in (0, -1))
    return f"After {steps} steps the loss is lowest with {low}, highest with {high}"


def _row(axes: Axes, row: int, entrant: Series) -> None:
    values, look = losses(entrant.runs), entrant.look
    axes.plot(
        values, [row - 0.15] * len(values), look.marker, color=look.color, markersize=6,
        mec="white", mew=0.5, alpha=0.8,
    )  # fmt: skip
    estimate = mean(values)
    axes.plot(estimate.value, row + 0.15, "|", color=look.color, markersize=12, mew=2.5)
    if estimate.low is not None and estimate.high is not None:
        axes.plot([estimate.low, estimate.high], [row + 0.15] * 2, color=look.color, linewidth=2)
    text = f"{estimate.value:.4f}\n{interval(estimate, '{:.4f}'.format)}".strip()
    axes.text(
        1.01, row, text, transform=axes.get_yaxis_transform(), size=_style.SMALL_PT,
        color=look.text, va="center",
    )  # fmt: skip
