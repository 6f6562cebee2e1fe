"""Byte-level BPE: trains a tokenizer, and reads and writes its `.tiktoken` file.

    encoding = load(Path("data/tiny/bpe1024.tiktoken"))
    encoding.encode_ordinary("My fellow citizens")

The tokenizer of the embedded corpus has 1024 tokens: the 256 bytes, then the merges in the order in
which they were learned, then the document separator `<|endoftext|>`. Any text can be encoded, and
decoding gives back exactly that text. GPT-2's pattern splits the text before merging. Training
gives the same merges for any number of threads.

The file has tiktoken's format: a line per token, with its bytes in base64 and its rank. GPT-2's
vocabulary is stored in the same format; only the order of its 256 bytes differs.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from errors import UserError

if TYPE_CHECKING:
    import tiktoken

VOCAB_SIZE = 1024
SEPARATOR = "<|endoftext|>"
RUN = 1 << 17  # runs of white space that are longer than this may be cut
# GPT-2's pattern: contractions, words, numbers, symbols (each with the space before it), spaces.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _byte_of_char() -> dict[str, int]:
    """The byte that each of GPT-2's printable characters stands for.

    `tokenizers` writes its tokens in these characters.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_ins = printable + [256 + n for n in range(len(others))]
    return {chr(c): byte for c, byte in zip(stand_ins, printable + others, strict=True)}


def train(documents: Iterable[str], vocab_size: int = VOCAB_SIZE) -> list[bytes]:
    """Learn the tokens in the order of their ranks: 256 bytes, then `vocab_size` - 257 merges.

    The separator, the last token, is not in the list. Raises UserError if the documents are too
    short for so many merges.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    vocabulary: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    byte_of = _byte_of_char()
    tokens = [bytes([byte]) for byte in range(256)]
    for text in sorted(vocabulary, key=vocabulary.__getitem__):
        if len(text) > 1:
            tokens.append(bytes(byte_of[char] for char in text))
    if len(tokens) != vocab_size - 1:
        raise UserError(
            f"the documents give {len(tokens) - 256} merges, a vocabulary of {vocab_size} needs "
            f"{vocab_size - 257}: give more text, or choose a smaller vocabulary"
        )
    return tokens


def dump(tokens: list[bytes]) -> bytes:
    """The content of a `.tiktoken` file with these tokens, which are in the order of ranks."""
    return b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(tokens))


def encoding(tokens: list[bytes]) -> "tiktoken.Encoding":
    """The tiktoken encoding of `tokens`, given in the order of ranks; the separator comes last."""
    import tiktoken

    return tiktoken.Encoding(
        name=f"bpe{len(tokens) + 1}",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={SEPARATOR: len(tokens)},
        explicit_n_vocab=len(tokens) + 1,
    )


def encode(encoding: "tiktoken.Encoding", text: str) -> NDArray[np.uint32]:
    """The tokens of a text; `<|endoftext|>` in it is text like any other.

    tiktoken's regular expression gives up on a million spaces. So runs of white space that are far
    longer than in any text are cut, and the parts are encoded one by one. Other long runs need no
    more time than their share.
    """
    cuts = [0, *_cuts(text), len(text)]
    parts = [
        encoding.encode_to_numpy(text[begin:end], disallowed_special=())
        for begin, end in pairwise(cuts)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _cuts(text: str) -> Iterator[int]:
    """Where to cut a text, so that no run of white space has 2 * RUN characters or more."""
    for at in range(RUN, len(text), RUN):
        if text[at : at + RUN].isspace() and at + RUN <= len(text):
            yield at


def read(path: Path) -> list[bytes]:
    """The tokens of a `.tiktoken` file in the order of their ranks.

    Raises UserError if the file is missing or damaged. tiktoken's own reader is not used, because
    it caches by path: after a file is replaced, it would still return the old one.
    """
    tokens: list[bytes] = []
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file):
                tokens.append(_token(line, number))
        if sorted(tokens[:256]) != [bytes([byte]) for byte in range(256)]:
            raise ValueError("it must begin with the 256 bytes")
        if len(set(tokens)) < len(tokens):
            raise ValueError("a token is there twice")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run: make data") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not a file of ranked tokens: {error}; run: make data"
        ) from error
    return tokens


def _token(line: bytes, rank: int) -> bytes:
    """The token of a line. Raises ValueError if it is not one with this rank."""
    words = line.split()
    if len(words) != 2:
        raise ValueError(f"line {rank + 1} is not a token in base64 and its rank")
    try:
        token, found = base64.b64decode(words[0], validate=True), int(words[1])
    except ValueError as error:
        raise ValueError(f"line {rank + 1}: {error}") from error
    if found != rank:
        raise ValueError(f"line {rank + 1} has rank {found}")
    return token


def load(path: Path) -> "tiktoken.Encoding":
    """The tiktoken encoding of a `.tiktoken` file. Raises UserError as read."""
    return encoding(read(path))
