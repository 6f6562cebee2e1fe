"""The loader: batches by step, divided among ranks, and read ahead by a thread.

    python -m pytest tests/test_loader.py

Claims: the batch of a step does not depend on the number of processes; no token between shards is
lost; reading ahead gives the same batches, in the arrays that the caller allocates.
"""

import itertools
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data import loader, shards
from data.loader import Batches, ReadAhead, val_batches
from errors import UserError


def write(path: Path, tokens: Iterable[int]) -> Path:
    shards.write_shard(path, np.fromiter(tokens, np.uint16))
    return path


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Tokens 0 to 1000 in order, in three shards whose sizes divide by nothing useful."""
    cuts = [0, 333, 337, 1001]
    return [
        write(tmp_path / f"{n}.bin", range(start, stop))
        for n, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]


def test_windows_run_across_shards_and_targets_are_the_next_tokens(three: list[Path]) -> None:
    batches = Batches(three, batch_tokens=100, seq_len=10, vocab_size=1001)
    batches.require(10)  # 1001 tokens: exactly enough
    for step in (3, 0, 9):
        inputs, targets = batches.batch(step)
        start = step * 100
        assert inputs.tolist() == np.arange(start, start + 100).reshape(10, 10).tolist()
        assert (targets == inputs + 1).all()
        for array in (inputs, targets):
            assert array.dtype == np.int64 and array.flags.c_contiguous


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_the_same_global_batch(
    three: list[Path], world_size: int, seed: int | None
) -> None:
    common: dict[str, Any] = {
        "batch_tokens": 160, "seq_len": 10, "vocab_size": 1001, "shuffle_seed": seed
    }  # fmt: skip
    whole = Batches(three, **common)
    ranks = [Batches(three, **common, rank=r, world_size=world_size) for r in range(world_size)]
    for step in range(6 if seed is None else 14):
        parts = [batches.batch(step) for batches in ranks]
        assert all(inputs.shape == (16 // world_size, 10) for inputs, _ in parts)
        for both, expected in zip(zip(*parts, strict=True), whole.batch(step), strict=True):
            assert np.concatenate(both).tolist() == expected.tolist()


def test_an_epoch_takes_every_window_once(three: list[Path]) -> None:
    batches = Batches(three, batch_tokens=80, seq_len=10, vocab_size=1001, shuffle_seed=3)
    batches.require(1000)
    # 100 windows, 8 a batch: epochs end within batches.
    seen = np.concatenate([batches.batch(step)[0][:, 0] // 10 for step in range(25)])
    first, second = seen[:100].tolist(), seen[100:].tolist()
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second and first != sorted(first)
    assert (batches.batch(25)[0] % 10 == np.arange(10)).all()  # windows stay whole
    other = Batches(three, batch_tokens=80, seq_len=10, vocab_size=1001, shuffle_seed=4)
    assert other.batch(0)[0].tolist() != batches.batch(0)[0].tolist()
    inputs = batches.batch(7)[0]
    again = Batches(three, batch_tokens=80, seq_len=10, vocab_size=1001, shuffle_seed=3)
    assert again.batch(7)[0].tolist() == inputs.tolist()  # random access: a resumed run


def test_the_order_of_a_seed_is_fixed_for_ever(three: list[Path]) -> None:
    batches = Batches(three, batch_tokens=80, seq_len=10, vocab_size=1001, shuffle_seed=0)
    assert (batches.batch(0)[0][:, 0] // 10).tolist() == [11, 92, 3, 20, 13, 2, 59, 53]


def test_too_few_tokens_are_refused_before_training(three: list[Path]) -> None:
    batches = Batches(three, batch_tokens=100, seq_len=10, vocab_size=1001)
    with pytest.raises(UserError, match="1001 tokens, but 11 .* 100 need 1101.*--steps 10,.*make"):
        batches.require(11)
    with pytest.raises(UserError, match="11 .* need 1101"):
        batches.batch(10)
    for seed in (None, 0):
        large = Batches(three, batch_tokens=1010, seq_len=10, vocab_size=1001, shuffle_seed=seed)
        with pytest.raises(UserError, match="need 1011.*smaller --batch-tokens"):
            large.require(1)


@pytest.mark.parametrize("seed", [None, 0])
def test_the_last_target_needs_a_token_of_its_own(tmp_path: Path, seed: int | None) -> None:
    path = write(tmp_path / "a.bin", range(100))  # ten windows of inputs, targets for nine
    common: dict[str, Any] = {"seq_len": 10, "vocab_size": 100}
    Batches([path], batch_tokens=90, **common, shuffle_seed=seed).require(1)
    with pytest.raises(UserError, match="100 tokens.*need 101"):
        Batches([path], batch_tokens=100, **common, shuffle_seed=seed).require(1)
    with pytest.raises(UserError, match="100 tokens.*needs 101.*--val-tokens 90"):
        val_batches([path], val_tokens=100, batch_seqs=1, **common)


@pytest.mark.parametrize(
    ("batch_tokens", "world_size", "nearest"),
    [(105, 1, 100), (110, 2, 120), (5, 4, 40), (0, 1, 10)],
)
def test_a_batch_that_does_not_divide_is_refused(
    three: list[Path], batch_tokens: int, world_size: int, nearest: int
) -> None:
    with pytest.raises(UserError, match=f"{batch_tokens} tokens.*multiple.*-tokens {nearest}$"):
        Batches(
            three, batch_tokens=batch_tokens, seq_len=10, vocab_size=1001, world_size=world_size
        )


def test_batches_refuse_what_cannot_be_read(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="no shards.*make data"):
        Batches([], batch_tokens=100, seq_len=10, vocab_size=1001)
    with pytest.raises(UserError, match="seed -1"):
        Batches(three, batch_tokens=100, seq_len=10, vocab_size=1001, shuffle_seed=-1)
    with pytest.raises(UserError, match="2.bin holds token 1000"):
        Batches(three, batch_tokens=100, seq_len=10, vocab_size=1000)
    monkeypatch.setattr(loader, "SCAN_TOKENS", 1000)  # too big to check at once: batch by batch
    batches = Batches(three, batch_tokens=100, seq_len=10, vocab_size=1000)
    batches.batch(8)
    with pytest.raises(UserError, match="2.bin holds token 1000"):
        batches.batch(9)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_validation_reads_the_same_first_targets(three: list[Path], world_size: int) -> None:
    targets = []
    for rank in range(world_size):
        batches = val_batches(
            three, val_tokens=880, batch_seqs=5, seq_len=10, vocab_size=1001, rank=rank,
            world_size=world_size,
        )  # fmt: skip
        first, second = list(batches), list(batches)
        assert len(first) == len(batches) == -(-(88 // world_size) // 5)
        for (inputs, outputs), (inputs_again, _) in zip(first, second, strict=True):
            assert inputs.tolist() == inputs_again.tolist()
            assert (outputs == inputs + 1).all() and inputs.shape[0] <= 5
            targets += outputs.reshape(-1).tolist()
    assert targets == list(range(1, 881))


def test_validation_refuses_what_it_cannot_do(three: list[Path]) -> None:
    common: dict[str, Any] = {"batch_seqs": 5, "seq_len": 10, "vocab_size": 1001}
    assert len(val_batches(three, val_tokens=1000, **common)) == 20
    with pytest.raises(UserError, match="1001 tokens.*1010 needs 1011.*--val-tokens 1000"):
        val_batches(three, val_tokens=1010, **common)
    with pytest.raises(UserError, match="999 tokens.*multiple of 10.*--val-tokens 1000"):
        val_batches(three, val_tokens=999, **common)
    with pytest.raises(UserError, match="multiple of 30 .*3 processes.*--val-tokens 990"):
        val_batches(three, val_tokens=1000, **common, world_size=3)


# --- any division into shards and processes -------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_no_token_is_lost_however_the_stream_is_cut(tmp_path: Path, seed: int) -> None:
    """Shards down to a single token, so that a window spans many; every order, every world size."""
    rng = random.Random(seed)
    tokens = [rng.randrange(5000) for _ in range(12 * 10 * 7 + rng.randint(1, 9))]
    cuts = [0, *sorted(rng.sample(range(1, len(tokens)), 60)), len(tokens)]
    paths = [
        write(tmp_path / f"{n:03d}.bin", tokens[start:stop])
        for n, (start, stop) in enumerate(itertools.pairwise(cuts))
    ]
    windows = [tuple(tokens[n : n + 11]) for n in range(0, len(tokens) - 10, 10)]
    for world_size, shuffle_seed in itertools.product((1, 2, 3, 4, 6, 12), (None, seed)):
        ranks = [
            Batches(
                paths, batch_tokens=120, seq_len=10, vocab_size=5000, shuffle_seed=shuffle_seed,
                rank=rank, world_size=world_size,
            )
            for rank in range(world_size)
        ]  # fmt: skip
        ranks[0].require(7)
        seen = []
        for step in range(7):
            parts = [batches.batch(step) for batches in ranks]
            assert {inputs.shape for inputs, _ in parts} == {ranks[0].shape}
            for inputs, targets in parts:
                assert (inputs[:, 1:] == targets[:, :-1]).all()
                seen += [(*row, last) for row, last in zip(inputs, targets[:, -1], strict=True)]
        if shuffle_seed is None:
            assert seen == windows
        else:
            assert sorted(seen) == sorted(windows) and seen != windows


# --- the caller's own arrays, and reading ahead ---------------------------------------------------


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_a_batch_is_written_into_the_callers_arrays(
    three: list[Path], dtype: type, seed: int | None
) -> None:
    batches = Batches(three, batch_tokens=160, seq_len=10, vocab_size=1001, shuffle_seed=seed)
    out = (np.zeros(batches.shape, dtype), np.zeros(batches.shape, dtype))
    for step in (2, 5):
        filled = batches.batch(step, out)
        assert filled[0] is out[0] and filled[1] is out[1]
        for mine, expected in zip(out, batches.batch(step), strict=True):
            assert mine.dtype == dtype and mine.tolist() == expected.tolist()


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


@pytest.mark.parametrize("depth", [1, 3])
def test_reading_ahead_gives_the_same_batches(three: list[Path], depth: int) -> None:
    batches = Batches(three, batch_tokens=80, seq_len=10, vocab_size=1001, shuffle_seed=1)
    made: list[NDArray[Any]] = []

    def allocate(shape: tuple[int, int]) -> NDArray[Any]:
        made.append(np.zeros(shape, np.int32))
        return made[-1]

    steps = range(4, 30)  # as a run that is resumed
    with ReadAhead(batches, steps, depth=depth, allocate=allocate) as reader:
        for step, (inputs, targets) in zip(steps, reader, strict=True):
            assert any(inputs is array for array in made) and inputs.dtype == np.int32
            time.sleep(0.0005)  # the thread has time to overwrite a batch that is in use
            expected = batches.batch(step)
            assert inputs.tolist() == expected[0].tolist()
            assert targets.tolist() == expected[1].tolist()
    assert len(made) == 2 * (depth + 1) and not readers()


class Counted:
    """Batches that count how many have been read, and fail at a step."""

    shape = (2, 3)

    def __init__(self, fails_at: int | None = None) -> None:
        self.read = 0
        self.fails_at = fails_at

    def batch(self, step: int, out: loader.Batch) -> loader.Batch:
        if step == self.fails_at:
            raise UserError("a shard went away")
        self.read += 1
        out[0][:] = out[1][:] = step
        return out


def settled(batches: Counted, count: int) -> bool:
    """Whether exactly `count` batches have been read once the thread has nothing left to do."""
    deadline = time.monotonic() + 5
    while batches.read < count and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    return batches.read == count


def test_the_thread_is_ahead_by_the_depth_and_no_more() -> None:
    batches = Counted()
    with ReadAhead(batches, range(100), depth=3) as reader:  # type: ignore[arg-type]
        assert settled(batches, 4)  # one batch waits for the caller's next request
        first, _ = next(reader)
        assert settled(batches, 4) and (first == 0).all()  # the first is still the caller's
        next(reader)
        assert settled(batches, 5)
    assert not readers()


def test_what_reading_raises_comes_at_its_step() -> None:
    with ReadAhead(Counted(fails_at=3), range(9)) as reader:  # type: ignore[arg-type]
        assert [int(next(reader)[0][0, 0]) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError, match="a shard went away"):
            next(reader)
        assert list(reader) == [] and not readers()


def test_a_reader_may_be_left_at_any_time() -> None:
    for taken in range(4):
        reader = ReadAhead(Counted(), range(50))  # type: ignore[arg-type]
        for _ in range(taken):
            next(reader)
        reader.close()
        reader.close()
        assert list(reader) == [] and not readers()
    with pytest.raises(ZeroDivisionError), ReadAhead(Counted(), range(50)) as reader:  # type: ignore
        raise ZeroDivisionError
    assert not readers()
    with ReadAhead(Counted(), range(0)) as reader:  # type: ignore[arg-type]
        assert list(reader) == []
