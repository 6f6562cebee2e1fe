"""Writes a whole file: every result and every prepared data set is written by this function.

    write_atomic(Path("results/curves/run.csv"), [text.encode()])

A reader sees the old file or the whole new one, also after a crash or a full disk.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from errors import UserError


def write_atomic(path: Path, parts: Iterable[bytes], then: str = "run the command again") -> None:
    """Write `parts`, one after the other, to `path`; make its folder if there is none.

    Raises UserError if the disk is full or the folder not writable, and leaves nothing behind.
    `then` is the next command in that message.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error, then) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def cannot_write(path: Path, error: OSError, then: str = "run the command again") -> UserError:
    """The message for a write to `path` that failed; `then` is the next command in it."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space" if is_full else "make the folder writable"
    return UserError(f"cannot write {path}: {error.strerror or error}; {remedy}, then {then}")
