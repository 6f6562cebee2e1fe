"""Says who won a race and by how much, and keeps the README's figures equal to the CSVs.

    python -m results.report                                  # the newest race
    python -m results.report --race ID --root results
    python -m results.report --readme README.md               # rewrites what is between markers
    python -m results.report --readme README.md --check       # exits 1 where it would change

A marked part of the README is `<!-- begin:NAME -->` to `<!-- end:NAME -->` with NAME one of
`headline`, `race`, `machine` and `tuned`. `<!-- begin:NAME RACE -->` shows that race; without
RACE it is --race, or else the newest race that was run on an unchanged track. `<!-- begin:csv
FILE -->` shows any CSV file as a table, `<!-- begin:file FILE -->` a program as it is.
"""

import argparse
import csv
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from errors import UserError
from results.schema import DIVERGED, MISSED, REACHED, Run
from results.stats import Estimate, costs, deviation, expected_cost, mean, speedup
from results.store import Tuned, read_runs, read_tuned

if TYPE_CHECKING:  # the CSV tools must run without rich
    from rich.table import Table

BASELINE = "adamw"
SPELLED = {
    "adamw": "AdamW", "muon": "Muon", "muonclip": "MuonClip", "normuon": "NorMuon",
    "sgd": "SGD", "soap": "SOAP",
}  # fmt: skip
TABLE_NOTE = (
    "± is the standard deviation between runs. Steps, tokens and seconds count what runs that did "
    "not reach the target spent."
)
MARKED = re.compile(  # group 1: the first marker, 2: its name, 3: its argument or None, 4: the last
    r"(<!-- begin:(\w+)(?: (\S+))? -->\n).*?(<!-- end:\2 -->)", re.DOTALL
)

# ---- One line an entrant -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What the target cost an entrant, in one unit."""

    expected: Estimate  # counting what was spent by runs that missed
    sd: float | None  # over the runs that reached it; None for fewer than two


@dataclass(frozen=True)
class Row:
    """All runs of one entrant in one race."""

    label: str
    n: int
    reached: int
    missed: int
    diverged: int
    target: float  # validation loss, nats per token
    steps: Cost | None  # None when no run reached the target, as for the next two
    tokens: Cost | None
    seconds: Cost | None  # on the training clock
    step_ms: float | None  # None when no run made a step, as for the next one
    optimizer_ms: float | None  # of every step
    peak_memory_bytes: int  # largest of the runs
    state_bytes: int  # largest of the runs
    mfu: float  # mean of the runs
    final_loss: float | None  # mean of the runs that did not diverge, nats per token
    final_loss_sd: float | None


def summarise(runs: Sequence[Run]) -> list[Row]:
    """The entrants of one race in the order in which they first ran."""
    return [_summary(label, group) for label, group in by_label(runs).items()]


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each entrant, by its label, in the order in which they first ran."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def _summary(label: str, runs: list[Run]) -> Row:
    steps = sum(run.steps for run in runs)
    losses = [r.final_loss for r in runs if r.status != DIVERGED and r.final_loss is not None]
    return Row(
        label=label,
        n=len(runs),
        reached=_count(runs, REACHED),
        missed=_count(runs, MISSED),
        diverged=_count(runs, DIVERGED),
        target=runs[0].target,
        steps=_cost(runs, "steps"),
        tokens=_cost(runs, "tokens"),
        seconds=_cost(runs, "seconds"),
        step_ms=1000 * sum(run.train_seconds for run in runs) / steps if steps else None,
        optimizer_ms=1000 * sum(run.optimizer_seconds for run in runs) / steps if steps else None,
        peak_memory_bytes=max(run.peak_memory_bytes for run in runs),
        state_bytes=max(run.state_bytes for run in runs),
        mfu=float(np.mean([run.mfu for run in runs])),
        final_loss=mean(losses).value if losses else None,
        final_loss_sd=deviation(losses),
    )


def _count(runs: Sequence[Run], status: str) -> int:
    return sum(run.status == status for run in runs)


def _cost(runs: Sequence[Run], unit: str) -> Cost | None:
    expected = expected_cost(costs(runs, unit))
    if expected is None:
        return None
    reached = [run for run in runs if run.status == REACHED]
    return Cost(expected, deviation(costs(reached, unit).spent))


# ---- The table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A heading, which may break into two lines, and what stands below it."""

    heading: str
    cell: Callable[[Row], str]


def _spread(value: float | None, sd: float | None, form: str) -> str:
    if value is None:
        return "-"
    return form.format(value) if sd is None else f"{form.format(value)} ± {form.format(sd)}"


def _spent(cost: Cost | None, form: str, unit: float = 1) -> str:
    if cost is None:
        return "-"
    return _spread(cost.expected.value / unit, None if cost.sd is None else cost.sd / unit, form)


COLUMNS = (
    Column("entrant", lambda row: row.label),
    Column("runs", lambda row: str(row.n)),
    Column("reached/missed/\ndiverged", lambda row: f"{row.reached}/{row.missed}/{row.diverged}"),
    Column("steps\nto target", lambda row: _spent(row.steps, "{:,.0f}")),
    Column("M tokens\nto target", lambda row: _spent(row.tokens, "{:,.2f}", 1e6)),
    Column("seconds\nto target", lambda row: _spent(row.seconds, "{:,.1f}")),
    Column("ms per\nstep", lambda row: _spread(row.step_ms, None, "{:.1f}")),
    Column("optimizer\nms", lambda row: _spread(row.optimizer_ms, None, "{:.2f}")),
    Column("peak\nmemory", lambda row: f"{row.peak_memory_bytes / 1e6:,.0f} MB"),
    Column("optimizer\nstate", lambda row: f"{row.state_bytes / 1e6:,.2f} MB"),
    Column("MFU", lambda row: f"{row.mfu:.1%}"),
    Column("final loss", lambda row: _spread(row.final_loss, row.final_loss_sd, "{:.4f}")),
)


def text(rows: Sequence[Row]) -> str:
    """The table as aligned plain text."""
    headings = [column.heading.split("\n") for column in COLUMNS]
    grid = [[h[0] if len(h) > 1 else "" for h in headings], [h[-1] for h in headings]]
    return aligned(grid + _cells(rows))


def aligned(grid: Sequence[Sequence[str]]) -> str:
    """Lines of cells as plain text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in grid
    )


def markdown(rows: Sequence[Row]) -> str:
    """The table as Markdown."""
    headings = [column.heading.replace("/\n", "/").replace("\n", " ") for column in COLUMNS]
    return _markdown(headings, _cells(rows))


def rich_table(rows: Sequence[Row], title: str = "") -> "Table":
    """The table for a terminal."""
    from rich.table import Table

    table = Table(title=title or None)
    for i, column in enumerate(COLUMNS):
        table.add_column(column.heading, justify="right" if i else "left")
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[column.cell(row) for column in COLUMNS] for row in rows]


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rule, *rows])


# ---- The sentence ------------------------------------------------------------------------------


def sentences(runs: Sequence[Run], baseline: str = BASELINE) -> list[str]:
    """What one race shows of each entrant against the baseline; nothing without a baseline."""
    groups = by_label(runs)
    base = _find(groups, baseline)
    if base is None:
        return []
    return [
        _sentence(base, groups[base], label, group)
        for label, group in groups.items()
        if label != base
    ]


def sentence(runs: Sequence[Run], baseline: str = BASELINE, challenger: str = "muon") -> str:
    """What one race shows of one entrant against another; empty when either did not run.

    An entrant is named by its label, or by its recipe: the first label of that recipe.
    """
    groups = by_label(runs)
    a, b = _find(groups, baseline), _find(groups, challenger)
    return "" if a is None or b is None else _sentence(a, groups[a], b, groups[b])


def _find(labels: Collection[str], name: str) -> str | None:
    return name if name in labels else next((x for x in labels if x.split(":")[0] == name), None)


def _sentence(base_label: str, base: list[Run], label: str, group: list[Run]) -> str:
    a, b = spelled(base_label), spelled(label)
    reached_a, reached_b = _count(base, REACHED), _count(group, REACHED)
    tally_a, tally_b = f"{reached_a} of {len(base)}", f"{reached_b} of {len(group)}"
    target = f"a validation loss of {base[0].target:g}"
    steps = speedup(costs(base, "steps"), costs(group, "steps"))
    time = speedup(costs(base, "seconds"), costs(group, "seconds"))
    if steps is None or time is None:
        return (
            f"{b} reached {target} in {tally_b} runs and {a} in {tally_a}, "
            "so there is no ratio between them."
        )
    all_reached = reached_a == len(base) and reached_b == len(group)
    return (
        f"{b} reached {target} in {_change(steps, 'fewer')} steps than {a} "
        f"({a} takes {steps.value:.2f}x as many; {_interval(steps)}) "
        f"and in {_change(time, 'less')} time "
        f"({'slower: ' if time.value < 1 else ''}{time.value:.2f}x as fast; {_interval(time)}), "
        f"so one {b} step costs {steps.value / time.value:.2f}x one {a} step; "
        f"{tally_b} {b} runs and {tally_a} {a} runs reached the target"
        f"{'' if all_reached else ', and what the others spent is counted'}."
    )


def _change(ratio: Estimate, less: str) -> str:
    change = 1 / ratio.value - 1  # of the cost, from the baseline to the challenger
    return f"{abs(change):.1%} {less if change < 0 else 'more'}"


def _interval(ratio: Estimate) -> str:
    if ratio.low is None or ratio.high is None:
        return "no interval from a single run"
    unclear = ", so it may be chance" if ratio.low <= 1 <= ratio.high else ""
    return f"95% interval {ratio.low:.2f} to {ratio.high:.2f}{unclear}"


def spelled(label: str) -> str:
    """An entrant's label as prose writes it; a recipe that is not in SPELLED stays as typed."""
    name, _, options = label.partition(":")
    return SPELLED.get(name, name) + (f" ({options})" if options else "")


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
            str(t.steps),
            t.source or f"our trial {', '.join(map(str, t.trials))}",
        ]
        for t in tuned
    ]
    return _markdown(["track", "entrant", "settings", "steps", "from"], rows)


def csv_table(path: Path) -> str:
    """A CSV file as Markdown. Raises UserError if there is none."""
    rows = list(csv.reader(read_file(path).splitlines()))
    return _markdown(rows[0], rows[1:])


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
        if name not in ("headline", "race", "machine"):
            raise UserError(
                f"README marker {name!r} must be headline, race, machine, tuned, csv or file"
            )
        chosen = select(runs, argument or race, official=True)
        if name == "headline":
            content = "\n\n".join(sentences(chosen))
        elif name == "race":
            content = f"{markdown(summarise(chosen))}\n\n{TABLE_NOTE}"
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
    parser = argparse.ArgumentParser(prog="python -m results.report")
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
        print(text(summarise(race)), TABLE_NOTE, *sentences(race), machine(race), sep="\n\n")
        return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2


def _readme(options: argparse.Namespace, runs: Sequence[Run]) -> int:
    path: Path = options.readme
    if not path.is_file():
        raise UserError(f"no file {path}; name the README with --readme")
    before = path.read_text(encoding="utf-8")
    after = rewrite(before, runs, read_tuned(path.parent / "optim" / "tuned.toml"), options.race)
    if after == before:
        return 0
    if options.check:
        print(f"{path} differs from the CSVs; run: python -m results.report --readme {path}")
        return 1
    path.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
