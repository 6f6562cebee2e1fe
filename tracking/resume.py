"""Going on with a race that was stopped: its id, and the runs of it that are finished.

    python speedrun.py adamw muon --resume          # the newest race
    python speedrun.py adamw muon --resume RACE

A race is one experiment: it goes on only if further runs would have the same track, data, program,
machine and precision as the runs that it has.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from errors import UserError
from tracking import store
from tracking.schema import COMMON, Run


def open_race(
    root: Path, entrants: Sequence[str], resume: str | None, expected: Mapping[str, Any]
) -> tuple[str, list[Run]]:
    """The race's id, and its finished runs if it is one to go on with.

    entrants: canonical spellings. resume: the race to go on with, "" for the newest; None: a new
    race. expected: the columns that further runs would have, `track` among them. Raises UserError.
    """
    token = secrets.token_hex(2)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # The same in every attempt of one torchrun, whose restarts go on with the race.
        launch = f"{os.environ['TORCHELASTIC_RUN_ID']} {os.getppid()}"
        token = hashlib.sha256(launch.encode()).hexdigest()[:8]
        if resume is None and int(os.environ["TORCHELASTIC_RESTART_COUNT"]):
            races = (run.race for run in store.read_runs(root) if run.race.endswith(token))
            resume = next(races, None)
    if resume is None:
        return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{expected['track']}-{token}", []
    done = finished_runs(root, resume, entrants, expected)
    return done[0].race, done


def finished_runs(
    root: Path, race: str, entrants: Sequence[str], expected: Mapping[str, Any]
) -> list[Run]:
    """The finished runs of a race, the newest one where `race` is empty; see `open_race`.

    Raises UserError if there is no such race, or if further runs would not belong to it.
    """
    rows = store.read_runs(root)
    wanted = race or max(rows, key=lambda run: run.started).race if rows else race
    done = [run for run in rows if run.race == wanted]
    if not done:
        raise UserError(f"--resume {race}: no finished run of such a race; run: make speedrun")
    for key in COMMON:
        if getattr(done[0], key) != expected[key]:
            raise UserError(
                f"--resume: race {wanted} has {key} {getattr(done[0], key)}, now it is "
                f"{expected[key]}; a race is one experiment: start a new one without --resume"
            )
    missing = {run.entrant for run in done} - set(entrants)
    if missing:
        raise UserError(
            f"--resume: race {wanted} also has {', '.join(sorted(missing))}; "
            "name all its entrants, with the settings they had"
        )
    return done
