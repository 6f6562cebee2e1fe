"""Good records for tests, made by the command itself, and what a cheat would do to them.

    results = make_records(tmp_path)          # two records of the track `tiny` of SMALL
    forge(folder, "muon-1", floor=2.5)        # another curve, and all that follows from it
    cover(folder)                             # claims and manifest computed anew

The rules of the tests' track are SMALL: the synthetic rows of tests/rows.py obey them. A careful
cheat changes rows and computes everything again that follows from them, so that only the rule
itself can tell.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from leaderboard import claims, form, intake, judge, seal
from leaderboard import rules as rulebook
from leaderboard.claims import FAILED
from leaderboard.form import Record
from leaderboard.rules import TrackRules
from leaderboard.submit import submit
from tests.rows import SOURCE, make_points, make_run, make_turns, on_the_clock
from tracking import store
from tracking.crossing import crossing
from tracking.schema import Run, Turn, Validation

SMALL = TrackRules("1f2e", "abcd", 3.5, 4096, val_every=20, val_every_late=10)
TURN = 3  # steps
ENVIRONMENT = {"torch": "2.9.0", "system": "Linux", "a key": "ü"}
FIRST, SECOND = "2026-08-01_tiny_first", "2026-08-02_tiny_second"
RUN = "one-muon-1"  # of the first
SOURCE_NAME = f"{store.source_hash(SOURCE)}.txt"
Tamper = Callable[[Path], Any]  # given the folder of a record


@contextmanager
def small_rules() -> Iterator[None]:
    """The rules of the tests' track, in place of those of all tracks."""
    with mock.patch.object(rulebook, "RULES", {rulebook.VERSION: {"tiny": SMALL}}):
        yield


def make_race(
    root: Path,
    race: str = "one",
    day: str = "2026-08-01",
    floors: tuple[float, float] = (3.2, 3.0),
    seeds: int = 4,
    steps: int = 100,
    step_seconds: float = 0.1,
    **changes: Any,
) -> None:
    """A race of adamw and muon in turns; floors: the losses after 100 steps of their seed 0."""
    for seed in range(seeds):
        for label, floor in zip(("adamw", "muon"), floors, strict=True):
            points = make_points(steps, step_seconds, floor + 0.01 * seed)[1:]
            run = make_run(
                points, label=label, entrant=f"{label}:lr=0.02", seed=seed, race=race,
                run=f"{race}-{label}-{seed}", heat=f"{race}-s{seed}", turn_steps=TURN,
                steps_planned=steps, optimizer_seconds=0.005 * steps,
                started=f"{day}T12:0{seed}:00+00:00",
            )  # fmt: skip
            run = replace(run, **changes)
            turns = on_the_clock(make_turns(run), points)
            store.record(root, run, points, SOURCE, turns=turns)
    store.write_setup(root, race, {"environment": ENVIRONMENT})


def make_records(home: Path) -> Path:
    """A results folder with two records, of which the second beats the first; SMALL rules."""
    results = home / "results"
    make_race(home / "one")
    make_race(home / "two", "two", "2026-08-02", (3.1, 2.9), steps=80, step_seconds=0.08)
    for name, root in (("first", "one"), ("second", "two")):
        submit(home / root, results, name, authors=["A. Name"], new=f"The {name} change.")
    return results


# ---- Tampering ---------------------------------------------------------------------------------


def edit_runs(folder: Path, change: Callable[[Run], Run | None]) -> None:
    """Write runs.csv with each row as `change` returns it; None removes it."""
    rows = filter(None, map(change, store.read_runs(folder)))
    store.write_rows(folder / "runs.csv", Run, list(rows))


def edit_curve(
    folder: Path, name: str, change: Callable[[list[Validation]], Iterable[Validation]]
) -> None:
    """Write the curve of a run as `change` returns it."""
    points = list(change(store.read_curve(folder, name)))
    store.write_rows(store.curve_path(folder, name), Validation, points)


def edit_turns(folder: Path, name: str, change: Callable[[list[Turn]], Iterable[Turn]]) -> None:
    """Write the turns of a run as `change` returns them."""
    turns = list(change(store.read_turns(folder, name)))
    store.write_rows(store.turns_path(folder, name), Turn, turns)


def edit_form(folder: Path, *pairs: tuple[str, str]) -> None:
    """Replace texts in record.toml."""
    text = (folder / intake.FORM).read_text("utf-8")
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / intake.FORM).write_text(text, "utf-8")


def remove_run(folder: Path, name: str) -> None:
    """Take away a run with all its files."""
    edit_runs(folder, lambda run: None if run.run == name else run)
    store.curve_path(folder, name).unlink()
    store.turns_path(folder, name).unlink()


def follow(run: Run, points: list[Validation], target: float | None = None) -> Run:
    """The row with all that follows from another curve or target."""
    target = run.target if target is None else target
    met, last = crossing(points, target), points[-1]
    return replace(
        run, target=target, status="reached" if met else "missed",
        steps=last.step, steps_planned=last.step, tokens=last.tokens, final_loss=last.val_loss,
        final_bits_per_byte=0.4 * last.val_loss, train_seconds=last.train_seconds,
        optimizer_seconds=0.005 * last.step,
        steps_to_target=met.step if met else None, tokens_to_target=met.tokens if met else None,
        seconds_to_target=met.seconds if met else None,
        mfu=run.flops_per_step * last.step / last.train_seconds / run.matmul_peak_flops,
    )  # fmt: skip


def forge(folder: Path, name: str, points: list[Validation], **changes: Any) -> None:
    """Give a run another curve, with the row and the turns that follow from it."""
    points = [point for point in points if point.step]
    store.write_rows(store.curve_path(folder, name), Validation, points)
    edit_runs(
        folder, lambda run: replace(follow(run, points), **changes) if run.run == name else run
    )
    (run,) = [run for run in store.read_runs(folder) if run.run == name]
    turns = on_the_clock(make_turns(run), points)
    store.write_rows(store.turns_path(folder, name), Turn, turns)


def cover(folder: Path, **changes: Any) -> Record:
    """Compute again what a record claims of its rows, and seal it; changes: of record.toml."""
    record = form.read(folder, intake.listing(folder))
    runs = store.read_runs(folder)
    race = claims.Race(record.track, runs, {})
    rules = rulebook.of(record.track, record.rules) or SMALL
    made = tuple(
        replace(claims.make(race, c.label, rules, c.readout), sets=c.sets)
        if (runs_of := race.entrants.get(c.label)) and claims.ended(runs_of)
        else c
        for c in record.claims
    )
    first = min(run.started for run in runs)[:10]
    record = replace(
        record, claims=made, date=first, race=runs[0].race,
        source_hash=runs[0].source_hash, data_hash=runs[0].data_hash,
        hardware=rulebook.hardware_class(runs),
    )  # fmt: skip
    return seal.seal(folder, replace(record, **changes))


def failures(folder: Path) -> list[str]:
    return [line for line in findings(folder) if line.startswith(FAILED)]


def findings(folder: Path) -> list[str]:
    """What the verifier says of a record by itself."""
    return list(map(str, judge.examine(folder).findings))
