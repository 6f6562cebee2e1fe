"""The committed search: its rows lead to the targets of the tracks and to the tuned settings."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import speedrun
from analysis import sweep
from studies.study import Budget, Job, Shard, Study
from studies.tune import target_from
from tracking import store, tuned
from tracking.schema import SEARCHED, Trial

RECORDS = Path(__file__).parents[1] / "results" / "records"
TRACKS = ("tiny", *tuned.SETTINGS_FALLBACK)
SECTIONS = [each for each in tuned.read() if each.track in TRACKS and each.trials]


@cache
def trials_of(track: str) -> list[Trial]:
    """The tuner's trials of a track in all records, in the order in which they were written."""
    digest = speedrun.TRACKS[track].hash()
    rows = [row for folder in store.records(RECORDS.parent) for row in store.read_trials(folder)]
    return [row for row in rows if row.track_hash == digest]


class Replay(Study):
    """A study that takes the rows of the records and runs nothing."""

    def __init__(self, track: str, recipe: str) -> None:
        self.own = [row for row in trials_of(track) if row.recipe == recipe]
        trainer: Any = SimpleNamespace(track=speedrun.TRACKS[track])
        super().__init__(trainer, track, recipe, Budget(1, Shard(), "horizon"))
        count = Counter(row.stage for row in self._past().values())["search"]
        self.budget = Budget(max(count, 1), Shard(), "horizon")

    def _rows(self) -> list[Trial]:
        return self.own

    def _once(self, job: Job) -> Trial:
        trial = self._find(job)
        assert trial, f"{self.recipe}: no row of {job}"
        return trial

    def confirmed(self) -> list[tuple[float, int]]:
        """(mean loss, number) of the finalists that stay, best first."""
        self.search()
        return self.confirm(self.refine())

    def confirm_rows(self) -> list[Trial]:
        """The rows of all finalists' fresh seeds."""
        jobs: list[Trial] = []
        find = self._find

        def noted(job: Job) -> Trial | None:
            row = find(job)
            jobs.extend([row] if row and row.stage == "confirm" else [])
            return row

        self._find = noted  # type: ignore[method-assign]
        self.confirmed()
        return jobs


@pytest.mark.parametrize("track", TRACKS)
def test_the_target_is_what_the_tuned_adamw_reaches(track: str) -> None:
    loss, _ = Replay(track, "adamw").confirmed()[0]
    assert speedrun.TRACKS[track].target == target_from(loss)


def test_the_target_of_tiny_was_fixed_before_the_others_were_searched() -> None:
    study = Replay("tiny", "adamw")
    newest = newest_block(list(study._past().values()))
    begun, fixed = newest[0], max(row.started for row in study.confirm_rows())
    others = [row for row in trials_of("tiny") if row.recipe != "adamw" and row.stage in SEARCHED]
    assert others and all(row.started >= fixed for row in others if row.started > begun)


@pytest.mark.parametrize("track", TRACKS)
def test_horizons_were_looked_for_after_the_target_was_fixed(track: str) -> None:
    fixed = max(row.started for row in Replay(track, "adamw").confirm_rows())
    target = speedrun.TRACKS[track].target
    horizons = [row.started for row in trials_of(track) if row.target == target]
    assert horizons and min(horizons) >= fixed


def newest_block(rows: Sequence[Trial]) -> list[str]:
    """When the trials of the last search began, in order: those behind an earlier refinement."""
    found: list[str] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if row.stage == "search":
            again = before is None or before.stage != "search"
            found = [row.started] if again else [*found, row.started]
    return sorted(found)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda each: f"{each.track}-{each.recipe}")
def test_the_rows_lead_to_the_tuned_settings(section: tuned.Tuned) -> None:
    study = Replay(section.track, section.recipe)
    confirmed = study.confirmed()
    shortest = study.shorten(confirmed)
    assert (shortest is None) == section.missed
    steps, number = shortest or (study.longest, confirmed[0][1])
    assert (section.steps, section.trials) == (steps, (number,))
    assert study.points[number].items() >= section.settings.items()


@pytest.mark.parametrize("track", TRACKS)
def test_every_tuned_recipe_had_the_same_number_of_trials(track: str) -> None:
    """64 of the search, and on tiny 24 close to the best of them."""
    recipes = [section.recipe for section in SECTIONS if section.track == track]
    assert {"adamw", "muon"} <= set(recipes)
    for recipe in recipes:
        counts = Counter(row.stage for row in Replay(track, recipe)._past().values())
        assert counts["search"] == 64
        assert counts["refine"] == 24 if track == "tiny" else counts["refine"] >= 16


@pytest.mark.parametrize("track", TRACKS)
def test_no_lr_of_the_newest_sweep_is_much_better_than_the_tuned_one(track: str) -> None:
    """An optimizer that gains more by its lr alone was not tuned enough."""
    league = sorted(path for path in RECORDS.glob("*_tiny_league") if path.is_dir())[-1]
    found = sweep.swept(sweep.newest_sweeps(trials_of(track), speedrun.TRACKS[track].hash()))
    tuned_lr = {s.recipe: s.settings["lr"] for s in SECTIONS if s.track == track}
    assert {each.recipe: each.lr for each in found} == tuned_lr
    allowed = sweep.ALLOWED * sweep.deviation(store.read_runs(league))
    assert not {each.recipe: each.gain for each in found if each.gain > allowed}
