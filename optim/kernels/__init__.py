"""Newton-Schulz in Triton: backends for Muon, which `register` adds if triton is installed.

"triton-64" and "triton-128" are the published iteration with symmetric products, in square tiles of
64 or 128 rows; `ns_backend=triton` is the faster of them. `symmetric.py` imports triton when a
backend is first used, so without triton these backends are missing and all else works.
"""

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from muon import Backend, Coefficients, register_backend
from optim.kernels.tile import Tile

# Compiled for sm_80 and sm_90 in bfloat16, neither spills registers; both fit the 99 KiB of
# consumer GPUs.
TILES = (
    Tile(side=64, depth_bytes=128, num_warps=4, num_stages=4),
    Tile(side=128, depth_bytes=128, num_warps=8, num_stages=3),
)


def iterate(X: Tensor, abc: Coefficients, tile: Tile) -> Tensor:
    """The published iteration on X (K m n), in about nm^2 + m^3 + 2nm^2 FLOPs a step."""
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


def register() -> None:
    """Add the backends to Muon's, if triton is installed."""
    if find_spec("triton"):
        for tile in TILES:
            backend = Backend(partial(iterate, tile=tile), partial(applies, tile=tile))
            register_backend(f"triton-{tile.side}", backend)
