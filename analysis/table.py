"""The runs of a race as a table with one row for each entrant, as plain text and as Markdown.

Claims: every number follows from the rows of runs.csv through `analysis.stats`.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, fields

import pandas as pd

from analysis.stats import Estimate, costs, deviation, expected_cost, losses, mean
from tracking.schema import DIVERGED, MISSED, REACHED, Run, Trial
from tracking.spelling import recipe_of

BASELINE, CHALLENGER = "adamw", "muon"  # recipes that the headline compares
TABLE_NOTE = (
    "± is the standard deviation between runs. Steps, tokens and seconds are means. If runs did "
    "not reach the target, these numbers are the total that all runs spent, divided by the number "
    "of runs that reached it."
)

IN_TURNS = (
    "Seconds are the sums of each run's own clock, with all that disturbed the machine in its "
    "turns. So a ratio in seconds is not their quotient: it is the ratio in steps, divided by the "
    "price of a step."
)

# ---- One row for each entrant ------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What the target cost an entrant, in one unit."""

    expected: Estimate  # includes what the runs spent that missed
    sd: float | None  # between runs; None for fewer than two runs, and if some missed


@dataclass(frozen=True)
class Row:
    """All runs of one entrant in one race."""

    label: str
    n: int
    reached: int
    missed: int
    diverged: int
    target: float  # validation loss, nats per token
    steps: Cost | None  # this and the next two are None if no run reached the target
    tokens: Cost | None
    seconds: Cost | None  # on the training clock
    step_ms: float | None  # this and the next are None if no run made a step
    optimizer_ms: float | None  # part of step_ms
    peak_memory_bytes: int  # largest of the runs
    state_bytes: int  # largest of the runs
    mfu: float  # mean of the runs
    final_loss: float | None  # mean of the runs that did not diverge, nats per token
    final_loss_sd: float | None


def commit_words(commit: str, clean: bool | None) -> str:
    """The columns `commit` and `clean` in words: what is not known is not called a change."""
    if not commit:
        return "unknown"
    notes = {True: "", False: " with uncommitted changes", None: ", unknown whether with changes"}
    return commit[:12] + notes[clean]


def frame(rows: Sequence[Run] | Sequence[Trial], cls: type) -> pd.DataFrame:
    """Rows as a data frame with the columns of their dataclass `cls`; None is NaN in numbers."""
    return pd.DataFrame([vars(row) for row in rows], columns=[field.name for field in fields(cls)])


def summarise(runs: Sequence[Run]) -> list[Row]:
    """The entrants of one race in the order in which they began."""
    by_entrant = frame(runs, Run).groupby("label", sort=False)
    return [_summary(group, by_entrant.get_group(label)) for label, group in by_label(runs).items()]


def _summary(runs: list[Run], rows: pd.DataFrame) -> Row:
    """One entrant from its runs, which `rows` holds too."""
    ends, steps = losses(runs), int(rows["steps"].sum())
    return Row(
        label=runs[0].label,
        n=len(runs),
        reached=count(runs, REACHED),
        missed=count(runs, MISSED),
        diverged=count(runs, DIVERGED),
        target=runs[0].target,
        steps=_cost(runs, "steps"),
        tokens=_cost(runs, "tokens"),
        seconds=_cost(runs, "seconds"),
        step_ms=1000 * float(rows["train_seconds"].sum()) / steps if steps else None,
        optimizer_ms=1000 * float(rows["optimizer_seconds"].sum()) / steps if steps else None,
        peak_memory_bytes=int(rows["peak_memory_bytes"].max()),
        state_bytes=int(rows["state_bytes"].max()),
        mfu=float(rows["mfu"].mean()),
        final_loss=mean(ends).value if ends else None,
        final_loss_sd=deviation(ends),
    )


def by_label(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each entrant, by its label, in the order in which they began."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.started):  # rows are in the order of the ends
        groups.setdefault(run.label, []).append(run)
    return groups


def turn_lengths(runs: Iterable[Run]) -> list[int]:
    """The lengths of the turns, in steps, of the runs that took turns; none if all ran alone."""
    return sorted({run.turn_steps for run in runs} - {0})


def note(runs: Sequence[Run]) -> str:
    """What the numbers of the table mean."""
    return f"{TABLE_NOTE} {IN_TURNS}" if turn_lengths(runs) else TABLE_NOTE


def count(runs: Sequence[Run], status: str) -> int:
    """The number of runs with this status."""
    return sum(run.status == status for run in runs)


def _cost(runs: Sequence[Run], unit: str) -> Cost | None:
    sample = costs(runs, unit)
    expected = expected_cost(sample)
    if expected is None:
        return None
    return Cost(expected, deviation(sample.spent) if all(sample.reached) else None)


def standing(runs: Sequence[Run], unit: str) -> tuple[float, float]:
    """The key that ranks the entrants of a race: the lowest is the best.

    It is the expected cost of the target in `unit`, then the mean final loss, which ranks the
    entrants that never reached the target.
    """
    cost, ends = expected_cost(costs(runs, unit)), losses(runs)
    infinity = float("inf")
    return (cost.value if cost else infinity, mean(ends).value if ends else infinity)


def find(labels: Collection[str], name: str) -> str | None:
    """The label `name`, or else the first label of the recipe `name`; None if there is none."""
    return name if name in labels else next((x for x in labels if recipe_of(x) == name), None)


# ---- The table ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A heading, which may break into two lines, and the function that gives a cell."""

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
    """Lines of cells as plain text: the first column aligned left, the others aligned right."""
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
    return markdown_grid(headings, _cells(rows))


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[column.cell(row) for column in COLUMNS] for row in rows]


def markdown_grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rule, *rows])
