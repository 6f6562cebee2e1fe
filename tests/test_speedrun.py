"""The trainer: schedule, clock, warm-up, determinism, divergence, and what a mistake answers."""

import itertools
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import speedrun
from errors import UserError
from optim.entrants import parse
from runtime import machine, program
from runtime.clock import Clock
from speedrun import Options, Schedule, Track, Trainer
from tracking import store
from tracking.schema import DIVERGED, MISSED, REACHED


def test_the_schedule_rises_from_nothing_stays_and_falls_to_nothing() -> None:
    schedule = Schedule(steps=10, warmup=0.2, cooldown=0.5)
    factors = [schedule.factor(step) for step in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert [Schedule(steps=3, warmup=0, cooldown=0).factor(step) for step in range(3)] == [1, 1, 1]
    assert Schedule(steps=4, cooldown=1.0).factor(0) == 1


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": 9, "warmup": -0.1}, {"steps": 9, "cooldown": 1.3}]
)
def test_a_schedule_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Schedule(**options)  # type: ignore[arg-type]


def test_validation_is_denser_in_the_last_tenth_and_the_same_for_all_horizons() -> None:
    track = speedrun.TRACKS["tiny"]
    for steps in (60, 85, 100):
        due = [step for step in range(1, steps + 1) if track.validates(step, steps)]
        early = [step for step in due if step <= 0.9 * steps]
        assert early == list(range(track.val_every, int(0.9 * steps) + 1, track.val_every))
        assert due[-1] == steps
        late = [step for step in due if step > 0.9 * steps]
        assert max(b - a for a, b in itertools.pairwise(late)) <= track.val_every_late


class FakeTime:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_the_clock_counts_what_lies_between_start_and_stop() -> None:
    now = FakeTime()
    clock = Clock(now)
    now.seconds += 100
    clock.start()
    with clock.part("data"):
        now.seconds += 1
    with clock.part("optimizer"):
        now.seconds += 2
    now.seconds += 4  # on the clock, in no part
    clock.stop()
    now.seconds += 100
    assert clock.seconds == 7
    assert clock.parts == {
        "data": 1, "forward_backward": 0, "optimizer": 2, "communication": 0
    }  # fmt: skip
    assert clock.read_interval()["all"] == 7
    clock.start()
    now.seconds += 3
    assert clock.seconds == 10
    clock.stop()
    assert clock.read_interval() == {
        "all": 3, "data": 0, "forward_backward": 0, "optimizer": 0, "communication": 0
    }  # fmt: skip


def entrant(text: str, steps: int = 10) -> speedrun.Entrant:
    return speedrun.enter(text, "tiny", steps)


def test_training_is_on_the_clock_and_validation_and_warm_up_are_not(
    micro_track: Track, micro_options: Options
) -> None:
    now = FakeTime()
    trainer = Trainer(micro_track, micro_options, now)
    model = trainer.program.model

    def slow_model(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        now.seconds += 1 if torch.is_grad_enabled() else 1000
        return model(inputs, targets)

    trainer.program.model = slow_model
    out = trainer.run(entrant("muon"), seed=0)
    steps = [point.step for point in out.points]
    assert steps == [4, 8, 10]
    assert out.clock.seconds == out.clock.parts["forward_backward"] == 10
    assert [point.train_seconds for point in out.points] == [4, 8, 10]
    assert [point.step_ms for point in out.points] == [1000, 1000, 1000]
    assert out.val_seconds == 1000 * len(trainer.val_batches()) * len(out.points)
    assert out.compile_seconds == 1001  # one step and one validation batch


def test_warm_up_restores_weights_and_optimizer_state(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    trainer.gpt.init_weights(7)
    before = {name: p.clone() for name, p in trainer.gpt.named_parameters()}
    for name in ("muon", "adamw"):
        trainer.build(entrant(name))
        trainer.program.warm_up(tau=None)
        for key, p in trainer.gpt.named_parameters():
            assert torch.equal(p, before[key]) and p.grad is None
        assert trainer.engine.state_bytes()["state"] == 0


def test_warm_up_calls_the_model_as_a_step_does(micro_track: Track, micro_options: Options) -> None:
    """torch.compile would compile anew, on the clock, where inputs and targets are one tensor."""
    trainer = Trainer(micro_track, micro_options)
    model = trainer.program.model
    same: list[bool] = []

    def watched(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        same.append(inputs is targets or inputs.data_ptr() == targets.data_ptr())
        return model(inputs, targets)

    trainer.program.model = watched
    trainer.build(entrant("muon"))
    trainer.program.warm_up(tau=None)
    assert same == [False, False]  # a forward and backward pass, and a validation


@pytest.mark.slow
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_the_same_seed_gives_the_same_curve_bit_for_bit(
    name: str, micro_track: Track, micro_options: Options
) -> None:
    def losses(trainer: Trainer, seed: int) -> list[tuple[float | None, float, float | None]]:
        points = trainer.run(entrant(name), seed).points
        return [(point.train_loss, point.val_loss, point.grad_norm) for point in points]

    trainer = Trainer(micro_track, micro_options)
    first = losses(trainer, 3)
    assert losses(trainer, 4) != first
    assert losses(trainer, 3) == first
    assert losses(Trainer(micro_track, micro_options), 3) == first


@pytest.mark.slow
def test_training_lowers_the_loss_and_the_target_decides_the_status(
    micro_track: Track, micro_options: Options
) -> None:
    out = Trainer(micro_track, micro_options).run(entrant("muon", 30), seed=0)
    assert out.points[-1].val_loss < out.points[0].val_loss < math.log(1024) + 0.5
    assert out.status == REACHED
    hard = replace(micro_track, target=0.5)
    assert Trainer(hard, micro_options).run(entrant("muon"), seed=0).status == MISSED


@pytest.mark.slow
def test_a_run_that_explodes_ends_as_diverged_and_the_race_goes_on(
    micro_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = "adamw:lr=1e30,embed_lr=1e30"
    assert speedrun.main([wild, "muon", "--seeds=2", "--steps=10", *micro_flags]) == 0
    runs = store.read_runs(tmp_path / "results")
    assert {(run.label, run.seed): run.status for run in runs} == {
        (wild, 0): DIVERGED, ("muon", 0): REACHED, ("muon", 1): REACHED, (wild, 1): DIVERGED
    }  # fmt: skip
    assert all(run.steps < 10 for run in runs if run.label == wild)
    assert runs[0].track == "custom"
    assert "0 of 2" in capsys.readouterr().out


def test_a_validation_loss_that_is_not_a_number_ends_the_run(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(micro_track, micro_options)
    monkeypatch.setattr(trainer, "validate", lambda out: math.nan)
    out = trainer.run(entrant("adamw"), seed=0)
    assert (out.status, out.steps, out.points) == (DIVERGED, 4, [])


def test_without_a_compiler_it_runs_eagerly_and_says_so(
    micro_track: Track, micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    trainer = Trainer(micro_track, replace(micro_options, compile=True))
    assert trainer.program.eager_reason == "no C++ compiler found"
    assert trainer.run(entrant("adamw", 2), seed=0).steps == 2


def test_a_compilation_that_fails_is_noted_and_the_run_goes_on(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    trainer.program.eager_reason = ""

    def broken(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such instruction\nat line 3")

    trainer.program.model = broken
    assert trainer.run(entrant("adamw", 2), seed=0).steps == 2
    assert trainer.program.eager_reason == "compilation failed: no such instruction"


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no room"), RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED")]
)
def test_the_microbatch_shrinks_until_it_fits_and_changes_nothing(
    error: RuntimeError, micro_track: Track, micro_options: Options
) -> None:
    whole = Trainer(micro_track, micro_options).run(entrant("adamw", 4), seed=0)
    trainer = Trainer(micro_track, micro_options)
    model = trainer.program.model

    def small_memory(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 2:
            raise error
        return model(inputs, targets)

    trainer.program.model = small_memory
    out = trainer.run(entrant("adamw", 4), seed=0)
    assert (trainer.program.batch_seqs, trainer.program.microbatch) == (8, 2)
    assert out.points[-1].val_loss == pytest.approx(whole.points[-1].val_loss, rel=1e-4)
    fixed = Trainer(micro_track, replace(micro_options, microbatch=4))
    fixed.program.model = small_memory
    with pytest.raises(UserError, match="4 sequences of 32 tokens.*--microbatch 2"):
        fixed.run(entrant("adamw", 4), seed=0)


@pytest.mark.parametrize(
    ("most", "sequences"), [(1 << 16, 8), (8 * 32, 8), (200, 4), (100, 2), (1, 1)]
)
def test_a_microbatch_has_no_more_tokens_than_fill_a_gpu(
    most: int,
    sequences: int,
    micro_track: Track,
    micro_options: Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(program, "MOST_TOKENS", most)
    assert Trainer(micro_track, micro_options).program.microbatch == sequences


def test_the_track_hash_follows_every_value_but_the_target() -> None:
    track = speedrun.TRACKS["tiny"]
    assert replace(track, target=1.0).hash() == track.hash()
    assert replace(track, val_every=7).hash() != track.hash()
    assert replace(track, width=64).hash() != track.hash()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--track=huge"], "--track huge: must be one of tiny"),
        (["moun"], "unknown entrant 'moun': did you mean muon"),
        (["muon:lrr=1"], "unknown option 'lrr': did you mean lr"),
        (["muon:lr=fast"], "lr=fast: must be float"),
        (["muon:lr"], "lr has no value"),
        (["muon:momentum=2"], "momentum"),
        (["muon:ns_coefficients=x"], "ns_coefficients='x'.*jordan"),
        (["muon", "--ns-backend=x"], "muon: ns_backend='x': must be one of auto, plain"),
        (["muon", "muon"], "named twice"),
        (["--batch-tokens=1000"], "multiple of 128.*--batch-tokens"),
        (["--val-tokens=99999999"], "--val-tokens"),
        (["--width=100"], "width 100.*multiple of the head size 32.*--width 96"),
        (["--seq-len=0"], "--seq-len 0: must be above 0"),
        (["--val-every=-1"], "--val-every -1"),
        (["--target=nan"], "--target nan"),
        (["--model=huge"], "--model huge: must be one of tiny"),
        (["--dataset=pile"], "--dataset pile: must be one of sotu"),
        (["--threads=-1"], "--threads -1"),
        (["--seeds=0"], "--seeds 0"),
        (["--target=inf"], "--target inf.*finite"),
        (["--steps=0"], "steps=0"),
        (["--engine=magic"], "--engine magic.*single"),
        (["--dtype=float8"], "--dtype float8.*bfloat16"),
        (["--resume=nope"], "--resume nope.*make speedrun"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    flags = ["--dtype=float32", "--threads=1", "--no-compile", f"--results={results}"]
    assert speedrun.main([*flags, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not list(results.glob("*"))


def test_tuned_settings_are_used_unless_replaced(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned.toml"
    tuned.write_text("[tiny.muon]\nlr = 0.5\nsteps = 77\ntrials = [3]\n")
    plain = parse("muon", "tiny", Schedule, {"steps": 100}, {}, tuned)
    assert (plain.settings["lr"], plain.settings["steps"]) == (0.5, 77)
    assert plain.origin == "tuned for tiny"
    changed = parse("muon:lr=0.1", "tiny", Schedule, {"steps": 100}, {"steps": 5}, tuned)
    assert (changed.settings["lr"], changed.settings["steps"]) == (0.1, 5)
    assert "lr=0.1" in changed.origin


def test_a_full_disk_and_a_foreign_file_are_known_before_training(
    micro_flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Trainer, "run", lambda *anything: pytest.fail("it trained"))
    runs = tmp_path / "results" / "runs.csv"
    runs.parent.mkdir()
    runs.write_text("name,loss\nmine,3\n")
    assert speedrun.main(["adamw", *micro_flags]) == 2
    assert "runs.csv line 1" in capsys.readouterr().err
    assert runs.read_text() == "name,loss\nmine,3\n"
    runs.unlink()
    monkeypatch.setattr(store, "ROOM", 1 << 62)
    assert speedrun.main(["adamw", *micro_flags]) == 2
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert speedrun.main(["adamw", *micro_flags[:-1], "--results=/dev/null/here"]) == 2
    assert "/dev/null/here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("microbatch", "message"),
    [
        (12, "12 sequences of 8 tokens do not fit .*; run with --microbatch 6$"),
        (4, "4 sequences of 8 tokens do not fit .*; run with --microbatch 2$"),
        (1, "1 sequence of 8 tokens does not fit .*; run with a smaller --width or --seq-len"),
    ],
)
def test_what_does_not_fit_the_memory_is_told_what_may(microbatch: int, message: str) -> None:
    fixed = program.Program.__new__(program.Program)
    fixed.batch_seqs, fixed.seq_len, fixed.microbatch = 12, 8, microbatch
    fixed.auto_microbatch, fixed.device = False, torch.device("cpu")
    with pytest.raises(UserError, match=message):
        fixed.halve_microbatch()


def test_the_kind_of_processor_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("this system does not say what its processor can do")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    units = machine.bfloat16_units(cpu)
    assert units == [name for name in ("avx512_bf16", "amx_bf16") if name in cpuinfo.read_text()]
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        for limit, left in (("AVX2", 0), ("AVX512_CORE", 0), ("AVX512_CORE_BF16", 1), ("ALL", 2)):
            monkeypatch.setenv(variable, limit)
            assert machine.bfloat16_units(cpu) == units[:left]
        monkeypatch.delenv(variable)
