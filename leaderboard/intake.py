"""Lists the files of a record that anybody may have made, and refuses what a record cannot hold.

    files = listing(Path("results/records/2026-11-26_tiny_duel"))

A record is read, never run: its files are text of a known kind and of a bounded size. A link, a
device, a file of another kind, a name that a file system could take for another one, an absurd size
and bytes that are no UTF-8 are refused, each with one message. What passes can be given to the
readers of `tracking.store` and `leaderboard.form`, in bounded time and memory.
"""

import hashlib
import os
import re
import stat
from pathlib import Path

from errors import UserError

FORM, MANIFEST, README = "record.toml", "manifest.csv", "README.md"
FILE_BYTES, FOLDER_BYTES = 16 << 20, 256 << 20  # many times the largest record of the project
FILES, LINES = 5000, 200_000
LONGEST_LINE = 64 << 10  # bytes; a row of runs.csv has about a thousand
# A name is plain ASCII, so that it is one name on every file system.
PLAIN = r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}"
DIGEST = re.compile(r"[0-9a-f]{16}")  # of a program text
KINDS = re.compile(
    rf"record\.toml|manifest\.csv|README\.md|{PLAIN}\.csv|(curves|turns|logits)/{PLAIN}\.csv|"
    r"sources/[0-9a-f]{16}\.txt"
)


def listing(folder: Path) -> dict[str, bytes]:
    """The content of each file of a record, by its path in the folder, in order.

    Raises UserError for whatever no record holds.
    """
    content, total = {}, 0
    for name in _names(folder):
        if not KINDS.fullmatch(name):
            raise UserError(
                f"{folder / name}: no file of a record; it holds record.toml, manifest.csv, "
                "README.md, tables *.csv, curves/, turns/, logits/ and sources/: move it away"
            )
        content[name] = read(folder / name)
        total += len(content[name])
        if total > FOLDER_BYTES:
            raise UserError(f"{folder}: more than {FOLDER_BYTES >> 20} MiB, which no record needs")
    return content


def _names(folder: Path) -> list[str]:
    """The paths of all files in a folder and its folders, without following a link."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a record: ls results/records")
    found: list[str] = []
    for place, folders, files in os.walk(folder, onerror=_raise):
        for name in folders:
            if os.path.islink(os.path.join(place, name)):
                raise UserError(f"{place}/{name}: a link, which no record holds; remove it")
        found += [os.path.relpath(os.path.join(place, name), folder) for name in files]
        if len(found) > FILES:
            raise UserError(f"{folder}: more than {FILES} files, which no record needs")
    return sorted(found)


def _raise(error: OSError) -> None:
    raise UserError(f"cannot read {error.filename}: {error.strerror}; check its owner") from error


def read(path: Path) -> bytes:
    """A regular file of a bounded size, as UTF-8 without NUL. Raises UserError."""
    try:
        # A link is not followed, and a pipe is not waited for.
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        what = "a link" if path.is_symlink() else error.strerror
        raise UserError(f"{path}: {what}; a record holds regular files: restore it") from error
    try:
        size = os.fstat(file)
        if not stat.S_ISREG(size.st_mode):
            raise UserError(f"{path}: not a regular file; remove it")
        if size.st_size > FILE_BYTES:
            raise UserError(
                f"{path}: {size.st_size} bytes, more than the {FILE_BYTES} of a record's file"
            )
        with os.fdopen(os.dup(file), "rb") as stream:
            content = stream.read(FILE_BYTES + 1)
    finally:
        os.close(file)
    _check_text(path, content)
    return content


def _check_text(path: Path, content: bytes) -> None:
    lines = content.split(b"\n")
    if len(lines) > LINES or (path.suffix == ".csv" and max(map(len, lines)) > LONGEST_LINE):
        raise UserError(
            f"{path}: more than {LINES} lines, or a row of more than {LONGEST_LINE} bytes, which "
            "no record needs"
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    if "\0" in text:
        raise UserError(f"{path}: has a NUL character; restore the file")


def sha256(content: bytes) -> str:
    """The SHA-256 of a file, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()
