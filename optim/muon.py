"""Muon on the hidden matrices (Jordan et al. 2024) and its family, AdamW on the rest.

    python speedrun.py muon:lr=0.02,momentum=0.9
    python speedrun.py muon normuon normuon:ns_coefficients=polar-express,cautious=true

A variant is Muon with other defaults. It has all of Muon's options, so variants can be combined.
`moonlight` has its own options, as one learning rate and weight decay serve all parameters.
"""

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from muon import Muon
from optim import Group, Log, Option, Recipe, Roles, matrix_groups, recipe, with_signature
from optim.adamw import Beta1, Beta2, EmbedLR, HeadLR, VectorLR, auxiliary

# Ranges for updates with a root mean square of 0.2. Such updates are two to five times as large as
# Muon's at the width of the track `tiny`, so lr is lower, and weight decay, which lr multiplies,
# higher.
RMS_LR = Log(0.002, 0.1)
RMS_WEIGHT_DECAY = Log(0.02, 6.0)


@recipe
def muon(
    roles: Roles,
    lr: Annotated[float, Log(0.005, 0.25)] = 0.03,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.05,
    momentum: Beta1 = 0.95,
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
    blocks: str = "qkv",
    momentum_start: float = 0.85,
    momentum_warmup: int = 0,
    momentum_cooldown: int = 0,
    momentum_horizon: int = 0,
    sign: bool = False,
    second_moment: str = "none",
    beta2: float = 0.95,
    cautious: bool = False,
) -> list[Group]:
    """Muon with query, key and value matrices orthogonalised apart, as it was published."""
    matrices = matrix_groups(
        Muon,
        roles,
        blocks,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_coefficients=ns_coefficients,
        ns_steps=ns_steps,
        adjust_lr_fn=adjust_lr_fn,
        momentum_start=momentum_start,
        momentum_warmup=momentum_warmup,
        momentum_cooldown=momentum_cooldown,
        momentum_horizon=momentum_horizon,
        sign=sign,
        second_moment=second_moment,
        beta2=beta2,
        cautious=cautious,
    )
    rest = (embed_lr, head_lr, vector_lr, aux_beta1, aux_beta2, aux_eps, aux_weight_decay)
    return [*matrices, *auxiliary(roles, *rest)]


def variant(
    name: str,
    base: Recipe = muon,
    added: Mapping[str, Option] | None = None,
    **changes: Any,
) -> None:
    """Register Muon under another name, with other defaults.

    base: makes the groups, from Muon's options and the `added` ones.
    added: further options, which the tuner does not search.
    changes: for an option, a new default, or a new default and a new range (None: no range).
    """
    parameters = dict(inspect.signature(muon).parameters)
    for key, change in changes.items():
        hint = parameters[key].annotation
        if isinstance(change, tuple):
            changes[key], bounds = change
            hint = get_args(hint)[0] if get_args(hint) else hint  # without its range
            hint = hint if bounds is None else Annotated[hint, bounds]
        parameters[key] = parameters[key].replace(default=changes[key], annotation=hint)

    for key, option in (added or {}).items():
        changes[key] = option.default
        parameters[key] = inspect.Parameter(
            key,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=option.default,
            annotation=option.type,
        )

    def made(roles: Roles, **settings: Any) -> list[Group]:
        return base(roles, **(changes | settings))

    recipe(with_signature(made, name, parameters.values()))


SECOND = 0.95, get_args(Beta2)[1]  # of those with a second moment: also tuned

# Amsel et al. 2505.16932, with the five-step table of modded-nanogpt and nanochat.
variant("polar-express", ns_coefficients="polar-express")
# DeepSeek-V4: ten steps, of which the last two converge. Its scale is 0.18 where ours is 0.2.
variant(
    "deepseek-v4",
    ns_coefficients="deepseek-v4",
    ns_steps=10,
    adjust_lr_fn="match_rms_adamw",
    lr=(0.01, RMS_LR),
    weight_decay=(0.1, RMS_WEIGHT_DECAY),
)
# Li et al. 2510.05491, scaled as in their code: each row over its running root mean square.
variant("normuon", second_moment="row", beta2=SECOND)
# Si et al. 2507.11005, second version, in which one beta serves both moments. The papers on AdaMuon
# and Muon^2 use momentum without Nesterov (nesterov=false).
variant(
    "adamuon",
    sign=True,
    second_moment="entry",
    beta2=SECOND,
    adjust_lr_fn="exact_rms",
    lr=(0.01, RMS_LR),
    weight_decay=(0.1, RMS_WEIGHT_DECAY),
)
# Liu et al. 2604.09967: Adam's division before the iteration.
variant("muon2", second_moment="gradient", beta2=SECOND)
# Wen et al. 2606.16899: no weight decay, as each matrix keeps its norm.
variant("muonh", adjust_lr_fn="hyperball", lr=(0.018, Log(0.01, 1.0)), weight_decay=(0.0, None))
# GLM-5, 2602.15763: each head of query, key and value is a matrix.
variant("muon-split", blocks="heads")


@recipe
def moonlight(
    roles: Roles,
    lr: Annotated[float, RMS_LR] = 0.01,
    weight_decay: Annotated[float, RMS_WEIGHT_DECAY] = 0.1,
    momentum: Beta1 = 0.95,
    nesterov: bool = True,
    ns_coefficients: str = "jordan",
    ns_steps: int = 5,
    beta1: float = 0.9,
    beta2: float = 0.95,
    eps: float = 1e-8,
) -> list[Group]:
    """Muon as in Moonlight (Liu et al. 2502.16982): one lr and weight decay for all parameters.

    So it has fewer options to tune than other recipes. `muon:adjust_lr_fn=match_rms_adamw` has the
    same scale with a learning rate for each role.
    """
    return muon(
        roles,
        lr=lr,
        weight_decay=weight_decay,
        momentum=momentum,
        nesterov=nesterov,
        ns_coefficients=ns_coefficients,
        ns_steps=ns_steps,
        adjust_lr_fn="match_rms_adamw",
        embed_lr=lr,
        head_lr=lr,
        vector_lr=lr,
        aux_beta1=beta1,
        aux_beta2=beta2,
        aux_eps=eps,
        aux_weight_decay=weight_decay,
    )
