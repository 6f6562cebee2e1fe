"""Charts from synthetic CSVs: numbers equal the statistics, nothing overlaps, bytes repeat."""

import contextlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from analysis.charts import _make, _style
from analysis.charts._inputs import MissingDataError, load, split
from analysis.charts.lr_sensitivity import learning_rate, lr_sensitivity
from analysis.stats import costs, expected_cost, speedup
from analysis.table import summarise
from tests.rows import SOURCE, make_logits, make_points, make_run, make_trial
from tracking.crossing import crossing
from tracking.schema import DIVERGED, MISSED, REACHED, Run, Validation
from tracking.store import append, read_curve, read_runs, read_trials, record

TARGET = 3.91
TOKENS_PER_STEP = 4096
MB = 10**6


@dataclass(frozen=True)
class Plan:
    """One entrant of a synthetic race."""

    label: str
    horizon: int = 130
    final: float = 3.90  # mean validation loss at the horizon
    optimizer_ms: float = 2.0
    state_bytes: int = 8 * MB
    seeds: int = 5
    diverged: int = 0  # how many of its seeds, the last ones
    forward_backward_ms: float = 225.0


ADAMW = Plan("adamw", final=3.897)
MUON = Plan("muon", horizon=95, final=3.888, optimizer_ms=11.0, state_bytes=5 * MB)
CROWD = [
    ADAMW,
    MUON,
    Plan("normuon:beta2=0.9", horizon=92, final=3.885, optimizer_ms=12),
    Plan("lion", horizon=140, final=3.95, optimizer_ms=1.5, state_bytes=4 * MB),
    Plan("soap", horizon=100, final=3.88, optimizer_ms=150, state_bytes=30 * MB),
    Plan("adamw:lr=0.01,weight_decay=0.0,warmup=10", horizon=130, final=3.94, diverged=2),
    Plan("muon:momentum=0.9,nesterov=false,ns_steps=3,lr=0.04", horizon=105, final=3.90),
    Plan("muon:momentum=0.9,nesterov=false,ns_steps=4", horizon=100, final=3.89),
    Plan("sgd", horizon=150, final=4.4, state_bytes=0, optimizer_ms=1),
    Plan("shampoo", horizon=110, diverged=3, seeds=3),
]


def curve(plan: Plan, seed: int, rng: np.random.Generator) -> list[Validation]:
    """Losses that fall as real ones do, noise of 0.01, validations dense near the end."""
    diverges = seed >= plan.seeds - plan.diverged
    dense = range(int(0.8 * plan.horizon), plan.horizon, 4)
    steps = [0, *range(30, int(0.8 * plan.horizon), 30), *dense, plan.horizon]
    step_ms = (plan.forward_backward_ms + plan.optimizer_ms + 1) * rng.normal(1, 0.015)
    level, end = rng.normal(0, 0.009), 1 / (1 + plan.horizon / 12)
    points = []
    for step in steps[:4] if diverges else steps:
        fall = (1 / (1 + step / 12) - end) / (1 - end)
        loss = plan.final + (6.93 - plan.final) * fall + level + rng.normal(0, 0.003)
        if diverges and step == steps[3]:
            loss = 5.5
        points.append(
            Validation(
                step=step,
                tokens=step * TOKENS_PER_STEP,
                train_seconds=step * step_ms / 1000,
                train_loss=loss - 0.02 if step else None,
                val_loss=float(loss) if step else 6.93,
                lr=0.01,
                grad_norm=1.0,
                step_ms=float(step_ms),
                optimizer_ms=plan.optimizer_ms,
                peak_memory_bytes=900 * MB,
            )
        )
    return points


def run_of(plan: Plan, seed: int, points: Sequence[Validation], race: str, started: str) -> Run:
    met = None if seed >= plan.seeds - plan.diverged else crossing(points, TARGET)
    last = points[-1]
    optimizer = last.step * plan.optimizer_ms / 1000
    return make_run(
        list(points),
        started=started,
        label=plan.label,
        seed=seed,
        device="Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
        race=race,
        run=f"{race}-{plan.label.replace(':', '-')}-s{seed}",
        status=REACHED if met else MISSED if last.step == plan.horizon else DIVERGED,
        target=TARGET,
        steps_planned=plan.horizon,
        steps_to_target=met.step if met else None,
        tokens_to_target=met.tokens if met else None,
        seconds_to_target=met.seconds if met else None,
        data_seconds=last.step * 0.8 / 1000,
        forward_backward_seconds=last.train_seconds - optimizer - last.step * 0.9 / 1000,
        optimizer_seconds=optimizer,
        param_bytes=4 * MB,
        grad_bytes=4 * MB,
        state_bytes=plan.state_bytes,
        peak_memory_bytes=(900 + seed) * MB,
    )


def write_race(
    root: Path, plans: Sequence[Plan], race: str = "r1", started: str = "2025-11-24T04:00:00"
) -> None:
    """Writes the rows and curves of one race, as `speedrun.py` does."""
    rng = np.random.default_rng(7)
    for seed in range(max(plan.seeds for plan in plans)):
        for plan in plans:
            if seed < plan.seeds:
                points = curve(plan, seed, rng)
                run = run_of(plan, seed, points, race, started)
                record(root, run, points, SOURCE, make_logits(points, grows=1.5 + 0.1 * seed))


def write_trials(root: Path, recipes: Sequence[str] = ("adamw", "muon"), trials: int = 32) -> None:
    """Writes search trials whose loss is a bowl in log lr, each recipe with its own optimum."""
    rng = np.random.default_rng(3)
    for index, recipe in enumerate(recipes):
        low, high = (-3.5, -1.5) if index == 0 else (-2.5, -0.5)
        for trial in range(trials):
            x = low + (high - low) * ((trial * 0.618) % 1)
            away = x - (low + high) / 2
            loss = 3.9 - 0.02 * index + 0.35 * away**2 + abs(rng.normal(0, 0.08))
            diverged = away > 0.8
            lr, decay = 10**x, rng.uniform(0, 0.2)
            append(
                root / "tuning.csv",
                make_trial(
                    recipe=recipe,
                    entrant=f"{recipe}:lr={lr:.4g},weight_decay={decay:.3g},embed_lr=0.01",
                    trial=trial,
                    status="diverged" if diverged else "finished",
                    final_loss=None if diverged else float(loss),
                ),
            )


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdamW against Muon, five seeds each, and the trials that tuned them."""
    root = tmp_path_factory.mktemp("duel")
    write_race(root, [ADAMW, MUON])
    write_trials(root)
    return root


@pytest.fixture(scope="module")
def figures(duel: Path) -> dict[str, Figure]:
    inputs, drawn = load(duel), {}
    for each in _make.CHARTS:
        with contextlib.suppress(MissingDataError):  # charts of more entrants: test_plots_many
            drawn[each.name] = _make.draw(each, inputs)
    assert len(drawn) >= 7
    return drawn


def chart(name: str) -> _make.Chart:
    return next(chart for chart in _make.CHARTS if chart.name == name)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def title(figure: Figure) -> str:
    return figure.texts[0].get_text().replace("\n", " ")


def drawn_boxes(figure: Figure, patch: pytest.MonkeyPatch) -> list[tuple[str, Bbox]]:
    """Every text that is really drawn, and where, in pixels."""
    seen: list[Text] = []
    draw = Text.draw

    def record_and_draw(self: Text, renderer: Any) -> None:
        if self.get_visible() and self.get_text().strip():
            seen.append(self)
        draw(self, renderer)

    patch.setattr(Text, "draw", record_and_draw)
    with matplotlib.rc_context(_style.SETTINGS):
        figure.draw_without_rendering()
    # Of an annotation, the words without their arrow.
    return [(text.get_text(), Text.get_window_extent(text)) for text in seen]


# ---- Everything is drawn -----------------------------------------------------------------------


def test_the_command_draws_every_chart_and_repeats_its_bytes(
    duel: Path, figures: dict[str, Figure], tmp_path: Path
) -> None:
    """Once in this process and once in another, with other hashes, nothing differs."""
    repository = Path(_make.__file__).parents[2]
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    command = [sys.executable, "-m", "analysis.charts", "--root", str(duel), "--out", str(there)]
    environment = os.environ | {"PYTHONHASHSEED": "1", "MPLBACKEND": "svg"}
    other = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert other.returncode == 0, other.stderr
    for name, figure in figures.items():
        paths = _make.save(figure, here / name)
        files = " ".join(str(there / path.name) for path in paths)
        assert f"{name}: {files}" in other.stdout.splitlines()
        for path in paths:
            assert path.read_bytes() == (there / path.name).read_bytes(), path.name
    assert b"<dc:date>" not in (here / "speedup.svg").read_bytes()


def test_importing_has_no_effects() -> None:
    code = (
        "import sys, matplotlib, analysis.charts;"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules);"
        "assert matplotlib.rcParams['svg.hashsalt'] is matplotlib.rcParamsDefault['svg.hashsalt']"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(_make.__file__).parents[2], check=True)


@pytest.mark.parametrize("case", ["duel", "crowd", "failures"])
def test_no_text_overlaps_or_leaves_the_page(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = {
        "duel": [ADAMW, MUON],
        "crowd": [replace(plan, seeds=3) for plan in CROWD],
        "failures": [replace(ADAMW, final=4.0), replace(MUON, final=3.99, diverged=1)],
    }
    write_race(tmp_path, plans[case])
    write_trials(tmp_path, {"duel": ["adamw", "muon"], "crowd": ["a", "b", "c", "d"]}.get(case, []))
    inputs = load(tmp_path)
    for each in _make.CHARTS:
        try:
            figure = _make.draw(each, inputs)
        except MissingDataError:
            continue
        with monkeypatch.context() as patch:
            boxes = drawn_boxes(figure, patch)
        assert len(boxes) > 8
        for (a, box_a), (b, box_b) in combinations(boxes, 2):
            both = Bbox.intersection(box_a, box_b)
            overlap = both is not None and both.width > 1 and both.height > 1
            assert not overlap, f"{each.name}: {a!r} overlaps {b!r}"
        for text, box in boxes:
            inside = box.x0 >= 0 and box.y0 >= 0
            inside &= box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
            assert inside, f"{each.name}: {text!r} leaves the page"


# ---- The numbers are those of the statistics ---------------------------------------------------


def test_loss_curves_name_the_crossings_and_the_savings(
    duel: Path, figures: dict[str, Figure]
) -> None:
    runs = read_runs(duel)
    adamw, muon = ([run for run in runs if run.label == label] for label in ("adamw", "muon"))
    steps, time = (speedup(costs(adamw, u), costs(muon, u)) for u in ("steps", "seconds"))
    assert steps and time and steps.estimate.low and steps.estimate.low > 1
    assert title(figures["loss_curves"]) == (
        f"Muon reaches loss 3.91 in {1 - 1 / steps.estimate.value:.1%} fewer steps "
        f"and {1 - 1 / time.estimate.value:.1%} less time than AdamW"
    )
    shown = texts(figures["loss_curves"])
    for name, group in (("AdamW", adamw), ("Muon", muon)):
        met = [crossing(read_curve(duel, run.run), TARGET) for run in group]
        values = [point for point in met if point is not None]
        assert len(values) == 5
        assert f"{name} {_style.number(np.mean([v.step for v in values]))}" in shown
        assert f"{name} {_style.number(np.mean([v.tokens for v in values]) / 1e3)} k" in shown
        assert f"{name} {_style.number(np.mean([v.seconds for v in values]))} s" in shown


def test_loss_curves_draw_mean_and_range_of_the_seeds(
    duel: Path, figures: dict[str, Figure]
) -> None:
    curves = [read_curve(duel, run.run) for run in read_runs(duel) if run.label == "muon"]
    losses = np.array([[point.val_loss for point in curve] for curve in curves])
    axes = figures["loss_curves"].axes[0]
    steps = [point.step for point in curves[0]]
    lines = [line for line in axes.lines if list(line.get_xdata()) == steps]
    assert len(lines) == 1
    np.testing.assert_allclose(lines[0].get_ydata(), losses.mean(0))
    band = axes.collections[1].get_paths()[0].vertices
    for step, low, high in zip(steps, losses.min(0), losses.max(0), strict=True):
        at = band[band[:, 0] == step, 1]
        np.testing.assert_allclose((at.min(), at.max()), (low, high))


def test_time_to_target_shows_every_run_and_the_interval(
    duel: Path, figures: dict[str, Figure]
) -> None:
    figure = figures["time_to_target"]
    runs = [run for run in read_runs(duel) if run.label == "muon"]
    estimate = expected_cost(costs(runs, "steps"))
    assert estimate and estimate.low and estimate.high
    low, high = _style.number(estimate.low), _style.number(estimate.high)
    assert f"{_style.number(estimate.value)}\n{low} to {high}" in texts(figure)
    dots = {line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "s"}
    assert dots == {run.steps_to_target for run in runs}


def test_failed_runs_are_open_or_crossed_at_what_they_spent(tmp_path: Path) -> None:
    write_race(tmp_path, [replace(ADAMW, final=4.0, diverged=1), MUON])
    inputs = load(tmp_path)
    figure = _make.draw(chart("time_to_target"), inputs)
    runs = [run for run in read_runs(tmp_path) if run.label == "adamw"]
    assert sorted(run.status for run in runs) == [DIVERGED] + [MISSED] * 4
    by_marker: dict[str, list[float]] = {"o": [], "x": []}
    for line in figure.axes[1].lines:
        if line.get_color() == _style.RESERVED["adamw"] and line.get_marker() in by_marker:
            assert line.get_marker() == "x" or line.get_markerfacecolor() == "white"
            by_marker[line.get_marker()] += list(line.get_xdata())
    assert by_marker["o"] == [run.train_seconds for run in runs if run.status == MISSED]
    assert by_marker["x"] == [run.train_seconds for run in runs if run.status == DIVERGED]
    assert "not reached" in texts(figure)
    assert title(figure).endswith("AdamW does not reach it")
    # There is a bound of the speed-up; neither a title nor a bar gives it as its value.
    assert title(_make.draw(chart("loss_curves"), inputs)).endswith("AdamW does not reach it")
    assert split(*inputs.entrants) is None


def test_the_speedup_is_the_product_of_its_factors(duel: Path, figures: dict[str, Figure]) -> None:
    adamw, muon = load(duel).entrants
    parts = split(adamw, muon)
    assert parts and parts.step.low and parts.step.high
    product = parts.samples.estimate.value * parts.step.value
    assert product == pytest.approx(parts.clock.estimate.value)
    assert parts.step.low < parts.step.value < parts.step.high < 1  # Muon's step costs more
    assert parts.step.value == pytest.approx(adamw.step_ms() / muon.step_ms(), rel=0.01)
    steps, step, clock = figures["speedup"].axes[0].patches
    assert steps.get_width() == pytest.approx(parts.samples.estimate.value - 1)
    assert step.get_x() == pytest.approx(parts.samples.estimate.value)
    assert step.get_x() + step.get_width() == pytest.approx(parts.clock.estimate.value)
    assert clock.get_width() == pytest.approx(parts.clock.estimate.value - 1)
    assert title(figures["speedup"]).startswith(
        f"Muon is {parts.clock.estimate.value:.2f}x as fast as AdamW"
    )


def test_a_gain_within_chance_says_so(tmp_path: Path) -> None:
    write_race(tmp_path, [ADAMW, replace(MUON, horizon=130, final=3.897, optimizer_ms=2.0)])
    inputs = load(tmp_path)
    for name in ("loss_curves", "speedup"):
        assert title(_make.draw(chart(name), inputs)).endswith(", which may be chance")


def widths(axes: Axes) -> dict[int, list[float]]:
    """The segments of each row of stacked bars."""
    rows: dict[int, list[float]] = {}
    for bar in axes.patches:
        rows.setdefault(round(bar.get_y() + bar.get_height() / 2), []).append(bar.get_width())
    return rows


def test_bars_are_the_rows_of_the_report(duel: Path, figures: dict[str, Figure]) -> None:
    whole, around = figures["step_time"].axes
    for index, row in enumerate(summarise(read_runs(duel))):
        assert sum(widths(whole)[index]) == pytest.approx(row.step_ms)
        assert widths(around)[index][0] == pytest.approx(row.optimizer_ms)
    memory, peak = figures["memory"].axes
    assert widths(memory) == {0: [4, 4, 8], 1: [4, 4, 5]}
    assert widths(peak) == {0: [904], 1: [904]}
    assert title(figures["memory"]).endswith("38% less than AdamW")


def test_lr_sensitivity_rings_the_best_and_crosses_the_diverged(
    duel: Path, figures: dict[str, Figure]
) -> None:
    trials = read_trials(duel)
    assert len(figures["lr_sensitivity"].axes) == 2
    for axes, recipe in zip(figures["lr_sensitivity"].axes, ("adamw", "muon"), strict=True):
        mine = [trial for trial in trials if trial.recipe == recipe]
        best = min((t for t in mine if t.final_loss), key=lambda t: t.final_loss or math.inf)
        rings = [line for line in axes.lines if line.get_markersize() == 11]
        assert [(*ring.get_xdata(), *ring.get_ydata()) for ring in rings] == [
            (learning_rate(best), best.final_loss)
        ]
        crosses = {x for line in axes.lines if line.get_marker() == "x" for x in line.get_xdata()}
        assert crosses == {learning_rate(t) for t in mine if t.status == DIVERGED} != set()
        assert axes.get_xscale() == "log"


def test_only_trials_that_can_be_compared_are_drawn(duel: Path, tmp_path: Path) -> None:
    write_race(tmp_path, [replace(ADAMW, seeds=1)])
    trial = replace(read_trials(duel)[0], track_hash=read_runs(tmp_path)[0].track_hash)
    others: list[dict[str, Any]] = [{"track_hash": "77"}, {"stage": "confirm"}, {"steps": 90}]
    begun_anew = {"entrant": f"{trial.entrant},frequency=10", "trial": trial.trial}
    for change in [*others, begun_anew, {}]:
        append(tmp_path / "tuning.csv", replace(trial, **change))
    assert load(tmp_path).trials == [trial]


def test_panels_fill_the_sheet_when_no_trial_diverged(duel: Path, tmp_path: Path) -> None:
    finished = [t for t in read_trials(duel) if t.status != DIVERGED and t.final_loss]
    typical = statistics.median(t.final_loss or 0.0 for t in finished)
    for trial in finished:
        append(tmp_path / "tuning.csv", replace(trial, final_loss=typical + trial.trial * 1e-4))
    figure = lr_sensitivity(load(tmp_path))
    _style.settle(figure)
    assert sum(axes.get_position().width for axes in figure.axes) > 0.7


@pytest.mark.parametrize(
    ("entrant", "lr"),
    [
        ("muon:lr=2e-2,embed_lr=0.3", 0.02),
        ("muon:embed_lr=0.3,lr=0.5", 0.5),
        ("muon:embed_lr=0.3", None),
        ("muon", None),
    ],
)
def test_learning_rate_is_the_option_lr_alone(duel: Path, entrant: str, lr: float | None) -> None:
    assert learning_rate(replace(read_trials(duel)[0], entrant=entrant)) == lr


# ---- What is missing ---------------------------------------------------------------------------


def run_make(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = _make.main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_without_runs_it_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_make(capsys, "--root", tmp_path, "--out", tmp_path / "charts")
    assert (code, out) == (2, "")
    assert err.strip() == f"no runs in {tmp_path / 'runs.csv'}; run: make speedrun"
    assert not (tmp_path / "charts").exists()


def test_an_unknown_race_is_refused(duel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_make(capsys, "--root", duel, "--race", "nope")
    assert code == 2
    assert "'nope'" in err and "r1" in err


def test_a_folder_that_cannot_be_written_is_refused(
    duel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    code, _, err = run_make(capsys, "--root", duel, "--out", tmp_path / "file")
    assert code == 2
    assert err.startswith("cannot write charts to")


def test_a_chart_that_lacks_its_input_is_skipped_and_its_old_file_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # it takes long
    write_race(tmp_path, [replace(ADAMW, seeds=1)])
    stale = [tmp_path / "speedup.png", tmp_path / "lr_sensitivity.svg"]
    for path in stale:
        path.touch()
    code, out, _ = run_make(capsys, "--root", tmp_path, "--out", tmp_path)
    assert code == 0
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == [chart.name for chart in _make.CHARTS]
    assert lines["speedup"].startswith("skipped, it needs adamw and another entrant; run: ")
    assert lines["lr_sensitivity"].startswith("skipped, no search trials in tuning.csv; run: ")
    assert lines["memory"] == f"{tmp_path / 'memory.png'} {tmp_path / 'memory.svg'}"
    assert not any(path.exists() for path in stale)


def test_trials_without_a_race_are_still_drawn(tmp_path: Path) -> None:
    write_trials(tmp_path, ["adamw"])
    lines = _make.make(tmp_path, tmp_path / "charts")
    assert lines[0] == "loss_curves: skipped, no race in runs.csv; run: make speedrun"
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == [
        "lr_sensitivity.png",
        "lr_sensitivity.svg",
    ]


def test_nobody_reaches_the_target(tmp_path: Path) -> None:
    write_race(tmp_path, [replace(ADAMW, final=4.0), replace(MUON, final=3.99)])
    inputs = load(tmp_path)
    assert title(_make.draw(chart("loss_curves"), inputs)).startswith("No run reaches")
    assert title(_make.draw(chart("time_to_target"), inputs)) == "No run reaches loss 3.91"
    with pytest.raises(MissingDataError, match="must both reach 3.91"):
        _make.draw(chart("speedup"), inputs)


def test_the_newest_race_is_drawn_unless_another_is_named(tmp_path: Path) -> None:
    write_race(tmp_path, [replace(MUON, seeds=1)], "new", "2025-12-02T00:00:00")
    write_race(tmp_path, [replace(ADAMW, seeds=1)], "old", "2025-12-01T00:00:00")
    assert {run.race for run in load(tmp_path).runs} == {"new"}
    assert {run.race for run in load(tmp_path, ["old"]).runs} == {"old"}


# ---- Style -------------------------------------------------------------------------------------


def test_a_title_leaves_out_options_that_would_run_off_its_line(tmp_path: Path) -> None:
    long = "muon:lr=0.107,weight_decay=0.0439,embed_lr=1.7,head_lr=0.0431,vector_lr=0.00184"
    for label, last in (("adamw", 3.9), ("muon-split:lr=0.1", 3.8), (long, 3.7)):
        for seed in range(2):
            points = make_points(floor=last + 0.01 * seed)
            run = make_run(points, label=label, entrant=label, seed=seed, run=f"{label[:9]}-{seed}")
            record(tmp_path, run, points, SOURCE)
    names = [entrant.name for entrant in load(tmp_path).entrants]
    assert names == ["AdamW", "Muon Split (lr=0.1)", "Muon"]


def test_an_entrant_keeps_its_look_whoever_else_races() -> None:
    history = [f"recipe{i}" for i in range(14)]
    crowd = _style.looks([*history, "adamw", "muon"], ["muon", "adamw", *history])
    assert len({(look.color, look.marker, str(look.dashes)) for look in crowd.values()}) == 16
    assert crowd["adamw"].color == _style.RESERVED["adamw"]
    assert crowd["muon"].color == _style.RESERVED["muon"]
    for name in [*history, "adamw", "muon"]:
        assert _style.looks([*history, "newcomer"], [name, "newcomer"])[name] == crowd[name]


def test_two_entrants_of_a_race_never_look_alike() -> None:
    history = [f"recipe{i}" for i in range(_style.SLOTS + 1)]
    first, last = _style.looks(history, [history[0], history[-1]]).values()
    assert first != last


def test_letters_can_be_read_on_white() -> None:
    """A contrast of 4.5 to 1, as WCAG 2 asks of text of this size."""
    names = ["adamw", "muon", *(f"recipe{i}" for i in range(6))]
    for name, look in _style.looks(names, names).items():
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in look.text]
        luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
        assert 1.05 / (luminance + 0.05) >= 4.5, name


def test_short_names_stay_apart() -> None:
    labels = [plan.label for plan in CROWD]
    names = _style.short_names([*labels, "muon:lr=0.1", "muon:lr=0.2"])
    assert len(set(names.values())) == len(labels) + 2
    assert names["soap"] == "SOAP"
    assert names["muon:momentum=0.9,nesterov=false,ns_steps=4"] == "Muon ns_steps=4"
    assert max(map(len, names.values())) <= 24
