"""Writes a whole file: every result and every prepared data set is written by `write_atomic`.

    write_atomic(Path("results/curves/run.csv"), [text.encode()])

A reader sees the old file or the whole new one, also after a crash or a full disk.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from errors import UserError

TEMPORARY = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.tmp")  # the names of unfinished files
OLD_SECONDS = 3600.0  # no write takes so long


def write_atomic(path: Path, parts: Iterable[bytes], then: str = "run the command again") -> None:
    """Write `parts`, one after the other, to `path`; make its folder if there is none.

    Raises UserError if the disk is full or the folder not writable, and leaves nothing behind.
    `then` is the next command in that message.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_old(path.parent)
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


def check_writable(folder: Path, room: int = 1, otherwise: str = "choose another folder") -> None:
    """Raise UserError if `room` bytes could not be written to a folder that may not exist yet.

    A file is written where the folder is, or would be made, and removed: permissions, quotas, a
    full disk and a file in a folder's place show only so. otherwise: the next step in the message.
    """
    place = folder
    try:
        while not os.path.lexists(place):
            place = place.parent
        if len(folder.name.encode()) > os.pathconf(place, "PC_NAME_MAX"):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # some network file systems have no locks
            if shutil.disk_usage(place).free < room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for start in range(0, room, 1 << 20):  # random: some file systems would pack zeros
                file.write(os.urandom(min(room - start, 1 << 20)))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        what = f"{room} bytes to {folder}" if room > 1 else f"to {folder}"
        raise UserError(
            f"cannot write {what}: {error.strerror or error}; "
            f"{'free some space, or ' if is_full else ''}{otherwise}"
        ) from error


def _remove_old(folder: Path) -> None:
    """Remove what processes left that were killed while they wrote. Raises OSError."""
    for each in os.scandir(folder):
        if TEMPORARY.fullmatch(each.name):
            with contextlib.suppress(OSError):  # another process was faster
                if time.time() - each.stat(follow_symlinks=False).st_mtime > OLD_SECONDS:
                    os.unlink(each.path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last, as fsync does for the bytes of a file. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_write(path: Path, error: OSError, then: str = "run the command again") -> UserError:
    """The message for a write to `path` that failed; `then` is the next command in it."""
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "free some space" if is_full else "make the folder writable"
    return UserError(f"cannot write {path}: {error.strerror or error}; {remedy}, then {then}")
