"""data.filetype: what begins like JSON, and a name that promises a table.

    python -m pytest tests/test_filetype.py

Claims: JSON is no plain text, whatever it begins with; a table of commas is refused with a command
that reads it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data import filetype
from data.filetype import Form
from errors import UserError


@pytest.mark.parametrize(
    ("head", "form"),
    [
        (b'null\n\nnull\n{"text": "one"}\n', Form.LINES),
        (b"null and void\n", Form.TEXT),
        (b'["one \\"1\\"", "two"]', Form.VALUES),
        (b'[null, "one"]', Form.VALUES),
        (b'[ "one" ]', Form.VALUES),
        (b'["one"](two), a link in Markdown', Form.TEXT),
    ],
)
def test_json_is_told_by_its_beginning(head: bytes, form: Form) -> None:
    assert filetype.form("a", head, whole=True) is form


@pytest.mark.parametrize(("name", "comma"), [("a.csv", ","), ("a.TSV", "\t")])
def test_a_table_by_its_name_is_refused_with_a_command_that_reads_it(
    tmp_path: Path, name: str, comma: str
) -> None:
    path = tmp_path / name
    path.write_text(f'text{comma}n\n"one, 1"{comma}1\n"two\nlines"{comma}2\n')
    with pytest.raises(UserError, match="a table, by its name.*--format text") as caught:
        filetype.form(str(path), path.read_bytes(), whole=True)
    command = str(caught.value).partition("JSON lines of it: ")[2]
    command = command.replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    rows = [json.loads(line) for line in (tmp_path / "NEW").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["one, 1", "two\nlines"]
