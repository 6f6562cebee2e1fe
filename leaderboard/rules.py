"""The rules of the leaderboard, by version: what a track fixes, and which tests a claim must pass.

RULES.md explains them. A number here is compared with the rows of a record by `leaderboard.judge`.
A test holds that the newest version is what `speedrun.TRACKS` says.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby

from scipy.special import ndtr, ndtri, stdtrit

from analysis import stats
from tracking.schema import Run

VERSION = 2  # of the newest rules; see `board_of`
ALPHA = stats.ALPHA  # largest p of every test: against the target, and against the standing record
STUDENT, TRACK3 = "student", "track3"  # tests against the target
TESTS = {
    STUDENT: f"Student, p < {ALPHA:g}",
    TRACK3: f"(target − mean) √n ≥ {stats.TRACK3_MARGIN:g}",
}
SOTU = "2b1a7a1666f2db1ca3958ae069525605323b7c6573c44be7ea9644277bb8bf71"


@dataclass(frozen=True)
class TrackRules:
    """What one track fixes."""

    track_hash: str  # of every value that the track freezes: data, batch, model, validation
    data_hash: str  # of the data's manifest; empty: no published list to compare with
    target: float  # validation loss, nats per token
    batch_tokens: int  # tokens of a step
    val_every: int  # steps between validations
    val_every_late: int  # in the last tenth of a run
    test: str = STUDENT  # that the mean of the final losses is below the target
    min_runs: int = 3

    def validates(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is validated after `step` of them."""
        late = step > 0.9 * steps and step % self.val_every_late == 0
        return late or step % self.val_every == 0 or step == steps

    def validations(self, last: int, steps: int) -> Iterator[int]:
        """The steps up to `last` that are validated, in order; a caller may stop early."""
        early = range(self.val_every, last + 1, self.val_every)
        first = int(0.9 * steps) // self.val_every_late * self.val_every_late
        late = range(max(first, self.val_every_late), last + 1, self.val_every_late)
        ends = [steps] if 0 < steps <= last else []
        for step, _ in groupby(merge(early, late, ends)):
            if self.validates(step, steps):
                yield step


def _gpt2(track_hash: str, target: float = 3.28, **changes: object) -> TrackRules:
    values = dict(
        data_hash="", target=target, batch_tokens=524_288, val_every=125, val_every_late=25
    )
    return TrackRules(track_hash, **(values | changes))  # type: ignore[arg-type]


FIRST = {
    "tiny": TrackRules("f5f68dac77bcfe3e", SOTU, 3.68, 6144, 20, 4),
    "gpt2": _gpt2("93c83a0d55caa07c", test=TRACK3, min_runs=1),
    "gpt2-2024": _gpt2("ae1481b1274ac86f"),
    "medium": _gpt2("4d71d716b3b23e88", 2.92),
    "xl": _gpt2("478cabff8fbda389", 2.7737, batch_tokens=491_520),
}

# The tracks that have boards, by version.
RULES = {
    1: FIRST,
    2: {
        "tiny": replace(FIRST["tiny"], target=3.60),
        "tiny-gqa": replace(FIRST["tiny"], track_hash="0d32649d732f9c1e", target=3.65),
        "tiny-mla": replace(FIRST["tiny"], track_hash="5f6c83bc2308b863", target=3.70),
        "tiny-classic": replace(FIRST["tiny"], track_hash="79359f1f8b9dcffd", target=4.11),
        **{name: rules for name, rules in FIRST.items() if name != "tiny"},
    },
}

# Recipes whose validation reads an average of the weights, which a claim must declare.
AVERAGING = re.compile(r"schedule[-_]?free|\bema\b|averag", re.IGNORECASE)


def of(track: str, version: int) -> TrackRules | None:
    """The rules of a track; None where the version has no board for it."""
    return RULES.get(version, {}).get(track)


def board_of(track: str, version: int | None) -> str:
    """The name of the board of a result: its track, and the version if later rules differ for it.

    version: of the rules; None for a published result, which is beside the newest ones.
    """
    rules = of(track, VERSION if version is None else version)
    if rules == of(track, VERSION):
        return track
    last = max((each for each in RULES if of(track, each) == rules), default=version)
    return f"{track}, rules {last}"


def hardware_class(runs: Sequence[Run]) -> str:
    """The class of hardware that seconds are compared on: its name, and how many GPUs.

    Processes on one processor share it, so their number is no part of its name.
    """
    run = runs[0]
    if re.search(r", \d+ cores?$", run.device):
        return run.device
    return f"{run.world_size}x {run.device}"


def averages(entrant: str) -> bool:
    """Whether an entrant is validated with an average of its weights."""
    return bool(AVERAGING.search(entrant))


def p_below_target(losses: Sequence[float], rules: TrackRules) -> float | None:
    """One-sided p that the mean final loss is below the target; None for too few runs."""
    if rules.test == TRACK3:
        return float(ndtr(-stats.track3_statistic(losses, rules.target) / stats.TRACK3_SIGMA))
    return stats.one_sample(losses, rules.target)


def proven(losses: Sequence[float], rules: TrackRules) -> bool:
    """Whether final losses are below the target by the test of the track."""
    if rules.test == TRACK3:
        return stats.counts_in_track3(losses, rules.target)
    return stats.mean_below_target(losses, rules.target)


def p_faster(new: Sequence[Run], old: Sequence[Run], unit: str) -> float | None:
    """One-sided p of Welch's test that runs need less than others, in "steps" or "seconds".

    The logarithms of the costs of the target are compared; a run that missed is censored. None
    without a test.
    """
    return stats.cheaper(stats.costs(new, unit), stats.costs(old, unit))


def beats(new: Sequence[Run], old: Sequence[Run], unit: str, rules: TrackRules) -> bool:
    """Whether runs are faster than the standing record, and not by chance alone.

    On the track of track 3 steps are compared by its pairwise rule, everywhere else by `p_faster`.
    """
    if rules.test == TRACK3 and unit == "steps":
        fewer = old[0].steps_planned - new[0].steps_planned
        ours, theirs = (stats.Mean.of(stats.losses(runs)) for runs in (new, old))
        return fewer > 0 and stats.beats_in_track3(ours, theirs, fewer)
    p = p_faster(new, old, unit)
    return spent(new, unit) < spent(old, unit) and p is not None and p < ALPHA


def spent(runs: Sequence[Run], unit: str) -> float:
    """What a board is sorted by: the common stopping step, or the mean of the training clocks."""
    if unit == "steps":
        return runs[0].steps_planned
    return sum(run.train_seconds for run in runs) / len(runs)


def rerun_limit(losses: Sequence[float], more: int, rules: TrackRules) -> float:
    """The largest mean loss of `more` further runs that chance explains (p = ALPHA, one-sided).

    The limit of a prediction interval: Student's, with the spread of the record's own runs; on the
    track of track 3, or for a single run, normal with the spread that track 3 assumes.
    """
    n, mean = len(losses), sum(losses) / len(losses)
    width = (1 / n + 1 / more) ** 0.5
    sd = stats.deviation(losses)
    if rules.test == TRACK3 or sd is None:
        return float(mean - ndtri(ALPHA) * stats.TRACK3_SIGMA * width)
    return float(mean - stdtrit(n - 1, ALPHA) * sd * width)
