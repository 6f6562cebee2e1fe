"""The history of the public records: the best of each day, as a staircase.

    for history in histories.all_of(published.load()): ...

Claims: a step is a record that is below all that the same list has up to its date. A list may hold
a record again that was timed anew, with another time, and its dates need not be in order, so not
every record in it is a step of the staircase.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.published import Data
from analysis.table import markdown_grid


@dataclass(frozen=True)
class Record:
    """One record of a list."""

    name: str  # its number in the list
    date: datetime.date
    value: float  # minutes or steps
    is_best: bool  # below all before it


@dataclass(frozen=True)
class History:
    """The records of one list, by date."""

    name: str
    unit: str  # minutes or steps
    records: Sequence[Record]

    @property
    def staircase(self) -> list[Record]:
        """The records that were the best of their day."""
        return [record for record in self.records if record.is_best]


def all_of(data: Data) -> list[History]:
    """Track 1 and track 2 in minutes, and track 3's world records in steps."""
    names = {1: "track 1: 124M to 3.28", 2: "track 2: 350M to 2.92"}
    timed = {
        track: [(str(r.record), r.date, r.minutes) for r in data.records if r.track == track]
        for track in names
    }
    steps = [(f"#{c.result}", c.date, c.claimed_steps) for c in data.claims if c.world_record]
    return [
        *(_history(name, "minutes", timed[track]) for track, name in names.items()),
        _history("track 3: world records to 3.28", "steps", steps),
    ]


def _history(name: str, unit: str, rows: Sequence[tuple[str, str, float]]) -> History:
    found: list[Record] = []
    for number, date, value in sorted(rows, key=lambda row: row[1]):  # keeps the list's order
        best = min((record.value for record in found), default=float("inf"))
        found.append(Record(number, datetime.date.fromisoformat(date), value, value < best))
    return History(name, unit, found)


def summary(histories: Sequence[History]) -> str:
    """A table of first and last records, and which records are no step of their staircase."""
    rows, notes = [], []
    for history in histories:
        stairs = history.staircase
        first, last = stairs[0], stairs[-1]
        rows.append(
            [
                history.name, history.unit, str(len(history.records)),
                f"{first.value:g} ({first.date})", f"{last.value:g} ({last.date})",
                f"{first.value / last.value:.2f}x",
            ]
        )  # fmt: skip
        others = [r for r in history.records if not r.is_best]
        if others:
            shown = ", ".join(f"{r.name} ({r.value:g}, {r.date})" for r in others)
            notes.append(f"- {history.name}: no new best are {shown}.")
    headings = ["list", "in", "records", "first", "last", "first over last"]
    return "\n".join([markdown_grid(headings, rows), "", *notes])


def markdown(histories: Sequence[History]) -> str:
    """All records of all lists as a table."""
    rows = [
        [h.name, r.name, str(r.date), f"{r.value:g} {h.unit}", "yes" if r.is_best else "no"]
        for h in histories
        for r in h.records
    ]
    return markdown_grid(["list", "record", "date", "value", "new best"], rows)
