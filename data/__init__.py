"""Data sets by name: what a trainer needs to know of one, without its file names.

    dataset = open_dataset("sotu")
    dataset = open_dataset("text:/somewhere/mine")      # a folder that data.text has made

A new data set is a file in this package with `open_prepared(root, val_tokens) -> Dataset`, and its
line in DATASETS. Reading shards needs numpy only; what a data set needs to be made (a tokenizer, a
corpus) is imported where it is made.
"""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

DATASETS = {"sotu": "data.corpus", "fineweb": "data.fineweb", "text": "data.text"}


@dataclass(frozen=True)
class Dataset:
    """Prepared and verified shards."""

    name: str
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    vocab_size: int
    bytes_per_token: float
    """UTF-8 bytes of validation text per token: bits per byte = loss / ln 2 / bytes_per_token."""
    hash: str
    """SHA-256 over every token and the tokenizer: equal hashes are equal data, of which a folder
    may hold only the beginning where the rest is still on a hub."""


def open_dataset(name: str, root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """Find the shards of data set `name`, in its own folder or in `root`, and verify them.

    The folder can also be part of the name, behind a colon. With `val_tokens`, bytes_per_token is
    that of the first `val_tokens` validation targets, which is what a loss over them needs;
    without, that of all validation tokens. Raises UserError if the name is unknown, or the data set
    is not prepared, damaged or too small.
    """
    kind, _, folder = name.partition(":")
    if kind not in DATASETS:
        near = difflib.get_close_matches(kind, DATASETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown data set {name!r}: it must be one of {', '.join(DATASETS)}; "
            f"did you mean {near}?"
        )
    root = Path(folder) if folder else root
    dataset: Dataset = importlib.import_module(DATASETS[kind]).open_prepared(root, val_tokens)
    return dataset
