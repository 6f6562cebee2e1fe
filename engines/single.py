"""The single-process engine: one device, nothing to communicate. The reference for all others."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from engines import PlannedGroup
from errors import UserError


def tensors_in(state: Any) -> Iterator[Tensor]:
    """The tensors in an optimizer's state, however it is nested."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from tensors_in(value)


class Engine:
    """See `engines.Engine`."""

    name = "single"
    rank = 0
    world_size = 1
    mark: Callable[[], Any] | None = None
    keep_grads = False

    def __init__(self, device: torch.device, timeout: float) -> None:
        processes = int(os.environ.get("WORLD_SIZE", 1))
        if processes > 1:
            raise UserError(
                f"--engine single: torchrun started {processes} processes, single takes one; "
                "leave --engine out"
            )
        self.device = device
        self.exposed_communication: list[tuple[Any, Any]] = []
        self.optimizers: list[torch.optim.Optimizer] = []

    def another(self) -> Self:
        other = copy(self)
        other.exposed_communication, other.optimizers, other.mark = [], [], None
        return other

    def wrap(self, model: nn.Module) -> nn.Module:
        self.model = model.to(self.device)
        return self.model

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def roles(self) -> list[Any]:
        rows: list[Any] = self.model.roles()  # type: ignore[operator]
        return rows

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        """One optimizer per rule, so that a rule may batch over all its groups.

        Each group's options go through the rule's constructor, which refuses wrong ones.
        """
        by_rule: dict[Callable[..., torch.optim.Optimizer], torch.optim.Optimizer] = {}
        for group in plan:
            built = group.rule([row.param for row in group.params], **group.options)
            # torch's schedulers use this key too; libraries use other names for other things.
            built.param_groups[0]["initial_lr"] = group.options["lr"]
            if group.rule in by_rule:
                by_rule[group.rule].add_param_group(built.param_groups[0])
            else:
                by_rule[group.rule] = built
        self.optimizers = list(by_rule.values())

    def set_lr(self, factor: float) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=not self.keep_grads)

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        switched: list[Any] = [each for each in self.optimizers if hasattr(each, "eval")]
        weights = [p for each in switched for group in each.param_groups for p in group["params"]]
        # optimizer.train() restores the weights only up to rounding; keep exact copies.
        trained = [p.detach().clone() for p in weights]
        for optimizer in switched:
            optimizer.eval()
        try:
            yield
        finally:
            for optimizer in switched:
                optimizer.train()
            with torch.no_grad():
                for p, value in zip(weights, trained, strict=True):
                    p.copy_(value)

    def all_reduce_mean(self, value: Tensor) -> float:
        return value.item()

    def all_reduce_max(self, value: Tensor) -> Tensor:
        return value

    def broadcast(self, value: Any) -> Any:
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
        states = (state for each in self.optimizers for state in each.state.values())
        tensors["state"] = [value for state in states for value in tensors_in(state)]
        return {kind: sum(t.nbytes for t in found) for kind, found in tensors.items()}

    def save(self) -> dict[str, Any]:
        return deepcopy(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            }
        )

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            state = deepcopy(state)  # load_state_dict keeps the tensors that it is given ...
            optimizer.load_state_dict(state)
            params = [p for group in optimizer.param_groups for p in group["params"]]
            # ... and casts them to the parameter's type: undo that.
            for index, held in state["state"].items():
                optimizer.state[params[index]] = held
        self.model.zero_grad(set_to_none=not self.keep_grads)
