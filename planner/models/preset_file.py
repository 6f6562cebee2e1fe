"""Models from a TOML file: the presets of models.toml, and your own file of the same form.

    python -m planner model my-model.toml        # a file with one model in it

    [my-model]
    title = "My model"
    n_layer = 12
    n_embd = 768
    seq_len = 1024           # tokens of a training sequence
    n_head = 12
    qk_size = 64             # numbers of a query of one head
    v_size = 64              # numbers of a value of one head
    attended = 512           # keys that a query sees on average: seq_len / 2 for causal attention
    batch_tokens = 524288    # of a step
    train_tokens = 10e9      # 0: unknown
    weights = [
        { name = "embed", role = "embed", rows = 50257, cols = 768, tokens = "1/50257" },
        { name = "qkv", role = "attention", rows = 2304, cols = 768, count = 12, parts = 36 },
    ]

`count` is the number of such parameters in the whole model, `parts` the number of matrices of equal
height that are stacked in each, such as heads: Muon Split. `splits` are the rows of query, key and
value in a fused projection, which Muon takes apart anyway. `tokens` is the share of a step's tokens
that one of them sees, such as "8/256" for experts. Optional: source, of the model and of each
weight, published_params, published_active_params, assumed.
"""

import difflib
import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from errors import UserError
from planner.models.weights import ROLES, Model, Weight

LARGEST = 10**15  # of any size or count
MEND = "mend the file"

_FLOATS = ("attended", "train_tokens", "published_params", "published_active_params")
_MAY_BE_ZERO = _FLOATS[1:]
_WEIGHT_KEYS = ("name", "role", "rows", "cols", "count", "parts", "tokens", "source", "splits")


def read(path: Path) -> dict[str, Model]:
    """The models of a file, by name. Raises UserError if it cannot be read or has another form."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file") from error
    except (ValueError, RecursionError) as error:  # it is no TOML, or no UTF-8
        raise UserError(f"{path}: is no TOML file: {error}; {MEND}") from error
    for name, table in found.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: {name} must stand in a table, such as [my-model]; {MEND}")
    return {name: _model(f"{path}: [{name}]", name, table) for name, table in found.items()}


def read_one(path: Path) -> Model:
    """The only model of a file. Raises UserError."""
    found = list(read(path).values())
    if len(found) != 1:
        what = f"has {len(found)} models" if found else "has no model"
        raise UserError(f"{path}: {what}; keep one table such as [my-model] in it")
    return found[0]


def _model(where: str, name: str, table: Mapping[str, Any]) -> Model:
    kinds = {each.name: each for each in fields(Model) if each.name != "name"}
    _check_keys(where, table, tuple(kinds))
    values: dict[str, Any] = {}
    for key, declared in kinds.items():
        if key not in table:
            if declared.default is MISSING:
                raise UserError(f"{where} {key} is missing; add it to the file")
        elif key == "weights":
            values[key] = _weights(where, table[key])
        elif key == "assumed":
            values[key] = _sentences(where, table[key])
        elif key in ("title", "source"):
            values[key] = _text(f"{where} {key}", table[key])
        elif key in _FLOATS:
            values[key] = number(f"{where} {key}", table[key], zero=key in _MAY_BE_ZERO)
        else:
            values[key] = whole(f"{where} {key}", table[key])
    model = Model(name=name, **values)
    if model.batch_tokens < model.seq_len:
        raise UserError(
            f"{where} batch_tokens={model.batch_tokens}: must be at least one sequence of "
            f"seq_len={model.seq_len} tokens; {MEND}"
        )
    if model.attended > model.seq_len:
        raise UserError(
            f"{where} attended={model.attended:g}: must be at most seq_len={model.seq_len}; "
            f"causal attention sees half of it; {MEND}"
        )
    return model


def _weights(where: str, tables: Any) -> tuple[Weight, ...]:
    if not isinstance(tables, list) or not tables:
        example = '[{ name = "head", role = "head", rows = 50257, cols = 768 }]'
        raise UserError(f"{where} weights: must be a list such as {example}; {MEND}")
    weights: list[Weight] = []
    for number_, table in enumerate(tables, 1):
        if not isinstance(table, dict):
            raise UserError(f"{where} weight {number_}: must be a table in braces; {MEND}")
        weight = _weight(f"{where} weight {table.get('name', number_)}:", table)
        if weight.name in {each.name for each in weights}:
            raise UserError(f"{where} weight {weight.name}: is there twice; give each its own name")
        weights.append(weight)
    return tuple(weights)


def _weight(where: str, table: Mapping[str, Any]) -> Weight:
    _check_keys(where, table, _WEIGHT_KEYS)
    for key in ("name", "role", "rows"):
        if key not in table:
            raise UserError(f"{where} {key} is missing; add it to the file")
    role = table["role"]
    if role not in ROLES:
        raise UserError(f"{where} role={role!r}: must be one of {', '.join(ROLES)}; {MEND}")
    sizes = {
        key: whole(f"{where} {key}", table.get(key, 1))
        for key in ("rows", "cols", "count", "parts")
    }
    if sizes["rows"] % sizes["parts"]:
        raise UserError(
            f"{where} parts={sizes['parts']}: must divide rows={sizes['rows']}, "
            f"as parts have equal heights; {MEND}"
        )
    splits = table.get("splits", [])
    if not isinstance(splits, list):
        raise UserError(
            f"{where} splits={splits!r}: must be a list, such as [768, 768, 768]; {MEND}"
        )
    heights = tuple(whole(f"{where} splits", each) for each in splits)
    if heights and sum(heights) != sizes["rows"]:
        raise UserError(
            f"{where} splits={splits}: must add up to rows={sizes['rows']}, as rows of query, key "
            f"and value; {MEND}"
        )
    return Weight(
        name=_text(f"{where} name", table["name"]),
        role=role,
        token_share=share(f"{where} tokens", table.get("tokens", 1)),
        source=_text(f"{where} source", table.get("source", "")),
        rows=sizes["rows"],
        cols=sizes["cols"],
        count=sizes["count"],
        parts=sizes["parts"],
        splits=heights,
    )


def _check_keys(where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else MEND
            raise UserError(f"{where} {key}: must be one of {', '.join(known)}; {hint}")


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}={value!r}: must be text in quotes; {MEND}")
    return value


def _sentences(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise UserError(f"{where} assumed={value!r}: must be a list of sentences; {MEND}")
    return tuple(_text(f"{where} assumed", each) for each in value)


def whole(where: str, value: Any, least: int = 1) -> int:
    """A size or a count. Raises UserError."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise UserError(
            f"{where}={value!r}: must be a whole number, {least} or more and at most 10^15; {MEND}"
        )
    return value


def number(where: str, value: Any, zero: bool) -> float:
    """A finite number above 0, or 0 if `zero`. Raises UserError."""
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value < 1e30 or (value == 0 and not zero):
        least = "0 or more" if zero else "above 0"
        raise UserError(f"{where}={value!r}: must be a number, {least} and finite; {MEND}")
    return float(value)


def share(where: str, value: Any) -> float:
    """A share from a fraction such as "8/256" or a number, above 0 and at most 1."""
    try:
        found = Fraction(value) if isinstance(value, str | int | float) else Fraction(0)
    except (ValueError, ZeroDivisionError, OverflowError):  # no fraction, x/0, nan or inf
        found = Fraction(0)
    if isinstance(value, bool) or not 0 < found <= 1 or not math.isfinite(float(found)):
        rule = 'must be a fraction such as "8/256", above 0 and at most 1'
        raise UserError(f"{where}={value!r}: {rule}; {MEND}")
    return float(found)
