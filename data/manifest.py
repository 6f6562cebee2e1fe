"""Reads and writes manifest.json, the list of a data set's files, and opens a folder that has one.

    manifest = read(Path("data/tiny"), remedy="make data")
    dataset = open_folder(Path("data/tiny"), "sotu", val_tokens=102_400, remedy="make data")

A folder holds the shards `*_train_*.bin` and `*_val_*.bin`, which are read in the order of the
manifest, and the vocabulary as one `*.tiktoken` file, which bits per byte are computed with. If the
shards come from a hub (`revision` is set), the manifest lists all shards of that commit, and the
folder can hold only the first of the training shards.

Shards that another program made keep their names and can be without a vocabulary; `data.adopt`
writes their manifest.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from data import Dataset, bpe, shards
from errors import UserError
from tracking.files import write_atomic

MANIFEST = "manifest.json"
ORIGIN = ("source", "revision", "adopted")  # fields of a manifest that do not change the tokens
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
class Adopted:
    """What `data.adopt` saw in a folder that another program fills."""

    seen: Mapping[str, tuple[int, int]]  # each `.bin` file: bytes, time of change in ns
    choice: Mapping[str, str]  # the options that were given


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json."""

    vocab_size: int
    files: tuple[File, ...]
    val_bytes_per_token: float | None = None  # separators are tokens of 0 bytes
    source: str | None = None  # the hub's repository
    revision: str | None = None  # the repository's commit
    val_names: tuple[str, ...] | None = None  # validation shards, if not those with _val_
    adopted: Adopted | None = None  # another program made the shards

    @property
    def hash(self) -> str:
        """SHA-256 of the fields as JSON (keys sorted, no spaces), but for the files' origin.

        It covers all shards of the manifest, also those that are not fetched yet: two folders with
        the same hash have the same tokens in the same order.
        """
        kept = {k: v for k, v in _known(self).items() if k not in ORIGIN}
        text = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def train(self) -> tuple[File, ...]:
        if self.val_names is None:
            return tuple(file for file in self.files if "_train_" in file.name)
        others = {*self.val_names, *(file.name for file in self.files if _is_vocabulary(file))}
        return tuple(file for file in self.files if file.name not in others)

    @property
    def val(self) -> tuple[File, ...]:
        if self.val_names is None:
            return tuple(file for file in self.files if "_val_" in file.name)
        return tuple(file for file in self.files if file.name in self.val_names)

    @property
    def vocabulary(self) -> File | None:
        """None if the vocabulary is not known."""
        return next((file for file in self.files if _is_vocabulary(file)), None)


def _is_vocabulary(file: File) -> bool:
    return file.name.endswith(".tiktoken")


def _known(manifest: Manifest) -> dict[str, object]:
    return {key: value for key, value in asdict(manifest).items() if value is not None}


def read(root: Path, remedy: str) -> Manifest:
    """The manifest of a folder.

    Raises UserError, with the next command `remedy`, if there is none or it is damaged.
    """
    path = root / MANIFEST
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        what = f"{MANIFEST} is missing"
        if any(root.glob("*.bin")):
            what += ", but there are .bin files"
            own = f"{remedy}, or if another program made them: " if remedy[:4] == "make" else ""
            remedy = f"{own}python -m data.adopt {root}"
        raise UserError(f"no data set is prepared in {root}: {what}; run: {remedy}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; run: {remedy}") from error
    try:
        return _parse(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is damaged: {reason}; run: {remedy}") from error


def _parse(fields: Any) -> Manifest:
    """The manifest from its JSON. Raises ValueError, TypeError or KeyError for any other JSON."""
    if not isinstance(fields, dict):
        raise ValueError(f"it holds a {type(fields).__name__}, not an object")
    files = tuple(File(**file) for file in fields.pop("files"))
    for file in files:
        _check_file(file)
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ValueError("it lists a file twice")
    if fields.get("val_names") is not None:
        fields["val_names"] = tuple(fields["val_names"])
    if fields.get("adopted") is not None:
        adopted = Adopted(**fields["adopted"])
        seen = {name: (int(size), int(time)) for name, (size, time) in dict(adopted.seen).items()}
        fields["adopted"] = Adopted(seen, {k: str(v) for k, v in dict(adopted.choice).items()})
    manifest = Manifest(**fields, files=files)
    if type(manifest.vocab_size) is not int or not 1 < manifest.vocab_size <= shards.MAX_VOCAB:
        raise ValueError(f"vocab_size {manifest.vocab_size!r} is not from 2 to {shards.MAX_VOCAB}")
    if not (manifest.val and manifest.train):
        raise ValueError("it lists no training or no validation shard")
    if manifest.vocabulary is None and manifest.adopted is None:
        raise ValueError("it lists no vocabulary")
    return manifest


def _check_file(file: File) -> None:
    """Raise ValueError unless the fields of a file can be so."""
    name = file.name
    if not isinstance(name, str) or Path(name).name != name or "\0" in name:
        raise ValueError(f"{name!r} is not a file name")
    if type(file.tokens) is not int or file.tokens < 1:
        raise ValueError(f"{name} has {file.tokens!r} tokens")
    if not isinstance(file.sha256, str) or not re.fullmatch("[0-9a-f]{64}", file.sha256):
        raise ValueError(f"{name} has {file.sha256!r} for a SHA-256")


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
    check_unchanged(root, manifest, remedy)
    there = manifest.train
    if manifest.revision is not None:
        there = tuple(takewhile(lambda file: (root / file.name).exists(), there)) or there[:1]
    vocabulary = [] if manifest.vocabulary is None else [manifest.vocabulary]
    files = [*manifest.val, *there]
    small = sum(file.bytes for file in files) <= HASH_BYTES
    check(root, [*vocabulary, *files] if small else vocabulary, remedy)
    for file in files:
        held = len(shards.open_shard(root / file.name, manifest.vocab_size, scan=False))
        if held != file.tokens:
            raise UserError(
                f"{root / file.name} holds {held} tokens, the manifest has {file.tokens}: it "
                f"belongs to another data set; delete it and run: {remedy}"
            )
    val = tuple(root / file.name for file in manifest.val)
    size = None
    for file in vocabulary:
        sizes = token_bytes(root / file.name)
        if len(sizes) != manifest.vocab_size:
            raise UserError(
                f"{root / file.name} has {len(sizes)} tokens, {root / MANIFEST} has "
                f"{manifest.vocab_size}; run: {remedy}"
            )
        size = bytes_per_token(val, sizes, val_tokens)
    return Dataset(
        name=name,
        train=tuple(root / file.name for file in there),
        val=val,
        vocab_size=manifest.vocab_size,
        bytes_per_token=size,
        hash=manifest.hash,
    )


def stamp(path: Path) -> tuple[int, int]:
    """A file's bytes and its time of change in ns. Raises OSError."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def check_unchanged(root: Path, manifest: Manifest, remedy: str) -> None:
    """Raise UserError if the files of an adopted folder are not those that were adopted.

    A file with another time is hashed, since a copy of a folder has other times.
    """
    if manifest.adopted is None:
        return
    seen, files = manifest.adopted.seen, {file.name: file for file in manifest.files}
    then = f"run: {remedy}"
    for path in sorted(root.glob("*.[bB][iI][nN]")):
        if path.name not in seen and path.name not in files:
            raise UserError(f"{path} came after the folder was adopted; {then}")
    for name, (size, time) in seen.items():
        if name not in files:
            continue
        try:
            now = stamp(root / name)
            if now != (size, time) and (
                now[0] != size or sha256(root / name) != files[name].sha256
            ):
                raise UserError(f"{root / name} has changed since the folder was adopted; {then}")
        except OSError as error:
            raise UserError(f"cannot read {root / name}: {error.strerror}; {then}") from error


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
