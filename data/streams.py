"""Opens a file, a pipe or standard input as a stream of bytes, without what it is compressed by.

    with streams.opened(Path("notes.txt.gz")) as stream:
        stream.head, stream.layers        # the first bytes, ["gzip"]
        stream.file.read(1 << 20)         # all bytes, the first ones again

What it is compressed by is told by its first bytes (`data.filetype`). Nothing is read backwards, so
a pipe will do. Every failure to read is a UserError that names the file.
"""

import bz2
import gzip
import io
import lzma
import os
import shlex
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from data import filetype
from errors import UserError

STDIN = Path("-")
MOST_LAYERS = 4  # of compressions, one in the other
BUFFER_BYTES = 1 << 18


@dataclass(frozen=True)
class Stream:
    """A file without its compression."""

    file: io.BufferedReader
    head: bytes  # its first filetype.HEAD_BYTES, or all that it has
    layers: tuple[str, ...]  # what it was compressed by, from the outside

    @property
    def whole(self) -> bool:
        """Whether `head` is all of it."""
        return len(self.head) < filetype.HEAD_BYTES


def name_of(path: Path) -> str:
    """What messages call a file."""
    return filetype.STDIN_NAME if path == STDIN else str(path)


def is_pipe(path: Path) -> bool:
    """Whether it can be read only once. Raises UserError if it is not there or not to be read."""
    try:
        mode = os.fstat(0).st_mode if path == STDIN else path.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else f"cannot be read: {error.strerror}"
        raise UserError(f"{name_of(path)} {what}; run: python -m data.text OUT FILES...") from error
    if stat.S_ISDIR(mode):
        inside = shlex.quote(str(path))
        raise UserError(f"{path} is a folder: name its files, for instance: {inside}/*")
    if stat.S_ISCHR(mode) and _is_terminal(path):
        raise UserError(
            f"{name_of(path)} is a terminal; give a file, or a pipe: COMMAND | python -m data.text "
            "OUT -"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        raise UserError(f"{path} is a device or a socket, not a file; leave it out")
    return path == STDIN or not stat.S_ISREG(mode)


def _is_terminal(path: Path) -> bool:
    if path == STDIN:
        return os.isatty(0)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return False  # reading it will say why
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: Path) -> Iterator[Stream]:
    """The stream of a file; STDIN for standard input. Raises UserError, also while it is read."""
    name = name_of(path)
    try:
        raw = open(0 if path == STDIN else path, "rb", closefd=path != STDIN)  # noqa: SIM115
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}; leave it out") from error
    with raw:
        file = _Named(raw, name, None).buffered()
        layers: list[str] = []
        while True:
            head = file.read(filetype.HEAD_BYTES)
            file = _Named(_Again(head, file), name, None).buffered()
            kind = filetype.compression(head)
            if kind is None:
                break
            layers.append(kind)
            if len(layers) > MOST_LAYERS:
                raise UserError(f"{name} is compressed more than {MOST_LAYERS} times; unpack it")
            file = _Named(_decompressed(file, kind, name), name, kind).buffered()
        yield Stream(file, head, tuple(layers))


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Named(io.RawIOBase):
    """A file whose errors name it."""

    def __init__(self, file: _Readable, name: str, kind: str | None) -> None:
        self._file, self._name, self._kind = file, name, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self._file.read(len(buffer))
        except (OSError, EOFError, zlib.error, lzma.LZMAError, _DamagedError) as error:
            if self._kind is None:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"{self._name} cannot be read: {reason}; leave it out") from error
            raise UserError(
                f"{self._name}: its {self._kind} data is damaged or cut off: {error}; fetch the "
                "file again"
            ) from error
        buffer[: len(content)] = content
        return len(content)

    def buffered(self) -> io.BufferedReader:
        return io.BufferedReader(self, BUFFER_BYTES)


class _Again:
    """A file of which some bytes were read already, and are given once more."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int) -> bytes:
        if self._head:
            given, self._head = self._head[:size], self._head[size:]
            return given
        return self._rest.read(size)


def _decompressed(file: io.BufferedReader, kind: str, name: str) -> _Readable:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=file)
    if kind == "bzip2":
        return bz2.BZ2File(file)
    if kind == "xz":
        return lzma.LZMAFile(file)
    return _Zstd(file, name)


class _DamagedError(Exception):
    """zstandard refuses the bytes."""


class _Zstd:
    """A file in zstd, of any number of frames. Unlike the package's own reader it misses no end."""

    def __init__(self, file: io.BufferedReader, name: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise UserError(
                f"{name} is compressed by zstd, and zstandard is not installed; run: pip install "
                f"zstandard, or: zstd -dc {shlex.quote(name)} | python -m data.text OUT -"
            ) from error
        self._file, self._error = file, zstandard.ZstdError
        # Files made with `zstd --long=31` need a window of 2 GiB.
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._frame: Any = None
        self._compressed, self._content = b"", b""  # what was read but not used yet

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end. Raises EOFError if that is missing."""
        while not self._content:
            # Little at a time, because all that it decompresses to is kept.
            self._compressed = self._compressed or self._file.read(1 << 13)
            if not self._compressed:
                if self._frame is not None:
                    raise EOFError("its end is missing")
                return b""
            self._frame = self._frame or self._new_frame()
            try:
                self._content = self._frame.decompress(self._compressed)
            except self._error as error:
                raise _DamagedError(str(error)) from error
            self._compressed = b""
            if self._frame.eof:
                self._compressed, self._frame = self._frame.unused_data, None
        given, self._content = self._content[:size], self._content[size:]
        return given
