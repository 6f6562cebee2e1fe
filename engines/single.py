"""The single-process engine: one device, nothing to communicate. The reference for all others."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from engines import Flat, Owned, PlannedGroup, RuleError, _rules, _state
from engines._bytes import held_bytes
from errors import UserError
from host import launcher


class Engine:
    """See `engines.Engine`."""

    name = "single"
    rank = 0
    world_size = 1
    mark: Callable[[], Any] | None = None
    keep_grads = False
    broke: RuleError | None = None
    together = compiles = shows = True

    def __init__(
        self, device: torch.device, timeout: float, zero_stage: int = 1, group: Any = None
    ) -> None:
        processes = launcher.number("WORLD_SIZE", 1)
        if processes > 1:
            raise UserError(
                f"--engine single: torchrun started {processes} processes, single takes one; "
                "leave --engine out"
            )
        self.device = device
        self.exposed_communication: list[tuple[Any, Any]] = []
        self.build(())

    def another(self) -> Self:
        other = copy(self)
        other.exposed_communication, other.mark = [], None
        other.build(())
        return other

    @property
    def sent_bytes(self) -> int:
        return 0

    def wrap(self, model: nn.Module) -> nn.Module:
        self.model = model.to(self.device)
        return self.model

    def alone(self, wrapped: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def weights(self) -> AbstractContextManager[None]:
        return nullcontext()

    @property
    def owned(self) -> list[Owned]:
        names = {id(row.param): row.name for row in self.roles()}
        return [
            Owned(number, names[id(p)], 0, p.numel(), p)
            for number, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for p in group["params"]
        ]

    def roles(self) -> list[Any]:
        rows: list[Any] = self.model.roles()  # type: ignore[operator]
        return rows

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        """One optimizer per rule, so that a rule may batch over all its groups."""
        self.plan, self.stepped = plan, False
        self.optimizers: list[torch.optim.Optimizer] = []  # frees the earlier ones first
        self.optimizers = _rules.build(plan)

    def set_lr(self, factor: float) -> None:
        _rules.set_lr(self.optimizers, factor)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()

    def wait(self) -> None:
        pass

    def step(self) -> None:
        self.stepped = True
        self.broke = _rules.step(self.optimizers)
        if not self.keep_grads:
            _rules.clear(self.optimizers)
        self.model.zero_grad(set_to_none=not self.keep_grads)

    def evaluation(self) -> AbstractContextManager[None]:
        return _rules.evaluation(self.optimizers)

    def all_reduce_mean(self, value: Tensor) -> float:
        return value.item()

    def all_reduce_max(self, value: Tensor) -> Tensor:
        return value

    def largest(self, **counts: int) -> dict[str, int]:
        numbers = torch.tensor([*counts.values()], dtype=torch.float64)
        most = self.all_reduce_max(numbers).tolist()
        return {name: int(value) for name, value in zip(counts, most, strict=True)}

    def broadcast(self, value: Any) -> Any:
        return value

    def close(self) -> None:
        pass

    def grad_norm(self) -> float:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads).item()

    def gradients(self) -> list[Flat]:
        named = self.model.named_parameters()
        return [Flat(name, 0, p.grad.flatten()) for name, p in named if p.grad is not None]

    def momenta(self) -> list[Flat]:
        found = [(o, _rules.momentum(self.optimizers[o.optimizer], o.param)) for o in self.owned]
        return [Flat(o.name, o.start, m.flatten()) for o, m in found if m is not None]

    def state_bytes(self) -> dict[str, int]:
        params, counted = list(self.model.parameters()), set[int]()
        grads = [p.grad for p in params]
        held = {"params": params, "grads": grads, "state": self.optimizers}
        # In this order: a rule that keeps the parameters themselves holds nothing more.
        return {kind: held_bytes(each, counted) for kind, each in held.items()}

    def save(self) -> dict[str, Any]:
        states = [each.state_dict() for each in self.optimizers] if self.stepped else None
        return deepcopy({"model": self.model.state_dict(), "optimizers": states})

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.build(self.plan)  # not all that a rule remembers is in its state dict
        if saved["optimizers"] is not None:
            self.stepped = True
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                _rules.restore(optimizer, deepcopy(state))  # which keeps the tensors
        self.model.zero_grad(set_to_none=not self.keep_grads)

    def checkpoint(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, structure = _state.save(self.optimizers, self.owned, self.rank)
        with self.weights():
            if self.rank == 0:  # they are whole, and the same on every process
                named = self.model.named_parameters()
                tensors |= {f"weights/{n}": p.detach().to("cpu", copy=True) for n, p in named}
        return tensors, structure

    def resume(self, read: _state.Read, structures: Sequence[Mapping[str, Any]]) -> None:
        self.stepped = True
        with self.weights(), torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(read(f"weights/{name}"))
        _state.load(read, structures, self.rank, self.optimizers, self.owned)
