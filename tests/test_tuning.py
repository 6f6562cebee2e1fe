"""What is shown of a search: its curves, what trials find, the guide's replay, the ends."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import tuning
from analysis.charts import _make
from analysis.charts._inputs import load
from errors import UserError
from leaderboard import pages
from optim import Beta, Linear, Log, Option
from studies import ends, guide, replay
from studies.points import end_of, points, reason
from tests.races import chart, title
from tests.rows import make_trial
from tracking import store, tuned
from tracking.schema import DIVERGED, Trial

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "results" / "records"
GUIDE, ENDS = RECORDS / "guide", RECORDS / "tiny-ends"


def two_searches(recipe: str, offset: float = 0.0) -> list[Trial]:
    """A search of 12 trials, its refinement, a longer one that goes on; two trials ran again."""
    stages = ["search"] * 12 + ["refine"] * 3 + ["search"] * 12 + ["refine"] * 3
    rows = [
        make_trial(
            recipe=recipe, entrant=f"{recipe}:lr={0.01 + number / 1000}", trial=number, stage=stage,
            final_loss=4 + offset - (1 + offset) * number / 100,
        )
        for number, stage in enumerate(stages)
    ]  # fmt: skip
    first = make_trial(recipe=recipe, entrant=f"{recipe}:lr=9", trial=3, final_loss=1.0)
    lost = replace(rows[0], status=DIVERGED, final_loss=None)
    confirm = make_trial(
        recipe=recipe, entrant=recipe, trial=29, stage="confirm", seed=1001, final_loss=0.5
    )
    return [first, *rows, lost, confirm]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A record of the searches of two recipes."""
    root = tmp_path / "results" / "records" / "two"
    for row in [*two_searches("adamw"), *two_searches("lion", offset=0.1)]:
        store.append(root / "tuning.csv", row)
    return root


def test_the_best_so_far_follows_the_numbers_and_the_newest_row_of_each() -> None:
    (search,) = tuning.searches(two_searches("adamw"))
    assert [row.trial for row in search.trials] == list(range(30)) and search.earlier == 2
    assert search.best_so_far[:3] == [math.inf, 3.99, 3.98] and search.best_so_far[-1] == 3.71
    assert search.best == 30


def test_the_table_has_the_best_loss_after_some_trials(folder: Path) -> None:
    page = "<!-- begin:tuning two/tiny -->\n<!-- end:tuning -->\n"
    lines = pages.rewrite(page, folder.parents[2]).splitlines()[1:]
    assert lines[0] == (
        "| optimizer | best of 10 | best of 20 | best of all | trials | found after | "
        "earlier trials |"
    )
    assert lines[2] == "| adamw | 3.9100 | 3.8100 | 3.7100 | 30 | 30 | 2 |"
    assert lines[3].startswith("| lion | 4.0010 |")
    with pytest.raises(UserError, match="has no search on track gpt2; name RECORD/TRACK"):
        pages.rewrite(page.replace("/tiny", "/gpt2"), folder.parents[2])


def test_the_curves_show_both_searches_of_each_recipe(folder: Path) -> None:
    figure = _make.draw(chart("tuning_curves"), load(folder))
    assert [axes.get_title("left") for axes in figure.axes] == [
        "AdamW: 3.710 after 30 trials",
        "Lion: 3.781 after 30 trials",
    ]
    curve, in_panel_of_lion = figure.axes[0].lines[1], figure.axes[1].lines[0]
    assert list(curve.get_xdata()) == list(range(2, 31))  # the first trial diverged
    assert list(in_panel_of_lion.get_ydata()) == list(curve.get_ydata())  # AdamW is behind it
    grounds = [patch.get_x() for axes in figure.axes for patch in axes.patches]
    assert grounds == [12.5, 27.5] * 2  # the refinements
    assert title(figure) == (
        "A search of a quarter of the trials would have ended higher by 0.220 (AdamW) to 0.242 "
        "(Lion) nats per token"
    )
    sensitivity = _make.draw(chart("lr_sensitivity"), load(folder))
    assert "30 trials each" in sensitivity.texts[2].get_text()


# ---- The replay of the guide -------------------------------------------------------------------


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_pool_is_the_first_search_alone() -> None:
    track = replay.TRACK
    found = [
        replace(row, track_hash=track.hash(), seed=1000, steps=track.search_steps)
        for row in two_searches("adamw")
    ]
    pool = replay.pool_of("adamw", found)
    assert len(pool.losses) == 12 and math.isinf(pool.losses[0]) and pool.losses[3] == 3.97
    assert {len(place) for place in pool.places} == {1}  # lr alone differs
    with pytest.raises(UserError, match="adamw: 12 trials are fewer than 24"):
        replay.replay("adamw", found)


def test_each_way_begins_alike_and_takes_every_trial_once() -> None:
    options = {name: Option(float, 0.5, Linear(0.0, 1.0)) for name in "xy"}
    places = [list(point.values()) for point in points(options, 30)]
    pool = replay.Pool(places, [3 + (x - 0.2) ** 2 + (y - 0.6) ** 2 for x, y in places])
    for order in (replay.guided(pool), replay.shuffled(pool, 3)):
        assert sorted(order) == list(range(30)) and order[:8] == list(range(8))
    best = pool.losses.index(min(pool.losses))
    assert replay.guided(pool).index(best) < 14
    row = replay.outcome("muon", "rows", pool, [range(30), range(29, -1, -1)])
    assert row.best_at == pytest.approx(((best + 1) + (30 - best)) / 2)


def test_the_record_of_the_guide_follows_from_the_committed_rows() -> None:
    rows = rows_of(GUIDE / "replay.csv")
    trials = store.read_trials(RECORDS / "tiny-search")
    again = replay.replay("muon", trials)  # whose best the guide finds first
    assert [list(row.values()) for row in rows if row["optimizer"] == "muon"] == replay.shown(again)
    cells = [list(row.values()) for row in rows]
    typed = [replay.Replayed(*c[:2], int(c[2]), *map(float, c[3:])) for c in cells]
    recipes = {row.optimizer for row in typed}
    assert recipes == {each.recipe for each in tuned.read() if each.track == "tiny"}
    shown = {row["way"]: row for row in rows_of(GUIDE / "summary.csv")}
    for heading, *cells in zip(*replay.summary(typed), strict=True):
        for way, cell in zip(("guide", "random", "rows"), cells, strict=True):
            if heading not in ("way", "optimizers"):
                assert float(cell) == pytest.approx(float(shown[way][heading]), abs=0.1)


def test_the_guide_beats_a_random_order_on_the_rows_that_it_did_not_choose() -> None:
    rows = {row["way"]: row for row in rows_of(GUIDE / "summary.csv")}
    for name in rows["guide"].keys() - {"way", "optimizers"}:
        assert float(rows["guide"][name]) < float(rows["random"][name]), name


def test_the_replay_writes_its_files_or_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main([f"--rows={tmp_path}", f"--folder={tmp_path / 'out'}"]) == 2
    assert "has no trials of track tiny; name a folder with --rows" in capsys.readouterr().err
    monkeypatch.setattr(guide, "most_promising", lambda places, losses, pool: 0)
    assert replay.main([f"--folder={tmp_path / 'out'}"]) == 0
    written = rows_of(tmp_path / "out" / "replay.csv")
    assert [row["way"] for row in written[:3]] == ["guide", "random", "rows"]
    committed = {(r["optimizer"], r["way"]): r for r in rows_of(GUIDE / "replay.csv")}
    for row in written:
        if row["way"] != "guide":  # the other ways need no guide
            assert row == committed[row["optimizer"], row["way"]]


# ---- The ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "bounds", "value", "end", "why"),
    [
        ("warmup", Linear(0.0, 0.2), 0.009, "low", "no warm-up"),
        ("warmup", Linear(0.0, 0.2), 0.011, "", ""),
        ("warmup", Linear(0.0, 0.2), 0.2, "high", ""),
        ("cooldown", Linear(0.1, 1.0), 1.0, "high", "the whole run"),
        ("lr", Log(0.01, 1.0), 0.012, "low", ""),
        ("lr", Log(0.01, 1.0), 3.0, "high", ""),  # beyond it
        ("weight_decay", Log(0.01, 1.0), 0.0, "low", ""),
        ("beta2", Beta(0.3, 0.999), 0.999, "high", "more steps than the run has, 70"),
        ("beta1", Beta(0.2, 0.9), 0.9, "high", ""),  # of ten steps
    ],
)
def test_a_value_is_at_an_end_within_a_twentieth_of_its_range(
    option: str, bounds: Linear, value: float, end: str, why: str
) -> None:
    assert end_of(bounds, value) == end
    assert why in reason(option, bounds, value, steps=70)
    assert bool(why) == bool(reason(option, bounds, value, steps=70))


def test_the_record_of_the_ends_is_of_todays_settings_and_ranges() -> None:
    for name, table in ends.tables().items():
        with (ENDS / name).open(encoding="utf-8", newline="") as file:
            shown = list(csv.reader(file))
        assert shown == [list(line) for line in table], (
            f"{name} is out of date; run: python -m studies.ends --folder {ENDS}"
        )


def test_the_ends_are_written_or_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends.main([f"--folder={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "ends.csv").read_bytes() == (ENDS / "ends.csv").read_bytes()
    with pytest.raises(UserError, match="has no settings of tiny; run: make tune TRACK=tiny"):
        ends.tables(tmp_path / "none.toml")
