"""What a data set is made of, known before a byte of it is there: shards, tokens, disk.

Sizes of FineWeb are those of the repository kjj0/fineweb10B-gpt2 on the Hugging Face hub: 103
training shards, the last one shorter, and one for validation. Those of the embedded corpus are
what `python -m data.corpus` writes (a test compares them).
"""

from dataclasses import dataclass

from errors import UserError

HEADER_BYTES = 256 * 4
TOKEN_BYTES = 2


@dataclass(frozen=True)
class Corpus:
    """A data set in shards of uint16 tokens."""

    vocab_size: int
    shard_tokens: int  # of each training shard but the last
    train_tokens: int
    val_tokens: int  # of the one validation shard

    def shards(self, tokens: int) -> int:
        """Training shards that hold the first `tokens`."""
        return -(-min(tokens, self.train_tokens) // self.shard_tokens)

    def disk_bytes(self, tokens: int) -> int:
        """Bytes of the training shards that hold the first `tokens`, and of validation."""
        shards = self.shards(tokens)
        held = min(shards * self.shard_tokens, self.train_tokens) + self.val_tokens
        return (shards + 1) * HEADER_BYTES + TOKEN_BYTES * held


CORPORA = {
    "sotu": Corpus(1024, 3_935_593, 3_935_593, 219_648),
    "fineweb": Corpus(50257, 100_000_000, 10_255_324_043, 100_000_000),
}


def corpus(name: str) -> Corpus:
    """The data set called `name`. Raises UserError if its sizes are not known."""
    if name not in CORPORA:
        raise UserError(
            f"data set {name!r}: planned are {', '.join(CORPORA)}; see planner/corpora.py"
        )
    return CORPORA[name]
