"""The study of the engines: formulas, table, charts, and what the verifier asks of it."""

from pathlib import Path

import pytest
import torch

import optim
from analysis import engines
from analysis.charts import _make
from analysis.charts._inputs import load
from leaderboard import verify
from model import GPT
from planner.layouts import Group, Model, layout
from speedrun import TRACKS
from studies import engines as study
from tests.on_engines import GAP, SLOWER, write_engines
from tests.races import assert_legible, caption, chart, texts, title
from tracking.store import read_curve, read_runs

RECORD = Path(__file__).parents[1] / "results" / "records" / "engines"


def test_what_is_measured_is_compared_with_one_process_and_with_ddp(tmp_path: Path) -> None:
    write_engines(tmp_path)
    found = {(p.run.engine, p.recipe): p for p in engines.measured(tmp_path / engines.ENGINES)}
    assert found["single", "muon"].gap == 0
    for engine, slower in SLOWER.items():
        point = found[engine, "muon"]
        if engine in ("single", "ddp"):
            assert point.price is None
            continue
        assert point.gap == pytest.approx(GAP)
        assert point.price is not None and point.price.value == pytest.approx(slower, rel=0.02)


def test_a_formula_that_is_off_is_a_problem(tmp_path: Path) -> None:
    write_engines(tmp_path / "right")
    assert list(engines.problems(tmp_path / "right" / engines.ENGINES)) == []
    assert verify.problems(tmp_path / "right") == []
    write_engines(tmp_path / "wrong", wrong=1.03)
    found = verify.problems(tmp_path / "wrong")
    assert len(found) == 2 * len(SLOWER)
    assert "engines: run engines-single-adamw: state_bytes is -2.9% off its formula" in found


def test_the_table_has_a_row_for_each_engine_and_optimizer(tmp_path: Path) -> None:
    write_engines(tmp_path)
    lines = engines.markdown(engines.measured(tmp_path / engines.ENGINES)).splitlines()[2:]
    assert len(lines) == 2 * len(SLOWER)
    assert [line.split(" | ")[0].strip("| ") for line in lines[::2]] == list(SLOWER)
    (sharded,) = [line for line in lines if line.startswith("| sharded | Muon |")]
    assert "| 2 | 2.0e-06 | 4.000 MB | 4.000 MB | 2.500 MB | 4.000 MB |" in sharded


def test_the_charts_say_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_engines(tmp_path)
    inputs = load(tmp_path)
    costs, losses = (_make.draw(chart(name), inputs) for name in ("engine_costs", "engine_losses"))
    assert "Muon on 2 processes: fsdp2 holds 62% of the memory of ddp" in title(costs)
    assert "2.0e-06 nats" in title(losses) and "single" in caption(losses)
    assert {"ddp", "sharded", "fsdp2"} <= {*texts(costs)} & {*texts(losses)}
    for figure in (costs, losses):
        assert_legible(figure, monkeypatch)


@pytest.mark.parametrize("engine", [each.label for each in (study.SINGLE, *study.SEVERAL)])
def test_one_process_of_several_holds_no_more_than_one_alone(engine: str) -> None:
    groups = Group(True, (240,) * 4), Group(False, (120, 120)), Group(False, (240,))
    model = Model(groups, blocks=960, state=960 + 2 * 480)
    one, four = layout(engine, model, 1), layout(engine, model, 4)
    assert one.sent == 0 and one.params >= model.params and one.state >= model.state
    assert four.params <= one.params and four.grads <= one.grads and four.state <= one.state


def test_the_committed_formulas_follow_from_the_model() -> None:
    config = TRACKS["tiny"].config(1024)
    gpt = GPT(config)
    alone = {run.entrant: run for run in read_runs(RECORD) if run.engine == "single"}
    plans = {plan.run: plan for plan in engines.read(RECORD / "planned.csv", engines.Planned)}
    assert len(plans) == 2 * (1 + len(study.SEVERAL))
    for run in read_runs(RECORD):
        recipe = engines.recipe_of(run.entrant)
        plan = optim.plan(gpt.roles(), recipe, {}, torch.float32)
        model = study.model_of(gpt, plan, alone[run.entrant].state_bytes)
        validations = len(read_curve(RECORD, run.run))
        assert study.planned(run, model, validations) == plans[run.run]
