"""What the boards show: an entry for each entrant that a record claims, and each published result.

    from leaderboard.board import entries
    for entry in entries(RESULTS): ...

A board is the entries of one track, sorted by steps, or by seconds on one class of hardware. The
page (`leaderboard.page`) and the table of the README are made from the same entries.
"""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis import stats
from analysis.pairs import ratio
from analysis.price import NO_TURNS, Prices, read_prices
from analysis.table import BASELINE, find
from leaderboard import claims, judge
from leaderboard import rules as rulebook
from leaderboard.form import RECORD, SKEPTICAL, Claim, Record
from leaderboard.intake import FORM
from leaderboard.judge import Report
from leaderboard.verify import folders
from tracking.schema import Run, Validation
from tracking.store import RECORDS

OURS, YOURS, PUBLISHED = "ours", "yours", "published"  # origins: committed, not in git, of others
PASSED, FAILED, UNCHECKED = claims.PASSED, claims.FAILED, claims.UNCHECKED  # of verification
STEPS, SECONDS = "steps", "seconds"  # the boards of a track


@dataclass(frozen=True)
class Point:
    """The mean of an entry's curves at one step."""

    step: int
    tokens: int
    seconds: float | None  # on the training clock; None where the log has none
    val_loss: float  # nats per token


@dataclass(frozen=True)
class OneRun:
    """One run of an entry, as far as pairs of entries are compared by it."""

    seed: int
    status: str  # reached, missed or diverged
    final_loss: float | None  # nats per token
    steps_to_target: float | None
    seconds_to_target: float | None
    steps: int
    train_seconds: float | None  # None where its log has no clock


@dataclass(frozen=True)
class Entry:
    """An entrant of a record, or a published result."""

    record: str  # the record's folder; of a published result, its name
    origin: str  # OURS, YOURS or PUBLISHED
    date: str  # ISO 8601: 2026-11-27
    track: str
    rules: int | None  # version; None for a published result
    label: str  # the entrant as it was typed
    entrant: str  # with every option written out; empty where it is not known
    authors: Sequence[str]
    new: str  # what is new, in a sentence
    n: int | None  # runs; None for a published result that does not say
    steps: int | None  # at which all runs stop; None for a published record in minutes alone
    mean_loss: float | None  # of the runs at that step, nats per token; None as for steps
    loss_sd: float | None
    target: float
    p: float | None  # of the track's test that the mean is below the target
    seconds: float | None  # mean of the training clock at that step
    hardware: str  # class: "8x NVIDIA H100", "AMD EPYC, 2 cores"; empty where it is not known
    state_bytes: int | None  # optimizer state
    peak_memory_bytes: int | None
    claimed: bool  # False: it was raced, but the rules do not prove it yet
    state: str  # of verification: PASSED, FAILED or UNCHECKED
    why: Sequence[str] = ()  # findings that are not "passed", in sentences
    sets: Sequence[str] = ()  # boards on which it set the record of its day: STEPS, SECONDS
    doubts: Sequence[str] = ()  # records whose rerun questions this one
    link: str = ""  # from the results folder: records/NAME/; or a path of results/published/
    against: str = ""  # the baseline of its race, such as "adamw"; empty without one
    fewer_steps: float | None = None  # the baseline's steps to the target over its own
    less_time: float | None = None  # the baseline's seconds to the target over its own
    runs: Sequence[OneRun] = field(default=())
    curve: Sequence[Point] = field(default=())

    @property
    def board(self) -> str:
        """The name of the board that it is on."""
        return rulebook.board_of(self.track, self.rules)


def entries(results: Path) -> list[Entry]:
    """The entries of all records in a results folder, claimed or not yet proven."""
    reports = judge.examine_all(folders(results))
    committed = _committed(results)
    doubts = _doubts(reports)
    found = []
    for report in reports:
        if report.record is not None and report.record.kind == RECORD and report.race:
            origin = OURS if committed is None or report.name in committed else YOURS
            found += _of_record(report, report.record, origin, doubts)
    return found


def _committed(results: Path) -> set[str] | None:
    """The folders of records that git knows; None where git does not answer."""
    command = ["git", "ls-files", "-z", "--", f"{RECORDS}/*/{FORM}"]
    try:
        done = subprocess.run(command, cwd=results, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return {name.split("/")[1] for name in done.stdout.decode(errors="replace").split("\0") if name}


def _doubts(reports: Sequence[Report]) -> dict[tuple[str, str], list[str]]:
    """The skeptical results about each claim, by the record's folder and the label."""
    named = {r.name: r for r in reports if r.record and r.race}
    found: dict[tuple[str, str], list[str]] = {}
    for report in reports:
        record, race = report.record, report.race
        if record is None or race is None or record.kind != SKEPTICAL or report.state == FAILED:
            continue
        first = named.get(record.questions)
        if first and first.record and first.race:
            for label, text in judge.outcome(first.record, first.race, race).items():
                if text:
                    found.setdefault((record.questions, label), []).append(record.folder)
    return found


def _of_record(
    report: Report, record: Record, origin: str, doubts: dict[tuple[str, str], list[str]]
) -> list[Entry]:
    race, rules = report.race, rulebook.of(record.track, record.rules)
    assert race is not None and rules is not None  # a race was read, so its track has rules
    # The clocks of a record that fails are not compared: its turns may be missing, or of anything.
    against = find(race.entrants, BASELINE) if report.state != FAILED else None
    prices = read_prices(report.folder, race.runs) if against else NO_TURNS
    made = {claim.label: claim for claim in record.claims}
    found = []
    for label, runs in race.entrants.items():
        why = [str(each) for each in report.findings if each.state != PASSED]
        claim = made.get(label)
        if claim is None:
            if not claims.ended(runs):
                continue  # no mean loss
            why = [each.text for each in claims.of_entrant(race, label, rules)]
            claim = claims.make(race, label, rules)
        fewer, less = _against(race.entrants, against, label, prices)
        found.append(
            replace(
                _entry(report, record, claim, runs, origin),
                claimed=label in made,
                why=tuple(why),
                doubts=tuple(doubts.get((report.name, label), ())),
                against=against if against and against != label else "",
                fewer_steps=fewer,
                less_time=less,
                curve=mean_curve([race.curves[run.run] for run in runs]),
            )
        )
    return found


def _entry(report: Report, record: Record, claim: Claim, runs: Sequence[Run], origin: str) -> Entry:
    return Entry(
        record=report.name,
        origin=origin,
        date=record.date,
        track=record.track,
        rules=record.rules,
        label=claim.label,
        entrant=claim.entrant,
        authors=record.authors,
        new=record.new,
        n=claim.n,
        steps=claim.steps,
        mean_loss=claim.mean_loss,
        loss_sd=claim.loss_sd,
        target=runs[0].target,
        p=claim.p,
        seconds=claim.seconds,
        hardware=record.hardware,
        state_bytes=claim.state_bytes,
        peak_memory_bytes=claim.peak_memory_bytes,
        claimed=True,
        state=report.state,
        sets=claim.sets,
        link=f"{RECORDS}/{report.name}/",
        runs=tuple(
            OneRun(
                run.seed, run.status, run.final_loss, run.steps_to_target, run.seconds_to_target,
                run.steps, run.train_seconds,
            )
            for run in runs
        ),
    )  # fmt: skip


def _against(
    groups: dict[str, list[Run]], base: str | None, label: str, prices: Prices
) -> tuple[float | None, float | None]:
    """The baseline's steps and seconds to the target over those of an entrant of its race."""
    if base is None or base == label:
        return None, None
    price = prices.of(base, label)
    steps, seconds = (
        ratio(groups[base], groups[label], unit, price) for unit in ("steps", "seconds")
    )
    return (
        steps.estimate.value if steps and not steps.bound else None,
        seconds.estimate.value if seconds and not seconds.bound else None,
    )


def mean_curve(curves: Sequence[Sequence[Validation]]) -> tuple[Point, ...]:
    """The mean of curves at the steps that all of them have."""
    by_step: dict[int, list[Validation]] = {}
    for point in (point for curve in curves for point in curve):
        by_step.setdefault(point.step, []).append(point)
    return tuple(
        Point(
            step=step,
            tokens=points[0].tokens,
            seconds=stats.mean([point.train_seconds for point in points]).value,
            val_loss=stats.mean([point.val_loss for point in points]).value,
        )
        for step, points in sorted(by_step.items())
        if len(points) == len(curves)
    )
