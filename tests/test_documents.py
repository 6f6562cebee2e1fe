"""data.documents: what a file is, and what is read from it, whatever it is called.

    python -m pytest tests/test_documents.py

Claims: a file is told by its bytes; the same documents come out of it plain, compressed, through a
pipe, as lines, as an array and as a table; null is counted in each; what is no text is refused in
one sentence that names the file, the place and a command that helps, never by a traceback.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data import bpe, corpus, documents, filetype, json_values, streams, text
from data.text import Settings
from errors import UserError
from host.paths import PROJECT

ROWS = [
    {"text": "one", "n": 1},
    {"text": None, "n": 2},
    {"text": "two\r\nlines — naïve", "n": 3},
    {"text": "", "n": 4},
]
TEXTS = ["one", "two\r\nlines — naïve"]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ARRAY = json.dumps(ROWS).encode()
LAID_OUT = json.dumps(ROWS, indent=2).encode()
BOM = b"\xef\xbb\xbf"


@pytest.fixture(scope="module")
def encoding() -> "bpe.tiktoken.Encoding":
    return bpe.load(corpus.ROOT / corpus.TOKENIZER)


def read(path: Path, **settings: object) -> tuple[list[str], int]:
    """The documents of a file that are not empty, and how many are null."""
    given = Settings(**settings)  # type: ignore[arg-type]
    documents.look(path, given)
    found: list[str | None] = []
    for piece in documents.pieces(path, given, path.parent):
        found += [piece.text(number, given) for number in range(len(piece.documents))]
    return [each for each in found if each], found.count(None)


def label(path: Path, **settings: object) -> str:
    return documents.look(path, Settings(**settings)).label  # type: ignore[arg-type]


def refusal(path: Path, **settings: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


Write = Callable[[str, bytes], Path]


# --- what a file is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.txt", "a"])
@pytest.mark.parametrize(
    ("content", "called"),
    [
        (LINES, "JSON lines"),
        (BOM + LINES + BOM + LINES[:0], "JSON lines"),
        (LINES.replace(b"\n", b"\r\n"), "JSON lines"),
        (LINES.replace(b"\n", b"\r"), "JSON lines"),
        (ARRAY, "JSON"),
        (BOM + b"\n " + LAID_OUT, "JSON"),
        ("\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), "JSON"),
    ],
)
def test_json_is_json_whatever_its_name_is(
    file: Write, name: str, content: bytes, called: str
) -> None:
    path = file(name, content)
    assert label(path) == called
    assert read(path) == (TEXTS, 1)


def test_a_mark_at_the_beginning_of_a_later_line_is_no_text_either(file: Write) -> None:
    assert read(file("a.jsonl", BOM + LINES + BOM + LINES)) == (TEXTS * 2, 2)
    assert read(file("a.txt", BOM + b"one<|endoftext|>" + BOM + b"two")) == (["one", "two"], 0)


@pytest.mark.parametrize(
    "words",
    [
        "plain",
        "[1] Smith, in: Nature",
        "[Chapter 1]",
        "{curly}",
        "ORCHESTRA",
        "RIFF is a word",
        "{",
    ],
)
def test_what_only_begins_like_something_else_is_plain_text(file: Write, words: str) -> None:
    path = file("notes", words.encode())
    assert label(path) == "plain text"
    assert read(path) == ([words], 0)


def compressed() -> dict[str, Callable[[bytes], bytes]]:
    ways = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}
    try:
        import zstandard
    except ImportError:
        return ways
    return ways | {"zstd": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("way", compressed())
def test_compressed_files_are_read_and_damaged_ones_named(file: Write, way: str) -> None:
    squeeze = compressed()[way]
    for content, called in ((LINES, "JSON lines"), (ARRAY, "JSON")):
        assert read(file("a", squeeze(content))) == (TEXTS, 1)
        assert label(file("a", squeeze(content))) == f"{called} in {way}"
    assert read(file("a.txt", squeeze(b"on") + squeeze(b"e"))) == (["one"], 0)  # as `cat` makes it
    assert read(file("a", gzip.compress(squeeze(LINES)))) == (TEXTS, 1)
    noise = random.Random(0).randbytes(1 << 18).hex().encode()
    cut = squeeze(noise)[:-20]
    assert f"its {way} data is damaged or cut off" in refusal(file("a.txt", cut))
    turned = bytearray(squeeze(noise))
    turned[len(turned) // 2] ^= 0xFF
    if way in ("gzip", "xz"):  # the others notice it only behind bytes that are no text
        assert "damaged or cut off" in refusal(file("a.txt", bytes(turned)))
    # The advice for what is inside holds for the compressed file.
    message = refusal(file("b.txt", squeeze("caf\xe9 au lait".encode("latin1"))))
    assert f"{way} -dc < {file('b.txt', b'')} | iconv -f latin1 -t utf-8 > NEW" in message


def test_without_zstandard_it_is_said_how_to_read_it(
    file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    message = refusal(file("a.zst", b"\x28\xb5\x2f\xfd rest"))
    assert "pip install zstandard, or: zstd -dc" in message


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"one"))
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        made.writestr("a.txt", "one")
    return buffer.getvalue()


SHARD = np.array([20240520, 1, 8, *[0] * 253], np.int32).tobytes() + bytes(16)
SENTENCE = "Hello there, this is text.\nAnd more.\n"
OTHERS = {
    "zip": (zipped(), "is a ZIP archive"),
    "tar": (archive(), "is a tar archive; run: tar -xOf - < "),
    "tar in gzip": (gzip.compress(archive()), "is a tar archive; run: gzip -dc < "),
    "lzma": (lzma.compress(b"one" * 99, lzma.FORMAT_ALONE), "compressed by lzma; run: xz -dc"),
    "pdf": (b"%PDF-1.7\n\xff\xff", "is PDF; run: pdftotext"),
    "png": (b"\x89PNG\r\n\x1a\n\0", "is a picture"),
    "shard": (SHARD, "is a shard of GPT-2 tokens; race its folder"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html>\n<html>404 Not Found</html>", "is a web page.*--format text"),
    "s3": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "noise": (random.Random(1).randbytes(5000), "is no text.*leave it out"),
    "nul": (b"one good\0 word", "a NUL byte at byte 8.*tr -d '.000' <"),
}
for mark in ("utf-16", "utf-32"):  # with a mark in front
    OTHERS[mark] = (SENTENCE.encode(mark), f"is {mark.upper()}.*iconv -f {mark} -t utf-8 <")
for wide in ("utf-16le", "utf-16be", "utf-32le", "utf-32be"):
    for words in (SENTENCE, "Привет, мир.\nЕщё текст.\n", "中文文本。\n再来一行，没有空格。\n"):
        OTHERS[f"{wide} {words[:2]}"] = (words.encode(wide), f"iconv -f {wide} -t utf-8 <")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a"])
def test_what_is_no_text_is_named_with_its_remedy(file: Write, kind: str, name: str) -> None:
    content, message = OTHERS[kind]
    assert re.search(message, refusal(file(name, content)))


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_cyrillic_in_utf16_of_which_no_byte_is_wrong_in_utf8_is_named(
    file: Write, encoding: str
) -> None:
    content = ("Привет мир " * 200).encode(encoding)
    content.decode()  # each character has a control character in front or behind
    assert f"iconv -f {encoding} -t utf-8 <" in refusal(file("a.txt", content))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16le", "utf-32be"])
def test_json_in_a_wide_encoding_is_named_too(file: Write, encoding: str) -> None:
    assert f"iconv -f {encoding}" in refusal(file("a.jsonl", LINES.decode().encode(encoding)))


@pytest.mark.parametrize(
    ("content", "remedy"),
    [
        ("café au lait".encode("latin1"), "iconv -f latin1 "),
        ("“quoted” – text".encode("cp1252"), "iconv -f windows-1252 "),
        ("Привет мир".encode("koi8-r"), "iconv -f ENCODING "),
        ("日本語のテキスト".encode("shift_jis"), "iconv -f ENCODING "),
        ("déjà vu ".encode() * 9 + b"\xff", "iconv -c -f utf-8 "),
        ("déjà".encode()[:-1], "cut off in the middle of a character"),
        (bytes(range(1, 256)), "it is no text: leave it out"),
    ],
)
def test_the_remedy_for_what_is_not_utf8_fits_its_bytes(
    file: Write, content: bytes, remedy: str
) -> None:
    message = refusal(file("a.txt", b"good<|endoftext|>" + content))
    assert "document 2 is not UTF-8" in message and remedy in message


def test_a_nul_far_behind_is_found_too(file: Write) -> None:
    path = file("a.txt", b"one<|endoftext|>" + b"long " * 20_000 + b"\0")
    assert "a NUL byte in document 2" in refusal(path)


def test_a_name_that_promises_a_table_is_believed(file: Write) -> None:
    assert "is not Parquet: it begins with 'not at all'" in refusal(
        file("a.PARQUET", b"not at all")
    )
    assert "is not Arrow" in refusal(file("a.arrow", b"one"))
    assert read(file("a.parquet", LINES)) == (TEXTS, 1)
    assert "line 1: not JSON" in refusal(file("a.jsonl", b"just words\n"))
    for name in ("a.jsonl", "a.json", "a.parquet", "a.txt", "a.gz"):
        assert read(file(name, b"")) == ([], 0)
        assert label(file(name, gzip.compress(b""))) == "empty in gzip"


def test_a_byte_order_mark_in_front_of_a_text_is_left_out_in_json_too(file: Write) -> None:
    row = json.dumps({"text": "\ufeffone \ufeff"}).encode()
    assert read(file("a", row)) == read(file("b", b"[%b]" % row)) == (["one \ufeff"], 0)


def test_the_format_can_be_set(file: Write) -> None:
    assert read(file("a.jsonl", LINES[:20]), format="text") == ([LINES[:20].decode()], 0)
    assert read(file("a.html", b"<html>one</html>")) == (["<html>one</html>"], 0)
    assert read(file("a", b"<html>one</html>"), format="text") == (["<html>one</html>"], 0)
    assert "line 1: not JSON" in refusal(file("a", b"one"), format="jsonl")
    assert "not JSON" in refusal(file("a", b"one"), format="json")
    with pytest.raises(UserError, match="--format csv: choose auto, text"):
        Settings(format="csv")


def test_files_are_told_as_what_they_are_read() -> None:
    sources = [documents.Source(Path(f"{n}.txt"), "JSON lines", 1) for n in range(5)]
    sources += [
        documents.Source(Path("a\nb"), "plain text", 1),
        documents.Source(Path("-"), "", None),
    ]
    assert documents.described(sources) == [
        "read as JSON lines: 0.txt, 1.txt, 2.txt, and 2 more",
        "read as plain text: 'a\\nb'",
    ]


# --- pipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [LINES, ARRAY, gzip.compress(LINES, mtime=0)], ids=["lines", "array", "gzip"]
)
def test_a_pipe_is_read_once_from_its_beginning(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def trickle() -> None:
        with open(path, "wb", buffering=0) as pipe:
            for byte in content:
                pipe.write(bytes([byte]))

    writer = threading.Thread(target=trickle)
    writer.start()
    assert label(path) == ""  # a look would take its first bytes away
    assert read(path) == (TEXTS, 1)
    writer.join()


def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert "too many levels" in refusal(loop).lower()
    assert "does not exist" in refusal(tmp_path / "none")
    assert f"is a folder: name its files, for instance: {tmp_path}/*" in refusal(tmp_path)
    master, terminal = os.openpty()
    try:
        assert "is a terminal" in refusal(Path(os.ttyname(terminal)))
        monkeypatch.setattr(os, "isatty", lambda _: True)
        with pytest.raises(UserError, match="standard input is a terminal; give a file, or a pipe"):
            streams.is_pipe(streams.STDIN)
    finally:
        os.close(master)
        os.close(terminal)
    with pytest.raises(UserError, match="- is given twice"):
        monkeypatch.setattr(streams, "is_pipe", lambda _: True)
        text._look([streams.STDIN, streams.STDIN], Settings())


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(file: Write) -> None:
    path = file("a.txt", b"one")
    path.chmod(0)
    assert "cannot be read: Permission denied" in refusal(path)


# --- JSON -----------------------------------------------------------------------------------------


DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"text": "ok", "n": ' + b"9" * 5000 + b"}", "ok"),
        (b'{"text": "ok", "n": NaN, "m": -Infinity}', "ok"),
        (rb'{"text": "a\ud800b", "\udfff": 1}', "a\N{REPLACEMENT CHARACTER}b"),
        (b'{"text": "first", "text": "last"}', "last"),
        (rb'{"text": "a\u0000b"}', "a\0b"),
    ],
)
def test_odd_json_is_read(file: Write, content: bytes, found: str) -> None:
    assert read(file("a.jsonl", content)) == ([found], 0)
    assert read(file("a.json", b"[null,\n" + content + b"]")) == ([found], 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"text": "a", "meta": ' + DEEP + b"}", "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
        (b'{"text": 3, "other": 4}', "'text': it is a number; make text of it.*tostring"),
        (b'{"text": NaN}', "it is a number"),
        (b'{"text": ["a"]}', "it is a list"),
        (b'{"text": {"a": "b"}, "body": "c"}', "it is an object; choose one by --field: body$"),
        (b'{"text": true}', "it is true or false"),
        (b'{"n": 3}', "no text in the field 'text'; it has: n; mend"),
        (b'{"data": [{"text": "a"}]}', r"perhaps the documents are in: jq -c '.*data.*\[\]' FILE"),
        (rb'{"b\nd\ud800": "c"}', r"--field: 'b\\nd\\ud800'$"),
        (json.dumps({f"k{n}": "v" for n in range(99)}).encode(), "k11, and 87 more$"),
        (b'{"text": "a"', "not JSON"),
        (b'{"text": "caf\xe9"}', "not UTF-8.*iconv -f latin1"),
        (b"3", "it is a number and has no fields"),
    ],
)
def test_json_without_a_text_is_named_by_its_line(file: Write, content: bytes, reason: str) -> None:
    in_lines = refusal(file("a.jsonl", LINES + content + b"\n"))
    assert "a.jsonl line 5" in in_lines and re.search(reason, in_lines)
    if content != b'{"text": "a"':
        in_array = refusal(file("a.json", b'[{"text": "a"},\n' + content + b"]"))
        assert "line 2" in in_array and re.search(reason, in_array)
    assert "--field text" not in in_lines  # the option that was just given


def test_damaged_arrays_are_named_by_their_lines(file: Write) -> None:
    for content, reason in (
        (b'[{"text": "a"}\n {"text": "b"}]', "line 2: not JSON: Expecting ',' or ']'"),
        (b'[{"text": "a"},\n {"text": "b}]', "line 2: not JSON: Unterminated string"),
        (b'[{"text": "a"},\n', "line 2: not JSON: Expecting value"),
        (b'[{"text": "a"},\n]', "line 2: not JSON: Expecting value"),
        (b'["a"]', r"document 1 .line 1.: .*it is a string.*jq -c '\.\[\] \| \{text: \.\}' FILE"),
    ):
        assert re.search(reason, refusal(file("a.json", content)))


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_an_array_is_the_same_in_pieces_of_any_size(size: int) -> None:
    rng = random.Random(size)
    rows = [
        {"text": 'é\\"☃' * rng.randint(0, 9), "n": rng.random(), "m": [None, {"a": []}]}
        for _ in range(200)
    ]
    content = json.dumps(rows, indent=rng.choice([None, 1]), ensure_ascii=False).encode()

    class Few(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            return super().read(size)

    found = [value for _, value in json_values.Values(Few(content), "a")]  # type: ignore[arg-type]
    assert found == rows


def test_an_array_larger_than_memory_allows_is_read_and_a_value_refused(
    file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_values, "MOST", 1 << 14)
    monkeypatch.setattr(json_values, "READ_BYTES", 1 << 10)
    rows = [{"text": f"{n} " + "word " * 50} for n in range(500)]
    assert len(read(file("a.json", json.dumps(rows).encode()))[0]) == 500
    path = file("b.json", json.dumps({"data": rows}, indent=1).encode())
    assert "line 1: a single JSON value of more than 0 MiB" in refusal(path)


# --- plain text -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 5, 1 << 20])
def test_crlf_and_cr_are_line_ends_in_plain_text(
    file: Write, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CHUNK_BYTES", chunk)
    path = file("a.txt", b"a\r\nb\r\r\n\r\nc\rd\r")
    assert read(path) == (["a\nb\n\n\nc\nd"], 0)
    path = file("a.txt", b"a\r\nb\r\n\r\nc\n\nd\r\rlast")
    for separator in ("\n\n", "\r\n\r\n"):
        assert read(path, separator=separator) == (["a\nb", "c", "d", "last"], 0)


RUNS = [" ", "\n", "\t ", "\u3000", "a", "1", "!", "=", "'", "e\u0301", "東"]


@pytest.mark.parametrize("run", RUNS)
def test_a_million_of_one_kind_are_encoded_and_come_back(run: str, encoding) -> None:  # type: ignore
    words = "begin" + run * (1_100_000 // len(run)) + "end"
    tokens = bpe.encode(encoding, words)
    assert encoding.decode(tokens.tolist()) == words


def test_only_runs_longer_than_any_text_has_are_cut(
    encoding,
    monkeypatch: pytest.MonkeyPatch,  # type: ignore
) -> None:
    monkeypatch.setattr(bpe, "RUN", 50)
    rng = random.Random(0)
    for _ in range(200):
        words = "".join(
            rng.choice([" ", "\n", "a", "é", "1"]) * rng.randint(1, 49) for _ in range(20)
        )
        whole = encoding.encode_ordinary(words)
        longest = max((len(part) for part in words.replace("\n", " ").split("a")), default=0)
        if longest < 50:
            assert bpe.encode(encoding, words).tolist() == whole
        assert encoding.decode(bpe.encode(encoding, words).tolist()) == words
    cuts = [0, *bpe._cuts("x" * 30 + " " * 500 + "x" * 99)]
    assert max(np.diff([*cuts, 530])) < 2 * bpe.RUN and cuts[-1] < 530


def test_separators_inside_a_text_are_text(encoding) -> None:  # type: ignore
    tokens = bpe.encode(encoding, "a<|endoftext|>b")
    assert encoding.eot_token not in tokens


# --- tables ---------------------------------------------------------------------------------------


def table(columns: dict[str, object]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    buffer = io.BytesIO()
    parquet.write_table(
        pyarrow.table(columns), buffer, row_group_size=100, write_page_checksum=True
    )
    return buffer.getvalue()


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "binary", "large_binary", "category", "null"]
)
def test_every_type_of_text_is_a_column(file: Write, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    values = [row["text"] for row in ROWS]
    if kind == "category":
        column = pyarrow.array(values).dictionary_encode()
    elif kind == "null":
        column = pyarrow.nulls(4)
    else:
        column = pyarrow.array(values).cast(getattr(pyarrow, kind)())
    expected = ([], 4) if kind == "null" else (TEXTS, 1)
    made = pyarrow.table({"text": column})
    assert read(file("a.parquet", table({"text": column}))) == expected
    assert read(file("a", gzip.compress(table({"text": column})))) == expected
    for new in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        buffer = io.BytesIO()
        with new(buffer, made.schema) as writer:
            writer.write_table(made)
        assert read(file("a.arrow", buffer.getvalue())) == expected


def test_columns_that_are_no_text_are_refused_with_those_that_are(file: Write) -> None:
    path = file("a.parquet", table({"n": [1], "tags": [["a"]], "body": ["b"], "b": ["c"]}))
    for field in ("n", "tags", "text"):
        assert refusal(path, field=field).endswith("choose one by --field: body, b")
    only = file("b.parquet", table({"n": [1]}))
    assert "it has no text: leave it out" in refusal(only, field="n")


def test_a_damaged_value_is_named_by_its_row(file: Write) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    bytes_of = pyarrow.array([b"good", b"\xff bad", b"good"])
    false = pyarrow.Array.from_buffers(pyarrow.string(), 3, bytes_of.buffers())
    column = pyarrow.chunked_array([pyarrow.array(["fine"] * 250), false])
    message = refusal(file("a.parquet", table({"text": column})))
    assert "row 252 (row group 3): its value is not the text that its column says" in message
    message = refusal(file("b.parquet", table({"text": [b"good", b"\xff bad"]})))
    assert "row 2 is not UTF-8" in message and "iconv" not in message
    content = bytearray(table({"text": [f"word {n}" for n in range(1000)]}))
    content[len(content) // 2] ^= 0xFF
    assert "not Parquet, or damaged behind row" in refusal(file("c.parquet", bytes(content)))
    assert "not Parquet, or damaged" in refusal(file("d.parquet", bytes(content[:-9])))


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_reads_standard_input_and_says_what_it_read(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"line {n}"}) + "\n" for n in range(30)) + '{"text": null}\n'
    (tmp_path / "b.jsonl").write_text("")
    options = [f"--vocab={corpus.ROOT / corpus.TOKENIZER}", "--workers=1", "--val-fraction=0.2"]
    files = [tmp_path / "out", "-", tmp_path / "b.jsonl"]
    done = subprocess.run(
        [sys.executable, "-m", "data.text", *map(str, files), *options],
        input=gzip.compress(rows.encode()), capture_output=True, cwd=PROJECT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"read as JSON lines in gzip: standard input" in done.stderr
    assert b"read as empty: " in done.stderr
    assert b"skipped, because they are null: 1 documents" in done.stderr


def test_promised_suffixes_are_told_without_the_compression() -> None:
    assert filetype.suffix("A.JSONL.GZ") == ".jsonl" and filetype.suffix("b.txt") == ".txt"
    assert filetype.suffix("archive.zst") == ""
