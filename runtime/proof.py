"""A proof that every parameter is updated by its own rule, whatever an engine did to it.

One step on a known gradient, before a race and off its clock. Muon makes the update of a matrix
orthogonal: its singular values are nearly equal. Another rule's update of the same gradient is not:
the gradient has one singular value that is far above the others, and its sign is the same
everywhere. So the update tells which rule a parameter got. What it must be is found by giving the
parameter to its rule alone, as a plain tensor of one process.

The model's layers are called in their order, so what an engine hangs on them runs, but each adds up
its parameters times their gradients in place of its own computation.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from engines import PlannedGroup, _rules
from errors import UserError
from runtime.program import Program

FLAT = 0.5  # the smallest singular value over the largest, of an update that is orthogonal
PEAK = 8.0  # the largest singular value of the known gradient over the others


@dataclass
class Alone:
    """A parameter given to its rule alone."""

    rule: type[torch.optim.Optimizer]
    params: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Plain:
    """A row of a table of roles with a plain tensor in it."""

    param: nn.Parameter


def prove(program: Program, plan: Sequence[PlannedGroup], build: Callable[[], object]) -> int:
    """The number of parameters whose update is orthogonal: all that must be, and no other.

    plan: of the entrant. build: builds its optimizers in the engine anew, on weights of zero.
    Raises UserError, naming the parameter, if one is updated otherwise than by its rule alone.
    """
    engine, gpt = program.engine, program.gpt
    with engine.weights(), torch.no_grad():
        shapes = {name: p.shape for name, p in gpt.named_parameters()}
        for p in gpt.parameters():
            p.zero_()
    build()
    engine.set_lr(1.0)
    with adding_up(gpt, {name: known_gradient(shape) for name, shape in shapes.items()}):
        token = torch.zeros(1, 1, dtype=torch.int64)
        loss = program.wrapped(*program.to_device(token, token))
    engine.backward(loss, last=True)
    engine.step()
    with engine.weights():
        updates = {name: p.detach().clone() for name, p in gpt.named_parameters()}
    proven = 0
    for group in plan:
        for row in group.params:
            splits = group.options.get("splits") or (shapes[row.name][0],)
            must = is_flat(update_alone(group, updates[row.name]), splits)
            if is_flat(updates[row.name], splits) != must:
                is_now, rule = "is not" if must else "is", group.rule.__name__
                raise UserError(
                    f"--engine {engine.name}: the update of {row.name} {is_now} orthogonal, and "
                    f"{rule} alone makes one that {'is' if must else 'is not'}; race it with "
                    "another --engine"
                )
            proven += must
    return proven


def known_gradient(shape: Sequence[int]) -> Tensor:
    """Positive numbers: all one, and of a matrix (m n) a diagonal that goes round on top.

    So do those of its blocks of rows. Beside one singular value, which is PEAK times as large, all
    are nearly equal.
    """
    gradient = torch.ones(shape)
    if len(shape) == 2:
        m, n = shape
        rows = torch.arange(m)
        gradient[rows, rows % n] += math.sqrt(min(m, n) * n) / PEAK
    return gradient


@contextmanager
def adding_up(model: nn.Module, gradients: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, a call of the model gives a number with these gradients, by parameters' names."""
    names, seen = dict(model.named_parameters()), set[str]()
    of = {id(p): name for name, p in names.items()}
    modules = list(model.modules())
    owners = {id(m): [(k, of[id(p)]) for k, p in m.named_parameters(recurse=False)]
              for m in modules}  # fmt: skip

    def forward(module: nn.Module, *_: Any, **__: Any) -> Tensor:
        total: Any = 0.0
        for key, name in owners[id(module)]:
            if name not in seen:  # a parameter that two layers share counts once
                seen.add(name)
                p = getattr(module, key)
                total = total + (p * gradients[name].to(p)).sum(dtype=torch.float32)
        for child in module.children():
            total = total + child(total)
        return torch.as_tensor(total)

    for module in modules:
        module.forward = forward.__get__(module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


@torch.no_grad()
def update_alone(group: PlannedGroup, like: Tensor) -> Tensor:
    """What the rule of a group makes of zeros like this tensor, in one step with its gradient."""
    param = nn.Parameter(torch.zeros_like(like))
    param.grad = known_gradient(like.shape).to(param)
    alone = _rules.build([Alone(group.rule, (Plain(param),), group.options)])
    _rules.step(alone)
    return param.detach()


def is_flat(update: Tensor, splits: Sequence[int]) -> bool:
    """Whether every block of rows of an update has singular values that are nearly equal."""
    if update.ndim != 2:
        return False
    for block in update.split(list(splits)):
        wide = block.double() if block.size(0) <= block.size(1) else block.double().mT
        gram = wide @ wide.mT
        if len(gram) < 2 or not gram.isfinite().all():
            return False  # a single row or column has one singular value
        squares = torch.linalg.eigvalsh(gram)
        if not squares[0] > FLAT**2 * squares[-1]:
            return False
    return True
