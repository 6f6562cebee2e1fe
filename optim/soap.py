"""SOAP (Vyas et al. 2409.11321): Adam in the eigenbasis of Shampoo's factors; AdamW on the rest.

python speedrun.py soap:lr=0.003,precondition_frequency=10
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from optim import Group, Log, Roles, matrix_groups
from optim.adamw import Beta1, Beta2, matrix_recipe
from optim.shampoo import SIDES, Preconditioned, eigh


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
    wide = torch.promote_types(S.dtype, torch.float32)
    return torch.linalg.qr((S @ Q[:, order]).to(wide))[0].to(S.dtype), order


class SOAP(Preconditioned):
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
    State of a parameter: `step`, `exp_avg`, `exp_avg_sq` (rotated), and for the sides of each of
    its matrices `factors` (L, R) and `bases` (QL, QR), none for an identity.
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

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "step" in self.state[p]:
                self._update(p, group)
            else:
                self._begin(p, group)

    def _begin(self, p: Tensor, group: dict[str, Any]) -> None:
        """Make the state from the first gradient, which changes no weight."""
        state, limit = self.state[p], group["max_precond_dim"]
        state["step"] = 0
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["factors"] = {
            f"{side}{i}": p.new_zeros(n, n)
            for i, W in enumerate(p.split(self._heights(p, group)))
            for side, n in zip(SIDES, W.shape, strict=True)
            if n <= limit
        }
        self._accumulate(p, group)
        state["bases"] = {side: eigenbasis(S) for side, S in state["factors"].items()}

    def _update(self, p: Tensor, group: dict[str, Any]) -> None:
        assert p.grad is not None
        state, heights = self.state[p], self._heights(p, group)
        bases, lr, (beta1, beta2) = state["bases"], float(group["lr"]), group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(p.grad, 1 - beta1)
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        p.mul_(1 - lr * group["weight_decay"])
        tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
        parts = zip(*(x.split(heights) for x in tensors), strict=True)
        for i, (W, G, M, V) in enumerate(parts):
            own = [bases.get(f"{side}{i}") for side in SIDES]
            V.lerp_(rotate(G, own).square(), 1 - beta2)
            direction = rotate(M, own) / ((V / correction2).sqrt() + group["eps"])
            W.sub_(rotate(direction, own, back=True), alpha=lr / correction1)
        self._accumulate(p, group)
        if state["step"] % group["precondition_frequency"] == 0:
            for i, V in enumerate(state["exp_avg_sq"].split(heights)):
                for dim, side in enumerate(f"{side}{i}" for side in SIDES):
                    if side in bases:
                        bases[side], order = refresh(bases[side], state["factors"][side])
                        V.copy_(V.index_select(dim, order))  # V follows the order of the basis

    def _accumulate(self, p: Tensor, group: dict[str, Any]) -> None:
        """Average the gradient's products into L and R."""
        assert p.grad is not None
        factors, beta2 = self.state[p]["factors"], group["betas"][1]
        for i, G in enumerate(p.grad.split(self._heights(p, group))):
            for side, X in zip(SIDES, (G, G.mT), strict=True):
                if f"{side}{i}" in factors:
                    factors[f"{side}{i}"].lerp_(X @ X.mT, 1 - beta2)

    @staticmethod
    def _heights(p: Tensor, group: dict[str, Any]) -> list[int]:
        return list(group["splits"] or p.shape[:1])


@matrix_recipe
def soap(
    matrices: Roles,
    lr: Annotated[float, Log(0.001, 0.1)] = 0.005,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.1,
    beta1: Beta1 = 0.95,
    beta2: Beta2 = 0.95,
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
