"""Command lines made from dataclasses: one declaration per knob, with its help text.

    @dataclass(frozen=True)
    class Options:
        threads: int = knob("CPU threads; 0: an equal share of the cores", 0)

A field is a flag: `--threads INT`, its help text and its default. A flag that is not given is
absent from the parsed arguments, so that `given` returns what the user typed and nothing else.
"""

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from errors import UserError
from host import entry, paths


def knob(help_text: str, default: Any = MISSING) -> Any:
    """A field of a dataclass that is also a flag, with its help text: what it is, and its unit."""
    return field(default=default, metadata={"help": help_text})


def flag(name: str) -> str:
    """The flag of a field: `val_every` is `--val-every`."""
    return "--" + name.replace("_", "-")


def add(
    parser: argparse.ArgumentParser,
    declared: type,
    title: str,
    default: str = "",
    only: Collection[str] | None = None,
) -> None:
    """A flag for each field of a dataclass that is declared with `knob`.

    default: what a flag without a default of its own falls back to, in words. only: the fields that
    this command uses; None: all.
    """
    group, hints = parser.add_argument_group(title), get_type_hints(declared)
    for each in fields(declared):
        if "help" not in each.metadata or (only is not None and each.name not in only):
            continue
        kind = int if hints[each.name] == (int | None) else hints[each.name]
        fallback = default if each.default is MISSING else _shown(each.default)
        options: dict[str, Any] = dict(
            default=argparse.SUPPRESS,
            help=f"{each.metadata['help']} (default: {fallback})".replace("%", "%%"),
        )
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            read = paths.typed if kind is Path else kind
            options |= dict(type=read, metavar=kind.__name__.upper())
        group.add_argument(flag(each.name), **options)


def race_parser(
    description: str | None,
    program: str,
    tracks: Sequence[str],
    options: type,
    track: type,
    only: Collection[str] | None = None,
    race: bool = True,
) -> argparse.ArgumentParser:
    """The parser of a command that takes entrants and a track.

    options, track: the dataclasses whose knobs are flags. only: the options that the command uses;
    None: all. race: with --seeds and --steps.
    """
    parser = entry.parser(program, description)
    parser.usage = f"{parser.prog} [ENTRANT ...] [options]"
    parser.add_argument("entrants", nargs="*", metavar="ENTRANT", help="default: adamw muon")
    names = ", ".join(tracks)
    parser.add_argument("--track", help=f"one of {names} (default: gpt2 with a GPU, else tiny)")
    if race:
        note = "runs of each entrant (default: 4)"
        parser.add_argument("--seeds", type=int, default=4, metavar="INT", help=note)
        note = "horizon of every entrant; makes the track custom"
        parser.add_argument("--steps", type=int, metavar="INT", help=note)
    add(parser, options, "how it runs", only=only)
    add(parser, track, "the track: changing any of these makes it custom", default="the track's")
    return parser


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return paths.from_here(str(value))


def given(arguments: argparse.Namespace, declared: type) -> dict[str, Any]:
    """The values of a dataclass that the command line gave."""
    return {f.name: getattr(arguments, f.name) for f in fields(declared) if f.name in arguments}


def at_least(options: Any, **least: int) -> None:
    """Raise UserError if one of these options, fields of a dataclass or not, is below its least."""
    for name, bound in least.items():
        value = getattr(options, name)
        if value < bound:
            raise UserError(f"{flag(name)} {value}: must be {bound} or more; or leave it out")


def above_zero(options: Any) -> None:
    """Raise UserError if a number among the fields of a dataclass is not above 0 and finite."""
    for each in fields(options):
        value = getattr(options, each.name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not 0 < value < math.inf:
            raise UserError(
                f"{flag(each.name)} {value}: must be above 0 and finite; "
                "leave it out for the track's own"
            )
