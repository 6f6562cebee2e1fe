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
FILES, LINES = 5000, 500_000  # a run with QK-Clip on gpt2-2024 has 450,000 rows of logits
LONGEST_LINE = 64 << 10  # bytes; a row of runs.csv has about a thousand
# A reader of TOML takes a time that grows with the square of a line: a key may have many dots.
FORM_BYTES, FORM_LINE = 32 << 10, 8 << 10
FOLDERS = ("curves", "logits", "sources", "spectra", "turns")
# A name is plain ASCII, so that it is one name on every file system.
PLAIN = r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}"
DIGEST = re.compile(r"[0-9a-f]{16}")  # of a program text
KINDS = re.compile(
    rf"record\.toml|manifest\.csv|README\.md|{PLAIN}\.csv|"
    rf"(curves|turns|logits|spectra)/{PLAIN}\.csv|sources/[0-9a-f]{{16}}\.txt"
)


def listing(folder: Path) -> dict[str, bytes]:
    """The content of each file of a record, by its path in the folder, in order.

    Raises UserError for whatever no record holds.
    """
    content, total = {}, 0
    for name in _names(folder):
        path = folder / name
        if not KINDS.fullmatch(name):
            kind = "a link" if path.is_symlink() else "a folder" if path.is_dir() else "a file"
            raise UserError(
                f"{path}: {kind} that no record has; it holds record.toml, manifest.csv, "
                "README.md, tables *.csv, curves/, turns/, logits/, spectra/ and sources/: "
                "move it away"
            )
        content[name] = read(path)
        total += len(content[name])
        if total > FOLDER_BYTES:
            raise UserError(f"{folder}: more than {FOLDER_BYTES >> 20} MiB, which no record needs")
    return content


def _names(folder: Path) -> list[str]:
    """The paths of all that is in a folder and in its FOLDERS, without following a link."""
    if folder.is_symlink() or not folder.is_dir():
        what = "a link" if folder.is_symlink() else "no such folder"
        raise UserError(f"{folder}: {what}; name the folder of a record: ls results/records")
    found: list[str] = []
    places = [""]
    while places:
        place = places.pop()
        try:
            with os.scandir(folder / place) as entries:
                for each in entries:
                    name = f"{place}/{each.name}" if place else each.name
                    if name in FOLDERS and each.is_dir(follow_symlinks=False):
                        places.append(name)
                    else:
                        found.append(name)
                    if len(found) > FILES:
                        text = f"{folder}: more than {FILES} files, which no record needs"
                        raise UserError(f"{text}; remove what is not of its runs")
        except OSError as error:
            what = f"cannot read {error.filename}: {error.strerror}"
            raise UserError(f"{what}; check its owner") from error
    return sorted(found)


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
    if path.name == FORM and len(content) > FORM_BYTES:
        raise UserError(
            f"{path}: {len(content)} bytes, more than the {FORM_BYTES} of a form; make it again: "
            "python -m leaderboard submit"
        )
    longest = {FORM: FORM_LINE}.get(path.name, LONGEST_LINE if path.suffix == ".csv" else None)
    if content.count(b"\n") > LINES or (
        longest is not None and max(map(len, content.split(b"\n"))) > longest
    ):
        raise UserError(
            f"{path}: more than {LINES} lines, or one of more than {longest} bytes, which no "
            "record needs; restore the file"
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
