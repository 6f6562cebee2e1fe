"""The trials of the tuner in their order: the best loss so far, and what a shorter search costs.

The generated parts named `tuning` and the chart `tuning_curves` are made here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from pathlib import Path

from analysis.table import markdown_grid
from errors import UserError
from tracking.schema import SEARCHED, Trial
from tracking.store import read_trials

AFTER = (10, 20, 40, 64)  # trials after which the best loss is shown


@dataclass(frozen=True)
class Search:
    """The trials of one recipe's search and refinement that count, by their numbers."""

    recipe: str
    trials: Sequence[Trial]
    earlier: int  # trials whose number was run again later: of a search that was restarted

    @property
    def best_so_far(self) -> list[float]:
        """The least loss after each trial, nats per token; infinite until one has finished."""
        losses = (inf if t.final_loss is None else t.final_loss for t in self.trials)
        return list(accumulate(losses, min))

    @property
    def best(self) -> int:
        """How many trials it took to find the best one."""
        found = self.best_so_far
        return found.index(found[-1]) + 1


def searches(trials: Sequence[Trial]) -> list[Search]:
    """The searches on one track at the horizon of its newest trial, the best first.

    trials: of one track, in the order in which they were written. Of a number the newest counts.
    """
    rows = [trial for trial in trials if trial.stage in SEARCHED]
    rows = [trial for trial in rows if trial.steps == rows[-1].steps]
    found = []
    for recipe in dict.fromkeys(trial.recipe for trial in rows):
        own = [trial for trial in rows if trial.recipe == recipe]
        newest = {trial.trial: trial for trial in own}
        counted = [newest[number] for number in sorted(newest)]
        found.append(Search(recipe, counted, len(own) - len(counted)))
    return sorted(found, key=lambda search: search.best_so_far[-1])


def read(folder: Path, track: str) -> list[Search]:
    """The searches of a folder on a track. Raises UserError if there are none."""
    found = searches([trial for trial in read_trials(folder) if trial.track == track])
    if not found:
        raise UserError(
            f"{folder}: has no search on track {track}; name RECORD/TRACK, as tiny-search/tiny"
        )
    return found


def markdown(found: Sequence[Search]) -> str:
    """A row for each search: the best loss after some trials and after all."""
    most = max(len(search.trials) for search in found)
    counts = [count for count in AFTER if count < most]
    headings = [
        "optimizer", *(f"best of {count}" for count in counts), "best of all", "trials",
        "found after", "earlier trials",
    ]  # fmt: skip
    rows = []
    for search in found:
        losses = search.best_so_far
        shown = [f"{losses[count - 1]:.4f}" if count <= len(losses) else "-" for count in counts]
        numbers = [len(losses), search.best, search.earlier]
        rows.append([search.recipe, *shown, f"{losses[-1]:.4f}", *map(str, numbers)])
    return markdown_grid(headings, rows)
