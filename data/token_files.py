"""Tells what a file of tokens is by its first bytes, whatever its name says.

    count = header(path)         # tokens of a shard; UserError for any other file
    tokens = raw(path)           # nanoGPT's tokens without a header, and NumPy arrays

`.bin` is the suffix of many formats. A file that is not a shard is refused by the name of what it
is, with the next command.
"""

import os
import shlex
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from data import filetype, shards
from errors import UserError

LLAMA = 20240801
# What llm.c writes beside shards of GPT-2 tokens, by the first int32.
MAGICS = {
    20240326: "a GPT-2 model of llm.c", 20240327: "a debug state of llm.c",
    20240328: "a tokenizer of llm.c", 20240522: "questions of an evaluation, such as HellaSwag",
    20240803: "a llama-3 model of llm.c",
}  # fmt: skip
PREFIXES = {
    b"PK\x03\x04": "a ZIP archive, perhaps a PyTorch model", b"GGUF": "a GGUF model",
    **{bytes([0x80, version]): "a Python pickle" for version in (2, 3, 4, 5)},
}  # fmt: skip
LFS, NUMPY = b"version https://git-lfs", b"\x93NUMPY"
SAMPLE = 1 << 20  # bytes that tell raw tokens from other bytes


def header(path: Path) -> int:
    """How many tokens a shard has; its length agrees.

    Raises UserError if the file cannot be read, is no shard, is of a version that is not known, or
    is shorter or longer than its header says.
    """
    start, size = _begin(path)
    magic, version, count = (int(n) for n in np.frombuffer(start.ljust(12, b"\0"), "<i4", count=3))
    if magic != shards.MAGIC or len(start) < shards.HEADER_BYTES:
        _refuse(path, start, size)
    if version != shards.VERSION:
        raise UserError(
            f"{path} is a shard of version {version}, and only version {shards.VERSION} is known; "
            "make it anew with a newer version of its program, or move it out of the folder"
        )
    expected = shards.shard_bytes(count)
    if count < 1:
        raise UserError(f"{path}: its header says {count} tokens; delete the file, or make it anew")
    if size == shards.HEADER_BYTES + 4 * count:
        raise UserError(
            f"{path} has tokens of 4 bytes, {count} of them, and a shard has 2 bytes a token; "
            "make it anew with uint16 tokens"
        )
    if size < expected:
        raise UserError(
            f"{path} is truncated, or still being written: {size} of the {expected} bytes that "
            f"{count} tokens take; wait for its end, or delete it and fetch it again"
        )
    if size > expected:
        raise UserError(
            f"{path} is too long: {size} bytes, but its header says {count} tokens, which take "
            f"{expected}; delete it and make it anew"
        )
    _check_holes(path, size)
    return count


def raw(path: Path) -> NDArray[Any]:
    """The tokens of a file without a header, mapped read-only: raw integers, or a NumPy array.

    Raises UserError if the file holds something else.
    """
    start, size = _begin(path)
    if start.startswith(NUMPY):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:  # the parser of its header raises anything
            reason = str(error).partition("\n")[0]
            raise UserError(f"{path} is a damaged NumPy array: {reason}; make it anew") from error
        if array.ndim != 1 or array.dtype.kind not in "ui" or not array.size:
            raise UserError(
                f"{path} is an array of {array.dtype} with shape {array.shape}, not a row of "
                "integer tokens; leave it out"
            )
        return np.asarray(array)
    kind = _raw_kind(start, size)
    if kind is None:
        if _magic(start) == shards.MAGIC:
            raise UserError(f"{path} is a shard already; run without --convert")
        _refuse(path, start, size)
    return np.asarray(np.memmap(path, kind, "r"))


def _begin(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file, and its size. Raises UserError if it cannot be read."""
    try:
        if path.is_symlink() and not path.exists():
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, which is not there; mend or delete it"
            )
        if not path.is_file():
            raise UserError(f"{path} is not a file; move it out of the folder")
        with open(path, "rb") as file:
            return file.read(SAMPLE), os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; make it readable, or move it away"
        ) from error


def _magic(start: bytes, kind: str = "<i4") -> int:
    return int(np.frombuffer(start[:4].ljust(4, b"\0"), kind)[0])


def _refuse(path: Path, start: bytes, size: int) -> NoReturn:
    """Raise UserError for a file that is not a shard: what it is, and the next command."""
    away = "move it out of the folder, or choose the shards with --train and --val"
    magic = _magic(start)
    if not size:
        raise UserError(f"{path} is empty; delete it, or fetch it again")
    if magic == LLAMA:
        raise UserError(
            f"{path} is a shard of llama-3 tokens (magic {LLAMA}, uint32): its vocabulary of "
            f"128,256 does not fit the uint16 of a shard; tokenize the text for GPT-2, with "
            "llm.c's `--model_desc gpt-2`, or with: python -m data.text OUT FILES..."
        )
    if _magic(start, ">i4") in (shards.MAGIC, LLAMA):
        raise UserError(
            f"{path} is a shard in big-endian byte order, and a shard is little-endian; make it "
            "anew on a little-endian machine, or swap its bytes"
        )
    if magic == shards.MAGIC:
        raise UserError(
            f"{path} is truncated, or still being written: {size} bytes, and a header alone takes "
            f"{shards.HEADER_BYTES}; wait for its end, or delete it and fetch it again"
        )
    if start.startswith(LFS):
        raise UserError(f"{path} is a pointer of Git LFS, not the file itself; run: git lfs pull")
    if magic in MAGICS:
        raise UserError(f"{path} is {MAGICS[magic]} (magic {magic}), not a shard; {away}")
    if start.startswith(NUMPY):
        raise UserError(f"{path} is a NumPy array; {_to_convert(path)}")
    known = _known(start)
    if known is not None:
        raise UserError(f"{path} is {known}, not a shard; {away}")
    if _is_text(start):
        raise UserError(
            f"{path} is text that begins with {start[:20].decode('utf-8', 'replace')!r}, not a "
            f"shard; if a download failed, delete it and fetch it again; else {away}"
        )
    kind = _raw_kind(start, size)
    if kind is not None:
        by = "nanoGPT" if kind == "<u2" else "llm.c until May 2024"
        raise UserError(
            f"{path} has no header; it seems to hold {size // np.dtype(kind).itemsize} raw tokens, "
            f"as {by} writes them; {_to_convert(path)}"
        )
    raise UserError(
        f"{path} is not a shard: it begins with {magic}, and a shard with {shards.MAGIC}; {away}"
    )


def _to_convert(path: Path) -> str:
    folder = shlex.quote(str(path.parent))
    return f"to copy it into shards, run: python -m data.adopt {folder} --convert --out data/NAME"


def _known(start: bytes) -> str | None:
    """What a file is that is neither text nor tokens; None if its first bytes are not known."""
    found = (what for prefix, what in PREFIXES.items() if start.startswith(prefix))
    return next(found, None) or filetype.named(start)


def _is_text(start: bytes) -> bool:
    sample = start[:1024]
    text = sample.decode("utf-8", "ignore")
    whole = len(text.encode()) > len(sample) - 4  # the sample can end inside a character
    return whole and all(char.isprintable() or char in "\r\n\t" for char in text)


def _raw_kind(start: bytes, size: int) -> str | None:
    """The type of raw tokens; None if the bytes are none: of a known format, text or numbers."""
    known = {shards.MAGIC, LLAMA, *MAGICS}
    if _magic(start) in known or _magic(start, ">i4") in known or not size or size % 2:
        return None
    if _known(start) is not None or _is_text(start):
        return None
    tokens = np.frombuffer(start[: len(start) // 4 * 4], "<u2")
    if size % 4 == 0 and len(tokens) > 1 and tokens[::2].any() and not tokens[1::2].any():
        return "<i4"
    # Numbers of other formats have all bit patterns; GPT-2's tokens end at 50256.
    return "<u2" if len(tokens) == 0 or tokens.max() < 50257 else None


def _check_holes(path: Path, size: int) -> None:
    """Raise UserError if a part of the file was never written: some downloads begin at full size.

    On a file system that knows no holes, the first one is the end of the file.
    """
    with open(path, "rb") as file:
        try:
            hole = os.lseek(file.fileno(), 0, os.SEEK_HOLE)
        except (OSError, AttributeError):
            return
    if hole < size:
        raise UserError(
            f"{path} has its full size, but was not written at byte {hole}: a download that is not "
            "finished; wait for its end, or delete it and fetch it again"
        )
