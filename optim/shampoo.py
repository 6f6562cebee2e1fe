"""Shampoo (Gupta et al. 1802.09568) with averages in place of sums; AdamW on the rest.

    python speedrun.py shampoo:lr=0.1,precondition_frequency=5

Muon without momentum is a special case: with betas of 0, a power of -1/4 and new roots in every
step, L^(-1/4) G R^(-1/4) is the orthogonal factor of G. Here the roots come from eigenvalue
decompositions, which cost more than Newton-Schulz.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from muon import lr_scale
from optim import Group, Log, Roles, matrix_groups
from optim.adamw import matrix_recipe


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
    values, vectors = eigh(S)
    largest = values[-1]
    powers = torch.where(largest == 0, 0.0, values.clamp(min=eps * largest) ** power)
    return (vectors * powers) @ vectors.mT


class Shampoo(torch.optim.Optimizer):
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
    State of a parameter: `step`, `exp_avg`, and for each of its matrices `factors` (L, R) and
    `roots` (their powers).
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
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas={betas}: must be at least 0 and below 1")
        if precondition_frequency < 1:
            raise ValueError(f"precondition_frequency={precondition_frequency}: must be at least 1")
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

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state, blocks = self.state[p], list(group["splits"] or p.shape[:1])
                if not state:
                    state["step"], state["exp_avg"] = 0, torch.zeros_like(p)
                    state["factors"] = [
                        [p.new_zeros(n, n) for n in W.shape] for W in p.split(blocks)
                    ]
                    state["roots"] = [[torch.empty_like(S) for S in LR] for LR in state["factors"]]
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 1 - group["betas"][0])
                parts = (x.split(blocks) for x in (p, p.grad, state["exp_avg"]))
                for W, G, M, factors, roots in zip(
                    *parts, state["factors"], state["roots"], strict=True
                ):
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
        beta1, beta2 = group["betas"]
        for S, product in zip(factors, (G @ G.mT, G.mT @ G), strict=True):
            S.lerp_(product, 1 - beta2)
        every = group["precondition_frequency"]
        if step <= every or step % every == 0:
            for S, root in zip(factors, roots, strict=True):
                root.copy_(matrix_power(S / (1 - beta2**step), group["power"], group["eps"]))
        left, right = roots
        step_size = group["lr"] * lr_scale(W.size(0), W.size(1), "original") / (1 - beta1**step)
        W.mul_(1 - group["lr"] * group["weight_decay"])
        W.sub_(left @ M @ right, alpha=step_size)


@matrix_recipe
def shampoo(
    matrices: Roles,
    lr: Annotated[float, Log(0.01, 0.5)] = 0.05,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
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
