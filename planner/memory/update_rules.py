"""Optimizer state of each update rule by formula, in numbers.

The names are those of optim/. Hidden matrices have the rule; all else has AdamW, as in the recipes.
schedule-free has all parameters, but keeps as many numbers as AdamW. A test holds each formula
equal to the bytes that the rule itself holds after a step, but for single numbers of a parameter,
such as its count of steps (at most COUNTERS), which are left out.
"""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from errors import UserError
from planner.models import Weight

COUNTERS = 8  # numbers that a rule may keep of a parameter of any size
SOAP_LONGEST = 10_000  # a longer side of a matrix has no factor: max_precond_dim in optim/soap.py
KRON_LONGEST = 2048  # a longer side has a diagonal factor, as heavyball has it
EVERYTHING = "schedule-free"  # this rule has all parameters, not the hidden matrices alone
DION_RANK = 0.25  # of the smaller side: rank_fraction in optim/dion.py

Numbers = Callable[[int, int], float]  # of a matrix of (rows, cols)


class UpdateRule(NamedTuple):
    """What a plan has to know of a rule."""

    name: str
    whole: bool  # it needs whole matrices, so each has one owner
    numbers: Numbers  # state of a matrix
    orthogonalises: bool = False  # by Newton-Schulz


def _of_size(times: float) -> Numbers:
    return lambda rows, cols: times * rows * cols


def _adafactor(rows: int, cols: int) -> float:
    """Second moments of the rows and of the columns."""
    return rows + cols


def _normuon(rows: int, cols: int) -> float:
    """Momentum, and a second moment for each row."""
    return rows * cols + rows


def _dion(rows: int, cols: int) -> float:
    """Momentum, and a basis (cols, rank)."""
    return rows * cols + cols * max(1, round(DION_RANK * min(rows, cols)))


def _shampoo(rows: int, cols: int) -> float:
    """Momentum, and for each side a factor and its root."""
    return rows * cols + 2 * (rows**2 + cols**2)


def _soap(rows: int, cols: int) -> float:
    """Two moments, and for each side that is not too long a factor and its basis."""
    return 2 * rows * cols + sum(2 * side**2 for side in (rows, cols) if side <= SOAP_LONGEST)


def _kron(rows: int, cols: int) -> float:
    """Momentum, and for each side a triangular factor, or the diagonal of one that is too large."""
    return rows * cols + sum(
        side * (side + 1) // 2 if side <= KRON_LONGEST else side for side in (rows, cols)
    )


TAKE_APART = ("dion", "shampoo", "soap")  # query, key and value, beside all that orthogonalise
_WHOLE, _ANY_PART = True, False
RULES = {
    rule.name: rule
    for rule in (
        UpdateRule("adamw", _ANY_PART, _of_size(2)),
        UpdateRule("muon", _WHOLE, _of_size(1), True),
        *(
            UpdateRule(name, _WHOLE, _of_size(1), True)
            for name in (
                "muon-split", "polar-express", "deepseek-v4", "moonlight", "muonclip", "muonh",
            )
        ),
        UpdateRule("normuon", _WHOLE, _normuon, True),
        UpdateRule("adamuon", _WHOLE, _of_size(2), True),  # and a second moment of each entry
        UpdateRule("muon2", _WHOLE, _of_size(2), True),
        UpdateRule("dion", _WHOLE, _dion),
        UpdateRule("lion", _ANY_PART, _of_size(1)),
        UpdateRule("signum", _ANY_PART, _of_size(1)),
        UpdateRule("sgd", _ANY_PART, _of_size(1)),
        UpdateRule("adam", _ANY_PART, _of_size(2)),
        UpdateRule("nadamw", _ANY_PART, _of_size(2)),
        UpdateRule("soap", _WHOLE, _soap),
        UpdateRule("shampoo", _WHOLE, _shampoo),
        UpdateRule("kron", _WHOLE, _kron),
        UpdateRule("adafactor", _WHOLE, _adafactor),
        UpdateRule("lamb", _WHOLE, _of_size(2)),
        UpdateRule("ademamix", _WHOLE, _of_size(3)),  # two momenta, one second moment
        UpdateRule("mars", _WHOLE, _of_size(3)),  # Adam's moments and the last gradient
        UpdateRule("schedule-free", _WHOLE, _of_size(2)),  # the iterate, one second moment
    )
}  # fmt: skip


def find(name: str) -> UpdateRule:
    """The rule of a name. Raises UserError for an unknown one."""
    if name in RULES:
        return RULES[name]
    known = ", ".join(RULES)
    if name.startswith("lib:"):
        raise UserError(
            f"--optimizer {name}: no formula says what a class of a library holds, only what "
            f"{known} hold; count it: python -m planner race {name}"
        )
    if ":" in name:
        raise UserError(
            f"--optimizer {name}: takes names without options, because the formulas are of "
            f"the defaults; run with --optimizer {name.partition(':')[0]}"
        )
    near = difflib.get_close_matches(name, RULES, 1)
    hint = f"did you mean {near[0]}?" if near else "run with --optimizer muon"
    raise UserError(f"--optimizer {name}: must be one of {known}; {hint}")


def blocks(rule: UpdateRule, weight: Weight) -> tuple[int, ...]:
    """Rows of the matrices that a rule takes apart in one of a weight's parameters.

    As the recipes of optim/ do it: query, key and value, or heads, where a tensor has several.
    """
    if rule.name == "muon-split" and weight.parts > 1:
        return (weight.rows // weight.parts,) * weight.parts
    if rule.orthogonalises or rule.name in TAKE_APART:
        return weight.splits or (weight.rows,)
    return (weight.rows,)


def state_numbers(rule: UpdateRule, weight: Weight) -> float:
    """Numbers of optimizer state for one of a weight's parameters."""
    used = rule if weight.hidden else RULES["adamw"]
    return sum(used.numbers(rows, weight.cols) for rows in blocks(used, weight))
