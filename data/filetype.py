"""Tells what a file is, by its first bytes. Its name counts only where the bytes leave it open.

    compression(head)               # "gzip", "zstd", "bzip2", "xz" or None
    form(name, head, whole=False)   # Form.LINES, Form.TEXT, ...; raises UserError with the remedy

Many kinds of files are not text, or not yet: archives, pictures, UTF-16, an error page that was
saved in place of a file. Each is refused by its name and with the command that helps. What begins
like JSON is JSON, whatever its name is. A name that promises JSON or Parquet is believed too, so
that a damaged file is refused and not taken for plain text.
"""

import json
import re
import shlex
from collections.abc import Sequence
from enum import Enum
from pathlib import PurePath

from errors import UserError

HEAD_BYTES = 1 << 16
STDIN_NAME = "standard input"
BOM = b"\xef\xbb\xbf"


class Form(Enum):
    """How a file holds its documents; the value is what users call it."""

    TEXT = "plain text"
    LINES = "JSON lines"
    VALUES = "JSON"
    PARQUET = "Parquet"
    ARROW = "Arrow"
    ARROW_STREAM = "Arrow stream"
    EMPTY = "empty"

    @property
    def unit(self) -> str:
        """What its documents are counted in, from 1."""
        columns = (Form.PARQUET, Form.ARROW, Form.ARROW_STREAM)
        return "row" if self in columns else "line" if self is Form.LINES else "document"


FORMATS = {"text": Form.TEXT, "jsonl": Form.LINES, "json": Form.VALUES, "parquet": Form.PARQUET}
_PROMISED = {
    ".jsonl": Form.LINES, ".ndjson": Form.LINES, ".json": Form.LINES, ".parquet": Form.PARQUET,
    ".arrow": Form.ARROW, ".feather": Form.ARROW,
}  # fmt: skip
_SQUEEZED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
_COMPRESSED = {
    "gzip": rb"\x1f\x8b\x08",
    "bzip2": rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)",
    "xz": rb"\xfd7zXZ\0",
    "zstd": rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18",  # or a frame without data, first
}

_UNPACK = "unpack it and give the files in it"
_CONVERT = "convert it to text first"
_TABLES = {".csv": "excel", ".tsv": "excel-tab"}
_ROWS = (
    "python -c 'import csv, json, sys; csv.field_size_limit(1 << 30); "
    '[print(json.dumps(row)) for row in csv.DictReader(sys.stdin, dialect="{dialect}")]\''
)
# Each: where, which bytes, what it is, what to do: a command for its content if it begins with "|".
_WRITTEN = [
    (0, b"%PDF-", "PDF", "| pdftotext - -"),
    (0, b"{\\rtf", "RTF", _CONVERT),
    (0, b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself",
     "run in its folder: git lfs pull"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself",
     "run: git annex get {file}"),
]  # fmt: skip
# Some of these begin a text too ("ORCHESTRA"), so they count only among bytes that no text has.
_BINARY = [
    (0, b"PK\x03\x04", "a ZIP archive or an Office document", _UNPACK),
    (0, b"PK\x05\x06", "an empty ZIP archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (257, b"ustar", "a tar archive", "| tar -xOf -"),
    (0, b"\x04\x22\x4d\x18", "compressed by lz4",
     "| lz4 -dc"),
    (0, b"\x1f\x9d", "compressed by compress", "| gzip -dc"),
    (0, b"LZIP", "compressed by lzip", "| lzip -dc"),
    (0, b"\xff\x06\0\0sNaPpY", "compressed by snappy", "decompress it first"),
    (0, b"\x5d\0\0", "compressed by lzma", "| xz -dc"),
    (0, b"PARE", "encrypted Parquet", "decrypt it first"),
    (0, b"FEA1", "Feather of version 1", "write it anew as Parquet"),
    (0, b"ORC", "ORC", "write it anew as Parquet"),
    (0, b"Obj\x01", "Avro", "write it anew as Parquet or JSON lines"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", _CONVERT),
    (0, b"SQLite format 3\0", "an SQLite database", "export its text as JSON lines"),
    (0, b"\x89HDF\r\n", "HDF5", "export its text as JSON lines or Parquet"),
    (0, b"\x93NUMPY", "an array of numpy", "text is needed, not numbers"),
    (0, b"\x7fELF", "a program", "leave it out"),
    (0, b"\x89PNG\r\n", "a picture (PNG)", "leave it out"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", "leave it out"),
    (0, b"GIF8", "a picture (GIF)", "leave it out"),
    (0, b"RIFF", "a picture or a recording (RIFF)", "leave it out"),
    (0, b"II*\0", "a picture (TIFF)", "leave it out"),
    (0, b"MM\0*", "a picture (TIFF)", "leave it out"),
    (0, b"OggS", "a recording (Ogg)", "leave it out"),
    (0, b"ID3\x03", "a recording (MP3)", "leave it out"),
    (0, b"ID3\x04", "a recording (MP3)", "leave it out"),
    (4, b"ftyp", "a film or a picture (MP4)", "leave it out"),
    (0, (20240520).to_bytes(4, "little"), "a shard of GPT-2 tokens",
     "race its folder: python speedrun.py --dataset shards:FOLDER"),
    (0, (20240801).to_bytes(4, "little"), "a shard of Llama-3 tokens",
     "give the text that it was made from"),
]  # fmt: skip
_CONTROLS = frozenset([*range(1, 9), *range(14, 27), *range(28, 32)])  # bytes that no text has
_PAGE = re.compile(rb"\s*(<!doctype\s+html|<html|<\?xml[^>]*>\s*<Error>)", re.IGNORECASE)


def compression(head: bytes) -> str | None:
    """What a file that begins with these bytes is compressed by, if it can be read here."""
    return next((name for name, magic in _COMPRESSED.items() if re.match(magic, head)), None)


def named(head: bytes) -> str | None:
    """What a file is that holds no text; None if its first bytes are not known."""
    squeezed = compression(head)
    if squeezed is not None:
        return f"compressed by {squeezed}"
    found = (what for at, magic, what, _ in _WRITTEN + _BINARY if head[at:].startswith(magic))
    return next(found, "Parquet" if head.startswith(b"PAR1") else None)


def form(name: str, head: bytes, whole: bool, layers: Sequence[str] = ()) -> Form:
    """What a file is. head: its first HEAD_BYTES without compression; whole: it has no more.

    layers: its compressions, from the outside. Raises UserError if it is no text and no table.
    """
    if not head:
        return Form.EMPTY
    if head.startswith(b"PAR1"):
        return Form.PARQUET
    if head.startswith(b"ARROW1"):
        return Form.ARROW
    if head.startswith(b"\xff\xff\xff\xff") and head[8:9] != b"\xff":
        return Form.ARROW_STREAM
    _refuse_others(name, head, layers)
    text = head.removeprefix(BOM)
    promised = _PROMISED.get(suffix(name))
    found = _json(text, whole, promised is Form.LINES)
    if found is not None:
        return found
    if promised is not None:
        raise UserError(
            f"{name} is not {promised.value}: it begins with {_shown(text)}; mend it or leave it "
            "out, or, if it is plain text, run with --format text"
        )
    dialect = _TABLES.get(suffix(name))
    if dialect is not None:
        raise UserError(
            f"{name} is a table, by its name; if it is plain text, run with --format text, else "
            "make JSON lines of it: " + through(_ROWS.format(dialect=dialect), name, layers)
        )
    return Form.TEXT


def suffix(name: str) -> str:
    """What a name promises: its suffix in small letters, without the suffix of a compression."""
    path = PurePath(name.lower())
    return PurePath(path.stem).suffix if path.suffix in _SQUEEZED else path.suffix


def _shown(head: bytes) -> str:
    """The first characters, in quotes."""
    return repr(head.lstrip()[:20].decode("utf-8", "replace"))


def _refuse_others(name: str, head: bytes, layers: Sequence[str]) -> None:
    """Raise UserError if the file is of a kind that holds no text, or in another encoding."""
    broken = bool(bad_bytes(head))
    for at, magic, what, remedy in _WRITTEN + (_BINARY if broken or b"\0" in head else []):
        if head[at:].startswith(magic):
            if remedy.startswith("| "):
                remedy = "run: " + through(remedy[2:], name, layers)
            raise UserError(f"{name} is {what}; {remedy.format(file=shlex.quote(name))}")
    encoding = wide(head)
    if encoding is not None:
        raise UserError(
            f"{name} is {encoding[:6].upper()}, and UTF-8 is needed; convert it, for instance: "
            + through(f"iconv -f {encoding} -t utf-8", name, layers)
        )
    if _PAGE.match(head) and suffix(name) not in (".html", ".htm", ".xhtml"):
        raise UserError(
            f"{name} is a web page, perhaps an error message in place of a download; fetch it "
            "again, or, if the page is your text, run with --format text"
        )
    if b"\0" in head:
        if broken:
            raise UserError(f"{name} is no text: it holds bytes that no text has; leave it out")
        raise nul(name, f"at byte {head.index(0)}", layers)


def nul(name: str, where: str, layers: Sequence[str]) -> UserError:
    """The message for a NUL byte in what is text otherwise."""
    return UserError(
        f"{name}: a NUL byte {where}, which no text has: leave the file out, or drop them, with: "
        + through("tr -d '\\000'", name, layers)
    )


def through(command: str, name: str, layers: Sequence[str]) -> str:
    """The line for a shell that puts a file's content through a command, without compression."""
    commands = [*(f"{kind} -dc" for kind in layers), command]
    if name == STDIN_NAME:
        return " | ".join(["...", *commands, "python -m data.text OUT -"])
    commands[0] += f" < {shlex.quote(name)}"
    return " | ".join(commands) + " > NEW"


def wide(head: bytes) -> str | None:
    """The name that iconv has for an encoding of 2 or 4 bytes a character; None: it is neither."""
    for mark, encoding in (
        (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"),
    ):  # fmt: skip
        if head.startswith(mark):
            return encoding
    # Without a mark: ASCII characters, line ends and spaces at least, have NULs at their sides.
    head = head[: len(head) // 4 * 4]
    nuls = head.count(0)
    if not nuls:
        return None
    shares = [head[at::4].count(0) / (len(head) // 4) for at in range(4)]
    for encoding, empty in (("utf-32le", (2, 3)), ("utf-32be", (0, 1))):
        if all(shares[at] > 0.9 for at in empty) and _reads(head, encoding):
            return encoding
    # Text in other scripts has few of them, and Chinese some on the wrong side.
    here = {"utf-16le": shares[1] + shares[3], "utf-16be": shares[0] + shares[2]}
    # In Cyrillic each character has a control character (04) in place of a byte that is not UTF-8.
    strange = bool(bad_bytes(head)) or _controls(head) > 0.2
    likely = [each for each, share in here.items() if share > 0.5 or strange]
    likely = [each for each in likely if _reads(head, each)]
    return max(likely, key=lambda each: _spaces(head, each), default=None)


def _reads(head: bytes, encoding: str) -> bool:
    """Whether it is nearly all characters that one can see, and white space."""
    text = head.decode(encoding, "replace")
    return sum(c.isprintable() or c.isspace() for c in text) > 0.95 * len(text)


def _spaces(head: bytes, encoding: str) -> int:
    text = head.decode(encoding, "replace")
    return text.count("\n") + text.count(" ")


def bad_bytes(content: bytes) -> list[int]:
    """Where content is not UTF-8, at most 100 places; a character cut off by its end is none."""
    found: list[int] = []
    at = 0
    while len(found) < 100:
        try:
            content[at:].decode()
            break
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                break
            found.append(at + error.start)
            at += error.end
    return found


def _controls(content: bytes) -> float:
    """The share of control characters that no text has, NULs left out."""
    return sum(byte in _CONTROLS for byte in content) / max(1, len(content))


def encoding_remedy(name: str, layers: Sequence[str], content: bytes, at: int) -> str:
    """What helps a document that is not UTF-8 at byte `at`, as far as its bytes tell."""
    content = content[: at + HEAD_BYTES]
    bad = bad_bytes(content)
    if not bad and not content[:at].isascii():
        return "it is cut off in the middle of a character: fetch the file again"
    high = [byte for byte in content if byte >= 0x80]
    encoding = wide(content)
    if encoding is not None:
        pass
    elif _controls(content) > 0.02:
        return "it is no text: leave it out"
    elif bad and len(high) > 3 * len(bad) and len(bad) < 100:  # the others are whole in UTF-8
        return "drop the few bytes that are not, with: " + through(
            "iconv -c -f utf-8 -t utf-8", name, layers
        )
    elif len(high) > 0.3 * len(content):
        encoding = "ENCODING"  # none that can be told
    else:
        encoding = "windows-1252" if any(byte < 0xA0 for byte in high) else "latin1"
    return "convert it, for instance: " + through(f"iconv -f {encoding} -t utf-8", name, layers)


# ---------------------------------------------------------------------------------------------
# JSON.

_OBJECT = re.compile(rb'(?:\s*null\s)*\s*\{\s*["}]')
# Its first elements are null, and then an object or a string that is followed by a comma, unlike
# the name of a link in Markdown.
_ARRAY = re.compile(
    rb'\s*\[\s*(?:null\s*,\s*)*(?:\{\s*["}]|\]\s*\Z|"(?:[^"\\]|\\.)*"\s*(?:,|\]\s*\Z))', re.DOTALL
)


def _json(head: bytes, whole: bool, promised: bool) -> Form | None:
    """LINES, VALUES, or None for what is not JSON. promised: the name says that it is."""
    if _ARRAY.match(head) or (promised and head.lstrip().startswith(b"[")):
        return Form.VALUES
    if not promised and not _OBJECT.match(head):
        return None
    line, end, _ = head.lstrip().partition(b"\n")
    if not end and not whole:
        return Form.LINES  # a line longer than the head
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        # An object that goes on in the next line is laid out for people to read.
        return Form.VALUES if end and error.pos >= len(error.doc.rstrip()) else Form.LINES
    except (ValueError, RecursionError):
        pass
    return Form.LINES
