"""What the rows of a race allow to claim, and which rules they break.

    findings = of_race(race, rules)               # rules that concern all runs of the race
    findings = of_entrant(race, "muon", rules)    # and those of one entrant
    claim = make(race, "muon", rules)             # its numbers

`leaderboard submit` refuses what breaks a rule; `leaderboard verify` computes all of it again.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from analysis import stats
from analysis.table import by_label, count
from errors import one_line
from leaderboard import rules as rulebook
from leaderboard.form import AVERAGED, WEIGHTS, Claim
from leaderboard.rules import ALPHA, STUDENT, TrackRules
from tracking.schema import DIVERGED, Run, Validation

PASSED, FAILED, UNCHECKED = "passed", "failed", "cannot be checked"
SHOWN = 20  # findings of one rule that are reported
ALIKE = 1e-4  # nats per token: losses of two seeds do not agree so far, at every validation
RELATIVE = 1e-6  # by which a claimed number may differ: it was computed on another machine


@dataclass(frozen=True)
class Finding:
    """What one check has found."""

    state: str  # PASSED, FAILED or UNCHECKED
    rule: str  # its name in RULES.md
    text: str  # the value, and the limit

    def __str__(self) -> str:
        return one_line(f"{self.state}: {self.rule}: {self.text}")  # the text may be of a cheat


@dataclass(frozen=True)
class Race:
    """The rows of one race."""

    track: str
    runs: Sequence[Run]
    curves: Mapping[str, Sequence[Validation]]  # by the id of the run

    @property
    def entrants(self) -> dict[str, list[Run]]:
        """The runs of each entrant, by its label."""
        return by_label(self.runs)


def failed(rule: str, text: str) -> Finding:
    """A rule that is broken."""
    return Finding(FAILED, rule, text)


# ---- All runs of a race ------------------------------------------------------------------------


def of_race(race: Race, rules: TrackRules) -> list[Finding]:
    """The rules that the runs of a race break together; and what cannot be checked of them."""
    return [
        *_track(race, rules),
        *_batches(race, rules),
        *_starts(race),
        *_validations(race, rules),
        *_seeds(race),
        *_alike(race),
    ]


def _track(race: Race, rules: TrackRules) -> Iterator[Finding]:
    """Data, model and target are those of the track."""
    wanted = {"track": race.track, "track_hash": rules.track_hash, "target": rules.target}
    if rules.data_hash:
        wanted["data_hash"] = rules.data_hash
    else:
        text = f"data_hash: no published list of {race.track}'s files to compare it with"
        yield Finding(UNCHECKED, "data", text)
    for column, value in wanted.items():
        for found in sorted({getattr(run, column) for run in race.runs} - {value}, key=str):
            rule = "data" if column == "data_hash" else "track"
            yield failed(rule, f"{column} {_shown(found)}, but the rules have {_shown(value)}")


def _batches(race: Race, rules: TrackRules) -> Iterator[Finding]:
    for run in race.runs:
        if run.tokens != run.steps * rules.batch_tokens:
            yield failed(
                "track",
                f"run {run.run}: {run.tokens} tokens in {run.steps} steps, but a step has "
                f"{rules.batch_tokens}",
            )


def _starts(race: Race) -> Iterator[Finding]:
    """Each run says when it began: the order of records depends on it."""
    for run in race.runs:
        try:
            offset = datetime.fromisoformat(run.started).utcoffset()
        except ValueError:
            offset = None
        if offset != timedelta(0):
            wanted = "2026-11-27T01:02:03+00:00"
            yield failed("date", f"run {run.run}: started {run.started!r}, not as {wanted}")


def _validations(race: Race, rules: TrackRules) -> Iterator[Finding]:
    """Validated where the track says: more often would be another look at the validation loss."""
    for run in race.runs:
        found = {point.step for point in race.curves.get(run.run, ()) if point.step}
        # A row may claim 10^18 steps: no more are counted than it takes to find some missing.
        steps = rules.validations(run.steps, run.steps_planned)
        wanted = {*islice(steps, len(found) + SHOWN)}
        extra = {step for step in found if not rules.validates(step, run.steps_planned)}
        for step in sorted(wanted - found | extra)[:SHOWN]:
            verb = "is" if step in extra else "is not"
            if run.status != DIVERGED or step in found:
                yield failed(
                    "validation",
                    f"run {run.run}: step {step} {verb} validated, but the track validates every "
                    f"{rules.val_every} steps, and every {rules.val_every_late} in the last tenth",
                )


def _seeds(race: Race) -> Iterator[Finding]:
    """No run is dropped and none is doubled: the seeds of each entrant are 0, 1, ..., n - 1."""
    most = max((len(runs) for runs in race.entrants.values()), default=0)
    for label, runs in race.entrants.items():
        seeds = Counter(run.seed for run in runs)
        for seed, times in seeds.items():
            if times > 1:
                yield failed("seeds", f"{label}: seed {seed} has {times} runs, but may have one")
        for seed in islice((seed for seed in range(most) if seed not in seeds), SHOWN):
            yield failed(
                "dropped run", f"{label}: seed {seed} is missing of the seeds 0 to {most - 1}"
            )
        for seed in sorted(seed for seed in seeds if not 0 <= seed < most):
            yield failed("seeds", f"{label}: seed {seed}, but the {most} runs have 0 to {most - 1}")


def _alike(race: Race) -> Iterator[Finding]:
    """No run counts twice: two seeds of an entrant differ, and no two runs have the same losses."""
    first: dict[tuple[float, ...], str] = {}
    for label, runs in race.entrants.items():
        own = []
        for run in runs:
            found = tuple(point.val_loss for point in race.curves.get(run.run, ()) if point.step)
            if len(found) < 2:
                continue
            if first.setdefault(found, run.run) != run.run:
                yield failed("curves", f"run {run.run}: has the losses of run {first[found]}")
            else:
                own.append((found[-1], found, run.run))
        yield from _near(label, sorted(own))


def _near(label: str, curves: Sequence[tuple[float, tuple[float, ...], str]]) -> Iterator[Finding]:
    """Two runs of an entrant with nearly the same losses, such as a copy with another last digit.

    curves: the last loss, all losses and the id of each run, sorted.
    """
    for index, (last, losses, name) in enumerate(curves):
        for other_last, others, other in curves[index + 1 :]:
            if other_last - last > ALIKE:
                break
            if len(losses) == len(others) and all(
                abs(a - b) <= ALIKE for a, b in zip(losses, others, strict=True)
            ):
                text = f"{label}: the losses of runs {name} and {other} differ by {ALIKE:g} at most"
                yield failed("curves", text)


# ---- One entrant -------------------------------------------------------------------------------


def of_entrant(race: Race, label: str, rules: TrackRules, readout: str = WEIGHTS) -> list[Finding]:
    """The rules that the runs of one entrant break."""
    runs = race.entrants.get(label, [])
    if not runs:
        named = ", ".join(race.entrants) or "none"
        return [failed("claim", f"{label}: no such entrant in the race, which has {named}")]
    found = []
    horizons = sorted({run.steps_planned for run in runs})
    if len(horizons) > 1:
        shown = ", ".join(map(str, horizons))
        found.append(failed("stopping step", f"{label}: its runs stop at {shown}, not at one step"))
    if len(runs) < rules.min_runs:
        found.append(
            failed(
                "number of runs", f"{label}: {len(runs)}, but {race.track} needs {rules.min_runs}"
            )
        )
    if readout not in (WEIGHTS, AVERAGED) or (readout == AVERAGED) != rulebook.averages(
        runs[0].entrant
    ):
        needed = AVERAGED if rulebook.averages(runs[0].entrant) else WEIGHTS
        found.append(failed("read-out", f"{label}: declared {readout!r}, but it is {needed!r}"))
    moved = sorted({run.engine for run in runs if "+" in run.engine})
    if moved:
        found.append(failed("clock", f"{label}: went on on another layout ({', '.join(moved)})"))
    return [*found, *_target(label, runs, rules)]


def _target(label: str, runs: Sequence[Run], rules: TrackRules) -> Iterator[Finding]:
    """The mean final loss is below the target, and not by chance alone."""
    diverged = count(runs, DIVERGED)
    if diverged:
        yield failed("target", f"{label}: {diverged} of {len(runs)} runs diverged, none may")
        return
    if not ended(runs):
        yield failed("target", f"{label}: a run has no final loss")
        return
    losses = stats.losses(runs)
    if len(losses) > 1 and len(set(losses)) == 1:  # to the last digit, as no seeds do
        yield failed("curves", f"{label}: all {len(losses)} runs end at the loss {losses[0]:.9g}")
    if rulebook.proven(losses, rules):
        return
    p = rulebook.p_below_target(losses, rules)
    mean = sum(losses) / len(losses)
    what = f"{label}: mean loss {mean:.5f} of {len(losses)} runs against {rules.target:g}"
    if rules.test != STUDENT:
        statistic = stats.track3_statistic(losses, rules.target)
        limit = stats.TRACK3_MARGIN
        yield failed(
            "target", f"{what}: (target - mean) √n = {statistic:.5f}, not at least {limit}"
        )
    elif p is None:
        yield failed("target", f"{what}: one run has no spread")
    else:
        yield failed("target", f"{what}: p = {p:.2g}, not below {ALPHA:g}")


def ended(runs: Sequence[Run]) -> bool:
    """Whether all runs have a final loss and none diverged, so that their mean can be claimed."""
    return all(run.status != DIVERGED and run.final_loss is not None for run in runs)


def make(race: Race, label: str, rules: TrackRules, readout: str = WEIGHTS) -> Claim:
    """The numbers of a claim, from runs that `ended`."""
    runs = race.entrants[label]
    losses = stats.losses(runs)
    return Claim(
        label=label,
        entrant=runs[0].entrant,
        n=len(runs),
        steps=max(run.steps for run in runs),
        mean_loss=sum(losses) / len(losses),
        loss_sd=stats.deviation(losses),
        p=rulebook.p_below_target(losses, rules) or 0.0,
        seconds=sum(run.train_seconds for run in runs) / len(runs),
        state_bytes=max(run.state_bytes for run in runs),
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs),
        readout=readout,
    )


def differences(claim: Claim, computed: Claim) -> list[Finding]:
    """The numbers of a claim that its rows do not give. What it sets is compared elsewhere."""
    found = []
    for name, value in vars(computed).items():
        claimed = getattr(claim, name)
        if name in ("sets", "label") or claimed == value:
            continue
        numbers = isinstance(value, float) and isinstance(claimed, float)
        if numbers and math.isclose(claimed, value, rel_tol=RELATIVE, abs_tol=1e-300):
            continue
        shown = f"{_shown(claimed)}, but its rows give {_shown(value)}"
        found.append(failed("claim", f"{claim.label}: {name} {shown}"))
    return found


def _shown(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else f"{value}"[:120]
