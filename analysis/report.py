"""Says who won a race and by how much, and keeps the README's figures equal to the CSVs.

    python -m analysis.report                                  # the newest race
    python -m analysis.report --race ID --root results
    python -m analysis.report --readme README.md               # rewrites what is between markers
    python -m analysis.report --readme README.md --check       # exits 1 where it would change

A marked part of the README is `<!-- begin:NAME -->` to `<!-- end:NAME -->` with NAME one of
`headline`, `race`, `machine`, `league`, `resolution`, `scale` and `tuned`. `<!-- begin:NAME RACE
-->` shows that race; without RACE it is --race, or else the newest race that was run on an
unchanged track, for `league` and `resolution` the newest one of three or more entrants. A README
that is committed names its races, so that it stays true when others are added; `none` is no race.
`<!-- begin:finals RACE,RACE -->` shows final losses and attention logits of these races,
`<!-- begin:scale FOLDER -->` shows what studies.scale left there, `<!-- begin:csv FILE -->` any CSV
file as a table, its columns of a single value below it, `<!-- begin:file FILE -->` a program as it
is.
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from analysis import finals, league, scale
from analysis.pairs import UNITS, Pair, Pairs
from analysis.stats import (
    TRACK3,
    TRACK3_PRECISION,
    TRACK3_SIGMA,
    Ratio,
    counts,
    mean,
    precision,
)
from analysis.table import (
    BASELINE,
    TABLE_NOTE,
    by_label,
    count,
    find,
    markdown,
    markdown_grid,
    summarise,
    text,
)
from errors import UserError
from tracking import tuned as tuned_settings
from tracking.files import write_atomic
from tracking.schema import DIVERGED, REACHED, Run
from tracking.spelling import display_name
from tracking.store import read_runs
from tracking.tuned import Tuned

MARKERS = (
    "headline", "race", "machine", "league", "resolution", "finals", "scale", "tuned", "csv",
    "file",
)  # fmt: skip
MARKED = re.compile(  # group 1: the first marker, 2: its name, 3: its argument or None, 4: the last
    r"(<!-- begin:(\w+)(?: (\S+))? -->\n).*?(<!-- end:\2 -->)", re.DOTALL
)

# ---- The sentence ------------------------------------------------------------------------------


def sentences(runs: Sequence[Run], baseline: str = BASELINE) -> list[str]:
    """What one race shows of each entrant against the baseline, if it ran; then the `rulings`.

    A difference counts where it holds among all pairs of the race (`analysis.pairs`).
    """
    groups = by_label(runs)
    base = find(groups, baseline)
    return [*(_comparisons(groups, base) if base else []), *rulings(runs)]


def sentence(runs: Sequence[Run], baseline: str = BASELINE, challenger: str = "muon") -> str:
    """What one race shows of one entrant against another; empty when either did not run.

    An entrant is named by its label, or by its recipe: the first label of that recipe.
    """
    groups = by_label(runs)
    base, other = find(groups, baseline), find(groups, challenger)
    if base is None or other is None:
        return ""
    others = [label for label in groups if label != base]
    return _comparisons(groups, base)[others.index(other)]


def rulings(runs: Sequence[Run]) -> list[str]:
    """Whether each entrant's runs would count in track 3, in a race in its setting; else nothing.

    All of them are judged (`stats.counts`).
    """
    groups = by_label(runs) if runs and runs[0].track == TRACK3 else {}
    return [_ruling(label, group) for label, group in groups.items()]


def _ruling(label: str, runs: Sequence[Run]) -> str:
    name, target, n = display_name(label), runs[0].target, len(runs)
    losses = [r.final_loss for r in runs if r.status != DIVERGED and r.final_loss is not None]
    if len(losses) < n:
        found, count_there = f"{n - len(losses)} of n = {n} runs diverged", False
    else:
        reached, count_there = precision(losses, target), counts(losses, target)
        found = (
            f"n = {n}, mean final loss {mean(losses).value:.5f}, ({target:g} - mean) √n = "
            f"{reached:.5f} (z = {reached / TRACK3_SIGMA:.2f}), "
            f"{'at least' if count_there else 'below'} {TRACK3_PRECISION:g}"
        )
    verb = "count" if count_there else "do not count"
    return f"{name}: {found}: its runs {verb} under the rule of the speedruns' track 3."


def _comparisons(groups: Mapping[str, Sequence[Run]], base: str) -> list[str]:
    steps, seconds = (Pairs(groups, unit) for unit in UNITS)
    return [
        _sentence(groups, base, label, steps.of(base, label), seconds.of(base, label))
        for label in groups
        if label != base
    ]


def _sentence(
    groups: Mapping[str, Sequence[Run]], base_label: str, label: str, steps: Pair, time: Pair
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
        decided = f": what they spent bounds {a}'s cost over {b}'s, {' and '.join(bounds)}."
        return f"{b} reached {target} in {tally_b} runs and {a} in {tally_a}" + (
            decided if bounds else ", so there is no ratio between them."
        )
    fewer, less = steps.ratio, time.ratio
    price = fewer.estimate.value / less.estimate.value
    alike = fewer.at_least == less.at_least and fewer.at_most == less.at_most
    all_reached = reached_a == len(base) and reached_b == len(group)
    return (
        f"{b} reached {target} in {change(fewer, 'fewer')} steps than {a} "
        f"({a} takes {league.multiple(fewer)} as many; {_interval(steps)}) "
        f"and in {change(less, 'less')} time "
        f"({'slower: ' if less.estimate.value < 1 else ''}{league.multiple(less)} as fast; "
        f"{_interval(time)})"
        f"{f', so one {b} step costs {price:.2f}x one {a} step' if alike else ''}; "
        f"{tally_b} {b} runs and {tally_a} {a} runs reached the target"
        f"{'' if all_reached else ', and what the others spent is counted'}."
    )


def change(ratio: Ratio, less: str) -> str:
    """A speed-up in per cent of the baseline's cost: "26.1% fewer", or "... more" below 1.

    A bound has "over" before it: it is always nearer to no difference than the truth is.
    """
    saved = 1 - 1 / ratio.estimate.value
    over = "over " if ratio.bound else ""
    return f"{over}{abs(saved):.1%} {less if saved >= 0 else 'more'}"


def _interval(pair: Pair) -> str:
    assert pair.ratio is not None
    ratio = pair.ratio.estimate
    if ratio.low is None or ratio.high is None or pair.p is None:
        return "no interval from a single run"
    of = " of the bound" if pair.ratio.bound else ""
    text = f"95% interval{of} {ratio.low:.2f} to {ratio.high:.2f}"
    if pair.distinct:
        return text
    among = f" among {pair.family} pairs (p = {pair.p:.2f})" if pair.family > 1 else ""
    return f"{text}: not distinguishable{among}"


# ---- The README --------------------------------------------------------------------------------


def machine(runs: Sequence[Run]) -> str:
    """On what one race ran, in a line."""

    def each(values: Iterable[object]) -> str:
        return " / ".join(dict.fromkeys(map(str, values)))

    def compiled(run: Run) -> str:
        note = f" ({run.compile_note})" if run.compile_note else ""
        return "compiled" if run.compiled else f"not compiled{note}"

    def commit(run: Run) -> str:
        return (run.commit[:12] or "unknown") + ("" if run.clean else " with uncommitted changes")

    return (
        f"{len(runs)} runs of race {runs[0].race} on track {runs[0].track}: "
        f"{each(r.device for r in runs)}, processes: {each(r.world_size for r in runs)}, "
        f"threads: {each(r.threads for r in runs)}, {each(r.dtype for r in runs)}, "
        f"{each(map(compiled, runs))}, "
        f"torch {each(r.torch for r in runs)}, commit {each(map(commit, runs))}."
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

    A column with one value in all of its rows, such as the machine, stands below it once.
    """
    headings, *rows = csv.reader(read_file(path).splitlines() or [""])
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(headings):
            raise UserError(
                f"README: {path}, line {number}: {len(cells)} cells, its header has "
                f"{len(headings)}; write the file again: make bench"
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
    """A text file that the README shows. Raises UserError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"README: cannot show {path}: {error.strerror}; run: make bench") from error


def rewrite(readme: str, runs: Sequence[Run], tuned: Sequence[Tuned], race: str | None) -> str:
    """The README with every marked part as the CSVs give it.

    Raises UserError for a marker that is unknown or has no partner, and for a race that is not
    in `runs`.
    """

    def fill(match: re.Match[str]) -> str:
        begin, name, argument, end = match.groups()
        if name == "tuned":
            return f"{begin}{tuned_table(tuned)}\n{end}"
        if name == "csv":
            return f"{begin}{csv_table(Path(argument or ''))}\n{end}"
        if name == "file":
            return f"{begin}```python\n{read_file(Path(argument or ''))}```\n{end}"
        if name == "scale":
            return f"{begin}{scale.markdown(scale.measured(Path(argument or scale.SCALE)))}\n{end}"
        if name == "finals":
            races = (argument or "").split(",")
            return f"{begin}{finals.markdown(Path('results'), runs, races)}\n{end}"
        if name == "league":
            field = league.newest(runs, argument or race)
            return f"{begin}{league.markdown(field) if field else league.NONE_YET}\n{end}"
        if name not in ("headline", "race", "machine", "resolution"):
            raise UserError(f"README marker {name!r} must be {', '.join(MARKERS)}")
        chosen = select(runs, argument or race, official=True)
        if name == "headline":
            content = "\n\n".join(sentences(chosen))
        elif name == "race":
            content = f"{markdown(summarise(chosen))}\n\n{TABLE_NOTE}"
        elif name == "resolution":
            content = league.resolution(league.newest(runs, argument or race) or chosen)
        else:
            content = machine(chosen)
        return f"{begin}{content}\n{end}"

    result, pairs = MARKED.subn(fill, readme)
    if not readme.count("<!-- begin:") == readme.count("<!-- end:") == pairs > 0:
        raise UserError(
            "README needs pairs of lines <!-- begin:NAME --> and <!-- end:NAME -->; "
            f"{pairs} pairs match, others do not"
        )
    return result


def select(runs: Sequence[Run], race: str | None, official: bool = False) -> list[Run]:
    """The runs of a race; of the newest one (on a frozen track, if `official`) when it is None.

    Raises UserError when there is none.
    """
    if race is None:
        eligible = [run for run in runs if not (official and run.track == "custom")]
        if not eligible:
            raise UserError("runs.csv has no race to report; run: make speedrun")
        race = max(eligible, key=lambda run: run.started).race
    chosen = [run for run in runs if run.race == race]
    if not chosen:
        known = ", ".join(dict.fromkeys(run.race for run in runs)) or "none"
        raise UserError(f"no race {race!r} in runs.csv; its races: {known}")
    return chosen


# ---- The command -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, 1 (README differs) or 2 (UserError)."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report")
    parser.add_argument("--root", type=Path, default=Path("results"), help="where runs.csv is")
    parser.add_argument("--race", help="id of the race; default: the newest")
    parser.add_argument("--readme", type=Path, help="rewrite what is between its markers")
    parser.add_argument("--check", action="store_true", help="only say whether --readme is current")
    options = parser.parse_args(arguments)
    if options.check and not options.readme:
        parser.error("--check needs --readme")
    try:
        runs = read_runs(options.root)
        if options.readme:
            return _readme(options, runs)
        race = select(runs, options.race)
        parts = [text(summarise(race)), TABLE_NOTE, *sentences(race)]
        if len(by_label(race)) > 2:
            parts += [league.text(race), league.NOTE]
        print(*parts, league.resolution(race), machine(race), sep="\n\n")
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _readme(options: argparse.Namespace, runs: Sequence[Run]) -> int:
    path: Path = options.readme
    if not path.is_file():
        raise UserError(f"no file {path}; name the README with --readme")
    before = path.read_text(encoding="utf-8")
    after = rewrite(
        before, runs, tuned_settings.read(path.parent / "optim" / "tuned.toml"), options.race
    )
    if after == before:
        return 0
    if options.check:
        print(f"{path} differs from the CSVs; run: python -m analysis.report --readme {path}")
        return 1
    write_atomic(path, [after.encode()])
    return 0


if __name__ == "__main__":
    sys.exit(main())
