"""Which entries of a board differ: every pair is tested, in steps or in seconds.

    from leaderboard.matrix import matrix
    for cell in matrix(entries, STEPS).cells: ...

On `gpt2` the pairwise rule of modded-nanogpt's track 3 decides. It needs a mean and a number of
runs, so it also holds for published results. On the other tracks it is Welch's t-test of the
logarithms of what the target costs, with Holm's correction over all pairs of the board. Seconds are
compared within one class of hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from analysis.stats import (
    SIGNIFICANT,
    TRACK3,
    Costs,
    Mean,
    beats_in_track3,
    holm,
    pairwise_track3,
    speedup,
)
from leaderboard.board import STEPS, Entry, OneRun
from tracking.schema import REACHED

WELCH, RULE3 = "welch", "track3"  # the tests


@dataclass(frozen=True)
class Cell:
    """One pair: what the second entry costs over the cost of the first."""

    first: int  # place in the entries
    second: int
    ratio: float | None  # above 1: the first is faster; None if the runs give none
    p: float | None  # adjusted by Holm's method; None without such a test
    statistic: float | None  # of track 3's rule, nats per token
    distinct: bool  # whether the two can be told apart
    at_least: bool = False  # the ratio is a lower bound
    at_most: bool = False  # the ratio is an upper bound


@dataclass(frozen=True)
class Matrix:
    """The pairs of one board."""

    test: str  # WELCH or RULE3
    family: int  # number of pairs in the correction
    cells: Sequence[Cell]


def matrix(entries: Sequence[Entry], unit: str) -> Matrix:
    """All pairs of the entries of one track in STEPS, or, of one class of hardware, in SECONDS."""
    if unit == STEPS and entries and entries[0].track == TRACK3:
        rule3 = [_by_rule3(*pair) for pair in combinations(enumerate(entries), 2)]
        return Matrix(RULE3, 0, [cell for cell in rule3 if cell])
    costs = [_costs(entry.runs, unit) for entry in entries]
    known = [(i, cost) for i, cost in enumerate(costs) if cost is not None]
    pairs = list(combinations(known, 2))
    ratios = [speedup(baseline, challenger) for (_, challenger), (_, baseline) in pairs]
    # A pair without a test stays in the family, as if its p were 1.
    tests = [None if ratio is None else ratio.p for ratio in ratios]
    adjusted = holm([1.0 if p is None else p for p in tests])
    cells = []
    for ((i, _), (j, _)), ratio, p, by_holm in zip(pairs, ratios, tests, adjusted, strict=True):
        if ratio is not None:
            shown = None if p is None else by_holm
            distinct = shown is not None and shown < SIGNIFICANT
            value, low, high = ratio.estimate.value, ratio.at_least, ratio.at_most
            cells.append(Cell(i, j, value, shown, None, distinct, low, high))
    return Matrix(WELCH, len(pairs), cells)


def _by_rule3(first: tuple[int, Entry], second: tuple[int, Entry]) -> Cell | None:
    """The pair by track 3's rule; None if an entry does not say its runs, its steps or its loss."""
    (i, a), (j, b) = first, second
    if None in (a.n, b.n, a.steps, b.steps, a.mean_loss, b.mean_loss):
        return None
    assert a.n and b.n and a.steps and b.steps and a.mean_loss and b.mean_loss  # for the types
    one, other = Mean(a.mean_loss, a.n), Mean(b.mean_loss, b.n)
    fewer = b.steps - a.steps
    statistic = pairwise_track3(one, other, fewer)
    distinct = beats_in_track3(one, other, fewer) or beats_in_track3(other, one, -fewer)
    return Cell(i, j, b.steps / a.steps, None, statistic, distinct)


def _costs(runs: Sequence[OneRun], unit: str) -> Costs | None:
    """What each run spent; None without runs, or if a run that reached does not say where."""
    spent = []
    for run in runs:
        to_target, whole = (
            (run.steps_to_target, run.steps)
            if unit == STEPS
            else (run.seconds_to_target, run.train_seconds)
        )
        value = to_target if run.status == REACHED else whole
        if value is None:
            return None
        spent.append(value)
    return Costs(spent, [run.status == REACHED for run in runs]) if spent else None
