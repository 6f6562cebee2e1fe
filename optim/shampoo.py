"""Shampoo (Gupta et al. 1802.09568) with averages in place of sums; AdamW on the rest.

    python speedrun.py shampoo:lr=0.1,precondition_frequency=5

Muon without momentum is a special case: with betas of 0, a power of -1/4 and new roots in every
step, L^(-1/4) G R^(-1/4) is the orthogonal factor of G. Here the roots come from eigenvalue
decompositions, which cost more than Newton-Schulz.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from muon import lr_scale
from optim import Group, Log, Roles, matrix_groups
from optim.adamw import Beta1, Beta2, matrix_recipe
from optim.rule import Rule

SIDES = ("left", "right")  # of a matrix; its rows and its columns


class Preconditioned(Rule):
    """A rule for 2-D parameters that keeps matrices for the sides of each matrix in a parameter.

    They are in dictionaries of its state, "left0" and "right0" for the first matrix.
    """

    matrices, half = True, False
    ranges: ClassVar[dict[str, tuple[float, float]]] = {
        "precondition_frequency": (1, math.inf),
        "max_precond_dim": (0, math.inf),
        "power": (-1.0, 1.0),
    }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for own in self.state.values():  # earlier versions kept lists, a pair for each matrix
            for key, pairs in own.items():
                if isinstance(pairs, list):
                    own[key] = {
                        f"{side}{i}": S
                        for i, pair in enumerate(pairs)
                        for side, S in zip(SIDES, pair, strict=True)
                        if S is not None
                    }


def eigh(S: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric S (m, m); NaN if it is not finite.

    In float64, because the iteration in float32 may not converge if S has a low rank. A diverged
    run gives NaN and no error, so that a race goes on.
    """
    finite = S.isfinite().all()
    values, vectors = torch.linalg.eigh(torch.where(finite, S, 0.0).double())
    return torch.where(finite, values, torch.nan).to(S.dtype), vectors.to(S.dtype)


def matrix_power(S: Tensor, power: float, eps: float) -> Tensor:
    """S^power of a symmetric positive semi-definite S (m, m).

    Eigenvalues below eps times the largest are raised to that; S = 0 gives 0.
    """
    values, vectors = eigh(S.to(torch.promote_types(S.dtype, torch.float32)))
    largest = values[-1]
    powers = torch.where(largest == 0, 0.0, values.clamp(min=eps * largest) ** power)
    return (vectors * powers) @ vectors.mT


class Shampoo(Preconditioned):
    """Shampoo for 2-D parameters.

        L <- beta2 L + (1 - beta2) G G^T,  R <- beta2 R + (1 - beta2) G^T G
        M <- beta1 M + (1 - beta1) G
        W <- (1 - lr weight_decay) W - lr scale L^power M R^power

    All three averages are corrected for their start from zero, as in Adam. `scale` is Muon's,
    sqrt(max(1, rows / columns)). There is no grafting (the update takes its size from no other
    rule): with a power of -1/4 its size does not depend on the gradient's.

    precondition_frequency: steps between new roots of L and R. Also refreshed in each of the first
        `precondition_frequency` steps, because the averages change most then, and the first
        gradients may be zero.
    splits: row counts of the matrices stacked in each parameter, each preconditioned on its own.
    State of a parameter: `step`, `exp_avg`, and for the sides of each of its matrices `factors`
    (L, R) and `roots` (their powers).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.0,
        power: float = -0.25,
        precondition_frequency: int = 10,
        eps: float = 1e-6,
        splits: Sequence[int] | None = None,
    ) -> None:
        defaults = dict(
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            power=power,
            precondition_frequency=precondition_frequency,
            eps=eps,
            splits=splits,
        )
        super().__init__(params, defaults)

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            state, blocks = self.state[p], list(group["splits"] or p.shape[:1])
            if "step" not in state:
                state["step"], state["exp_avg"] = 0, torch.zeros_like(p)
                state["factors"] = {
                    f"{side}{i}": p.new_zeros(n, n)
                    for i, W in enumerate(p.split(blocks))
                    for side, n in zip(SIDES, W.shape, strict=True)
                }
                state["roots"] = {side: torch.empty_like(S) for side, S in state["factors"].items()}
            assert p.grad is not None
            state["step"] += 1
            state["exp_avg"].lerp_(p.grad, 1 - group["betas"][0])
            parts = (x.split(blocks) for x in (p, p.grad, state["exp_avg"]))
            for i, (W, G, M) in enumerate(zip(*parts, strict=True)):
                factors, roots = (
                    [state[key][f"{side}{i}"] for side in SIDES] for key in ("factors", "roots")
                )
                self._update(W, G, M, factors, roots, state["step"], group)

    def _update(
        self,
        W: Tensor,
        G: Tensor,
        M: Tensor,
        factors: list[Tensor],
        roots: list[Tensor],
        step: int,
        group: dict[str, Any],
    ) -> None:
        """One matrix of a parameter: W, G and M are (r, c), the factors (r, r) and (c, c)."""
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        for S, product in zip(factors, (G @ G.mT, G.mT @ G), strict=True):
            S.lerp_(product, 1 - beta2)
        every = group["precondition_frequency"]
        if step <= every or step % every == 0:
            for S, root in zip(factors, roots, strict=True):
                root.copy_(matrix_power(S / (1 - beta2**step), group["power"], group["eps"]))
        left, right = roots
        step_size = lr * lr_scale(W.size(0), W.size(1), "original") / (1 - beta1**step)
        W.mul_(1 - lr * group["weight_decay"])
        W.sub_(left @ M @ right, alpha=step_size)


@matrix_recipe
def shampoo(
    matrices: Roles,
    lr: Annotated[float, Log(0.01, 0.5)] = 0.05,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    power: float = -0.25,
    precondition_frequency: int = 10,
    eps: float = 1e-6,
) -> list[Group]:
    """Shampoo; the query, key and value matrices are separate, as in `muon`."""
    return matrix_groups(
        Shampoo,
        matrices,
        "qkv",
        lr=lr,
        betas=(beta1, beta2),
        weight_decay=weight_decay,
        power=power,
        precondition_frequency=precondition_frequency,
        eps=eps,
    )
