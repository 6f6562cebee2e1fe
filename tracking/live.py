"""The display of a race while it runs: a progress bar with the time left, a table of finished runs.

On a terminal the display is drawn in place, with rich. Without a terminal or without rich, each
validation is printed as a line.
"""

import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from tracking.schema import Run

if TYPE_CHECKING:  # rich is optional
    from rich.console import RenderableType
    from rich.live import Live as Drawn


# step, steps, training loss, validation loss or None
OnProgress = Callable[[int, int, float, float | None], None]


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

    With `silent` it shows nothing.
    """

    def __init__(self, total: int, done: Sequence[Run] = (), silent: bool = False) -> None:
        self.total, self.runs, self.silent = total, list(done), silent
        self._drawn: Drawn | None = None
        self._label, self._begun, self._steps_left = "", 0.0, 0

    def __enter__(self) -> "Live":
        if sys.stdout.isatty() and not self.silent and find_spec("rich"):
            from rich.live import Live as Drawn
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("step {task.completed}/{task.total}  {task.fields[loss]}"),
                TimeRemainingColumn(),
            )
            self._task = self._progress.add_task("starting", total=None, loss="")
            self._drawn = Drawn(get_renderable=self._draw, refresh_per_second=4)
            self._drawn.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._drawn:
            self._drawn.__exit__(kind, error, trace)

    def start(self, label: str, seed: int, steps: int) -> None:
        """Show that a run starts, with its warm-up."""
        self._label = f"run {len(self.runs) + 1}/{self.total}  {label}  seed {seed}"
        self._begun = 0.0
        if self._drawn:
            self._progress.reset(
                self._task, total=steps, description=self._label, loss="warming up"
            )
        elif not self.silent:
            print(f"{self._label}: {steps} steps", flush=True)

    def watch(self, step: int, steps: int, train_loss: float, val_loss: float | None) -> None:
        """Show a step, and its validation if there was one; losses in nats per token."""
        self._begun = self._begun or time.monotonic()
        if self._drawn:
            loss = f"train {train_loss:.3f}" if val_loss is None else f"val {val_loss:.4f}"
            self._progress.update(self._task, completed=step, loss=loss)
        elif val_loss is not None and not self.silent:
            pace = (time.monotonic() - self._begun) / max(1, step - 1)
            print(
                f"  step {step:4d}/{steps}  train {train_loss:.4f}  val {val_loss:.4f}  "
                f"{pace * (steps - step):3.0f} s left",
                flush=True,
            )

    def finish(self, run: Run) -> None:
        """Show that a run is finished and recorded."""
        self.runs.append(run)
        if not self._drawn and not self.silent:
            print(
                "  {2}: final loss {3}; to target: {4}; {5} ms/step".format(*_cells(run)),
                flush=True,
            )

    def _draw(self) -> "RenderableType":
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for heading in ("entrant", "seed", "outcome", "final loss", "to target", "ms/step"):
            table.add_column(heading, justify="left" if heading == "entrant" else "right")
        for run in self.runs:
            table.add_row(*_cells(run))
        return Group(table, self._progress) if self.runs else self._progress


def _cells(run: Run) -> list[str]:
    loss = "no loss" if run.final_loss is None else f"{run.final_loss:.4f}"
    cost = (
        f"{run.steps_to_target:.1f} steps, {run.seconds_to_target:.1f} s"
        if run.steps_to_target is not None
        else "-"
    )
    ms = 1e3 * run.train_seconds / max(1, run.steps)
    return [run.label, str(run.seed), run.status, loss, cost, f"{ms:.0f}"]
