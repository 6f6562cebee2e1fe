"""Entrants: what races, spelled `name[:key=value,...]`, with a value for every option.

    adamw                        the tuned settings of the track, or the recipe's defaults
    muon:lr=0.05,steps=90        the same with two options replaced
    lib:heavyball.SOAP:lr=3e-3   any optimizer class, by its dotted path (optim/library.py)

An entrant has the options of its recipe and the options of the schedule.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from optim import Option, find, options, recipes
from tracking import spelling, tuned

FRACTION = re.compile(r"(aux_)?(momentum|betas?\d?)")  # weights of averages: options in [0, 1)


@dataclass(frozen=True)
class Entrant:
    """A recipe with a value for every option."""

    label: str  # what the user typed
    recipe: str
    settings: dict[str, Any]  # the recipe's options, then the schedule's
    recipe_settings: dict[str, Any]  # the recipe's options alone
    origin: str  # where the settings come from, for the user
    defaults: Mapping[str, Any]  # of the recipe and of the schedule
    tuned: Mapping[str, Any]  # its options in tuned.toml for this track; empty if there are none

    @property
    def canonical(self) -> str:
        """The entrant with every option written out; equal spellings train alike."""
        return spelling.spell(self.recipe, self.settings)

    @property
    def changed(self) -> dict[str, Any]:
        """The options that differ from the recipe's defaults."""
        return {k: v for k, v in self.settings.items() if v != self.defaults.get(k)}

    @property
    def copyable(self) -> str:
        """The shortest spelling that gives this entrant again on its track."""
        named = self.changed.keys() | self.tuned.keys()
        return spelling.spell(self.recipe, {k: v for k, v in self.settings.items() if k in named})


def recipe_options(recipe: str, schedule: Callable[..., Any]) -> dict[str, Option]:
    """The options of a recipe. Raises UserError for an unknown one.

    A recipe may have an option of the schedule, to give it another default. For a library's class
    such a name means something else, so it is left out.
    """
    if recipe.startswith("lib:"):
        known = options(find(recipe))
        return {key: known[key] for key in known if key not in options(schedule)}
    if recipe not in recipes():
        raise UserError(_unknown("entrant", recipe, recipes()))
    return options(find(recipe))


def entrant_options(recipe: str, schedule: Callable[..., Any]) -> dict[str, Option]:
    """All options of an entrant: its recipe's, then the schedule's. Raises UserError."""
    own = recipe_options(recipe, schedule)
    return own | {key: option for key, option in options(schedule).items() if key not in own}


def parse(
    text: str,
    track: str,
    schedule: Callable[..., Any],
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    path: Path | None = tuned.TUNED,
) -> Entrant:
    """Read an entrant from its spelling; options that it does not give have their tuned values.

    track: whose tuned settings to take from the file `path`; None: no file. schedule: its keyword
    arguments are options of every entrant. defaults: replace the defaults of the signatures.
    fixed: replace all values, also those in `text`. Raises UserError for an unknown name or key, or
    a value of the wrong type.
    """
    name, typed = spelling.split(text)
    known = entrant_options(name, schedule)
    settings = {key: option.default for key, option in known.items()} | dict(defaults)
    found = None if path is None else tuned.find(track, name, path)
    for key, value in (found.options if found else {}).items():
        where = f"{path}: [{found.track}.{name}]" if found else ""
        if key not in known:
            raise UserError(f"{where}: {_unknown('option', key, known)}")
        settings[key] = _convert(where, key, str(value), known[key].type)
    if found is None:
        origin = f"recipe's defaults, not tuned for {track}"
    elif found.source:
        origin = f"published for {found.track} ({found.source})"
    else:
        origin = f"tuned for {found.track}{', misses its target' if found.missed else ''}"
    settings = settings | assigned(text, known) | dict(fixed)
    if typed:
        origin += f", with {', '.join(filter(None, typed.split(',')))}"
    return Entrant(
        label=text,
        recipe=name,
        settings=settings,
        recipe_settings={key: settings[key] for key in recipe_options(name, schedule)},
        origin=origin,
        defaults={key: option.default for key, option in known.items()},
        tuned=found.options if found else {},
    )


def assigned(text: str, known: Mapping[str, Option]) -> dict[str, Any]:
    """The options that the spelling `text` gives, converted to their types.

    Raises UserError for an option that is not in `known`, and for a value of the wrong type.
    """
    settings: dict[str, Any] = {}
    for assignment in filter(None, spelling.split(text)[1].split(",")):
        key, equals, value = assignment.partition("=")
        if key not in known:
            raise UserError(f"{text}: {_unknown('option', key, known)}")
        if not equals:
            raise UserError(f"{text}: {key} has no value; write {key}={known[key].default}")
        if key in settings:
            raise UserError(f"{text}: {key} is given twice; give it once")
        settings[key] = _convert(text, key, value, known[key].type)
    return settings


def _convert(text: str, key: str, value: str, kind: type) -> Any:
    """`value` as a `kind`. Raises UserError, whose message begins with `text`."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        converted = kind(value)
    except (KeyError, ValueError):
        raise UserError(
            f"{text}: {key}={value}: must be "
            f"{'true or false' if kind is bool else kind.__name__}; change the value"
        ) from None
    # Rules refuse bad options by comparisons, but no comparison refuses NaN.
    for number in converted if isinstance(converted, tuple) else (converted,):
        if not isinstance(number, int | float):
            continue  # a word, or None
        if isinstance(number, float) and not math.isfinite(number):
            raise UserError(f"{text}: {key}={value}: must be finite; change the value")
        # Some rules do not check these themselves.
        if key.endswith(("lr", "weight_decay", "eps")) and number < 0:
            raise UserError(f"{text}: {key}={value}: must be at least 0; change the value")
        if FRACTION.fullmatch(key) and not 0 <= number < 1:
            raise UserError(
                f"{text}: {key}={value}: must be at least 0 and below 1; change the value"
            )
    return converted


def _unknown(what: str, name: str, known: Mapping[str, Any]) -> str:
    """A message with the valid names nearest to `name`, and all of them."""
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {what} {name!r}: {hint}one of {', '.join(known)}"
