"""How many tokens a second the reader of batches delivers.

    python -m bench.data [--folder DIR]

One process reads batches of 524,288 tokens, in sequences of 1024, as fast as it can, from 256M
random tokens in three shards. It reads them in the order of the stream and shuffled; into new
arrays, into reused arrays, and through the thread that reads ahead. Goal: each far above the 4M
tokens a second that eight GPUs train on. The shards are written to DIR (default: the system's
temporary folder), so the page cache holds them, and deleted afterwards. Needs no GPU.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from bench import Row, write
from data import shards
from data.loader import Batches, ReadAhead
from host import entry
from host.paths import typed
from runtime import machine

# No multiples of a sequence's length, so that some sequences lie across two shards.
SHARD_TOKENS = (100_000_007, 100_000_013, 56_000_000)
VOCAB_SIZE = 50257
SEQ_LEN = 1024
BATCH_TOKENS = 524_288
STEPS = 100  # of one measurement
ROUNDS = 5


def make_shards(folder: Path) -> list[Path]:
    """Write the shards of random tokens; their paths."""
    rng = np.random.default_rng(0)
    paths = [folder / f"bench_train_{n:06d}.bin" for n in range(len(SHARD_TOKENS))]
    for path, count in zip(paths, SHARD_TOKENS, strict=True):
        shards.write_shard(path, rng.integers(0, VOCAB_SIZE, count, dtype=np.uint16))
    return paths


def rate(read: Callable[[], Iterable[object]]) -> float:
    """Tokens a second: the median over rounds."""
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        taken = sum(1 for _ in read())
        seconds.append(time.perf_counter() - begun)
    return taken * BATCH_TOKENS / statistics.median(seconds)


def measure(order: str, batches: Batches) -> list[Row]:
    """Measure each way to read these batches; order: what the rows call their order."""
    steps = range(STEPS)
    buffers = batches.batch(0)

    def ahead() -> Iterable[object]:
        with ReadAhead(batches, steps) as reader:
            yield from reader

    readers: dict[str, Callable[[], Iterable[object]]] = {
        "new arrays": lambda: (batches.batch(step) for step in steps),
        "arrays used again": lambda: (batches.batch(step, buffers) for step in steps),
        "read ahead": ahead,
    }
    return [
        {"order": order, "reader": reader, "M tokens/s": round(rate(read) / 1e6, 1)}
        for reader, read in readers.items()
    ]


def measure_all(given: argparse.Namespace) -> None:
    """Measure, and write the rows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        paths = make_shards(Path(folder))
        print(f"{sum(os.path.getsize(path) for path in paths) / 1e6:.0f} MB of shards")
        for order, seed in (("stream", None), ("shuffled", 0)):
            batches = Batches(
                paths, batch_tokens=BATCH_TOKENS, seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE,
                shuffle_seed=seed,
            )  # fmt: skip
            rows += measure(order, batches)
    # Neither the threads nor the version of torch matter here.
    write("data", rows, {"device": machine.device_name(torch.device("cpu"))})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = entry.parser("bench.data", __doc__)
    parser.add_argument("--folder", type=typed, default=tempfile.gettempdir(),
                        help="where the shards are made (default: %(default)s)")  # fmt: skip
    return entry.run(parser, argv, measure_all, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
