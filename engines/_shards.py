"""The arithmetic of parameters in shards: rows, and the bytes that FSDP2 sends in a step.

Pure numbers, so that a plan for a cluster can ask without one. `engines/fsdp2.py` does as it says,
and a test counts it. Bytes are those of a ring, as in engines/_traffic.py: of S bytes that are
gathered or scattered over N processes, each sends S (N - 1) / N.
"""

import math
from collections.abc import Sequence

Shape = Sequence[int]


def rows_of(rows: int, processes: int) -> list[int]:
    """Rows in the shard of each process: the first ones have equally many, the last may have none.

    This is how FSDP2 cuts a parameter along its first dimension.
    """
    most = -(-rows // processes)
    return [max(0, min(most, rows - rank * most)) for rank in range(processes)]


def row_numel(shape: Shape) -> int:
    """Elements of a row."""
    return math.prod(shape[1:])


def padded_numel(shape: Shape, processes: int) -> int:
    """Elements of a parameter whose shards are filled up to equal sizes, as they travel."""
    return processes * rows_of(shape[0], processes)[0] * row_numel(shape)


def pass_bytes(
    blocks: Sequence[Shape],
    others: Sequence[Shape],
    processes: int,
    block_bytes: float = 4,
    other_bytes: float = 4,
    gradient_bytes: float = 4,
) -> float:
    """Bytes that a process sends in the two passes of one microbatch.

    blocks, others: the shapes of the parameters in blocks and outside of them. Those of a block are
    gathered for each of its passes, the others once for both. Gradients are reduce-scattered in
    every backward pass. block_bytes, other_bytes, gradient_bytes: of an element that travels.
    """
    block = sum(padded_numel(shape, processes) for shape in blocks)
    other = sum(padded_numel(shape, processes) for shape in others)
    sent = block * (2 * block_bytes + gradient_bytes) + other * (other_bytes + gradient_bytes)
    return sent * (processes - 1) / processes


def exchange_bytes(
    shapes: Sequence[Shape],
    owners: Sequence[int],
    processes: int,
    rank: int,
    element_bytes: float = 4,
) -> float:
    """Bytes that a process sends in a step for parameters that rules update whole.

    owners: of each of them. A process sends its shards of gradients to the owners, and the shards
    of the new weights of what it owns to the others. For P elements, the mean over the processes is
    2 P (N - 1) / N^2 elements where the rows divide.
    """
    sent = 0
    for shape, owner in zip(shapes, owners, strict=True):
        rows = rows_of(shape[0], processes)
        if owner == rank:
            sent += (shape[0] - rows[rank]) * row_numel(shape)
        else:
            sent += rows[rank] * row_numel(shape)
    return sent * element_bytes
