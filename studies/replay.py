"""Does the guide find more? On the rows of a search that it did not guide, in as many trials.

    python -m studies.replay                                   # of results/records/tiny-search
    python -m studies.replay --folder results/records/guide    # the record

The trials of each optimizer's first search are a pool, Sobol points all of them. Its refinement is
not: that those points are close to the best one was known from the search alone. Three ways of
taking them begin with the same START trials: `guide` takes what the guide of the tuner finds most
promising, `random` is the mean over DRAWS random orders, and `rows` keeps the order in which the
tuner ran them. Regret is the best loss so far above the best one of the pool. No training is done:
the losses are those of the rows.

replay.csv has a row for each optimizer and way; summary.csv has the means over the optimizers.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import NamedTuple

from errors import UserError
from host import entry, paths
from optim.entrants import assigned, entrant_options
from speedrun import TRACKS, Schedule
from studies import guide
from studies.libraries import write
from studies.points import coordinate, ranges_of
from studies.study import SEARCH_SEED, loss_of
from tracking import store
from tracking.schema import SEARCHED, Trial

TRACK = TRACKS["tiny"]
START = 8  # trials that all ways begin with
AFTER = (12, 16, 20, 24)  # trials after which the regret is written down
DRAWS = 200


class Pool(NamedTuple):
    """The trials of an optimizer that a way may take, in the order of their numbers."""

    places: list[list[float]]  # (n D) in the ranges of today; D: options that the trials vary
    losses: list[float]  # (n), infinite where a trial diverged


class Replayed(NamedTuple):
    """A row of replay.csv. Regrets are in nats per token."""

    optimizer: str
    way: str  # guide, random or rows
    trials: int  # in the pool
    best_at: float  # number of trials until the best one is found; a mean over the draws
    after_12: float  # regret after so many trials; these, too
    after_16: float
    after_20: float
    after_24: float


def pool_of(recipe: str, trials: Sequence[Trial]) -> Pool:
    """The pool of a recipe: its first search, before its refinement and any longer search.

    trials: rows of the tuner; of a number the last row counts.
    """
    newest = {
        row.trial: row
        for row in trials
        if (row.track_hash, row.recipe, row.seed, row.steps)
        == (TRACK.hash(), recipe, SEARCH_SEED, TRACK.search_steps)
        and row.stage in SEARCHED
    }
    rows = [newest[number] for number in sorted(newest)]
    rows = list(takewhile(lambda row: row.stage == "search", rows))
    known = entrant_options(recipe, Schedule)
    ranges = ranges_of(known)
    columns = []
    for name, bounds in ranges.items():
        values = [assigned(row.entrant, known).get(name, known[name].default) for row in rows]
        if len(set(values)) > 1:  # an option that has a range only today has one value
            columns.append([coordinate(bounds, value) for value in values])
    return Pool([list(place) for place in zip(*columns, strict=True)], list(map(loss_of, rows)))


def guided(pool: Pool) -> list[int]:
    """The pool's indices as the guide takes them; after the best one, all others in any order."""
    order, left = list(range(START)), list(range(START, len(pool.losses)))
    best = pool.losses.index(min(pool.losses))
    while best in left:
        places, losses = [pool.places[i] for i in order], [pool.losses[i] for i in order]
        found = guide.most_promising(places, losses, [pool.places[i] for i in left])
        order.append(left.pop(found))
    return order + left


def shuffled(pool: Pool, seed: int) -> list[int]:
    """The pool's indices in a random order, but for the first START."""
    rest = list(range(START, len(pool.losses)))
    random.Random(seed).shuffle(rest)
    return [*range(START), *rest]


def outcome(recipe: str, way: str, pool: Pool, orders: Sequence[Sequence[int]]) -> Replayed:
    """What a way found, the mean over its orders."""
    best = min(pool.losses)
    found = [list(accumulate((pool.losses[i] for i in order), min)) for order in orders]
    best_at = statistics.fmean(losses.index(best) + 1 for losses in found)
    regrets = [statistics.fmean(losses[count - 1] - best for losses in found) for count in AFTER]
    return Replayed(recipe, way, len(pool.losses), best_at, *regrets)


def replay(recipe: str, trials: Sequence[Trial]) -> list[Replayed]:
    """The rows of an optimizer. Raises UserError if it has too few trials."""
    pool = pool_of(recipe, trials)
    if len(pool.losses) < max(AFTER):
        raise UserError(
            f"{recipe}: {len(pool.losses)} trials are fewer than {max(AFTER)}; "
            "name rows of a longer search with --rows"
        )
    ways: dict[str, Sequence[Sequence[int]]] = {
        "guide": [guided(pool)],
        "random": [shuffled(pool, seed) for seed in range(DRAWS)],
        "rows": [range(len(pool.losses))],
    }
    return [outcome(recipe, way, pool, orders) for way, orders in ways.items()]


def shown(rows: Sequence[Replayed]) -> list[list[str]]:
    """The rows as cells of a CSV file."""
    return [
        [r.optimizer, r.way, str(r.trials), f"{r.best_at:.1f}", *(f"{x:.4f}" for x in r[4:])]
        for r in rows
    ]


def numbers(row: Replayed) -> tuple[float, ...]:
    """The number of trials until the best one, and the regrets."""
    return row.best_at, row.after_12, row.after_16, row.after_20, row.after_24


def summary(rows: Sequence[Replayed]) -> list[list[str]]:
    """The table of means over the optimizers, a line for each way."""
    counts = [f"regret after {count}" for count in AFTER]
    table = [["way", "optimizers", "trials until the best", *counts]]
    for way in dict.fromkeys(row.way for row in rows):
        group = [row for row in rows if row.way == way]
        best_at, *regrets = map(
            statistics.fmean, zip(*(numbers(row) for row in group), strict=True)
        )
        table.append([way, str(len(group)), f"{best_at:.1f}", *(f"{x:.4f}" for x in regrets)])
    return table


def run(given: argparse.Namespace) -> None:
    """Replay all optimizers, write both files and print the summary. Raises UserError."""
    guide.check()
    trials = [row for row in store.read_trials(given.rows) if row.track_hash == TRACK.hash()]
    recipes = sorted({row.recipe for row in trials if row.stage == "search"})
    if not recipes:
        raise UserError(
            f"{given.rows}: has no trials of track {TRACK.name}; name a folder with --rows"
        )
    rows: list[Replayed] = []
    for recipe in recipes:
        rows += replay(recipe, trials)
        found = f"the guide finds the best of {rows[-1].trials} at {rows[-3].best_at:.0f}"
        print(f"{recipe}: {found}", flush=True)
    store.ready(given.folder)
    write(given.folder / "replay.csv", [Replayed._fields, *shown(rows)])
    write(given.folder / "summary.csv", table := summary(rows))
    for line in table:
        print("  ".join(f"{cell:>21}" for cell in line))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = entry.parser("studies.replay", __doc__)
    parser.add_argument(
        "--rows", type=paths.typed, default=paths.RESULTS / "records" / "tiny-search",
        help="folder of tuning.csv (default: results/records/tiny-search)",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=paths.typed, default=paths.RESULTS / "guide",
        help="of the files (default: results/guide)",
    )  # fmt: skip
    return entry.run(parser, argv, run, "the same command starts anew")


if __name__ == "__main__":
    sys.exit(main())
