"""The planner's time of orthogonalisation: FLOPs, curves of efficiency, owners, the command.

python -m pytest tests/test_planner_time.py
"""

import csv
import inspect
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import muon
from bench import products
from errors import UserError
from host.owners import orthogonal_cost, owners
from planner import __main__ as planner
from planner import models, published_checks
from planner.charts import optimizer_share
from planner.cluster.hardware import GPU, GPUS
from planner.cluster.setting import Setting
from planner.models import Model, Weight
from planner.time import efficiency, measured_time, optimizer_time
from planner.time.efficiency import Curve, orthogonalisation
from planner.time.newton_schulz import STEPS, Iteration, bound
from planner.time.optimizer_time import EVERY_RANK, Timing
from planner.time.owners import WAYS, deal

CPU = torch.device("cpu")
SHAPES = ((32, 32), (32, 40), (24, 96), (8, 128))
SLOW = GPU("a GPU", 1e12, 10**9, 1e11)
FLAT = Curve("flat", "made up", ((1.0, 0.5), (1e6, 0.5)), launch_seconds=1e-6)


def model_of(weights: Sequence[Weight], n_layer: int = 4, batch_tokens: int = 2**40) -> Model:
    return Model("m", "A model", tuple(weights), n_layer, 8, 8, 1, 8, 8, 4.0, batch_tokens, 0.0)


# ---- FLOPs and memory traffic ------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_flops_are_those_that_torch_counts_in_muon(m: int, n: int, form: str, steps: int) -> None:
    X = torch.randn(2, n, m, dtype=torch.float64)  # higher than wide: muon transposes it
    with FlopCounterMode(display=False) as counter:
        muon.newton_schulz(X, "stable", steps, backend=form)
    assert 2 * Iteration(ns_steps=steps, ns_form=form).flops(m, n) == counter.get_total_flops()


class Traffic(TorchDispatchMode):
    """Counts the numbers of every operand and result of matrix products, each tensor once."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("bmm", "baddbmm"):
            read = {arg.data_ptr(): arg.numel() for arg in args if isinstance(arg, torch.Tensor)}
            self.numbers += sum(read.values()) + out.numel()
            self.products += 1
        return out


@pytest.mark.parametrize("form", ["plain", "gram"])
@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_traffic_is_that_of_the_tensors_in_muon(m: int, n: int, form: str) -> None:
    X = torch.randn(3, m, n, dtype=torch.float64) / (m * n)
    with Traffic() as counted:
        muon.BACKENDS[form].iterate(X, muon.table_of("stable", 4))
    iteration = Iteration(ns_steps=4, ns_form=form)
    assert 3 * iteration.moved_numbers(m, n) == counted.numbers
    assert iteration.launches(m, n) == counted.products


def test_steps_are_those_that_the_tables_are_meant_for() -> None:
    default = inspect.signature(muon.Muon).parameters["ns_steps"].default
    published = {"jordan": default, "stable": 12}  # of these each step is the same
    assert {name: published.get(name, len(abc)) for name, abc in muon.COEFFICIENTS.items()} == STEPS


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_the_cheaper_form_is_what_muon_chooses(steps: int) -> None:
    iteration, abc = Iteration(ns_steps=steps, ns_form="cheaper"), muon.table_of("stable", steps)
    for n in range(64, 1024, 48):
        chosen = muon.choose((1, 64, n), torch.float64, CPU, abc)
        assert iteration.form(64, n) == chosen
        assert iteration.flops(64, n) == Iteration(ns_steps=steps, ns_form=chosen).flops(64, n)


@pytest.mark.parametrize("e", [1, 2, 4, 64])
def test_symmetric_kernels_save_what_their_ceiling_says(e: int) -> None:
    plain, half = Iteration(), Iteration(symmetric=True)
    assert plain.flops(64, 64 * e) / half.flops(64, 64 * e) == pytest.approx(
        (4 * e + 2) / (3 * e + 1)
    )
    assert plain.flops(64, 64) / half.flops(64, 64) == 1.5


def test_muon_split_orthogonalises_each_head() -> None:
    fused = Weight("qkv", "attention", 96, 32, count=2, parts=12)
    assert Iteration().blocks(fused) == ((32, 96, 1),)
    assert Iteration(split=True).blocks(fused) == ((8, 32, 12),)
    grouped = replace(fused, splits=(64, 16, 16))
    assert Iteration().blocks(grouped) == ((32, 64, 1), (16, 32, 2))
    assert Iteration(split=True).blocks(grouped) == ((8, 32, 12),)
    # With two steps of four: 4 n m^2 + 2 m^3 each.
    split = Iteration(split=True, ns_steps=2)
    assert split.weight_flops(fused) == 2 * 12 * 2 * (4 * 32 * 8**2 + 2 * 8**3)


@pytest.mark.parametrize(
    "options",
    [{"ns_coefficients": "jorden"}, {"ns_steps": -1}, {"ns_steps": 100}, {"ns_form": "grams"}],
)
def test_options_that_muon_does_not_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"must be .*(did you mean|leave it out)"):
        Iteration(**options)


def test_published_numbers_follow_from_the_presets() -> None:
    checks = published_checks.time_checks()
    assert len(checks) > 15
    assert [check.name for check in checks if not check.agrees] == []


def test_the_bound_of_the_blog_is_above_every_share() -> None:
    for model in models.presets().values():
        tokens = model.batch_tokens
        for weight in model.weights:
            if weight.hidden:
                m = max(m for m, _, _ in Iteration().blocks(weight))
                share = Iteration().weight_flops(weight) / optimizer_time.product_flops(
                    [weight], tokens
                )
                assert share <= bound(5, m, tokens * weight.token_share) * (1 + 1e-12)


# ---- Seconds -----------------------------------------------------------------------------------


def test_a_product_takes_the_longest_of_arithmetic_memory_and_launch() -> None:
    five = Iteration()
    launched = orthogonalisation(SLOW, five, 2, 2, 1, FLAT)
    assert (launched.bound, launched.seconds) == ("launches", pytest.approx(15e-6))
    large = orthogonalisation(SLOW, five, 4096, 4096, 2, FLAT)
    assert large.bound == "arithmetic"
    assert large.seconds == pytest.approx(2 * five.flops(4096, 4096) / 0.5e12)
    starved = orthogonalisation(SLOW._replace(memory_bytes_per_s=1e6), five, 256, 512, 1, FLAT)
    assert starved.bound == "memory"
    assert starved.seconds == pytest.approx(2 * 5 * (3 * 256 * 512 + 4 * 256**2) / 1e6)
    assert starved.moved_bytes == pytest.approx(starved.seconds * 1e6)


def test_on_a_processor_launches_come_on_top() -> None:
    queued, in_turn = (
        orthogonalisation(SLOW, Iteration(), 512, 512, 1, replace(FLAT, in_turn=each)).seconds
        for each in (False, True)
    )
    assert in_turn - queued == pytest.approx(15e-6)


def test_kernels_that_compute_half_gain_what_the_curve_says() -> None:
    gaining = replace(FLAT, gains=((1.0, 1.25),))
    whole, half = (
        orthogonalisation(SLOW, Iteration(symmetric=each), 2048, 2048, 1, gaining).seconds
        for each in (False, True)
    )
    assert half / whole == pytest.approx((2 / 1.25 + 1) / 3)


def test_the_curve_of_the_h200_gives_back_what_was_measured() -> None:
    curve, gpu = efficiency.load("h200"), GPUS["h200"]
    path = efficiency.gpu_records()["h200"]
    rows = efficiency.read_rows(path)
    (peak,) = (float(row["value"]) for row in rows if row["quantity"] == "bfloat16 peak")
    assert curve.share(8192) * gpu.peak_flops == pytest.approx(peak * 1e12)
    for row in measured_time.rows():
        if row.note == measured_time.OWN:
            assert abs(row.error) < 0.1, row
    seconds = [float(row["value"]) for row in rows if row["case"] == "48 x 768 x 768, plain"]
    cost = orthogonalisation(gpu, Iteration(), 768, 768, 48, curve)
    assert 1e3 * cost.seconds == pytest.approx(seconds[0])


def test_shares_lie_between_the_points_of_a_curve() -> None:
    for curve in efficiency.curves().values():
        for (left, low), (right, high) in zip(curve.points, curve.points[1:], strict=False):
            middle = curve.share((left * right) ** 0.5)
            assert middle == pytest.approx((low + high) / 2)
            assert curve.share(right) == pytest.approx(high)
        assert 0 < curve.share(1) < curve.share(curve.points[0][0])
        assert all(share <= 1 for _, share in curve.points)


def test_a_processors_curve_is_found_from_its_products() -> None:
    launch, rate = 2e-6, 1e11
    ms = {side: 1e3 * (launch + 2 * side**3 / rate) for side in (64, 256, 1024)}
    ms[16] = 1e3 * launch
    peak = {1024: rate / 1e9}
    rows = [
        {"product": product, "batch": "1", "m": str(side), "n": str(side), "dtype": "float32",
         "ms": str(took), "GFLOP/s": str(peak.get(side, 1)), "device": "x, 1 core"}
        for product in efficiency.PRODUCTS for side, took in ms.items()
    ]  # fmt: skip
    rows.append(rows[0] | {"product": "copy", "GB/s": "20"})
    curve = efficiency.processor_curve("products-x/float32/1", rows)
    assert (curve.launch_seconds, curve.number_bytes, curve.in_turn) == (launch, 4, True)
    assert curve.machine is not None and curve.machine.memory_bytes_per_s == 20e9
    assert [share for _, share in curve.points] == pytest.approx([1.0, 1.0, 1.0])


def test_what_a_bench_of_products_counts_is_what_torch_counts() -> None:
    kinds = (products.GRAM, products.ADDED, f"{products.ITERATION}, plain")
    cases = [products.Case(kind, K, 16, 48) for kind in kinds for K in (1, 2)]
    for case in cases:
        work = products.work_of(case, torch.float64, CPU)
        with FlopCounterMode(display=False) as flops, Traffic() as traffic:
            work()
        assert flops.get_total_flops() == case.flops
        if case.K > 1:
            assert traffic.numbers == case.moved
    rows = list(products._rows([*cases, products.Case("copy", 1, 8, 8)], torch.float32, CPU, 1))
    (path,) = efficiency.products_records()
    assert list(rows[0]) == list(efficiency.read_rows(path)[0])[: len(rows[0])]
    for row, case in zip(rows, cases, strict=False):
        assert float(row["GFLOP/s"]) == pytest.approx(case.flops / float(row["ms"]) / 1e6, rel=2e-3)


def test_all_committed_measurements_have_a_prediction() -> None:
    found = measured_time.rows()
    records = {row.record.split("/")[1] for row in found}
    assert {path.parent.name for path in efficiency.products_records()} <= records
    assert any(record.endswith("h200") for record in records)
    for row in found:
        assert row.measured_seconds > 0 and row.predicted_seconds > 0, row


# ---- Owners ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 16, 50])
def test_balanced_owners_are_those_of_the_engines(ranks: int) -> None:
    weights = [
        Weight("a", "attention", 64, 64, 12), Weight("b", "mlp", 256, 64, 9),
        Weight("c", "mlp", 64, 256, 5), Weight("d", "attention", 64, 64, 2),
    ]  # fmt: skip
    found = deal(model_of(weights), Iteration(), ranks, Setting())
    stacks = {(64, 64): 14, (256, 64): 9, (64, 256): 5}
    chosen = owners([[orthogonal_cost(shape)] * count for shape, count in stacks.items()], ranks)
    flops = [0.0] * ranks
    for (rows, cols), places in zip(stacks, chosen, strict=True):
        for rank in places:
            flops[rank] += Iteration().flops(min(rows, cols), max(rows, cols))
    assert found.busiest_flops == pytest.approx(max(flops))
    assert found.mean_flops == pytest.approx(sum(flops) / ranks)
    assert found.idle == flops.count(0)


@pytest.mark.parametrize("way", WAYS)
def test_equal_matrices_divide_evenly_or_leave_ranks_idle(way: str) -> None:
    model = model_of([Weight("a", "mlp", 16, 16, 8)], n_layer=8)
    for ranks, imbalance, idle in (
        (1, 1.0, 0),
        (4, 1.0, 0),
        (8, 1.0, 0),
        (16, 2.0, 8),
        (3, 9 / 8, 0),
    ):
        found = deal(model, Iteration(), ranks, Setting(), way)
        assert (found.imbalance, found.idle) == (pytest.approx(imbalance), idle)


def test_round_robin_goes_on_where_it_stopped() -> None:
    # Shapes in order: two large ones to ranks 0 and 1, then two small ones to 2 and 0.
    model = model_of([Weight("small", "mlp", 8, 8, 2), Weight("large", "mlp", 16, 16, 2)])
    one = Iteration().flops
    found = deal(model, Iteration(), 3, Setting(), "round-robin")
    assert found.busiest == ((16, 16, 1), (8, 8, 1))
    assert found.imbalance == pytest.approx(
        3 * (one(16, 16) + one(8, 8)) / (2 * one(16, 16) + 2 * one(8, 8))
    )
    assert deal(model, Iteration(), 3, Setting()).busiest == ((16, 16, 1),)


def test_layers_stay_whole() -> None:
    weights = [Weight("a", "attention", 16, 16, 4 * 4), Weight("b", "mlp", 16, 64, 4)]
    found = deal(model_of(weights), Iteration(), 3, Setting(), "layer-wise")
    assert found.imbalance == pytest.approx(2 / (4 / 3))
    assert deal(model_of(weights), Iteration(), 6, Setting(), "layer-wise").idle == 2


def test_experts_are_dealt_to_the_ranks_that_hold_them() -> None:
    experts = Weight("e", "experts", 16, 16, 4 * 8, token_share=1 / 8)
    alone = model_of([experts])
    for way in ("round-robin", "balanced"):
        # 32 experts over 16 ranks: two each, whether or not 4 ranks share each part of 8.
        for parts in (1, 2, 4, 8):
            found = deal(alone, Iteration(), 16, Setting(expert_parallel=parts), way)
            assert (found.imbalance, found.busiest) == (1.0, ((16, 16, 2),))
        # 5 layers, with one of them in each part of two ranks: 3 and 2.
        five = model_of([replace(experts, count=4 * 5)], n_layer=5)
        found = deal(five, Iteration(), 8, Setting(expert_parallel=4), way)
        assert found.imbalance == pytest.approx(3 / 2.5)
    # Dense matrices go to those that have fewer experts.
    both = model_of([replace(experts, count=4 * 5), Weight("d", "mlp", 16, 16, 4)], n_layer=5)
    found = deal(both, Iteration(), 8, Setting(expert_parallel=4))
    assert found.imbalance == pytest.approx(3 / (24 / 8))


def test_stages_of_a_pipeline_deal_their_own_layers() -> None:
    model = model_of([Weight("a", "mlp", 16, 16, 6)], n_layer=6)
    found = deal(model, Iteration(), 8, Setting(pipeline=2))
    assert (found.imbalance, found.idle) == (pytest.approx(8 / 6), 2)
    found = deal(model, Iteration(), 4, Setting(pipeline=4))  # stages of 2, 2, 2 and no layers
    assert found.imbalance == pytest.approx(2 / 1.5)


def test_a_trillion_parameters_on_16384_ranks_lose_no_work() -> None:
    model = models.find("kimi-k2")
    setting = Setting(batch_tokens=2**30)
    for way in WAYS:
        found = deal(model, Iteration(), 16384, setting, way)
        hidden = [weight for weight in model.weights if weight.hidden]
        total = sum(map(Iteration().weight_flops, hidden))
        assert found.mean_flops * 16384 == pytest.approx(total)
        assert found.imbalance >= 1
    with pytest.raises(UserError, match="--ranks 100: must be a multiple"):
        deal(model, Iteration(), 100, replace(setting, expert_parallel=64))


# ---- The command -------------------------------------------------------------------------------


def test_the_command_shows_shares_seconds_and_owners(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv_path = tmp_path / "a.csv"
    assert planner.main(["time", "gpt2-124m", "--ranks", "8", "--csv", str(csv_path)]) == 0
    printed = capsys.readouterr().out
    for word in ("attention.qkv", "768 x 768", "0.61%", EVERY_RANK, *WAYS, "assumed", "--mfu"):
        assert word in printed
    with csv_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    (qkv,) = (row for row in rows if row["matrix"] == "attention.qkv")
    assert float(qkv["flops"]) == 36 * 5 * (4 * 768 * 768**2 + 2 * 768**3)
    assert float(qkv["model_flops"]) == 6 * 12 * 2304 * 768 * 524_288


@pytest.mark.slow
def test_the_command_draws_its_shares(tmp_path: Path) -> None:
    for name in ("a", "b.png", "qwen2.5-3b"):
        assert planner.main(["time", "gpt2-124m", "--chart", str(tmp_path / name)]) == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    stems = ("a", "b", "qwen2.5-3b")
    assert drawn == [f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg")]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["gpt2-124"], "did you mean gpt2-124m"),
        (["gpt2-124m", "--ns-steps", "-3"], "--ns-steps -3: must be from 0 to 99"),
        (["gpt2-124m", "--ns-coefficients", "jordon"], "did you mean jordan"),
        (["gpt2-124m", "--gpu", "h300"], "--gpu h300: must be one of"),
        (["gpt2-124m", "--mfu", "nan"], "--mfu nan: must be above 0"),
        (["gpt2-124m", "--curve", "h20"], "did you mean h20"),
        (["gpt2-124m", "--launch-us", "-1"], "--launch-us -1.0: must be 0 or more"),
        (["gpt2-124m", "--ranks", "-8"], "--ranks -8: must be 0 or more"),
        (["gpt2-124m", "--ranks", "100000"], "replicas of the model share 512 sequences"),
        (["deepseek-v3", "--ranks", "10", "--expert-parallel", "4"], "must be a multiple"),
        (["gpt2-124m", "--ranks", "4", "--expert-parallel", "4"], "has no experts"),
        (["gpt2-124m", "--batch-tokens", "5"], "share 0 sequences"),
        (["gpt2-124m", "--csv", "/proc/x/y.csv"], "/proc/x/y.csv"),
        (["gpt2-124m", "--chart", "/proc/x/y"], "/proc/x"),
    ],
)
def test_a_mistake_is_one_message(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert planner.main(["time", *flags]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count("\n") == 1


def test_a_larger_batch_makes_the_share_smaller_in_proportion() -> None:
    model = models.find("deepseek-v3")
    small, large = (optimizer_time.shares(model, Iteration(), batch) for batch in (2**20, 2**24))
    assert list(small) == ["dense matrices", "experts", "all of the step"]
    for name in small:
        assert small[name] / large[name] == pytest.approx(16)
    assert small["experts"] > 10 * small["dense matrices"]  # an expert sees few tokens


def test_the_price_is_a_share_of_the_whole_step() -> None:
    model, timing = models.find("llama-405b"), Timing(ranks=1024)
    prices = {
        price.way: price for price in optimizer_time.prices(model, Iteration(), timing, Setting())
    }
    step = optimizer_time.model_seconds(model, timing, model.batch_tokens, 1024)
    for price in prices.values():
        assert price.share == pytest.approx(price.seconds / (price.seconds + step))
    assert prices[EVERY_RANK].seconds > 100 * prices["balanced"].seconds
    faster = optimizer_time.prices(model, Iteration(), replace(timing, mfu=0.8), Setting())
    assert faster[0].share > prices[EVERY_RANK].share  # a faster model makes the same work dearer


def test_a_chart_has_a_line_for_each_kind_and_each_way() -> None:
    for name in ("gpt2-124m", "deepseek-v3"):
        figure = optimizer_share.draw(models.find(name), Iteration(), Timing(ranks=64), Setting())
        flops, time = figure.axes
        names = [
            text.get_text() for axes in (flops, time) for text in axes.get_legend().get_texts()
        ]
        kinds = ["dense matrices", "experts", "all of the step"]
        assert names == [*(kinds if "deepseek" in name else kinds[::2]), EVERY_RANK, *WAYS]


@pytest.mark.slow
def test_arithmetic_of_time_needs_no_torch() -> None:
    program = (
        "import sys, planner.time.step_time, planner.time.measured_time, planner.published_checks\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], check=True)
