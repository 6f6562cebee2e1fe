"""A race that was stopped on one layout goes on on another: with the losses of one that was not.

    make moves                                                   # into results/moves
    python -m studies.moves --folder results/records/moves       # the record

AdamW and Muon race on a small model, in float32, on some engine and number of processes. All
processes end in the middle of the race, which then goes on from its newest checkpoint on another
engine or number. moves.csv has a row for each such move: the largest relative difference of a
validation loss from a race of one process that was not stopped. The exit code is 1 if one is above
BOUND.
"""

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import speedrun
from errors import UserError
from host import entry, paths
from tracking import store
from tracking.files import write_atomic

BOUND = 1e-5
RACE = [
    "adamw", "muon", "--steps=12", "--seeds=1", "--track=tiny", "--width=32", "--seq-len=32",
    "--batch-tokens=256", "--val-tokens=512", "--val-every=4", "--val-every-late=2",
    "--target=6.9", "--dtype=float32", "--attention=plain", "--threads=1", "--no-compile",
    "--save-every=2", "--timeout=60",
]  # fmt: skip
STOP = 15  # steps of both runs together, after which all processes end


class Place(NamedTuple):
    """An engine and its number of processes."""

    engine: str
    processes: int

    def __str__(self) -> str:
        return f"{self.engine}, {self.processes}"


ONE = Place("single", 1)
MOVES = (
    (ONE, Place("ddp", 2)),
    (Place("ddp", 2), ONE),
    (Place("ddp", 2), Place("ddp", 4)),
    (ONE, Place("sharded", 2)),
    (Place("sharded", 2), ONE),
    (Place("sharded", 2), Place("sharded", 4)),
    (ONE, Place("fsdp2", 2)),
    (Place("fsdp2", 2), ONE),
    (Place("fsdp2", 2), Place("fsdp2", 4)),
    (Place("fsdp2", 2), Place("sharded", 4)),
)


class Move(NamedTuple):
    """A row of moves.csv."""

    before: str
    after: str
    difference: str  # the largest of a validation loss, relative


def race_until(stop: int, arguments: Sequence[str]) -> int:
    """Race in this process; after `stop` steps, end it as a kill does (0: go to the end)."""
    step_of, taken = speedrun.Trainer.step, [0]

    def step(self: Any, *given: Any, **options: Any) -> Any:
        taken[0] += 1
        if taken[0] == stop:
            os._exit(0)  # of all processes alike, so torchrun sees nothing wrong
        return step_of(self, *given, **options)

    speedrun.Trainer.step = step  # type: ignore[method-assign]
    return speedrun.main(arguments)


def launch(place: Place, results: Path, stop: int = 0, *more: str) -> None:
    """Race on a layout, in processes of its own. Raises UserError if they fail."""
    command = [sys.executable]
    if place.processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
                    f"--nproc_per_node={place.processes}"]  # fmt: skip
    command += ["-m" if place.processes == 1 else "--module", "studies.moves", f"--stop={stop}"]
    command += [*RACE, f"--engine={place.engine}", f"--results={results}", *more]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command,
        cwd=paths.PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        words = (done.stdout + done.stderr)[-3000:]
        raise UserError(f"a race on {place} processes failed; it said:\n{words}")


def losses(results: Path) -> dict[str, list[float]]:
    """The validation losses of each finished run, by its label."""
    return {
        run.label: [point.val_loss for point in store.read_curve(results, run.run)]
        for run in store.read_runs(results)
    }


def moved(before: Place, after: Place, folder: Path, whole: dict[str, list[float]]) -> Move:
    """Stop a race on one layout, and end it on another one."""
    launch(before, folder, STOP)
    launch(after, folder, 0, "--resume")
    found = losses(folder)
    pairs = [pair for label in whole for pair in zip(found[label], whole[label], strict=True)]
    went_on = {run.engine for run in store.read_runs(folder)}
    if went_on != {f"{before.engine}@{before.processes}+{after.engine}@{after.processes}"}:
        raise UserError(f"the race on {before} did not go on on {after}: its rows say {went_on}")
    return Move(str(before), str(after), f"{max(abs(a / b - 1) for a, b in pairs):.1e}")


def study(given: argparse.Namespace) -> int:
    """Make all moves, and write the table; the exit code."""
    rows: list[Move] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch(ONE, folder / "whole")
        whole = losses(folder / "whole")
        for number, (before, after) in enumerate(MOVES):
            rows.append(moved(before, after, folder / f"move{number}", whole))
            print(f"from {before} to {after}: {rows[-1].difference}", flush=True)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([Move._fields, *rows])
    given.folder.mkdir(parents=True, exist_ok=True)
    write_atomic(given.folder / "moves.csv", [text.getvalue().encode()])
    return int(any(float(row.difference) > BOUND for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 1 if a loss is off, 2 after a user's mistake."""
    words = sys.argv[1:] if argv is None else argv
    if words and words[0].startswith("--stop="):
        return race_until(int(words[0].partition("=")[2]), words[1:])
    parser = entry.parser("studies.moves", __doc__)
    note = "of the table (default: results/moves)"
    parser.add_argument("--folder", type=paths.typed, default=paths.RESULTS / "moves", help=note)
    return entry.run(parser, argv, study, "the same command starts anew")


if __name__ == "__main__":
    sys.exit(main())
