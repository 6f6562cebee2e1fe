"""Recipes with rules from libraries: torch.optim, pytorch_optimizer and heavyball.

    python speedrun.py adamw sgd adafactor --seeds 5
    python -m pip install -r requirements-optimizers.txt    # for rules that are not torch's
    python speedrun.py adamw lamb kron schedule-free

Each rule has the hidden matrices, and AdamW the rest. Schedule-free has all parameters, because it
has no cooldown that AdamW could share. Where a library's default differs from the paper, the recipe
follows the paper. The library sees each parameter as one matrix: query, key and value together.
"""

import math
from typing import Annotated

from torch.optim import SGD, Adafactor, Adam, NAdam

from optim import Group, Linear, Log, Roles, pick, recipe
from optim.adamw import Beta1, Beta2, EmbedLR, HeadLR, VectorLR, matrix_recipe
from optim.library import rule

Decay = Annotated[float, Log(0.01, 3.0)]  # decoupled, multiplied by lr
L2 = Annotated[float, Log(1e-6, 1e-2)]  # added to the gradient, whose size it must match
AdamLR = Annotated[float, Log(0.001, 0.05)]


@matrix_recipe
def sgd(
    matrices: Roles,
    lr: Annotated[float, Log(0.1, 30.0)] = 1.0,
    weight_decay: L2 = 1e-4,
    momentum: Beta1 = 0.9,
    nesterov: bool = True,
) -> list[Group]:
    """Gradient descent with momentum, which is a sum of gradients and not an average."""
    group = Group(
        SGD,
        matrices,
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        fused=True,
    )
    return [group]


@matrix_recipe
def adam(
    matrices: Roles,
    lr: AdamLR = 0.005,
    weight_decay: L2 = 1e-5,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    eps: float = 1e-10,
) -> list[Group]:
    """Adam (Kingma & Ba 1412.6980); its weight decay is an L2 penalty in the gradient."""
    group = Group(
        Adam,
        matrices,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        fused=True,
    )
    return [group]


@matrix_recipe
def nadamw(
    matrices: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    eps: float = 1e-10,
    momentum_decay: float = 4e-3,
) -> list[Group]:
    """AdamW with Nesterov's momentum (Dozat 2016)."""
    group = Group(
        NAdam,
        matrices,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        decoupled_weight_decay=True,
    )
    return [group]


@matrix_recipe
def adafactor(
    matrices: Roles,
    lr: Annotated[float, Log(0.005, 0.5)] = 0.05,
    weight_decay: Decay = 0.1,
    beta2_decay: Annotated[float, Linear(-1.0, -0.4)] = -0.8,
    eps: float = 1e-3,
    d: float = 1.0,
) -> list[Group]:
    """Adafactor (Shazeer & Stern 1804.04235): second moments of rows and columns alone.

    The update is relative to the weights' root mean square, or to `eps` if that is larger. The
    learning rate of step t is at most 1 / sqrt(t). `d` bounds the update's root mean square. In
    torch, weight decay is multiplied by `lr` itself, not by the bounded learning rate.
    """
    group = Group(
        Adafactor,
        matrices,
        lr=lr,
        beta2_decay=beta2_decay,
        eps=(None, eps),
        d=d,
        weight_decay=weight_decay,
    )
    return [group]


@matrix_recipe
def lamb(
    matrices: Roles,
    lr: Annotated[float, Log(0.002, 0.2)] = 0.02,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    eps: float = 1e-6,
) -> list[Group]:
    """LAMB (You et al. 1904.00962), version 3: Adam's direction, scaled to the weights' norm.

    Version 3 has no bias correction: the scaling makes up for it, except in the first steps' decay.
    """
    found = rule("pytorch_optimizer.Lamb")
    group = Group(
        # The library cuts norms off at 10, and the norms of `tiny` are larger at the start.
        type("Lamb", (found,), {"clamp": math.inf}),
        matrices,
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        weight_decay=weight_decay,
        weight_decouple=False,  # decay is a part of the update that is scaled
        adam_debias=True,  # else the library uses lr / (1 - beta1^t): ten times lr at first
    )
    return [group]


@matrix_recipe
def ademamix(
    matrices: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    beta3: float = 0.999,
    alpha: float = 5.0,
    eps: float = 1e-10,
) -> list[Group]:
    """AdEMAMix (Pagliardini et al. 2409.03137): AdamW with a second, slow momentum.

    Without the paper's schedules of alpha and beta3. Its beta3 of 0.9999 is for longer runs.
    """
    group = Group(
        rule("pytorch_optimizer.AdEMAMix"),
        matrices,
        lr=lr,
        betas=(beta1, beta2, beta3),
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        weight_decouple=True,
    )
    return [group]


@matrix_recipe
def mars(
    matrices: Roles,
    lr: AdamLR = 0.005,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.95,
    beta2: Beta2 = 0.99,
    gamma: float = 0.025,
    eps: float = 1e-8,
) -> list[Group]:
    """MARS-AdamW (Yuan et al. 2411.10438): AdamW on gradients with less variance.

    The approximate form: gradients are corrected with the gradient of the last step's batch.
    """
    group = Group(
        rule("pytorch_optimizer.MARS"),
        matrices,
        lr=lr,
        betas=(beta1, beta2),
        gamma=gamma,
        eps=eps,
        weight_decay=weight_decay,
    )
    return [group]


@recipe
def schedule_free(
    roles: Roles,
    lr: AdamLR = 0.01,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.95,
    eps: float = 1e-8,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    cooldown: float = 0.0,
) -> list[Group]:
    """Schedule-free AdamW (Defazio et al. 2405.15682), on every parameter.

    Gradients are taken at a point between the iterate and the average of all iterates, `beta1` of
    the way to the average. Validation uses the average. The average replaces the schedule's
    cooldown, which is therefore 0 for all parameters.
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


@matrix_recipe
def kron(
    matrices: Roles,
    lr: Annotated[float, Log(0.001, 0.1)] = 0.01,
    weight_decay: Decay = 0.1,
    beta1: Beta1 = 0.9,
    precond_lr: float = 0.5,
    precond_init_scale: float = 50.0,
) -> list[Group]:
    """PSGD with Kronecker factors (Li 1512.04202): momentum whitened by triangular factors.

    The factors are refreshed in each of the first 1000 steps, and then less and less often. They
    start at `precond_init_scale` times the identity, which whitens gradients whose root mean square
    is 1 / scale^2. The library would guess the scale from the first gradient; it is zero for a
    matrix before a zero-initialised projection. From a scale of 1, or with the library's
    `precond_lr` of 0.1 and a wrong scale, the factors take hundreds of steps to grow.
    """
    group = Group(
        rule("heavyball.PSGDKron"),
        matrices,
        lr=lr,
        betas=(beta1, 0.999),  # the rule does not use the second
        precond_lr=precond_lr,
        precond_init_scale=precond_init_scale,
        weight_decay=weight_decay,
        update_clipping=None,  # the library would reduce entries of 1 to 0.86, unlike the papers
    )
    return [group]
