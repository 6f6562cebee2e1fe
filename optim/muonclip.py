"""MuonClip (Kimi K2 2507.20534): Muon at AdamW's scale, and QK-Clip after each step.

    python speedrun.py muonclip:tau=20 muonclip:tau=1e9 --track tiny-mla    # the second never clips

The update is Moonlight's (Liu et al. 2502.16982): its root mean square is AdamW's. The recipe only
asks for the clip; `GPT.clip_qk` does it. It needs a model without QK-norm. It costs a product of
queries and keys in each step, which is on the clock.
"""

from typing import Any

from optim import Group, Option, Roles
from optim.muon import RMS_LR, RMS_WEIGHT_DECAY, muon, variant


def clipped(roles: Roles, tau: float, **settings: Any) -> list[Group]:
    """Muon whose attention logits exceed `tau` by no more than one step adds."""
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
