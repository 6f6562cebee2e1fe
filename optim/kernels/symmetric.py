"""The symmetric products of the Newton-Schulz iteration as one Triton kernel; needs triton.

    Y = alpha X X^T + beta X        for X (K m n); beta only where X is symmetric

Only tiles on or above the diagonal are computed; their transposes are stored with them. That is
half the arithmetic of A = X X^T and of B = c A A + b A, so a step of the iteration takes up to a
third less time on square matrices and up to a quarter less on very wide ones. One program sums each
element in one order, so the same input gives the same bits every time.

Runs on NVIDIA GPUs, and on a CPU where TRITON_INTERPRET=1 was set before triton was imported.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from optim.kernels.tile import Tile


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    X,  # (K m n), any strides
    Y,  # (K m m), contiguous
    m,
    n,
    x_matrix,
    x_row,
    x_column,
    alpha,
    beta,
    ADD_X: tl.constexpr,  # whether beta X is added
    WIDEN: tl.constexpr,  # whether operands become float32 first, which changes no product
    SIDE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    # Tiles (i, j) with i <= j, numbered down the columns: number = j (j + 1) / 2 + i. The root
    # may round up or down; the integer comparisons correct it.
    number = tl.program_id(0)
    j = ((tl.sqrt(8.0 * number + 1.0) - 1.0) / 2.0).to(tl.int32)
    j = tl.where(j * (j + 1) // 2 > number, j - 1, j)
    j = tl.where((j + 1) * (j + 2) // 2 <= number, j + 1, j)
    i = number - j * (j + 1) // 2

    matrix = tl.program_id(1).to(tl.int64)  # offsets may exceed 2^31
    X += matrix * x_matrix
    Y += matrix * m * m
    rows = i * SIDE + tl.arange(0, SIDE)
    columns = j * SIDE + tl.arange(0, SIDE)
    depth = tl.arange(0, DEPTH)
    left = X + rows[:, None] * x_row + depth[None, :] * x_column  # (SIDE DEPTH)
    right = X + columns[None, :] * x_row + depth[:, None] * x_column  # (DEPTH SIDE)

    total = tl.zeros((SIDE, SIDE), dtype=tl.float32)
    has_row, has_column = (rows < m)[:, None], (columns < m)[None, :]
    for k in range(0, n, DEPTH):
        inside = depth < n - k
        a = tl.load(left, mask=has_row & inside[None, :], other=0.0)
        b = tl.load(right, mask=has_column & inside[:, None], other=0.0)
        if WIDEN:
            a, b = a.to(tl.float32), b.to(tl.float32)
        # Full float32, not TF32, as torch's own products do by default.
        total = tl.dot(a, b, total, input_precision="ieee")
        left += DEPTH * x_column
        right += DEPTH * x_column

    total *= alpha
    here = rows[:, None] * m + columns[None, :]
    inside_tile = has_row & has_column
    if ADD_X:
        old = X + rows[:, None] * x_row + columns[None, :] * x_column
        total += beta * tl.load(old, mask=inside_tile, other=0.0).to(tl.float32)
    value = total.to(Y.dtype.element_ty)
    if i == j:  # keep one half: rounding may make the halves differ
        value = tl.where(rows[:, None] <= columns[None, :], value, tl.trans(value))
    else:
        mirrored = (columns < m)[:, None] & (rows < m)[None, :]
        tl.store(Y + columns[:, None] * m + rows[None, :], tl.trans(value), mask=mirrored)
    tl.store(Y + here, value, mask=inside_tile)


def interpreted() -> bool:
    """Whether the kernel runs in Triton's interpreter, on a CPU."""
    return not isinstance(_product, triton.JITFunction)


def product(X: Tensor, tile: Tile, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """alpha X X^T + beta X: (K, m, m), exactly symmetric, in X's dtype.

    X: (K, m, n) with any strides, in float32, bfloat16 or float16; symmetric if beta is not 0.
    Sums are float32's, rounded once at the end.
    """
    K, m, n = X.shape
    Y = torch.empty(K, m, m, dtype=X.dtype, device=X.device)
    loop, tiles = tile.loop(X.element_size()), triton.cdiv(m, tile.side)
    _product[(tiles * (tiles + 1) // 2, K)](
        X,
        Y,
        m,
        n,
        *X.stride(),
        alpha,
        beta,
        ADD_X=beta != 0.0,
        # The interpreter's tl.dot reads the bits of bfloat16 as integers.
        WIDEN=interpreted() and X.dtype == torch.bfloat16,
        SIDE=tile.side,
        DEPTH=loop.depth,
        num_warps=loop.num_warps,
        num_stages=loop.num_stages,
    )
    return Y
