"""Entrants: who races, spelled `name[:key=value,...]`, with every option settled.

    adamw                        the tuned settings of the track, or the recipe's defaults
    muon:lr=0.05,steps=90        the same with two options replaced
    lib:heavyball.SOAP:lr=3e-3   any class of optimizers, by its dotted path (optim/library.py)

    python -m optim.entrants tiny    # who is tuned for a track, AdamW first

An entrant's options are its recipe's and the schedule's.
"""

import argparse
import difflib
import math
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from optim import Option, find, options, recipes

TUNED = Path(__file__).with_name("tuned.toml")
FRACTION = re.compile(r"(aux_)?(momentum|betas?\d?)")  # options that weigh an average

# Tracks with the data, batch and target rule of another one, whose settings stand in for whoever
# has none of its own there.
STANDS_IN = {"tiny-gqa": "tiny", "tiny-mla": "tiny", "tiny-classic": "tiny"}


@dataclass(frozen=True)
class Entrant:
    """A recipe with every option settled; `label` is what the user typed."""

    label: str
    recipe: str
    settings: dict[str, Any]
    origin: str  # where the settings come from, for the user

    @property
    def recipe_settings(self) -> dict[str, Any]:
        """The options of its recipe alone."""
        own = options(find(self.recipe))
        return {key: value for key, value in self.settings.items() if key in own}

    @property
    def spelled(self) -> str:
        """The entrant with every option written out: two equal ones train alike."""
        values = ",".join(f"{key}={value}" for key, value in self.settings.items())
        return f"{self.recipe}:{values}"


def entrant_options(recipe: str, schedule: Callable[..., Any]) -> dict[str, Option]:
    """All options of an entrant: its recipe's, then the schedule's. Raises UserError."""
    if not recipe.startswith("lib:") and recipe not in recipes():
        raise UserError(_unknown("entrant", recipe, recipes()))
    own = options(find(recipe))
    return own | {key: option for key, option in options(schedule).items() if key not in own}


def split(text: str) -> tuple[str, str]:
    """The name and the assignments of a spelled entrant; `lib:` is a part of the name."""
    prefix = "lib:" if text.startswith("lib:") else ""
    name, _, assignments = text.removeprefix(prefix).partition(":")
    return prefix + name, assignments


def parse(
    text: str,
    track: str,
    schedule: Callable[..., Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    tuned: Path | None = TUNED,
) -> Entrant:
    """Read an entrant; what it leaves out comes from `tuned`, then from the defaults.

    schedule: its keyword arguments are options of every entrant. defaults, fixed: values that
    replace those of the signatures, and everybody's. Raises UserError on an unknown name or key
    or a value of the wrong type.
    """
    name, assignments = split(text)
    known = entrant_options(name, schedule)
    settings = {key: option.default for key, option in known.items()} | dict(defaults)
    found, section = _section(track, name, tuned)
    for key, value in _settings(section).items():
        if key not in known:
            raise UserError(f"{tuned}: [{found}.{name}]: {_unknown('option', key, known)}")
        settings[key] = _convert(f"{tuned}: [{found}.{name}]", key, str(value), known[key].type)
    if "source" in section:
        origin = f"published for {found} ({section['source']})"
    else:
        origin = f"tuned for {found}" if section else f"defaults (nobody has tuned it for {track})"
        if section.get("missed"):
            origin += ", whose target it misses"
    settings |= assigned(text, known)
    if assignments:
        origin += f", with {', '.join(filter(None, assignments.split(',')))}"
    return Entrant(text, name, settings | dict(fixed), origin)


def assigned(text: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """The options that the entrant spelled `text` names, converted to their types.

    Raises UserError for one that is not in `known`, and for a value of the wrong type.
    """
    settings: dict[str, Any] = {}
    for assignment in filter(None, split(text)[1].split(",")):
        key, equals, value = assignment.partition("=")
        if key not in known:
            raise UserError(f"{text}: {_unknown('option', key, known)}")
        if not equals:
            raise UserError(f"{text}: {key} has no value; write {key}={known[key].default}")
        if key in settings:
            raise UserError(f"{text}: {key} is given twice; give it once")
        settings[key] = _convert(text, key, value, known[key].type)
    return settings


def tuned_settings(track: str, recipe: str, tuned: Path | None = TUNED) -> dict[str, Any]:
    """The committed settings of a recipe on a track, or on the one that stands in for it.

    Empty if nobody has tuned it there.
    """
    return _settings(_section(track, recipe, tuned)[1])


def tuned_recipes(track: str, tuned: Path | None = TUNED) -> list[str]:
    """The recipes that have settings on a track, AdamW first. Raises UserError if none has."""
    tracks = _tracks(tuned)
    having = {recipe for name in _lenders(track) for recipe in tracks.get(name, {})}
    named = sorted(having, key=lambda recipe: (recipe != "adamw", recipe))
    if not named:
        raise UserError(f"nobody is tuned for {track}; run: python speedrun.py tune adamw muon")
    return named


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """A section of tuned.toml without what says where it comes from."""
    about = ("trials", "source", "missed")
    return {key: value for key, value in section.items() if key not in about}


def _section(track: str, recipe: str, tuned: Path | None) -> tuple[str, dict[str, Any]]:
    """The track that a recipe's settings come from, and their section; empty if there is none."""
    tracks = _tracks(tuned)
    for name in _lenders(track):
        if section := tracks.get(name, {}).get(recipe, {}):
            return name, section
    return track, {}


def _lenders(track: str) -> tuple[str, ...]:
    """Where the settings of a track are looked for, in this order."""
    return (track, STANDS_IN[track]) if track in STANDS_IN else (track,)


def _tracks(tuned: Path | None) -> dict[str, Any]:
    if tuned is None or not tuned.exists():
        return {}
    try:
        tracks = tomllib.loads(tuned.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{tuned}: not TOML: {error}; git checkout {tuned}") from None
    for track, held in tracks.items():
        sections = held.values() if isinstance(held, dict) else [held]
        if not all(isinstance(section, dict) for section in sections):
            raise UserError(
                f"{tuned}: {track}: must hold sections [{track}.recipe]; git checkout {tuned}"
            )
    return tracks


def _convert(text: str, key: str, value: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        converted = kind(value)
    except (KeyError, ValueError):
        raise UserError(
            f"{text}: {key}={value}: must be {'true or false' if kind is bool else kind.__name__}"
        ) from None
    # Not a number passes every comparison by which a rule refuses its options.
    for number in converted if isinstance(converted, tuple) else (converted,):
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{text}: {key}={value}: must be finite")
        # Not every rule refuses these.
        if key.endswith(("lr", "weight_decay", "eps")) and number < 0:
            raise UserError(f"{text}: {key}={value}: must be at least 0")
        if FRACTION.fullmatch(key) and not 0 <= number < 1:
            raise UserError(f"{text}: {key}={value}: must be at least 0 and below 1")
    return converted


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {what} {name!r}: {hint}one of {', '.join(known)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m optim.entrants")
    parser.add_argument("track", help="print the recipes that are tuned for it")
    try:
        print(*tuned_recipes(parser.parse_args(arguments).track))
    except UserError as error:
        print(f"optim.entrants: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
