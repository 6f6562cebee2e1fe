"""AdamW (Loshchilov & Hutter 1711.05101): the baseline, and the rule of all but matrices.

    python speedrun.py adamw:lr=0.003

The rule is torch's own, in its fused form. `matrix_recipe` is the decorator for the recipes that
have another rule for the hidden matrices and AdamW on the rest.
"""

import inspect
from typing import Annotated, Any

from torch.optim import AdamW

from optim import Beta, Group, Log, Recipe, Roles, pick, recipe, with_signature

# Every recipe tunes the learning rates of the embedding, the head and the vectors: the best ones
# differ by a factor of a hundred, and matter as much as the learning rate of the matrices.
EmbedLR = Annotated[float, Log(0.1, 5.0)]
HeadLR = Annotated[float, Log(0.001, 0.15)]
VectorLR = Annotated[float, Log(0.001, 0.3)]
# Each recipe also tunes the momenta of its own rule. AdamW on the rest keeps those of track 3.
Beta1 = Annotated[float, Beta(0.2, 0.99)]  # of the gradient: also called momentum
Beta2 = Annotated[float, Beta(0.3, 0.999)]  # of its square, or of what a rule keeps like it


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
    """AdamW groups for everything but the hidden matrices, with the betas of track 3.

    A table that is both embedding and head has the role and the learning rate of the head.
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


def matrix_recipe(function: Recipe) -> Recipe:
    """Register a recipe for the hidden matrices, with AdamW on the rest.

    function: from the rows of the hidden matrices and its own options to their groups. The recipe
    has three more options, at the end: `embed_lr`, `head_lr` and `vector_lr`.
    """

    def whole(
        roles: Roles,
        *,
        embed_lr: EmbedLR = 0.3,
        head_lr: HeadLR = 0.01,
        vector_lr: VectorLR = 0.01,
        **settings: Any,
    ) -> list[Group]:
        matrices = function(pick(roles, "matrix"), **settings)
        return [*matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]

    own, rates = (inspect.signature(f).parameters.values() for f in (function, whole))
    parameters = [*own, *(p for p in rates if p.name.endswith("_lr"))]
    return recipe(with_signature(whole, function.__name__, parameters))


@recipe
def adamw(
    roles: Roles,
    lr: Annotated[float, Log(0.001, 0.05)] = 0.005,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    eps: float = 1e-10,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    aux_beta1: float = 0.8,
    aux_beta2: float = 0.95,
    aux_eps: float = 1e-10,
    aux_weight_decay: float = 0.0,
) -> list[Group]:
    """AdamW on every parameter; options without a prefix are for the hidden matrices."""
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
