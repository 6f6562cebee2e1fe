"""Triton kernels for Muon: importing this adds its backends to `muon.BACKENDS`, if triton is there.

"triton-64" and "triton-128" are the published iteration with symmetric products, in tiles of that
side; `ns_backend=triton` is the faster of them. Triton itself is imported by `symmetric.py`, when
one of them is first asked about, so a machine without it only lacks these backends.
"""

from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from muon import BACKENDS, Backend, Coefficients


class Tile(NamedTuple):
    """How the kernel cuts its work: square tiles of the product, each by one program."""

    side: int
    depth_bytes: int  # of a row of X, loaded in one stage of the pipeline
    num_warps: int
    num_stages: int

    def shared_bytes(self) -> int:
        """Shared memory that the pipeline takes at most: two operands a stage."""
        return 2 * self.num_stages * self.side * self.depth_bytes


# Compiled for sm_80 and sm_90 in bfloat16, neither spills registers; both fit the 99 KiB of
# consumer GPUs.
TILES = (
    Tile(side=64, depth_bytes=128, num_warps=4, num_stages=4),
    Tile(side=128, depth_bytes=128, num_warps=8, num_stages=3),
)


def iterate(X: Tensor, abc: Coefficients, tile: Tile) -> Tensor:
    """The published iteration, in little more than nm^2 + m^3 + 2nm^2 FLOPs a step."""
    from optim.kernels.symmetric import product

    for a, b, c in abc:
        A = product(X, tile)  # (K, m, m)
        B = product(A, tile, alpha=c, beta=b)
        X = torch.baddbmm(X, B, X, beta=a)
    return X


def applies(device: torch.device, dtype: torch.dtype, abc: Coefficients, tile: Tile) -> bool:
    """Whether the kernel takes this dtype and fits the device."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    from optim.kernels.symmetric import interpreted

    if device.type != "cuda" or interpreted():
        return device.type == "cpu" and interpreted()
    gpu = torch.cuda.get_device_properties(device)
    shared_bytes = getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)
    return gpu.major >= 8 and tile.shared_bytes() <= shared_bytes


if find_spec("triton"):
    BACKENDS.update(
        (f"triton-{tile.side}", Backend(partial(iterate, tile=tile), partial(applies, tile=tile)))
        for tile in TILES
    )
