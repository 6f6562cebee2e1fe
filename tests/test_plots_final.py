"""The chart of final losses on several tracks: its rows, its tests, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.charts import _make
from analysis.charts._inputs import Inputs, MissingDataError, load
from tests.races import caption, chart, drawn_boxes, title
from tests.rows import SOURCE, make_points, make_run
from tracking.store import read_runs, record

LOSSES = {  # by track and label, of three seeds
    ("tiny-mla", "muon"): (3.60, 3.61, 3.62),
    ("tiny-mla", "muon-split"): (3.59, 3.61, 3.615),
    ("tiny-gqa", "muon"): (3.50, 3.51, 3.52),
}


def inputs_of(root: Path, **changes: int) -> Inputs:
    for (track, label), losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            run = make_run(track=track, label=label, entrant=label, seed=seed, final_loss=loss)
            run = replace(run, race=track, run=f"{track}-{label}-{seed}", **changes)
            record(root, run, make_points(), SOURCE)
    return load(root, ["tiny-mla", "tiny-gqa"])


def test_rows_are_entrants_of_all_races_lowest_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = inputs_of(tmp_path)
    assert {run.race for run in inputs.runs} == {"tiny-mla"}  # the other charts'
    figure = _make.draw(chart("final_losses"), inputs)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["Muon\non tiny-gqa", "Muon Split\non tiny-mla", "Muon\non tiny-mla"]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(means, sorted(np.mean(list(LOSSES.values()), axis=1)))
    assert "Muon on tiny-gqa at 3.510" in title(figure)
    assert "Muon on tiny-mla at 3.610" in title(figure)
    assert "Muon on tiny-gqa and Muon Split on tiny-mla" in caption(figure)
    assert "Muon Split on tiny-mla and Muon on tiny-mla" not in caption(figure)
    for text, box in drawn_boxes(figure, monkeypatch):
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text


def test_runs_that_diverged_are_named_and_their_entrant_is_not_tested(tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path)
    gqa = inputs.others[0]
    lost = [replace(gqa.runs[0], status="diverged", final_loss=None), *gqa.runs[1:]]
    figure = _make.draw(chart("final_losses"), replace(inputs, others=[replace(gqa, runs=lost)]))
    assert caption(figure).count("Muon on tiny-gqa") == 2  # not drawn, not tested
    assert "Muon on tiny-gqa (3, 1 diverged)" in caption(figure)
    assert "1 pair" in caption(figure) and "none" in caption(figure)


def test_races_of_one_track_or_of_several_horizons_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingDataError, match="two tracks; run: "):
        _make.draw(chart("final_losses"), replace(inputs_of(tmp_path), others=[]))
    runs = [replace(run, steps_planned=90) for run in read_runs(tmp_path) if run.race == "tiny-gqa"]
    inputs = load(tmp_path, ["tiny-mla", "tiny-gqa"])
    longer = replace(inputs.others[0], runs=runs)
    with pytest.raises(MissingDataError, match="90 and 100 steps do not compare"):
        _make.draw(chart("final_losses"), replace(inputs, others=[longer]))
