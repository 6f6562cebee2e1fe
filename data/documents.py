"""Reads documents from files of any kind, a few megabytes at a time.

    for piece in documents.pieces(Path("a.jsonl"), Reading()):
        for number in range(len(piece.documents)):
            piece.text(number, Reading())      # str, or None for null

`data.filetype` tells what a file is, `data.streams` opens it, `data.columns` reads tables, and
`data.json_values` reads JSON that is not in lines. Here their documents become pieces: consecutive
documents of one file. The process that asks for a text decodes it, both its UTF-8 and the JSON of
its line, so many processes can share that work.

- Plain text ends at the separator and is stripped, because white space around a separator is
  layout. Its line ends become "\\n": CRLF, and CR alone. A byte-order mark is left out.
- A text inside JSON or a table is kept as it is, also its line ends, but for such a mark in front.
- A document that is null is skipped; the caller counts them.
"""

import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data import bpe, columns, filetype, json_values, streams
from data.filetype import FORMATS, Form
from errors import UserError

CHUNK_BYTES = 1 << 20  # bytes of a file that are read at once
PIECE_BYTES = 4 << 20  # bytes of documents in a piece
DOCUMENT_BYTES = 16 << 20  # the largest document
# Bytes of text per byte of a file, roughly.
EXPANSION = {Form.PARQUET: 8, Form.ARROW: 2, Form.ARROW_STREAM: 2}
COMPRESSED_EXPANSION = 4
NAMES_MOST = 12  # fields that a message lists


@dataclass(frozen=True)
class Reading:
    """The options that say where in a file its documents are."""

    field: str = "text"
    separator: str = bpe.SEPARATOR
    format: str = "auto"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UserError("--separator is empty; leave it out: then each file is a document")
        try:
            self.separator.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"--separator {self.separator!r}: is not UTF-8; type it in a UTF-8 terminal"
            ) from error
        if self.format not in ("auto", *FORMATS):
            raise UserError(f"--format {self.format}: choose auto, {', '.join(FORMATS)}")


@dataclass(frozen=True)
class Source:
    """A file, as a look at its first bytes has it."""

    path: Path
    label: str  # what it is read as; "" for a pipe, which is not looked at before it is read
    bytes: int | None  # of its text, roughly


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of one file, not yet decoded."""

    path: Path
    form: Form
    layers: tuple[str, ...]  # the file's compressions, from the outside
    first: int  # number of the first document, from 1
    documents: Sequence[bytes | str | None]

    @property
    def bytes(self) -> int:
        """How many bytes, or characters, the documents have."""
        return sum(len(document or b"") for document in self.documents)

    def text(self, number: int, reading: Reading) -> str | None:
        """The text of a document, counted from 0; "" for an empty line, None for null.

        A byte-order mark in front of it is left out. Raises UserError, which names the file and the
        line, row or document, if it is not text.
        """
        text = self._decoded(number, reading)
        return None if text is None else text.removeprefix("\ufeff")

    def _decoded(self, number: int, reading: Reading) -> str | None:
        document = self.documents[number]
        if document is None or isinstance(document, str):
            return document
        where = f"{streams.name_of(self.path)} {self.form.unit} {self.first + number}"
        try:
            if self.form is Form.LINES:
                # JSON can spell half of a surrogate pair; also as bytes, which are then let pass.
                text = document.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
                return _of_line(text, where, reading.field) if text.strip() else ""
            text = document.decode()
        except UnicodeDecodeError as error:
            remedy = "mend the row or leave it out"
            if self.form in (Form.TEXT, Form.LINES):
                name = streams.name_of(self.path)
                remedy = filetype.encoding_remedy(name, self.layers, document, error.start)
            raise UserError(
                f"{where.replace(' document', ': document')} is not UTF-8: {error.reason} at its "
                f"byte {error.start}; {remedy}"
            ) from error
        if self.form is not Form.TEXT:
            return text
        if "\0" in text:
            place = f"in {self.form.unit} {self.first + number}"
            raise filetype.nul(streams.name_of(self.path), place, self.layers)
        return text.lstrip().removeprefix("\ufeff").strip()


def look(path: Path, reading: Reading) -> Source:
    """What a file is. Raises UserError if it is not there or cannot be used."""
    if streams.is_pipe(path):
        return Source(path, "", None)
    with streams.opened(path) as stream:
        form = _form(path, stream, reading)
    expansion = EXPANSION.get(form, 1) * COMPRESSED_EXPANSION ** len(stream.layers)
    return Source(path, label(form, stream.layers), path.stat().st_size * expansion)


def described(sources: Iterable[Source]) -> list[str]:
    """A line for each kind of file: what is read as what."""
    found: dict[str, list[str]] = {}
    for source in sources:
        if source.label:
            found.setdefault(source.label, []).append(str(source.path))
    return [f"read as {label}: {_list(names, 3)}" for label, names in found.items()]


def pieces(path: Path, reading: Reading, scratch: Path | None = None) -> Iterator[Piece]:
    """Yield the documents of a file, about PIECE_BYTES at a time.

    scratch: a folder for what cannot be read in one go. Raises UserError if the file cannot be read
    or a document is too large.
    """
    name = streams.name_of(path)
    with streams.opened(path) as stream:
        form = _form(path, stream, reading)
        batch: list[Any] = []
        size, first = 0, 1
        for number, document in enumerate(_documents(path, stream, form, reading, scratch), 1):
            length = len(document or b"")
            if length > DOCUMENT_BYTES:
                raise UserError(
                    f"{name}: {form.unit} {number} has more than {DOCUMENT_BYTES >> 20} MiB, the "
                    "limit for memory; divide it (plain text: choose a --separator inside it)"
                )
            batch.append(document)
            size += length
            if size >= PIECE_BYTES:
                yield Piece(path, form, stream.layers, first, batch)
                batch, size, first = [], 0, number + 1
        if batch:
            yield Piece(path, form, stream.layers, first, batch)


def _form(path: Path, stream: streams.Stream, reading: Reading) -> Form:
    if reading.format != "auto":
        return FORMATS[reading.format] if stream.head else Form.EMPTY
    return filetype.form(streams.name_of(path), stream.head, stream.whole, stream.layers)


def label(form: Form, layers: Sequence[str]) -> str:
    """What users call it, such as "JSON lines in gzip"."""
    return " in ".join([form.value, *reversed(layers)])


def _documents(
    path: Path, stream: streams.Stream, form: Form, reading: Reading, scratch: Path | None
) -> Iterator[bytes | str | None]:
    if form is Form.EMPTY:
        return
    if form in (Form.PARQUET, Form.ARROW, Form.ARROW_STREAM):
        yield from columns.rows(stream, form, path, reading.field, scratch)
    elif form is Form.VALUES:
        name = streams.name_of(path)
        values = json_values.Values(stream.file, name, stream.layers)
        for number, (line, value) in enumerate(values, 1):
            each = ".[] | " if values.in_array else ""
            yield text_of(value, f"{name} document {number} (line {line})", reading.field, each)
    elif form is Form.LINES:
        # Files of old Macs end lines by CR alone; in JSON it is white space elsewhere.
        ends = b"\r" if b"\r" in stream.head and b"\n" not in stream.head else b"\n"
        yield from _parts(_chunks(stream), ends)
    else:
        separator = reading.separator.replace("\r\n", "\n").replace("\r", "\n")
        yield from _parts(_with_line_feeds(_chunks(stream)), separator.encode())


def _chunks(stream: streams.Stream) -> Iterator[bytes]:
    while chunk := stream.file.read(CHUNK_BYTES):
        yield chunk


def _with_line_feeds(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes with "\\n" for each CRLF and CR."""
    held = b""  # a CR at the end, which a line feed may follow
    for chunk in chunks:
        if held or b"\r" in chunk:
            chunk = held + chunk
            held = b"\r" if chunk.endswith(b"\r") else b""
            chunk = chunk[: len(chunk) - len(held)]
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        yield chunk
    yield b"\n" if held else b""


def _parts(chunks: Iterator[bytes], separator: bytes) -> Iterator[bytes]:
    """Yield the bytes between separators; only the beginning of a part that is too large."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(separator)
        yield from whole
        if len(rest) > DOCUMENT_BYTES:
            break
    yield rest


# ---------------------------------------------------------------------------------------------
# One value of JSON.

_KINDS = {
    dict: "an object",
    list: "a list",
    bool: "true or false",
    float: "a number",
    str: "a string",
}


def _of_line(text: str, where: str, field: str) -> str | None:
    try:
        value = json_values.DECODER.decode(text)
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deeply to be read; mend or delete it") from error
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at its character {error.pos + 1}"
        raise UserError(f"{where}: not JSON: {reason}; mend or delete it") from error
    return text_of(value, where, field)


def text_of(value: Any, where: str, field: str, each: str = "") -> str | None:
    """The text in a field of a JSON value, or None if it or the value is null.

    each: what jq needs to come from the file to such a value. Raises UserError if there is no text.
    Half of a surrogate pair, which is not a character, becomes U+FFFD.
    """
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: no text in the field {field!r}: it is {_KINDS[type(value)]} and has no "
            f"fields; make objects: {_jq(each + '{text: .}')}"
        )
    found = value.get(field)
    if isinstance(found, str):
        if found.isascii():
            return found
        return found.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if found is None and field in value:
        return None
    others = [key for key, held in value.items() if isinstance(held, str)]
    lists = [key for key, held in value.items() if isinstance(held, list) and key != field]
    reason = "" if found is None else f": it is {_KINDS[type(found)]}"
    if others:
        advice = f"choose one by --field: {_list(others)}"
    elif found is not None:
        program = f"{each}{{text: (.[{json.dumps(field)}] | tostring)}}"
        advice = f"make text of it, for instance: {_jq(program)}"
    elif lists:
        advice = f"perhaps the documents are in: {_jq(f'{each}.[{json.dumps(lists[0])}][]')}"
    else:
        advice = f"it has: {_list(list(value)) or 'none'}; mend or delete it"
    raise UserError(f"{where}: no text in the field {field!r}{reason}; {advice}")


def _jq(program: str) -> str:
    return f"jq -c {shlex.quote(program)} FILE | python -m data.text OUT -"


def _list(names: Sequence[str], most: int = NAMES_MOST) -> str:
    """Names in one line; those that cannot be printed as they are in quotes."""
    shown = [name if name.isprintable() else repr(name) for name in names[:most]]
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*shown, *more])
