"""Sorts tokenized documents by key on disk, when they do not fit in memory.

    sort = ExternalSort(folder, buckets=16)
    sort.add(Documents.of(keys, arrays_of_tokens))      # as often as needed
    for key, tokens in sort.in_order(): ...

The range of the keys is divided into buckets. A bucket is two files: an index, and the tokens. The
index of one bucket is sorted in memory at a time, and the tokens are read document by document. So
memory holds one index, 28 bytes per document, and one document.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.shards import Tokens

Key = tuple[int, int]  # the two halves of 128 bits

_INDEX = np.dtype([("high", "<u8"), ("low", "<u8"), ("start", "<u8"), ("length", "<u4")])


@dataclass(frozen=True)
class Documents:
    """n documents: keys (n, 2), lengths in tokens (n,), and the tokens of all, concatenated."""

    keys: NDArray[np.uint64]
    lengths: NDArray[np.int64]
    tokens: Tokens

    @staticmethod
    def of(keys: Sequence[bytes], documents: Sequence[Tokens]) -> "Documents":
        """Make it from a key of 16 bytes and an array of tokens for each document."""
        return Documents(
            np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2).astype(np.uint64),
            np.array([len(document) for document in documents], np.int64),
            np.concatenate([np.empty(0, np.uint16), *documents]),
        )


class ExternalSort:
    """Takes documents in any order and gives them back in the order of their keys."""

    def __init__(self, folder: Path, buckets: int) -> None:
        """Make the folder; the range of the keys is divided evenly into `buckets`."""
        assert 1 <= buckets <= 1 << 16
        folder.mkdir()
        self._folder, self._buckets = folder, buckets
        self._lengths = [0] * buckets  # in tokens
        self.documents = 0

    @property
    def tokens(self) -> int:
        """How many tokens the documents added so far have."""
        return sum(self._lengths)

    def add(self, found: Documents) -> None:
        """Put each document into its bucket. Raises OSError if the disk is full."""
        high = found.keys[:, 0]
        owner = ((high >> np.uint64(48)) * np.uint64(self._buckets)) >> np.uint64(16)
        starts = np.cumsum(found.lengths) - found.lengths
        for bucket in np.unique(owner).tolist():
            mine = np.flatnonzero(owner == bucket)
            index = np.empty(len(mine), _INDEX)
            index["high"], index["low"] = found.keys[mine].T
            index["length"] = found.lengths[mine]
            index["start"] = self._lengths[bucket] + np.cumsum(found.lengths[mine])
            index["start"] -= index["length"]
            parts = [
                found.tokens[start : start + length]
                for start, length in zip(starts[mine], found.lengths[mine], strict=True)
            ]
            # Opened each time, because buckets can be more than the files a process can have open.
            with open(self._path(bucket, "tokens"), "ab") as file:
                file.write(np.concatenate(parts).tobytes())
            with open(self._path(bucket, "index"), "ab") as file:
                file.write(index.tobytes())
            self._lengths[bucket] += int(found.lengths[mine].sum())
        self.documents += len(high)

    def in_order(self) -> Iterator[tuple[Key, Tokens]]:
        """Yield all documents in the order of their keys; delete each bucket after reading it."""
        for bucket in range(self._buckets):
            path = self._path(bucket, "index")
            if not path.exists():
                continue
            index = np.fromfile(path, _INDEX)
            with open(self._path(bucket, "tokens"), "rb") as file:
                for entry in np.lexsort((index["low"], index["high"])):
                    high, low, start, length = index[entry].item()
                    file.seek(2 * start)
                    yield (high, low), np.frombuffer(file.read(2 * length), np.uint16)
            path.unlink()
            self._path(bucket, "tokens").unlink()
        self._folder.rmdir()

    def _path(self, bucket: int, what: str) -> Path:
        return self._folder / f"{bucket:05d}.{what}"
