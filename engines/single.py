"""The single-process engine: one device, nothing to communicate. The reference for all others."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from engines import Plan


class Engine:
    """See `engines.Engine`."""

    rank = 0
    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: nn.Module) -> nn.Module:
        self.model = model.to(self.device)
        return self.model

    def roles(self) -> list[Any]:
        rows: list[Any] = self.model.roles()  # type: ignore[operator]
        return rows

    def optimizers(self, plan: Sequence[Plan]) -> list[torch.optim.Optimizer]:
        """One optimizer per rule, so that a rule may batch over all its groups."""
        by_rule: dict[Callable[..., torch.optim.Optimizer], list[dict[str, Any]]] = {}
        for group in plan:
            params = [row.param for row in group.params]
            base_lr = group.options["lr"]
            by_rule.setdefault(group.rule, []).append(
                {"params": params, **group.options, "base_lr": base_lr}
            )
        self._optimizers = [rule(groups) for rule, groups in by_rule.items()]
        return self._optimizers

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)

    def mean(self, value: Tensor) -> float:
        return value.item()

    def max(self, value: Tensor) -> float:
        return value.item()

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
            optimizer.load_state_dict(state)
        self.model.zero_grad(set_to_none=True)
