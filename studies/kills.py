"""Kill races at random moments: each goes on, and its rows are those of a race that was not killed.

    python -m studies.kills                                     # fifty kills: make kill-test
    python -m studies.kills --folder results/records/kills      # the record

Half of the races have one process, which is killed by SIGKILL and started again with --resume. Half
have two, of which a random one is killed, and torchrun's agent starts both anew. The moments are
drawn uniformly from the time between the opening of the race and its end. Each race has two
entrants with horizons of their own and two seeds, is a matter of milliseconds a step, and writes a
checkpoint every few steps.

kills.csv has a row for each kill: when it came, whether a heat went on from a checkpoint, and how
many rows were lost, doubled
or wrong afterwards. Wrong is a row that differs from the undisturbed race's, or whose curve does,
in any column but times, bytes and names: to the bit. summary.csv counts them. The exit code is 1 if
there was one.
"""

import argparse
import csv
import gc
import io
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from host import entry, paths
from leaderboard import verify
from tracking import store
from tracking.files import write_atomic

RACE = [
    "adamw:steps=12", "muon:steps=8", "--seeds=2", "--track=tiny", "--width=32", "--seq-len=32",
    "--batch-tokens=256", "--val-tokens=512", "--val-every=4", "--val-every-late=2",
    "--target=6.9", "--dtype=float32", "--attention=plain", "--threads=1", "--no-compile",
    "--save-every=2", "--timeout=60",
]  # fmt: skip
ROWS = 4  # of a race: two entrants, two seeds
LIMIT = 300.0  # seconds of a race, on a busy machine
# Columns that another run of the same race may change: when, beside which others, how fast, and in
# how much memory.
VARIES = ("started", "race", "run", "heat", "turn_steps", "seconds", "memory", "peak", "mfu", "_ms")


class Kill(NamedTuple):
    """A row of kills.csv."""

    kill: int
    processes: int
    rank: int  # that was killed
    after_seconds: float  # since the race was opened
    rows_before: int  # finished runs at that moment
    went_on: bool  # from a checkpoint, within a heat
    lost: int  # rows
    doubled: int
    wrong: int
    problems: int  # that `make verify` finds


def run_race(results: str, *more: str) -> None:
    """Race in this process, quietly. Raises RuntimeError if the command fails."""
    import speedrun  # here, because the process that only watches needs no torch

    gc.freeze()  # what is imported need not be searched again and again
    log = open(Path(results).with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115
    with log, redirect_stdout(log), redirect_stderr(log):
        code = speedrun.main([*RACE, f"--results={results}", *more])
    if code:
        raise RuntimeError(f"exit code {code}")


def run_agent(results: str, *more: str) -> None:
    """Race in two processes that torchrun's agent starts, and once more after one has failed."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=1, monitor_interval=0.1,
        run_id=Path(results).name, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", start_method="fork",
    )  # fmt: skip
    log = open(Path(results).with_suffix(".log"), "a", encoding="utf-8")  # noqa: SIM115
    with log, redirect_stdout(log), redirect_stderr(log):
        elastic_launch(config, run_race)(results, *more)


class Race:
    """A race in processes that are forked from one that has imported the trainer."""

    def __init__(self, processes: int, results: Path, *more: str) -> None:
        self.processes, self._results = processes, results
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["speedrun", "torch._dynamo", "torch.distributed.run"])
        target = run_race if processes == 1 else run_agent
        self._process = context.Process(target=target, args=(str(results), *more))
        self._process.start()

    def wait_until_open(self) -> None:
        """Wait until the race has a name."""
        while not any(self._results.glob("setups/*.json")):
            if not self._process.is_alive():
                raise RuntimeError(self._told())
            time.sleep(0.01)

    def kill(self, rank: int) -> None:
        """End a process as SIGKILL does, if it is there."""
        assert self._process.pid is not None
        ranks = [self._process.pid] if self.processes == 1 else self._ranks()
        for pid in ranks[rank : rank + 1]:
            os.kill(pid, signal.SIGKILL)

    def _ranks(self) -> list[int]:
        """The agent's children, in the order in which they were started."""
        found: list[int] = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text("utf-8").rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
            found += [int(folder.name)] * (parent == self._process.pid)
        return sorted(found)

    def wait(self, killed: bool = False) -> None:
        """Wait for the end. Raises RuntimeError unless it is a good one, or that of a kill."""
        self._process.join(LIMIT)
        if self._process.exitcode != (-signal.SIGKILL if killed else 0):
            self._process.kill()
            raise RuntimeError(self._told())

    def _told(self) -> str:
        log = self._results.with_suffix(".log")
        words = log.read_text(encoding="utf-8")[-3000:] if log.exists() else ""
        return f"the race in {self._results} came to a bad end:\n{words}"


def whole_race(processes: int, results: Path) -> float:
    """Race without a kill; seconds from the opening of the race to its end."""
    race = Race(processes, results)
    race.wait_until_open()
    begun = time.monotonic()
    race.wait()
    return time.monotonic() - begun


def killed_race(
    processes: int, results: Path, seconds: float, draw: random.Random
) -> tuple[int, float, int, bool] | None:
    """Race, be killed at a moment of `seconds`, go on to the end: the rank that was killed, after
    how long, the finished runs then, and whether a heat went on from a checkpoint. None: it was
    over.
    """
    rank, after = draw.randrange(processes), draw.uniform(0, seconds)
    race = Race(processes, results)
    race.wait_until_open()
    time.sleep(after)
    rows = len(store.read_runs(results))
    if rows == ROWS:
        race.wait()
        return None
    race.kill(rank)
    if processes == 1:
        race.wait(killed=True)
        race = Race(processes, results, "--resume")
    race.wait()
    log = results.with_suffix(".log").read_text(encoding="utf-8")
    return rank, round(after, 3), rows, "goes on from checkpoint" in log


def compared(results: Path, whole: Path) -> tuple[int, int, int, int]:
    """Rows that are lost, doubled and wrong beside those of a whole race, and problems."""
    ours, theirs = contents(results), contents(whole)
    counts = Counter((run.entrant, run.seed) for run in store.read_runs(results))
    wrong = sum(key in theirs and value != theirs[key] for key, value in ours.items())
    doubled = sum(count - 1 for count in counts.values())
    return len(theirs.keys() - ours), doubled, wrong, len(verify.problems(results))


def contents(results: Path) -> dict[tuple[str, int], Any]:
    """All that the runs of a race and their curves say, but for what varies."""
    return {
        (run.entrant, run.seed): [_fixed(run), *map(_fixed, store.read_curve(results, run.run))]
        for run in store.read_runs(results)
    }


def _fixed(row: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in asdict(row).items()
        if not any(word in name for word in VARIES)
    }


def kill_all(kills: int, seed: int, folder: Path) -> Iterator[Kill]:
    """The kills, the first half on one process; races are in `folder`."""
    draw, number, tries = random.Random(seed), 0, 0
    for processes, last in ((1, kills - kills // 2), (2, kills)):
        whole = folder / f"whole{processes}"
        seconds = whole_race(processes, whole) if number < last else 0.0
        while number < last:
            tries += 1
            results = folder / f"race{tries}"
            there = killed_race(processes, results, seconds, draw)
            if there:
                number += 1
                yield Kill(number, processes, *there, *compared(results, whole))
            else:
                seconds *= 0.8  # the machine has become faster


def summary(rows: Sequence[Kill]) -> list[list[str]]:
    """The table of counts: a line for each number of processes."""
    table = [["processes", "kills", "went on within a heat", "rows", "lost", "doubled", "wrong"]]
    for processes in sorted({row.processes for row in rows}):
        group = [row for row in rows if row.processes == processes]
        within = sum(row.went_on for row in group)
        faults = [sum(getattr(r, name) for r in group) for name in ("lost", "doubled", "wrong")]
        numbers = [processes, len(group), within, ROWS * len(group), *faults]
        table.append(list(map(str, numbers)))
    return table


def write(path: Path, table: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_atomic(path, [text.getvalue().encode()])


def run(given: argparse.Namespace) -> int:
    """Kill, write both files and print the summary; the exit code."""
    rows: list[Kill] = []
    with tempfile.TemporaryDirectory() as folder:
        for row in kill_all(given.kills, given.seed, Path(folder)):
            rows.append(row)
            print("  ".join(f"{k} {v}" for k, v in row._asdict().items()), flush=True)
            write(given.folder / "kills.csv", [Kill._fields, *rows])
    table = summary(rows)
    write(given.folder / "summary.csv", table)
    for line in table:
        print("  ".join(f"{cell:>21}" for cell in line))
    return int(any(row.lost or row.doubled or row.wrong or row.problems for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 1 if a row was lost, doubled or wrong, 2 for a mistake."""
    parser = entry.parser("studies.kills", __doc__)
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    note = "of the files (default: results/kills)"
    folder = paths.RESULTS / "kills"
    parser.add_argument("--folder", type=paths.typed, default=folder, help=note)
    return entry.run(parser, argv, run, "the same command starts anew")


if __name__ == "__main__":
    sys.exit(main())
