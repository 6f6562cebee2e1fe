"""The progress bar of a command that prepares data: bytes, speed and time left, on stderr."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def bytes_bar() -> "Progress":
    """A bar whose tasks count bytes; begin it by `with`."""
    from rich import console, progress

    return progress.Progress(
        "{task.description}", progress.BarColumn(), progress.DownloadColumn(),
        progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        console=console.Console(stderr=True),
    )  # fmt: skip
