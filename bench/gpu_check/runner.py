"""A part of the check: a process of its own with a limit of time, and what it notes down.

A process, because an error on a GPU may spoil the device for everything that the process does
later, and because one that hangs can then be ended. The parent never touches the GPU: that is what
lets it fork.
"""

import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
REASON_LENGTH = 300  # characters


@dataclass(frozen=True)
class Check:
    """A row of checks.csv: a number, and the range that it must lie in."""

    part: str
    check: str
    status: str
    value: float | None = None
    least: float | None = None
    most: float | None = None
    note: str = ""  # of a failure or what was skipped, the reason


@dataclass(frozen=True)
class Measure:
    """A row of measures.csv."""

    part: str
    case: str
    quantity: str
    value: float
    unit: str
    size: str  # full, or toy: then it says nothing about speed


class Notes:
    """What a part finds, written down line by line, so that it survives the part."""

    def __init__(self, part: str, size: str, path: Path) -> None:
        self._part, self._size, self._path = part, size, path

    def check(
        self,
        name: str,
        value: float,
        most: float | None = None,
        least: float | None = None,
        note: str = "",
    ) -> None:
        """Passed if `value` is at most and at least that; not a number fails."""
        value = float(value)
        fine = (most is None or value <= most) and (least is None or value >= least)
        status = PASSED if fine and not math.isnan(value) else FAILED
        self._write(Check(self._part, name, status, value, least, most, note))

    def skip(self, name: str, reason: str) -> None:
        """It cannot be done here, which is no failure."""
        self._write(Check(self._part, name, SKIPPED, note=reason))

    def fail(self, name: str, reason: str) -> None:
        self._write(Check(self._part, name, FAILED, note=reason))

    def measure(self, case: str, quantity: str, value: float, unit: str) -> None:
        self._write(Measure(self._part, case, quantity, float(value), unit, self._size))

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """What goes wrong inside is a failed check of this name; what follows goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(name, reason(error))

    def _write(self, row: Check | Measure) -> None:
        line = json.dumps([type(row).__name__, asdict(row)])
        with self._path.open("a") as file:
            file.write(line + "\n")


def reason(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:REASON_LENGTH]


@dataclass(frozen=True)
class Part:
    """Something to do: `run` takes the setting, where to note, and the seconds that it has."""

    name: str
    what: str
    run: Callable[[Any, Notes, float], None]
    share: float | None  # of all seconds; None: what is left of them


@dataclass
class Result:
    """What became of a part."""

    part: Part
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""  # why it did not come to its end; empty if it did
    checks: list[Check] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)

    @property
    def status(self) -> str:
        if any(check.status == FAILED for check in self.checks):
            return FAILED
        done = self.measures or any(check.status == PASSED for check in self.checks)
        return PASSED if done else SKIPPED


def run(part: Part, setting: Any, seconds: float) -> Result:
    """Do a part in a process of its own, and end it after `seconds`.

    What it prints, tracebacks too, goes to <out>/logs/<part>.txt.
    """
    logs: Path = setting.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log, rows = logs / f"{part.name}.txt", logs / f"{part.name}.jsonl"
    rows.write_text("")
    result = Result(part, limit=seconds)
    notes = Notes(part.name, setting.size, rows)
    begun = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write it once more
    child = get_context("fork").Process(target=_child, args=(part, setting, notes, seconds, log))
    child.start()
    try:
        child.join(seconds)
        if child.exitcode is None:
            result.reason = f"ended after {seconds:.0f} s, which is all the time it has"
    finally:
        _end(child)
    if not result.reason and child.exitcode:
        how = f"signal {-child.exitcode}" if child.exitcode < 0 else f"exit code {child.exitcode}"
        result.reason = f"its process ended with {how}; see {log}"
    if result.reason:
        notes.fail("comes to its end", result.reason)
    result.seconds = time.monotonic() - begun
    result.checks, result.measures = read(rows)
    return result


def _child(part: Part, setting: Any, notes: Notes, seconds: float, log: Path) -> None:
    os.setsid()  # a group of its own: it is ended with its compilers, and not by Ctrl-C
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for stream in (1, 2):  # for what does not print through Python
        os.dup2(sys.stdout.fileno(), stream)
    with notes.attempt("comes to its end"):
        part.run(setting, notes, seconds)


def _end(child: Any) -> None:
    """End a child and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.is_alive():  # before it had a group
        child.kill()
    child.join(5)  # one that the driver holds is left behind


def read(rows: Path) -> tuple[list[Check], list[Measure]]:
    """What a part has noted; a last line that a kill cut off is left out."""
    checks: list[Check] = []
    measures: list[Measure] = []
    for line in rows.read_text().split("\n")[:-1]:
        kind, values = json.loads(line)
        if kind == "Check":
            checks.append(Check(**values))
        else:
            measures.append(Measure(**values))
    return checks, measures
