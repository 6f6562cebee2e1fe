"""Writing a file whole: the old content or the new one, and nothing beside it.

python -m pytest tests/test_files.py
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from tracking import files
from tracking.files import write_atomic


class FullDisk:
    """A file that takes some bytes and then has no room, as on a full disk."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, part: bytes) -> None:
        self.file.write(part[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    write_atomic(path, [b"one", b"", b" and two"])
    assert path.read_bytes() == b"one and two"
    write_atomic(path, [b"three"])
    assert path.read_bytes() == b"three" and list(path.parent.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.bin"
    write_atomic(path, [b"the old content"])
    monkeypatch.setattr(files, "open", lambda *a: FullDisk(open(*a)), raising=False)  # noqa: SIM115
    with pytest.raises(UserError, match="a.bin: No space left.*free some space, then run it all"):
        write_atomic(path, [b"the new content"], then="run it all")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the old content"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_at_the_end_leaves_the_old_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    path = tmp_path / "a.bin"
    write_atomic(path, [b"old"])
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(UserError, match="free some space, then run the command again"):
        write_atomic(path, [b"new"])
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_an_error_while_the_content_is_made_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"some"
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_atomic(tmp_path / "a.bin", parts())
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*make the folder writable, then run"):
        write_atomic(tmp_path / "file" / "a.bin", [b"1"])
