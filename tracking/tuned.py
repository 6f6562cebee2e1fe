"""optim/tuned.toml: the settings of each recipe on each track, and their origin.

    python -m tracking.tuned tiny    # the recipes that are tuned for a track, AdamW first

A section `[track.recipe]` holds the recipe's options, `steps` (the horizon), and either `trials`
(indices of the tuner's trials) or `source` (where the settings were published). `missed` says that
no horizon met the target. No other code reads or writes the file.

A file belongs to the folder that has its trials, see `of`: this one to the project's results and
records, FOLDER/tuned.toml to another folder of rows.
"""

import json
import math
import re
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError
from host import entry
from tracking.files import write_atomic

TUNED = Path(__file__).parents[1] / "optim" / "tuned.toml"

# Tracks with the data, batch and target rule of another track: its settings are taken for recipes
# that have none of their own there.
SETTINGS_FALLBACK = {"tiny-gqa": "tiny", "tiny-mla": "tiny", "tiny-classic": "tiny"}

HEADER = """\
# Settings by track and recipe, written by the tuner: python -m studies.tune. `trials` are the
# indices of the trials that they come from; the project's trials are in results/records/, and
# docs/comparison.md says how they were searched. `missed`: no horizon met the target, and `steps`
# is the longest that was tried. `source` is the public log or pull request that they were
# published in. Track 3 sums gradients over the 524,288 tokens of a batch, which are averaged here,
# so its eps of 1e-10 is divided by that number: the updates are the same.
"""


@dataclass(frozen=True)
class Tuned:
    """One section [track.recipe]: settings from trials or from a source."""

    track: str
    recipe: str
    settings: dict[str, Any]  # options of the recipe and of the schedule, but for the horizon
    steps: int  # the horizon
    trials: tuple[int, ...] = ()  # indices of the trials they come from ...
    source: str = ""  # ... or where they were published
    missed: bool = False  # no horizon met the target; `steps` is the longest that was tried

    @property
    def options(self) -> dict[str, Any]:
        """The settings and the horizon."""
        return self.settings | {"steps": self.steps}


def of(results: Path) -> Path:
    """The file of settings whose trials are in a folder of results.

    Only the project's own folder belongs to optim/tuned.toml: the numbers of trials in another
    folder are other trials.
    """
    own = TUNED.parents[1] / "results"
    return TUNED if results.resolve() == own.resolve() else results / TUNED.name


def read(path: Path = TUNED) -> list[Tuned]:
    """The sections in the order of the file; none when there is no file.

    Raises UserError if the file has another form.
    """
    if not path.exists():
        return []
    try:
        return [
            _section(track, recipe, section)
            for track, recipes in tomllib.loads(path.read_text(encoding="utf-8")).items()
            for recipe, section in recipes.items()
        ]
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: {error}; it must have sections [track.recipe] with steps and trials, "
            f"or a source in place of trials; git checkout {path}"
        ) from error


def _section(track: str, recipe: str, section: dict[str, Any]) -> Tuned:
    if ("trials" in section) == ("source" in section):
        raise ValueError(f"[{track}.{recipe}] must have either trials or source")
    steps, trials = section.pop("steps"), tuple(section.pop("trials", ()))
    source, missed = section.pop("source", ""), section.pop("missed", False)
    if not isinstance(source, str):
        raise TypeError(f"[{track}.{recipe}] has source {source}, which is not a text")
    if type(steps) is not int or type(missed) is not bool or {*map(type, trials)} - {int}:
        raise TypeError(f"[{track}.{recipe}] needs whole numbers for steps and trials")
    for key, value in section.items():
        if not isinstance(value, bool | int | float | str):
            raise TypeError(f"[{track}.{recipe}] has {key} = {value}, which no option can be")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"[{track}.{recipe}] has {key}={value}, and numbers must be finite")
    return Tuned(track, recipe, section, steps, trials, source, missed)


def find(track: str, recipe: str, path: Path = TUNED) -> Tuned | None:
    """The section of a recipe on a track, or else on its fallback; None if there is none."""
    sections = {(section.track, section.recipe): section for section in read(path)}
    found = (sections.get((name, recipe)) for name in fallback_tracks(track))
    return next(filter(None, found), None)


def recipes(track: str, path: Path = TUNED) -> list[str]:
    """The recipes with settings on a track, AdamW first. Raises UserError if there are none."""
    tracks = fallback_tracks(track)
    having = {section.recipe for section in read(path) if section.track in tracks}
    if not having:
        raise UserError(
            f"no recipe is tuned for {track}; run: make tune TRACK={track}, "
            'or name the entrants: ENTRANTS="adamw muon"'
        )
    return sorted(having, key=lambda recipe: (recipe != "adamw", recipe))


def fallback_tracks(track: str) -> tuple[str, ...]:
    """The tracks whose settings are used for a track, in order."""
    return (track, SETTINGS_FALLBACK[track]) if track in SETTINGS_FALLBACK else (track,)


def write(section: Tuned, path: Path = TUNED) -> None:
    """Put one section into the file, in place of the old one. Raises UserError."""
    kept = [old for old in read(path) if (old.track, old.recipe) != (section.track, section.recipe)]
    lines = [HEADER]
    for each in sorted([*kept, section], key=lambda each: (each.track, each.recipe)):
        about: dict[str, Any] = {"source": each.source} if each.source else {}
        about |= {"trials": list(each.trials)} if each.trials else {}
        about |= {"missed": True} if each.missed else {}
        lines.append(f"[{_key(each.track)}.{_key(each.recipe)}]")
        lines += [f"{_key(key)} = {_value(v)}" for key, v in (each.options | about).items()]
        lines.append("")
    write_atomic(path, ["\n".join(lines).encode()])


def _key(name: str) -> str:
    """A key of TOML: in quotes if it has other characters, as lib:module.Class."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _value(name)


def _value(value: Any) -> str:
    """A value of TOML, which for what a section holds is nearly JSON."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = entry.parser("tracking.tuned", __doc__)
    parser.add_argument("track", help="print the recipes that are tuned for it")
    return entry.run(parser, argv, lambda given: print(*recipes(given.track)))


if __name__ == "__main__":
    sys.exit(main())
