"""Rules that cannot be given a part of the parameters: what they do to one depends on the others.

Such a rule computes a number from all its parameters, such as a norm or a step size, and would
compute another one from the part that a process owns. Known classes are in a table. Any other class
is tried on small matrices: it is coupled if one matrix moves otherwise because another one has
another gradient.

What is not known: a rule that fails on such matrices, that couples only after more steps than are
tried, or that counts its parameters, passes as one that treats each by itself.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from engines import PlannedGroup, _rules
from errors import UserError

# What the name of such a class has in it, in lower case, and what the class does.
KNOWN = {
    "lbfgs": "it searches along one direction for all parameters",
    "prodigy": "it estimates one step size from all parameters",
    "dadapt": "it estimates one step size from all parameters",
    "dowg": "it estimates one step size from all parameters",
}
SIDE, COUNT, STEPS = 8, 3, 4  # of the matrices that a rule is tried on
_found: dict[str, bool] = {}  # by class and options: a race builds its optimizers several times


def refuse(plan: Sequence[PlannedGroup], engine: str) -> None:
    """Raise UserError if a rule of the plan couples its parameters."""
    for group in plan:
        why = _why(group)
        if why:
            name = f"{group.rule.__module__}.{group.rule.__qualname__}"
            raise UserError(
                f"--engine {engine}: {name} cannot be divided over processes: {why}; "
                "race it with --engine ddp"
            )


def _why(group: PlannedGroup) -> str:
    """Why a group's rule cannot be given a part of its parameters; empty if it can."""
    if _rules.is_elementwise(group.rule):
        return ""
    names = [base.__name__.lower() for base in group.rule.__mro__]
    for word, why in KNOWN.items():
        if any(word in name for name in names):
            return why
    options = {name: value for name, value in group.options.items() if name != "splits"}
    if coupled(group.rule, options):
        return "the gradient of one parameter changes what it does to another"
    return ""


def coupled(rule: Callable[..., torch.optim.Optimizer], options: dict[str, Any]) -> bool:
    """Whether a rule moves a matrix otherwise because the gradient of another one is another."""
    key = f"{rule!r} {sorted(options.items())}"
    if key not in _found:
        _found[key] = _try(rule, options)
    return _found[key]


def _try(rule: Callable[..., torch.optim.Optimizer], options: dict[str, Any]) -> bool:
    with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        try:
            first, second = _moved(rule, options, 1.0), _moved(rule, options, 100.0)
        except Exception:  # a class of anybody's making may raise anything on such matrices
            return False
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-7, equal_nan=True)


def _moved(rule: Callable[..., Any], options: dict[str, Any], scale: float) -> torch.Tensor:
    """The first matrix after a few steps; scale: of the gradients of the last one."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # for a rule that draws numbers
    shape = (COUNT, SIDE, SIDE)
    params = [torch.nn.Parameter(p) for p in torch.randn(shape, generator=generator)]
    optimizer = rule(params, **options)
    for _ in range(STEPS):
        grads = torch.randn(shape, generator=generator)
        grads[-1] *= scale
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad
        optimizer.step()
    return params[0].detach()
