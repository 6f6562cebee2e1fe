"""Matrices, gradients, and Newton-Schulz as published: what the tests of Muon's family share."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muon import Coefficients

# Typed from Jordan et al. 2024 and from the optimization track's script, not taken from muon.py.
JORDAN = ((3.4445, -4.7750, 2.0315),)
STABLE = ((2.0, -1.5, 0.5),)
# A table with its own coefficients in every step ("YOU"), so that their order matters.
FIVE = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64

# Wide, tall, the same turned over, square, and a second one of a shape.
SHAPES = ((32, 96), (96, 32), (32, 96), (48, 48))

# Muon's family, by the names of its recipes.
NAMES = (
    "muon", "moonlight", "polar-express", "deepseek-v4", "normuon", "adamuon", "muon2", "muonh",
    "muon-split", "dion",
)  # fmt: skip

Options = dict[str, Any]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def distance(x: Tensor, y: Tensor) -> float:
    """Of x from y, relative to y, in the Frobenius norm."""
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).norm() / y.norm())


def factors(m: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random U (m m) and V^T (m n) with orthonormal rows, float64."""
    U = torch.linalg.qr(draw(m, m, seed=seed).double())[0]
    return U, torch.linalg.qr(draw(n, m, seed=seed + 1).double())[0].mT


def step_by_step(table: Coefficients, steps: int) -> list[tuple[float, float, float]]:
    return [table[min(i, len(table) - 1)] for i in range(steps)]


def scalar(s: Tensor, table: Coefficients, steps: int) -> Tensor:
    """What the iteration does to a singular value."""
    for a, b, c in step_by_step(table, steps):
        s = a * s + b * s**3 + c * s**5
    return s


def published(X: Tensor, table: Coefficients = JORDAN, steps: int = 5) -> Tensor:
    """The iteration as Jordan et al. write it, on one matrix, in float64."""
    X = X.double() / X.double().norm()
    for a, b, c in step_by_step(table, steps):
        A = X @ X.T
        X = a * X + (b * A + c * A @ A) @ X
    return X


def polar(X: Tensor) -> Tensor:
    U, S, Vh = torch.linalg.svd(X.double(), full_matrices=False)
    rank = int((S / S[0] > 1e-5).sum())
    return U[:, :rank] @ Vh[:rank]


def weights(shapes: Sequence[tuple[int, int]] = SHAPES, scale: float = 0.1) -> list[nn.Parameter]:
    return [nn.Parameter(scale * draw(*s, seed=100 + i)) for i, s in enumerate(shapes)]


def gradient(p: Tensor, step: int, index: int = 0) -> Tensor:
    return draw(*p.shape, seed=1000 * step + index).to(p.dtype)


def train(
    params: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    steps: int,
    first: int = 0,
    of: Callable[..., Tensor] = gradient,
) -> None:
    for step in range(first, first + steps):
        for i, p in enumerate(params):
            p.grad = of(p, step, i)
        optimizer.step()
