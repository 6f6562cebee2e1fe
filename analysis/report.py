"""Says what a race shows, in a table and in sentences.

    python -m analysis.report                              # the newest race in results/
    python -m analysis.report --race ID --root results

The pages of the documentation show the same sentences: see leaderboard/pages.py.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analysis import league
from analysis.pairs import Pair, Pairs
from analysis.price import NO_TURNS, Prices, read_prices
from analysis.stats import (
    TRACK3,
    TRACK3_MARGIN,
    TRACK3_SIGMA,
    Estimate,
    Ratio,
    counts_in_track3,
    losses,
    mean,
    track3_statistic,
)
from analysis.table import (
    BASELINE,
    CHALLENGER,
    by_label,
    commit_words,
    count,
    find,
    note,
    summarise,
    text,
    turn_lengths,
)
from errors import UserError
from host import entry, paths
from tracking.schema import REACHED, Run
from tracking.spelling import display_name
from tracking.store import read_runs

# ---- Sentences ---------------------------------------------------------------------------------


def sentences(runs: Sequence[Run], prices: Prices | None, baseline: str = BASELINE) -> list[str]:
    """What one race shows of each entrant against the baseline, if it ran; then the `rulings`.

    Differences are tested among all pairs of the race (`analysis.pairs`). prices: of a step, in
    this race (`price.read_prices`); None where its seconds count for nothing, because other
    processes shared the device: then the steps alone are compared.
    """
    base = find(by_label(runs), baseline)
    comparisons = _comparisons(runs, prices, base) if base else {}
    return [*_layouts(runs), *comparisons.values(), *rulings(runs)]


def ending(root: Path, race: str) -> list[str]:
    """What is said when a race has ended: its table and its sentences."""
    runs = [run for run in read_runs(root) if run.race == race]
    return [text(summarise(runs)), *sentences(runs, read_prices(root, runs))]


def _layouts(runs: Sequence[Run]) -> list[str]:
    """That the seconds of a race mean nothing, where its runs did not all have one layout."""
    layouts = sorted({f"{run.engine} ({run.world_size})" for run in runs})
    moved = len(layouts) > 1 or any("+" in run.engine for run in runs)
    what = f"The runs of this race had several engines or processes: {', '.join(layouts)}."
    return [f"{what} Their steps can be compared; their seconds cannot."] if moved else []


def sentence(
    runs: Sequence[Run], prices: Prices, baseline: str = BASELINE, challenger: str = CHALLENGER
) -> str:
    """What one race shows of one entrant against another; empty if either did not run.

    An entrant is named by its label, or by its recipe, which stands for the recipe's first label.
    """
    groups = by_label(runs)
    base, other = find(groups, baseline), find(groups, challenger)
    if base is None or other is None:
        return ""
    return _comparisons(runs, prices, base)[other]


def rulings(runs: Sequence[Run]) -> list[str]:
    """Whether the runs of each entrant would count in track 3; empty for other tracks than TRACK3.

    All runs of an entrant are judged together (`stats.counts_in_track3`).
    """
    groups = by_label(runs) if runs and runs[0].track == TRACK3 else {}
    return [_ruling(label, group) for label, group in groups.items()]


def _ruling(label: str, runs: Sequence[Run]) -> str:
    name, target, n = display_name(label), runs[0].target, len(runs)
    ends = losses(runs)
    if len(ends) < n:
        found, counted = f"{n - len(ends)} of n = {n} runs diverged", False
    else:
        statistic, counted = track3_statistic(ends, target), counts_in_track3(ends, target)
        found = (
            f"n = {n}, mean final loss {mean(ends).value:.5f}, ({target:g} - mean) √n = "
            f"{statistic:.5f} (z = {statistic / TRACK3_SIGMA:.2f}), "
            f"{'at least' if counted else 'below'} {TRACK3_MARGIN:g}"
        )
    verb = "count" if counted else "do not count"
    return f"{name}: {found}. Its runs {verb} under the rule of modded-nanogpt's track 3."


def _comparisons(runs: Sequence[Run], prices: Prices | None, base: str) -> dict[str, str]:
    """What is shown of each other entrant, by its label. prices: as for `sentences`."""
    groups = by_label(runs)
    if _layouts(runs):
        prices = None
    steps = Pairs(groups, "steps", NO_TURNS)
    seconds = Pairs(groups, "seconds", prices) if prices else None
    return {
        label: _sentence(
            groups, base, label, steps.of(base, label),
            seconds.of(base, label) if seconds else None,
            prices.of(base, label) if prices else None,
        )
        for label in groups
        if label != base
    }  # fmt: skip


def _sentence(
    groups: Mapping[str, Sequence[Run]],
    base_label: str,
    label: str,
    steps: Pair,
    time: Pair | None,
    price: Estimate | None,
) -> str:
    """What is shown of one entrant. time: None where the seconds count for nothing."""
    base, group = groups[base_label], groups[label]
    a, b = display_name(base_label), display_name(label)
    reached_a, reached_b = count(base, REACHED), count(group, REACHED)
    tally_a, tally_b = f"{reached_a} of {len(base)}", f"{reached_b} of {len(group)}"
    target = f"a validation loss of {base[0].target:g}"
    if not (reached_a and reached_b and steps.ratio and (time is None or time.ratio)):
        bounds = [
            f"{league.times(pair.ratio)} in {unit}{league.verdict(pair)}"
            for pair, unit in ((steps, "steps"), (time, "time"))
            if pair and pair.ratio
        ]
        decided = (
            f"{a}'s cost over {b}'s is bounded by what the runs spent: {' and '.join(bounds)}."
        )
        undecided = "So there is no ratio between them."
        return (
            f"{b} reached {target} in {tally_b} runs and {a} in {tally_a} runs. "
            f"{decided if bounds else undecided}{f' {_priced(a, b, price)}' if price else ''}"
        )
    gains, cost = [_gain(steps, "fewer", f"steps than {a}")], ""
    if time and time.ratio:
        gains.append(_gain(time, "less", "time"))
        cost = _priced(a, b, price) if price else _quotient(a, b, steps.ratio, time.ratio)
    cost_of_step = f"{cost} " if cost else ""
    all_reached = reached_a == len(base) and reached_b == len(group)
    return (
        f"{b} reached {target} in {' and in '.join(gains)}. "
        f"{cost_of_step}{tally_b} {b} runs and {tally_a} {a} runs reached the target"
        f"{'' if all_reached else '; the cost counts what the other runs spent'}."
    )


def _priced(a: str, b: str, price: Estimate) -> str:
    """The price of a step of entrant b over a step of entrant a, from their turns."""
    interval = ""
    if price.low is not None and price.high is not None:
        interval = f"95% interval {price.low:.3f} to {price.high:.3f}, "
    turns = "pair of turns" if price.n == 1 else "pairs of turns"
    return f"One {b} step costs {price.value:.3f}x one {a} step ({interval}{price.n} {turns})."


def _quotient(a: str, b: str, steps: Ratio, time: Ratio) -> str:
    """The price of a step where the entrants did not take turns; empty where it is not known."""
    if steps.at_least != time.at_least or steps.at_most != time.at_most:
        return ""
    price = steps.estimate.value / time.estimate.value
    return f"So one {b} step costs {price:.2f}x one {a} step (ratio of the costs to the target)."


def _gain(pair: Pair, less: str, what: str) -> str:
    """A speed-up as a factor, in per cent and with its interval, or as a slow-down below 1."""
    assert pair.ratio is not None
    ratio, word = pair.ratio, less
    if ratio.estimate.value < 1:
        ratio, word = ratio.inverse(), "more"
    over = "over " if ratio.bound else ""
    factor = f"{over}{ratio.estimate.value:.2f}x {word}"
    return f"{factor} {what} ({change(pair.ratio, less)}; {_interval(pair, ratio)})"


def change(ratio: Ratio, less: str) -> str:
    """A speed-up in per cent of the baseline's cost: "26.1% fewer", or "... more" below 1.

    "over" marks a bound. The bound is conservative: the true ratio is farther from 1.
    """
    saved = 1 - 1 / ratio.estimate.value
    over = "over " if ratio.bound else ""
    return f"{over}{abs(saved):.1%} {less if saved >= 0 else 'more'}"


def _interval(pair: Pair, ratio: Ratio) -> str:
    """The interval of a pair's ratio, or of its inverse."""
    low, high = ratio.estimate.low, ratio.estimate.high
    if low is None or high is None or pair.p is None:
        return "no interval from a single run"
    of = " of the bound" if ratio.bound else ""
    words = f"95% interval{of} {low:.2f} to {high:.2f}"
    if pair.distinct:
        return words
    among = f" among {pair.family} pairs (p = {pair.p:.2f})" if pair.family > 1 else ""
    return f"{words}: not distinguishable{among}"


# ---- What surrounds the sentences --------------------------------------------------------------


def in_turns(runs: Sequence[Run]) -> str:
    """How long the turns of the runs were: ", in turns of 2 steps"; empty if all ran alone."""
    lengths = turn_lengths(runs)
    steps = "step" if lengths == [1] else "steps"
    return f", in turns of {' or '.join(map(str, lengths))} {steps}" if lengths else ""


def machine(runs: Sequence[Run]) -> str:
    """The machine, the precision and the commit of one race, in a line."""

    def each(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(map(str, values)))

    def compiled(run: Run) -> str:
        note = f" ({run.compile_note})" if run.compile_note else ""
        return "compiled" if run.compiled else f"not compiled{note}"

    return (
        f"{len(runs)} runs of race {runs[0].race} on track {runs[0].track}{in_turns(runs)}: "
        f"{each(r.device for r in runs)}, processes: {each(r.world_size for r in runs)}, "
        f"threads: {each(r.threads for r in runs)}, {each(r.dtype for r in runs)}, "
        f"attention: {each(r.attention for r in runs)}, "
        f"{each(map(compiled, runs))}, "
        f"torch {each(r.torch for r in runs)}, "
        f"commit {each(commit_words(r.commit, r.clean) for r in runs)}."
    )


# ---- The command -------------------------------------------------------------------------------


def select(runs: Sequence[Run], race: str | None) -> list[Run]:
    """The runs of a race, or of the newest race for None. Raises UserError if there is none."""
    if not runs:
        raise UserError("runs.csv has no race to report; run: make speedrun")
    newest = max(runs, key=lambda run: run.started).race
    race = race or newest
    chosen = [run for run in runs if run.race == race]
    if not chosen:
        known = list(dict.fromkeys(run.race for run in runs))
        raise UserError(
            f"no race {race!r} in runs.csv; its races: {', '.join(known)}; name one, as {newest}"
        )
    return chosen


def command(options: argparse.Namespace) -> int:
    """Print the race; the exit code. Raises UserError."""
    race = select(read_runs(options.root), options.race)
    prices = read_prices(options.root, race)
    parts = [text(summarise(race)), note(race), *sentences(race, prices)]
    if len(by_label(race)) > 2:
        parts += [league.text(race, prices), " ".join(league.notes(race))]
    print(*parts, league.detectable_note(race), machine(race), sep="\n\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 after a user's mistake."""
    parser = entry.parser("analysis.report", __doc__)
    parser.add_argument(
        "--root",
        type=paths.typed,
        default=paths.RESULTS,
        help="folder of runs.csv; default: results",
    )
    parser.add_argument("--race", help="id of the race; default: the newest")
    return entry.run(parser, argv, command)


if __name__ == "__main__":
    sys.exit(main())
