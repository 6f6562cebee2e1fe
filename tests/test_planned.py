"""Predictions beside what was measured: fit of links, simulated steps, tables and claims."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import optim
from analysis import planned
from analysis.charts import _make
from analysis.charts._inputs import load
from errors import UserError
from leaderboard import pages, verify
from model import GPT
from planner.memory import update_rules
from planner.memory.layouts import traffic
from planner.models import own_models
from planner.step import gloo
from planner.step.collectives import Links
from planner.step.links import Link, Transfer, fit, largest_error, transfer
from planner.step.strategies import program
from speedrun import TRACKS
from studies import planned as study
from studies.engines import sizes_of
from tests.races import assert_legible, caption, chart, title
from tests.rows import SOURCE, make_points, make_run, make_turns, on_the_clock
from tracking.schema import Calibrated, LinkTime, Planned, StepTime
from tracking.store import append, record

STEP_MS = 100.0  # of every run of `write_planned`, on average over its turns


def write_planned(root: Path, off: float = 0.0, state: float = 1.0) -> None:
    """Two engines on one and two processes. off: error of times; state: factor on its bytes."""
    for engine in ("ddp", "fsdp2"):
        for n in (1, 2):
            points = make_points(step_seconds=STEP_MS / 1e3)
            name = f"timed-{engine}-{n}"
            run = make_run(
                points, engine=engine, world_size=n, label="muon", entrant="muon:lr=0.02",
                race=name, run=f"{name}-muon", heat=name, turn_steps=2,
                communication_bytes=100 * (n - 1) * 4_000_000,
                mfu=2e10 * 100 / 10 / 4e11 / n,
            )  # fmt: skip
            turns = on_the_clock(make_turns(run), points)
            record(root, run, points, SOURCE, (), turns)
            held = (run.param_bytes, run.grad_bytes, round(run.state_bytes * state))
            append(root / "planned.csv", Planned(run.run, *held, run.communication_bytes))
            said = planned.step_ms(root, run.run)
            row = StepTime(run.run, engine, "muon", n, said * (1 + off), said, 80.0, 10.0, 10.0)
            append(root / planned.TIMES, row)


# ---- Links -------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [0.0, 2e-5, 3e-3])
def test_the_fit_finds_the_latency_and_the_bandwidth_of_exact_times(latency: float) -> None:
    true = Link(latency, 2.5e9)
    measured = [
        transfer(name, n, size, true.seconds(messages * (n - 1), moved * size * (n - 1) / n))
        for name, messages, moved in (("all-reduce", 2, 2), ("all-gather", 1, 1))
        for n in (2, 4)
        for size in (4096, 65536, 4_194_304)
    ]
    found = fit(measured)
    assert found.latency_s == pytest.approx(latency, abs=1e-12)
    assert found.bytes_per_s == pytest.approx(2.5e9)
    assert largest_error(found, measured) < 1e-9


def test_a_slow_large_message_does_not_hide_the_latency_of_small_ones() -> None:
    """The squares are of relative errors: 20% on the largest time leaves the small ones right."""
    measured = [Transfer(1, size, 1e-4 + size / 1e9) for size in (0, 1e3, 1e4, 1e5, 1e7)]
    measured[-1] = measured[-1]._replace(seconds=1.2 * measured[-1].seconds)
    assert fit(measured).latency_s == pytest.approx(1e-4, rel=0.02)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ([], "at least two sizes"),
        ([Transfer(1, 1e6, 1e-3)] * 3, "at least two sizes"),
        ([Transfer(1, 1e3, 1e-2), Transfer(1, 1e7, 1e-3)], "must not be negative"),
    ],
)
def test_times_that_give_no_line_are_refused(measured: list[Transfer], words: str) -> None:
    with pytest.raises(UserError, match=words):
        fit(measured)


def test_an_unknown_collective_is_refused() -> None:
    with pytest.raises(UserError, match="must be one of all-reduce"):
        transfer("all-reducd", 2, 1e6, 1e-3)


# ---- The predicted step ------------------------------------------------------------------------

LINK = Link(1e-3, 1e9)
CALIBRATED = [
    *(Calibrated("forward", f"{n} sequences", n / 100, "s") for n in (48, 24, 12)),
    *(Calibrated("passes", f"{n} sequences", 3 * n / 100, "s") for n in (48, 24, 12)),
    Calibrated("update", "adamw: adamw", 0.002, "s"),
    Calibrated("update", "muon: muon", 0.016, "s"),
    Calibrated("update", "muon: adamw", 0.001, "s"),
    Calibrated("beside", "24 sequences", 1.1, ""),
    Calibrated("cores", "", 2, ""),
]


def calibrated() -> gloo.Machine:
    times = [
        LinkTime(name, n, size, LINK.seconds(each.messages, each.moved_bytes), 1, "cpu", "2.13")
        for name in ("all-reduce", "reduce-scatter", "all-gather", "all-to-all")
        for n in (2, 4)
        for size in (4096, 1 << 22)
        for each in [transfer(name, n, size, 1.0)]
    ]
    return study.machine_of(CALIBRATED, times, 48)


def test_a_step_of_one_process_is_its_passes_and_its_update() -> None:
    tiny = own_models.from_track("tiny")
    for recipe, update in (("adamw", 0.002), ("muon", 0.017)):
        for engine in gloo.USED:
            step = gloo.predict(calibrated(), tiny, update_rules.find(recipe), engine, 1)
            assert step.seconds == pytest.approx(1.44 + update)
            assert step.exposed_seconds == pytest.approx(0, abs=1e-9)


def test_a_step_of_ddp_is_passes_an_update_and_an_all_reduce() -> None:
    """Four processes on two cores compute twice as long, and a tenth more beside each other."""
    tiny = own_models.from_track("tiny")
    for n, slowness in ((2, 1.1), (4, 2.2)):
        step = gloo.predict(calibrated(), tiny, update_rules.find("muon"), "ddp", n)
        reduced = LINK.seconds(2 * (n - 1), 2 * (n - 1) / n * 4 * tiny.params)
        assert step.passes_seconds == pytest.approx(slowness * 1.44 / n)
        assert step.update_seconds == pytest.approx(slowness * 0.017)
        assert step.exposed_seconds == pytest.approx(reduced, rel=1e-6)


def test_owners_share_the_work_of_muon() -> None:
    tiny = own_models.from_track("tiny")
    for engine in ("sharded", "fsdp2"):
        step = gloo.predict(calibrated(), tiny, update_rules.find("muon"), engine, 4)
        assert step.update_seconds == pytest.approx(2.2 * 0.017 / 4, rel=0.01)


def test_what_was_not_calibrated_is_refused() -> None:
    tiny, muon = own_models.from_track("tiny"), update_rules.find("muon")
    with pytest.raises(UserError, match="calibrated for 1, 2, 4 alone"):
        gloo.predict(calibrated(), tiny, muon, "ddp", 3)
    with pytest.raises(UserError, match="deepspeed-zero1: its step is not predicted"):
        gloo.predict(calibrated(), tiny, muon, "deepspeed-zero1", 2)
    with pytest.raises(UserError, match="at least two sizes"):
        gloo.predict(replace(calibrated(), transfers={}), tiny, muon, "ddp", 2)


@pytest.mark.parametrize("recipe", ["adamw", "muon"])
def test_simulated_steps_send_what_the_engines_send(recipe: str) -> None:
    """The formulas of `traffic` are held to counted bytes by the record."""
    gpt = GPT(TRACKS["tiny"].config(1024))
    sizes = sizes_of(gpt, optim.plan(gpt.roles(), recipe, {}, torch.float32))
    tiny, rule = own_models.from_track("tiny"), update_rules.find(recipe)
    passes = {n: gloo.Passes(0.1, 0.3) for n in (2, 3, 4)}
    machine = replace(calibrated(), passes=passes)
    for engine in (*gloo.USED, *(f"deepspeed-zero{stage}" for stage in (1, 2, 3))):
        for n in (2, 3, 4):
            job = gloo.job_of(machine, tiny, rule, n)
            steps = program(job, engine.removeprefix("deepspeed-"), Links(n, 1e9, 1e9))
            sent = sum(operation.sent_bytes for operation in steps)
            assert sent == pytest.approx(traffic(engine, sizes, n).step, rel=1e-3)


# ---- What a folder shows -----------------------------------------------------------------------


def test_the_tables_have_each_engine_and_number_of_processes(tmp_path: Path) -> None:
    write_planned(tmp_path, off=0.1, state=1.01)
    text = planned.markdown(planned.predicted(tmp_path))
    assert "| ddp | 2 | Muon | 0 | 0 | +1.00% | 0 |" in text
    ms = planned.step_ms(tmp_path, "timed-fsdp2-2-muon")
    shown = f"| fsdp2 | Muon | 2 | {1.1 * ms:.0f} | {ms:.0f} | +10% | 80 | 10.0 | 10.0 |"
    assert shown in text
    assert "The largest of all is 1.00%." in text and "The largest error is 10%." in text


def test_a_prediction_that_is_off_is_a_problem(tmp_path: Path) -> None:
    root = tmp_path / "right" / planned.PLANNED
    write_planned(root, off=-0.24, state=1.019)
    assert verify.problems(tmp_path / "right") == []
    write_planned(tmp_path / "wrong", off=0.26, state=1.03)
    found = list(verify.problems(tmp_path / "wrong"))
    assert "run timed-ddp-2-muon: its step was predicted +26% off" in found
    assert "run timed-ddp-2-muon: state_bytes is +3.0% off its formula" in found
    assert len(found) == 8


def test_times_that_are_not_those_of_the_runs_are_problems(tmp_path: Path) -> None:
    write_planned(tmp_path)
    (row, *_) = planned.predicted(tmp_path).times
    for wrong in (
        replace(row, run="gone"),
        replace(row, processes=4),
        replace(row, measured_ms=row.measured_ms * 1.01),
    ):
        append(tmp_path / planned.TIMES, wrong)
    gone, other, off = planned.problems(tmp_path)
    assert gone == "times.csv: no run gone"
    assert other == "times.csv: run timed-ddp-1-muon is ddp on 1"
    ms = planned.step_ms(tmp_path, row.run)
    assert off == f"run {row.run}: its turns give {ms:.4g} ms, times.csv {1.01 * ms:.4g}"


def test_the_chart_says_how_far_off_the_predictions_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_planned(tmp_path, off=0.1, state=1.01)
    figure = _make.draw(chart("planned"), load(tmp_path))
    assert "of 4 runs are predicted within 1.0%, the step times of 4 within 10%" in title(figure)
    assert "25%" in caption(figure)
    assert_legible(figure, monkeypatch)


def test_a_page_shows_the_predictions_of_a_record(tmp_path: Path) -> None:
    write_planned(tmp_path / "results" / "records" / "some")
    page = "<!-- begin:planned some -->\n<!-- end:planned -->"
    assert "| ddp | 1 | Muon | 0 | 0 | 0 | 0 |" in pages.rewrite(page, tmp_path)
    (tmp_path / "results" / "records" / "some" / planned.TIMES).unlink()
    assert "Milliseconds" not in pages.rewrite(page, tmp_path)
    (tmp_path / "results" / "records" / "some" / "planned.csv").unlink()
    with pytest.raises(UserError, match="record some has no planned.csv"):
        pages.rewrite(page, tmp_path)


# ---- The command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--processes", "0"], "--processes 0: must be from 1 to 16"),
        (["--processes", "2", "17"], "--processes 17: must be from 1 to 16"),
        (["--timed", "-1"], "--timed -1: must be from 1 to 16"),
        (["--timed", "5"], "--timed 5: a batch of 48 sequences must divide by it"),
        (["--processes", "5"], "--processes 5: a batch of 12 sequences must divide by it"),
    ],
)
def test_a_mistake_gets_one_line(
    given: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main([*given, f"--results={tmp_path / 'new'}"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_with_a_study_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_planned(tmp_path)
    assert study.main([f"--results={tmp_path}"]) == 2
    assert "holds a study; move it away" in capsys.readouterr().err
