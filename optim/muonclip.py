"""MuonClip (Kimi K2 2507.20534): Muon at AdamW's scale, and QK-Clip after each step.

    python speedrun.py muon muonclip:tau=20 --track tiny-mla --log-logits

The Muon is Moonlight's (Liu et al. 2502.16982): updates of AdamW's root mean square and weight
decay. The clip is the model's, `GPT.clip_qk`: the recipe only asks for it. It needs a model
without QK-norm, and its cost, a product of queries and keys, is on the clock.
"""

from typing import Annotated

from optim import Group, Log, Roles, recipe
from optim.adamw import EmbedLR, HeadLR, VectorLR
from optim.muon import muon


@recipe
def muonclip(
    roles: Roles,
    lr: Annotated[float, Log(0.002, 0.1)] = 0.013,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.1,
    tau: float = 100.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: str = "jordan",
    ns_steps: int = 5,
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
    aux_beta1: float = 0.8,
    aux_beta2: float = 0.95,
    aux_eps: float = 1e-10,
    aux_weight_decay: float = 0.0,
) -> list[Group]:
    """No attention logit of a step's batch grows beyond `tau` by more than a step's update."""
    groups = muon(
        roles,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_coefficients=ns_coefficients,
        ns_steps=ns_steps,
        adjust_lr_fn="match_rms_adamw",
        embed_lr=embed_lr,
        head_lr=head_lr,
        vector_lr=vector_lr,
        aux_beta1=aux_beta1,
        aux_beta2=aux_beta2,
        aux_eps=aux_eps,
        aux_weight_decay=aux_weight_decay,
    )
    for group in groups:
        group.qk_clip = tau
    return groups
