"""Charts of a race of seventeen: nothing overlaps, and the numbers are those of the statistics."""

import math
import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analysis.charts import _make, _style
from analysis.charts._inputs import Inputs, MissingDataError, load, newest_sweeps
from analysis.charts.lr_sensitivity import cost_of_error, learning_rate, sweep_title
from analysis.charts.pareto import probability
from analysis.stats import costs, speedup
from optim.entrants import split as split_entrant
from tests.rows import make_trial
from tests.scales import LRS, write_scale, write_sweeps
from tests.test_plots import (
    ADAMW,
    MB,
    MUON,
    TARGET,
    Plan,
    chart,
    drawn_boxes,
    texts,
    title,
    write_race,
    write_trials,
)
from tracking.schema import REACHED
from tracking.spelling import display_name, split
from tracking.store import read_trials

FIELD = [
    replace(ADAMW, horizon=110),
    replace(MUON, horizon=80),
    Plan("sgd", 150, 4.25, 1.0, 4 * MB),
    Plan("signum", 120, 3.93, 1.2, 4 * MB),
    Plan("lion", 112, 3.895, 1.5, 4 * MB),
    Plan("adafactor", 118, 3.9, 3.0, 1 * MB),
    Plan("soap", 84, 3.888, 150, 15 * MB),
    Plan("shampoo", 95, 3.894, 90, 11 * MB),
    Plan("moonlight", 82, 3.889, 11, 5 * MB),
    Plan("polar_express", 80, 3.889, 11, 5 * MB),
    Plan("normuon", 79, 3.888, 12, 5 * MB + 2**14),
    Plan("adamuon", 81, 3.887, 13, 8 * MB),
    Plan("muonh", 83, 3.89, 11, 5 * MB),
    Plan("muon_split", 80, 3.888, 12, 5 * MB),
    Plan("ademamix", 105, 3.896, 4, 12 * MB, diverged=2),  # one of three
    Plan("kron", 90, 3.89, 120, 10 * MB, diverged=3),
    Plan("schedule_free", 125, 3.9, 3.0, 8 * MB, diverged=1),
]
CHARTS = (
    "loss_curves", "time_to_target", "speedup", "loss_by_steps", "loss_by_seconds", "iso_loss",
    "pareto", "significance", "lr_sensitivity", "lr_sweep", "scale",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("field")
    write_race(root, [replace(plan, seeds=3) for plan in FIELD])
    names = [plan.label for plan in FIELD]
    write_trials(root, names, trials=8)
    write_sweeps(root, names)
    write_scale(root)
    return load(root)


@pytest.fixture(scope="module")
def figures(inputs: Inputs) -> dict[str, Figure]:
    return {name: _make.draw(chart(name), inputs) for name in CHARTS}


@pytest.mark.parametrize("name", CHARTS)
def test_nothing_overlaps_with_seventeen_entrants(
    name: str, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    with matplotlib.rc_context(_style.SETTINGS):
        boxes = drawn_boxes(figures[name], monkeypatch)
    assert len(boxes) > 8
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        both = Bbox.intersection(box_a, box_b)
        overlap = both is not None and both.width > 1 and both.height > 1
        assert not overlap, f"{name}: {a!r} overlaps {b!r}"
    page = figures[name].bbox
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        assert inside, f"{name}: {text!r} leaves the page"


def test_everybody_has_a_panel_that_says_what_the_target_cost(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    titles = [
        axes.get_title("left") for axes in figures["loss_by_steps"].axes if axes.get_visible()
    ]
    assert len(titles) == 17
    muon = next(e for e in inputs.entrants if e.label == "muon")
    cost = muon.cost("steps")
    assert cost and f"Muon\n{_style.number(cost.value)} steps" in titles
    assert "SGD\nmissed" in titles and "Kron\ndiverged" in titles
    axes = figures["loss_by_steps"].axes[titles.index("SGD\nmissed")]
    bold = [line for line in axes.lines if line.get_linewidth() > 2]
    sgd = next(e for e in inputs.entrants if e.label == "sgd")
    np.testing.assert_allclose(
        bold[0].get_ydata(), np.mean([[p.val_loss for p in c] for c in sgd.curves], axis=0)
    )


def test_few_entrants_keep_their_charts(tmp_path: Path) -> None:
    write_race(tmp_path, [replace(ADAMW, seeds=2), replace(MUON, seeds=2)])
    few = load(tmp_path)
    for name in ("loss_by_steps", "pareto", "significance", "lr_sweep", "scale"):
        with pytest.raises(MissingDataError, match="run: make "):
            _make.draw(chart(name), few)
    assert "loss_by_steps" not in " ".join(texts(_make.draw(chart("loss_curves"), few)))


def test_the_front_is_that_of_time_and_memory(inputs: Inputs, figures: dict[str, Figure]) -> None:
    points = {
        e.name: (max(r.state_bytes for r in e.runs), cost.value)
        for e in inputs.entrants
        if (cost := e.cost("seconds"))
    }
    front = {
        name
        for name, (state, time) in points.items()
        if not any(s <= state and t <= time and (s, t) != (state, time) for s, t in points.values())
    }
    assert "Adafactor" in front and len(front) > 1
    for name in points:
        assert (f"{name} (" in title(figures["pareto"])) == (name in front)
    assert "SGD: not reached" in texts(figures["pareto"])


def test_an_entrant_that_hardly_ever_reached_squeezes_no_axis(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    rare = next(e for e in inputs.entrants if e.label == "ademamix")
    cost = rare.cost("seconds")
    longest = max(run.train_seconds for run in inputs.runs)
    assert cost is not None and cost.low is None and cost.value > 1.5 * longest
    assert f"AdEMAMix: {_style.number(cost.value)} s" in texts(figures["pareto"])
    assert figures["pareto"].axes[0].get_ylim()[1] < cost.value
    assert _style.number(cost.value) in texts(figures["time_to_target"])
    assert figures["time_to_target"].axes[1].get_xlim()[1] < cost.value


def test_a_race_that_hardly_anybody_finished_is_drawn(tmp_path: Path) -> None:
    plans = [replace(ADAMW, horizon=110), replace(MUON, horizon=80), Plan("lion", 112, 3.895)]
    write_race(tmp_path, [replace(plan, seeds=3, diverged=2) for plan in plans])
    inputs = load(tmp_path)
    assert title(_make.draw(chart("pareto"), inputs)).startswith("By their means nobody is both")
    found = title(_make.draw(chart("iso_loss"), inputs))
    assert found.endswith("; not all runs of both reach 3.91, without those that diverged")


def test_the_title_names_who_is_first_and_how_many_are_as_good(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    first, *others = inputs.ranking("steps")
    pairs = inputs.pairs("steps")
    known = [pair for e in others if (pair := pairs.of(e.label, first.label)).ratio]
    near = sum(not pair.distinct for pair in known)
    always = sum(all(run.status == REACHED for run in e.runs) for e in inputs.entrants)
    some = sum(e.cost("steps") is not None for e in inputs.entrants) - always
    assert near > 1 and some > 1
    assert title(figures["loss_by_steps"]).startswith(
        f"{always} of 17 entrants reach the target with all runs, {some} with some; "
        f"in steps {first.name} is first ("
    )
    assert title(figures["loss_by_steps"]).endswith(f"), not told apart from {near} others")


def test_the_matrix_holds_every_pair_in_both_units(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    order = [entrant.label for entrant in inputs.ranking("seconds")]
    axes = figures["significance"].axes[0]
    cells = {
        (round(text.get_position()[1]), round(text.get_position()[0])): text.get_text()
        for text in axes.texts
    }
    assert len(cells) == 17 * 16
    colors = {
        (round(p.get_y() + 0.48), round(p.get_x() + 0.48)): matplotlib.colors.to_hex(
            p.get_facecolor()
        ).upper()
        for p in axes.patches
    }
    steps, seconds = inputs.pairs("steps"), inputs.pairs("seconds")
    for row, a in enumerate(order):
        for column, b in enumerate(order):
            if a == b:
                continue
            pair = (seconds if column > row else steps).of(b, a)
            if pair.ratio is None:
                assert cells[row, column] == "–"
                continue
            assert f"{pair.ratio.estimate.value:.2f}" in cells[row, column]
            assert pair.p is not None and cells[row, column].endswith(f"\n{probability(pair.p)}")
            wanted = "#EFEFEF"
            if pair.distinct:
                wanted = "#9CC9E8" if pair.ratio.estimate.value > 1 else "#F6B48A"
            assert colors[row, column] == wanted
    clear = sum(seconds.of(a, b).distinct for a, b in combinations(order, 2))
    assert title(figures["significance"]).startswith(f"Of 136 pairs, the seeds tell {clear} apart")
    assert 0 < clear < 136


def test_p_values_are_short() -> None:
    assert [probability(p) for p in (1e-9, 0.0123, 0.456, 1.0)] == ["<.001", ".012", ".46", "1"]


def test_the_speedup_at_the_target_is_that_of_the_race(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    adamw, other = inputs.baseline, inputs.ranking("seconds")[0]
    assert adamw is not None and all(run.status == REACHED for run in [*adamw.runs, *other.runs])
    ratio = speedup(costs(adamw.runs, "seconds"), costs(other.runs, "seconds"))
    assert ratio is not None
    value = ratio.estimate.value
    line = figures["iso_loss"].axes[0].lines[0]
    at = list(line.get_xdata()).index(TARGET)
    assert line.get_ydata()[at] == pytest.approx(value)
    assert f"{value:.2f}x as fast as AdamW to the target 3.91" in title(figures["iso_loss"])
    starts = [
        max(curve[0].val_loss for curve in e.finished()) for e in inputs.entrants if e.finished()
    ]
    assert max(line.get_xdata()) < min(starts)  # no loss that somebody meets at once
    assert "Meets no loss of the range: Kron." in figures["iso_loss"].texts[1].get_text().replace(
        "\n", " "
    )


def test_a_gain_of_which_one_part_is_within_chance_says_which(tmp_path: Path) -> None:
    """Fewer steps, each so much dearer that the time is the same."""
    write_race(tmp_path, [ADAMW, replace(MUON, optimizer_ms=MUON.optimizer_ms + 60)])
    found = title(_make.draw(chart("loss_curves"), load(tmp_path)))
    assert found.endswith(", of which the time may be chance")


def test_the_searches_of_many_are_told_as_a_range(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    """Who is first among neighbours is the luck of one seed."""
    title = figures["lr_sensitivity"].texts[0].get_text().replace("\n", " ")
    losses: dict[str, float] = {}
    for trial in inputs.trials:
        if trial.final_loss is not None:
            losses[trial.recipe] = min(trial.final_loss, losses.get(trial.recipe, math.inf))
    low, high = min(losses.values()), max(losses.values())
    assert re.fullmatch(rf"The best .* end between {low:.3f} \(.+\) and {high:.3f} \(.+\)", title)


def test_a_sweep_is_drawn_by_lr_around_the_tuned_one(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    panels = [axes for axes in figures["lr_sweep"].axes if axes.get_visible()]
    assert len(panels) == 17
    tuned = [line for line in panels[0].lines if list(line.get_xdata()) == [0.01, 0.01]]
    assert len(tuned) == 1
    curve = max(panels[0].lines, key=lambda line: len(line.get_xdata()))
    np.testing.assert_allclose(curve.get_xdata(), LRS, rtol=0.01)


def test_a_rule_that_diverges_beside_its_best_lr_is_not_the_most_tolerant() -> None:
    losses = {
        "adamw": [4.2, 4.1, 4.0, 3.9, 4.0, 4.1, 4.2],
        "lion": [3.93, 3.92, 3.91, 3.9, None, None, None],
        "muon": [3.9, 4.0, 4.1, 4.2, 4.3, 4.4, 4.5],  # best at the first
        "sgd": [None] * 7,
    }
    trials = {
        recipe: [
            make_trial(
                recipe=recipe, stage="sweep", trial=i, final_loss=loss, entrant=f"{recipe}:lr={lr}"
            )
            for i, (lr, loss) in enumerate(zip(LRS, values, strict=True))
        ]
        for recipe, values in losses.items()
    }
    between = 0.1 * math.log(2) / math.log(LRS[1] / LRS[0])
    assert cost_of_error(trials["adamw"]) == pytest.approx(between)
    assert cost_of_error(trials["lion"]) == math.inf
    assert cost_of_error(trials["muon"]) is None and cost_of_error(trials["sgd"]) is None
    assert sweep_title(trials) == (
        f"Half or twice the best lr costs AdamW {between:.3f} nats per token, Lion the run"
    )
    trials["soap"] = trials["adamw"]
    assert sweep_title(trials) == f"Half or twice the best lr costs from {between:.3f} to the run"


def test_only_the_newest_sweep_of_a_recipe_counts(tmp_path: Path) -> None:
    write_sweeps(tmp_path, ["adamw", "muon"])
    old = read_trials(tmp_path)
    new = [replace(t, entrant=t.entrant.replace("0.3", "0.4")) for t in old if t.recipe == "muon"]
    kept = newest_sweeps([*old, *new, replace(old[0], track_hash="77")], old[0].track_hash)
    assert kept == [*[t for t in old if t.recipe == "adamw"], *new]


def test_a_sweep_that_was_stopped_is_left_out(tmp_path: Path) -> None:
    write_sweeps(tmp_path, ["adamw", "muon"])
    *trials, last = read_trials(tmp_path)
    assert last.recipe == "muon"
    assert {t.recipe for t in newest_sweeps(trials, last.track_hash)} == {"adamw"}


def test_a_class_by_its_path_has_a_name_and_its_lr_is_read() -> None:
    labels = ["lib:heavyball.SOAP:lr=0.01", "lib:torch.optim.NAdam", "lib:torch.optim.RAdam"]
    labels.append("soap")
    assert [display_name(label) for label in labels] == [
        "heavyball.SOAP (lr=0.01)", "torch.NAdam", "torch.RAdam", "SOAP"
    ]  # fmt: skip
    names = _style.short_names([*labels, "lib:pytorch_optimizer.ScheduleFreeAdamW"])
    assert list(names.values())[:4] == ["heavyball.SOAP", "torch.NAdam", "torch.RAdam", "SOAP"]
    assert max(map(len, names.values())) <= 20
    trial = make_trial(recipe=labels[0][:-8], entrant=f"{labels[0]},betas=0.9/0.95,scope=matrices")
    assert learning_rate(trial) == 0.01
    assert split(labels[0]) == split_entrant(labels[0])  # which a reader of CSVs cannot import
