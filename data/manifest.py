"""Reads and writes manifest.json, the list of a data set's files, and opens a folder that has one.

    manifest = read(Path("data/tiny"), remedy="make data")
    dataset = open_folder(Path("data/tiny"), "sotu", val_tokens=102_400, remedy="make data")

A folder holds the shards `*_train_*.bin` and `*_val_*.bin`, which are read in the order of the
manifest, and the vocabulary as one `*.tiktoken` file, which bits per byte are computed with. If the
shards come from a hub (`revision` is set), the manifest lists all shards of that commit, and the
folder can hold only the first of the training shards.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from data import Dataset, bpe, shards
from errors import UserError
from tracking.files import write_atomic

MANIFEST = "manifest.json"
# Folders up to this size are hashed when they are opened, which takes a second or two. In larger
# ones, which were hashed when they were prepared, only sizes and headers are checked.
HASH_BYTES = 1 << 30


@dataclass(frozen=True)
class File:
    """A file of a prepared data set: a shard, or the vocabulary."""

    name: str
    tokens: int
    sha256: str

    @property
    def bytes(self) -> int:
        """The size of the file, if it is a shard."""
        return shards.shard_bytes(self.tokens)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    vocab_size: int
    files: tuple[File, ...]
    val_bytes_per_token: float | None = None  # separators are tokens of 0 bytes
    source: str | None = None  # the hub's repository
    revision: str | None = None  # the repository's commit

    @property
    def hash(self) -> str:
        """SHA-256 of the fields as JSON (keys sorted, no spaces), without source and revision.

        It covers all shards of the manifest, also those that are not fetched yet: two folders with
        the same hash have the same tokens in the same order.
        """
        kept = {k: v for k, v in _known(self).items() if k not in ("source", "revision")}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def train(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if "_train_" in file.name)

    @property
    def val(self) -> tuple[File, ...]:
        return tuple(file for file in self.files if "_val_" in file.name)

    @property
    def vocabulary(self) -> File:
        return next(file for file in self.files if file.name.endswith(".tiktoken"))


def _known(manifest: Manifest) -> dict[str, object]:
    return {key: value for key, value in asdict(manifest).items() if value is not None}


def read(root: Path, remedy: str) -> Manifest:
    """The manifest of a folder.

    Raises UserError, with the next command `remedy`, if there is none or it is damaged.
    """
    path = root / MANIFEST
    if not path.exists():
        raise UserError(f"no data set is prepared in {root}: {MANIFEST} is missing; run: {remedy}")
    try:
        fields = json.loads(path.read_text("utf-8"))
        files = tuple(File(**file) for file in fields.pop("files"))
        manifest = Manifest(**fields, files=files)
        if not (manifest.val and manifest.train and manifest.vocabulary):
            raise ValueError("it lists no training or no validation shard")
    except StopIteration:
        raise UserError(f"{path} is damaged: it lists no vocabulary; run: {remedy}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error}; run: {remedy}") from error
    return manifest


def write(root: Path, manifest: Manifest) -> None:
    """Write the manifest, whole or not at all. Raises UserError as write_atomic."""
    text = json.dumps(_known(manifest), indent=2) + "\n"
    write_atomic(root / MANIFEST, [text.encode()])


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(root: Path, files: Iterable[File], remedy: str) -> None:
    """Raise UserError if one of the files is missing or has another SHA-256."""
    for file in files:
        try:
            digest = sha256(root / file.name)
        except OSError as error:
            raise UserError(
                f"cannot read {root / file.name}: {error.strerror}; run: {remedy}"
            ) from error
        if digest != file.sha256:
            raise UserError(
                f"{root / file.name} is damaged: SHA-256 {digest[:12]}, the manifest has "
                f"{file.sha256[:12]}; run: {remedy}"
            )


def open_folder(root: Path, name: str, val_tokens: int | None, remedy: str) -> Dataset:
    """The data set in a folder, verified; see data.open_dataset.

    Training shards of a hub are used up to the first that is not fetched yet. Raises UserError if
    the manifest or a file that is needed is missing, damaged, or too small for `val_tokens`.
    """
    manifest = read(root, remedy)
    there = manifest.train
    if manifest.revision is not None:
        there = tuple(takewhile(lambda file: (root / file.name).exists(), there)) or there[:1]
    files = [manifest.vocabulary, *manifest.val, *there]
    if sum(file.bytes for file in files) <= HASH_BYTES:
        check(root, files, remedy)
    for file in files[1:]:
        held = len(shards.open_shard(root / file.name, manifest.vocab_size, scan=False))
        if held != file.tokens:
            raise UserError(
                f"{root / file.name} holds {held} tokens, the manifest has {file.tokens}: it "
                f"belongs to another data set; delete it and run: {remedy}"
            )
    val = tuple(root / file.name for file in manifest.val)
    sizes = token_bytes(root / manifest.vocabulary.name)
    if len(sizes) != manifest.vocab_size:
        raise UserError(
            f"{root / manifest.vocabulary.name} has {len(sizes)} tokens, {root / MANIFEST} has "
            f"{manifest.vocab_size}; run: {remedy}"
        )
    return Dataset(
        name=name,
        train=tuple(root / file.name for file in there),
        val=val,
        vocab_size=manifest.vocab_size,
        bytes_per_token=bytes_per_token(val, sizes, val_tokens),
        hash=manifest.hash,
    )


def token_bytes(vocabulary: Path) -> np.ndarray:
    """The UTF-8 bytes of each token, (vocab_size,); the separator, the last token, has 0."""
    return np.array([len(token) for token in bpe.read(vocabulary)] + [0])


def bytes_per_token(paths: Iterable[Path], sizes: np.ndarray, val_tokens: int | None) -> float:
    """Mean size of the first `val_tokens` targets of these shards, or else of all their tokens.

    Raises UserError if `val_tokens` is not positive or the shards hold fewer targets.
    """
    stream = [shards.open_shard(path, len(sizes)) for path in paths]
    count = sum(len(tokens) for tokens in stream)
    if val_tokens is not None and not 0 < val_tokens < count:
        raise UserError(
            f"validation on {val_tokens} tokens: the validation shards have 1 to {count - 1}; "
            f"run with --val-tokens {count - 1}"
        )
    first, last = (0, count) if val_tokens is None else (1, val_tokens + 1)
    total, begin = 0, 0
    for tokens in stream:
        part = tokens[max(0, first - begin) : max(0, last - begin)]
        for start in range(0, len(part), shards.SCAN_CHUNK):
            total += int(sizes[part[start : start + shards.SCAN_CHUNK]].sum())
        begin += len(tokens)
    return total / (last - first)
