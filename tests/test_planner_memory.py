"""Memory by formula: against real rules, measured engines, published numbers and closed forms."""

import csv
import random
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import optim
from analysis import engines as measured
from engines import _rules
from errors import UserError
from planner import models
from planner.__main__ import main
from planner.charts import memory_by_kind
from planner.cluster.hardware import GPUS
from planner.cluster.setting import Setting
from planner.memory import activations as memory
from planner.memory import footprint, layouts, traced, update_rules
from planner.memory.footprint import Footprint, Kept
from planner.memory.layouts import Tensors
from planner.models import own_models
from planner.models.weights import Model, Weight
from planner.race import dry_run
from speedrun import TRACKS, Track, enter
from tests.races import assert_legible
from tracking.spelling import recipe_of
from tracking.store import read_runs

ROOT = Path(__file__).parents[1]
FLOAT32 = Setting(dtype="float32", master=False)
GIB = 2**30
SHAPES = ((96, 32), (32, 96), (48, 48))
SLOW = ("shampoo",)  # decompositions
OF_LIBRARIES = ("ademamix", "kron", "lamb", "mars", "schedule-free")  # slow to import


def plan(
    model: Model, rule: str, engine: str, ranks: int, setting: Setting = FLOAT32, **how: bool
) -> Footprint:
    return footprint.footprint(model, update_rules.find(rule), engine, setting, ranks, **how)


def toy(count: int = 5, side: int = 8) -> Model:
    """Square matrices, one a layer, and a table."""
    weights = (Weight("W", "mlp", side, side, count), Weight("table", "head", 64, side))
    return Model("toy", "toy", weights, count, side, 16, 1, side, side, 8, 16 * 128, 0)


# ---- Rules -------------------------------------------------------------------------------------


def test_every_recipe_has_a_formula() -> None:
    assert set(update_rules.RULES) == set(optim.recipes())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in (*OF_LIBRARIES, *SLOW) else name
        for name in update_rules.RULES
    ],
)
def test_a_formula_is_the_state_that_the_rule_holds(name: str) -> None:
    if name in OF_LIBRARIES:
        pytest.importorskip("heavyball" if name == "kron" else "pytorch_optimizer")
    rule = update_rules.find(name)
    rows = [
        SimpleNamespace(
            name=str(shape), param=nn.Parameter(torch.empty(shape, device="meta")), role="matrix",
            splits=shape[:1], head_rows=0,
        )
        for shape in SHAPES
    ]  # fmt: skip
    held = {}
    for group in optim.plan(rows, name, {}, torch.float32):
        assert rule.whole is not _rules.is_elementwise(group.rule)
        if "fused" in group.options:
            group.options["fused"] = False
        costs = dry_run.rule_costs(group, name)
        held |= {tuple(r.param.shape): c for r, c in zip(group.params, costs, strict=True)}
    for shape in SHAPES:
        beside = held[shape].state_bytes / 4 - rule.numbers(*shape)
        assert 0 <= beside <= update_rules.COUNTERS


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "adafactor", "dion", "soap"])
def test_the_state_of_a_whole_model_is_what_its_rules_hold(name: str) -> None:
    with torch.device("meta"):
        gpt = own_models.on_meta(TRACKS["tiny"])
    counted = dry_run.measure(gpt, enter(name, "tiny"), validations=0)
    found = plan(own_models.from_track("tiny"), name, "single", 1)
    assert found.params_bytes == counted.param_bytes
    assert found.state_bytes == pytest.approx(counted.state_bytes, rel=1e-4)


def test_tables_in_bfloat16_count_as_they_are_held() -> None:
    gpt = own_models.on_meta(TRACKS["gpt2"])
    counted = dry_run.measure(gpt, enter("muon", "gpt2"), validations=0)
    found = plan(own_models.from_track("gpt2"), "muon", "single", 1)
    assert found.params_bytes == found.grads_bytes == counted.param_bytes
    assert found.state_bytes == pytest.approx(counted.state_bytes, rel=1e-4)


# ---- Engines -----------------------------------------------------------------------------------


def test_the_memory_of_every_measured_engine_is_within_two_percent() -> None:
    tiny = own_models.from_track("tiny")
    runs = read_runs(ROOT / "results" / "records" / "engines")
    assert len({run.engine for run in runs}) >= 7
    for run in runs:
        found = plan(tiny, recipe_of(run.entrant), run.engine, run.world_size)
        state = found.master_bytes + found.state_bytes  # a row counts DeepSpeed's copies as state
        for planned, held in (
            (found.params_bytes, run.param_bytes),
            (found.grads_bytes, run.grad_bytes),
            (state, run.state_bytes),
        ):
            assert planned == pytest.approx(held, rel=measured.TOLERANCE), run.run


@pytest.mark.parametrize("setting", [FLOAT32, Setting()])
@pytest.mark.parametrize("engine", layouts.ENGINES)
def test_one_rank_holds_what_a_process_alone_holds(engine: str, setting: Setting) -> None:
    one, alone = (
        plan(toy(), "adamw", engine, 1, setting),
        plan(toy(), "adamw", "single", 1, setting),
    )
    assert one.state_bytes == alone.state_bytes and one.grads_bytes == alone.grads_bytes
    copies = one.params_bytes + one.master_bytes - alone.params_bytes - alone.master_bytes
    if engine == "fsdp2":  # its shards are the master copy
        copies += alone.params_bytes if setting.master_number_bytes else 0
    if engine.startswith("deepspeed-zero") and engine[-1] != "0":  # updates copies, always
        copies -= 0 if setting.master_number_bytes else alone.params_bytes
    assert copies == 0


@pytest.mark.parametrize("engine", ["sharded", "zero1", "zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("rule", ["adamw", "muon", "soap"])
def test_the_state_of_all_ranks_is_the_state_of_one_alone(engine: str, rule: str) -> None:
    alone = plan(toy(), rule, "single", 1)
    mean, most = plan(toy(), rule, engine, 4, mean=True), plan(toy(), rule, engine, 4)
    assert 4 * mean.state_bytes == pytest.approx(alone.state_bytes)
    assert mean.state_bytes <= most.state_bytes and mean.total_bytes <= most.total_bytes


def test_an_owner_of_more_matrices_than_others_is_the_fullest_rank() -> None:
    # Five matrices of 64 numbers on four ranks: one has two. The table's 512 are cut evenly.
    most = plan(toy(count=5), "muon", "sharded", 4)
    assert most.matrix_state_bytes == 2 * 64 * 4
    assert most.other_state_bytes == 2 * 512 * 4 / 4
    whole = plan(toy(count=5), "muon", "fsdp2", 4)
    assert whole.params_bytes == (5 * 64 + 512) * 4 / 4 + 2 * 64 * 4  # shards, and owned copies


def test_experts_are_divided_over_the_ranks_that_share_them() -> None:
    weights = (Weight("dense", "mlp", 8, 8, 4), Weight("expert", "experts", 8, 8, 16))
    model = Model("m", "m", weights, 4, 8, 16, 1, 8, 8, 8, 16 * 128, 0)
    found = plan(model, "muon", "sharded", 8, Setting(dtype="float32", expert_parallel=4))
    assert found.params_bytes == (4 + 16 / 4) * 64 * 4
    # Four dense matrices on eight ranks: one at most. Four experts of a part on two ranks: two.
    assert found.matrix_state_bytes == (1 + 2) * 64 * 4


def test_fsdp2_cuts_rows_so_the_first_of_many_ranks_has_a_whole_one() -> None:
    tall = Tensors((12, 100), 1, False, 0, processes=16)
    held = layouts.held("fsdp2", [tall], layouts.NumberBytes())
    assert held.params == 100 * 4


def test_deepspeed_keeps_whole_what_crosses_a_cut() -> None:
    random.seed(0)
    for n in (1, 2, 3, 7):
        row = [(random.randint(1, 40), random.randint(1, 5)) for _ in range(6)]
        sizes = [size for size, count in row for _ in range(count)]
        share, kept = sum(sizes) / n, [0] * n
        for rank in range(n):
            begin = 0
            for size in sizes:
                if begin < (rank + 1) * share - 1e-9 and begin + size > rank * share + 1e-9:
                    kept[rank] += size
                begin += size
        assert layouts._kept(row, n) == kept


@pytest.mark.parametrize("engine", ["sharded", "fsdp2", "deepspeed-zero2"])
def test_a_trillion_parameters_on_16384_ranks_take_a_moment(engine: str) -> None:
    model = models.find("kimi-k2")
    setting = Setting(batch_tokens=16384 * model.seq_len)
    began = time.process_time()  # not the clock: a test does not fail because others are busy
    plan(model, "muon", engine, 16384, setting)
    assert time.process_time() - began < 2  # seconds


# ---- Published ---------------------------------------------------------------------------------


def test_gpt2_state_is_949_and_625_mebibytes() -> None:
    gpt2 = models.find("gpt2-124m")
    state = {rule: plan(gpt2, rule, "single", 1).state_bytes / 2**20 for rule in ("adamw", "muon")}
    assert {rule: round(size) for rule, size in state.items()} == {"adamw": 949, "muon": 625}


def test_deepspeeds_saving_at_3b_is_more_than_optimizer_state_can_give() -> None:
    """Published: 34.5 and 31.4 GiB on each of eight A100, in bfloat16 with ZeRO 2."""
    model = models.find("qwen2.5-3b")
    assert model.hidden_params == pytest.approx(2.77e9, rel=0.005)  # without embedding: 2.77B

    def saved(engine: str, grad_dtype: str) -> float:
        setting = Setting(batch_tokens=32 * 8 * model.seq_len, grad_dtype=grad_dtype)
        adamw, muon = (
            plan(model, rule, engine, 8, setting, mean=True) for rule in ("adamw", "muon")
        )
        return (adamw.state_bytes - muon.state_bytes) / GIB

    # Of the 8 bytes for a hidden parameter, over 8 ranks: 4 are saved, or 6 with a momentum in
    # bfloat16, as its stage 2 has it, less what both sides of a cut keep. Without any state: 8.
    assert saved("zero2", "float32") == pytest.approx(1.29, abs=0.01)
    assert saved("deepspeed-zero2", "bfloat16") == pytest.approx(1.94, abs=0.05)
    assert model.hidden_params * 8 / 8 / GIB < 2.6 < 34.5 - 31.4


# ---- Activations -------------------------------------------------------------------------------


def test_activations_of_a_gpt_are_those_of_our_own_models() -> None:
    model = models.find("gpt2-124m")
    shape = memory.Shape(12, 768, 12, 4, 1024, 50257, 1, residual_bytes=2, loss_chunk=0)
    assert footprint.kept_by_layer(model, 2) == shape.layer_bytes()


def test_an_expert_keeps_its_own_copy_of_a_row() -> None:
    attention = Weight("o", "attention", 8, 8, 1)
    dense = (Weight("up", "mlp", 32, 8), Weight("down", "mlp", 8, 32))
    sparse = tuple(Weight(w.name, "experts", w.rows, w.cols, 4, token_share=0.25) for w in dense)
    kept = [
        footprint.kept_by_layer(Model("m", "m", (attention, *mlp), 1, 8, 16, 1, 8, 8, 8, 16, 0), 2)
        for mlp in (dense, sparse)
    ]
    assert kept[1] - kept[0] == 2 * 8 * 2  # the row that comes and the row that goes, in 16 bits


def test_checkpointing_keeps_the_input_of_each_layer() -> None:
    model = models.find("gpt2-124m")
    full, less = (
        footprint.activations(model, Setting(), 1024, Kept(checkpointing, loss_chunk=1))
        for checkpointing in (False, True)
    )
    layer = footprint.kept_by_layer(model, 2)
    assert full - less == 1024 * (11 * layer - 12 * 768 * 2)


def test_the_first_pipeline_stage_keeps_as_many_microbatches_as_there_are_stages() -> None:
    model = toy(count=8)
    kept = [
        footprint.activations(model, Setting(pipeline=4, microbatches=n), 16, Kept(loss_chunk=1))
        for n in (1, 4, 9)
    ]
    # More than one stage's layers only with more microbatches, and never more than four.
    layer = 16 * footprint.kept_by_layer(model, 2)
    assert kept[1] - 4 * 2 * layer == kept[2] - 4 * 2 * layer < kept[0]


def test_a_traced_step_holds_what_the_rules_hold(micro_track: Track) -> None:
    entrant = enter("muon", "tiny", 1)
    peak = traced.trace(micro_track, entrant, sequences=1)
    counted = dry_run.measure(own_models.on_meta(micro_track), entrant, validations=0)
    held = peak.params_bytes, peak.grads_bytes, peak.state_bytes
    assert held == (counted.param_bytes, counted.grad_bytes, counted.state_bytes)
    assert peak.activations_bytes > peak.temporary_bytes >= 0


@pytest.mark.slow
def test_a_traced_step_of_gpt2_takes_what_a_gpu_measured() -> None:
    folder = ROOT / "results" / "gpu" / "20261127T144900-nvidia-h200"
    with (folder / "measures.csv").open(encoding="utf-8", newline="") as file:
        gigabytes = {
            row["case"]: float(row["value"])
            for row in csv.DictReader(file)
            if row["quantity"] == "activations and logits, measured"
        }
    # bench/gpu_check: passes of 64 sequences where the model is compiled, of 32 where not.
    eager, twice = (
        traced.trace(TRACKS["gpt2"], enter("adamw", "gpt2"), sequences).working_bytes / 1e9
        for sequences in (32, 64)
    )
    assert eager == pytest.approx(gigabytes["adamw, eager"], rel=0.02)
    share = gigabytes["adamw, compiled"] / twice
    assert share == pytest.approx(traced.COMPILED_SHARE, abs=0.01)


# ---- The command -------------------------------------------------------------------------------


def test_the_csv_has_every_kind_and_their_sum(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "memory.csv"
    words = "memory gpt2-124m --optimizer adamw muon lion soap --engine ddp sharded fsdp2 --ranks 4"
    assert main([*words.split(), f"--csv={path}"]) == 0
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["optimizer"], row["engine"]) for row in rows[:3]] == [
        ("adamw", "ddp"), ("adamw", "sharded"), ("adamw", "fsdp2"),
    ]  # fmt: skip
    assert len(rows) == 12
    for row in rows:
        kinds = [name for name in row if name.endswith("_bytes") and "total" not in name]
        total = sum(int(row[name]) for name in kinds if not name.startswith("mean"))
        assert total == pytest.approx(int(row["total_bytes"]), abs=len(kinds))
        assert row["fits"] == " ".join(GPUS)
    assert "128 passes of 1,024 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gpt2-124m --ranks 0", "--ranks 0: must be at least 1"),
        ("gpt2-124m --ranks -8", "--ranks -8: must be at least 1"),
        ("gpt2-124m --ranks 1024", "run with fewer --ranks"),
        ("gpt2-124m --ranks 2 --engine single", "--engine single: takes one rank"),
        ("gpt2-124m --engine fsdp3", "--engine fsdp3: must be one of single, ddp"),
        ("gpt2-124m --optimizer moun", "did you mean muon?"),
        ("gpt2-124m --optimizer muon:lr=1", "run with --optimizer muon"),
        ("gpt2-124m --optimizer lib:torch.optim.Adagrad", "python -m planner race"),
        ("gpt2-124m --optimizer lion --engine deepspeed-zero2", "DeepSpeed has adamw, muon"),
        ("gpt2-124m --gpu v100", "--gpu v100: must be one of a100"),
        ("gpt2-124m --microbatches 65", "run with --microbatches 64 at most"),
        ("gpt2-124m --loss-chunk -1", "--loss-chunk -1"),
        ("gpt2-124m --dtype float16", "--dtype float16: must be bfloat16 or float32"),
        ("deepseek-v3 --ranks 24 --pipeline 16", "--ranks 24: must be a multiple"),
        ("deepseek-v3 --csv /nowhere/x.csv", "--csv /nowhere/x.csv"),
        ("--from-model tiny --checkpointing", "leave it out"),
        ("no-such-model", "no-such-model"),
    ],
)
def test_a_mistake_has_one_message(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["memory", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def _bars(sizes: list[float]) -> list[Footprint]:
    return [
        Footprint("toy", "muon", engine, 8, size / 2, 0, 0, size / 4, 0, 0, size / 4)
        for engine, size in zip(("ddp", "sharded", "fsdp2"), sizes, strict=False)
    ]


@pytest.mark.parametrize("sizes", [[1e9, 5e8, 4e8], [150e9, 120e9, 60e9], [7e12, 90e9, 80e9]])
def test_the_chart_is_legible_from_a_gigabyte_to_terabytes(
    sizes: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = memory_by_kind.draw(_bars(sizes), "Memory of a rank: toy", "toy on 8 ranks")
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert any(text.startswith("7.00 TB") for text in texts) == (max(sizes) == 7e12)
    assert any("H100" in text for text in texts) == (max(sizes) > 72e9)
    assert_legible(figure, monkeypatch)


def test_a_gpu_fits_if_a_tenth_of_it_stays_free() -> None:
    (bar,) = _bars([72e9])
    assert bar.fits(GPUS["h100"].memory_bytes)
    assert not _bars([72.1e9])[0].fits(GPUS["h100"].memory_bytes)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match="must be one of"):
        layouts.held("pipe", [], layouts.NumberBytes())
