"""Race every optimizer class of a library for four steps: each runs, or is refused in a sentence.

    python -m studies.libraries                        # torch.optim, pytorch_optimizer, heavyball
    python -m studies.libraries schedulefree           # the classes of another module
    python -m studies.libraries --folder results/records/libraries    # the record

Each class races in both scopes of `lib:` (optim/library.py), on the tiny track at width 32, checked
and run as `speedrun.py` does it. The races are made in a second process, which is started anew if a
class ends it or takes longer than --limit. outcomes.csv has a row for each class and scope:

ran: the race was recorded. refused: the check ended with one sentence, before any training.
crashed: anything else. summary.csv counts them, and refused.csv has the sentences. The exit code is
1 if a class crashed.
"""

import argparse
import csv
import io
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

import speedrun
from errors import UserError
from host import entry, paths
from optim import origin
from runtime import command_line
from tracking import store
from tracking.files import write_atomic

LIBRARIES = ("torch.optim", "pytorch_optimizer", "heavyball")
SCOPES = ("matrices", "all")
RACE = [
    "--track=tiny", "--width=32", "--seq-len=32", "--batch-tokens=256", "--val-tokens=512",
    "--val-every=2", "--steps=4", "--seeds=1", "--dtype=float32", "--attention=plain",
    "--threads=1", "--no-compile",
]  # fmt: skip


class Outcome(NamedTuple):
    """A row of outcomes.csv."""

    library: str
    version: str  # of the library
    name: str
    scope: str
    outcome: str  # ran, refused or crashed
    why: str  # the sentence of a refusal, the error of a crash, or how the run ended


def classes(module_name: str) -> list[str]:
    """The names of a module's optimizer classes. Raises UserError if there are none."""
    try:
        module = import_module(module_name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's file may raise anything, or call sys.exit()
        what = f"{module_name}: importing it fails: {type(error).__name__}: {error}"
        raise UserError(f"{what}; install or mend it, or name another module") from None
    found = [
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, torch.optim.Optimizer)
        and value is not torch.optim.Optimizer
        and not name.startswith("_")
    ]
    if not found:
        raise UserError(f"{module_name}: has no optimizer class; name another module")
    return sorted(found)


class Racer:
    """Races entrants as the command does, one after the other, with one trainer."""

    def __init__(self) -> None:
        self._trainer: speedrun.Trainer | None = None

    def race(self, text: str) -> tuple[str, str]:
        """Race one entrant: ran, refused or crashed, and why."""
        trained = False
        with tempfile.TemporaryDirectory() as folder:
            try:
                with redirect_stdout(io.StringIO()):
                    arguments = speedrun.make_parser("", "").parse_args([text, *RACE])
                    (entrant,) = speedrun.entrants_of(arguments)
                    if self._trainer is None:
                        options = speedrun.Options(
                            **command_line.given(arguments, speedrun.Options)
                        )
                        self._trainer = speedrun.Trainer(speedrun.chosen_track(arguments), options)
                    self._trainer.options = replace(self._trainer.options, results=Path(folder))
                    self._trainer.check(entrant)
                    trained = True
                    (run,) = speedrun.race(self._trainer, [entrant], 1, "race", [])
            except BaseException as error:  # a class may raise anything, and must not end the list
                why = " ".join(str(error).split())[:400]
                if isinstance(error, UserError) and not trained:
                    return "refused", why
                self._trainer = None
                return "crashed", f"{type(error).__name__}: {why}"
        return "ran", run.status


def serve(connection: Connection) -> None:
    """Race the entrants that arrive, in a process of its own, until None arrives."""
    racer = Racer()
    while (text := connection.recv()) is not None:
        connection.send(racer.race(text))


class Races:
    """A process that races entrants, one after the other; started anew after one that ends it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._process: multiprocessing.process.BaseProcess | None = None

    def race(self, text: str) -> tuple[str, str]:
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=serve, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()  # so that its end is noticed
        self._connection.send(text)
        try:
            if self._connection.poll(self.limit):
                found: tuple[str, str] = self._connection.recv()
                return found
            why = f"took longer than {self.limit:g} seconds"
        except EOFError:
            why = "ended the process"
        self.close()
        return "crashed", why

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def race_all(modules: Sequence[str], limit: float) -> Iterator[Outcome]:
    """Race all classes of these modules in both scopes."""
    names = [(module, name) for module in modules for name in classes(module)]
    races = Races(limit)
    try:
        for module, name in names:
            owner = origin.distribution(import_module(module))
            version = owner.version if owner else "unknown"
            for scope in SCOPES:
                found, why = races.race(f"lib:{module}.{name}:scope={scope}")
                yield Outcome(module, version, name, scope, found, why)
    finally:
        races.close()


def summary(rows: Sequence[Outcome]) -> list[list[str]]:
    """The table of counts: a line for each library and scope, and one for all."""
    table = [["library", "version", "scope", "classes", "ran", "refused", "crashed"]]
    groups: dict[tuple[str, str, str], list[Outcome]] = {}
    for row in rows:
        groups.setdefault((row.library, row.version, row.scope), []).append(row)
    for key, group in [*groups.items(), (("all", "", ""), list(rows))]:
        counts = Counter(row.outcome for row in group)
        numbers = [len(group), counts["ran"], counts["refused"], counts["crashed"]]
        table.append([*key, *map(str, numbers)])
    return table


def write(path: Path, table: Sequence[Sequence[str]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_atomic(path, [text.getvalue().encode()])


def run(given: argparse.Namespace) -> int:
    """Race, write both files and print the summary; the exit code."""
    folder = given.folder
    store.ready(folder)
    rows: list[Outcome] = []
    for row in race_all(given.modules or LIBRARIES, given.limit):
        rows.append(row)
        print(f"{row.library}.{row.name} {row.scope}: {row.outcome}, {row.why}", flush=True)
        write(folder / "outcomes.csv", [Outcome._fields, *rows])
    table = summary(rows)
    write(folder / "summary.csv", table)
    refused = [[f"{r.library}.{r.name}", r.scope, r.why] for r in rows if r.outcome == "refused"]
    write(folder / "refused.csv", [["class", "scope", "why"], *refused])
    for line in table:
        print("  ".join(f"{cell:>12}" for cell in line))
    return int(any(row.outcome == "crashed" for row in rows))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 1 if a class crashed, 2 after a user's mistake."""
    parser = entry.parser("studies.libraries", __doc__)
    default = ", ".join(LIBRARIES)
    parser.add_argument("modules", nargs="*", help=f"modules with classes (default: {default})")
    parser.add_argument(
        "--limit", type=float, default=120, metavar="SECONDS", help="of a race (default: 120)"
    )
    note = "of the files (default: results/libraries)"
    folder = paths.RESULTS / "libraries"
    parser.add_argument("--folder", type=paths.typed, default=folder, help=note)
    return entry.run(parser, argv, run, "the same command starts anew")


if __name__ == "__main__":
    sys.exit(main())
