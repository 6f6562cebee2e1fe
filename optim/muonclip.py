"""MuonClip (Kimi K2 2507.20534): Muon at AdamW's scale, and QK-Clip after each step.

    python speedrun.py muonclip:tau=20 muonclip:tau=1e9 --track tiny-mla    # the second never clips

The Muon is Moonlight's (Liu et al. 2502.16982): updates of AdamW's root mean square and weight
decay. The clip is the model's, `GPT.clip_qk`: the recipe only asks for it. It needs a model
without QK-norm, and its cost, a product of queries and keys, is on the clock.
"""

from typing import Any

from optim import Group, Option, Roles
from optim.muon import RMS_LR, RMS_WEIGHT_DECAY, muon, variant


def clipped(roles: Roles, tau: float, **settings: Any) -> list[Group]:
    """No attention logit of a step's batch grows beyond `tau` by more than a step's update."""
    groups = muon(roles, **settings)
    for group in groups:
        group.qk_clip = tau
    return groups


variant(
    "muonclip",
    clipped,
    added={"tau": Option(float, 100.0, None)},
    adjust_lr_fn="match_rms_adamw",
    lr=(0.013, RMS_LR),
    weight_decay=(0.1, RMS_WEIGHT_DECAY),
)
