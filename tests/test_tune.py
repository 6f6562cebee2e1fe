"""The tuner: its points, its stages, interruption and shards."""

import contextlib
import itertools
import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import speedrun
import studies.study
from analysis import stats
from errors import UserError
from optim import Beta, Linear, Log, Option
from optim.entrants import entrant_options, parse
from studies import guide, tune
from studies.points import REST, coordinate, points, proposed
from studies.study import FRESH_SEEDS, Budget, Incomplete, Job, Study, loss_of, read_shard
from tests.rows import make_trial
from tracking import spelling, store, tuned
from tracking.schema import DIVERGED, REACHED, Trial
from tracking.tuned import TUNED, Tuned

OPTIONS = {
    "lr": Option(float, 0.1, Log(0.01, 1.0)),
    "beta": Option(float, 0.9, None),
    "cooldown": Option(float, 0.5, Linear(0.0, 1.0)),
}
RESULTS = Path(__file__).parents[1] / "results"


def test_points_fill_the_ranges_and_do_not_depend_on_their_number() -> None:
    found = points(OPTIONS, 32)
    assert found[:8] == points(OPTIONS, 8)
    assert all(set(point) == {"lr", "cooldown"} for point in found)
    for name, bounds in (("lr", Log(0.01, 1.0)), ("cooldown", Linear(0.0, 1.0))):
        values = sorted(point[name] for point in found)
        quarters = [bounds.at(q / 4) for q in range(5)]
        for low, high in itertools.pairwise(quarters):
            assert sum(low <= value < high for value in values) == pytest.approx(8, abs=1)


def test_there_are_points_where_nothing_varies_and_none_where_none_are_wanted() -> None:
    assert points({"beta": OPTIONS["beta"]}, 2) == [{}, {}]
    assert points(OPTIONS, 0, around={"lr": 0.1, "cooldown": 0.5}) == []


def test_recipes_with_the_same_rest_search_the_same_points_of_it() -> None:
    adamw = points(entrant_options("adamw", speedrun.Schedule), 8)
    for recipe in ("muon", "muonh", "lion", "sgd", "kron", "schedule-free"):
        found = points(entrant_options(recipe, speedrun.Schedule), 8)
        for name in (*REST, "warmup", "cooldown"):
            if (recipe, name) == ("schedule-free", "cooldown"):
                continue
            assert [p[name] for p in found] == [p[name] for p in adamw], (recipe, name)
    assert "weight_decay" not in points(entrant_options("muonh", speedrun.Schedule), 1)[0]


def test_a_momentum_is_searched_evenly_in_the_steps_that_it_averages_over() -> None:
    bounds = Beta(0.9, 0.999)
    assert [round(1 - bounds.at(u), 9) for u in (0, 0.5, 1)] == [0.1, 0.01, 0.001]
    assert [bounds.where(bounds.at(u)) for u in (0.2, 1.1)] == pytest.approx([0.2, 1.1])
    assert Beta(0.1, 0.9).at(-5.0) == 0.0  # no momentum is less than none
    option = {"beta2": Option(float, 0.95, bounds)}
    edge = points(option, 64, around={"beta2": 0.999})
    assert max(point["beta2"] for point in edge) == 0.999  # not 1, of which torch has no Adam


def test_a_value_without_a_place_on_its_scale_lies_at_the_end() -> None:
    assert coordinate(Log(0.01, 1.0), 0.0) == 0.0 and coordinate(Beta(0.2, 0.99), 1.0) == 1.0
    assert coordinate(Log(0.01, 1.0), 0.001) == pytest.approx(-0.5)
    past = [({"lr": 0.0, "cooldown": 2.0}, 3.0), ({"lr": 0.1, "cooldown": 0.5}, 3.1)]
    for around in (None, past[0][0]):
        for point in proposed(OPTIONS, past, 4, seed=1, around=around):
            assert point["lr"] > 0 and 0 <= point["cooldown"] <= 1


def test_a_search_without_scikit_learn_is_refused_before_any_trial(
    micro_flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guide, "find_spec", lambda _: None)
    monkeypatch.setattr(tune, "Trainer", lambda *_: pytest.fail("it began"))
    assert tune.main(["adamw", *micro_flags]) == 2
    assert capsys.readouterr().err == (
        "studies.tune: scikit-learn, which guides the search, is not installed; "
        "run: python -m pip install -r requirements-optimizers.txt\n"
    )


# ---- The stages --------------------------------------------------------------------------------


class FakeStudy(Study):
    """A study whose runs are a formula: final loss = base[trial] + slope / steps."""

    def __init__(
        self, base: list[float], target: float, shard: str = "1/1", refined: Sequence[float] = ()
    ) -> None:
        self.recipe, self.options, self.fixed = "muon", OPTIONS, {}
        self.budget = Budget(len(base), read_shard(shard), "horizon")
        self.points = dict(enumerate(points(OPTIONS, len(base))))
        self.base, self.goal = [*base, *refined], target
        self.noise: dict[int, list[float]] = {}  # by trial: what each fresh seed adds
        self.rows: dict[tuple[Any, ...], Trial] = {}
        self.ran: list[tuple[Any, ...]] = []
        self.swept: list[float] = []  # lr of the trials of a sweep

    @property
    def steps(self) -> int:
        return 100

    @property
    def target(self) -> float:
        return self.goal

    @staticmethod
    def key(job: Job) -> tuple[Any, ...]:
        return (job.stage, job.trial, job.settings["steps"], job.seed)

    def _rows(self) -> list[Trial]:
        return list(self.rows.values())

    def _past(self) -> dict[int, Trial]:
        searched = {row.trial: row for row in self._rows() if row.stage in ("search", "refine")}
        return dict(sorted(searched.items()))

    def _find(self, job: Job) -> Trial | None:
        return self.rows.get(self.key(job))

    def _once(self, job: Job) -> Trial:
        if self.key(job) not in self.rows:
            steps = job.settings["steps"]
            loss = self.base[job.trial] + 100 / steps + 0.001 * (job.seed % 3)
            if job.trial in self.noise:
                loss += self.noise[job.trial][job.seed - 1001]
            status = "missed" if loss > self.target else REACHED
            if self.base[job.trial] > 100:
                loss, status = None, DIVERGED  # type: ignore[assignment]
            self.ran.append(self.key(job))
            self.swept += [job.settings["lr"]] if job.stage == "sweep" else []
            point = {name: job.settings[name] for name in self.free | self.fixed}
            self.rows[self.key(job)] = make_trial(
                entrant=spelling.spell("muon", point),
                stage=job.stage, trial=job.trial, steps=steps, seed=job.seed, status=status,
                final_loss=loss, target=self.target,
            )  # fmt: skip
        return self.rows[self.key(job)]


def indices(trials: list[Trial]) -> list[int]:
    return [trial.trial for trial in trials]


def test_the_best_few_are_refined_and_confirmed_and_the_shortest_horizon_found() -> None:
    base = [3.0, 2.0, 999.0, 2.1, 2.2, 5.0, 6.0, 7.0]
    study = FakeStudy(base, target=3.5, refined=[2.05, 2.15])
    searched = study.search()
    assert indices(searched)[:3] == [1, 3, 4] and indices(searched)[-1] == 2
    assert study.refine() == [1, 8, 3, 9]
    assert len(study.points) == 10
    assert study.confirm([8, 1]) == [(pytest.approx(3.001), 1)]
    assert len([row for row in study.ran if row[0] == "confirm"]) == 5 + 2  # 8 is worse
    # 2.0 + 100 / steps + at most .002 <= 3.5 from 66.8 steps on, 2.05 from 69.06
    assert study.shorten([(3.001, 1), (3.051, 8), (3.201, 4)]) == (68, 1)
    assert study.shorten([(3.201, 4), (3.051, 8), (3.001, 1)]) == (68, 1)
    assert study.shorten([(3.201, 4), (3.051, 8)]) == (70, 8)


def test_candidates_that_the_seeds_cannot_tell_apart_stay() -> None:
    study = FakeStudy([3.0, 3.0, 2.9, 3.0001], target=3.5)
    study.noise = {0: [0, 0, 0, 0, 0], 1: [0.1, -0.2, 0.1, -0.1, 0.2], 2: [0.2, 0.2, 0.2, 0.2, 0.1]}
    assert [index for _, index in study.confirm([0, 1, 2, 3])] == [0, 1]
    seeds = [row[1] for row in study.ran]
    assert [seeds.count(index) for index in range(4)] == [5, 5, 3, 3]


def test_refined_points_are_close_to_the_best_and_only_scales_leave_their_range() -> None:
    best = {"lr": 1.0, "cooldown": 1.0}
    close = points(OPTIONS, 64, around=best)
    exponents = [Log(0.01, 1.0).where(point["lr"]) for point in close]
    assert min(exponents) >= 1 - 0.13 and 1.1 < max(exponents) <= 1 + 0.13
    assert all(0.87 <= point["cooldown"] <= 1.0 for point in close)


@pytest.mark.parametrize("steps", range(4, 152, 2))
def test_any_horizon_on_the_grid_is_found_from_a_good_or_bad_guess(steps: int) -> None:
    for confirmed in (1.001, 100 / steps + 0.5, math.inf):
        study = FakeStudy([0.0], target=100 / steps + 0.0058)  # seeds add up to 0.002
        assert study.shorten([(confirmed, 0)]) == (steps, 0)


def test_a_good_guess_saves_runs() -> None:
    for target in (0.9, 1.03, 1.2, 1.4):
        study = FakeStudy([0.0], target=target)
        study.shorten([(1.001, 0)])
        assert len(study.ran) <= 17  # three horizons that meet it; bisection would take up to six


def test_a_target_that_no_finalist_meets_has_no_horizon() -> None:
    assert FakeStudy([2.0, 3.0], target=2.1).shorten([(3.0, 0), (4.0, 1)]) is None


def test_a_trial_that_has_its_row_is_not_run_again() -> None:
    study = FakeStudy([3.0, 2.0, 2.5, 2.1], target=3.5, refined=[2.3])
    first = (study.search(), study.confirm(study.refine()))[1]
    ran = list(study.ran)
    assert (study.search(), study.confirm(study.refine()))[1] == first
    assert study.ran == ran


def test_shards_share_the_work_and_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(studies.study.time, "sleep", waited.append)
    first = FakeStudy([3.0, 2.0, 2.5, 2.1, 2.2], target=3.5, shard="1/2")
    second = FakeStudy([3.0, 2.0, 2.5, 2.1, 2.2], target=3.5, shard="2/2")
    second.rows = first.rows
    with pytest.raises(Incomplete, match="2 search trials"):
        first.search()
    assert sum(waited) == pytest.approx(3 * 20.0, abs=2)  # three of its trials
    assert indices(second.search())[:3] == [1, 3, 4]
    assert len(first.ran) == 3 and len(second.ran) == 2


def landscape(count: int) -> list[float]:
    """Losses of `count` trials by their number, without a pattern."""
    return [3 + (0.618 * number) % 1 for number in range(count)]


def test_a_search_is_a_spread_round_and_then_rounds_of_four(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int, bool]] = []

    def propose(options: Any, past: Any, count: int, seed: int, around: Any) -> Any:
        asked.append((len(past), seed, around is not None))
        return proposed(options, past, count, seed, around)

    monkeypatch.setattr(studies.study, "proposed", propose)
    study = FakeStudy(landscape(22), target=3.5, refined=landscape(5))
    study.search()
    spread = points(OPTIONS, 16)
    assert [study.points[n] for n in range(16)] == spread
    assert asked == [(16, 16, False), (20, 20, False)]
    assert [row[:2] for row in study.ran] == [("search", n) for n in range(22)]
    study.refine()
    assert [row[:2] for row in study.ran[22:]] == [("refine", n) for n in range(22, 27)]
    assert asked[2:] == [(20, 20, True), (24, 24, True)]


def test_any_number_of_shards_runs_the_same_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = FakeStudy(landscape(24), target=3.5, refined=landscape(6))
    alone.search(), alone.refine()
    for count in (2, 3):
        shards = [
            FakeStudy(landscape(24), 3.5, f"{i + 1}/{count}", landscape(6)) for i in range(count)
        ]
        for shard in shards:
            shard.rows = shards[0].rows
        others = itertools.cycle(shards)

        def work(_: float, others: Any = others) -> None:  # what another shard does meanwhile
            other = next(others)
            with contextlib.suppress(Incomplete), monkeypatch.context() as patch:
                patch.setattr(studies.study.time, "sleep", lambda _: None)
                other.search(), other.refine()

        monkeypatch.setattr(studies.study.time, "sleep", work)
        shards[0].search(), shards[0].refine()
        assert shards[0].rows == alone.rows and shards[0].points == alone.points
        ran = [key for shard in shards for key in shard.ran]
        assert len(ran) == len(set(ran)) == 30 and all(shard.ran for shard in shards)


def test_a_shard_that_starts_late_takes_no_other_trials() -> None:
    studies_of = [FakeStudy(landscape(8), target=3.5, shard=f"{i}/2") for i in (1, 2)]
    early, late = studies_of
    late.rows = early.rows
    job = Job("search", 0, early.points[0] | {"steps": 100}, 1000)
    early._once(job)  # the other shard has not begun
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies.study.time, "sleep", lambda _: None)
        with pytest.raises(Incomplete):
            late.search()
    assert [row[1] for row in late.ran] == [1, 3, 5, 7]


def test_a_longer_search_goes_on_behind_the_refinement_of_the_shorter_one() -> None:
    study = FakeStudy(landscape(60), target=3.5)
    study.budget = Budget(32, read_shard("1/1"), "refine")
    study.search(), study.refine()
    before = dict(study.rows)
    study.budget = Budget(40, read_shard("1/1"), "refine")
    study.search()
    finalists = study.refine()
    stages = [row.stage for row in study._past().values()]
    assert stages == ["search"] * 32 + ["refine"] * 8 + ["search"] * 8 + ["refine"] * 10
    assert before.items() <= study.rows.items() and len(study.rows) == 58
    assert finalists == sorted(range(58), key=landscape(58).__getitem__)[:4]
    ran = len(study.ran)
    study.budget = Budget(8, read_shard("1/1"), "refine")  # a shorter one has nothing left to do
    study.search(), study.refine()
    assert len(study.ran) == ran


def test_a_search_fills_the_gaps_that_a_killed_shard_left() -> None:
    study = FakeStudy(landscape(24), target=3.5)
    study.search()
    whole, ran = dict(study.rows), list(study.ran)
    for key in (ran[5], ran[18], ran[21]):
        del study.rows[key]
    study.search()
    assert study.rows == whole and study.ran[24:] == [ran[5], ran[18], ran[21]]


def test_the_rows_are_the_truth_and_the_newest_of_a_number_counts(
    micro_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    trainer = SimpleNamespace(track=micro_track, options=micro_options)
    study = Study(trainer, "tiny", "muon:nesterov=true", Budget(1, read_shard("1/1"), "search"))
    known = {"track_hash": micro_track.hash(), "seed": 1000, "steps": study.steps}
    lines = [
        (0, "muon:lr=7,momentum=0.5", 3.3, {}),  # its lr is outside of the range
        (1, "muon:lr=0.01", 3.9, {}),
        (1, "muon:lr=0.02", 3.4, {}),
        (2, "muon:lr=0.03,nesterov=false", 3.1, {}),
        (3, "muon:lr=0.03", 3.1, {"steps": study.steps + 2}),
        (4, "muon:lr=0.03", 3.1, {"seed": 1001}),
        (5, "muon:lr=0.03", 3.1, {"track_hash": "another"}),
        (6, "muon:lr=0.03", 3.1, {"recipe": "adamw"}),
        (7, "muon:lr=0.03", 3.1, {"stage": "sweep"}),
        (8, "muon:lr=0.03,forgotten=1", 3.1, {}),
    ]
    for trial, entrant, loss, change in lines:
        row = make_trial(**known | {"trial": trial, "entrant": entrant, "final_loss": loss})
        store.append(micro_options.results / "tuning.csv", replace(row, **change))
    assert {n: row.final_loss for n, row in study._past().items()} == {0: 3.3, 1: 3.4}
    assert study.search()[0].trial == 0
    point, default = study.points[0], entrant_options("muon", speedrun.Schedule)["warmup"].default
    assert (point["lr"], point["momentum"], point["nesterov"]) == (7, 0.5, True)
    assert point["warmup"] == default  # an option that the row does not name


def test_a_tuned_option_that_is_not_searched_stays_in_the_outcome(
    micro_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    trainer = SimpleNamespace(track=micro_track, options=micro_options)
    budget = Budget(1, read_shard("1/1"), "horizon")
    lent = tuned.find("tiny", "soap").settings
    assert lent["precondition_frequency"] != 10 and "lr" in lent
    frequency = {"precondition_frequency": lent["precondition_frequency"]}
    assert Study(trainer, "tiny", "soap", budget).fixed == frequency
    typed = Study(trainer, "tiny", "soap:precondition_frequency=3", budget)
    assert typed.fixed == {"precondition_frequency": 3}


def test_a_search_whose_every_trial_diverged_says_what_to_change(tmp_path: Path) -> None:
    study = FakeStudy([999.0] * 20, target=3.5)
    study.trainer = SimpleNamespace(track=SimpleNamespace(name="tiny"))
    with pytest.raises(UserError, match="muon: every trial diverged; narrow its ranges in optim/"):
        tune.tune_recipe(study, tmp_path / "tuned.toml")
    assert len(study.ran) == 20


def test_a_recipe_without_ranges_has_trials_that_are_alike() -> None:
    study = FakeStudy(landscape(20), target=3.5, refined=landscape(5))
    study.options = {"lr": Option(float, 0.1, None)}
    study.search()
    assert len(study.refine()) == 4 and len(study.ran) == 25 and not any(study.points.values())


def test_a_sweep_covers_two_decades_around_the_tuned_lr() -> None:
    study = FakeStudy([0.0] * 7, target=1.0)
    rows = study.sweep({"lr": 0.05, "cooldown": 0.6, "steps": 66})
    assert study.ran == [("sweep", index, 100, 1000) for index in range(7)]
    assert len(rows) == 7 and study.sweep({"lr": 0.05, "cooldown": 0.6}) == rows
    assert study.swept == [0.005, 0.0108, 0.0232, 0.05, 0.108, 0.232, 0.5]
    with pytest.raises(UserError, match="no tuned lr to sweep on this track; run: python"):
        study.sweep({})


def test_the_standing_settings_run_again_with_every_fresh_seed() -> None:
    study = FakeStudy([3.0], target=1.0)
    rows = study.standing({"lr": 0.05, "cooldown": 0.6, "steps": 66})
    assert study.ran == [("standing", 0, 100, seed) for seed in FRESH_SEEDS]
    assert study.standing({"lr": 0.05, "cooldown": 0.6}) == rows  # none runs twice
    with pytest.raises(UserError, match="no tuned settings on this track; run: python"):
        study.standing({})


def test_a_best_value_at_an_end_of_its_range_draws_a_warning() -> None:
    study = FakeStudy([1.0], target=1.0)
    study.points = {0: {"lr": 0.0101, "cooldown": 0.5}}
    assert study.at_edge(0) == ["lr=0.0101 is at the low end of its range 0.01 to 1.0"]
    study.points = {0: {"lr": 0.1, "cooldown": 0.01}}
    assert ["cooldown" in warning for warning in study.at_edge(0)] == [True]
    study.points = {0: {"lr": 0.1, "cooldown": 1.0}}  # there is no longer one
    assert study.at_edge(0) == []
    study.points = {0: {"lr": 0.1, "cooldown": 0.5}}
    assert study.at_edge(0) == []


def test_the_outcome_is_a_section_that_entrants_read(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    first = Tuned("tiny", "muon", {"lr": 0.03}, 70, (5,))
    adamw = Tuned("tiny", "adamw", {"lr": 1e-05, "nesterov": True}, 100, (9,))
    muon = Tuned("tiny", "muon", {"lr": 0.04}, 65, (6,))
    for section in (first, adamw, muon):
        tuned.write(section, path)
    assert tuned.read(path) == [adamw, muon]
    assert tuned.find("tiny-mla", "muon", path) == muon
    assert tuned.find("xl", "muon", path) is None
    assert tomllib.loads(path.read_text())["tiny"]["muon"]["trials"] == [6]


def test_a_given_option_is_in_every_trial_and_not_searched(tmp_path: Path) -> None:
    study = FakeStudy([3.0, 2.0, 2.5, 2.6], target=3.5, refined=[2.4])
    study.trainer = SimpleNamespace(track=SimpleNamespace(name="tiny"))
    study.fixed = {"cooldown": 1.0, "beta": 0.5}
    tune.tune_recipe(study, tmp_path / "tuned.toml")
    assert len({point["lr"] for point in study.points.values()}) == 5
    assert all(point.items() >= study.fixed.items() for point in study.points.values())
    assert not any("cooldown" in warning for warning in study.at_edge(1))  # it was given
    section = tomllib.loads((tmp_path / "tuned.toml").read_text())["tiny"]["muon"]
    assert (section["cooldown"], section["beta"]) == (1.0, 0.5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["muon:steps=9"], "muon:steps=9: the tuner sets the steps"),
        (["moun"], "unknown entrant 'moun'"),
        (["muon", "--shard=3/2"], "--shard 3/2"),
        (["muon", "--trials=0"], "--trials 0"),
        (["muon", "--stage=last"], "--stage last: must be one of search"),
        (["soap", "soap:precondition_frequency=1"], "named twice"),
        (["muon:momentum=0.9", "--stage=sweep"], "muon:momentum=0.9: the stage sweep is of tuned"),
    ],
)
def test_what_the_tuner_would_not_heed_is_refused(
    words: list[str], message: str, micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main([*words, *micro_flags]) == 2
    assert message in capsys.readouterr().err


def test_the_outcome_stays_beside_its_trials(
    micro_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    monkeypatch.setattr(tune, "tune_recipe", lambda study, path: paths.append(path))
    assert tune.main(["adamw", *micro_flags]) == 0
    assert paths == [tmp_path / "results" / "tuned.toml"] and tuned.of(RESULTS) == TUNED


def test_who_misses_the_target_is_tuned_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tuned.toml"
    study = FakeStudy([3.0, 2.0, 2.5, 2.6], target=2.1, refined=[2.4])
    study.trainer = SimpleNamespace(track=SimpleNamespace(name="tiny"))
    tune.tune_recipe(study, path)
    assert "muon: no horizon up to 150 steps meets the target" in capsys.readouterr().out
    assert [row for row in study.ran if row[0] == "horizon" and row[1] == 1][-1][2] == 150
    section = tomllib.loads(path.read_text())["tiny"]["muon"]
    assert section == study.points[1] | {"steps": 150, "trials": [1], "missed": True}
    entrant = parse("muon", "tiny", speedrun.Schedule, {}, {}, path)
    assert entrant.origin == "tuned for tiny, misses its target"
    assert entrant.settings["steps"] == 150
    study.goal = 2.9  # it goes on: with a target that is met, nothing says so any more
    study.rows.clear()
    tune.tune_recipe(study, path)
    assert set(tomllib.loads(path.read_text())["tiny"]["muon"]) == {
        *study.points[1],
        "steps",
        "trials",
    }


def test_every_tuned_recipe_races_in_a_comparison(tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    for track, recipe in (("tiny", "muon"), ("tiny", "adafactor"), ("tiny", "adamw"), ("xl", "x")):
        tuned.write(Tuned(track, recipe, {"lr": 0.03}, 70, (5,)), path)
    assert tuned.recipes("tiny", path) == ["adamw", "adafactor", "muon"]
    with pytest.raises(UserError, match="no recipe is tuned for gpt2; run: make tune TRACK=gpt2"):
        tuned.recipes("gpt2", path)


@pytest.mark.slow
def test_tuning_writes_rows_and_goes_on_where_it_stopped(
    micro_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = TUNED.read_bytes()
    monkeypatch.setattr(studies.study, "FRESH_SEEDS", (1001, 1002))
    monkeypatch.setitem(speedrun.TRACKS, "tiny", replace(speedrun.TRACKS["tiny"], search_steps=10))
    command = ["muon", "--trials=4", *micro_flags]
    assert tune.main([*command, "--stage=search"]) == 0
    trials = store.read_trials(tmp_path / "results")
    assert [(row.stage, row.trial, row.steps) for row in trials] == [
        ("search", index, 10) for index in range(4)
    ]
    assert tune.main(command) == 0
    after = store.read_trials(tmp_path / "results")
    assert after[:4] == trials
    stages = [row.stage for row in after[4:]]
    confirmed = stages.count("confirm")
    assert 4 < confirmed <= 8  # two seeds, the second for those that the first does not part
    horizons = ["horizon"] * (len(stages) - 1 - confirmed)
    assert stages == ["refine", *["confirm"] * confirmed, *horizons] and horizons
    losses: dict[tuple[int, int], list[float]] = {}
    for row in after[5 + confirmed :]:
        losses.setdefault((row.trial, row.steps), []).append(loss_of(row))
    met = [key[1] for key, seeds in losses.items() if len(seeds) > 1 and max(seeds) <= 6.9
           and stats.next_below_target(seeds, 6.9)]  # fmt: skip
    assert f"steps={min(met)}" in capsys.readouterr().out
    assert TUNED.read_bytes() == before  # a custom track has no settings


def test_settings_stand_in_between_tracks_that_differ_in_the_model_alone() -> None:
    same = {"name": "", "model": "", "target": 1.0}
    for track, lender in tuned.SETTINGS_FALLBACK.items():
        one, other = speedrun.TRACKS[track], speedrun.TRACKS[lender]
        assert replace(one, **same) == replace(other, **same)


def test_committed_settings_are_options_of_their_recipes() -> None:
    for recipe, section in tomllib.loads(TUNED.read_text())["tiny"].items():
        known = entrant_options(recipe, speedrun.Schedule)
        assert set(section) - {"trials", "missed"} <= set(known)
