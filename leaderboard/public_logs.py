"""Reads public training logs into tables of ours: a row for each run, and its curve.

    python -m leaderboard import LOGS…                   # prints a table
    python -m leaderboard import LOGS… --out FOLDER      # also writes runs.csv and curves/

LOGS are files, or folders whose files *.txt and *.log are read. The logs of modded-nanogpt of every
era are known (`leaderboard.log_lines`). A file may hold several runs, and a run may be in several
files: a run ends where the step does not increase, and a copy of an earlier one is named as its
duplicate. A run is named after its file, and after folders where other files have that name. What
could not be read is listed with its reason. Nothing of a log is ever executed, and links are not
followed.
"""

import argparse
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.table import aligned
from errors import UserError
from host import entry, paths
from leaderboard.log_file import UNTIMED_STEPS, Found, Log, UnreadableError, read_log
from tracking.schema import PublicPoint, PublicRun
from tracking.store import write_rows

MOST_FILES, MOST_FOLDERS = 20_000, 20_000
MOST_IN_ALL = 2_000_000  # validations, about 500 MB
SUFFIXES = (".txt", ".log")  # of the files that are read in folders
NAME_LENGTH, MOST_PARTS = 80, 40  # characters of a run's name, and parts of a path in it
FEWEST_STEPS = 10  # fewer steps do not tell the milliseconds of one


@dataclass(frozen=True)
class Imported:
    """What was read of all files, and what was not."""

    runs: Sequence[PublicRun]
    curves: Mapping[str, Sequence[PublicPoint]]  # by the name of the run
    unread: Sequence[tuple[str, str]]  # file and reason


def read_logs(given: Sequence[Path]) -> Imported:
    """The runs of files and folders. Raises UserError for a path that is missing."""
    logs: list[Log] = []
    unread: list[tuple[str, str]] = []
    points = 0
    for path, left_out in _files(given):
        if left_out:
            unread.append((shown(path), left_out))
            continue
        try:
            logs.append(read_log(path))
        except UnreadableError as reason:
            unread.append((shown(path), str(reason)))
            continue
        points += sum(len(found.curve()) for found in logs[-1].runs)
        if points > MOST_IN_ALL:
            raise UserError(f"{path}: more than {MOST_IN_ALL} validations; name a smaller folder")
    return Imported(*_named(logs), unread)


def _named(logs: Sequence[Log]) -> tuple[list[PublicRun], dict[str, Sequence[PublicPoint]]]:
    """The rows and the curves of all runs, each under its name."""
    runs: list[PublicRun] = []
    curves: dict[str, Sequence[PublicPoint]] = {}
    first_with: dict[tuple, str] = {}  # name of the run that was the first with an identity
    names = _names([log.file for log in logs])
    for log in logs:
        for number, found in enumerate(log.runs, start=1):
            name = _unique(names[log.file], number if len(log.runs) > 1 else 0, curves)
            identities = [(log.sha256, number), *_identity(found)]
            first = next((first_with[key] for key in identities if key in first_with), "")
            for key in identities:
                first_with.setdefault(key, first or name)
            runs.append(_row(name, log, found, first))
            curves[name] = found.curve()
    return runs, curves


def _files(given: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """Files to read, each with a reason why it is left out, or "". Raises UserError."""
    for path in given:
        if not os.path.lexists(path):
            raise UserError(f"{path}: there is no such file or folder; name a log or a folder")
    seen = 0
    for path in given:
        inside = _walk(path) if path.is_dir() and not path.is_symlink() else iter([(path, "")])
        for each in inside:
            seen += 1
            if seen > MOST_FILES:
                raise UserError(f"{path}: more than {MOST_FILES} files; name a smaller folder")
            yield each


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    others, errors = 0, list[OSError]()
    for visited, (root, folders, names) in enumerate(os.walk(folder, onerror=errors.append)):
        if visited >= MOST_FOLDERS:
            raise UserError(f"{folder}: more than {MOST_FOLDERS} folders; name a smaller one")
        folders.sort()
        for name in sorted(names):
            if name.lower().endswith(SUFFIXES):
                yield Path(root) / name, ""
            else:
                others += 1
        for name in folders:
            if (Path(root) / name).is_symlink():
                yield Path(root) / name, "is a link, and links are not followed"
    for error in errors:
        yield Path(error.filename), f"cannot be opened: {error.strerror}"
    if others:
        yield folder, f"{others} files in it are neither {' nor '.join(SUFFIXES)}"


def shown(path: Path) -> str:
    """A path in one line, whatever characters its name has."""
    return "".join(
        c if c.isprintable() else "?" for c in os.fsencode(path).decode("utf-8", "replace")
    )


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file: its own, after as many folders as tell it from files named like it."""
    by_stem: dict[str, set[Path]] = {}
    for file in files:
        by_stem.setdefault(_plain(file, 1), set()).add(file)
    names: dict[Path, str] = {}
    for alike in by_stem.values():
        different = len({(file.parent, file.stem) for file in alike})
        for parts in range(1, max(len(file.parts) for file in alike) + 1):
            group = {file: _plain(file, parts) for file in alike}
            if len(set(group.values())) == different or parts == MOST_PARTS:
                break
        names |= group
    return names


def _plain(file: Path, parts: int) -> str:
    """The last parts of a path as the name of a file. Too long a name loses its beginning."""
    text = "-".join([*file.parent.parts, file.stem][-parts:])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[-NAME_LENGTH:].strip("-.") or "log"


def _unique(plain: str, number: int, taken: Mapping[str, object]) -> str:
    """A name for a run that no other run has."""
    name = f"{plain}-run{number}" if number else plain
    if name not in taken:
        return name
    return next(each for i in itertools.count(2) if (each := f"{name}-{i}") not in taken)


def _identity(found: Found) -> list[tuple]:
    """What only two copies of a run share: its validations, or a single one with its time."""
    points = [p for p in found.points.values() if p.val_loss is not None]
    if len(points) > 1:
        return [tuple((p.step, p.val_loss) for p in points)]
    # Runs with one seed have one loss at step 0, and their times there differ by little.
    return [(p.step, p.val_loss, p.train_seconds) for p in points if p.step and p.train_seconds]


def _row(name: str, log: Log, found: Found, duplicate_of: str) -> PublicRun:
    points = found.curve()
    last = points[-1]
    # A loss of an earlier step says nothing of the run's last step.
    is_final = bool(found.points) and last.step == found.step
    return PublicRun(
        name=name,
        file=shown(log.file),
        line=found.line,
        era=found.era,
        planned_steps=found.planned,
        steps=found.step,
        final_val_loss=last.val_loss if is_final else None,
        readouts=last.readouts if is_final else "",
        train_seconds=found.seconds,
        step_ms=_step_ms(found),
        peak_memory_bytes=found.memory.peak_bytes if found.memory else None,
        reserved_memory_bytes=found.memory.reserved_bytes if found.memory else None,
        sha256=log.sha256,
        duplicate_of=duplicate_of,
        notes="; ".join([*_notes(found), *log.notes]),
    )


def _notes(found: Found) -> list[str]:
    """What a reader of a run's row has to know beside its numbers."""
    notes = [f"line {line}: {text}" for text, line in found.odd.items()]
    if found.untimed:
        notes.append(f"its seconds leave out the first {found.untimed} steps: the clock restarts")
    validated = max(found.points, default=None)
    if validated is None:
        notes.append("no validation")
    elif validated < found.step:
        last = f"its last line is of step {found.step}"
        notes.append(f"no validation after step {validated} ({last})")
    if found.planned and found.step < found.planned:
        notes.append("ends before its planned steps")
    return notes


def _step_ms(found: Found) -> float | None:
    """Milliseconds a step by the clock; None where it tells of too few steps."""
    timed = [
        (p.step, p.train_seconds)
        for p in found.points.values()
        if p.train_seconds is not None and p.step > UNTIMED_STEPS
    ]
    if len(timed) < 2:
        timed = found.timed
    if len(timed) < 2:
        return None
    (first, start), (last, end) = timed[0], timed[-1]
    if last - first < FEWEST_STEPS or end <= start:
        return None
    return round(1000 * (end - start) / (last - first), 3)


# ---- The command -------------------------------------------------------------------------------


def command(options: argparse.Namespace) -> int:
    """Read, print and write; the exit code. Raises UserError if nothing could be read."""
    if options.out and os.path.lexists(options.out / "runs.csv"):
        raise UserError(f"{options.out} already has a runs.csv; name another folder with --out")
    imported = read_logs(options.logs)
    for file, reason in imported.unread:
        print(f"not read: {file}: {reason}")
    if not imported.runs:
        raise UserError(
            f"no training log among {len(imported.unread)} files; name logs that have lines such "
            "as step:125/6200 val_loss:5.0 train_time:24000ms"
        )
    print(table(imported.runs))
    copies = sum(bool(run.duplicate_of) for run in imported.runs)
    files = len({run.file for run in imported.runs})
    print(f"{len(imported.runs)} runs in {files} files, {copies} of them duplicates")
    if options.out:
        for name, points in imported.curves.items():
            write_rows(options.out / "curves" / f"{name}.csv", PublicPoint, points)
        write_rows(options.out / "runs.csv", PublicRun, imported.runs)
        print(f"written: {options.out / 'runs.csv'} and {len(imported.curves)} curves")
    return 0


def table(runs: Sequence[PublicRun]) -> str:
    """The runs as plain text."""

    def number(value: float | None, form: str = "{:g}") -> str:
        return "-" if value is None else form.format(value)

    rows = [
        [
            run.name, run.era, number(run.planned_steps, "{}"), str(run.steps),
            number(run.final_val_loss, "{:.5f}"), number(run.train_seconds, "{:.1f}"),
            number(run.step_ms, "{:.1f}"), run.readouts or "-",
            f"duplicate of {run.duplicate_of}" if run.duplicate_of else run.notes or "-",
        ]
        for run in runs
    ]  # fmt: skip
    head = [
        "run",
        "era",
        "planned",
        "steps",
        "val loss",
        "seconds",
        "ms/step",
        "read-outs",
        "notes",
    ]
    return aligned([head, *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 where nothing was read."""
    parser = entry.parser("leaderboard import", __doc__)
    parser.add_argument("logs", nargs="+", type=paths.typed, metavar="LOGS")
    parser.add_argument(
        "--out", type=paths.typed, metavar="FOLDER", help="write the tables there; default: print"
    )
    return entry.run(parser, argv, command)
