"""Which tuned settings lie at an end of their range.

    python -m studies.ends                                         # of optim/tuned.toml
    python -m studies.ends --folder results/records/tiny-ends      # the record

ends.csv has a row for each searched option of each optimizer that the tuner has tuned on `tiny` and
on the tracks with its data. A value is at an end if it is within EDGE of the range from it, on the
range's own scale, or beyond. at_an_end.csv has these rows alone, and summary.csv counts them. No
training is done.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from errors import UserError
from host import entry, paths
from optim.entrants import entrant_options
from speedrun import Schedule
from studies.libraries import write
from studies.points import HIGH, LOW, coordinate, end_of, ranges_of, reason
from tracking import store, tuned

TRACKS = ("tiny", *tuned.SETTINGS_FALLBACK)


class End(NamedTuple):
    """A row of ends.csv."""

    track: str
    optimizer: str
    option: str
    value: float
    low: float
    high: float
    place: str  # of the value in the range, 0 at the low end and 1 at the high one
    end: str  # low or high; empty: at neither
    why: str  # where the end is one by nature, the reason


def ends(sections: Sequence[tuned.Tuned]) -> list[End]:
    """The searched options of sections of tuned.toml, in the order of the file."""
    found = []
    for section in sections:
        for option, bounds in ranges_of(entrant_options(section.recipe, Schedule)).items():
            if option not in section.settings:  # it had no range when the section was tuned
                continue
            value = float(section.settings[option])
            end, why = end_of(bounds, value), reason(option, bounds, value, section.steps)
            place = f"{coordinate(bounds, value):.2f}"
            about = (section.track, section.recipe, option)
            found.append(End(*about, value, bounds.low, bounds.high, place, end, why))
    return found


def summary(rows: Sequence[End]) -> list[list[str]]:
    """The table of counts: a line for each option, and one for all."""
    table = [["option", "values", "at the low end", "at the high end", "of these by nature"]]
    for option in [*dict.fromkeys(row.option for row in rows), "all"]:
        group = [row for row in rows if option in (row.option, "all")]
        counts = [sum(row.end == end for row in group) for end in (LOW, HIGH)]
        numbers = [len(group), *counts, sum(bool(row.why) for row in group)]
        table.append([option, *map(str, numbers)])
    return table


def tables(path: Path = tuned.TUNED) -> dict[str, list[Sequence[str]]]:
    """The files by their names. Raises UserError if nothing is tuned on the tracks."""
    sections = [each for each in tuned.read(path) if each.track in TRACKS and each.trials]
    if not sections:
        raise UserError(f"{path}: has no settings of {TRACKS[0]}; run: make tune TRACK={TRACKS[0]}")
    rows = ends(sections)
    cells = [[str(cell) for cell in row] for row in rows]
    at_end = [line for line, row in zip(cells, rows, strict=True) if row.end]
    return {
        "ends.csv": [End._fields, *cells],
        "at_an_end.csv": [End._fields, *at_end],
        "summary.csv": [*summary(rows)],
    }


def run(given: argparse.Namespace) -> None:
    """Write the files and print the counts. Raises UserError."""
    found = tables()
    store.ready(given.folder)
    for name, table in found.items():
        write(given.folder / name, table)
    for line in found["summary.csv"]:
        print("  ".join(f"{cell:>18}" for cell in line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = entry.parser("studies.ends", __doc__)
    folder = paths.RESULTS / "ends"
    parser.add_argument(
        "--folder", type=paths.typed, default=folder, help="of the files (default: results/ends)"
    )
    return entry.run(parser, argv, run, "the same command starts anew")


if __name__ == "__main__":
    sys.exit(main())
