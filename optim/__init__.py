"""Recipes: which update rule each parameter gets, with which options.

    @recipe
    def sgd(roles: Roles, lr: Annotated[float, Log(0.1, 10)] = 1.0) -> list[Group]:
        return [Group(torch.optim.SGD, roles, lr=lr)]

A recipe is a function in a file of this folder. Its keyword arguments are its command line
(`sgd:lr=0.3`), its key in the CSVs and, if annotated with a range, its search space for the tuner.
An argument with the name of a schedule option replaces the default of that option. A recipe returns
data: `plan` checks them, and an engine builds the optimizers. `optim.adamw.matrix_recipe` is for
rules that are meant for the hidden matrices: it gives the other parameters to AdamW.
"""

import inspect
import math
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, NamedTuple, Protocol, get_args, get_origin, get_type_hints

import torch

from errors import UserError
from optim import kernels


class Role(Protocol):
    """A row of `model.roles()`; see `model.RoleRow`."""

    @property
    def name(self) -> str: ...
    @property
    def param(self) -> torch.nn.Parameter: ...
    @property
    def role(self) -> str: ...
    @property
    def splits(self) -> tuple[int, ...]: ...
    @property
    def head_rows(self) -> int: ...


Roles = Sequence[Role]


class Group:
    """Parameters that share an update rule and its options.

    qk_clip: the tau of QK-Clip after each step; None: no clip. The model does it, since a rule does
    not know heads.
    """

    def __init__(
        self,
        rule: type[torch.optim.Optimizer],
        params: Sequence[Role],
        *,
        qk_clip: float | None = None,
        **options: Any,
    ) -> None:
        self.rule = rule
        self.params = tuple(params)
        self.qk_clip = qk_clip
        self.options = options


Recipe = Callable[..., list[Group]]


@dataclass(frozen=True)
class Linear:
    """A range that the tuner samples evenly and never leaves."""

    low: float
    high: float

    def at(self, u: float) -> float:
        """The value at u, from 0 at the low end to 1 at the high end."""
        return self.low + min(1.0, max(0.0, u)) * (self.high - self.low)

    def where(self, value: float) -> float:
        """The u of a value: the inverse of `at`."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Log(Linear):
    """A range that the tuner samples evenly in the logarithm; refining may leave it."""

    def at(self, u: float) -> float:
        return self.low * (self.high / self.low) ** u

    def where(self, value: float) -> float:
        return math.log(value / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class Beta(Linear):
    """A range of a momentum, even in the logarithm of 1 - beta; refining may leave it.

    1 / (1 - beta) is the number of steps that a momentum averages over.
    """

    def at(self, u: float) -> float:
        return max(0.0, 1 - (1 - self.low) * ((1 - self.high) / (1 - self.low)) ** u)

    def where(self, value: float) -> float:
        return math.log((1 - value) / (1 - self.low)) / math.log((1 - self.high) / (1 - self.low))


class Option(NamedTuple):
    """One option of an entrant: its type, its default, and its range if it is tuned."""

    type: type
    default: Any
    range: Linear | None


_RECIPES: dict[str, Recipe] = {}


def recipe(function: Recipe) -> Recipe:
    """Register a recipe under its function's name, with hyphens for underscores."""
    _RECIPES[function.__name__.replace("_", "-")] = function
    return function


def with_signature(function: Recipe, name: str, parameters: Iterable[inspect.Parameter]) -> Recipe:
    """Give a function of **settings the name and the parameters that `options` reads."""
    known = list(parameters)
    function.__name__ = name
    function.__annotations__ = {p.name: p.annotation for p in known}
    function.__signature__ = inspect.Signature(known)  # type: ignore[attr-defined]
    return function


def recipes() -> dict[str, Recipe]:
    """All recipes by name, from every file of this folder."""
    for module in pkgutil.iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")
    return _RECIPES


def find(name: str) -> Recipe:
    """The recipe called `name`. `lib:` and a dotted path name any optimizer class.

    Raises KeyError if there is no such recipe, UserError for a class that cannot be raced.
    """
    if name.startswith("lib:"):
        made: Recipe = import_module(f"{__name__}.library").recipe_of(name)
        return made
    return recipes()[name]


def options(function: Callable[..., Any]) -> dict[str, Option]:
    """The options in the signature of a recipe, or of a schedule: its arguments with a default."""
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            continue  # the roles
        hint, bounds = hints[name], None
        if get_origin(hint) is Annotated:
            hint, bounds = get_args(hint)[:2]
        found[name] = Option(hint, parameter.default, bounds)
    return found


def plan(
    roles: Roles,
    recipe_name: str,
    settings: dict[str, Any],
    matmul_dtype: torch.dtype,
    ns_backend: str = "auto",
) -> list[Group]:
    """The recipe's groups, checked, with every option of every rule set.

    A rule with an option `ns_dtype` or `ns_backend` (Newton-Schulz) takes the run's `matmul_dtype`
    and `ns_backend`, unless the recipe gives its own. Raises UserError if a parameter does not have
    exactly one rule, if a group has no lr, or if any Muon implementation was given something other
    than a whole hidden matrix.
    """
    groups = find(recipe_name)(roles, **settings)
    owners: dict[str, list[str]] = {row.name: [] for row in roles}
    is_class = recipe_name.startswith("lib:")
    for group in groups:
        if group.params and "lr" not in group.options:
            raise UserError(
                f"{recipe_name}: its group of {group.rule.__name__} has no lr, which the schedule "
                "sets; give it one in optim/"
            )
        known = inspect.signature(group.rule).parameters
        if "ns_backend" in known:
            kernels.register()
        for option, value in (("ns_dtype", matmul_dtype), ("ns_backend", ns_backend)):
            if option in known:
                group.options.setdefault(option, value)
        for row in group.params:
            owners[row.name].append(group.rule.__name__)
            whole = row.role == "matrix" and row.param.ndim == 2
            if is_orthogonal(group.rule) and not whole:
                raise UserError(
                    f"{recipe_name}: {row.name} ({row.role}, {row.param.ndim}-D) was given to "
                    f"{group.rule.__name__}, which takes whole hidden matrices only; "
                    f"{'type scope=matrices' if is_class else 'give it to another rule in optim/'}"
                )
    for name, rules in owners.items():
        if len(rules) != 1:
            raise UserError(
                f"{recipe_name}: {name} has {len(rules)} rules ({', '.join(rules) or 'none'}), "
                "and must have exactly one; mend the recipe in optim/"
            )
    return [group for group in groups if group.params]


def is_orthogonal(rule: type[torch.optim.Optimizer]) -> bool:
    """Whether a rule is of Muon's family, judged by the names of its classes."""
    names = [base.__name__.lower() for base in rule.__mro__]
    return any(family in name for name in names for family in ("muon", "dion"))


def splits_of(row: Role, blocks: str) -> tuple[int, ...]:
    """Row counts of the matrices that a parameter is split into.

    blocks: "fused": one matrix; "qkv": query, key and value matrices; "heads": one matrix for each
    head of these. Raises ValueError for another name.
    """
    if blocks not in ("fused", "qkv", "heads"):
        raise ValueError(f"blocks={blocks!r}: must be fused, qkv or heads")
    if blocks == "fused":
        return (row.param.size(0),)
    if blocks == "heads" and row.head_rows:
        return (row.head_rows,) * (row.param.size(0) // row.head_rows)
    return row.splits


def matrix_groups(
    rule: type[torch.optim.Optimizer], roles: Roles, blocks: str, **options: Any
) -> list[Group]:
    """Groups of the hidden matrices among `roles`, one for each way of splitting (`splits_of`)."""
    rows = [(row, splits_of(row, blocks)) for row in pick(roles, "matrix")]
    return [
        Group(rule, [row for row, own in rows if own == splits], splits=splits, **options)
        for splits in dict.fromkeys(splits for _, splits in rows)
    ]


def qk_clip(plan: Sequence[Group]) -> float | None:
    """The tau of QK-Clip that a plan asks for; None if it asks for none."""
    return next((group.qk_clip for group in plan if group.qk_clip is not None), None)


def pick(roles: Roles, *names: str) -> list[Role]:
    """The rows whose role is one of `names`."""
    return [row for row in roles if row.role in names]


__all__ = [
    "Beta", "Group", "Linear", "Log", "Option", "Recipe", "Role", "Roles",
    "find", "matrix_groups", "options", "pick", "plan", "qk_clip", "recipe", "recipes", "splits_of",
    "with_signature",
]  # fmt: skip
