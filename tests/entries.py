"""Entries of boards for tests: of a committed race, and of numbers written for the tests."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis import stats
from leaderboard import rules as rulebook
from leaderboard.board import (
    OURS,
    PASSED,
    PUBLISHED,
    SECONDS,
    STEPS,
    UNCHECKED,
    Entry,
    OneRun,
    Point,
)
from tracking.schema import Run
from tracking.store import read_curve, read_runs

RECORDS = Path(__file__).parents[1] / "results" / "records"


def of_record(name: str, baseline: str = "adamw", **more: Any) -> list[Entry]:
    """An entry for each entrant of a committed race; it is claimed if its p is below 0.01."""
    runs = read_runs(RECORDS / name)
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    base = stats.costs(groups[baseline], "steps")
    found = []
    for label, group in groups.items():
        losses = stats.losses(group)
        p = stats.one_sample(losses, group[0].target)
        ratio = stats.speedup(base, stats.costs(group, "steps")) if label != baseline else None
        claimed = p is not None and p < stats.ALPHA
        why = [] if claimed else [f"the mean is not below the target: p = {p:.3f}, must be < 0.01"]
        values = dict(
            record=name, origin=OURS, date=group[0].started[:10], track=group[0].track,
            rules=rulebook.VERSION,
            label=label, entrant=group[0].entrant, authors=["A. Uthor"], new="", n=len(group),
            steps=group[0].steps, mean_loss=stats.mean(losses).value,
            loss_sd=stats.deviation(losses), target=group[0].target, p=p,
            seconds=stats.mean([run.train_seconds for run in group]).value,
            hardware=group[0].device, state_bytes=group[0].state_bytes,
            peak_memory_bytes=group[0].peak_memory_bytes, claimed=claimed,
            state=PASSED if claimed else UNCHECKED, why=why, link=f"records/{name}/",
            against="" if label == baseline else baseline,
            fewer_steps=ratio.estimate.value if ratio else None,
            less_time=ratio.estimate.value / 1.08 if ratio else None,
            runs=[_one(run) for run in group], curve=_curve(name, group),
        )  # fmt: skip
        found.append(Entry(**(values | more)))
    return found


def _one(run: Run) -> OneRun:
    return OneRun(
        run.seed, run.status, run.final_loss, run.steps_to_target, run.seconds_to_target,
        run.steps, run.train_seconds,
    )  # fmt: skip


def _curve(name: str, group: Sequence[Run]) -> list[Point]:
    curves = [read_curve(RECORDS / name, run.run) for run in group]
    return [
        Point(
            points[0].step, points[0].tokens,
            sum(p.train_seconds for p in points) / len(points),
            sum(p.val_loss for p in points) / len(points),
        )
        for points in zip(*curves, strict=True)
    ]  # fmt: skip


def published(number: int, steps: int, loss: float, n: int, day: int, best: bool) -> Entry:
    """A published result with a curve of a formula."""
    return Entry(
        record=f"track3-{number}", origin=PUBLISHED, date=f"2026-05-{day:02d}", track="gpt2",
        rules=None, label=f"result {number}", entrant="", authors=["someone else"],
        new="a formula in place of a log", n=n, steps=steps, mean_loss=loss, loss_sd=None,
        target=3.28, p=None, seconds=None, hardware="", state_bytes=None, peak_memory_bytes=None,
        claimed=True, state=PASSED if n > 1 else UNCHECKED,
        why=[] if n > 1 else ["its logs are not there"],
        sets=[STEPS] if best else [], link="published/track3_claims.csv",
        curve=[
            Point(step, step * 524288, None, loss + 7.5 * math.exp(-9 * step / steps))
            for step in range(0, steps + 1, max(1, steps // 20))
        ],
    )  # fmt: skip


def in_minutes() -> Entry:
    """A published record that says its seconds alone, on a track of its own."""
    return replace(
        published(6, 1, 0.0, 1, 1, False), track="minutes", n=None, steps=None, mean_loss=None,
        seconds=180.0, hardware="8x a GPU", sets=[SECONDS], curve=[],
    )  # fmt: skip


@functools.cache
def board() -> tuple[Entry, ...]:
    """What a page of the tests shows: a race with sixteen entrants, and published results."""
    return (
        *of_record("2026-11-26_tiny_league"),
        published(1, 3600, 3.2777, 1, 1, True),
        published(2, 3325, 3.2782, 10, 4, True),
        published(3, 3250, 3.2778, 10, 9, True),
        published(4, 3375, 3.2788, 20, 12, False),
        published(5, 2690, 3.2783, 8, 28, True),
        in_minutes(),
    )
