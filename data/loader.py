"""Reads batches of tokens from shards, for training and for validation.

    train = Batches(dataset.train, batch_tokens=4096, seq_len=128, vocab_size=1024, shuffle_seed=0)
    train.require(steps=220)
    inputs, targets = train.batch(step=0)
    with ReadAhead(train, range(220)) as reader:  # the same batches, read by a thread
        for inputs, targets in reader: ...

A batch depends on its step alone, so a run can resume at any step without reading the steps before.
The batch of a step is the same for any number of processes: each process takes a contiguous part.
The shards are one stream, cut into windows of seq_len tokens. A window can begin in one shard and
end in the next, so no tokens are lost between shards. The target of a token is the token after it,
so the stream needs one token more than its windows.
"""

import bisect
import itertools
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.shards import check_tokens, open_shard
from errors import UserError

Batch = tuple[NDArray[Any], NDArray[Any]]  # inputs, targets: int64, or the caller's own arrays

# Up to this many tokens (1 GiB of shards) are checked against the vocabulary before training. More
# tokens would take too long, so then each batch is checked when it is read.
SCAN_TOKENS = 1 << 29


class Stream:
    """Shards in order as one sequence of tokens, cut into windows of `seq_len`."""

    def __init__(self, paths: Sequence[Path], seq_len: int, vocab_size: int) -> None:
        """Map the shards. Raises UserError if there are none, or as open_shard."""
        if not paths:
            raise UserError(
                "no shards are given, but at least one is needed; run: make data TRACK=<track>"
            )
        self.paths = tuple(paths)
        self.seq_len = seq_len
        self.vocab_size = vocab_size
        self._shards = [open_shard(path, vocab_size, scan=False) for path in self.paths]
        self._ends = list(itertools.accumulate(len(shard) for shard in self._shards))
        self.tokens = self._ends[-1]
        self.windows = max(0, self.tokens - 1) // seq_len
        self._scanned = self.tokens <= SCAN_TOKENS
        if self._scanned:
            for path, shard in zip(self.paths, self._shards, strict=True):
                check_tokens(path, shard, vocab_size)

    def take(self, windows: NDArray[np.int64], out: Batch | None = None) -> Batch:
        """Inputs and targets of these windows, each (len(windows), seq_len), C-contiguous.

        Written into `out`, arrays of any integer type that holds the tokens, or else into new int64
        arrays. Raises UserError if a token is not in the vocabulary; large shards are checked only
        here.
        """
        shape = (len(windows), self.seq_len)
        inputs, targets = out or (np.empty(shape, np.int64), np.empty(shape, np.int64))
        assert inputs.shape == targets.shape == shape
        # Consecutive windows are read together, so an unshuffled batch takes two copies.
        breaks = np.flatnonzero(np.diff(windows) != 1) + 1
        for first, last in itertools.pairwise([0, *breaks.tolist(), len(windows)]):
            run = (last - first, self.seq_len)
            tokens = self._read(int(windows[first]) * self.seq_len, run[0] * self.seq_len + 1)
            inputs[first:last] = tokens[:-1].reshape(run)
            targets[first:last] = tokens[1:].reshape(run)
        return inputs, targets

    def _read(self, start: int, count: int) -> NDArray[np.uint16]:
        """The `count` tokens from position `start`: a view, or a copy if they span shards."""
        shard = bisect.bisect_right(self._ends, start)
        pieces: list[NDArray[np.uint16]] = []
        while count:
            tokens = self._shards[shard]
            offset = start - self._ends[shard] + len(tokens)
            pieces.append(tokens[offset : offset + count])
            if not self._scanned:
                check_tokens(self.paths[shard], pieces[-1], self.vocab_size)
            start += len(pieces[-1])
            count -= len(pieces[-1])
            shard += 1
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Batches:
    """The training batches of one process, by step."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        batch_tokens: int,
        seq_len: int,
        vocab_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Map the shards; `batch_tokens` are the tokens of all `world_size` processes together.

        Without `shuffle_seed`, the windows come once, in the order of the stream. With it, each
        epoch takes every window once, in an order drawn from (seed, epoch); a batch can span two
        epochs. Raises UserError if the batch does not divide into sequences and processes, or as
        open_shard.
        """
        _check_divides("batch", batch_tokens, seq_len, world_size, "--batch-tokens")
        if shuffle_seed is not None and shuffle_seed < 0:
            raise UserError(f"seed {shuffle_seed}: must be 0 or more; choose another seed")
        assert 0 <= rank < world_size
        self.stream = Stream(paths, seq_len, vocab_size)
        self.batch_tokens = batch_tokens
        self._seed = shuffle_seed
        self._part = batch_tokens // seq_len // world_size  # windows of this process in a batch
        self._rank = rank
        self._world_size = world_size
        self._epoch_order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def require(self, steps: int) -> None:
        """Raise UserError unless the shards hold batches 0 to `steps` - 1; call before training."""
        stream = self.stream
        batch_windows = self._part * self._world_size
        possible = stream.windows // batch_windows
        if self._seed is not None:
            steps = min(steps, 1)  # later epochs give the other batches
        if steps > possible:
            remedy = f"--steps {possible}" if possible else "a smaller --batch-tokens"
            raise UserError(
                f"{_name(stream.paths)}: {stream.tokens} tokens, but {steps} of the batches of "
                f"{self.batch_tokens} need {steps * self.batch_tokens + 1}; "
                f"run with {remedy}, or get more shards with: make data TRACK=<track>"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the inputs, and of the targets: (batch_tokens / seq_len / world_size, seq_len).

        It is known without reading a batch.
        """
        return self._part, self.stream.seq_len

    def batch(self, step: int, out: Batch | None = None) -> Batch:
        """Inputs and targets of `step` for this process, each of `shape`, C-contiguous.

        Written into `out`, arrays of any integer type that holds the tokens, or else into new int64
        arrays. Raises UserError if the shards hold no such batch.
        """
        assert step >= 0
        self.require(step + 1)
        first = (step * self._world_size + self._rank) * self._part
        places = np.arange(first, first + self._part, dtype=np.int64)
        if self._seed is not None:
            places = self._shuffled(places)
        return self.stream.take(places, out)

    def _shuffled(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The windows at these places in the sequence of all epochs."""
        epochs, within = np.divmod(places, self.stream.windows)
        windows = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            windows[here] = self._order(int(epoch))[within[here]]
        return windows

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The order of all windows in `epoch`; the newest is kept for the next call.

        Sorts the raw output of a bit generator, because NumPy keeps that output the same in all
        versions, but not the output of Generator.permutation.
        """
        if self._epoch_order[0] != epoch:
            assert self._seed is not None
            raw = np.random.PCG64(np.random.SeedSequence([self._seed, epoch]))
            keys = raw.random_raw(self.stream.windows)
            self._epoch_order = (epoch, np.argsort(keys, kind="stable"))
        return self._epoch_order[1]


class ReadAhead:
    """Iterates over the batches of `steps`; a thread reads them ahead of time."""

    def __init__(
        self,
        batches: Batches,
        steps: Sequence[int],
        *,
        depth: int = 2,
        allocate: Callable[[tuple[int, int]], NDArray[Any]] | None = None,
    ) -> None:
        """Start the thread, which keeps `depth` batches ready.

        `allocate` makes each of the 2 * (depth + 1) arrays; it gets batches.shape and can choose
        any integer type that holds the tokens, for example in pinned memory. Without it they are
        int64. The arrays are used again: a batch is valid until the next one is taken, so copies
        from it must be finished by then.
        """
        assert depth > 0
        allocate = allocate or (lambda shape: np.empty(shape, np.int64))
        self._batches = batches
        self._steps = steps
        self._free: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._lent: Batch | None = None
        self._over = False
        for _ in range(depth + 1):
            self._free.put((allocate(batches.shape), allocate(batches.shape)))
        # A daemon thread, so that a process that fails before close() can still exit.
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        end: BaseException = StopIteration()
        try:
            for step in self._steps:
                buffers = self._free.get()
                if buffers is None:  # closed
                    return
                self._ready.put(self._batches.batch(step, buffers))
        except BaseException as error:
            end = error
        self._ready.put(end)

    def __iter__(self) -> "ReadAhead":
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises the error of reading it; the iteration is then over."""
        if self._over:
            raise StopIteration
        if self._lent is not None:
            self._free.put(self._lent)
            self._lent = None
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        self._lent = item
        return item

    def close(self) -> None:
        """Stop the thread and wait until it ends. Can be called more than once."""
        self._over = True
        self._free.put(None)
        self._thread.join()

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ValBatches:
    """The validation batches of one process, the same in each iteration; see val_batches."""

    def __init__(self, stream: Stream, first: int, windows: int, batch_seqs: int) -> None:
        self._stream = stream
        self._range = range(first, first + windows)
        self._batch_seqs = batch_seqs

    def __len__(self) -> int:
        return -(-len(self._range) // self._batch_seqs)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._range), self._batch_seqs):
            windows = self._range[start : start + self._batch_seqs]
            yield self._stream.take(np.asarray(windows, np.int64))


def val_batches(
    paths: Sequence[Path],
    *,
    val_tokens: int,
    batch_seqs: int,
    seq_len: int,
    vocab_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> ValBatches:
    """Map the shards; each iteration gives the first `val_tokens` targets.

    A batch is inputs and targets, each (batch_seqs, seq_len), int64, C-contiguous. The last batch
    can have fewer sequences, so a mean over batches must be weighted by the number of targets. Each
    process takes a contiguous part of the same size. Raises UserError if `val_tokens` does not
    divide into sequences and processes, if the shards hold fewer tokens, or as open_shard.
    """
    _check_divides("validation", val_tokens, seq_len, world_size, "--val-tokens")
    assert 0 <= rank < world_size and batch_seqs > 0
    stream = Stream(paths, seq_len, vocab_size)
    if val_tokens + 1 > stream.tokens:
        fits = stream.windows // world_size * world_size * seq_len
        remedy = f"--val-tokens {fits}" if fits else "shorter sequences"
        raise UserError(
            f"{_name(stream.paths)}: {stream.tokens} tokens, but validation on {val_tokens} needs "
            f"{val_tokens + 1}; run with {remedy}, or get more shards with: make data TRACK=<track>"
        )
    part = val_tokens // seq_len // world_size
    return ValBatches(stream, rank * part, part, batch_seqs)


def _check_divides(what: str, tokens: int, seq_len: int, world_size: int, option: str) -> None:
    """Raise UserError unless `tokens` is a positive number of whole sequences per process."""
    unit = seq_len * world_size
    if tokens < 1 or tokens % unit:
        nearest = max(1, round(tokens / unit)) * unit
        raise UserError(
            f"a {what} of {tokens} tokens must be a multiple of {unit} (sequences of {seq_len} on "
            f"{world_size} process{'es' if world_size > 1 else ''}); run with {option} {nearest}"
        )


def _name(paths: Sequence[Path]) -> str:
    return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
