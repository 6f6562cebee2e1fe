"""Going on with a race that was stopped: its id, and the runs of it that are finished.

    python speedrun.py adamw muon --resume          # the newest race
    python speedrun.py adamw muon --resume RACE

A race is one experiment: it goes on only if further runs would have the same track, data, program,
machine and precision as the race has had. These are in its rows, and from its start in
setups/<race>.json, with what no row holds. What is chosen by measurement is measured once: the
resumed race takes it from there. Whether the model is compiled is known after the warm-up, so it is
compared then, before the first step.

A run that was under way goes on from a checkpoint (runtime/heats.py). Then also the engine and the
number of processes may be others, if --resume asks for it; the rows say so.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from errors import UserError
from host import environment, launcher
from tracking import store
from tracking.schema import COMMON, Provenance, Run

Options = TypeVar("Options", bound=Any)  # of the trainer, a dataclass
MEASURED = ("dtype", "attention")  # with "auto" the fastest is taken
# Options that no row holds, since they change results by rounding alone, and what a step costs.
UNRECORDED = ("cuda_graphs", "loss_chunk", "microbatch", "ns_backend")
# Columns that may change where a run goes on from a checkpoint.
LAYOUT = ("engine", "world_size", "threads")


@dataclass(frozen=True)
class Earlier:
    """A race to go on with."""

    race: str
    done: Sequence[Run]  # its finished runs
    columns: Mapping[str, Any]  # of its newest run, or as it began; with `started`


def settled(options: Options, earlier: Earlier | Iterable[Provenance] | None) -> Options:
    """The options with what a race, or the newest of earlier rows, says in place of "auto"."""
    if not isinstance(earlier, Earlier):
        newest = max(earlier or (), key=lambda row: row.started, default=None)
        earlier = Earlier("", [], vars(newest)) if newest else None
    columns = earlier.columns if earlier else {}
    auto = (name for name in MEASURED if columns and getattr(options, name) == "auto")
    return replace(options, **{name: columns[name] for name in auto})


def to_go_on_with(root: Path, resume: str | None) -> Earlier | None:
    """The race to go on with; None for a new one. See `open_race`."""
    restarted = resume is None and launcher.number("TORCHELASTIC_RESTART_COUNT", 0) > 0
    if resume is None and not restarted:
        return None
    rows = store.read_runs(root)
    races: dict[str, Mapping[str, Any]] = {
        path.stem: columns
        for path in sorted((root / "setups").glob("*.json"))
        if (columns := store.read_setup(root, path.stem).get("race"))
    }
    races |= {run.race: vars(run) for run in sorted(rows, key=lambda run: run.started)}
    if restarted:
        resume = next((race for race in races if race.endswith(_token())), None)
    elif not resume and races:
        resume = max(races, key=lambda race: str(races[race]["started"]))
    if resume not in races:
        return None
    return Earlier(resume, [run for run in rows if run.race == resume], races[resume])


def _token() -> str:
    """The end of a race's id: another in each race, but the same in every attempt of torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return secrets.token_hex(2)
    launch = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"
    return hashlib.sha256(launch.encode()).hexdigest()[:8]


def open_race(
    root: Path,
    entrants: Sequence[str],
    resume: str | None,
    expected: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[str, list[Run]]:
    """The race's id, and its finished runs if it is one to go on with.

    entrants: canonical spellings. resume: the race to go on with, "" for the newest; None: a new
    race, or where torchrun has restarted its processes the race that they had begun. expected: the
    columns that further runs would have, `track` among them, as far as they are known. options: of
    the trainer. Raises UserError.
    """
    earlier = to_go_on_with(root, resume)
    if earlier:
        moves = resume is not None and any(store.checkpoints_path(root, earlier.race).glob("*"))
        require_same(root, earlier, entrants, expected, options, LAYOUT if moves else ())
        return earlier.race, list(earlier.done)
    if resume is not None:
        raise UserError(f"--resume {resume}: no finished run of such a race; run: make speedrun")
    race = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{expected['track']}-{_token()}"
    began = {"started": _now(), **expected}
    keep(root, race, options, {"race": began, "environment": environment.describe()})
    return race, []


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def require_same(
    root: Path,
    earlier: Earlier,
    entrants: Sequence[str],
    expected: Mapping[str, Any],
    options: Mapping[str, Any],
    may_differ: Sequence[str] = (),
) -> None:
    """Raise UserError if further runs would not belong to this race; see `open_race`."""
    race, done = earlier.race, earlier.done
    then = dict(earlier.columns) | store.read_setup(root, race).get("options", {})
    then["engine"] = str(then["engine"]).rpartition("+")[2].partition("@")[0]  # where it ended
    now = {**expected, **{name: options[name] for name in UNRECORDED}}
    for key in (*COMMON, *UNRECORDED):
        if key not in may_differ and key in then and key in now and then[key] != now[key]:
            raise UserError(
                f"--resume: race {race} has {key} {then[key]}, now it is {now[key]}; "
                "a race is one experiment: start a new one without --resume"
            )
    missing = {run.entrant for run in done} - set(entrants)
    if missing:
        raise UserError(
            f"--resume: race {race} also has {', '.join(sorted(missing))}; "
            "name all its entrants, with the settings they had"
        )


def require_same_kind(done: Sequence[Run], uncompiled: str) -> None:
    """Raise UserError if the runs of a race would be compiled in part.

    uncompiled: why the next runs are not compiled, as their warm-up has found; empty: they are.
    """
    for run in done:
        if run.compiled and uncompiled:
            raise UserError(
                f"race {run.race} has runs that are compiled, now the model is not ({uncompiled}); "
                "a race is one experiment: mend that and go on with --resume, or start a new race"
            )
        if not run.compiled and not uncompiled:
            raise UserError(
                f"race {run.race} has runs that are not compiled ({run.compile_note}), now the "
                "model is; a race is one experiment: go on with --resume --no-compile, or start a "
                "new race"
            )


def keep(root: Path, race: str, options: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Write down, for those who go on with the race, what its rows do not hold.

    options: of the trainer. found: what was chosen on this machine; it is added to what is there.
    """
    asked = {name: options[name] for name in UNRECORDED}
    store.write_setup(root, race, store.read_setup(root, race) | {"options": asked, **found})
