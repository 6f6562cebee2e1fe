"""Other batch sizes and widths: the transfer of settings, the races, the speed-ups."""

import math
from pathlib import Path

import pytest

import speedrun
from analysis import scale
from analysis.charts import _make
from analysis.charts._inputs import load
from errors import UserError
from leaderboard import verify
from studies import scale as driver
from tests.races import chart, title
from tests.scales import write_point, write_scale
from tracking import store, tuned
from tracking.schema import ScalePoint

TUNED = {
    "adamw": dict(lr=0.01, weight_decay=0.1, embed_lr=1.0, head_lr=0.02, warmup=0.1, steps=100),
    "muon": dict(lr=0.05, weight_decay=0.2, embed_lr=1.0, head_lr=0.02, nesterov=True, steps=80),
}


def test_settings_move_with_the_square_root_of_the_batch() -> None:
    assert driver.transfer("adamw", TUNED["adamw"], wider=1, larger=4) == dict(
        lr=0.02, weight_decay=0.2, embed_lr=2.0, head_lr=0.04, warmup=0.1, steps=25
    )
    half = driver.transfer("muon", TUNED["muon"], wider=1, larger=0.5)
    assert half["lr"] == 0.0354 and half["steps"] == 160 and half["nesterov"] is True
    # lr * weight decay * steps is how far a run forgets its weights: it stays.
    assert half["lr"] * half["weight_decay"] * 160 == pytest.approx(0.05 * 0.2 * 80, rel=0.01)


def test_settings_move_with_the_width_by_each_rule() -> None:
    adamw = driver.transfer("adamw", TUNED["adamw"], wider=2, larger=1)
    muon = driver.transfer("muon", TUNED["muon"], wider=2, larger=1)
    assert (adamw["lr"], adamw["head_lr"], adamw["weight_decay"]) == (0.005, 0.01, 0.1)
    assert (muon["lr"], muon["head_lr"], muon["weight_decay"]) == (0.05, 0.01, 0.1)
    assert adamw["embed_lr"] == muon["embed_lr"] == 1.0 and muon["steps"] == 80


def test_there_are_three_batches_and_three_widths() -> None:
    batches = {p.batch_tokens for p in driver.PLACES if p.width == driver.BASE_WIDTH}
    widths = {p.width for p in driver.PLACES if p.batch_tokens == driver.BASE_BATCH}
    assert len(batches) == 3 and widths == {64, 128, 256} and len(driver.PLACES) == 5
    assert len(driver.FACTORS) >= scale.TRIALS


def test_a_point_is_the_horizon_at_which_adamw_is_as_good(tmp_path: Path) -> None:
    losses = {75: [4.2, 4.2], 100: [4.0, 4.0], 200: [3.8, 3.8]}
    point = ScalePoint("scale-a", 128, 6144, 100)
    write_point(tmp_path, point, losses, [3.9, 3.9])
    (found,) = scale.measured(tmp_path / scale.SCALE)
    assert found.speedup.value == pytest.approx(math.sqrt(2))  # half of an octave
    assert (found.width, found.batch_tokens, found.bound) == (128, 6144, "")
    assert found.speedup.low == pytest.approx(found.speedup.value)  # seeds that never differ


@pytest.mark.parametrize(("loss", "bound", "ratio"), [(3.7, "over", 2.0), (4.3, "under", 0.75)])
def test_nothing_is_extrapolated(tmp_path: Path, loss: float, bound: str, ratio: float) -> None:
    losses = {75: [4.2, 4.2], 100: [4.0, 4.0], 200: [3.8, 3.8]}
    write_point(tmp_path, ScalePoint("scale-a", 128, 6144, 100), losses, [loss, loss])
    (found,) = scale.measured(tmp_path / scale.SCALE)
    assert (found.bound, found.speedup.value, found.speedup.low) == (
        bound,
        pytest.approx(ratio),
        None,
    )
    assert f"{bound} {ratio:.2f}x" in scale.markdown([found])


def test_the_newest_race_of_a_point_counts(tmp_path: Path) -> None:
    losses = {75: [4.2, 4.2], 100: [4.0, 4.0], 200: [3.8, 3.8]}
    for name, loss in (("scale-a", 3.9), ("scale-b", 4.0)):
        write_point(tmp_path, ScalePoint(name, 128, 6144, 100), losses, [loss, loss])
    (found,) = scale.measured(tmp_path / scale.SCALE)
    assert found.speedup.value == pytest.approx(1.0)


def test_points_that_their_runs_do_not_show_are_found(tmp_path: Path) -> None:
    write_scale(tmp_path)
    folder = tmp_path / scale.SCALE
    assert list(scale.problems(folder)) == []
    assert not [line for line in verify.problems(tmp_path) if "points" in line]
    wrong = [
        ScalePoint("unknown", 128, 6144, 60),
        ScalePoint("scale-w128-b3072-abc", 128, 6144, 120),
        ScalePoint("scale-w128-b6144-abc", 64, 6144, 61),
    ]
    for point in wrong:
        store.append(folder / "points.csv", point)
    found = "\n".join(verify.problems(tmp_path))
    assert "point unknown: no run of this race" in found
    assert "point scale-w128-b3072-abc: its runs do not take 6144 tokens a step" in found
    assert "muon ran to [60], not to 61 steps" in found
    assert "width 64 has models of different sizes" in found


def test_a_point_needs_its_trials(tmp_path: Path) -> None:
    write_scale(tmp_path)
    table = tmp_path / scale.SCALE / "tuning.csv"
    lines = [line for line in table.read_text().splitlines(True) if "muon:lr=0.05" not in line]
    table.write_text("".join(lines[:-1]))
    assert any("3 trials re-checked muon, not 4" in p for p in scale.problems(table.parent))


@pytest.mark.slow
def test_a_place_is_rechecked_raced_and_resumed(
    micro_track: speedrun.Track, micro_options: speedrun.Options, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "adamw": dict(lr=0.01, head_lr=0.01, weight_decay=0.1, steps=8),
        "muon": dict(lr=0.03, head_lr=0.01, weight_decay=0.1, steps=8),
    }
    place = driver.Place(width=64, batch_tokens=512)
    root = Path(micro_options.results)
    driver.race_place(micro_track, place, settings, micro_options, seeds=1)
    runs, trials = store.read_runs(root), store.read_trials(root)
    assert [(t.recipe, t.stage, t.steps) for t in trials] == [
        (recipe, "transfer", 4) for recipe in ("adamw", "muon") for _ in driver.FACTORS
    ]
    # In the order in which they end: they take turns.
    assert sorted(run.steps_planned for run in runs) == [3, 4, 4, 6, 8]
    (muon,) = (run for run in runs if run.label.startswith("muon"))
    best = min((t for t in trials if t.recipe == "muon"), key=lambda t: t.final_loss or math.inf)
    assert best.entrant.split("steps")[0] in muon.entrant
    assert store.read(root / "points.csv", ScalePoint) == [ScalePoint(runs[0].race, 64, 512, 4)]
    assert verify.problems(root) == [] and list(scale.problems(root)) == []
    driver.race_place(micro_track, place, settings, micro_options, seeds=1)
    assert store.read_runs(root) == runs and store.read_trials(root) == trials


def test_settings_that_are_not_tuned_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    section = tuned.Tuned("tiny", "muon", {"lr": 0.1}, steps=9)
    monkeypatch.setattr(tuned, "find", lambda *_: section)
    with pytest.raises(UserError, match="has no head_lr, weight_decay; run: python"):
        driver.base_settings("muon")


def test_no_seeds_are_no_race(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--seeds=0", f"--results={tmp_path / 'scale'}"]) == 2
    assert "--seeds 0: must be at least 1" in capsys.readouterr().err


def test_shards_share_the_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[driver.Place] = []
    monkeypatch.setattr(driver, "race_place", lambda base, place, *_: done.append(place))
    folder = f"--results={tmp_path / 'scale'}"
    for shard in ("1/2", "2/2"):
        assert driver.main([f"--shard={shard}", folder]) == 0
    assert sorted(done) == sorted(driver.PLACES)
    assert driver.main(["--shard=3/2", folder]) == 2


def test_published_figures_have_a_source_and_a_basis() -> None:
    points = scale.published()
    assert len(points) >= 6
    for point in points:
        assert point.reference and point.basis in ("steps", "tokens", "FLOPs", "seconds")
        assert point.how in ("stated", "from its logs")
        assert 1 < point.speedup_low <= point.speedup_high
        assert point.params_low <= point.params_high
    track3 = next(p for p in points if p.basis == "steps")
    assert track3.speedup_low == round(4950 / 3250, 2)


def test_the_chart_and_the_table_say_what_was_measured(tmp_path: Path) -> None:
    write_scale(tmp_path)
    inputs = load(tmp_path)
    figure = _make.draw(chart("scale"), inputs)
    by_size = {(m.width, m.batch_tokens): m for m in inputs.scale}
    low, high = by_size[128, 3072].speedup.value, by_size[128, 12288].speedup.value
    assert f"{low:.2f}x as many steps as Muon at 3,072" in title(figure)
    assert f"{high:.2f}x at 12,288" in title(figure)
    assert f"over {by_size[256, 6144].speedup.value:.2f}x at width 256" in title(figure)
    drawn = {y for axes in figure.axes for line in axes.lines for y in line.get_ydata()}
    assert {m.speedup.value for m in inputs.scale} <= drawn
    assert "| 256 | 6,144 | 3.70 M | over 2.00x |" in scale.markdown(inputs.scale)
