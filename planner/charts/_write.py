"""Writes a chart where the user said, as PNG and SVG beside each other."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from analysis.charts._make import save
from analysis.charts._style import drawing, freeze_layout
from tracking.files import check_writable


def write(path: Path, make: Callable[[], Figure]) -> list[Path]:
    """The paths of both. path: with or without the suffix of one of them. Raises UserError."""
    stem = path if path.suffix in (".png", ".svg") else path.with_name(f"{path.name}.png")
    check_writable(stem.parent, otherwise="choose another file for the chart")
    stem.parent.mkdir(parents=True, exist_ok=True)
    with drawing():
        figure = make()
        freeze_layout(figure)
    return save(figure, stem)
