"""The single-process engine: one device, nothing to communicate. The reference for all others."""

import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from engines import Plan
from errors import UserError


class Engine:
    """See `engines.Engine`."""

    name = "single"
    rank = 0
    world_size = 1
    mark: Callable[[], Any] | None = None

    def __init__(self, device: torch.device, timeout: float) -> None:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("engine single: is for one process; leave --engine out, or take ddp")
        self.device = device
        self.waits: list[tuple[Any, Any]] = []

    def wrap(self, model: nn.Module) -> nn.Module:
        self.model = model.to(self.device)
        return self.model

    def roles(self) -> list[Any]:
        rows: list[Any] = self.model.roles()  # type: ignore[operator]
        return rows

    def optimizers(self, plan: Sequence[Plan]) -> list[torch.optim.Optimizer]:
        """One optimizer per rule, so that a rule may batch over all its groups.

        Each group's options go through the rule's constructor, which refuses what makes no sense.
        """
        by_rule: dict[Callable[..., torch.optim.Optimizer], torch.optim.Optimizer] = {}
        for group in plan:
            built = group.rule([row.param for row in group.params], **group.options)
            built.param_groups[0]["base_lr"] = group.options["lr"]
            if group.rule in by_rule:
                by_rule[group.rule].add_param_group(built.param_groups[0])
            else:
                by_rule[group.rule] = built
        self._optimizers = list(by_rule.values())
        return self._optimizers

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def mean(self, value: Tensor) -> float:
        return value.item()

    def max(self, value: Tensor) -> Tensor:
        return value

    def share(self, value: Any) -> Any:
        return value

    def close(self) -> None:
        pass

    def grad_norm(self) -> float:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).item()

    def state_bytes(self) -> dict[str, int]:
        params = list(self.model.parameters())
        tensors: dict[str, list[Tensor]] = {"params": [*params]}
        tensors["grads"] = [p.grad for p in params if p.grad is not None]
        tensors["state"] = [
            value
            for optimizer in self._optimizers
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return {kind: sum(t.nbytes for t in found) for kind, found in tensors.items()}

    def save(self) -> dict[str, Any]:
        return deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            }
        )

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(deepcopy(state))  # it keeps what it is given
        self.model.zero_grad(set_to_none=True)
