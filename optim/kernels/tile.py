"""How a kernel divides a product of matrices among its programs."""

from typing import NamedTuple


class Tile(NamedTuple):
    """How the kernel divides its work: square tiles of the product, one program each."""

    side: int  # rows and columns of a tile
    depth_bytes: int  # bytes of a row of X that one stage of the pipeline loads
    num_warps: int
    num_stages: int

    def shared_bytes(self) -> int:
        """The most shared memory that the pipeline takes: two operands a stage."""
        return 2 * self.num_stages * self.side * self.depth_bytes
