"""Runs that take turns: each is as it would be alone, and what it costs is its own."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

import speedrun
from bench.gpu_check.graphs_and_engines import one_process
from optim import library
from runtime import machine, memory, program
from runtime.outcome import Outcome
from speedrun import Options, Track, Trainer
from tests.conftest import Noisy
from tracking import store
from tracking.schema import DIVERGED, REACHED, Run, Turn

pytestmark = pytest.mark.slow  # whole races


def enter(text: str, steps: int = 8) -> speedrun.Entrant:
    return speedrun.enter(text, "tiny", steps)


def race(
    track: Track, options: Options, entrants: list[speedrun.Entrant], seeds: int = 1, **changes: Any
) -> list[Run]:
    trainer = Trainer(track, replace(options, **changes))
    return speedrun.race(trainer, entrants, seeds, "race", [])


def losses(root: str, run: Run) -> list[tuple[float, float | None, float | None]]:
    points = store.read_curve(Path(root), run.run)
    return [(point.val_loss, point.train_loss, point.grad_norm) for point in points]


def assert_as_alone(runs: list[Run], entrants: list[speedrun.Entrant], trainer: Trainer) -> None:
    """Each run has, bit for bit, the losses of a run that this trainer makes alone."""
    for run in runs:
        (entrant,) = (each for each in entrants if each.canonical == run.entrant)
        points = trainer.run(entrant, run.seed).points
        expected = [(point.val_loss, point.train_loss, point.grad_norm) for point in points]
        assert losses(trainer.options.results, run) == expected, run.run


@pytest.mark.parametrize(("turn_steps", "seeds"), [(1, 1), (3, 2)])
def test_a_run_that_takes_turns_has_the_losses_that_it_has_alone(
    turn_steps: int,
    seeds: int,
    micro_track: Track,
    micro_options: Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(library, "rule", lambda path: Noisy)
    horizons = {"adamw": 5, "muon": 4, "lib:noisy.Noisy": 5, "soap": 5}
    entrants = [enter(name, steps) for name, steps in horizons.items()]
    taken = race(micro_track, micro_options, entrants, seeds=seeds, turn_steps=turn_steps)
    assert len(taken) == 4 * seeds
    assert_as_alone(taken, entrants, Trainer(micro_track, micro_options))
    library.recipe_of.cache_clear()


def test_turns_are_written_down_and_every_other_round_is_in_reverse(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[tuple[str, int]] = []
    step_of = Trainer.step

    def step(self: Trainer, *arguments: Any, **options: Any) -> Any:
        out = arguments[3]
        order.append((out.entrant.label, out.steps))
        return step_of(self, *arguments, **options)

    measured: list[Any] = []
    monkeypatch.setattr(machine, "matmul_flops", lambda *_, **__: measured.append(0) or 1e10)
    monkeypatch.setattr(Trainer, "step", step)
    runs = race(micro_track, micro_options, [enter("adamw", 5), enter("muon", 3)], turn_steps=2)
    assert order == [
        ("adamw", 1), ("adamw", 2), ("muon", 1), ("muon", 2),
        ("muon", 3), ("adamw", 3), ("adamw", 4),
        ("adamw", 5),
    ]  # fmt: skip
    turns = {run.label: store.read_turns(Path(micro_options.results), run.run) for run in runs}
    assert [turn.steps for turn in turns["adamw"]] == [2, 2, 1]
    assert [(turn.round, turn.steps) for turn in turns["muon"]] == [(0, 2), (1, 1)]
    for run in runs:
        assert sum(t.train_seconds for t in turns[run.label]) == pytest.approx(run.train_seconds)
    assert {run.turn_steps for run in runs} == {2}
    assert len(measured) == 1 and {run.matmul_peak_flops for run in runs} == {1e10}
    assert len({run.heat for run in runs}) == 1 and runs[0].heat


def test_with_turns_of_no_steps_and_for_a_single_entrant_runs_are_alone(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [enter("adamw", 4), enter("muon", 4)]
    for entrants, turn_steps in ((pair, 0), (pair[:1], 2)):
        for run in race(micro_track, micro_options, entrants, turn_steps=turn_steps):
            assert (run.heat, run.turn_steps) == ("", 0)
            assert not store.turns_path(Path(micro_options.results), run.run).exists()


def test_a_clock_runs_in_the_turns_of_its_own_run_only(
    micro_track: Track, micro_options: Options
) -> None:
    now = [0.0]
    trainer = Trainer(micro_track, micro_options, lambda: now[0])
    turns = trainer.run_in_turns(enter("adamw", 4), seed=0, turn_steps=2)
    model = trainer.program.model

    def slow(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        now[0] += 1 if torch.is_grad_enabled() else 100
        return model(inputs, targets)

    trainer.program.model = slow
    out = next(turns)
    for _ in turns:
        now[0] += 1000  # another run's turn
    assert out.clock.seconds == 4
    assert out.turns == [Turn(0, 2, 2.0), Turn(1, 2, 2.0)]


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.compile trace a program and run it as traced: to make code takes most of a minute.

    How many programs there are is decided before there is code.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()


def test_runs_that_take_turns_share_one_compiled_program(
    without_code: None, micro_track: Track, micro_options: Options
) -> None:
    options = replace(micro_options, compile=True)
    entrants = [enter("adamw", 4), enter("muon", 4), enter("lion", 4)]
    runs = race(micro_track, options, entrants, seeds=2)
    assert all(run.compiled for run in runs)
    # One program to train and one to validate, which has no gradients.
    assert counters["stats"]["unique_graphs"] == 2
    seconds = {(run.label, run.seed): run.compile_seconds for run in runs}
    assert max(seconds, key=seconds.__getitem__) == ("adamw", 0)  # the first to warm up
    assert_as_alone(runs, entrants, Trainer(micro_track, options))


def test_a_run_that_diverges_leaves_the_others_going(
    micro_track: Track, micro_options: Options
) -> None:
    wild = enter("adamw:lr=1e9,embed_lr=1e9,head_lr=1e9", 8)
    alone = Trainer(micro_track, micro_options).run(enter("muon", 8), seed=0)
    runs = {run.label: run for run in race(micro_track, micro_options, [wild, enter("muon", 8)])}
    assert runs[wild.label].status == DIVERGED
    assert runs["muon"].status != DIVERGED and runs["muon"].steps == 8
    assert losses(micro_options.results, runs["muon"])[-1][0] == alone.points[-1].val_loss


def test_a_race_that_is_stopped_keeps_what_had_ended_and_goes_on_with_the_rest(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrants = [enter("adamw", 6), enter("muon", 2)]
    step_of = Trainer.step

    def step(self: Trainer, *arguments: Any, **options: Any) -> Any:
        if arguments[3].steps == 5:
            raise KeyboardInterrupt
        return step_of(self, *arguments, **options)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Trainer, "step", step)
        race(micro_track, micro_options, entrants)
    (done,) = store.read_runs(Path(micro_options.results))
    assert done.label == "muon" and done.heat
    trainer = Trainer(micro_track, micro_options)
    runs = speedrun.race(trainer, entrants, 1, "race", [done])
    assert [run.label for run in runs] == ["muon", "adamw"]
    assert runs[1].turn_steps == 0  # it had nothing to take turns with


@pytest.mark.parametrize("where", ["the next model", "its warm-up"])
def test_runs_that_the_memory_does_not_hold_together_run_one_at_a_time(
    where: str,
    micro_track: Track,
    micro_options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if where == "the next model":
        monkeypatch.setattr(program, "available_bytes", lambda device: 1000)
    else:

        def crowded(self: speedrun.Program, tau: float | None, reserve: int = 0) -> float:
            programs.append(self)
            return 0.0 if self is programs[0] else 2.0  # no memory for a second one

        programs: list[speedrun.Program] = []
        monkeypatch.setattr(speedrun.Program, "try_step", crowded)
    entrants = [enter("adamw", 3), enter("muon", 3)]
    runs = race(micro_track, micro_options, entrants, seeds=2)
    assert len(runs) == 4
    assert {(run.heat, run.turn_steps, run.status) for run in runs} == {("", 0, REACHED)}
    assert capsys.readouterr().out.count("does not hold several runs") == 1


class FakeAllocator:
    """Counts as a GPU's allocator does: what is allocated now, and the most since a reset."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        for name, answer in (
            ("memory_allocated", lambda device: self.now),
            ("max_memory_allocated", lambda device: self.most),
            ("reset_peak_memory_stats", lambda device: self.take(0)),
        ):
            monkeypatch.setattr(torch.cuda, name, answer)

    def take(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now) if change else self.now


def test_on_a_gpu_a_peak_leaves_out_what_the_other_runs_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeAllocator(monkeypatch)
    gpu.take(7)  # of the process, before any turn: counts for no run
    peaks = [memory.Peak(torch.device("cuda")) for _ in range(2)]
    held = (100, 30)  # kept between turns
    work = (50, 500)  # only within a turn
    for round in range(3):
        for peak, keeps, needs in zip(peaks, held, work, strict=True):
            peak.begin_turn()
            gpu.take(keeps if round == 0 else 0)
            gpu.take(needs)
            gpu.take(-needs)
            peak.end_turn()
    assert [peak.bytes for peak in peaks] == [150, 530]


def test_on_a_gpu_a_heat_that_is_given_up_leaves_nothing_in_a_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpu = FakeAllocator(monkeypatch)
    peak = memory.Peak(torch.device("cuda"))
    peak.begin_turn()
    gpu.take(100)  # its model
    peak.end_turn()
    gpu.take(40)  # another run, which is given up
    peak.end_turn()
    assert peak.read() == 100
    gpu.take(-40)
    peak.begin_turn()
    gpu.take(50)
    assert peak.read() == 150


def test_on_a_cpu_the_peak_is_what_a_step_adds_whatever_the_process_held_before(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, added = [], iter((300, 500, 300, 500))

    def process_memory() -> int:
        held.append(10**9 + 10**7 * len(held))  # grows with each run that is alive
        return held[-1]

    monkeypatch.setattr(memory.Peak, "floor", 0)
    monkeypatch.setattr(memory.machine, "process_memory", process_memory)
    monkeypatch.setattr(memory.machine, "peak_memory", lambda device: held[-1] + next(added))
    # The second seed warms up in reverse order.
    runs = race(micro_track, micro_options, [enter("adamw", 2), enter("muon", 2)], seeds=2)
    without_weights = 10**9 - runs[0].param_bytes
    peaks = {(run.label, run.seed): run.peak_memory_bytes - without_weights for run in runs}
    assert peaks == {
        ("adamw", 0): 300, ("muon", 0): 500,
        ("muon", 1): 300, ("adamw", 1): 500,
    }  # fmt: skip


def test_memory_that_can_still_be_had_is_read_from_the_system() -> None:
    assert 1 << 20 < memory.available_bytes(torch.device("cpu")) < 1 << 62


def turns_of(outcomes: Iterator[Outcome]) -> list[int]:
    return [len(out.turns) for out in outcomes]


def test_a_run_yields_when_it_is_warm_and_after_each_turn(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    assert turns_of(trainer.run_in_turns(enter("adamw", 5), 0, turn_steps=2)) == [0, 1, 2, 3]
    assert turns_of(trainer.run_in_turns(enter("adamw", 5), 0, turn_steps=0)) == [0, 1]


def test_state_that_the_other_runs_will_have_counts_before_a_run_joins(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(micro_track, micro_options)
    next(trainer.run_in_turns(enter("adamw"), seed=0, turn_steps=1))
    weights = sum(p.nbytes for p in trainer.gpt.parameters())
    assert trainer.engine.state_bytes()["state"] == 0  # not yet
    assert trainer.program.state_bytes >= 2 * weights
    least = 4 * weights + trainer.program.state_bytes
    for available, fits in ((least - 1, False), (least, True)):
        monkeypatch.setattr(program, "available_bytes", lambda device, found=available: found)
        if fits:
            assert len(list(trainer.crew(2))) == 2
        else:
            with pytest.raises(memory.CrowdedError):
                list(trainer.crew(2))


def test_a_heat_begins_without_the_optimizers_of_the_last_one(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    for by, entrant in zip(trainer.crew(2), (enter("adamw", 2), enter("muon", 2)), strict=True):
        by.run(entrant, seed=0)
        assert by.engine.state_bytes()["state"] > 0
    for by in trainer.crew(2):
        by.forget()
        assert by.engine.state_bytes()["state"] == 0


def test_with_ddp_too_all_runs_share_one_compiled_program(
    without_code: None, micro_track: Track, micro_options: Options
) -> None:
    with one_process():
        options = replace(micro_options, compile=True, engine="ddp")
        trainer = Trainer(micro_track, options)
        entrants = [enter(name, 2) for name in ("adamw", "muon", "lion")]
        speedrun.race(trainer, entrants, 1, "race", [])
        trainer.engine.close()
    assert counters["stats"]["unique_graphs"] == 2  # to train and to validate
