"""Charts from synthetic CSVs: numbers equal the statistics, nothing overlaps, bytes repeat."""

import contextlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.charts import _make, _style
from analysis.charts._inputs import Inputs, MissingDataError, load
from analysis.charts._ratios import decompose
from analysis.stats import costs, expected_cost, speedup
from analysis.sweep import learning_rate
from analysis.table import summarise
from tests.races import (
    ADAMW,
    CROWD,
    HOSTILE,
    MUON,
    TARGET,
    assert_legible,
    chart,
    texts,
    title,
    write_field,
    write_race,
    write_trials,
)
from tests.rows import SOURCE, make_points, make_run
from tracking.crossing import crossing
from tracking.schema import DIVERGED, MISSED
from tracking.spelling import DISPLAY_NAMES
from tracking.store import append, read_curve, read_runs, read_trials, record


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdamW against Muon, five seeds each, and the trials that tuned them."""
    root = tmp_path_factory.mktemp("duel")
    write_duel(root)
    return root


@pytest.fixture(scope="module")
def figures(duel: Path) -> dict[str, Figure]:
    inputs, drawn = load(duel), {}
    for each in _make.charts():
        with contextlib.suppress(MissingDataError):  # charts of more entrants: test_plots_many
            drawn[each.name] = _make.draw(each, inputs)
    assert len(drawn) >= 7
    return drawn


# ---- Everything is drawn -----------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_draws_every_chart_and_repeats_its_bytes(
    duel: Path, figures: dict[str, Figure], tmp_path: Path
) -> None:
    """Here and in another process, with other hashes and a user's own style, nothing differs."""
    repository = Path(_make.__file__).parents[2]
    there, here = tmp_path / "there", tmp_path / "here"
    here.mkdir()
    command = [sys.executable, "-m", "analysis.charts", "--root", str(duel), "--out", str(there)]
    (tmp_path / "matplotlibrc").write_text(HOSTILE, "utf-8")
    environment = os.environ | {
        "PYTHONHASHSEED": "1", "MPLBACKEND": "svg", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "SOURCE_DATE_EPOCH": "1", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "9",
    }  # fmt: skip
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


@pytest.mark.slow
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
    for each in _make.charts():
        with contextlib.suppress(MissingDataError):
            assert_legible(_make.draw(each, inputs), monkeypatch)


# ---- The words agree with the golden folder ----------------------------------------------------


def write_failures(root: Path) -> None:
    """No run reaches the target."""
    write_race(root, [replace(ADAMW, final=4.0), replace(MUON, final=3.99, diverged=1)])


def write_rare(root: Path) -> None:
    """One of AdamW's runs diverges; all other runs reach the target."""
    write_race(root, [replace(ADAMW, final=3.91, diverged=1), replace(MUON, final=3.9)])


def write_chance(root: Path) -> None:
    """Two optimizers that differ by chance alone."""
    write_race(root, [ADAMW, replace(MUON, horizon=130, final=3.897, optimizer_ms=2.0)])


def write_tracks(root: Path) -> None:
    """Two entrants on one track, one of them on another."""
    for track, label, low in (("b", "muon", 3.6), ("b", "muon-split", 3.5), ("a", "muon", 3.4)):
        for seed in range(3):
            run = make_run(track=track, label=label, entrant=label, seed=seed, race=track)
            run = replace(run, run=f"{track}-{label}-{seed}", final_loss=low + 0.01 * seed)
            record(root, run, make_points(), SOURCE)


def write_duel(root: Path) -> None:
    """AdamW against Muon, five seeds each, and the trials that tuned them."""
    write_race(root, [ADAMW, MUON])
    write_trials(root)


CASES: dict[str, tuple[Callable[[Path], None], Sequence[str]]] = {
    "two optimizers": (write_duel, ()),
    "seventeen optimizers": (write_field, ()),
    "no run reaches the target": (write_failures, ()),
    "some runs fail": (write_rare, ()),
    "no difference": (write_chance, ()),
    "two tracks": (write_tracks, ("b", "a")),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Inputs]:
    inputs = {}
    for name, (write, races) in CASES.items():
        root = tmp_path_factory.mktemp("case")
        write(root)
        inputs[name] = load(root, races)
    return inputs


def words(chart: _make.Chart, inputs: Inputs) -> str:
    """Title, caption, footer and axis labels of a chart, or why it is not drawn."""
    try:
        figure = _make.draw(chart, inputs)
    except MissingDataError as reason:
        return f"skipped: {reason}"
    lines = [text.get_text().replace("\n", " ") for text in figure.texts]
    for axes in figure.axes:
        lines += [axes.get_xlabel(), axes.get_ylabel().replace("\n", " ")]
    return "\n".join(dict.fromkeys(filter(None, lines)))


@pytest.mark.slow
@pytest.mark.parametrize("each", _make.charts(), ids=lambda chart: chart.name)
def test_the_words_of_a_chart_are_in_the_golden_folder(
    each: _make.Chart, cases: dict[str, Inputs], golden: Callable[[str, str], None]
) -> None:
    """A change of words is reviewed as a diff of tests/golden; --rewrite-golden writes it."""
    sections: dict[str, list[str]] = {}
    for case, inputs in cases.items():
        sections.setdefault(words(each, inputs), []).append(case)
    text = "\n\n".join(f"# {', '.join(names)}\n{found}" for found, names in sections.items())
    golden(f"charts/{each.name}", text + "\n")


def test_the_golden_folder_holds_no_other_charts() -> None:
    golden = {path.stem for path in (Path(__file__).parent / "golden" / "charts").iterdir()}
    assert golden == {chart.name for chart in _make.charts()}


# ---- The committed charts ----------------------------------------------------------------------


def test_the_committed_charts_are_those_of_the_table() -> None:
    root = Path(_make.__file__).parents[2]
    drawn = {str(path.relative_to(root / "plots")) for path in (root / "plots").glob("*/*.*")}
    committed = {name for name in drawn if not name.startswith("scale/")}  # the planner's
    tables = {record: figures.charts for record, figures in _make.FIGURES.items()}
    tables["published"] = tuple(_make.published_charts())
    assert committed == {
        f"{record}/{name}{suffix}"
        for record, names in tables.items()
        for name in names
        for suffix in (".png", ".svg")
    }


def test_figures_draws_the_charts_of_each_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, plots = tmp_path / "records" / "duel", tmp_path / "plots"
    write_race(root, [replace(ADAMW, seeds=1)], "cited", "2025-12-01T00:00:00")
    write_race(root, [replace(MUON, seeds=1)], "newer", "2025-12-02T00:00:00")
    monkeypatch.setattr(_make, "FIGURES", {"duel": _make.Figures(("memory",), ("cited",))})
    monkeypatch.setattr(_make, "RECORDS", root.parent)
    monkeypatch.setattr(_make, "PLOTS", plots)
    monkeypatch.setattr(_make, "published_charts", lambda: {})  # test_published draws them
    assert run_make(capsys, "--figures")[0] == 0
    once = (plots / "duel" / "memory.png").read_bytes()
    assert _make.make(root, tmp_path, ["cited"], [chart("memory")])
    assert (tmp_path / "memory.png").read_bytes() == once
    code, _, error = run_make(capsys, "--figures", "--race", "newer")
    assert (code, error) == (
        2,
        "analysis.charts: --figures: takes no other option; leave the others out\n",
    )


# ---- The numbers come from the statistics ------------------------------------------------------


def test_loss_curves_name_the_crossings_and_the_savings(
    duel: Path, figures: dict[str, Figure]
) -> None:
    runs = read_runs(duel)
    adamw, muon = ([run for run in runs if run.label == label] for label in ("adamw", "muon"))
    steps, time = (speedup(costs(adamw, u), costs(muon, u)) for u in ("steps", "seconds"))
    assert steps and time and steps.estimate.low and steps.estimate.low > 1
    assert f"{1 - 1 / steps.estimate.value:.1%} fewer steps" in title(figures["loss_curves"])
    assert f"{1 - 1 / time.estimate.value:.1%} less time" in title(figures["loss_curves"])
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
    # There is a bound of the speed-up; neither a title nor a bar gives it as its value.
    for name in ("time_to_target", "loss_curves"):
        assert "AdamW does not reach it" in title(_make.draw(chart(name), inputs))
    assert decompose(*inputs.entrants, None) is None


def test_the_speedup_is_the_product_of_its_factors(duel: Path, figures: dict[str, Figure]) -> None:
    adamw, muon = load(duel).entrants
    parts = decompose(adamw, muon, None)
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
    assert f"{parts.clock.estimate.value:.2f}x as fast" in title(figures["speedup"])


def test_a_gain_within_chance_says_so(tmp_path: Path) -> None:
    write_race(tmp_path, [ADAMW, replace(MUON, horizon=130, final=3.897, optimizer_ms=2.0)])
    inputs = load(tmp_path)
    for name in ("loss_curves", "speedup"):
        assert "may be chance" in title(_make.draw(chart(name), inputs))


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
    assert "38% less" in title(figures["memory"])


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


def test_panels_fill_the_page_when_no_trial_diverged(duel: Path, tmp_path: Path) -> None:
    finished = [t for t in read_trials(duel) if t.status != DIVERGED and t.final_loss]
    typical = statistics.median(t.final_loss or 0.0 for t in finished)
    for trial in finished:
        append(tmp_path / "tuning.csv", replace(trial, final_loss=typical + trial.trial * 1e-4))
    figure = _make.draw(chart("lr_sensitivity"), load(tmp_path))
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
    assert err.strip() == f"analysis.charts: no runs in {tmp_path / 'runs.csv'}; run: make speedrun"
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
    assert err.startswith("analysis.charts: cannot write to")


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
    assert list(lines) == [chart.name for chart in _make.charts()]
    assert lines["speedup"].startswith("skipped, ") and "; run: " in lines["speedup"]
    assert lines["lr_sensitivity"].startswith("skipped, ")
    assert lines["memory"] == f"{tmp_path / 'memory.png'} {tmp_path / 'memory.svg'}"
    assert not any(path.exists() for path in stale)


def test_trials_without_a_race_are_still_drawn(tmp_path: Path) -> None:
    write_trials(tmp_path, ["adamw"])
    lines = _make.make(tmp_path, tmp_path / "charts")
    assert "loss_curves: skipped, no race in runs.csv; run: make speedrun" in lines
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == [
        "lr_sensitivity.png",
        "lr_sensitivity.svg",
        "tuning_curves.png",
        "tuning_curves.svg",
    ]


def test_no_run_reaches_the_target(tmp_path: Path) -> None:
    write_race(tmp_path, [replace(ADAMW, final=4.0), replace(MUON, final=3.99)])
    inputs = load(tmp_path)
    for name in ("loss_curves", "time_to_target"):
        assert title(_make.draw(chart(name), inputs)).startswith("No run reaches")
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


def test_an_entrant_has_one_look_in_all_charts_of_all_records() -> None:
    everyone = _style.looks(DISPLAY_NAMES)
    looks = {(look.color, look.marker, str(look.dashes)) for look in everyone.values()}
    assert len(looks) == len(DISPLAY_NAMES)
    assert everyone["adamw"].color == _style.RESERVED["adamw"]
    assert everyone["muon"].color == _style.RESERVED["muon"]
    for name in DISPLAY_NAMES:
        assert _style.looks(["lib:torch.optim.NAdam", "muon:lr=0.1", name])[name] == everyone[name]
    assert _style.looks(["polar_express"])["polar_express"] == everyone["polar-express"]


def test_no_two_looks_share_both_colour_and_marker() -> None:
    looks = [_style._look("soap", slot) for slot in range(_style.SLOTS)]
    assert len({(look.color, look.marker) for look in looks}) == _style.SLOTS


def test_other_entrants_take_the_next_free_look() -> None:
    names = ["muonclip:tau=10", "muonclip:tau=50", "muonclip", "mine", "lib:torch.optim.NAdam"]
    found = _style.looks(names)
    assert found == _style.looks(names[::-1])
    assert len({(look.color, look.marker, str(look.dashes)) for look in found.values()}) == 5
    assert found["muonclip"] == _style.looks(["muonclip"])["muonclip"]
    assert _style.looks(["muonclip:tau=50"])["muonclip:tau=50"] == found["muonclip"]
    reserved = set(_style.RESERVED.values())
    assert not reserved & {look.color for look in _style.looks(["muon:lr=1", *names]).values()}


def test_letters_can_be_read_on_white() -> None:
    """A contrast of 4.5 to 1, as WCAG 2 asks of text of this size."""
    names = list(DISPLAY_NAMES)
    for name, look in _style.looks(names).items():
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
