"""Prepares your own text: tokenizes, shuffles and splits it into shards.

    python -m data.text OUT FILES...         # then: python speedrun.py --dataset text:OUT
    python -m data.text OUT *.jsonl --field content --vocab data/tiny/bpe1024.tiktoken
    zcat *.gz | python -m data.text OUT -    # from standard input; any pipe can be a file

Files are read as what they are, whatever they are called: JSON lines or an array of JSON (one
document per object, in the field --field), Parquet or Arrow (one document per row, in that column;
needs pyarrow), and plain UTF-8 text (a document ends at `<|endoftext|>` or another --separator, and
at the end of the file). They may be compressed by gzip, bzip2, xz or zstd (needs zstandard). The
command prints what it reads as what; `data.documents` says how.

Documents are sorted by a hash of the seed and their text, which shuffles them. The first of them
are the validation set. So the result is the same for any number of workers and for any order or
division of the files, and equal documents are never in both sets.

Several processes encode the text, and it is sorted on disk, so memory is bounded for any size of
input. The disk needs about four bytes per token while this runs, and two afterwards. The folder OUT
is there only when it is complete: shards, vocabulary, and manifest.json with the data's hash.
"""

import argparse
import functools
import os
import shlex
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data import Dataset, bpe, documents, gpt2, manifest, shards, streams, workspace
from data.documents import Piece, Reading, Source
from data.external_sort import Documents, ExternalSort
from data.filetype import FORMATS
from data.manifest import File, Manifest
from data.progress import bytes_bar
from errors import UserError
from host import entry, paths, workers
from host.cores import cores
from tracking.files import write_atomic

if TYPE_CHECKING:
    import tiktoken

Say = Callable[[str], object]

SHARD_TOKENS = 100_000_000
VAL_FRACTION = 0.01
BUCKET_BYTES = 64 << 20  # bytes of input that are sorted at once
UNKNOWN_BYTES = 16 << 30  # taken for the size of a pipe: decides buckets only


@dataclass(frozen=True)
class Settings(Reading):
    """The options that change the tokens."""

    seed: int = 0
    val_fraction: float = VAL_FRACTION  # of the tokens, rounded up to whole documents
    shard_tokens: int = SHARD_TOKENS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.val_fraction < 1:
            raise UserError(
                f"--val-fraction {self.val_fraction}: must be more than 0 and less than 1; "
                f"run with --val-fraction {VAL_FRACTION}"
            )
        if not 0 <= self.seed < 1 << 64:
            raise UserError(f"--seed {self.seed}: must be from 0 to {(1 << 64) - 1}; leave it out")
        if self.shard_tokens < 1:
            raise UserError(f"--shard-tokens {self.shard_tokens}: must be at least 1; leave it out")


# ---------------------------------------------------------------------------------------------
# Encoding, in the workers.


@functools.cache
def _encoding(vocabulary: Path) -> "tiktoken.Encoding":
    return bpe.load(vocabulary)


@dataclass(frozen=True)
class Encoded:
    """The documents of a piece as tokens."""

    documents: Documents
    nulls: int  # documents that were null
    bytes: int  # of the piece


def encode(piece: Piece, vocabulary: Path, settings: Settings) -> Encoded:
    """The documents of a piece as tokens, each after a separator token, and their keys.

    A key is a hash of the seed and the text, so sorting by key shuffles. Documents that are only
    white space are left out. Raises UserError if a document is not text.
    """
    encoding = _encoding(vocabulary)
    before = np.array([encoding.eot_token], np.uint16)
    salt = settings.seed.to_bytes(8, "little")
    keys: list[bytes] = []
    encoded, nulls = [], 0
    for number in range(len(piece.documents)):
        text = piece.text(number, settings)
        nulls += text is None
        if text is None or not text.strip():
            continue
        keys.append(blake2b(text.encode(), digest_size=16, key=salt).digest())
        encoded.append(np.concatenate([before, bpe.encode(encoding, text).astype(np.uint16)]))
    return Encoded(Documents.of(keys, encoded), nulls, piece.bytes)


# ---------------------------------------------------------------------------------------------
# Building the folder.


def build(
    out: Path,
    files: Sequence[Path],
    ranked: list[bytes],
    settings: Settings,
    count: int,
    say: Say = lambda line: None,
) -> Manifest:
    """Make the data set `out` from the files; `ranked` are the vocabulary's tokens by rank,
    and `count` processes encode.

    It is made in a folder beside `out`, which is then renamed. say: gets the lines about what was
    read. Raises UserError if `out` exists, an input cannot be used, the disk is full, or there are
    too few documents.
    """
    if count < 1:
        raise UserError(f"--workers {count}: must be at least 1; leave it out")
    if os.path.lexists(out):
        remedy = "choose another folder, or delete it"
        if not out.is_dir():
            remedy = "the folder to make comes first: python -m data.text OUT FILES..."
        raise UserError(f"{out} exists already; {remedy}")
    if len(ranked) >= 1 << 16:
        raise UserError(
            f"--vocab: {len(ranked) + 1} tokens, but a shard's uint16 holds {1 << 16}; choose "
            "a smaller vocabulary"
        )
    sources = _look(files, settings)
    for line in documents.described(sources):
        say(line)
    size = sum(UNKNOWN_BYTES if source.bytes is None else source.bytes for source in sources)
    with workspace.beside(out) as beside:
        try:
            vocabulary = beside / f"vocabulary{len(ranked) + 1}.tiktoken"
            write_atomic(vocabulary, [bpe.dump(ranked)])
            buckets = min(1 << 16, size // BUCKET_BYTES + 1)
            sort = ExternalSort(beside / "buckets", buckets)
            nulls = 0
            with closing(_encoded(sources, vocabulary, settings, count, say)) as encoded:
                for each in encoded:
                    sort.add(each.documents)
                    nulls += each.nulls
            if nulls:
                say(f"skipped, because they are null: {nulls} documents")
            made = _write_shards(beside, sort, vocabulary, settings)
            manifest.write(beside, made)
            workspace.finish(beside, out)
        except OSError as error:
            raise UserError(
                f"{out} cannot be made: {error.strerror or error}; make room, or choose another OUT"
            ) from error
        except MemoryError as error:
            raise UserError(f"{out}: out of memory; run with fewer --workers") from error
    return made


def _look(files: Sequence[Path], settings: Settings) -> list[Source]:
    """A look at each file. Raises UserError if one cannot be used."""
    sources = [documents.look(path, settings) for path in files]
    pipes = [source.path for source in sources if source.bytes is None]
    for path in pipes:
        if pipes.count(path) > 1:
            raise UserError(f"{path} is given twice, and can be read only once; give it once")
    return sources


def _encoded(
    sources: Sequence[Source], vocabulary: Path, settings: Settings, count: int, say: Say
) -> Generator[Encoded, None, None]:
    """Yield the documents of all files, encoded by `count` processes, as they are finished.

    At most a piece per process is in memory, and one more.
    """

    def pieces() -> Iterator[Piece]:
        for source in sources:
            for piece in documents.pieces(source.path, settings, vocabulary.parent):
                if not source.label and piece.first == 1:  # a pipe
                    what = documents.label(piece.form, piece.layers)
                    say(f"read as {what}: {streams.name_of(source.path)}")
                yield piece

    call = functools.partial(encode, vocabulary=vocabulary, settings=settings)
    sizes = [source.bytes for source in sources]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    try:
        with bytes_bar() as bar, closing(workers.unordered(call, pieces(), count)) as encoded:
            task = bar.add_task("encoding", total=total)
            for each in encoded:
                bar.advance(task, each.bytes)
                yield each
            done = bar.tasks[task].completed if total is None else total  # without separators
            bar.update(task, total=done, completed=done)
    except workers.WorkerDiedError as error:
        raise UserError(
            f"{error}, perhaps because memory ran out; run with fewer --workers"
        ) from error


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
        divide = ""
        if settings.separator == bpe.SEPARATOR:
            divide = ", or divide plain text by --separator, for example --separator $'\\n\\n'"
        raise UserError(
            f"the files hold {sort.documents} documents, too few for training and validation; "
            f"give more{divide}"
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
    remedy = f"python -m data.text {shlex.quote(str(root))} FILES..."
    return manifest.open_folder(root, f"text:{root}", val_tokens, remedy)


def command(given: argparse.Namespace) -> None:
    """Make the data set, and say what it holds. Raises UserError."""
    settings = Settings(**{each.name: getattr(given, each.name) for each in fields(Settings)})
    ranked = gpt2.tokens() if given.vocab == "gpt2" else bpe.read(paths.typed(given.vocab))
    say = functools.partial(print, file=sys.stderr)
    made = build(given.out, given.files, ranked, settings, given.workers, say)
    train, val = (sum(file.tokens for file in part) for part in (made.train, made.val))
    print(
        f"{given.out}: {train} training tokens, {val} validation tokens, vocabulary "
        f"{made.vocab_size}, {made.val_bytes_per_token:.4f} bytes per token, hash {made.hash[:12]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = entry.parser("data.text", __doc__)
    add = parser.add_argument
    add("out", type=paths.typed, metavar="OUT", help="the folder to make")
    add("files", type=paths.typed, nargs="+", metavar="FILES",
        help="JSON, Parquet, Arrow or plain text; - is standard input")  # fmt: skip
    add("--vocab", default="gpt2", help="gpt2 (default) or a .tiktoken file")
    add("--field", default="text", help="field of JSON, column of Parquet (default: %(default)s)")
    add(
        "--separator",
        default=bpe.SEPARATOR,
        help="ends a plain-text document (default: %(default)s)",
    )
    add("--format", default="auto", metavar="FORMAT",
        help=f"read all files as {', '.join(FORMATS)} (default: as what they are)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the shuffle (default: %(default)s)")
    add("--val-fraction", type=float, default=VAL_FRACTION, metavar="FRACTION",
        help="fraction of the tokens for validation (default: %(default)s)")  # fmt: skip
    add("--shard-tokens", type=int, default=SHARD_TOKENS, metavar="TOKENS",
        help="tokens of a shard (default: %(default)s)")  # fmt: skip
    add("--workers", type=int, default=cores(), metavar="N",
        help="processes that encode (default: one per core, here %(default)s)")  # fmt: skip
    return entry.run(parser, argv, command, "no data set was made", once=True)


if __name__ == "__main__":
    sys.exit(main())
