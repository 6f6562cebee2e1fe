"""AdamW (Loshchilov & Hutter 1711.05101): the baseline, and the rule of whatever is no matrix.

    python speedrun.py adamw:lr=0.003

The rule is torch's own, in its fused form, the fastest there is.
"""

from typing import Annotated

from torch.optim import AdamW

from optim import Group, Log, Roles, pick, recipe

# The embedding, the head and the vectors are tuned on their own, in every recipe alike: their
# best learning rates lie a hundredfold apart and matter as much as that of the matrices.
EmbedLR = Annotated[float, Log(0.1, 5.0)]
HeadLR = Annotated[float, Log(0.003, 0.15)]
VectorLR = Annotated[float, Log(0.001, 0.05)]


def auxiliary(
    roles: Roles,
    embed_lr: float,
    head_lr: float,
    vector_lr: float,
    beta1: float = 0.8,
    beta2: float = 0.95,
    eps: float = 1e-10,
    weight_decay: float = 0.0,
) -> list[Group]:
    """AdamW groups for everything but the hidden matrices; the betas are those of track 3.

    A table that is both embedding and head is trained as the head.
    """
    return [
        Group(
            AdamW,
            pick(roles, role),
            lr=lr,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
        )
        for role, lr in (("embed", embed_lr), ("head", head_lr), ("vector", vector_lr))
    ]


@recipe
def adamw(
    roles: Roles,
    lr: Annotated[float, Log(0.001, 0.05)] = 0.005,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-10,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    aux_beta1: float = 0.8,
    aux_beta2: float = 0.95,
    aux_eps: float = 1e-10,
    aux_weight_decay: float = 0.0,
) -> list[Group]:
    """AdamW on every parameter: what has no prefix is the hidden matrices'."""
    matrices = Group(
        AdamW,
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )
    rest = (embed_lr, head_lr, vector_lr, aux_beta1, aux_beta2, aux_eps, aux_weight_decay)
    return [matrices, *auxiliary(roles, *rest)]
