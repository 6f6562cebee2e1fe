"""Writes a chart where the user said, as PNG and SVG beside each other."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from analysis.charts._make import save
from analysis.charts._style import drawing, freeze_layout
from errors import UserError
from tracking.files import check_writable


def write(path: Path, make: Callable[[], Figure]) -> list[Path]:
    """The paths of both. path: with or without the suffix of one of them. Raises UserError."""
    drawn = path.suffix in (".png", ".svg")
    if path.is_dir() or (not drawn and path.suffix[1:].isalpha()):  # not the dot of qwen2.5-3b
        raise UserError(f"{path}: a chart is a .png and a .svg; name a file such as chart.png")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no such folder; make it, or choose another file")
    stem = path if drawn else path.with_name(f"{path.name}.png")
    check_writable(stem.parent, otherwise="choose another file for the chart")
    with drawing():
        figure = make()
        freeze_layout(figure)
    return save(figure, stem)
