"""Memory of one process by kind: what its tensors take, and what the backward pass must keep.

Parameters, gradients and optimizer state are counted, not estimated: `dry_run.py` takes them from
the tensors of the real model and the real update rules. Activations are estimated here.
"""

from dataclasses import dataclass

from errors import UserError

RESERVED_FRACTION = 0.1  # of a GPU's memory: context, workspaces, fragmentation


def kept_bytes(
    *, n_embd: int, products: float, attention: float, hidden: float, n_head: int,
    residual_bytes: int, product_bytes: int,
) -> float:  # fmt: skip
    """Kept for the backward pass by one layer for one token.

    The residual stream before both norms; inputs of the matrix products; queries, keys and values
    before and after rotation; the hidden layer before its activation function; the attention's
    logarithms, one a head. Recomputation by a compiler lowers it.

    products: numbers that go into products, beside the two inputs of n_embd behind the norms.
    attention: numbers of queries, keys and values. hidden: numbers before the activation function.
    residual_bytes, product_bytes: of a number in the residual stream, and of all others.
    """
    kept = 2 * n_embd + products + attention + hidden
    return residual_bytes * 2 * n_embd + product_bytes * kept + 4 * n_head


def logits_bytes(tokens: int, table_rows: int, loss_chunk: int) -> int:
    """Logits and their gradients in 16 bits, three float32 stages between.

    loss_chunk: tokens whose logits are in memory at once; 0: all.
    """
    return min(loss_chunk or tokens, tokens) * table_rows * 16


@dataclass(frozen=True)
class Shape:
    """What decides the activations of a model in training."""

    n_layer: int
    n_embd: int
    n_head: int
    mlp_ratio: int
    seq_len: int
    table_rows: int  # of the head: logits of a token
    product_weights: int  # in matrix products, the head included
    residual_bytes: int  # of a number in the residual stream: 2 with a bfloat16 embedding, else 4
    loss_chunk: int  # tokens whose logits are in memory at once; 0: all

    def layer_bytes(self, product_bytes: int = 2) -> int:
        """Kept for the backward pass by one layer for one token; `product_bytes` a number."""
        return int(
            kept_bytes(
                n_embd=self.n_embd,
                products=(1 + self.mlp_ratio) * self.n_embd,
                attention=5 * self.n_embd,  # queries and keys twice, values
                hidden=self.mlp_ratio * self.n_embd,
                n_head=self.n_head,
                residual_bytes=self.residual_bytes,
                product_bytes=product_bytes,
            )
        )

    def activation_bytes(self, sequences: int, product_bytes: int = 2) -> int:
        """Kept by all layers for a microbatch, and both ends of the residual stream."""
        ends = (2 * self.residual_bytes + product_bytes) * self.n_embd
        return sequences * self.seq_len * (self.n_layer * self.layer_bytes(product_bytes) + ends)

    def loss_bytes(self, sequences: int) -> int:
        """Temporary: logits and their gradients in 16 bits, three float32 stages between.

        And the gradient of the head's table in float32, which the loss holds until the backward
        pass.
        """
        logits = logits_bytes(sequences * self.seq_len, self.table_rows, self.loss_chunk)
        return logits + 4 * self.table_rows * self.n_embd

    def cast_bytes(self) -> int:
        """The 16-bit copies of the weights that the matrix products keep."""
        return 2 * self.product_weights

    def working_bytes(self, sequences: int) -> int:
        """All of the above for a microbatch of `sequences`."""
        return self.activation_bytes(sequences) + self.loss_bytes(sequences) + self.cast_bytes()


def microbatch(shape: Shape, sequences: int, held_bytes: int, memory_bytes: int) -> int:
    """The largest divisor of a process's `sequences` a step that fits beside `held_bytes`.

    Raises UserError if not even one sequence fits.
    """
    room = (1 - RESERVED_FRACTION) * memory_bytes - held_bytes
    for count in range(sequences, 0, -1):
        if sequences % count == 0 and shape.working_bytes(count) <= room:
            return count
    needed = (held_bytes + shape.working_bytes(1)) / (1 - RESERVED_FRACTION)
    raise UserError(
        f"one sequence needs {needed / 1e9:.1f} GB of memory, the GPU has "
        f"{memory_bytes / 1e9:.0f} GB; choose another with --gpu"
    )
