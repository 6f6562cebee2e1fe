"""Says what a race shows, and writes the generated parts of README.md and of the docs.

    python -m analysis.report                              # the newest race in results/
    python -m analysis.report --race ID --root results
    python -m analysis.report --docs                       # writes README.md and docs/*.md
    python -m analysis.report --docs --check               # exits 1 if a file would change

A generated part of a page is between `<!-- begin:NAME ARGUMENT -->` and `<!-- end:NAME -->`:

    headline RECORD      what the race shows of each entrant against AdamW
    race RECORD          its table
    machine RECORD       the machine that it ran on
    league RECORD        the league table
    detectable RECORD    the differences that its number of seeds can show
    finals RECORD,...    final losses and attention logits of one or several races
    scale RECORD         speed-ups at other batch sizes and widths
    engines RECORD       losses, memory, traffic and seconds on several engines
    tuned                the settings in optim/tuned.toml
    csv FILE             a CSV file as a table; columns with a single value are named below it
    file FILE            a program

RECORD is a folder of results/records; a record of several races is named RECORD/RACE. FILE is
relative to the repository. The pages are README.md, docs/*.md and results/records/*/README.md.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from analysis import engines, finals, league, scale
from analysis.pairs import UNITS, Pair, Pairs
from analysis.price import Prices, read_prices
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
    by_label,
    commit_words,
    count,
    find,
    markdown,
    markdown_grid,
    note,
    summarise,
    text,
    turn_lengths,
)
from errors import UserError
from host import entry, paths
from tracking import tuned as tuned_settings
from tracking.files import write_atomic
from tracking.schema import REACHED, Run
from tracking.spelling import display_name
from tracking.store import read_runs, records
from tracking.tuned import Tuned

REPOSITORY = Path(__file__).parents[1]
MARKED = re.compile(  # groups: first marker, name, argument or None, content, last marker
    r"(<!-- begin:(\w+)(?: (\S+))? -->\n)(.*?)(<!-- end:\2 -->)", re.DOTALL
)

# ---- Sentences ---------------------------------------------------------------------------------


def sentences(runs: Sequence[Run], prices: Prices, baseline: str = BASELINE) -> list[str]:
    """What one race shows of each entrant against the baseline, if it ran; then the `rulings`.

    Differences are tested among all pairs of the race (`analysis.pairs`). prices: of a step, in
    this race (`price.read_prices`).
    """
    groups = by_label(runs)
    base = find(groups, baseline)
    comparisons = _comparisons(groups, prices, base) if base else []
    return [*_layouts(runs), *comparisons, *rulings(runs)]


def _layouts(runs: Sequence[Run]) -> list[str]:
    """That the seconds of a race mean nothing, where its runs did not all have one layout."""
    layouts = sorted({f"{run.engine} ({run.world_size})" for run in runs})
    moved = len(layouts) > 1 or any("+" in run.engine for run in runs)
    what = f"The runs of this race had several engines or processes: {', '.join(layouts)}."
    return [f"{what} Their steps can be compared; their seconds cannot."] if moved else []


def sentence(
    runs: Sequence[Run], prices: Prices, baseline: str = BASELINE, challenger: str = "muon"
) -> str:
    """What one race shows of one entrant against another; empty if either did not run.

    An entrant is named by its label, or by its recipe, which stands for the recipe's first label.
    """
    groups = by_label(runs)
    base, other = find(groups, baseline), find(groups, challenger)
    if base is None or other is None:
        return ""
    others = [label for label in groups if label != base]
    return _comparisons(groups, prices, base)[others.index(other)]


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


def _comparisons(groups: Mapping[str, Sequence[Run]], prices: Prices, base: str) -> list[str]:
    steps, seconds = (Pairs(groups, unit, prices) for unit in UNITS)
    return [
        _sentence(
            groups, base, label, steps.of(base, label), seconds.of(base, label),
            prices.of(base, label),
        )
        for label in groups
        if label != base
    ]  # fmt: skip


def _sentence(
    groups: Mapping[str, Sequence[Run]],
    base_label: str,
    label: str,
    steps: Pair,
    time: Pair,
    price: Estimate | None,
) -> str:
    base, group = groups[base_label], groups[label]
    a, b = display_name(base_label), display_name(label)
    reached_a, reached_b = count(base, REACHED), count(group, REACHED)
    tally_a, tally_b = f"{reached_a} of {len(base)}", f"{reached_b} of {len(group)}"
    target = f"a validation loss of {base[0].target:g}"
    if not (reached_a and reached_b and steps.ratio and time.ratio):
        bounds = [
            f"{league.times(pair.ratio)} in {unit}{league.verdict(pair)}"
            for pair, unit in ((steps, "steps"), (time, "time"))
            if pair.ratio
        ]
        decided = (
            f"{a}'s cost over {b}'s is bounded by what the runs spent: {' and '.join(bounds)}."
        )
        undecided = "So there is no ratio between them."
        return (
            f"{b} reached {target} in {tally_b} runs and {a} in {tally_a} runs. "
            f"{decided if bounds else undecided}{f' {_priced(a, b, price)}' if price else ''}"
        )
    cost = _priced(a, b, price) if price else _quotient(a, b, steps.ratio, time.ratio)
    cost_of_step = f"{cost} " if cost else ""
    all_reached = reached_a == len(base) and reached_b == len(group)
    return (
        f"{b} reached {target} in {_gain(steps, 'fewer', f'steps than {a}')} "
        f"and in {_gain(time, 'less', 'time')}. "
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


# ---- Other parts of a page ---------------------------------------------------------------------


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


def tuned_table(tuned: Sequence[Tuned]) -> str:
    """The tuned settings as Markdown."""
    if not tuned:
        return "Nothing is tuned yet."
    rows = [
        [
            t.track,
            t.recipe,
            ", ".join(f"{key}={value}" for key, value in t.settings.items()),
            f"{t.steps}, missed" if t.missed else str(t.steps),
            t.source or f"our trial {', '.join(map(str, t.trials))}",
        ]
        for t in tuned
    ]
    return markdown_grid(["track", "entrant", "settings", "steps", "from"], rows)


def csv_table(path: Path) -> str:
    """A CSV file as Markdown. Raises UserError if there is none, or if a line has lost a cell.

    A column with one value in all rows, such as the machine, stands below the table once.
    """
    headings, *rows = csv.reader(read_file(path).splitlines() or [""])
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(headings):
            raise UserError(
                f"{path} line {number}: {len(cells)} cells for {len(headings)} columns; "
                "restore the file"
            )
    alike = {
        i: cells[0]
        for i, cells in enumerate(zip(*rows, strict=True))
        if len(rows) > 1 and cells[0] and len(set(cells)) == 1
    }

    def shown(cells: Sequence[str]) -> list[str]:
        return [cell for i, cell in enumerate(cells) if i not in alike]

    grid = markdown_grid(shown(headings), list(map(shown, rows)))
    note = "; ".join(f"{headings[i]} {value}" for i, value in alike.items())
    return f"{grid}\n\nAll rows: {note}." if note else grid


def read_file(path: Path) -> str:
    """A text file that a page shows. Raises UserError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot show {path}: {error.strerror}; restore the file or mend the marker"
        ) from error


# ---- The pages ---------------------------------------------------------------------------------


def find_record(name: str, repository: Path = REPOSITORY) -> Path:
    """The folder of a record. Raises UserError for an unknown name."""
    known = {path.name: path for path in records(repository / "results")}
    if name not in known:
        raise UserError(
            f"no record {name!r} in results/records; known records: {', '.join(known) or 'none'}; "
            "name one of them"
        )
    return known[name]


def find_race(name: str, repository: Path = REPOSITORY) -> tuple[Path, list[Run]]:
    """The folder and the runs of RECORD or RECORD/RACE. Raises UserError if there is none."""
    record, _, race = name.partition("/")
    folder = find_record(record, repository)
    runs = read_runs(folder)
    races = list(dict.fromkeys(run.race for run in runs))
    if not race and len(races) == 1:
        (race,) = races
    if race not in races:
        named = f"no race {race!r}" if race else f"{len(races)} races"
        choices = ", ".join(f"{record}/{each}" for each in races) or "none"
        raise UserError(f"record {record} has {named}; choose one of: {choices}")
    return folder, [run for run in runs if run.race == race]


def _headline(runs: Sequence[Run], prices: Prices) -> str:
    return "\n\n".join(sentences(runs, prices))


def _table(runs: Sequence[Run], _: Prices) -> str:
    return f"{markdown(summarise(runs))}\n\n{note(runs)}"


OF_RACE: dict[str, Callable[[Sequence[Run], Prices], str]] = {
    "headline": _headline,
    "race": _table,
    "machine": lambda runs, _: machine(runs),
    "league": league.markdown,
    "detectable": lambda runs, _: league.detectable_note(runs),
}
MARKERS = (*OF_RACE, "finals", "scale", "engines", "tuned", "csv", "file")


def _part(name: str, argument: str, repository: Path) -> str:
    """One generated part. Raises UserError."""
    if name in OF_RACE:
        folder, runs = find_race(argument, repository)
        return OF_RACE[name](runs, read_prices(folder, runs))
    if name == "finals":
        return finals.markdown([find_race(each, repository) for each in argument.split(",")])
    if name == "scale":
        points = scale.measured(find_record(argument, repository))
        if not points:
            raise UserError(f"record {argument} has no points.csv; name a record of `make scale`")
        return scale.markdown(points)
    if name == "engines":
        found = engines.measured(find_record(argument, repository))
        if not found:
            raise UserError(f"record {argument} has no planned.csv; name a record of make engines")
        return engines.markdown(found)
    if name == "tuned":
        return tuned_table(tuned_settings.read(repository / "optim" / "tuned.toml"))
    if name == "csv":
        return csv_table(repository / argument)
    return f"```python\n{read_file(repository / argument)}```"


def rewrite(page: str, repository: Path = REPOSITORY) -> str:
    """The text of a page with every generated part as the files of `repository` give it.

    Raises UserError for a marker that is unknown or has no partner, and for an argument that names
    no record, race or file.
    """

    def fill(match: re.Match[str]) -> str:
        begin, name, argument, _, end = match.groups()
        if name not in MARKERS:
            raise UserError(f"marker {name!r} must be one of {', '.join(MARKERS)}; mend the marker")
        if (argument is None) != (name == "tuned"):
            wanted = "takes no argument" if argument else "needs a record or a file"
            raise UserError(f"marker {begin.strip()} {wanted}; see analysis/report.py")
        return f"{begin}{_part(name, argument or '', repository)}\n{end}"

    result, pairs = MARKED.subn(fill, page)
    if not page.count("<!-- begin:") == page.count("<!-- end:") == pairs:
        raise UserError(
            f"{pairs} pairs of lines <!-- begin:NAME ARGUMENT --> and <!-- end:NAME --> match, "
            "others do not; mend the markers"
        )
    return result


def pages(repository: Path = REPOSITORY) -> list[Path]:
    """The pages with generated parts: README.md, docs/*.md and the README of each record."""
    notes = (repository / "results" / "records").glob("*/README.md")
    return [repository / "README.md", *sorted((repository / "docs").glob("*.md")), *sorted(notes)]


def update_pages(repository: Path = REPOSITORY, write: bool = True) -> list[Path]:
    """The pages whose generated parts are out of date; writes them anew if `write`.

    Raises UserError with the name of the page.
    """
    changed = []
    for path in pages(repository):
        before = read_file(path)
        try:
            after = rewrite(before, repository)
        except UserError as error:
            raise UserError(f"{path.relative_to(repository)}: {error}") from error
        if after != before:
            changed.append(path)
            if write:
                write_atomic(path, [after.encode()])
    return changed


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
            f"no race {race!r} in runs.csv; its races: {', '.join(known)}; run with --race {newest}"
        )
    return chosen


def command(options: argparse.Namespace) -> int:
    """Print the race, or write the pages; the exit code. Raises UserError."""
    if options.check and not options.docs:
        raise UserError("--check: is for the pages; run with --docs --check")
    if options.docs:
        changed = update_pages(REPOSITORY, write=not options.check)
        names = ", ".join(str(path.relative_to(REPOSITORY)) for path in changed)
        if changed and options.check:
            print(paths.from_here(f"out of date: {names}; run: make docs"))
            return 1
        print(f"written: {names}" if changed else "all pages are up to date")
        return 0
    race = select(read_runs(options.root), options.race)
    prices = read_prices(options.root, race)
    parts = [text(summarise(race)), note(race), *sentences(race, prices)]
    if len(by_label(race)) > 2:
        parts += [league.text(race, prices), " ".join(league.notes(race))]
    print(*parts, league.detectable_note(race), machine(race), sep="\n\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (pages are out of date) or 2 (a user's mistake)."""
    parser = entry.parser("analysis.report", __doc__)
    parser.add_argument(
        "--root",
        type=paths.typed,
        default=paths.RESULTS,
        help="folder of runs.csv; default: results",
    )
    parser.add_argument("--race", help="id of the race; default: the newest")
    parser.add_argument("--docs", action="store_true", help="write README.md and docs/*.md")
    parser.add_argument("--check", action="store_true", help="with --docs: only check the pages")
    return entry.run(parser, argv, command)


if __name__ == "__main__":
    sys.exit(main())
