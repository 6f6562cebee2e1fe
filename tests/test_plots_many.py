"""Charts of a race of seventeen: nothing overlaps, and the numbers come from `stats`."""

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis.charts import _make, _style
from analysis.charts._inputs import Inputs, MissingDataError, load
from analysis.charts.lr_sweep import cost_of_error, sweep_title
from analysis.charts.significance import probability
from analysis.stats import costs, speedup
from analysis.sweep import learning_rate, newest_sweeps
from tests.races import (
    ADAMW,
    MUON,
    TARGET,
    Plan,
    assert_legible,
    caption,
    chart,
    texts,
    title,
    write_field,
    write_race,
)
from tests.rows import make_trial
from tests.scales import LRS, write_sweeps
from tracking.schema import REACHED
from tracking.spelling import display_name
from tracking.store import read_trials

CHARTS = (
    "loss_curves", "time_to_target", "speedup", "loss_by_steps", "loss_by_seconds", "iso_loss",
    "pareto", "significance", "lr_sensitivity", "lr_sweep", "scale", "tuning_curves",
)  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    root = tmp_path_factory.mktemp("field")
    write_field(root)
    return load(root)


@pytest.fixture(scope="module")
def figures(inputs: Inputs) -> dict[str, Figure]:
    return {name: _make.draw(chart(name), inputs) for name in CHARTS}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
def test_nothing_overlaps_with_seventeen_entrants(
    name: str, figures: dict[str, Figure], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_legible(figures[name], monkeypatch)


@pytest.mark.slow
def test_each_entrant_has_a_panel_that_says_what_the_target_cost(
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_race_that_few_runs_finished_is_drawn(tmp_path: Path) -> None:
    plans = [replace(ADAMW, horizon=110), replace(MUON, horizon=80), Plan("lion", 112, 3.895)]
    write_race(tmp_path, [replace(plan, seeds=3, diverged=2) for plan in plans])
    inputs = load(tmp_path)
    assert "On average no optimizer" in title(_make.draw(chart("pareto"), inputs))
    assert "not all runs of both reach 3.91" in title(_make.draw(chart("iso_loss"), inputs))


@pytest.mark.slow
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
    found = title(figures["loss_by_steps"])
    assert f"{always} of 17 " in found and f", {some} in some; {first.name} takes" in found
    assert f"{near} others" in found


@pytest.mark.slow
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
    assert title(figures["significance"]).startswith(f"{clear} of 136 pairs ")
    assert 0 < clear < 136


def test_p_values_are_short() -> None:
    assert [probability(p) for p in (1e-9, 0.0123, 0.456, 1.0)] == ["<.001", ".012", ".46", "1"]


@pytest.mark.slow
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
    assert max(line.get_xdata()) < min(starts)  # no loss that a run meets at its start
    assert "no loss of the range: Kron." in caption(figures["iso_loss"])


def test_a_gain_of_which_one_part_is_within_chance_says_which(tmp_path: Path) -> None:
    """Fewer steps, each so much dearer that the time is the same."""
    write_race(tmp_path, [ADAMW, replace(MUON, optimizer_ms=MUON.optimizer_ms + 60)])
    found = title(_make.draw(chart("loss_curves"), load(tmp_path)))
    assert "time may be chance" in found and "steps may be chance" not in found


@pytest.mark.slow
def test_the_searches_of_many_are_told_as_a_range(
    inputs: Inputs, figures: dict[str, Figure]
) -> None:
    """The order of neighbours is the luck of one seed."""
    losses: dict[str, float] = {}
    for trial in inputs.trials:
        if trial.final_loss is not None:
            losses[trial.recipe] = min(trial.final_loss, losses.get(trial.recipe, math.inf))
    low, high = min(losses.values()), max(losses.values())
    found = title(figures["lr_sensitivity"])
    assert f"{low:.3f} (" in found and f"{high:.3f} (" in found


@pytest.mark.slow
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
    assert f"AdamW loses {between:.3f} nats per token, Lion diverges" in sweep_title(trials)
    trials["soap"] = trials["adamw"]
    assert sweep_title(trials).endswith(
        f"by at least {between:.3f} nats per token, and 1 of 3 optimizers diverge"
    )


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
