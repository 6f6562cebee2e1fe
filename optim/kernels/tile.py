"""How a kernel divides a product of matrices among its programs."""

from typing import NamedTuple

BARRIER_BYTES = 128  # shared memory for the barriers of Blackwell's tensor cores, rounded up


class Loop(NamedTuple):
    """How a program goes along the rows of X, whose products it sums."""

    depth: int  # columns of X at once
    num_warps: int
    num_stages: int  # of the pipeline that loads them


class Tile(NamedTuple):
    """How the kernel divides its work: square tiles of the product, one program each."""

    side: int  # rows and columns of a tile
    half: Loop  # in bfloat16 and float16
    full: Loop  # in float32: without tensor cores, operands need registers too, so more warps

    def loop(self, element_bytes: int) -> Loop:
        """The loop for elements of this size."""
        return self.full if element_bytes == 4 else self.half

    def shared_bytes(self, element_bytes: int) -> int:
        """The most shared memory that a program takes.

        That is two operands a stage, or after the loop a tile of sums to transpose; and barriers.
        """
        depth, _, num_stages = self.loop(element_bytes)
        operands = 2 * num_stages * self.side * depth * element_bytes
        return max(operands, 4 * self.side**2) + BARRIER_BYTES
