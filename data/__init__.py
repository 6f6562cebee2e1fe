"""Opens a prepared data set by its name: its shards, vocabulary size and hash.

    dataset = open_dataset("sotu")
    dataset = open_dataset("text:data/mine")      # a folder that data.text has made
    dataset = open_dataset("shards:FOLDER")       # shards that another program has made

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
import math
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from host import paths

DATASETS = {
    "sotu": "data.corpus", "fineweb": "data.fineweb", "text": "data.text", "shards": "data.adopt",
}  # fmt: skip
PINNED = ("sotu", "fineweb")  # the same tokens in any folder


@dataclass(frozen=True)
class Dataset:
    """Prepared and verified shards."""

    name: str
    train: tuple[Path, ...]
    val: tuple[Path, ...]
    vocab_size: int
    bytes_per_token: float | None
    """UTF-8 bytes of validation text per token; None if the vocabulary is not known."""
    hash: str
    """SHA-256 over the tokenizer and every token, also of shards that are not fetched yet: two
    folders with the same hash hold the same tokens in the same order, or the first of them."""

    def bits_per_byte(self, loss: float | None) -> float | None:
        """A loss in nats per token as bits per byte; None without one, or without a vocabulary."""
        if loss is None or self.bytes_per_token is None:
            return None
        return loss / math.log(2) / self.bytes_per_token


def open_dataset(name: str, root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """Find the shards of data set `name`, in its own folder or in `root`, and verify them.

    The folder can also be part of the name, after a colon. `bytes_per_token` is the mean of the
    first `val_tokens` validation targets, the tokens that a validation loss is measured on; without
    `val_tokens`, the mean of all validation tokens. Raises UserError if the name is unknown, or the
    data set is not prepared, damaged or too small.
    """
    kind, folder = _split(name)
    module = importlib.import_module(DATASETS[kind])
    dataset: Dataset = module.open_prepared(folder or root, val_tokens)
    return dataset


def _split(name: str) -> tuple[str, Path | None]:
    """The kind of data set and its folder, if the name has one. Raises UserError."""
    kind, _, folder = name.partition(":")
    if kind not in DATASETS:
        near = difflib.get_close_matches(kind, DATASETS, n=1, cutoff=0.0)[0]
        raise UserError(
            f"--dataset {name}: must be one of {', '.join(DATASETS)}; did you mean {near}?"
        )
    return kind, paths.typed(folder) if folder else None


def settled(name: str) -> str:
    """The name of the data set, `fineweb:FOLDER` where `shards:FOLDER` holds FineWeb's own shards.

    Shards that have no manifest yet are adopted. Raises UserError as open_dataset.
    """
    kind, folder = _split(name)
    if kind != "shards" or folder is None:
        return name
    official: bool = importlib.import_module(DATASETS[kind]).is_fineweb(folder)
    return f"fineweb:{folder}" if official else name


def frozen(name: str) -> str:
    """What a track freezes of a data set's name: not the folder, where all hold the same tokens."""
    kind = name.partition(":")[0]
    return kind if kind in PINNED else name
