"""The progress bar of a command that prepares data: bytes, speed and time left, on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def bytes_bar() -> Iterator["Progress"]:
    """A bar whose tasks count bytes."""
    from rich import console, progress

    bar = progress.Progress(
        "{task.description}", progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
    )  # fmt: skip
    with bar:
        bar.console.show_cursor(True)  # rich hides it, and a killed process could not show it
        yield bar
