"""The hidden folder beside OUT in which a data set is made, until it is whole.

    with workspace.beside(out) as folder:
        ...                              # write into `folder`
        workspace.finish(folder, out)    # rename it; without this it is removed

Its name is `.OUT.making`, and it holds a file `lock` that its process keeps locked. The system
opens the lock when the process ends, however it ends. So a folder whose lock is open is what a
process left that was killed: the next call in the same place removes it and says so.
"""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from errors import UserError

SUFFIX = ".making"
LOCK = "lock"


@contextlib.contextmanager
def beside(out: Path) -> Iterator[Path]:
    """Make the folder, hold its lock, and remove the folder at the end if it is still there.

    Raises UserError if it cannot be made, or another process is making `out`.
    """
    folder = out.parent / f".{out.name}{SUFFIX}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        clean(out.parent)
        folder.mkdir(exist_ok=True)
        lock = _locked(folder)
    except OSError as error:
        raise UserError(
            f"cannot write to {out.parent}: {error.strerror}; choose another OUT"
        ) from error
    if lock is None:
        raise UserError(f"another process is making {out}; wait for its end, or choose another OUT")
    with lock:
        try:
            for rest in folder.iterdir():  # of a process that was killed while it finished
                if rest.name != LOCK:
                    shutil.rmtree(rest) if rest.is_dir() else rest.unlink()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def finish(folder: Path, out: Path) -> None:
    """Give the folder its final name. Raises OSError."""
    (folder / LOCK).unlink()
    os.rename(folder, out)


def clean(parent: Path) -> None:
    """Remove the folders in `parent` whose processes are gone, and say so on stderr."""
    for folder in sorted(parent.glob(f".*{SUFFIX}")):
        if not (folder / LOCK).is_file():
            continue  # not ours
        with contextlib.suppress(OSError):  # another user's: left alone
            lock = _locked(folder)
            if lock is not None:
                with lock:
                    shutil.rmtree(folder)
                print(f"removed {folder}: a call that was killed had left it", file=sys.stderr)


def _locked(folder: Path) -> IO[bytes] | None:
    """The folder's lock file, locked; None: another process holds it. Raises OSError."""
    lock = open(folder / LOCK, "ab")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between the two calls the folder may have been renamed or removed by its process.
        if os.path.samestat(os.fstat(lock.fileno()), os.stat(folder / LOCK)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    lock.close()
    return None
