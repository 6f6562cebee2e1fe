"""Going on with a race that was stopped: its id, and the runs of it that are finished.

    python speedrun.py adamw muon --resume          # the newest race
    python speedrun.py adamw muon --resume RACE

A race is one experiment: it goes on only if further runs would have the same track, data, program,
machine and precision as the runs that it has. What is chosen by measurement is measured once: the
resumed race takes it from the rows, and what rows do not hold from setups/<race>.json. Whether the
model is compiled is known after the warm-up, so it is compared then, before the first step.
"""

import hashlib
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from errors import UserError
from host import launcher
from tracking import store
from tracking.schema import COMMON, Provenance, Run

Options = TypeVar("Options", bound=Any)  # of the trainer, a dataclass
MEASURED = ("dtype", "attention")  # with "auto" the fastest is taken
# Options that no row holds, since they change results by rounding alone, and what a step costs.
UNRECORDED = ("cuda_graphs", "loss_chunk", "microbatch", "ns_backend")


def settled(options: Options, earlier: Iterable[Provenance]) -> Options:
    """The options with what the newest of earlier rows says in place of "auto"."""
    newest = max(earlier, key=lambda row: row.started, default=None)
    auto = (name for name in MEASURED if newest and getattr(options, name) == "auto")
    return replace(options, **{name: getattr(newest, name) for name in auto})


def to_go_on_with(root: Path, resume: str | None) -> list[Run]:
    """The finished runs of the race to go on with; none for a new race. See `open_race`."""
    rows = store.read_runs(root)
    if resume is None and launcher.number("TORCHELASTIC_RESTART_COUNT", 0):
        races = (run.race for run in rows if run.race.endswith(_token()))
        resume = next(races, None)
    if resume is None or not rows:
        return []
    wanted = resume or max(rows, key=lambda run: run.started).race
    return [run for run in rows if run.race == wanted]


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
    done = to_go_on_with(root, resume)
    if done:
        require_same(root, done, entrants, expected, options)
        return done[0].race, done
    if resume is not None:
        raise UserError(f"--resume {resume}: no finished run of such a race; run: make speedrun")
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{expected['track']}-{_token()}", []


def require_same(
    root: Path,
    done: Sequence[Run],
    entrants: Sequence[str],
    expected: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Raise UserError if further runs would not belong to the race of these; see `open_race`."""
    race = done[0].race
    then = vars(done[0]) | store.read_setup(root, race).get("options", {})
    now = {**expected, **{name: options[name] for name in UNRECORDED}}
    for key in (*COMMON, *UNRECORDED):
        if key in then and key in now and then[key] != now[key]:
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

    options: of the trainer. found: what was chosen on this machine.
    """
    asked = {name: options[name] for name in UNRECORDED}
    store.write_setup(root, race, {"options": asked, **found})
