"""Muon on the hidden matrices, AdamW on the rest (Jordan et al. 2024).

python speedrun.py muon:lr=0.02,momentum=0.9
"""

from typing import Annotated

import optim.kernels  # noqa: F401  adds its backends
from muon import Muon
from optim import Group, Log, Roles, pick, recipe
from optim.adamw import EmbedLR, HeadLR, VectorLR, auxiliary


@recipe
def muon(
    roles: Roles,
    lr: Annotated[float, Log(0.005, 0.25)] = 0.03,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.05,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: str = "jordan",
    ns_steps: int = 5,
    adjust_lr_fn: str = "original",
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    aux_beta1: float = 0.8,
    aux_beta2: float = 0.95,
    aux_eps: float = 1e-10,
    aux_weight_decay: float = 0.0,
) -> list[Group]:
    """Muon with query, key and value matrices orthogonalised apart, as it was published."""
    matrices = pick(roles, "matrix")
    groups = [
        Group(
            Muon,
            [row for row in matrices if row.splits == splits],
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            splits=splits,
        )
        for splits in dict.fromkeys(row.splits for row in matrices)
    ]
    rest = (embed_lr, head_lr, vector_lr, aux_beta1, aux_beta2, aux_eps, aux_weight_decay)
    return [*groups, *auxiliary(roles, *rest)]
