"""Signum: the sign of the momentum (Bernstein et al. 1802.04434), AdamW on the rest."""

from typing import Annotated

import torch

from optim import Group, Log, Roles
from optim.adamw import Beta1, matrix_recipe
from optim.rule import Rule


class Signum(Rule):
    elementwise = True  # it may be given any part of a parameter

    def __init__(self, params, lr=0.001, momentum=0.9, weight_decay=0.0):  # type: ignore
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    def update(self, params, group):  # type: ignore
        lr = float(group["lr"])
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffer = self.state[p]["momentum_buffer"]
            buffer.lerp_(p.grad, 1 - group["momentum"])
            p.mul_(1 - lr * group["weight_decay"])
            p.sub_(buffer.sign(), alpha=lr)


@matrix_recipe
def signum(
    matrices: Roles,
    lr: Annotated[float, Log(1e-4, 1e-2)] = 0.001,
    weight_decay: Annotated[float, Log(0.01, 3.0)] = 0.1,
    momentum: Beta1 = 0.9,
) -> list[Group]:
    return [Group(Signum, matrices, lr=lr, momentum=momentum, weight_decay=weight_decay)]
