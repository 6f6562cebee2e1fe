"""Newton-Schulz in Triton: backends for Muon, which `register` adds if triton is installed.

"triton-64" and "triton-128" are the published iteration with symmetric products, in square tiles of
64 or 128 rows; `ns_backend=triton` is the faster of them. `symmetric.py` imports triton when a
backend is first used, so without triton these backends are missing and all else works.
"""

from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from muon import BACKENDS, Backend, Coefficients
from optim.kernels.tile import Loop, Tile

# Both fit the 99 KiB of consumer GPUs, and neither spills registers: `python -m bench.kernels`.
TILES = (
    Tile(
        side=64,
        half=Loop(depth=64, num_warps=4, num_stages=4),
        full=Loop(depth=32, num_warps=8, num_stages=4),
    ),
    Tile(
        side=128,
        half=Loop(depth=64, num_warps=8, num_stages=3),
        full=Loop(depth=16, num_warps=16, num_stages=3),
    ),
)
ALIGNED = 16  # rows and columns; Triton loads 16 bytes at once if it knows that sizes divide by it


def iterate(X: Tensor, abc: Coefficients, tile: Tile) -> Tensor:
    """The published iteration on X (K m n), in about nm^2 + m^3 + 2nm^2 FLOPs a step."""
    from optim.kernels.symmetric import product

    m, n = X.shape[-2:]
    X = aligned(X)
    for a, b, c in abc:
        A = product(X, tile)  # (K, m, m)
        B = product(A, tile, alpha=c, beta=b)
        X = torch.baddbmm(X, B, X, beta=a)
    return X[:, :m, :n]


def aligned(X: Tensor) -> Tensor:
    """X (K m n), contiguous, with rows and columns of zeros up to multiples of ALIGNED.

    Zeros stay zeros in every step and change no sum. So each product is compiled once for all
    shapes. Compiled for other sizes, it loads element after element and spills registers.
    """
    m, n = X.shape[-2:]
    if m % ALIGNED or n % ALIGNED:
        X = F.pad(X, (0, -n % ALIGNED, 0, -m % ALIGNED))
    return X.contiguous()


def applies(device: torch.device, dtype: torch.dtype, abc: Coefficients, tile: Tile) -> bool:
    """Whether the kernel takes this dtype and fits the device."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    from optim.kernels.symmetric import interpreted

    if device.type != "cuda" or interpreted():
        return device.type == "cpu" and interpreted()
    gpu = torch.cuda.get_device_properties(device)
    shared_bytes = getattr(gpu, "shared_memory_per_block_optin", gpu.shared_memory_per_block)
    return gpu.major >= 8 and tile.shared_bytes(dtype.itemsize) <= shared_bytes


def register() -> None:
    """Add the backends to Muon's, if triton is installed."""
    if find_spec("triton"):
        for tile in TILES:
            backend = Backend(partial(iterate, tile=tile), partial(applies, tile=tile))
            BACKENDS[f"triton-{tile.side}"] = backend
