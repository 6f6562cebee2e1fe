"""The standing records: which claims set the record of their day, on each board of a track.

A board of steps is one for each track and for the rules that it had; a board of seconds is one for
each class of hardware besides. The first race on a board sets its record with its best claim. A
later one does if it is faster and the pairwise test says that this is not chance (`rules.beats`).
"""

from collections.abc import Iterable

from leaderboard import rules as rulebook
from leaderboard.claims import Race
from leaderboard.form import RECORD, Record
from tracking.schema import Run

BOARDS = ("steps", "seconds")


def walk(records: Iterable[tuple[Record, Race]]) -> dict[tuple[str, str], list[str]]:
    """The boards on which each claim set a record, by the record's folder and the label."""
    races = sorted(
        ((record, race) for record, race in records if record.kind == RECORD),
        key=lambda each: (min(run.started for run in each[1].runs), each[0].folder),
    )
    held: dict[tuple[str, str], list[str]] = {}
    best: dict[tuple[str, str, str], list[Run]] = {}  # by board
    for record, race in races:
        rules = rulebook.of(record.track, record.rules)
        if rules is None:
            continue
        for unit in BOARDS:
            hardware = record.hardware if unit == "seconds" else ""
            board = (rulebook.board_of(record.track, record.rules), unit, hardware)
            groups = {claim.label: race.entrants[claim.label] for claim in record.claims}
            before = best.get(board)
            faster = [
                label
                for label, runs in groups.items()
                if before is None or rulebook.beats(runs, before, unit, rules)
            ]
            if faster:
                label = min(faster, key=lambda name: (rulebook.spent(groups[name], unit), name))
                best[board] = groups[label]
                held.setdefault((record.folder, label), []).append(unit)
    return held
