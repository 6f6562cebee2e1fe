"""What others published, from results/published: read strictly, and checked.

    data = published.load()
    data.curve("1.5b-2024-10-20", "adamw")

Source: the public repository modded-nanogpt, see results/published/README.md. `analysis.claims` and
`analysis.evidence` compute from it; `leaderboard.published` shows it.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from errors import UserError
from host.paths import RESULTS
from tracking.crossing import first_met
from tracking.schema import (
    SpeedrunRecord,
    Stated,
    Track1Point,
    Track3Claim,
    Track3Optimizer,
    Track3Point,
)
from tracking.store import read

FOLDER = RESULTS / "published"
TARGET = 3.28  # nats per token, of GPT-2 124M
TARGETS = {1: 3.28, 2: 2.92}  # of the speedrun tracks

T = TypeVar("T")


@dataclass(frozen=True)
class Curve:
    """The validations of one log of 2024."""

    setting: str
    optimizer: str
    planned_steps: int
    points: Sequence[Track1Point]

    @property
    def final_loss(self) -> float:
        """The last validation loss, nats per token."""
        return self.points[-1].val_loss

    @property
    def seconds(self) -> float | None:
        """The training clock at the end; None where the log has none."""
        return self.points[-1].train_time_s

    def first_at(self, loss: float) -> Track1Point | None:
        """The first validation at or below a loss; None if there is none."""
        return next((point for point in self.points if point.val_loss <= loss), None)

    def step_at(self, loss: float) -> float | None:
        """The step at which it meets a loss, interpolated between validations; None if never."""
        met = first_met([point.val_loss for point in self.points], loss)
        if met is None:
            return None
        index, fraction = met
        before, after = self.points[max(index - 1, 0)].step, self.points[index].step
        return before + fraction * (after - before)


@dataclass(frozen=True)
class Data:
    """All that results/published holds, but for speedups.csv."""

    records: Sequence[SpeedrunRecord]
    curves: Sequence[Curve]
    claims: Sequence[Track3Claim]
    points: dict[int, list[Track3Point]]  # of track 3, by result
    optimizers: dict[int, str]  # of track 3, by result, where known
    stated: dict[str, Stated]

    def curve(self, setting: str, optimizer: str) -> Curve:
        """One log of 2024. Raises UserError if it is not there."""
        for curve in self.curves:
            if (curve.setting, curve.optimizer) == (setting, optimizer):
                return curve
        raise _broken("track1_curves.csv", f"no log of {optimizer} in {setting}")

    def minutes(self, track: int, record: int) -> float:
        """The time of a speedrun record. Raises UserError if it is not there."""
        for row in self.records:
            if (row.track, row.record) == (track, record):
                return row.minutes
        raise _broken("speedrun_records.csv", f"no record {record} of track {track}")

    def claim(self, result: int) -> Track3Claim:
        """A result of track 3. Raises UserError if it is not there."""
        for row in self.claims:
            if row.result == result:
                return row
        raise _broken("track3_claims.csv", f"no result {result}")

    def says(self, name: str) -> float:
        """A figure that was stated. Raises UserError if it is not there."""
        if name not in self.stated:
            raise _broken("stated.csv", f"no figure {name}")
        return self.stated[name].value


def load(folder: Path = FOLDER) -> Data:
    """Read results/published. Raises UserError for a file that is missing, torn or absurd."""
    records = _table(folder, "speedrun_records.csv", SpeedrunRecord)
    claims = _table(folder, "track3_claims.csv", Track3Claim)
    points: dict[int, list[Track3Point]] = {}
    for row in _table(folder, "track3_curves.csv", Track3Point):
        points.setdefault(row.result, []).append(row)
    optimizers = _table(folder, "track3_optimizers.csv", Track3Optimizer)
    stated = _table(folder, "stated.csv", Stated)
    _check(claims, records)
    for result, rows in points.items():
        _check_steps("track3_curves.csv", f"result {result}", [(row.run, row.step) for row in rows])
    return Data(
        records,
        _curves(_table(folder, "track1_curves.csv", Track1Point)),
        claims,
        points,
        {row.result: row.optimizer for row in optimizers},
        {row.name: row for row in stated},
    )


def _table(folder: Path, name: str, cls: type[T]) -> list[T]:
    path = folder / name
    rows = read(path, cls)
    if not rows:
        raise UserError(f"{path} is missing or empty; restore it: git checkout {path}")
    return rows


def _broken(name: str, what: str) -> UserError:
    return UserError(f"{name}: {what}; restore it: git checkout results/published/{name}")


def _curves(rows: Sequence[Track1Point]) -> list[Curve]:
    groups: dict[tuple[str, str], list[Track1Point]] = {}
    for row in rows:
        groups.setdefault((row.setting, row.optimizer), []).append(row)
    for key, group in groups.items():
        _check_steps("track1_curves.csv", " ".join(key), [(0, row.step) for row in group])
    return [Curve(*key, group[0].planned_steps, group) for key, group in groups.items()]


def _check_steps(name: str, what: str, steps: Sequence[tuple[int, int]]) -> None:
    """Whether runs and steps increase."""
    for before, after in pairwise(steps):
        if after <= before:
            raise _broken(name, f"{what} goes from run and step {before} to {after}")


def _check(claims: Sequence[Track3Claim], records: Sequence[SpeedrunRecord]) -> None:
    numbers = [claim.result for claim in claims]
    if numbers != sorted(set(numbers)):
        raise _broken("track3_claims.csv", "its results are not in order, or one is twice")
    for claim in claims:
        if {claim.world_record, claim.marked_valid} - {0, 1} or claim.claimed_n < 1:
            raise _broken("track3_claims.csv", f"result {claim.result} has a mark that is not 0, 1")
    for row in records:
        if row.track not in TARGETS or row.minutes <= 0:
            raise _broken("speedrun_records.csv", f"record {row.record} of track {row.track}")
    for date in [*(claim.date for claim in claims), *(row.date for row in records)]:
        try:
            datetime.date.fromisoformat(date)
        except ValueError:
            raise _broken("a table of records", f"{date!r} is no date") from None
