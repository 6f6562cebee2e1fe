"""Opens a prepared data set by its name: its shards, vocabulary size and hash.

    dataset = open_dataset("sotu")
    dataset = open_dataset("text:data/mine")      # a folder that data.text has made

To add a data set, write a file in this package with `open_prepared(root, val_tokens) -> Dataset`,
and add its line to DATASETS. Reading shards needs numpy alone; a tokenizer or the text of a corpus
is imported only inside the functions that prepare the data.

How your own text becomes shards: `streams` opens a file, a pipe or standard input; `filetype` tells
what it is; `documents` reads its documents, with `columns` for tables and `json_values` for JSON
that is not in lines; `text` encodes them in several processes (`host.workers`) and sorts them
(`external_sort`) in a hidden folder (`workspace`); `shards` writes them and `manifest` lists them.
"""

import host.interpreter  # noqa: F401  # isort: skip

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from host import paths

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
    """SHA-256 over the tokenizer and every token, also of shards that are not fetched yet: two
    folders with the same hash hold the same tokens in the same order, or the first of them."""


def open_dataset(name: str, root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """Find the shards of data set `name`, in its own folder or in `root`, and verify them.

    The folder can also be part of the name, after a colon. `bytes_per_token` is the mean of the
    first `val_tokens` validation targets, the tokens that a validation loss is measured on; without
    `val_tokens`, the mean of all validation tokens. Raises UserError if the name is unknown, or the
    data set is not prepared, damaged or too small.
    """
    kind, _, folder = name.partition(":")
    if kind not in DATASETS:
        near = difflib.get_close_matches(kind, DATASETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--dataset {name}: must be one of {', '.join(DATASETS)}; did you mean {near}?"
        )
    root = paths.typed(folder) if folder else root
    dataset: Dataset = importlib.import_module(DATASETS[kind]).open_prepared(root, val_tokens)
    return dataset
