"""Optimizer state of each update rule by formula, in numbers.

The names are those of optim/. Hidden matrices have the rule; all else has AdamW, as in the recipes.
A test holds each formula equal to the bytes that the rule itself holds after a step.
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from errors import UserError
from planner.models import Weight


class UpdateRule(NamedTuple):
    """What a plan has to know of a rule."""

    name: str
    whole: bool  # it needs whole matrices, so each has one owner
    numbers: Callable[[int, int], float]  # state of a matrix of (rows, cols)
    orthogonalises: bool = False


def _of_size(times: float) -> Callable[[int, int], float]:
    return lambda rows, cols: times * rows * cols


RULES = {
    rule.name: rule
    for rule in (
        UpdateRule("adamw", False, _of_size(2)),
        UpdateRule("lion", False, _of_size(1)),
        UpdateRule("signum", False, _of_size(1)),
        UpdateRule("muon", True, _of_size(1), True),
        UpdateRule("normuon", True, lambda rows, cols: rows * cols + rows, True),
        UpdateRule("soap", True, lambda rows, cols: 2 * rows * cols + 2 * (rows**2 + cols**2)),
    )
}


def find(name: str) -> UpdateRule:
    """The rule of a name. Raises UserError for an unknown one."""
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, 1)
        hint = f"did you mean {near[0]}?" if near else "run with --optimizer muon"
        raise UserError(f"--optimizer {name}: must be one of {', '.join(RULES)}; {hint}")
    return RULES[name]


def state_numbers(rule: UpdateRule, weight: Weight) -> float:
    """Numbers of optimizer state for one of a weight's parameters."""
    used = rule if weight.hidden else RULES["adamw"]
    return used.numbers(weight.rows, weight.cols)
