"""SOAP (Vyas et al. 2409.11321): Adam in the eigenbasis of Shampoo's factors; AdamW on the rest.

python speedrun.py soap:lr=0.003,precondition_frequency=10
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from optim import Group, Log, Roles, matrix_groups
from optim.adamw import matrix_recipe
from optim.shampoo import eigh


def rotate(X: Tensor, bases: Sequence[Tensor | None], back: bool = False) -> Tensor:
    """QL^T X QR of X (m n), or QL X QR^T if `back`; a basis of None is the identity."""
    left, right = bases
    if left is not None:
        X = (left if back else left.mT) @ X
    if right is not None:
        X = X @ (right.mT if back else right)
    return X


def eigenbasis(S: Tensor) -> Tensor:
    """Eigenvectors of a symmetric S (m m) as columns, the largest eigenvalue first."""
    return eigh(S)[1].flip(-1)


def refresh(Q: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One step of power iteration from Q towards the eigenbasis of S; the new basis and the order.

    The columns of Q are first sorted by the eigenvalues of S that they estimate, the largest first;
    the order (m) is returned so that entries in this basis can follow.
    """
    order = torch.linalg.vecdot(Q, S @ Q, dim=0).argsort(descending=True)
    return torch.linalg.qr(S @ Q[:, order])[0], order


class SOAP(torch.optim.Optimizer):
    """SOAP, algorithm 3 of the paper, for 2-D parameters.

        M <- beta1 M + (1 - beta1) G
        V <- beta2 V + (1 - beta2) (QL^T G QR)^2                (both corrected as in Adam)
        W <- (1 - lr weight_decay) W - lr QL (QL^T M QR / (sqrt(V) + eps)) QR^T
        L <- beta2 L + (1 - beta2) G G^T,  R <- beta2 R + (1 - beta2) G^T G

    A parameter's first gradient only sets L, R and their bases QL, QR. If both bases are the
    identity, the rule is AdamW from the second gradient on.

    precondition_frequency: steps between refreshed bases.
    max_precond_dim: a longer side has the identity as its basis.
    splits: row counts of the matrices stacked in each parameter, each rotated on its own.
    State of a parameter: `step`, `exp_avg`, `exp_avg_sq` (rotated), and for each of its matrices
    `factors` (L, R) and `bases` (QL, QR).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 3e-3,
        betas: tuple[float, float] = (0.95, 0.95),
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        precondition_frequency: int = 10,
        max_precond_dim: int = 10_000,
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
            eps=eps,
            precondition_frequency=precondition_frequency,
            max_precond_dim=max_precond_dim,
            splits=splits,
        )
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if p in self.state:
                    self._update(p, group)
                else:
                    self._begin(p, group)

    def _begin(self, p: Tensor, group: dict[str, Any]) -> None:
        """Make the state from the first gradient, which changes no weight."""
        state, limit = self.state[p], group["max_precond_dim"]
        state["step"] = 0
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["factors"] = [
            [p.new_zeros(n, n) if n <= limit else None for n in W.shape]
            for W in p.split(self._heights(p, group))
        ]
        self._accumulate(p, group)
        state["bases"] = [
            [None if S is None else eigenbasis(S) for S in factors] for factors in state["factors"]
        ]

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, (beta1, beta2) = self.state[p], group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
        parts = (x.split(self._heights(p, group)) for x in tensors)
        for (W, G, M, V), bases in zip(zip(*parts, strict=True), state["bases"], strict=True):
            V.lerp_(rotate(G, bases).square(), 1 - beta2)
            direction = rotate(M, bases) / ((V / correction2).sqrt() + group["eps"])
            W.sub_(rotate(direction, bases, back=True), alpha=group["lr"] / correction1)
        self._accumulate(p, group)
        if state["step"] % group["precondition_frequency"] == 0:
            heights = self._heights(p, group)
            for V, factors, bases in zip(
                state["exp_avg_sq"].split(heights), state["factors"], state["bases"], strict=True
            ):
                for side, S in enumerate(factors):
                    if S is not None:
                        bases[side], order = refresh(bases[side], S)
                        V.copy_(V.index_select(side, order))  # V follows the order of the basis

    def _accumulate(self, p: Tensor, group: dict[str, Any]) -> None:
        """Average the gradient's products into L and R."""
        assert p.grad is not None
        beta2 = group["betas"][1]
        for G, factors in zip(
            p.grad.split(self._heights(p, group)), self.state[p]["factors"], strict=True
        ):
            for S, X in zip(factors, (G, G.mT), strict=True):
                if S is not None:
                    S.lerp_(X @ X.mT, 1 - beta2)

    @staticmethod
    def _heights(p: Tensor, group: dict[str, Any]) -> list[int]:
        return list(group["splits"] or p.shape[:1])


@matrix_recipe
def soap(
    matrices: Roles,
    lr: Annotated[float, Log(0.001, 0.05)] = 0.005,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.1,
    beta1: float = 0.95,
    beta2: float = 0.95,
    eps: float = 1e-8,
    precondition_frequency: int = 10,
    max_precond_dim: int = 10_000,
) -> list[Group]:
    """SOAP; the query, key and value matrices are separate, as in `muon`."""
    return matrix_groups(
        SOAP,
        matrices,
        "qkv",
        lr=lr,
        betas=(beta1, beta2),
        weight_decay=weight_decay,
        eps=eps,
        precondition_frequency=precondition_frequency,
        max_precond_dim=max_precond_dim,
    )
