"""Signum: the sign of the momentum (Bernstein et al. 1802.04434), AdamW on the rest."""

from typing import Annotated

import torch

from optim import Group, Log, Roles
from optim.adamw import matrix_recipe


class Signum(torch.optim.Optimizer):
    def __init__(self, params, lr=0.001, momentum=0.9, weight_decay=0.0):  # type: ignore
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if p not in self.state:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(buffer.sign(), alpha=group["lr"])


@matrix_recipe
def signum(
    matrices: Roles,
    lr: Annotated[float, Log(1e-4, 1e-2)] = 0.001,
    weight_decay: Annotated[float, Log(0.01, 1.0)] = 0.1,
    momentum: float = 0.9,
) -> list[Group]:
    return [Group(Signum, matrices, lr=lr, momentum=momentum, weight_decay=weight_decay)]
