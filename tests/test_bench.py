"""The measurements of speed: the CSVs that they write.

python -m pytest tests/test_bench.py
"""

import csv
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench
import data.gpt2
from bench import (
    agreement,
    coverage,
    disturbed,
    kernels,
    kinds,
    newton_schulz,
    optimizer_step,
    peers,
    products,
    step,
    turns,
)
from layers.attention import WAYS
from layers.config import PRESETS, preset
from model import GPT
from runtime import machine
from speedrun import Options, Track, Trainer

RECORDS = Path(__file__).parents[1] / "results" / "records"
needs_peer = pytest.mark.skipif(not peers.installed(), reason=peers.MISSING)


def test_a_bench_writes_what_it_measured_and_on_which_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    cpu = torch.device("cpu")
    measured: list[bench.Row] = [{"step": "Muon", "ms": 20.5}, {"step": "AdamW", "ms": 0.8}]
    bench.write("step", measured, bench.environment(cpu))
    with (tmp_path / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["ms"]) for row in rows] == [("Muon", "20.5"), ("AdamW", "0.8")]
    for row in rows:
        assert row["device"] == machine.device_name(cpu)
        assert row["bfloat16 units"] == (" ".join(machine.bfloat16_units(cpu)) or "none")
        assert row["threads"] == str(torch.get_num_threads())
        assert row["torch"] == torch.__version__
    assert capsys.readouterr().out.count(machine.device_name(cpu)) == 1  # below the table


@pytest.mark.parametrize(
    "main",
    [
        agreement.main,
        coverage.main,
        data.gpt2.main,
        disturbed.main,
        kernels.main,
        kinds.main,
        machine.main,
        newton_schulz.main,
        optimizer_step.main,
        products.main,
        step.main,
        turns.main,
    ],
    ids=lambda main: main.__module__,
)
def test_help_is_printed_and_nothing_is_done(
    main: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"usage: python -m {main.__module__} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize("record", ["bench-amx", "bench-epyc"])
def test_every_committed_csv_names_its_machine(record: str) -> None:
    paths = sorted({*(RECORDS / record).glob("*.csv")} - {RECORDS / record / "manifest.csv"})
    assert "step.csv" in [path.name for path in paths]
    for path in paths:
        with path.open(newline="") as file:
            assert all(row["device"] for row in csv.DictReader(file)), path.name


# ---- The whole step, and the peer --------------------------------------------------------------


@pytest.fixture
def small_tracks(micro_track: Track, monkeypatch: pytest.MonkeyPatch) -> list[Track]:
    """The tracks that the bench of the step measures, with one layer."""
    for name in ("tiny-classic", "tiny"):
        monkeypatch.setitem(PRESETS, name, PRESETS[name] | {"n_layer": 1})
    return [replace(micro_track, name=name, model=name) for name in ("tiny-classic", "tiny")]


@needs_peer
@pytest.mark.parametrize("attention", peers.ATTENTIONS)
def test_the_peer_computes_what_our_model_computes(attention: str) -> None:
    """With our weights: its loss, its gradients, and its number of parameters."""
    ours = GPT(preset("tiny-classic", vocab_size=96, block_size=16, width=64))
    ours.init_weights(0)
    theirs = peers.GPT2(ours.config, attention)
    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))

    def as_ours(name: str, value: Tensor) -> Tensor:
        table = value.ndim < 2 or name.startswith(("embed", "positions"))
        return value if table else value.T  # theirs are (n_in n_out)

    with torch.no_grad():
        for (name, own), other in pairs:
            as_ours(name, other).copy_(own.add_(0.1 * torch.randn(own.shape)))
    inputs, targets = (torch.randint(96, (3, 16)) for _ in range(2))
    loss = ours(inputs, targets) / targets.numel()
    other_loss = theirs(inputs, targets)
    torch.testing.assert_close(other_loss, loss)
    loss.backward()
    other_loss.backward()
    for (name, own), other in pairs:
        assert own.grad is not None and other.grad is not None, name
        torch.testing.assert_close(as_ours(name, other.grad), own.grad, atol=1e-6, rtol=1e-4)


@needs_peer
def test_the_step_is_measured_beside_the_peer(
    small_tracks: list[Track], micro_options: Options
) -> None:
    rows = step.measure(small_tracks, micro_options, ways=[False], rounds=1)
    assert [row["model"] for row in rows] == ["tiny-classic", *[peers.NAME] * 2, "tiny"]
    assert [row["attention"] for row in rows[1:3]] == list(peers.ATTENTIONS)
    assert {(row["dtype"], row["compiled"]) for row in rows} == {("float32", "no")}
    ours, theirs = [rows[0], rows[3]], rows[1:3]
    assert min(str(row["times the best peer"]) for row in theirs) == "1.00x"
    assert all(0 < float(row["adamw ms"]) < float(row["step ms"]) for row in rows)
    assert all(0 < float(row["muon ms"]) < float(row["step with muon ms"]) for row in ours)
    assert all(row["step with muon ms"] == row["muon ms"] == "" for row in theirs)


def test_the_step_is_measured_where_there_is_no_peer(
    small_tracks: list[Track], micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "installed", lambda: False)
    rows = step.measure(small_tracks, micro_options, ways=[False], rounds=1)
    assert [row["model"] for row in rows] == ["tiny-classic", "tiny"]
    assert [row["times the best peer"] for row in rows] == ["", ""]
    assert peers.version() == {}


def test_a_step_that_does_not_learn_is_not_measured(
    small_tracks: list[Track], micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "installed", lambda: False)
    monkeypatch.setattr(step.engines.single.Engine, "step", lambda engine: None)
    with pytest.raises(RuntimeError, match="the loss went from"):
        step.measure(small_tracks[:1], micro_options, ways=[False], rounds=1)


def test_a_step_is_compared_with_the_fastest_peer_of_its_precision() -> None:
    adamw = {
        step.Name("tiny", "plain", "yes", "adamw"): 100.0,
        step.Name(peers.NAME, "sdpa", "yes", "adamw"): 250.0,
        step.Name(peers.NAME, "eager", "no", "adamw"): 200.0,
    }
    muon = {step.Name("tiny", "plain", "yes", "muon"): 110.0}
    update_ms = dict.fromkeys(adamw, 1.0) | dict.fromkeys(muon, 11.0)
    flops = {"tiny": 4e9, peers.NAME: 4e9}
    rows = step.rows_of("float32", adamw | muon, update_ms, flops, peak=1e11)
    assert [row["times the best peer"] for row in rows] == ["0.50x", "1.25x", "1.00x"]
    assert [row["ms at peak"] for row in rows] == [40.0] * 3
    assert [row["share"] for row in rows] == ["40.0%", "16.0%", "20.0%"]
    assert (rows[0]["share with muon"], rows[0]["muon's part of the step"]) == ("36.4%", "10.0%")


# ---- The kinds of work in a step ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", kinds.LINEAR),
        ("aten::addmm", kinds.LINEAR),
        ("mkldnn::_linear_pointwise", kinds.LINEAR),
        ("graph_0_cpp_fused_addmm_gelu_3", kinds.LINEAR),
        ("aten::bmm", kinds.ATTENTION),
        ("aten::baddbmm", kinds.ATTENTION),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", kinds.ATTENTION),
        ("cpp_fused_bmm_1", kinds.ATTENTION),
        # A pass over the result of fused attention, not attention itself.
        (
            "graph_0_cpp_fused__scaled_dot_product_flash_attention_for_cpu_backward_sum_4",
            kinds.POINTWISE,
        ),
        ("graph_0_cpp_fused__softmax_masked_fill_mul_1", kinds.POINTWISE),
        ("graph_0_cpp_fused_add_embedding_mean_mul_pow_rsqrt_0", kinds.EMBEDDING),
        ("aten::embedding_dense_backward", kinds.EMBEDDING),
        ("aten::copy_", kinds.OTHER),
        ("autograd::engine::evaluate_function: EmbeddingBackward0", ""),
        ("Torch-Compiled Region: 0/0", ""),
        ("CompiledFunctionBackward", ""),
    ],
)
def test_the_kind_of_work_follows_from_what_the_profiler_calls_it(name: str, kind: str) -> None:
    assert kinds.kind_of(name) == kind


def assert_adds_up(rows: list[bench.Row]) -> dict[str, float]:
    """The milliseconds of each kind, which are together the whole step."""
    ms = {str(row["kind"]): float(row["ms"]) for row in rows}
    whole = ms.pop(kinds.WHOLE)
    assert list(ms) == [*kinds.KINDS, kinds.UNKNOWN]
    assert sum(ms.values()) == pytest.approx(whole, abs=0.01 * len(ms))
    assert min(ms.values()) >= 0
    return ms


@pytest.mark.parametrize("attention", WAYS)
def test_the_kinds_of_an_eager_step_add_up(
    small_tracks: list[Track], micro_options: Options, attention: str
) -> None:
    options = replace(micro_options, attention=attention)
    ms = assert_adds_up(kinds.measure(Trainer(small_tracks[1], options), steps=4))
    empty = {f"{kinds.POINTWISE}, {part}" for part in kinds.PASSES}  # kernels of compiled graphs
    assert {kind for kind, value in ms.items() if not value} == empty


@pytest.mark.slow
def test_the_kinds_of_a_compiled_step_add_up(
    small_tracks: list[Track], micro_options: Options
) -> None:
    trainer = Trainer(small_tracks[1], replace(micro_options, compile=True))
    ms = assert_adds_up(kinds.measure(trainer, steps=4))
    if not trainer.program.eager_reason:
        assert all(ms[f"{kinds.POINTWISE}, {part}"] for part in kinds.PASSES)


def test_time_outside_all_operations_is_not_attributed_and_the_optimizer_is_one_kind(
    small_tracks: list[Track], micro_options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(small_tracks[1], micro_options)
    backward, update = trainer.engine.backward, trainer.engine.step

    def slow_backward(loss: Tensor, last: bool) -> None:
        time.sleep(0.1)
        backward(loss, last)

    def slow_update() -> None:
        time.sleep(0.2)
        update()

    monkeypatch.setattr(trainer.engine, "backward", slow_backward)
    monkeypatch.setattr(trainer.engine, "step", slow_update)
    ms = assert_adds_up(kinds.measure(trainer, steps=1))
    assert ms[kinds.UNKNOWN] >= 100 and ms[kinds.OPTIMIZER] >= 200


def test_the_flops_of_the_kinds_are_those_of_the_model(
    small_tracks: list[Track], micro_options: Options
) -> None:
    for track in small_tracks:
        trainer = Trainer(track, micro_options)
        flops = kinds.Step(trainer).flops()
        whole = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
        assert sum(flops.values()) == pytest.approx(whole)
        matrices, head = (
            sum(r.param.numel() for r in trainer.gpt.roles() if r.role == role)
            for role in ("matrix", "head")
        )
        forward, backward = (flops[f"{kinds.LINEAR}, {part}"] for part in kinds.PASSES)
        # The loss computes the gradients of the head in the forward pass.
        assert forward == (2 * matrices + 6 * head) * track.batch_tokens
        assert backward == 4 * matrices * track.batch_tokens


def test_a_step_that_was_disturbed_is_left_out_of_the_kinds() -> None:
    quiet = kinds.Profiled(10.0, Counter({kinds.OPTIMIZER: 4.0, f"{kinds.LINEAR}, forward": 5.0}))
    disturbed = kinds.Profiled(90.0, Counter({kinds.OPTIMIZER: 80.0}))
    flops = {f"{kinds.LINEAR}, forward": 1e9}
    rows = kinds.rows_of("float32", "fused", [quiet, disturbed, quiet, quiet], flops, peak=4e11)
    ms = assert_adds_up(rows)
    assert (ms[kinds.OPTIMIZER], ms[kinds.UNKNOWN]) == (4.0, 1.0)
    linear = next(row for row in rows if row["GFLOP"])
    assert (linear["share"], linear["GFLOP/s"], linear["ms at peak"]) == ("50.0%", "200", "2.50")
