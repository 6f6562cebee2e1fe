"""Rules that well-kept libraries have: torch.optim, pytorch_optimizer and heavyball.

    python speedrun.py adamw sgd adafactor --seeds 5
    python -m pip install -r requirements-optimizers.txt    # for those that are not torch's
    python speedrun.py adamw lamb kron schedule-free

Each is on the hidden matrices, with AdamW on the rest, but for schedule-free, which has no cooldown
that the rest could share. Where a library departs from a paper by default, the paper is followed. A
matrix goes to the library as the model stores it: query, key and value in one.
"""

import math
from typing import Annotated

from torch.optim import SGD, Adafactor, Adam, NAdam

from optim import Group, Linear, Log, Roles, pick, recipe
from optim.adamw import EmbedLR, HeadLR, VectorLR, auxiliary
from optim.library import rule

Decay = Annotated[float, Log(0.01, 1.0)]  # decoupled, multiplied by lr
L2 = Annotated[float, Log(1e-6, 1e-2)]  # added to the gradient, whose size it must match
AdamLR = Annotated[float, Log(0.001, 0.05)]


@recipe
def sgd(
    roles: Roles,
    lr: Annotated[float, Log(0.1, 10.0)] = 1.0,
    weight_decay: L2 = 1e-4,
    momentum: float = 0.9,
    nesterov: bool = True,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """Gradient descent with momentum, a sum and no average."""
    matrices = Group(
        SGD,
        pick(roles, "matrix"),
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=True,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def adam(
    roles: Roles,
    lr: AdamLR = 0.005,
    weight_decay: L2 = 1e-5,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-10,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """Adam (Kingma & Ba 1412.6980); its weight decay is an L2 penalty in the gradient."""
    matrices = Group(
        Adam,
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def nadamw(
    roles: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-10,
    momentum_decay: float = 4e-3,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """AdamW with Nesterov's momentum (Dozat 2016)."""
    matrices = Group(
        NAdam,
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        decoupled_weight_decay=True,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def adafactor(
    roles: Roles,
    lr: Annotated[float, Log(0.005, 0.5)] = 0.05,
    weight_decay: Decay = 0.1,
    beta2_decay: float = -0.8,
    eps: float = 1e-3,
    d: float = 1.0,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """Adafactor (Shazeer & Stern 1804.04235): second moments of rows and columns alone.

    Steps are relative to the weights' root mean square, which counts as `eps` at least; in step t
    the learning rate is at most 1 / sqrt(t); `d` bounds the update's root mean square. torch takes
    the weight decay by the learning rate that was asked for, capped or not.
    """
    matrices = Group(
        Adafactor,
        pick(roles, "matrix"),
        lr=lr,
        beta2_decay=beta2_decay,
        eps=(None, eps),
        d=d,
        weight_decay=weight_decay,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def lamb(
    roles: Roles,
    lr: Annotated[float, Log(0.002, 0.2)] = 0.02,
    weight_decay: Decay = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-6,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """LAMB (You et al. 1904.00962), version 3: Adam's direction, scaled to the weights' norm.

    That version corrects no bias: the scale takes care of all but the decay of the first steps.
    """
    found = rule("pytorch_optimizer.Lamb")
    matrices = Group(
        # The library takes no norm for more than 10, which those of `tiny` are at the start.
        type("Lamb", (found,), {"clamp": math.inf}),
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        weight_decouple=False,  # decay is part of the update that is scaled
        adam_debias=True,  # else lr / (1 - beta1^t), ten times lr at first, in no version
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def ademamix(
    roles: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.95,
    beta3: float = 0.999,
    alpha: float = 5.0,
    eps: float = 1e-10,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """AdEMAMix (Pagliardini et al. 2409.03137): AdamW with a slow momentum beside the fast.

    Without the schedules of alpha and beta3. The paper's beta3 of 0.9999 is for longer runs.
    """
    matrices = Group(
        rule("pytorch_optimizer.AdEMAMix"),
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2, beta3),
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        weight_decouple=True,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def mars(
    roles: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: float = 0.95,
    beta2: float = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """MARS-AdamW (Yuan et al. 2411.10438): AdamW on gradients of less variance.

    The form that is called approximate: the correction is by the last batch's own gradient.
    """
    matrices = Group(
        rule("pytorch_optimizer.MARS"),
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, beta2),
        gamma=gamma,
        eps=eps,
        weight_decay=weight_decay,
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]


@recipe
def schedule_free(
    roles: Roles,
    lr: AdamLR = 0.01,
    weight_decay: Decay = 0.1,
    beta1: Annotated[float, Linear(0.8, 0.98)] = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    cooldown: float = 0.0,
) -> list[Group]:
    """Schedule-free AdamW (Defazio et al. 2405.15682), on every parameter.

    Gradients are taken at a point between the iterate and the average of all iterates, `beta1` of
    the way to the average; the average is what is validated. It stands for the schedule's
    cooldown, which is therefore 0, for the embedding, head and vectors too.
    """
    found = rule("pytorch_optimizer.ScheduleFreeAdamW")
    rates = {"matrix": lr, "embed": embed_lr, "head": head_lr, "vector": vector_lr}
    return [
        Group(
            found,
            pick(roles, role),
            lr=rate,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay if role == "matrix" else 0.0,
        )
        for role, rate in rates.items()
    ]


@recipe
def kron(
    roles: Roles,
    lr: Annotated[float, Log(0.001, 0.1)] = 0.01,
    weight_decay: Decay = 0.1,
    beta1: float = 0.9,
    precond_lr: float = 0.5,
    precond_init_scale: float = 50.0,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> list[Group]:
    """PSGD with Kronecker factors (Li 1512.04202), the momentum whitened by triangular factors.

    The factors are refreshed in every one of the first 1000 steps, less and less often after. They
    start from `precond_init_scale` times the identity, which whitens gradients of a root mean
    square of 1 / scale^2. The library's guess needs a first gradient that is not zero, and those of
    matrices before a zero-initialised projection are; a scale of 1 takes hundreds of steps to grow.
    So does the library's `precond_lr` of 0.1 where the scale is wrong.
    """
    matrices = Group(
        rule("heavyball.PSGDKron"),
        pick(roles, "matrix"),
        lr=lr,
        betas=(beta1, 0.999),  # the second is not used
        precond_lr=precond_lr,
        precond_init_scale=precond_init_scale,
        weight_decay=weight_decay,
        update_clipping=None,  # the library bends entries of 1 to 0.86, as no paper does
    )
    return [matrices, *auxiliary(roles, embed_lr, head_lr, vector_lr)]
