"""The plan of a race: what it counts is what a run holds, and it needs neither data nor a GPU."""

import csv
from pathlib import Path

import pytest

import speedrun
from data import open_dataset, shards
from planner.corpora import CORPORA, corpus
from planner.memory import Shape, microbatch

ROOT = Path(__file__).parents[1]


def plan(path: Path, *arguments: str) -> dict[str, list[str]]:
    """The rows of a plan's table, by their name."""
    assert speedrun.main([*arguments, "--dry-run", f"--csv={path}"]) == 0
    with path.open(newline="", encoding="utf-8") as file:
        return {name: cells for name, *cells in csv.reader(file)}


def gigabytes(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"


@pytest.mark.parametrize("name", ["adamw", "muon", "normuon", "dion", "signum"])
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
    assert (tmp_path / "gpt2.csv").read_text() == (ROOT / "planner" / "gpt2.csv").read_text()


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
    assert speedrun.main(["adamw", "--track=gpt2", "--dry-run", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_plan_writes_no_results(tmp_path: Path) -> None:
    plan(tmp_path / "plan.csv", "muon", "--track=tiny", f"--results={tmp_path / 'results'}")
    assert not (tmp_path / "results").exists()
