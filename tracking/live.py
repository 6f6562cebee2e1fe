"""The display of a race while it runs: one table, with a row an entrant, both curves side by side.

On a terminal the table is drawn in place, with rich. Without a terminal or without rich, each
validation is printed as a line.
"""

import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from tracking.lanes import Lane, OnProgress, Progress, Scoreboard, duration
from tracking.schema import Run

if TYPE_CHECKING:  # rich is optional
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live as Drawn

__all__ = ["Lane", "Live", "OnProgress", "Progress", "introduce"]

REDRAW_SECONDS = 0.2  # least time between two drawings while runs report
NAME_MOST = 40  # characters of a name that later columns of a log are aligned to


class Entrant(Protocol):
    """What the table at the start of a race shows; see `optim.entrants.Entrant`."""

    @property
    def label(self) -> str: ...
    @property
    def origin(self) -> str: ...
    @property
    def settings(self) -> dict[str, Any]: ...
    @property
    def changed(self) -> Mapping[str, Any]: ...
    @property
    def copyable(self) -> str: ...


def introduce(entrants: Sequence[Entrant]) -> str:
    """The table at the start of a race, and for each entrant a line to race it again."""
    headings = ("entrant", "steps", "settings", "options that differ from the recipe's defaults")
    rows = [headings]
    for entrant in entrants:
        options = {key: value for key, value in entrant.changed.items() if key != "steps"}
        words = " ".join(f"{key}={value}" for key, value in options.items())
        rows.append((entrant.label, str(entrant.settings["steps"]), entrant.origin, words or "-"))
    widest = (40, 6, 28)  # of the first columns; longer texts break into lines
    widths = [
        min(most, max(len(row[column]) for row in rows)) for column, most in enumerate(widest)
    ]
    widths.append(max(30, min(110, shutil.get_terminal_size().columns) - sum(widths) - 6))
    lines = [line for row in rows for line in _broken(row, widths)]
    again = [f"  python speedrun.py {entrant.copyable}" for entrant in entrants]
    return "\n".join([*lines, "", "to race one of them alone, copy its line:", *again, ""])


def _broken(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """A row of a table as lines of text, with its longer cells broken at spaces and commas."""
    cells = [
        textwrap.wrap(re.sub(r",(?=\S)", ", ", cell), width, break_on_hyphens=False) or [""]
        for cell, width in zip(row, widths, strict=True)
    ]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


class Live:
    """The display of a race of `total` runs, of which those in `done` are finished already.

    With `silent` it shows nothing. With `entrants` the table has all its rows from the start, and
    its header says how many seeds there are.

    No thread draws: a thread would take time from a training step, on a run's clock. The display
    changes only when a run begins, reports or ends, which is off the clock.
    """

    def __init__(
        self,
        target: float,
        total: int,
        done: Sequence[Run] = (),
        silent: bool = False,
        entrants: Sequence[Entrant] = (),
    ) -> None:
        horizons = {run.label: run.steps_planned for run in done}
        if entrants:
            horizons = {entrant.label: entrant.settings["steps"] for entrant in entrants}
        self._board = Scoreboard(target, total, done, horizons, self._show)
        self._seeds = total // len(entrants) if entrants else None
        self._silent = silent
        self._drawn: Drawn | None = None
        self._redrawn = -math.inf  # when

    def __enter__(self) -> "Live":
        if sys.stdout.isatty() and not self._silent and find_spec("rich"):
            from rich.console import Console
            from rich.live import Live as Drawn

            console = Console()
            if not (console.is_dumb_terminal or console.options.ascii_only):
                self._drawn = Drawn(self, console=console, auto_refresh=False)
                self._drawn.__enter__()
                console.show_cursor(True)  # rich hides it, and a killed process could not show it
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._drawn.__exit__(kind, error, trace)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from tracking import live_table

        yield live_table.draw(self._board, self._seeds, options.max_width)

    @property
    def runs(self) -> list[Run]:
        """The finished runs of the race."""
        return self._board.runs

    def enter(self, label: str, seed: int, steps: int) -> Lane:
        """A run joins the heat of its seed, and warms up. Another seed begins a new heat."""
        return self._board.enter(label, seed, steps)

    def give_up(self) -> None:
        """Forget the current heat: its runs begin anew, one after the other."""
        self._board.seed = None

    def _show(self, lane: Lane, news: Progress | Run | None) -> None:
        """Show what came in: a report, the row of a finished run, or None for a run that begins."""
        if self._drawn:
            now = time.monotonic()
            if not isinstance(news, Progress) or now - self._redrawn >= REDRAW_SECONDS:
                self._redrawn = now
                self._drawn.refresh()
        elif not self._silent and (not isinstance(news, Progress) or news.val_loss is not None):
            name = f"{lane.label:{min(NAME_MOST, max(map(len, self._board.horizons)))}}"
            print("  ".join([f"{name} seed {lane.seed}", *self._words(lane, news)]), flush=True)

    def _words(self, lane: Lane, news: Progress | Run | None) -> list[str]:
        """What came in, as the words of a line in a log."""
        board = self._board
        finished = f"{len(board.runs)}/{board.total} runs finished"
        if news is None:
            return [f"{lane.steps} steps, warming up", finished]
        if isinstance(news, Run):
            left = board.race_seconds_left()
            loss = "no loss" if news.final_loss is None else f"final loss {news.final_loss:.4f}"
            cost = news.seconds_to_target
            return [
                lane.standing() + (f", {cost:.1f} s" if cost is not None else ""),
                loss,
                f"{1e3 * news.train_seconds / max(1, news.steps):.0f} ms/step",
                finished + (f", about {duration(left)} left" if left else ""),
            ]
        left = board.seconds_left(lane)
        digits = len(str(max(board.horizons.values())))
        words = [
            f"step {news.step:{max(3, digits)}}/{news.steps:<{digits}}",
            f"train {news.train_loss:.4f}",
            f"val {news.val_loss:.4f}",
            f"{lane.distance:+.3f}",
            f"{news.seconds:5.1f} s",
        ]
        words += [f"about {duration(left)} left"] if left else []
        return words + ([lane.standing()] if lane.met_at is not None else [])
