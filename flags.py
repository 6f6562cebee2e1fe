"""Command-line flags made from dataclasses: one declaration per knob."""

import argparse
from dataclasses import fields
from typing import Any, get_type_hints


def add(parser: argparse.ArgumentParser, declared: type, note: str) -> None:
    """A flag for each field of a dataclass; a flag that is not given is absent."""
    group = parser.add_argument_group(note)
    hints = get_type_hints(declared)
    for knob in fields(declared):
        if knob.name == "name":
            continue
        flag, kind = "--" + knob.name.replace("_", "-"), hints[knob.name]
        if kind is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            kind = int if kind == (int | None) else kind
            group.add_argument(flag, type=kind, metavar=kind.__name__, default=argparse.SUPPRESS)


def given(arguments: argparse.Namespace, declared: type) -> dict[str, Any]:
    """The values of a dataclass that the command line gave."""
    return {f.name: getattr(arguments, f.name) for f in fields(declared) if f.name in arguments}
