"""Prepares your own text: tokenizes, shuffles and splits it into shards.

    python -m data.text OUT FILES...         # then: python speedrun.py --dataset text:OUT
    python -m data.text OUT *.jsonl --field content --vocab data/tiny/bpe1024.tiktoken

Three kinds of files are read: JSON-lines (.jsonl, .ndjson, .json; one document per line, in the
field --field), Parquet (.parquet; one document per row; needs pyarrow), and plain UTF-8 text (any
other name; a document ends at `<|endoftext|>` or another --separator, and at the end of the file).

Documents are sorted by a hash of the seed and their text, which shuffles them. The first of them
are the validation set. So the result is the same for any number of workers and for any order or
division of the files, and equal documents are never in both sets.

Several processes encode the text, and it is sorted on disk, so memory is bounded for any size of
input. The disk needs about four bytes per token while this runs, and two afterwards. The folder OUT
is there only when it is complete: shards, vocabulary, and manifest.json with the data's hash.
"""

import argparse
import functools
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data import Dataset, bpe, gpt2, manifest, shards
from data.external_sort import Documents, ExternalSort
from data.manifest import File, Manifest
from data.progress import bytes_bar
from errors import UserError
from tracking.files import write_atomic

if TYPE_CHECKING:
    import tiktoken

SEPARATOR = bpe.SEPARATOR
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SHARD_TOKENS = 100_000_000
VAL_FRACTION = 0.01
CHUNK_BYTES = 1 << 20  # bytes of a file that are read at once
PIECE_BYTES = 4 << 20  # bytes of documents that one worker encodes at once
BUCKET_BYTES = 64 << 20  # bytes of input that are sorted at once
DOCUMENT_BYTES = 16 << 20  # the largest document
PARQUET_EXPANSION = 8  # bytes of text per byte of a Parquet file, roughly: decides buckets only


@dataclass(frozen=True)
class Settings:
    """The options that change the tokens."""

    field: str = "text"
    separator: str = SEPARATOR
    seed: int = 0
    val_fraction: float = VAL_FRACTION  # of the tokens, rounded up to whole documents
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"--val-fraction {self.val_fraction}: must be more than 0 and less than 1; "
                f"run with --val-fraction {VAL_FRACTION}"
            )
        if not self.separator:
            raise UserError("--separator is empty; leave it out: then each file is a document")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed {self.seed}: must be from 0 to {(1 << 64) - 1}; leave it out")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens {self.shard_tokens}: must be at least 1; leave it out")


@dataclass(frozen=True)
class Piece:
    """Consecutive documents of one file, not yet decoded."""

    path: Path
    first: int  # number of the first document, from 1: the line of JSON-lines, the row of Parquet
    documents: list[bytes] | list[str | None]


# ---------------------------------------------------------------------------------------------
# Reading.


def pieces(path: Path, settings: Settings) -> Iterator[Piece]:
    """Yield the documents of a file, about PIECE_BYTES at a time.

    Raises UserError if the file cannot be read or a document is too large.
    """
    batch: list[Any] = []
    size, first = 0, 1
    for number, document in enumerate(_documents(path, settings), start=1):
        length = len(document or b"")
        if length > DOCUMENT_BYTES:
            raise UserError(
                f"{path}: document {number} has more than {DOCUMENT_BYTES >> 20} MiB, the limit "
                "for memory; divide it (plain text: choose a --separator inside it)"
            )
        batch.append(document)
        size += length
        if size >= PIECE_BYTES:
            yield Piece(path, first, batch)
            batch, size, first = [], 0, number + 1
    if batch:
        yield Piece(path, first, batch)


def _documents(path: Path, settings: Settings) -> Iterator[bytes | str | None]:
    if path.suffix == ".parquet":
        yield from _rows(path, settings.field)
    else:
        lines = path.suffix in JSON_SUFFIXES
        yield from _parts(path, b"\n" if lines else settings.separator.encode())


def _parts(path: Path, separator: bytes) -> Iterator[bytes]:
    """Yield the bytes between separators; only the beginning of a part that is too large."""
    rest = b""
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            *whole, rest = (rest + chunk).split(separator)
            yield from whole
            if len(rest) > DOCUMENT_BYTES:
                break
    yield rest


def _rows(path: Path, field: str) -> Iterator[str | None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow; run: pip install pyarrow"
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            raise UserError(
                f"{path} has no column {field!r}; choose one by --field: {', '.join(names)}"
            )
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{path}: column {field!r} is {kind}, not text; choose another --field")
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(
            f"{path} is not Parquet: {str(error).splitlines()[0]}; mend it or leave it out"
        ) from error


# ---------------------------------------------------------------------------------------------
# Encoding, in the workers.


@functools.cache
def _encoding(vocabulary: Path) -> "tiktoken.Encoding":
    return bpe.load(vocabulary)


def encode(piece: Piece, vocabulary: Path, settings: Settings) -> Documents:
    """The documents of a piece as tokens, each after a separator token, and their keys.

    A key is a hash of the seed and the text, so sorting by key shuffles. Documents that are only
    white space are left out. Raises UserError if a document is not text.
    """
    encoding = _encoding(vocabulary)
    before = np.array([encoding.eot_token], np.uint16)
    salt = settings.seed.to_bytes(8, "little")
    keys: list[bytes] = []
    documents = []
    for number, document in enumerate(piece.documents, start=piece.first):
        text = _text(piece.path, number, document, settings)
        if not text.strip():
            continue
        keys.append(blake2b(text.encode(), digest_size=16, key=salt).digest())
        tokens = encoding.encode_to_numpy(text, disallowed_special=())
        documents.append(np.concatenate([before, tokens.astype(np.uint16)]))
    return Documents.of(keys, documents)


def _text(path: Path, number: int, document: bytes | str | None, settings: Settings) -> str:
    """A document's text. Plain text is stripped: white space around a separator is layout."""
    if document is None or isinstance(document, str):
        return document or ""
    try:
        if path.suffix not in JSON_SUFFIXES:
            return document.decode().strip()
        if not document.strip():
            return ""
        row = json.loads(document)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: document {number} is not UTF-8: {error.reason} at its byte {error.start}; "
            f"convert the file, for instance: iconv -f latin1 -t utf-8 {path}"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} line {number}: not JSON: {error}; mend or delete it") from error
    if not isinstance(row, dict) or not isinstance(row.get(settings.field), str):
        names = ", ".join(row) if isinstance(row, dict) else "none"
        raise UserError(
            f"{path} line {number}: no text in the field {settings.field!r}; choose one by "
            f"--field: {names}"
        )
    # JSON can spell a lone surrogate, which is not a character: it is replaced by U+FFFD.
    return row[settings.field].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------------------------------
# Building the folder.


def build(
    out: Path, files: Sequence[Path], ranked: list[bytes], settings: Settings, workers: int
) -> Manifest:
    """Make the data set `out` from the files; `ranked` are the vocabulary's tokens by rank.

    It is made in a folder beside `out`, which is then renamed. Raises UserError if `out` exists, an
    input cannot be used, the disk is full, or there are too few documents.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1; leave it out")
    if out.exists():
        raise UserError(f"{out} exists already; choose another folder, or delete it")
    if len(ranked) >= 1 << 16:
        raise UserError(
            f"--vocab: {len(ranked) + 1} tokens, but a shard's uint16 holds {1 << 16}; choose "
            "a smaller vocabulary"
        )
    size = _input_bytes(files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(
            f"cannot write to {out.parent}: {error.strerror}; choose another OUT"
        ) from error
    try:
        vocabulary = beside / f"vocabulary{len(ranked) + 1}.tiktoken"
        write_atomic(vocabulary, [bpe.dump(ranked)])
        sort = ExternalSort(beside / "buckets", buckets=min(1 << 16, -(-size // BUCKET_BYTES)))
        with closing(_encoded(files, vocabulary, settings, workers, size)) as encoded:
            for documents in encoded:
                sort.add(documents)
        made = _write_shards(beside, sort, vocabulary, settings)
        manifest.write(beside, made)
        beside.chmod(0o755)
        os.rename(beside, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be made: {error.strerror or error}; make room, or choose another OUT"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return made


def _input_bytes(files: Sequence[Path]) -> int:
    """Roughly how many bytes of text the files hold. Raises UserError if one is not a file."""
    size = 1
    for path in files:
        if not path.is_file():
            what = "is a folder: name its files" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; run: python -m data.text OUT FILES...")
        size += path.stat().st_size * (PARQUET_EXPANSION if path.suffix == ".parquet" else 1)
    return size


def _encoded(
    files: Sequence[Path], vocabulary: Path, settings: Settings, workers: int, size: int
) -> Generator[Documents, None, None]:
    """Yield the documents of all files, encoded by `workers` processes, as they are finished.

    At most two pieces per worker are in memory.
    """
    bar = bytes_bar()
    # Only this process handles Ctrl-C; the workers ignore it.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(workers, get_context("spawn"), signal.signal, ignore)
    pending: dict[Future[Documents], int] = {}

    def finished() -> Iterator[Documents]:
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            bar.advance(task, pending.pop(future))
            yield future.result()

    try:
        with bar:
            task = bar.add_task("encoding", total=size)
            for path in files:
                for piece in pieces(path, settings):
                    length = sum(len(document or b"") for document in piece.documents)
                    pending[pool.submit(encode, piece, vocabulary, settings)] = length
                    if len(pending) >= 2 * workers:
                        yield from finished()
            while pending:
                yield from finished()
            bar.update(task, completed=size)  # separators were not counted
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps out of memory; run with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shards(root: Path, sort: ExternalSort, vocabulary: Path, settings: Settings) -> Manifest:
    """Write the documents in the order of their keys: first validation, then training."""
    sizes = manifest.token_bytes(vocabulary)
    target = settings.val_fraction * sort.tokens
    val = shards.ShardWriter(root, "text_val", settings.shard_tokens)
    train = shards.ShardWriter(root, "text_train", settings.shard_tokens)
    last = None
    with val, train:
        for key, tokens in sort.in_order():
            # Equal documents have equal keys; they must be in the same set.
            into = val if val.tokens < target or (key == last and not train.tokens) else train
            into.append(tokens)
            last = key
    if val.tokens < 2 or train.tokens < 2:
        raise UserError(
            f"the files hold {sort.documents} documents, too few for training and validation; "
            "give more, or divide plain text by --separator, for example --separator $'\\n\\n'"
        )
    files = [(vocabulary, len(sizes)), *train.written, *val.written]
    return Manifest(
        vocab_size=len(sizes),
        val_bytes_per_token=manifest.bytes_per_token(
            [path for path, _ in val.written], sizes, None
        ),
        files=tuple(File(path.name, count, manifest.sha256(path)) for path, count in files),
    )


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The data set that `build` made in `root`; see data.open_dataset."""
    if root is None:
        raise UserError("the data set `text` needs its folder; write: text:FOLDER")
    remedy = f"python -m data.text {root} FILES..."
    return manifest.open_folder(root, f"text:{root}", val_tokens, remedy)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m data.text", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILES", help="JSON-lines, Parquet or plain text"
    )
    parser.add_argument("--vocab", default="gpt2", help="gpt2 (default) or a .tiktoken file")
    add = parser.add_argument
    add("--field", default="text", help="field of JSON, column of Parquet (default: %(default)s)")
    add("--separator", default=SEPARATOR, help="ends a plain-text document (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the shuffle (default: %(default)s)")
    add("--val-fraction", type=float, default=VAL_FRACTION, metavar="FRACTION",
        help="fraction of the tokens for validation (default: %(default)s)")  # fmt: skip
    add("--shard-tokens", type=int, default=SHARD_TOKENS, metavar="TOKENS",
        help="tokens of a shard (default: %(default)s)")  # fmt: skip
    add("--workers", type=int, default=os.cpu_count() or 1, metavar="N",
        help="processes that encode (default: one per core, here %(default)s)")  # fmt: skip
    given = parser.parse_args(argv)
    try:
        settings = Settings(
            given.field, given.separator, given.seed, given.val_fraction, given.shard_tokens
        )
        ranked = gpt2.tokens() if given.vocab == "gpt2" else bpe.read(Path(given.vocab))
        made = build(given.out, given.files, ranked, settings, given.workers)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {given.out} was not made", file=sys.stderr)
        return 130
    train, val = (sum(file.tokens for file in part) for part in (made.train, made.val))
    print(
        f"{given.out}: {train} training tokens, {val} validation tokens, vocabulary "
        f"{made.vocab_size}, {made.val_bytes_per_token:.4f} bytes per token, hash {made.hash[:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
