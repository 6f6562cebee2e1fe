"""Your own text as shards.

    python -m data.text OUT FILES...         # then: python speedrun.py --dataset text:OUT
    python -m data.text OUT *.jsonl --field content --vocab data/tiny/bpe1024.tiktoken

A file is JSON-lines (.jsonl, .ndjson, .json; a document a line, in the field named), Parquet
(.parquet; a document a row; needs pyarrow) or else plain UTF-8 text, whose documents end at
`<|endoftext|>`, at another --separator, or with the file. Documents are shuffled by a hash of the
seed and their text, and validation takes the first of them: the result is the same for any number
of workers and any order or division of the files, and equal documents are never in both sets.

Text is encoded by several processes and sorted on disk, so memory is bounded however large the
input is; the disk needs about two bytes a token twice. OUT appears whole at the end, or not at
all: shards, the vocabulary, and manifest.json with the hash that goes into every run's row.
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
from data.external_sort import Buckets, Documents
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
CHUNK_BYTES = 1 << 20  # of a file, read at once
PIECE_BYTES = 4 << 20  # of documents, encoded by one worker at once
BUCKET_BYTES = 64 << 20  # of input, sorted at once
DOCUMENT_BYTES = 16 << 20  # the largest document
PARQUET_EXPANSION = 8  # bytes of text in one of a Parquet file, as a rule: only sizes buckets


@dataclass(frozen=True)
class Settings:
    """What decides the tokens, beside the text."""

    field: str = "text"
    separator: str = SEPARATOR
    seed: int = 0
    val_fraction: float = VAL_FRACTION  # of the tokens, rounded up to whole documents
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"--val-fraction {self.val_fraction}: must be above 0 and below 1; "
                f"run with --val-fraction {VAL_FRACTION}"
            )
        if not self.separator:
            raise UserError("--separator is empty; leave it out for a document a file")
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed {self.seed}: must be from 0 to {(1 << 64) - 1}")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens {self.shard_tokens}: must be at least 1")


@dataclass(frozen=True)
class Piece:
    """Some documents of one file, as they stand in it."""

    path: Path
    first: int  # number of the first document, from 1: the line of JSON-lines, the row of Parquet
    documents: list[bytes] | list[str | None]


# ---------------------------------------------------------------------------------------------
# Reading.


def pieces(path: Path, settings: Settings) -> Iterator[Piece]:
    """The documents of a file, PIECE_BYTES at a time.

    Raises UserError if the file cannot be read or a document is too large.
    """
    batch: list[Any] = []
    size, first = 0, 1
    for number, document in enumerate(_documents(path, settings), start=1):
        length = len(document or b"")
        if length > DOCUMENT_BYTES:
            raise UserError(
                f"{path}: document {number} has more than {DOCUMENT_BYTES >> 20} MiB, the most "
                "that is held in memory at once; divide it, for plain text with --separator"
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
    """What stands between the separators; of a part that is too large, its beginning."""
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
                f"{path} has no column {field!r}; choose by --field: {', '.join(names)}"
            )
        kind = file.schema_arrow.field(field).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise UserError(f"{path}: column {field!r} is {kind}, not text; choose another --field")
        for batch in file.iter_batches(batch_size=256, columns=[field]):
            yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not Parquet: {str(error).splitlines()[0]}") from error


# ---------------------------------------------------------------------------------------------
# Encoding, in the workers.


@functools.cache
def _encoding(vocabulary: Path) -> "tiktoken.Encoding":
    return bpe.load(vocabulary)


def encode(piece: Piece, vocabulary: Path, settings: Settings) -> Documents:
    """The documents of a piece as tokens, each behind a separator, and their keys.

    A key is a hash of the seed and the text: the order of the keys is a shuffle. Documents of
    white space alone are left out. Raises UserError if a document is not text.
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
    """A document's text. Plain text is stripped: what stands around a separator is layout."""
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
            f"{path} line {number}: no text in the field {settings.field!r}; choose by --field: "
            f"{names}"
        )
    # A lone surrogate, which JSON can spell, is no character: it is replaced.
    return row[settings.field].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


# ---------------------------------------------------------------------------------------------
# Putting together.


def build(
    out: Path, files: Sequence[Path], ranked: list[bytes], settings: Settings, workers: int
) -> Manifest:
    """Make the data set `out` of the files; `ranked` are the tokens as of data.bpe.

    Raises UserError if `out` is there, an input is not what it should be, the disk is full, or
    there are too few documents. `out` is made in a folder beside it and then renamed.
    """
    if workers < 1:
        raise UserError(f"--workers {workers}: must be at least 1")
    if out.exists():
        raise UserError(f"{out} is there already; choose another place, or delete it")
    if len(ranked) >= 1 << 16:
        raise UserError(f"--vocab: {len(ranked) + 1} tokens; a shard's uint16 holds {1 << 16}")
    size = _input_bytes(files)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from error
    try:
        vocabulary = beside / f"vocabulary{len(ranked) + 1}.tiktoken"
        write_atomic(vocabulary, [bpe.dump(ranked)])
        buckets = Buckets(beside / "buckets", count=-(-size // BUCKET_BYTES))
        with closing(_encoded(files, vocabulary, settings, workers, size)) as encoded:
            for documents in encoded:
                buckets.add(documents)
        made = _write_shards(beside, buckets, vocabulary, settings)
        manifest.write(beside, made)
        beside.chmod(0o755)
        os.rename(beside, out)
    except OSError as error:
        raise UserError(f"{out} cannot be made: {error.strerror or error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return made


def _input_bytes(files: Sequence[Path]) -> int:
    """About how many bytes of text the files hold. Raises UserError if one is no file."""
    size = 1
    for path in files:
        if not path.is_file():
            what = "is a folder: name its files" if path.is_dir() else "is not there"
            raise UserError(f"{path} {what}; run: python -m data.text OUT FILES...")
        size += path.stat().st_size * (PARQUET_EXPANSION if path.suffix == ".parquet" else 1)
    return size


def _encoded(
    files: Sequence[Path], vocabulary: Path, settings: Settings, workers: int, size: int
) -> Generator[Documents, None, None]:
    """The documents of all files, encoded by `workers` processes, in whatever order they are done.

    No more pieces are read than the workers need to stay busy.
    """
    bar = bytes_bar()
    # Ctrl-C is for this process to answer.
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
            bar.update(task, completed=size)  # what stands between documents was not counted
    except BrokenProcessPool as error:
        raise UserError(
            "a worker died, perhaps for want of memory; run with fewer --workers"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write_shards(root: Path, buckets: Buckets, vocabulary: Path, settings: Settings) -> Manifest:
    """The documents in the order of their keys: validation first, then training."""
    sizes = manifest.token_bytes(vocabulary)
    target = settings.val_fraction * buckets.tokens
    val = shards.ShardWriter(root, "text_val", settings.shard_tokens)
    train = shards.ShardWriter(root, "text_train", settings.shard_tokens)
    last = None
    with val, train:
        for key, tokens in buckets.in_order():
            # Equal documents have equal keys, and stay in one set.
            into = val if val.tokens < target or (key == last and not train.tokens) else train
            into.append(tokens)
            last = key
    if val.tokens < 2 or train.tokens < 2:
        raise UserError(
            f"the files hold {buckets.documents} documents, too few to take some for validation; "
            "give more, or divide plain text by --separator, for instance --separator $'\\n\\n'"
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
    """What `build` made in `root`; see data.open_dataset."""
    if root is None:
        raise UserError("the data set text is a folder; name it: text:FOLDER")
    remedy = f"python -m data.text {root} FILES..."
    return manifest.open_folder(root, f"text:{root}", val_tokens, remedy)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.text", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILES")
    parser.add_argument("--vocab", default="gpt2", help="gpt2 (default) or a .tiktoken of data.bpe")
    parser.add_argument("--field", default="text", help="of JSON and Parquet (default: text)")
    parser.add_argument("--separator", default=SEPARATOR, help="between documents of plain text")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: 0)")
    parser.add_argument("--val-fraction", type=float, default=VAL_FRACTION, help="of the tokens")
    parser.add_argument("--shard-tokens", type=int, default=SHARD_TOKENS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
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
        print(f"stopped; {given.out} is not made", file=sys.stderr)
        return 130
    train, val = (sum(file.tokens for file in part) for part in (made.train, made.val))
    print(
        f"{given.out}: {train} training tokens, {val} validation tokens, vocabulary "
        f"{made.vocab_size}, {made.val_bytes_per_token:.4f} bytes a token, hash {made.hash[:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
