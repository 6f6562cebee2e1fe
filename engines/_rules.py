"""Optimizers of anybody's making, built and driven as torch's contract and its schedulers do it.

All parameter groups of a rule are there when it is constructed. `train()` comes before the first
step, `eval()` before each validation. The learning rate is set as torch.optim.lr_scheduler sets
it: in place where it is a tensor. The engine calls nothing else of a rule, and relies on nothing
about its state.

What a rule raises becomes an engines.RuleError, which says in a sentence what the rule was doing.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import engines
from errors import UserError

DIVERGED = "the run counts as diverged"
Rule = Callable[..., torch.optim.Optimizer]
# The classes of torch.optim that change each entry of a parameter by that entry's own gradients,
# with every option.
ELEMENTWISE = (
    "ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop",
    "SGD",
)  # fmt: skip
MOMENTA = ("exp_avg", "momentum_buffer")  # what rules call their first moment
Optimizers = Sequence[torch.optim.Optimizer]
# Of the whole process: a rule that sets one would change the model and the runs of others.
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
)


@contextmanager
def _calling(
    rule: Rule, doing: str, but: tuple[type[BaseException], ...] = (), too_large: bool = False
) -> Iterator[None]:
    """Turn what a rule raises, `but` not these, into a RuleError: "RULE fails DOING: ...".

    Settings of torch are afterwards as they were. too_large: a lack of memory too, where no smaller
    microbatch can help.
    """
    settings = [read() for read, _ in SETTINGS]
    try:
        yield
    except BaseException as error:  # any class may raise anything, or call sys.exit()
        ours: tuple[type[BaseException], ...] = (UserError, KeyboardInterrupt, *but)
        if isinstance(error, ours) or (engines.out_of_memory(error) and not too_large):
            raise
        if isinstance(error, RuntimeError) and engines.lost_contact(error):
            raise
        words = (str(error).strip().splitlines() or [""])[0][:300]
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name} line {last.lineno}"
        raise engines.RuleError(
            f"{_name(rule)} fails {doing}: {type(error).__name__}: {words} ({where})"
        ) from error
    finally:
        for (read, write), value in zip(SETTINGS, settings, strict=True):
            if read() != value:
                write(value)


def _name(rule: Rule) -> str:
    return f"{rule.__module__}.{getattr(rule, '__qualname__', rule)}"


def is_elementwise(rule: type[torch.optim.Optimizer]) -> bool:
    """Whether a rule may be given any entries of a parameter, in any shape: it would do the same.

    One of `ELEMENTWISE`, or a class that says so by an attribute `elementwise` of its own: what it
    inherits says nothing, because it may do more than its base.
    """
    of_torch = rule.__module__.startswith("torch.optim") and rule.__name__ in ELEMENTWISE
    return of_torch or bool(vars(rule).get("elementwise", False))


def build(plan: Sequence[engines.PlannedGroup]) -> list[torch.optim.Optimizer]:
    """One optimizer per rule, so that a rule may batch over all its groups.

    Raises the ValueError or ArithmeticError of a constructor, for wrong options; else RuleError.
    """
    by_rule: dict[Rule, list[engines.PlannedGroup]] = {}
    for group in plan:
        by_rule.setdefault(group.rule, []).append(group)
    return [construct(rule, groups) for rule, groups in by_rule.items()]


def construct(rule: Rule, groups: Sequence[engines.PlannedGroup]) -> Any:
    params = [row.param for group in groups for row in group.params]
    wrong = (ValueError, ArithmeticError)
    calling = _calling(rule, "to be constructed", but=wrong, too_large=True)
    with _without_hooks(rule, params), calling:
        # Each group's options go through the constructor, which refuses wrong ones, and an empty
        # list, but not an empty group.
        built = [
            rule([row.param for row in g.params] or [{"params": []}], **g.options) for g in groups
        ]
        if len(built) > 1:
            parts = [part for each in built for part in each.param_groups]
            built = [rule(parts, **groups[0].options)]
    optimizer: Any = built[0]
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise engines.RuleError(f"{_name(rule)} keeps no lr in its groups, which is set there")
        lr = group["lr"]
        group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
    if has_modes(optimizer):
        with suppress(Exception):  # where it undoes eval(), which was not called
            optimizer.train()
    return optimizer


@contextmanager
def _without_hooks(rule: Rule, params: Sequence[Tensor]) -> Iterator[None]:
    """Refuse a rule that steps in hooks of parameters, which would outlive it; remove the hooks."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    before = [set(getattr(p, kind) or ()) for p in params for kind in kinds]
    try:
        yield
    finally:
        after = [getattr(p, kind) or {} for p in params for kind in kinds]
        added = [(h, key) for h, old in zip(after, before, strict=True) for key in {*h} - old]
        for hooks, key in added:
            del hooks[key]
    if added:
        what = "registers hooks on its parameters, which would go on in the runs of others"
        raise engines.RuleError(f"{_name(rule)} {what}")


def has_modes(optimizer: Any) -> bool:
    """Whether a rule trains other weights than it evaluates, as schedule-free ones do."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def set_lr(optimizers: Optimizers, factor: float) -> None:
    """Set every learning rate to `factor` times its first one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            lr = float(group["initial_lr"]) * factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def step(optimizers: Optimizers) -> engines.RuleError | None:
    """Take a step of each; the failure of a decomposition on finite gradients, if there was one.

    A rule whose decomposition fails, or that fails on gradients that are not finite, has diverged.
    It is given weights that are not numbers, so that the next loss says so.
    """
    broke = None
    for optimizer in optimizers:
        try:
            with _calling(type(optimizer), "in a step"):
                optimizer.step()
        except engines.RuleError as error:
            params = parameters(optimizer)
            finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in params)
            if finite:
                if not isinstance(error.__cause__, torch.linalg.LinAlgError):
                    raise
                broke = error
                warnings.warn(f"{error.what}: {DIVERGED}", stacklevel=2)
            with torch.no_grad():
                for p in params:
                    p.fill_(torch.nan)
    return broke


def clear(optimizers: Optimizers) -> None:
    """Clear the gradients of the rules that have a way of their own to do it."""
    for optimizer in optimizers:
        if type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad:
            with _calling(type(optimizer), "in zero_grad()"):
                optimizer.zero_grad()


@contextmanager
def evaluation(optimizers: Optimizers) -> Iterator[None]:
    """A context in which the weights are the ones to validate; afterwards they are as before."""
    switched: list[Any] = [each for each in optimizers if has_modes(each)]
    weights = [p for each in switched for p in parameters(each)]
    # optimizer.train() restores the weights only up to rounding; keep exact copies.
    trained = [p.detach().clone() for p in weights]
    for optimizer in switched:
        with _calling(type(optimizer), "in eval()"):
            optimizer.eval()
    try:
        yield
    finally:
        for optimizer in switched:
            with _calling(type(optimizer), "in train()"):
                optimizer.train()
        with torch.no_grad():
            for p, value in zip(weights, trained, strict=True):
                p.copy_(value)


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of an optimizer, in the order of their numbers in its state dict."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def momentum(optimizer: Any, param: Tensor) -> Tensor | None:
    """The first moment that a rule keeps for a parameter, of the parameter's shape; None: none.

    It is known by its name, one of MOMENTA. A rule may keep it under another name, such as
    heavyball's, or not at all. SOAP as published keeps it in a rotated basis, where it has the same
    singular values; `optim.soap` keeps it as it is.
    """
    state = getattr(optimizer, "state", {}).get(param) or {}
    found = next((state[name] for name in MOMENTA if name in state), None)
    return found if isinstance(found, Tensor) and found.shape == param.shape else None


def restore(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state dict, and undo what torch does to it: it casts state to the parameter's type."""
    with _calling(type(optimizer), "in load_state_dict()"):
        optimizer.load_state_dict(saved)
    if not {"state", "param_groups"} <= saved.keys():
        return  # a rule with a form of its own
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    params = dict(zip(numbers, parameters(optimizer), strict=True))
    for key, held in saved["state"].items():  # by parameters, or by keys of the rule's own
        optimizer.state[params.get(key, key)] = held
