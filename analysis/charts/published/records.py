"""The history of the public records: a staircase for each list."""

import datetime

from matplotlib.dates import ConciseDateFormatter, DayLocator, MonthLocator
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from analysis import histories
from analysis.charts import _style
from analysis.published import Data

LOOKS = _style.looks_in_order(["track 1", "track 2", "track 3"])


def draw(data: Data) -> Figure:
    """A panel for each list; the time axes differ."""
    found = histories.all_of(data)
    first = found[0].staircase
    figure = _style.new_figure(
        f"Track 1 went from {first[0].value:g} to {first[-1].value:g} minutes: "
        f"{first[0].value / first[-1].value:.0f}x as fast",
        "The best record of each day (line), and all records of the list (points). A point above "
        "the line is a record that was timed anew, or that is listed with a later date than a "
        "better one. Minutes are of 8 H100, on a logarithmic axis. Track 3 fixes all but the "
        "optimizer, so its staircase is in steps.",
        "modded-nanogpt, snapshot of 2026-08-01 · results/published",
        3.0,
    )
    panels = figure.subplots(1, 3)
    for axes, history, look in zip(panels, found, LOOKS.values(), strict=True):
        stairs = history.staircase
        end = history.records[-1].date + datetime.timedelta(days=1)
        axes.step(
            [r.date for r in stairs] + [end], [r.value for r in stairs] + [stairs[-1].value],
            where="post", color=look.color, linewidth=1.4,
        )  # fmt: skip
        axes.plot(
            [r.date for r in history.records], [r.value for r in history.records],
            ".", color=look.color, markersize=4,
        )  # fmt: skip
        for record, place, align in ((stairs[0], (4, 3), "left"), (stairs[-1], (-4, -9), "right")):
            axes.annotate(
                f"{record.value:g}", (record.date, record.value), place,
                textcoords="offset points", ha=align, size=_style.SMALL_PT, color=look.text,
            )  # fmt: skip
        if history.unit == "minutes":
            axes.set_yscale("log")
            axes.set_yticks(_ticks(stairs[-1].value, stairs[0].value))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
        axes.margins(y=0.12)
        axes.set_title(history.name)
        axes.set_ylabel(history.unit)
        days = (end - stairs[0].date).days
        locator = MonthLocator((1, 7)) if days > 200 else DayLocator((1, 15))
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two values, or at one of them."""
    every = [digit * 10.0**power for power in range(-1, 4) for digit in (1, 2, 5)]
    return [tick for tick in every if low / 1.3 <= tick <= high * 1.3]
