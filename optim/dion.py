"""Dion (Ahn et al. 2504.05295): momentum orthogonalised in a low-rank subspace; AdamW on the rest.

    python speedrun.py dion:rank_fraction=0.5

Matrices of one shape are one batch. This is the algorithm of one process. The paper's distributed
form, in which processes exchange only the factors P and R, is not here.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from optim import Group, Log, Roles, matrix_groups
from optim.adamw import Beta1, matrix_recipe
from optim.rule import Changed, Rule


class Views(NamedTuple):
    """A matrix of a parameter: views of its weights and of its state."""

    W: Tensor  # (m n)
    M: Tensor  # (m n)
    Q: Tensor  # (n k)


class Dion(Rule):
    """Dion for 2-D parameters.

        B <- M + G,  P <- orthonormal columns of B Q (by QR),  R <- B^T P
        M <- B - (1 - momentum) P R^T                the part outside the subspace of P stays
        Q <- R with columns of length 1
        W <- (1 - lr weight_decay) W - lr sqrt(rows / columns) P Q^T

    State: `momentum_buffer` M, and `right_basis`, the Q (n k) of the stacked matrices side by side.
    Each Q starts as the same random matrix. If a column of R is zero, as at first for matrices
    before a layer of zeros, it changes neither W nor its column of Q.

    splits: row counts of the matrices stacked in each parameter. None: one matrix.
    rank_fraction: k over the smaller side of the matrix, rounded; above 0 and at most 1.
    """

    matrices = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        rank_fraction: float = 0.25,
        splits: Sequence[int] | None = None,
    ) -> None:
        defaults = dict(lr=lr, weight_decay=weight_decay, momentum=momentum)
        super().__init__(params, defaults | dict(rank_fraction=rank_fraction, splits=splits))

    def check(self, group: dict[str, Any]) -> None:
        super().check(group)
        fraction = group["rank_fraction"]
        if (
            isinstance(fraction, bool)
            or not isinstance(fraction, int | float)
            or not 0 < fraction <= 1
        ):
            raise ValueError(f"rank_fraction={fraction!r}: must be above 0 and at most 1")

    def update_all(self, changed: Changed) -> None:
        batches: defaultdict[tuple[Any, ...], list[Views]] = defaultdict(list)
        for params, group in changed:
            lr = float(group["lr"])
            for p in params:
                for block in self._blocks(p, group):
                    kind = (p.device, p.dtype, block.W.shape, block.Q.shape)
                    batches[(*kind, lr, group["momentum"])].append(block)
                self.state[p]["momentum_buffer"].add_(p.grad)
                p.mul_(1 - lr * group["weight_decay"])
        for (_, dtype, (rows, cols), _, lr, momentum), batch in batches.items():
            weights, momenta, bases = zip(*batch, strict=True)
            wide = torch.promote_types(dtype, torch.float32)  # QR needs it
            M, old = torch.stack(momenta).to(wide), torch.stack(bases).to(wide)
            P = torch.linalg.qr(M @ old).Q  # (K m k)
            R = M.mT @ P  # (K n k)
            torch._foreach_copy_(momenta, M.baddbmm(P, R.mT, alpha=momentum - 1).unbind())
            norms = torch.linalg.vector_norm(R, dim=-2, keepdim=True)
            Q = torch.where(norms > 0, R / norms, 0)
            torch._foreach_copy_(bases, torch.where(norms > 0, Q, old).unbind())
            scale = (rows / cols) ** 0.5
            torch._foreach_add_(weights, (P @ Q.mT).to(dtype).unbind(), alpha=-lr * scale)

    def _blocks(self, p: Tensor, group: dict[str, Any]) -> list[Views]:
        """The matrices stacked in a parameter."""
        (_, n), splits = p.shape, list(group["splits"] or (p.size(0),))
        ranks = [max(1, round(group["rank_fraction"] * min(m, n))) for m in splits]
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
            seeded = torch.Generator().manual_seed
            bases = [torch.randn(n, rank, generator=seeded(0)) for rank in ranks]
            state["right_basis"] = torch.cat(bases, dim=1).to(p)
        M, Q = state["momentum_buffer"].split(splits), state["right_basis"].split(ranks, dim=1)
        return [Views(*views) for views in zip(p.split(splits), M, Q, strict=True)]


@matrix_recipe
def dion(
    matrices: Roles,
    lr: Annotated[float, Log(0.005, 0.25)] = 0.02,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.05,
    momentum: Beta1 = 0.95,
    rank_fraction: float = 0.25,
    blocks: str = "qkv",
) -> list[Group]:
    """Dion; the query, key and value matrices are separate, as in `muon`."""
    return matrix_groups(
        Dion,
        matrices,
        blocks,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        rank_fraction=rank_fraction,
    )
