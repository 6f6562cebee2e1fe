"""The entries of published results, for the boards.

    from leaderboard.published_entries import published_entries
    entries = published_entries(RESULTS)

Track 3's results stand on the track `gpt2`, whose setting they share. The logs of 2024 stand on
`gpt2-2024` and `xl`; each is a single run, so no rule proves them. The records of tracks 1 and 2
have boards of their own, in minutes: their models and data order are free, so they compare with
nothing else.
"""

from collections.abc import Sequence
from pathlib import Path

from scipy.special import ndtr

from analysis import claims, evidence, histories, published
from analysis.published import TARGET, TARGETS, Curve, Data
from analysis.stats import TRACK3, TRACK3_SIGMA
from leaderboard.board import (
    FAILED,
    PASSED,
    PUBLISHED,
    SECONDS,
    STEPS,
    UNCHECKED,
    Entry,
    OneRun,
    Point,
)
from tracking.schema import Track3Point

HARDWARE = "8x NVIDIA H100"
SOURCE = "modded-nanogpt"
LINK = "published/"
TRACK3_TOKENS = 8 * 64 * 1024  # of a step
STATES = {
    claims.PASSED: PASSED,
    claims.DIFFERS: FAILED,
    claims.UNCHECKED: UNCHECKED,
}
TRACKS_OF_2024 = {
    evidence.JUNE: "gpt2-2024",
    evidence.OCTOBER: "gpt2-2024",
    evidence.PAIR: "gpt2-2024",
    evidence.XL: "xl",
}
SETTINGS = {  # what is new, or other than in the track
    evidence.JUNE: "12 heads, RoPE, tied head: the baseline of the claim of 2024",
    evidence.OCTOBER: "12 heads, RoPE, tied head",
    evidence.PAIR: "another model: 6 heads, QK-norm, ReLU², zero-init projections",
    evidence.XL: "52 layers of width 1536",
}


def published_entries(results: Path) -> list[Entry]:
    """All published results in a results folder. Raises UserError as `published.load` does."""
    data = published.load(results / "published")
    return [*_track3(data), *_of_2024(data), *_speedruns(data)]


# ---- Track 3 -----------------------------------------------------------------------------------


def _track3(data: Data) -> list[Entry]:
    found = claims.verdicts(data)
    return [_result(each, data.points.get(each.claim.result, [])) for each in found]


def _result(verdict: claims.Verdict, points: Sequence[Track3Point]) -> Entry:
    claim = verdict.claim
    name = f"#{claim.result} {verdict.optimizer}".strip()
    why = [verdict.why] if verdict.why and verdict.state != claims.PASSED else []
    if not verdict.holds:
        why.append(f"(3.28 - mean) √n = {verdict.statistic:.5f}, below 0.004")
    return _entry(
        record=f"{SOURCE} track 3 {name}",
        date=claim.date,
        track=TRACK3,
        label=name,
        n=verdict.n,
        steps=claim.claimed_steps,
        mean_loss=claim.claimed_mean_loss if verdict.mean is None else verdict.mean,
        loss_sd=verdict.sd,
        p=float(ndtr(-verdict.statistic / TRACK3_SIGMA)),
        claimed=verdict.holds,
        state=STATES[verdict.state] if verdict.holds else FAILED,
        why=why,
        sets=(STEPS,) if claim.world_record else (),
        link=f"{LINK}track3_claims.csv",
        runs=[_run(seed, loss, claim.claimed_steps) for seed, loss in enumerate(verdict.losses)],
        curve=_mean_curve([p for p in points if p.step <= claim.claimed_steps]),
    )


def _run(seed: int, loss: float, steps: int) -> OneRun:
    """A run of track 3, which has neither a seed nor a clock here."""
    status = "reached" if loss <= TARGET else "missed"
    return OneRun(seed, status, loss, None, None, steps, None)


def _mean_curve(points: Sequence[Track3Point]) -> list[Point]:
    """The mean of a result's runs at each step that all of them have."""
    runs = {point.run for point in points}
    by_step: dict[int, list[float]] = {}
    for point in points:
        by_step.setdefault(point.step, []).append(point.val_loss)
    return [
        Point(step, step * TRACK3_TOKENS, None, sum(losses) / len(losses))
        for step, losses in sorted(by_step.items())
        if len(losses) == len(runs)
    ]


# ---- The logs of 2024 --------------------------------------------------------------------------


def _of_2024(data: Data) -> list[Entry]:
    xl = data.curve(evidence.XL, "adamw").final_loss  # the target of that track: where AdamW ended
    return [_log(c, xl if c.setting == evidence.XL else TARGET) for c in data.curves]


def _log(curve: Curve, target: float) -> Entry:
    name, _, steps = curve.optimizer.partition("-")
    date, last = evidence.DATES[curve.setting, curve.optimizer], curve.points[-1]
    met, first = curve.step_at(target), curve.first_at(target)
    long = f", {steps} steps" if steps else ""
    run = OneRun(
        seed=0,
        status="missed" if met is None else "reached",
        final_loss=curve.final_loss,
        steps_to_target=met,
        seconds_to_target=first.train_time_s if first else None,
        steps=last.step,
        train_seconds=last.train_time_s,
    )
    return _entry(
        record=f"{SOURCE} log {date} {curve.optimizer}",
        date=date,
        track=TRACKS_OF_2024[curve.setting],
        label=f"{name} ({date}{long})",
        new=SETTINGS[curve.setting],
        n=1,
        steps=last.step,
        mean_loss=curve.final_loss,
        target=target,
        seconds=curve.seconds,
        claimed=False,
        state=UNCHECKED,
        why=["a single run: the track's rule asks for more"],
        link=f"{LINK}track1_curves.csv",
        runs=[run],
        curve=[Point(p.step, p.tokens, p.train_time_s, p.val_loss) for p in curve.points],
    )


# ---- Tracks 1 and 2 ----------------------------------------------------------------------------


def _speedruns(data: Data) -> list[Entry]:
    """The records of tracks 1 and 2; of one that was timed again, each time."""
    return [
        _entry(
            record=f"{SOURCE} track {track} record {record.name} of {record.date}",
            date=str(record.date),
            track=f"{SOURCE} track {track}",
            label=f"record {record.name}",
            target=TARGETS[track],
            seconds=60 * record.value,
            state=UNCHECKED,
            why=["only its minutes are here, no curve"],
            sets=(SECONDS,) if record.is_best else (),
            link=f"{LINK}speedrun_records.csv",
        )
        for track, history in enumerate(histories.all_of(data)[:2], start=1)
        for record in history.records
    ]


def _entry(
    *,
    record: str,
    date: str,
    track: str,
    label: str,
    state: str,
    link: str,
    new: str = "",
    n: int | None = None,
    steps: int | None = None,
    mean_loss: float | None = None,
    loss_sd: float | None = None,
    target: float = TARGET,
    p: float | None = None,
    seconds: float | None = None,
    claimed: bool = True,
    why: Sequence[str] = (),
    sets: Sequence[str] = (),
    runs: Sequence[OneRun] = (),
    curve: Sequence[Point] = (),
) -> Entry:
    """An entry with what all published results share."""
    return Entry(
        record=record, origin=PUBLISHED, date=date, track=track, rules=None, label=label,
        entrant="", authors=(), new=new, n=n, steps=steps, mean_loss=mean_loss, loss_sd=loss_sd,
        target=target, p=p, seconds=seconds, hardware=HARDWARE if seconds else "",
        state_bytes=None, peak_memory_bytes=None, claimed=claimed, state=state, why=why, sets=sets,
        link=link, runs=runs, curve=curve,
    )  # fmt: skip
