"""Figures and charts of measured spectra: numbers follow from the rows, and text is legible."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import spectra
from analysis.charts import _make
from analysis.charts._inputs import MissingDataError, load
from analysis.charts._style import looks
from tests.races import assert_legible, caption, chart, title
from tests.rows import FEW_PARTS, SOURCE, decaying_spectra, make_points, make_run
from tracking.schema import DIVERGED, Run, Spectrum
from tracking.store import record

STEPS = (5, 40, 100)
# By entrant: what it differs in from the defaults of `decaying_spectra`.
FIELD: dict[str, dict[str, float]] = {
    "adamw": {"update": 1.0},
    "muon": {"update": 0.1, "size": 4e-3},
    "soap": {"update": 0.5, "size": 2e-3},
    "sgd": {"update": 1.4},
}
CHARTS = ("balance", "spectra", "stable_rank")


def write(
    root: Path, field: Mapping[str, dict[str, float]], seeds: int = 2, race: str = "why"
) -> list[tuple[Run, Sequence[Spectrum]]]:
    """A race in which the momentum of seed 1 is steeper than that of seed 0."""
    found = []
    for label, changes in field.items():
        for seed in range(seeds):
            name = f"{race}-{label}-{seed}"
            points = make_points()
            run = make_run(points, label=label, entrant=label, seed=seed, run=name, race=race)
            rows = decaying_spectra(STEPS, **{"momentum": 1.5 + 0.02 * seed} | changes)
            record(root, run, points, SOURCE, spectra=rows)
            found.append((run, rows))
    return found


def means(runs: Sequence[tuple[Run, Sequence[Spectrum]]], column: str, **where: Any) -> float:
    """The geometric mean of a column over rows with these values, of each run, then over runs."""
    logs = [
        np.mean(
            [
                np.log(getattr(row, column))
                for row in rows
                if all(getattr(row, name) == value for name, value in where.items())
            ]
        )
        for _, rows in runs
    ]
    return float(np.exp(np.mean(logs)))


def test_a_figure_is_the_geometric_mean_over_matrices_and_then_over_seeds(tmp_path: Path) -> None:
    runs = write(tmp_path, {"muon": {"update": 0.1}})
    rows = spectra.measured(runs)
    found = spectra.figure(spectra.hidden(rows, "momentum"), "stable_rank")
    assert found is not None and found.n == 2
    expected = means(runs, "stable_rank", role="matrix", tensor="momentum")
    assert found.value == pytest.approx(expected)
    # Student's t for two seeds: 12.7 standard errors of the logarithm on either side.
    each = [means([run], "stable_rank", role="matrix", tensor="momentum") for run in runs]
    half = 12.7062 * abs(np.log(each[0] / each[1])) / 2
    assert np.log([found.low, found.high]) == pytest.approx(
        [np.log(expected) - half, np.log(expected) + half], rel=1e-4
    )


def test_updates_are_relative_to_their_own_weights(tmp_path: Path) -> None:
    rows = spectra.measured(write(tmp_path, {"muon": {"size": 4e-3, "update": 0.3}}))
    updates = rows[rows["tensor"] == "update"]
    assert updates["relative"].tolist() == pytest.approx([4e-3] * len(updates))
    assert rows[rows["tensor"] != "update"]["relative"].isna().all()
    vector = rows[(rows["group"] == "vector") & (rows["tensor"] == "weight")]
    assert vector["largest"].tolist() == pytest.approx([4.0] * len(vector))  # 16 entries of 1
    assert spectra.groups(rows) == ["query", "key", "mlp.fc", "embed", "vector"]


def test_the_moments_are_the_first_step_the_one_near_the_middle_and_the_last(
    tmp_path: Path,
) -> None:
    rows = spectra.measured(write(tmp_path, {"muon": {}}))
    found = {when: spectra.at(rows, when)["step"].unique().tolist() for when in spectra.MOMENTS}
    assert found == {"beginning": [5], "middle": [40], "end": [100]}
    late = rows.assign(planned=45)  # 5 and 40 are as far from half of it
    assert spectra.at(late, "middle")["step"].unique().tolist() == [40]


def test_a_matrix_of_zeros_and_a_run_that_diverged_are_left_out(tmp_path: Path) -> None:
    (run, logged), other = write(tmp_path, {"muon": {}})
    of_zeros = dict.fromkeys(
        ("largest", "q90", "q75", "median", "q25", "q10", "smallest", "rms"), 0.0
    ) | dict.fromkeys(
        ("over_median", "over_smallest", "stable_rank", "effective_rank", "top_tenth")
    )
    zeros = [replace(row, **of_zeros) if row.step == 5 else row for row in logged]  # type: ignore
    alone = spectra.measured([(run, zeros)])
    late = [row for row in logged if row.step != 5]
    for column in ("stable_rank", "relative", "largest"):
        found, expected = (
            spectra.figure(spectra.hidden(rows, "update"), column)
            for rows in (alone, spectra.measured([(run, late)]))
        )
        assert found == expected and found is not None
    assert spectra.line(spectra.hidden(alone, "update"), "stable_rank").steps.tolist() == [40, 100]
    both = spectra.measured([(run, logged), (replace(other[0], status=DIVERGED), other[1])])
    assert set(both["run"]) == {run.run}
    assert spectra.measured([(run, [])]).empty


# ---- The charts --------------------------------------------------------------------------------


Runs = list[tuple[Run, Sequence[Spectrum]]]


@pytest.fixture(scope="module")
def drawn_race(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, dict[str, Figure]]:
    root = tmp_path_factory.mktemp("why")
    runs = write(root, FIELD)
    return runs, {name: _make.draw(chart(name), load(root)) for name in CHARTS}


@pytest.fixture
def runs(drawn_race: tuple[Runs, dict[str, Figure]]) -> Runs:
    return drawn_race[0]


@pytest.fixture
def figures(drawn_race: tuple[Runs, dict[str, Figure]]) -> dict[str, Figure]:
    return drawn_race[1]


def panel(figure: Figure, name: str, row: int = 0) -> Axes:
    """The panel of this title, or one of those below it in the same column."""
    every = [axes for axes in figure.axes if axes.axison]
    top = next(axes for axes in every if axes.get_title("left") == name)
    column = [axes for axes in every if axes.get_position().x0 == top.get_position().x0]
    column.sort(key=lambda axes: -axes.get_position().y0)
    return column[column.index(top) + row]


def drawn(axes: Axes, label: str) -> np.ndarray:
    marker = looks(FIELD)[label].marker
    (line,) = (line for line in axes.lines if line.get_marker() == marker)
    return np.asarray(line.get_ydata())


@pytest.mark.parametrize(("row", "tensor"), [(0, "momentum"), (1, "update")])
def test_the_stable_rank_is_drawn_by_kind(
    runs: Runs, figures: dict[str, Figure], row: int, tensor: str
) -> None:
    for label in FIELD:
        own = [pair for pair in runs if pair[0].label == label]
        for kind in ("query", "mlp.fc"):
            expected = [
                means(own, "stable_rank", kind=kind, tensor=tensor, step=step) for step in STEPS
            ]
            shown = drawn(panel(figures["stable_rank"], kind, row), label)
            np.testing.assert_allclose(shown, expected)
    best = means([p for p in runs if p[0].label == "muon"], "stable_rank", role="matrix",
                 tensor="update")  # fmt: skip
    assert f"a stable rank of {best:.1f} with Muon and" in title(figures["stable_rank"])


def test_the_balance_is_drawn_by_role(figures: dict[str, Figure]) -> None:
    figure = figures["balance"]
    of_vectors = {label: changes.get("size", 1e-3) for label, changes in FIELD.items()}
    for label, relative in of_vectors.items():
        np.testing.assert_allclose(drawn(panel(figure, "vector"), label), relative)
        np.testing.assert_allclose(drawn(panel(figure, "embed", 1), label), 1.0)
    assert "with Muon and" in title(figure)


def test_the_spectra_are_drawn_relative_to_the_largest_value(
    runs: Runs, figures: dict[str, Figure]
) -> None:
    axes = panel(figures["spectra"], "Muon")
    assert len(axes.lines) == 6  # two tensors at three moments
    own = [pair for pair in runs if pair[0].label == "muon"]
    update = [line for line in axes.lines if line.get_linestyle() == "-"]
    names = ("largest", "q90", "q75", "median", "q25", "q10", "smallest")
    sizes = [means(own, name, role="matrix", tensor="update", step=5) for name in names]
    np.testing.assert_allclose(update[0].get_ydata(), np.array(sizes) / sizes[0])
    np.testing.assert_allclose(update[0].get_xdata(), [0, 0.1, 0.25, 0.5, 0.75, 0.9, 1])
    assert "step 5; middle: step 40; end: step 100" in caption(figures["spectra"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("kinds", [3, 6])
def test_nothing_overlaps(
    name: str, kinds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (("value", 16), ("attn.proj", 16), ("mlp.proj", 64))[: kinds - 3]
    wider = tuple((f"{kind}.weight", "matrix", kind, 0, 16, columns) for kind, columns in more)
    head = ("head.weight", "head", "head", 0, 100, 16)
    monkeypatch.setattr("tests.rows.FEW_PARTS", (*FEW_PARTS, *wider, head))
    write(tmp_path, FIELD, seeds=1)
    assert_legible(_make.draw(chart(name), load(tmp_path)), monkeypatch)


def test_a_race_without_spectra_names_the_command_that_measures_them(tmp_path: Path) -> None:
    points = make_points()
    record(tmp_path, make_run(points), points, SOURCE)
    for name in CHARTS:
        with pytest.raises(MissingDataError, match="no spectra; run: make why"):
            _make.draw(chart(name), load(tmp_path))
