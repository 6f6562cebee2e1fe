"""The command line of speedrun.py, its flags made from dataclasses: one declaration per knob."""

import argparse
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, get_type_hints


def command_line(
    description: str | None, tracks: Iterable[str], options: type, track: type
) -> argparse.ArgumentParser:
    """The parser; `options` and `track` are the dataclasses whose fields are flags."""
    parser = argparse.ArgumentParser(
        prog="speedrun.py",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "words", nargs="*", metavar="[tune | plan] ENTRANT", help="default: adamw muon"
    )
    names = ", ".join(tracks)
    parser.add_argument("--track", help=f"one of {names}; default: gpt2 with a GPU, else tiny")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each entrant (default 3)")
    parser.add_argument("--resume", nargs="?", const="", metavar="RACE", help="default: the newest")
    parser.add_argument("--steps", type=int, help="horizon of every entrant; a custom track")
    add(parser, options, "how it runs")
    add(parser, track, "overrides of the track, for a quick look; they make it custom")
    return parser


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
