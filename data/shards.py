"""Reads and writes a shard, the `.bin` file that every data set here is stored in.

    tokens = open_shard(Path("data/tiny/tiny_train_000000.bin"), vocab_size=1024)

A shard has a header of 256 little-endian int32 (magic 20240520, version 1, number of tokens, zeros)
and then that many little-endian uint16 tokens. This is the format of llm.c and modded-nanogpt:
their FineWeb shards open unchanged. A file of another format, or of another length than its header
says, is refused before a token is read.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from errors import UserError
from tracking.files import write_atomic

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2
MAX_VOCAB = 1 << 16  # what uint16 holds
SCAN_CHUNK = 1 << 24  # tokens checked at once: 32 MiB of memory, however long the shard is

Tokens = NDArray[np.uint16]


@dataclass(frozen=True)
class Sizes:
    """How many tokens a data set has, known before it is prepared."""

    vocab_size: int
    shard_tokens: int  # of each training shard but the last
    train_tokens: int
    val_tokens: int  # of the one validation shard

    def shards(self, tokens: int) -> int:
        """Training shards that hold the first `tokens`."""
        return -(-min(tokens, self.train_tokens) // self.shard_tokens)

    def disk_bytes(self, tokens: int) -> int:
        """Bytes of the training shards that hold the first `tokens`, and of validation."""
        count = self.shards(tokens)
        held = min(count * self.shard_tokens, self.train_tokens)
        return count * HEADER_BYTES + TOKEN_BYTES * held + shard_bytes(self.val_tokens)


def shard_bytes(tokens: int) -> int:
    """The size of the shard that holds so many tokens."""
    return HEADER_BYTES + TOKEN_BYTES * tokens


def shard_parts(tokens: Tokens) -> list[bytes]:
    """The header and the body of the shard that holds `tokens` (one dimension), as bytes."""
    assert tokens.dtype == np.uint16 and tokens.ndim == 1
    return [_header(len(tokens)), tokens.astype("<u2", copy=False).tobytes()]


def _header(count: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, "<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def write_shard(path: Path, tokens: Tokens) -> None:
    """Write the uint16 `tokens` (one dimension) as one shard. Raises UserError as write_atomic."""
    write_atomic(path, shard_parts(tokens))


def open_shard(path: Path, vocab_size: int, *, scan: bool = True) -> Tokens:
    """Map a shard read-only and return its uint16 tokens, shape (number of tokens,).

    `scan` reads every token once to check it against the vocabulary (about 1 ms a million tokens).
    Without it, the caller must check the tokens that it takes with check_tokens. Raises UserError
    if the file is missing, is not a shard, has another version, is shorter or longer than its
    header says, or holds a token that is not below `vocab_size`.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; run: make data TRACK=<track>"
        ) from error
    if len(raw) < HEADER_BYTES:
        raise UserError(
            f"{path} is truncated: {len(raw)} bytes, a header alone is {HEADER_BYTES}; "
            f"delete it and run: make data TRACK=<track>"
        )
    magic, version, count = (int(n) for n in np.frombuffer(raw, "<i4", count=3))
    if magic != MAGIC:
        raise UserError(
            f"{path} is not a token shard: it begins with {magic}, a shard with {MAGIC}; "
            f"delete it and run: make data TRACK=<track>"
        )
    if version != VERSION:
        raise UserError(
            f"{path} is of version {version}, only version {VERSION} can be read; "
            f"delete it and run: make data TRACK=<track>"
        )
    expected = shard_bytes(count)
    if count < 1 or size != expected:
        fault = "empty" if count < 1 else "truncated" if size < expected else "too long"
        raise UserError(
            f"{path} is {fault}: {size} bytes, but its header says {count} tokens, "
            f"which take {expected} bytes; delete it and run: make data TRACK=<track>"
        )
    # A plain view of the map: slicing an np.memmap itself is several times slower.
    tokens: Tokens = np.asarray(np.memmap(path, "<u2", "r", offset=HEADER_BYTES, shape=(count,)))
    if scan:
        check_tokens(path, tokens, vocab_size)
    return tokens


def check_tokens(path: Path, tokens: NDArray[np.integer], vocab_size: int) -> None:
    """Raise UserError, naming `path`, if any of `tokens` (any shape) is not below `vocab_size`."""
    flat = tokens.reshape(-1)
    for start in range(0, len(flat), SCAN_CHUNK):
        largest = int(flat[start : start + SCAN_CHUNK].max())
        if largest >= vocab_size:
            raise UserError(
                f"{path} holds token {largest}, but the vocabulary is 0 to {vocab_size - 1}: "
                f"it was made with another tokenizer; delete it and run: make data TRACK=<track>"
            )


class ShardWriter:
    """Writes a stream of tokens as shards <name>_000000.bin, ... of `shard_tokens` tokens each.

    The last shard can be shorter. A shard is not written atomically: use it in a folder that has
    its final name only when it is whole.
    """

    def __init__(self, folder: Path, name: str, shard_tokens: int) -> None:
        self._folder, self._name, self._shard_tokens = folder, name, shard_tokens
        self._file: BinaryIO | None = None
        self._held = 0  # tokens in the shard that is open
        self.tokens = 0  # in all shards
        self.written: list[tuple[Path, int]] = []  # finished shards and their tokens

    def append(self, tokens: Tokens) -> None:
        """Write these tokens behind the others. Raises OSError if the disk is full."""
        while len(tokens):
            if self._file is None:
                path = self._folder / f"{self._name}_{len(self.written):06d}.bin"
                self._file = open(path, "xb")  # noqa: SIM115
                self._file.write(bytes(HEADER_BYTES))
            part = tokens[: self._shard_tokens - self._held]
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._held += len(part)
            self.tokens += len(part)
            tokens = tokens[len(part) :]
            if self._held == self._shard_tokens:
                self.close()

    def close(self) -> None:
        """Finish the shard that is open."""
        if self._file is None:
            return
        with self._file as file:
            file.seek(0)
            file.write(_header(self._held))
            file.flush()
            os.fsync(file.fileno())
        self.written.append((Path(file.name), self._held))
        self._file, self._held = None, 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
