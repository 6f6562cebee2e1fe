"""Whether two machines end alike: confirmed trials with one setting and one seed, on both.

    markdown(first, second)      # results/records/tiny-sweep/README.md shows it

A seed gives both machines the same data and the same first weights, so differences are paired by
seed. What is left is the arithmetic of the two.
"""

from collections.abc import Sequence
from typing import NamedTuple

from analysis import stats
from analysis.moved import CONFIRMED, interval
from analysis.table import markdown_grid
from errors import UserError
from tracking.schema import Trial
from tracking.spelling import display_name, recipe_of


class End(NamedTuple):
    """How a trial ended."""

    device: str
    loss: float  # nats per token


def markdown(first: Sequence[Trial], second: Sequence[Trial]) -> str:
    """A table of the mean final losses of each setting that ran on both machines.

    first, second: the trials of each; those without a partner are left out. Raises UserError if
    none has one, or if the partners of one side ran on several machines.
    """
    sides = [_ends(first), _ends(second)]
    common = [key for key in sides[0] if key in sides[1]]
    devices = [sorted({side[key].device for key in common}) for side in sides]
    if [len(each) for each in devices] != [1, 1]:
        raise UserError(
            "two machines can be compared by trials with the same settings and seeds, all of one "
            "machine on each side; make some with: python -m studies.tune --stage standing"
        )
    headings = ["optimizer", "seeds", *(f"loss, {device}" for (device,) in devices), "difference"]
    rows = []
    for entrant in dict.fromkeys(entrant for entrant, _ in common):
        a, b = ([side[key].loss for key in common if key[0] == entrant] for side in sides)
        means = [f"{stats.mean(losses).value:.4f}" for losses in (a, b)]
        gap = stats.mean([y - x for x, y in zip(a, b, strict=True)])
        rows.append([display_name(recipe_of(entrant)), str(len(a)), *means, interval(gap)])
    return f"{markdown_grid(headings, rows)}\n\nBrackets are 95% intervals over pairs of one seed."


def _ends(trials: Sequence[Trial]) -> dict[tuple[str, int], End]:
    """Of the confirmed trials that did not diverge, by entrant and seed."""
    return {
        (row.entrant, row.seed): End(row.device, row.final_loss)
        for row in trials
        if row.stage in CONFIRMED and row.final_loss is not None
    }
