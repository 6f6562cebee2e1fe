"""One file of public training logs: the runs that its lines tell of.

    read_log(Path("log.txt")).runs

A file may hold several runs: a run ends where the step does not increase. Nothing of a file is ever
executed, and links are not followed.
"""

import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from leaderboard.log_lines import MOST_READOUTS, NO_CLOCK, Memory, Result, parse
from tracking.schema import PublicPoint

# A log of 20,000 steps with a line each has 2 MB.
MOST_FILE_BYTES, MOST_LINE, MOST_LINES = 32 << 20, 1 << 20, 1_000_000
MOST_RUNS, MOST_POINTS = 1000, 300_000  # in a file
UNTIMED_STEPS = 10  # early logs set the clock to 0 after so many steps

RULE = re.compile(r"={20,}\s*")  # between a program, the machine and the results
NAMED_RULE = re.compile(r"={3,} [^=]+ ={3,}\s*")  # such as "===== run output ====="
QUOTES = re.compile(r"\"\"\"|'''")  # around text of several lines in a program
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
    untimed: str = ""  # the first steps, which the clock leaves out: how many
    timed: list[tuple[int, float]] = field(default_factory=list)  # first, last without validation
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
            self._add_time(result, result.train_seconds, line)
        if not all(math.isfinite(x) for x in (result.val_loss, result.train_loss) if x is not None):
            self.odd.setdefault("a loss is not finite", line)
        if _validates(result) and not all(math.isfinite(x) for x, _ in result.readouts.values()):
            self.odd.setdefault("a read-out is not finite", line)
        self.step = result.step
        self.train_loss = _finite(result.train_loss) or self.train_loss
        if _validates(result):
            self._add_point(result)
        else:
            self.last_other = result.step

    def _add_time(self, result: Result, seconds: float, line: int) -> None:
        if self.seconds is not None and seconds < self.seconds:
            if result.step > 2 * UNTIMED_STEPS:
                self.odd.setdefault("the clock runs backwards", line)
            elif result.step > 1:  # lines between may be missing
                least, most = self.step, max(self.step, result.step - 1)
                self.untimed = f"{most}" if least == most else f"{least} to {most}"
        self.seconds = seconds
        if result.step > UNTIMED_STEPS and not _validates(result):
            self.timed = [*self.timed[:1], (result.step, seconds)]

    def _add_point(self, result: Result) -> None:
        before = self.points.get(result.step)
        words = [before.readouts] if before and before.readouts else []
        finite = [(k, x, unit) for k, (x, unit) in result.readouts.items() if math.isfinite(x)]
        words += [f"{name}={value!r}{unit}" for name, value, unit in finite]
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
        self._is_quoted = False  # within quotes of a program
        self._points, self._previous = 0, ""
        self._open: Found | None = None  # the run that goes on

    def take(self, number: int, line: str) -> None:
        """Take one line. Raises UnreadableError where there is more than a log has."""
        if "\ufffd" in line and not self.replaced:
            self.replaced = number
        for part in line.split("\r"):  # a progress bar writes over its own line
            self._take(number, part)

    def _take(self, number: int, line: str) -> None:
        # A program prints a named rule too, and its text may hold one between its quotes.
        if RULE.fullmatch(line) or (not self._is_quoted and NAMED_RULE.fullmatch(line)):
            self._is_program = self._is_first_part = self._is_quoted = False
            return
        if self._is_program or self._is_first_part or PROGRAM.match(line):
            self._is_quoted ^= len(QUOTES.findall(line)) % 2 == 1
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
