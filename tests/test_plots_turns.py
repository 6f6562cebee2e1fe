"""Charts of a lockstep race: each ratio in seconds is the ratio that the report has."""

import re
from pathlib import Path

import pytest

from analysis import report
from analysis.charts import _make
from analysis.charts._inputs import Inputs, load
from analysis.charts._ratios import decompose
from analysis.pairs import Pairs
from analysis.price import NO_TURNS, read_prices
from analysis.report import change
from analysis.table import by_label
from tests.races import ADAMW, MUON, TARGET, assert_legible, chart, texts, title, write_race
from tracking.store import read_runs


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("turns") / "results"
    write_race(root, [ADAMW, MUON], turn_steps=2)
    return root


@pytest.fixture(scope="module")
def inputs(duel: Path) -> Inputs:
    return load(duel)


def the_race(root: Path) -> tuple[float, float, str]:
    """The ratio in seconds, the price of a step, and the sentence of the report."""
    runs = read_runs(root)
    prices = read_prices(root, runs)
    ratio = Pairs(by_label(runs), "seconds", prices).of("adamw", "muon").ratio
    price = prices.of("adamw", "muon")
    assert ratio is not None and price is not None
    return ratio.estimate.value, price.value, report.sentence(runs, prices)


def test_every_chart_has_the_ratios_of_the_sentence(duel: Path, inputs: Inputs) -> None:
    seconds, price, sentence = the_race(duel)
    assert f"{seconds:.2f}x less time" in sentence and f"costs {price:.3f}x one" in sentence
    saved = f"{1 - 1 / seconds:.1%} less"
    assert saved in sentence
    alone = Pairs(by_label(read_runs(duel)), "seconds", NO_TURNS).of("adamw", "muon").ratio
    assert alone is not None and change(alone, "less") != saved  # the clocks say something else
    titles = {name: title(_make.draw(chart(name), inputs))
              for name in ("speedup", "iso_loss", "loss_curves", "step_time")}  # fmt: skip
    assert f"Muon is {seconds:.2f}x as fast as AdamW" in titles["speedup"]
    assert f"each {price:.2f}x as long" in titles["speedup"]
    assert f"Muon is {seconds:.2f}x as fast as AdamW to the target {TARGET}" in titles["iso_loss"]
    assert f"and {saved} time than AdamW" in titles["loss_curves"]
    assert f"a step is {price - 1:.1%} longer than AdamW's" in titles["step_time"]


def test_the_speedup_is_steps_over_the_price(inputs: Inputs) -> None:
    adamw, muon = inputs.entrants
    price = inputs.prices.of("adamw", "muon")
    parts = decompose(adamw, muon, price)
    assert parts is not None and price is not None and price.high is not None
    assert parts.step.value == pytest.approx(1 / price.value)
    assert parts.step.low == pytest.approx(1 / price.high)
    product = parts.samples.estimate.value * parts.step.value
    assert parts.clock.estimate.value == pytest.approx(product)


def test_the_charts_of_a_lockstep_race_say_so_and_are_legible(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("speedup", "time_to_target"):
        figure = _make.draw(chart(name), inputs)
        assert re.search(r"5 seeds each, in turns of 2 steps ·", " ".join(texts(figure)))
        assert_legible(figure, monkeypatch)
