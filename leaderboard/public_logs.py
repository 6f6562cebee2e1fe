"""Reads public training logs into tables of ours: a row for each run, and its curve.

    python -m leaderboard import LOGS…                   # prints a table
    python -m leaderboard import LOGS… --out FOLDER      # also writes runs.csv and curves/

LOGS are files, or folders whose files *.txt and *.log are read. The logs of modded-nanogpt of every
era are known (`leaderboard.log_lines`). A file may hold several runs, and a run may be in several
files: a run ends where the step does not increase, and a run with the validations of an earlier one
is named as its duplicate. What could not be read is listed with its reason. Nothing of a log is
ever executed, and links are not followed.
"""

import argparse
import hashlib
import itertools
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from analysis.table import aligned
from errors import UserError
from host import entry, paths
from leaderboard.log_lines import MOST_READOUTS, NO_CLOCK, Memory, Result, parse
from tracking.schema import PublicPoint, PublicRun
from tracking.store import write_rows

# A log of 20,000 steps with a line each has 2 MB.
MOST_FILE_BYTES, MOST_LINE, MOST_LINES = 32 << 20, 1 << 20, 1_000_000
MOST_FILES, MOST_RUNS, MOST_POINTS = 20_000, 1000, 300_000  # in all; in a file
MOST_FOLDERS = 20_000
MOST_IN_ALL = 2_000_000  # validations, about 500 MB
SUFFIXES = (".txt", ".log")  # of the files that are read in folders
NAME_LENGTH = 80
UNTIMED_STEPS = 10  # early logs set the clock to 0 after so many steps

RULE = re.compile(r"={20,}\s*")  # between a program, the machine and the results
PROGRAM = re.compile(  # a line at which a program's text begins or goes on
    r"(?:import |from [\w.]+ import |def |class |async def |@\w|if __name__|#!|\"\"\"|''')"
)
BOMS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


class UnreadableError(Exception):
    """Why a file is no training log, or is not read."""


@dataclass
class Found:
    """A run under way: what its lines have said so far."""

    line: int
    era: str = NO_CLOCK
    planned: int | None = None
    points: dict[int, PublicPoint] = field(default_factory=dict)  # its validations, by step
    step: int = -1  # of the last line
    last_other: int = -1  # step of the last line without a validation
    train_loss: float | None = None  # the last
    seconds: float | None = None
    memory: Memory | None = None
    odd: dict[str, int] = field(default_factory=dict)  # what is odd, and the first line of it

    def goes_on_with(self, result: Result) -> bool:
        """Whether a line is of this run: its step has increased since the last such line."""
        if not _validates(result):
            return result.step >= self.step and result.step > self.last_other
        same = self.points.get(result.step)
        if same is None:
            return result.step >= self.step
        names = {word.partition("=")[0] for word in same.readouts.split()}
        if len(names) > MOST_READOUTS:
            return False
        again = same.val_loss is not None and result.val_loss is not None
        return result.step == self.step and not again and not names & set(result.readouts)

    def add(self, result: Result, line: int) -> None:
        """Take one line in."""
        self.era = result.era if self.era == NO_CLOCK else self.era
        self.planned = self.planned or result.planned_steps
        if result.planned_steps not in (None, self.planned):
            self.odd.setdefault("the planned steps change", line)
        if result.odd:
            self.odd.setdefault(result.odd, line)
        if result.train_seconds is not None:
            backwards = self.seconds is not None and result.train_seconds < self.seconds
            if backwards and result.step > 2 * UNTIMED_STEPS:
                self.odd.setdefault("the clock runs backwards", line)
            self.seconds = result.train_seconds
        if not all(math.isfinite(x) for x in (result.val_loss, result.train_loss) if x is not None):
            self.odd.setdefault("a loss is not finite", line)
        self.step = result.step
        self.train_loss = _finite(result.train_loss) or self.train_loss
        if _validates(result):
            self._add_point(result)
        else:
            self.last_other = result.step

    def _add_point(self, result: Result) -> None:
        before = self.points.get(result.step)
        words = [before.readouts] if before and before.readouts else []
        words += [f"{k}={v:g}" for k, v in result.readouts.items() if math.isfinite(v)]
        val_loss = _finite(result.val_loss)
        self.points[result.step] = PublicPoint(
            result.step,
            before.val_loss if before and val_loss is None else val_loss,
            self.train_loss,
            before.train_seconds if before and result.train_seconds is None else self.seconds,
            " ".join(words),
        )

    def curve(self) -> list[PublicPoint]:
        """Its validations; without any, its last training loss."""
        last = PublicPoint(self.step, None, self.train_loss, self.seconds, "")
        return list(self.points.values()) or [last]


def _validates(result: Result) -> bool:
    """Whether a line is of a validation: it has its loss, or another name of it."""
    return result.val_loss is not None or any("val" in name for name in result.readouts)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ---- One file ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Log:
    """The runs of one file."""

    file: Path
    sha256: str
    runs: Sequence[Found]
    notes: Sequence[str]  # what is odd about the file


def read_log(path: Path) -> Log:
    """The runs of one file. Raises UnreadableError, which says why there are none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise UnreadableError("is a link, and links are not followed") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UnreadableError(f"cannot be opened: {reason}") from error
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("is no regular file")
        if status.st_size > MOST_FILE_BYTES:
            raise UnreadableError(f"{status.st_size} bytes: above {MOST_FILE_BYTES >> 20} MiB")
        try:
            return _read_log(path, file)
        except OSError as error:
            raise UnreadableError(f"cannot be read: {error.strerror}") from error


def _read_log(path: Path, file: BinaryIO) -> Log:
    head = file.read(4)
    encoding = BOMS.get(head[:3]) or BOMS.get(head[:2]) or "utf-8"
    file.seek(0)
    reader = Reader(keeps_program=False)
    digest = hashlib.sha256()
    for number, line in _lines(file, encoding, digest):
        reader.take(number, line)
    notes = [f"read as {encoding}"] if encoding == "utf-16" else []
    if reader.replaced:
        notes.append(f"line {reader.replaced}: bytes that are not {encoding} were replaced")
    if not reader.runs and reader.in_text:
        # A program without the rule of "=" after it: all lines behind it looked like its text.
        file.seek(0)
        again = Reader(keeps_program=True)
        for number, line in _lines(file, encoding, hashlib.sha256()):
            again.take(number, line)
        notes.append("no rule of '=' ends its program text: lines in it may be no results")
        reader = again
    elif reader.in_text:
        lines = f"{reader.in_text} lines that look like results are in its program text"
        notes.append(f"{lines}, from line {reader.first_in_text}: left out")
    if not reader.runs:
        raise UnreadableError("has no line of results: no training log")
    return Log(path, digest.hexdigest(), reader.runs, notes)


def _lines(file: BinaryIO, encoding: str, digest: "hashlib._Hash") -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers. Raises UnreadableError for what is no text."""
    unit = 2 if encoding == "utf-16" else 1
    if unit == 2:  # a line end is two bytes there
        content = file.read(MOST_FILE_BYTES + 1)
        digest.update(content)
        lines: Iterator[str] = iter(content.decode("utf-16", "replace").split("\n"))
    else:
        lines = _decoded(file, encoding, digest)
    for number, line in enumerate(lines, start=1):
        if number > MOST_LINES:
            raise UnreadableError(f"more than {MOST_LINES} lines")
        if "\0" in line:
            raise UnreadableError(f"line {number}: holds a NUL; no text")
        if len(line) > MOST_LINE:
            raise UnreadableError(f"line {number}: longer than {MOST_LINE} characters")
        yield number, line.strip("\r\n")


def _decoded(file: BinaryIO, encoding: str, digest: "hashlib._Hash") -> Iterator[str]:
    read = 0
    while line := file.readline(MOST_LINE + 1):
        read += len(line)
        if read > MOST_FILE_BYTES:  # it grew while it was read
            raise UnreadableError(f"above {MOST_FILE_BYTES >> 20} MiB")
        digest.update(line)
        text = line.decode("utf-8", "replace")
        yield text.removeprefix("\ufeff") if read == len(line) else text


class Reader:
    """Takes the lines of one file, and splits them into runs."""

    def __init__(self, keeps_program: bool) -> None:
        """keeps_program: also take results in the text of a program."""
        self.runs: list[Found] = []
        self.in_text, self.first_in_text = 0, 0  # lines in a program that look like results
        self.replaced = 0  # the first line with bytes of another encoding
        self._keeps, self._is_program, self._is_first_part = keeps_program, False, True
        self._points, self._previous = 0, ""
        self._open: Found | None = None  # the run that goes on

    def take(self, number: int, line: str) -> None:
        """Take one line. Raises UnreadableError where there is more than a log has."""
        if "\ufffd" in line and not self.replaced:
            self.replaced = number
        for part in line.split("\r"):  # a progress bar writes over its own line
            self._take(number, part)

    def _take(self, number: int, line: str) -> None:
        if RULE.fullmatch(line):
            self._is_program = self._is_first_part = False
            return
        if PROGRAM.match(line):
            if self._is_first_part and not self._keeps:  # what came before was its text too
                self.in_text += sum(len(run.curve()) for run in self.runs)
                self.first_in_text = self.runs[0].line if self.runs else self.first_in_text
                self.runs.clear()
            self._is_program, self._open = True, None
            return
        found = parse(line)
        if found is None or (line == self._previous):  # a line that two processes wrote
            return
        if self._is_program and not self._keeps:
            self.in_text += isinstance(found, Result)
            self.first_in_text = self.first_in_text or number
            return
        self._previous = line
        self._add(number, found)

    def _add(self, number: int, found: Result | Memory) -> None:
        if isinstance(found, Memory):
            if self._open and not self._open.memory:
                self._open.memory = found
            return
        if self._open is None or not self._open.goes_on_with(found):
            self._open = Found(number)
            self.runs.append(self._open)
        self._open.add(found, number)
        self._points += 1
        if len(self.runs) > MOST_RUNS or self._points > MOST_POINTS:
            raise UnreadableError(
                f"line {number}: more than {MOST_RUNS} runs or {MOST_POINTS} lines of results"
            )


# ---- All files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Imported:
    """What was read of all files, and what was not."""

    runs: Sequence[PublicRun]
    curves: Mapping[str, Sequence[PublicPoint]]  # by the name of the run
    unread: Sequence[tuple[str, str]]  # file and reason


def read_logs(given: Sequence[Path]) -> Imported:
    """The runs of files and folders. Raises UserError for a path that is missing."""
    runs: list[PublicRun] = []
    curves: dict[str, Sequence[PublicPoint]] = {}
    unread: list[tuple[str, str]] = []
    first_with: dict[tuple, str] = {}
    points = 0
    for path, left_out in _files(given):
        if left_out:
            unread.append((shown(path), left_out))
            continue
        try:
            log = read_log(path)
        except UnreadableError as reason:
            unread.append((shown(path), str(reason)))
            continue
        for number, found in enumerate(log.runs, start=1):
            name = _unique(path.stem, number if len(log.runs) > 1 else 0, curves)
            run = _row(name, log, found)
            if key := _identity(found):
                run = replace(run, duplicate_of=first_with.get(key, ""))
                first_with.setdefault(key, name)
            runs.append(run)
            curves[name] = found.curve()
            points += len(curves[name])
        if points > MOST_IN_ALL:
            raise UserError(f"{path}: more than {MOST_IN_ALL} validations; name a smaller folder")
    return Imported(runs, curves, unread)


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


def _unique(stem: str, number: int, taken: Mapping[str, object]) -> str:
    """A name for a run that can be a file's name and that no other run has."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:NAME_LENGTH] or "log"
    name = f"{plain}-run{number}" if number else plain
    if name not in taken:
        return name
    return next(each for i in itertools.count(2) if (each := f"{name}-{i}") not in taken)


def _identity(found: Found) -> tuple | None:
    """What two copies of a run share: its validations; None for too few to tell."""
    vals = tuple((p.step, p.val_loss) for p in found.points.values() if p.val_loss is not None)
    return vals if len(vals) > 1 else None


def _row(name: str, log: Log, found: Found) -> PublicRun:
    points = found.curve()
    last = next((p for p in reversed(points) if p.val_loss is not None or p.readouts), None)
    notes = [f"line {line}: {text}" for text, line in found.odd.items()]
    if found.planned and found.step < found.planned:
        notes.append("ends before its planned steps")
    return PublicRun(
        name=name,
        file=shown(log.file),
        line=found.line,
        era=found.era,
        planned_steps=found.planned,
        steps=found.step,
        final_val_loss=last.val_loss if last else None,
        readouts=last.readouts if last else "",
        train_seconds=found.seconds,
        step_ms=_step_ms(points),
        peak_memory_bytes=found.memory.peak_bytes if found.memory else None,
        reserved_memory_bytes=found.memory.reserved_bytes if found.memory else None,
        sha256=log.sha256,
        duplicate_of="",
        notes="; ".join([*notes, *log.notes]),
    )


def _step_ms(points: Sequence[PublicPoint]) -> float | None:
    """Milliseconds a step by the clock; None with fewer than two times."""
    timed = [
        (p.step, p.train_seconds)
        for p in points
        if p.train_seconds is not None and p.step > UNTIMED_STEPS
    ]
    if len(timed) < 2 or timed[-1][1] <= timed[0][1]:
        return None
    return round(1000 * (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0]), 3)


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
