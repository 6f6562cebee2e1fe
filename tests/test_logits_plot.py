"""The chart of attention logits: its numbers come from the files, and its text is legible."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from analysis.charts import _make
from analysis.charts._inputs import MissingDataError, load
from analysis.charts._style import looks
from tests.races import caption, chart, drawn_boxes, texts, title
from tests.rows import SOURCE, make_logits, make_points, make_run
from tracking.store import record

# label: growth in 10 steps, tau
FIELD = {
    "muon": (1.5, None),
    "muonclip:tau=20": (1.5, 20.0),
    "muonclip:tau=19": (1.5, 19.0),
    "adamw": (1.2, None),
    "signum": (1.2001, None),
}


def write(root: Path, labels: list[str], seeds: int = 3) -> None:
    for label in labels:
        grows, tau = FIELD[label]
        for seed in range(seeds):
            points, name = make_points(), label.replace(":", "-") + f"-{seed}"
            run = make_run(points, label=label, entrant=label, seed=seed, run=name)
            record(root, run, points, SOURCE, make_logits(points, grows + 0.02 * seed, tau))


def draw(root: Path) -> Figure:
    return _make.draw(chart("attention_logits"), load(root))


def test_a_line_is_the_mean_over_seeds_of_the_largest_head(tmp_path: Path) -> None:
    write(tmp_path, ["muon", "muonclip:tau=20"])
    figure = draw(tmp_path)
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 5]
    lines = {line.get_marker(): line for line in curves}
    steps = np.arange(20, 101, 20)
    seeds = [4 * np.array([grows ** (s / 10) for s in steps]) for grows in (1.5, 1.52, 1.54)]
    free = np.mean(seeds, axis=0)
    held = np.mean(np.minimum(seeds, 22), axis=0)
    np.testing.assert_allclose(lines["s"].get_ydata(), free)
    np.testing.assert_allclose(lines[looks(["muonclip"])["muonclip"].marker].get_ydata(), held)
    np.testing.assert_allclose(lines["s"].get_xdata(), steps)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert max(band) == pytest.approx(seeds[2][-1])
    across = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [0, 100]]
    assert [line.get_ydata()[0] for line in across] == [20]
    shown = texts(figure)
    assert f"Muon: {free[-1]:.0f}" in shown and "MuonClip: 22.0" in shown and "tau 20" in shown
    assert f"{free[-1]:.0f} with Muon, 22.0 with MuonClip at tau 20" in title(figure)


def test_peaks_are_compared_where_all_were_measured(tmp_path: Path) -> None:
    write(tmp_path, ["muon"], seeds=1)
    points = make_points()
    run = make_run(points, label="muonclip:tau=9", entrant="muonclip:tau=9", run="muonclip")
    rows = make_logits(points, 1.2)
    early = [replace(row, step=10, max_logit=1e6) for row in rows if row.step == 20]
    record(tmp_path, run, points, SOURCE, early + rows)
    figure = draw(tmp_path)
    held = 4 * 1.2**10
    assert title(figure).endswith(f"{held:.1f} with MuonClip at tau 9")
    assert "measured at different steps" in caption(figure)


@pytest.mark.parametrize("labels", [["muonclip:tau=20"], list(FIELD)])
def test_names_that_end_together_do_not_overlap(
    labels: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, labels)
    figure = draw(tmp_path)
    boxes = drawn_boxes(figure, monkeypatch)
    for (a, box_a), (b, box_b) in combinations(boxes, 2):
        both = Bbox.intersection(box_a, box_b)
        assert both is None or both.width <= 1 or both.height <= 1, f"{a!r} overlaps {b!r}"
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for _, box in boxes)


def test_without_measurements_there_is_no_chart_but_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    points = make_points()
    record(tmp_path, make_run(points), points, SOURCE)
    with pytest.raises(MissingDataError, match="muonclip:tau=20 muonclip:tau=1e9 --track tiny-mla"):
        draw(tmp_path)
