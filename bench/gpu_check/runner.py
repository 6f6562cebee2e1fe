"""Runs a part of the check in a process with a time limit, and records what it finds.

A process for each part, because after an error on a GPU everything later in the same process may
fail too, and because a process that hangs can be ended. The parent never uses the GPU, so that it
can fork.
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

from bench.gpu_check.config import Config
from host import ending

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
    note: str = ""  # why it failed or was skipped


@dataclass(frozen=True)
class Measure:
    """A row of measures.csv."""

    part: str
    case: str
    quantity: str
    value: float
    unit: str
    size: str  # full or toy; toy sizes say nothing about speed


class Recorder:
    """Writes down what a part finds, line by line, so that it is kept if the part is ended."""

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
        """Record a check: passed if least <= value <= most; not a number fails."""
        value = float(value)
        fine = (most is None or value <= most) and (least is None or value >= least)
        status = PASSED if fine and not math.isnan(value) else FAILED
        self._write(Check(self._part, name, status, value, least, most, note))

    def skip(self, name: str, reason: str) -> None:
        """Record a check that cannot be done here, which is not a failure."""
        self._write(Check(self._part, name, SKIPPED, note=reason))

    def fail(self, name: str, reason: str) -> None:
        """Record a failed check that has no value."""
        self._write(Check(self._part, name, FAILED, note=reason))

    def measure(self, case: str, quantity: str, value: float, unit: str) -> None:
        """Record a measurement."""
        self._write(Measure(self._part, case, quantity, float(value), unit, self._size))

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """Turn an exception inside into a failed check of this name, and go on after it."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(name, reason(error))

    def _write(self, row: Check | Measure) -> None:
        line = json.dumps([type(row).__name__, asdict(row)])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def reason(error: BaseException) -> str:
    """An error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:REASON_LENGTH]


@dataclass(frozen=True)
class Part:
    """A part: `run` takes the configuration, the recorder and the seconds that it has."""

    name: str
    what: str
    run: Callable[[Config, Recorder, float], None]
    time_fraction: float  # of all seconds: its limit; what the last part has at least


@dataclass
class Result:
    """The outcome of a part."""

    part: Part
    seconds: float = 0.0
    limit: float = 0.0
    reason: str = ""  # why it did not finish; empty if it did
    checks: list[Check] = field(default_factory=list)
    measures: list[Measure] = field(default_factory=list)

    @property
    def status(self) -> str:
        if any(check.status == FAILED for check in self.checks):
            return FAILED
        done = self.measures or any(check.status == PASSED for check in self.checks)
        return PASSED if done else SKIPPED


def run(part: Part, config: Config, seconds: float) -> Result:
    """Run a part in a process of its own, and end it after `seconds`.

    Its output and tracebacks go to <out>/logs/<part>.txt.
    """
    logs = config.out / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    stem = part.name.replace(" ", "_")
    log, rows = logs / f"{stem}.txt", logs / f"{stem}.jsonl"
    rows.write_text("", "utf-8")
    result = Result(part, limit=seconds)
    recorder = Recorder(part.name, config.size, rows)
    begun = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()  # or the child would write the same text again
    child = get_context("fork").Process(target=_child, args=(part, config, recorder, seconds, log))
    child.start()
    try:
        child.join(seconds)
        if child.exitcode is None:
            result.reason = f"ended after {seconds:.0f} s, the limit of this part"
    finally:
        _end(child)
    if not result.reason and child.exitcode:
        how = f"signal {-child.exitcode}" if child.exitcode < 0 else f"exit code {child.exitcode}"
        result.reason = f"its process ended with {how}; see {log}"
    if result.reason:
        recorder.fail("finishes", result.reason)
    result.seconds = time.monotonic() - begun
    result.checks, result.measures = read(rows)
    return result


def _child(part: Part, config: Config, recorder: Recorder, seconds: float, log: Path) -> None:
    os.setsid()  # a process group of its own: ended as a whole, and not by Ctrl-C
    # Nor does it outlive the check, whatever ends that one.
    ending.end_with_parent(lambda: os.killpg(0, signal.SIGKILL))
    sys.stdout = sys.stderr = log.open("w", buffering=1, encoding="utf-8")
    for stream in (1, 2):  # for libraries that do not print through Python
        os.dup2(sys.stdout.fileno(), stream)
    with recorder.attempt("finishes"):
        part.run(config, recorder, seconds)


def _end(child: Any) -> None:
    """End a child and the processes that it started, such as compilers."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    if child.is_alive():  # it had no process group yet
        child.kill()
    child.join(5)  # a process that hangs in the driver is left behind


def read(rows: Path) -> tuple[list[Check], list[Measure]]:
    """The checks and measurements of a part, without a last line that was cut off."""
    checks: list[Check] = []
    measures: list[Measure] = []
    for line in rows.read_text("utf-8").split("\n")[:-1]:
        kind, values = json.loads(line)
        if kind == "Check":
            checks.append(Check(**values))
        else:
            measures.append(Measure(**values))
    return checks, measures
