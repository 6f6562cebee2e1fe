"""What the tables of the planner share: --csv FILE, and large numbers in few digits."""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from errors import UserError
from host import paths

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def add_csv(parser: argparse.ArgumentParser) -> None:
    """The flag --csv FILE."""
    parser.add_argument("--csv", type=paths.typed, metavar="FILE", help="write the table there too")


def write_csv(path: Path, table: Sequence[Sequence[object]]) -> None:
    """The table as CSV. Raises UserError if it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}; choose another file") from error


def short(number: float) -> str:
    """A count in four digits: 1.573T, 36.63B, 124.4M."""
    for scale, letter in _SCALES:
        if abs(number) >= scale:
            return f"{number / scale:#.4g}{letter}"
    return f"{number:g}"
