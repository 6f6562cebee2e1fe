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
from planner.memory.layouts import Sizes, traffic
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


def test_what_zero_3_sends_is_what_was_counted_in_each_step() -> None:
    """Numbers of a run with Muon on tiny, by step, over the bytes of the parameters."""
    gpt = GPT(TRACKS["tiny"].config(1024))
    sizes = study.sizes_of(gpt, optim.plan(gpt.roles(), "muon", {}, torch.float32))
    for n, usual, first, anew in ((2, 2.9902, 3.4902, 3.0528), (3, 4.4216, 5.0883, 4.5051)):
        sent = traffic("deepspeed-zero3", sizes, n)
        assert sent.step / sizes.params == pytest.approx(usual, rel=1e-4)
        assert (sent.step + sent.first) / sizes.params == pytest.approx(first, rel=1e-4)
        assert (sent.step + sent.anew) / sizes.params == pytest.approx(anew, rel=1e-4)


def test_one_process_sends_nothing() -> None:
    sizes = Sizes(1000, 800, 100, ((400, 200),))
    for engine in (each.label for each in (study.SINGLE, *study.KNOWN.values())):
        assert traffic(engine, sizes, 1).step == 0


def test_the_committed_formulas_follow_from_the_model() -> None:
    gpt = GPT(TRACKS["tiny"].config(1024))
    plans = {plan.run: plan for plan in engines.read(RECORD / "planned.csv", engines.Planned)}
    assert len(plans) == 2 * (1 + len(study.SEVERAL))
    for run in read_runs(RECORD):
        plan = optim.plan(gpt.roles(), engines.recipe_of(run.entrant), {}, torch.float32)
        validations = len(read_curve(RECORD, run.run))
        assert study.planned(run, study.sizes_of(gpt, plan), validations) == plans[run.run]


def test_deepspeed_runs_what_it_has() -> None:
    zero0, zero1 = study.KNOWN["deepspeed-zero0"], study.KNOWN["deepspeed-zero1"]
    series = study.Series(RECORD, entrants=("adamw", "muon", "lion"), steps=4)
    assert [each.label for each in series.entered(zero0)] == ["adamw", "muon:blocks=fused"]
    assert [each.label for each in series.entered(zero1)] == ["adamw", "muon"]
    assert len(series.entered(study.KNOWN["ddp"])) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--processes", "1"], "--processes 1: must be from 2 to 16"),
        (["--processes", "-2"], "--processes -2: must be"),
        (["--engines", "dpp"], "--engines dpp: must be some of ddp, sharded"),
        (["--entrants", "moun"], "moun"),
        (["--batch-tokens", "-1"], "--batch-tokens -1: must be above 0"),
        (["--steps", "0"], "steps=0: must be at least 1"),
    ],
)
def test_a_mistake_gets_one_line(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([*given, f"--results={tmp_path / 'new'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()
