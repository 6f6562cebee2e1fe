"""Lion (Chen et al. 2302.06675): the sign of an interpolated momentum; AdamW on the rest.

    python speedrun.py lion:lr=0.0003,weight_decay=1

Every entry of an update has the size lr, so lr is 3 to 10 times smaller than AdamW's and the weight
decay as many times larger. Lion keeps half of AdamW's state.
"""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from torch import Tensor

from optim import Group, Log, Roles
from optim.adamw import Beta1, Beta2, matrix_recipe
from optim.rule import Rule


class Lion(Rule):
    """Lion, algorithm 2 of the paper.

        W <- (1 - lr weight_decay) W - lr sign(beta1 M + (1 - beta1) G)
        M <- beta2 M + (1 - beta2) G

    State: one `exp_avg` (M) a parameter.
    """

    elementwise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, dict(lr=lr, betas=betas, weight_decay=weight_decay))

    def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        for p in params:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
        momenta = [self.state[p]["exp_avg"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]
        lr, (beta1, beta2) = float(group["lr"]), group["betas"]
        updates = torch._foreach_lerp(momenta, grads, 1 - beta1)
        torch._foreach_sign_(updates)
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_add_(params, updates, alpha=-lr)
        torch._foreach_lerp_(momenta, grads, 1 - beta2)


@matrix_recipe
def lion(
    matrices: Roles,
    lr: Annotated[float, Log(1e-4, 1e-2)] = 0.001,
    weight_decay: Annotated[float, Log(0.03, 3.0)] = 0.3,
    beta1: Beta1 = 0.9,
    beta2: Beta2 = 0.99,
) -> list[Group]:
    """Lion on the hidden matrices."""
    return [Group(Lion, matrices, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay)]
