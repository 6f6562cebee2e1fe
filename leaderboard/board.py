"""What the boards show: an entry for each entrant that a record claims, and each published result.

    from leaderboard.board import entries
    for entry in entries(RESULTS): ...

A board is the entries of one track, sorted by steps, or by seconds on one class of hardware. The
page (`leaderboard.page`) and the table of the README are made from the same entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

OURS, YOURS, PUBLISHED = "ours", "yours", "published"  # origins: committed, not in git, of others
PASSED, FAILED, UNCHECKED = "passed", "failed", "cannot be checked"  # states of verification
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
