"""The feed: it gives a run its batches in order, on the device, and leaves no thread running."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import speedrun
from data import shards
from data.loader import Batches
from errors import UserError
from runtime.feed import Feed, pinned

CPU = torch.device("cpu")
DEVICES = [
    CPU,
    pytest.param(
        torch.device("cuda"),
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    ),
]


@pytest.fixture
def batches(tmp_path: Path) -> Batches:
    path = tmp_path / "x_train_000000.bin"
    shards.write_shard(path, np.random.default_rng(0).integers(0, 999, 5000, dtype=np.uint16))
    return Batches([path], batch_tokens=80, seq_len=10, vocab_size=999, shuffle_seed=3)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("device", DEVICES)
def test_each_step_gets_its_batch(batches: Batches, device: torch.device) -> None:
    """There are more steps than arrays, so each array is used again."""
    with Feed(batches, range(20), device) as feed:
        for step in range(20):
            inputs, targets = feed.next()
            assert inputs.device.type == device.type and inputs.dtype == torch.int64
            expected = batches.batch(step)
            assert inputs.tolist() == expected[0].tolist()
            assert targets.tolist() == expected[1].tolist()
        with pytest.raises(StopIteration):
            feed.next()
    assert not readers()


def test_a_batch_that_cannot_be_read_ends_the_run_at_its_step(batches: Batches) -> None:
    once = Batches(batches.stream.paths, batch_tokens=80, seq_len=10, vocab_size=999)
    with Feed(once, range(100), CPU) as feed:
        for _ in range(62):  # 4999 targets hold 62 batches
            feed.next()
        with pytest.raises(UserError, match="5000 tokens"):
            feed.next()
    assert not readers()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_what_a_gpu_copies_from_is_pinned() -> None:
    assert torch.from_numpy(pinned((4, 8))).is_pinned()


@pytest.mark.slow
def test_a_run_leaves_no_reader_behind(micro_flags: list[str]) -> None:
    """Neither a run that ends nor one that diverges."""
    # Named, because with a GPU the default track is another one.
    flags = ["adamw", "adamw:lr=1e9", "--track=tiny", "--steps=12", *micro_flags]
    assert speedrun.main(flags) == 0
    assert not readers()
