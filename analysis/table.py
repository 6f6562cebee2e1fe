"""The runs of a race as a table: an entrant a row, in the terminal's, Markdown's and rich's form.

Claims: every figure follows from the rows of runs.csv through `analysis.stats`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.stats import Estimate, costs, deviation, expected_cost, mean
from tracking.schema import DIVERGED, MISSED, REACHED, Run
from tracking.spelling import recipe_of

BASELINE = "adamw"
TABLE_NOTE = (
    "± is the standard deviation between runs. Steps, tokens and seconds are means; where runs did "
    "not reach the target, what all runs spent over the number of those that reached."
)

# ---- One line an entrant -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What the target cost an entrant, in one unit."""

    expected: Estimate  # counting what was spent by runs that missed
    sd: float | None  # between runs; None for fewer than two, and where some missed


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
        reached=count(runs, REACHED),
        missed=count(runs, MISSED),
        diverged=count(runs, DIVERGED),
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


def count(runs: Sequence[Run], status: str) -> int:
    return sum(run.status == status for run in runs)


def _cost(runs: Sequence[Run], unit: str) -> Cost | None:
    sample = costs(runs, unit)
    expected = expected_cost(sample)
    if expected is None:
        return None
    return Cost(expected, deviation(sample.spent) if all(sample.reached) else None)


def standing(runs: Sequence[Run], unit: str) -> tuple[float, float]:
    """What the entrants of a race are ranked by, the best lowest.

    The expected cost of the target in `unit`; for those that never reached it, the final loss.
    """
    cost, row = expected_cost(costs(runs, unit)), _summary(runs[0].label, list(runs))
    infinity = float("inf")
    return (
        cost.value if cost else infinity,
        infinity if row.final_loss is None else row.final_loss,
    )


def find(labels: Collection[str], name: str) -> str | None:
    """The label that is `name`, or else the first whose recipe it is; None if there is none."""
    return name if name in labels else next((x for x in labels if recipe_of(x) == name), None)


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
    return markdown_grid(headings, _cells(rows))


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    return [[column.cell(row) for column in COLUMNS] for row in rows]


def markdown_grid(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = [":--"] + ["--:"] * (len(headings) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [headings, rule, *rows])
