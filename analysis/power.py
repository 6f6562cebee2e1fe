"""How many seeds a race needs to show a difference.

    python -m analysis.power --difference 0.01              # of your newest race, or of a record
    python -m analysis.power --difference 0.01 --record 2026-11-27_tiny_duel-tuned --entrant muon
    python -m analysis.power --difference 0.01 --sd 0.01    # of a deviation that you know

The number depends on how much runs differ from seed to seed. A line of the table is an entrant, and
takes its deviation for both sides of a comparison. A difference is read in two ways: in nats per
token of the final loss, and as a share of the steps to the target (0.01 is 1%).

    two entrants     runs of each, until Welch's two-sided t-test finds the difference
    below a target   runs, until the mean is shown to be below a target that is this much above it:
                     Student's one-sided t-test, or on `gpt2` the rule of track 3

Found means: with the probability --power. Final losses can only be compared between runs of one
horizon. A single pair of entrants is assumed; a race of many corrects its tests, and needs more.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from scipy.stats import nct, norm, t

from analysis.pairs import values_of
from analysis.report import select
from analysis.stats import (
    ALPHA,
    POWER,
    SIGNIFICANT,
    TRACK3,
    TRACK3_MARGIN,
    deviation,
    min_detectable_difference,
    pooled_deviation,
)
from analysis.table import BASELINE, CHALLENGER, aligned, by_label, find
from errors import UserError
from host import entry, paths
from tracking.schema import Run
from tracking.spelling import recipe_of
from tracking.store import find_record, read_runs, records

MOST = 100_000  # seeds: more are not searched
DIFFERENCES = (0.01,)
DUEL = [BASELINE, CHALLENGER]  # the recipes of the race that is the default


# ---- Numbers of seeds --------------------------------------------------------------------------


def seeds_needed(
    difference: float, sd: float, alpha: float = SIGNIFICANT, power: float = POWER
) -> int | None:
    """Runs of each of two entrants that show a difference of their means; None above MOST.

    It is the smallest n whose `min_detectable_difference` is no larger than the difference, which
    has the unit of `sd`.
    """
    return _fewest(lambda n: min_detectable_difference(n, sd, alpha, power) <= abs(difference))


def seeds_below_target(
    margin: float, sd: float, alpha: float = ALPHA, power: float = POWER
) -> int | None:
    """Runs that show that their mean is below a target (`stats.one_sample`); None above MOST.

    margin: how far the true mean is below the target, in the unit of `sd`.
    """

    def shown(n: int) -> bool:
        critical = -t.isf(alpha, n - 1)
        away = -margin * math.sqrt(n) / sd if sd else -math.inf
        return math.isinf(away) or float(nct.cdf(critical, n - 1, away)) >= power

    return _fewest(shown)


def seeds_in_track3(margin: float, sd: float, power: float = POWER) -> int | None:
    """Runs that count by the rule of track 3 (`stats.counts_in_track3`); None above MOST.

    margin: how far the true mean is below the target. sd: of one run, which the rule itself does
    not use.
    """
    needed = ((TRACK3_MARGIN + float(norm.ppf(power)) * sd) / margin) ** 2
    return None if needed > MOST else max(1, math.ceil(round(needed, 9)))


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The smallest number of seeds from 2 on that is enough; None above MOST."""
    low, high = 1, 2
    while not enough(high):
        if high >= MOST:
            return None
        low, high = high, min(2 * high, MOST)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


# ---- The table ---------------------------------------------------------------------------------

HEADINGS = (
    "entrant", "difference", "loss: deviation", "two entrants", "below a target",
    "steps: deviation", "two entrants",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """How much the runs of one entrant differ from seed to seed; None where it is not known."""

    name: str
    loss: float | None  # deviation of the final loss, nats per token
    steps: float | None = None  # deviation of the logarithm of the steps to the target


def spreads(groups: Mapping[str, Sequence[Run]]) -> list[Spread]:
    """The spread of each entrant of a race, and where there are several, the pooled spread."""
    values = {
        quantity: [values_of(runs, quantity) for runs in groups.values()]
        for quantity in ("loss", "steps")
    }
    found = [
        Spread(label, deviation(loss), deviation(steps))
        for label, loss, steps in zip(groups, values["loss"], values["steps"], strict=True)
    ]
    if len(groups) > 1:
        pooled = (pooled_deviation(values[quantity]) for quantity in ("loss", "steps"))
        found.append(Spread("all, pooled", *pooled))
    return found


def grid(
    found: Sequence[Spread], differences: Sequence[float], alpha: float, power: float, track: str
) -> list[list[str]]:
    """Headings, and a line of seeds for each spread and difference."""

    def shown(sd: float | None, seeds: Callable[[float], int | None]) -> str:
        if sd is None:
            return "-"
        needed = seeds(sd)
        return f"over {MOST:,}" if needed is None else f"{needed:,}"

    lines = [list(HEADINGS)]
    for spread in found:
        for d in differences:
            alone = partial(seeds_in_track3, d, power=power)
            if track != TRACK3:
                alone = partial(seeds_below_target, d, power=power)
            pair = partial(seeds_needed, d, alpha=alpha, power=power)
            in_steps = partial(seeds_needed, math.log1p(d), alpha=alpha, power=power)
            lines.append(
                [
                    spread.name,
                    f"{d:g}",
                    "-" if spread.loss is None else f"{spread.loss:.4f}",
                    shown(spread.loss, pair),
                    shown(spread.loss, alone),
                    "-" if spread.steps is None else f"{spread.steps:.2%}",
                    shown(spread.steps, in_steps),
                ]
            )
    return lines


# ---- The command -------------------------------------------------------------------------------


def chosen_race(record: str | None, race: str | None, results: Path) -> list[Run]:
    """The runs to take the spread from. Raises UserError if there are none.

    They are a race of the record, or the user's newest race, or without one the race of AdamW and
    Muon alone in the records that has the most seeds.
    """
    if record is not None:
        return select(read_runs(find_record(results, record)), race)
    own = read_runs(results)
    if own or race is not None:
        return select(own, race)
    duels = [
        runs
        for folder in records(results)
        for runs in _races(read_runs(folder))
        if sorted(map(recipe_of, by_label(runs))) == DUEL
    ]
    if not duels:
        raise UserError(f"{results} has no race; run: make speedrun, or give --sd")
    return max(duels, key=lambda runs: (len(runs), max(run.started for run in runs)))


def _races(runs: Sequence[Run]) -> list[list[Run]]:
    names = dict.fromkeys(run.race for run in runs)
    return [[run for run in runs if run.race == name] for name in names]


def _check(options: argparse.Namespace) -> None:
    """Raises UserError for a number that no test can have."""
    for d in options.difference:
        if not 0 < d < math.inf:
            raise UserError(f"--difference {d:g}: must be above 0; run with --difference 0.01")
    for name in ("alpha", "power"):
        if not 0 < (value := getattr(options, name)) < 1:
            default = {"alpha": SIGNIFICANT, "power": POWER}[name]
            raise UserError(
                f"--{name} {value:g}: must be between 0 and 1; run with --{name} {default:g}"
            )
    if options.power <= options.alpha:
        raise UserError(
            f"--power {options.power:g}: must be above --alpha {options.alpha:g}, which a test has "
            f"without any difference; run with --power {POWER:g}"
        )
    if options.sd is None:
        return
    if not 0 < options.sd < math.inf:
        raise UserError(f"--sd {options.sd:g}: must be above 0; run with --sd 0.0168")
    if options.record or options.race or options.entrant:
        raise UserError("--sd: is in place of a race; leave out --record, --race and --entrant")


def command(options: argparse.Namespace) -> None:
    """Print the table. Raises UserError."""
    _check(options)
    track, source = "", "The deviation is the one that was given."
    found = [Spread("given", options.sd)]
    if options.sd is None:
        runs = chosen_race(options.record, options.race, paths.RESULTS)
        groups: Mapping[str, Sequence[Run]] = by_label(runs)
        track, source = runs[0].track, f"Deviations are between the seeds of race {runs[0].race}."
        if options.entrant is not None:
            label = find(groups, options.entrant)
            if label is None:
                raise UserError(
                    f"--entrant {options.entrant}: race {runs[0].race} has {', '.join(groups)}; "
                    "name one of them"
                )
            groups = {label: groups[label]}
        found = spreads(groups)
        if all(spread.loss is None for spread in found):
            raise UserError(
                f"race {runs[0].race} has one run of each entrant, so no deviation; give --sd"
            )
    print(aligned(grid(found, options.difference, options.alpha, options.power, track)))
    alone = "by the rule of track 3" if track == TRACK3 else f"one-sided, p < {ALPHA:g}"
    print(
        f"\n{source} Numbers are seeds that find a difference with probability {options.power:g}: "
        f"of each of two entrants (two-sided, p < {options.alpha:g}; in nats of the final loss, "
        "and as a share of the steps to the target), or of one entrant whose mean is below its "
        f"target by the difference ({alone})."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 after a user's mistake."""
    parser = entry.parser("analysis.power", __doc__)
    parser.add_argument(
        "--difference", type=float, nargs="+", default=DIFFERENCES, metavar="D",
        help="nats per token, and share of the steps; default: 0.01",
    )  # fmt: skip
    parser.add_argument("--sd", type=float, help="deviation of the final loss, nats per token")
    parser.add_argument("--record", help="folder of results/records; default: your newest race")
    parser.add_argument("--race", help="id of the race; default: the newest")
    parser.add_argument("--entrant", help="label or recipe; default: all of the race")
    parser.add_argument(
        "--alpha", type=float, default=SIGNIFICANT, help=f"largest p; default: {SIGNIFICANT:g}"
    )
    parser.add_argument(
        "--power", type=float, default=POWER, help=f"probability; default: {POWER:g}"
    )
    return entry.run(parser, argv, command)


if __name__ == "__main__":
    sys.exit(main())
