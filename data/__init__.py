"""Data sets by name: what a trainer needs to know of one, without its file names.

    dataset = open_dataset("sotu")

A new data set is a file in this package with `open_prepared(root, val_tokens) -> Dataset`, and its
line in DATASETS. Reading shards needs numpy only; what a data set needs to be made (a tokenizer, a
corpus) is imported where it is made.
"""

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from errors import UserError

DATASETS = {"sotu": "data.corpus"}


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
    """SHA-256 over every token and the tokenizer: equal hashes are equal data."""


def open_dataset(name: str, root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """Find the shards of data set `name`, in its own directory or in `root`, and verify them.

    With `val_tokens`, bytes_per_token is that of the first `val_tokens` validation targets, which
    is what a loss over them needs; without, that of all validation tokens. Raises UserError if the
    name is unknown, or the data set is not prepared, damaged or too small.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"unknown data set {name!r}: it must be one of {', '.join(DATASETS)}; "
            f"did you mean {near}?"
        )
    dataset: Dataset = importlib.import_module(DATASETS[name]).open_prepared(root, val_tokens)
    return dataset
