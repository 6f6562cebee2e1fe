"""How an entrant is spelled, `name[:key=value,...]`, and how prose writes its name.

    split("muon:lr=0.05")              ("muon", "lr=0.05")
    options_of("muon:lr=0.05")         {"lr": "0.05"}
    spell("muon", {"lr": 0.05})        "muon:lr=0.05"
    display_name("muon:lr=0.05")       "Muon (lr=0.05)"

The name of a class from a library, `lib:module.Class`, has a colon of its own. Values are text
here; `optim.entrants` gives them the types that the recipe declares.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

DISPLAY_NAMES = {
    "adafactor": "Adafactor", "adam": "Adam", "adamuon": "AdaMuon", "adamw": "AdamW",
    "ademamix": "AdEMAMix", "deepseek-v4": "DeepSeek-V4", "dion": "Dion", "kron": "Kron",
    "lamb": "LAMB", "lion": "Lion", "mars": "MARS", "moonlight": "Moonlight", "muon": "Muon",
    "muon2": "Muon²", "muonclip": "MuonClip", "muonh": "MuonH", "muon-split": "Muon Split",
    "nadamw": "NAdamW", "normuon": "NorMuon", "polar-express": "Polar Express",
    "schedule-free": "Schedule-Free", "sgd": "SGD", "shampoo": "Shampoo", "signum": "Signum",
    "soap": "SOAP",
}  # fmt: skip

# A comma ends a value only where the next option begins.
LONGEST_NAME = 60  # characters of a recipe in the name of a file
_OPTION = re.compile(r"(\w+)=(.*?)(?:,(?=\w+=)|$)")


def split(entrant: str) -> tuple[str, str]:
    """The recipe's name and the options, as typed."""
    prefix = "lib:" if entrant.startswith("lib:") else ""
    name, _, options = entrant.removeprefix(prefix).partition(":")
    return prefix + name, options


def recipe_of(entrant: str) -> str:
    """The recipe's name."""
    return split(entrant)[0]


def options_of(entrant: str) -> dict[str, str]:
    """The options of a well-formed entrant, such as a row's, in the order of the spelling."""
    return dict(_OPTION.findall(split(entrant)[1]))


def spell(recipe: str, settings: Mapping[str, Any]) -> str:
    """The entrant with these options written out."""
    return f"{recipe}:{assignments(settings)}"


def assignments(settings: Mapping[str, Any]) -> str:
    """Options as `key=value,...`."""
    return ",".join(f"{key}={value}" for key, value in settings.items())


def file_name(entrant: str) -> str:
    """A name for files: the recipe, and six hex digits of the hash of the options.

    A recipe with a longer name than files may have is cut, and then is a part of the hash.
    """
    recipe, options = split(entrant)
    hashed = options if len(recipe) <= LONGEST_NAME else entrant
    digest = hashlib.sha256(hashed.encode()).hexdigest()[:6]
    return f"{recipe.replace(':', '-')[:LONGEST_NAME]}-{digest}"


def display_name(entrant: str) -> str:
    """The entrant as prose writes it; a recipe that is not in DISPLAY_NAMES stays as typed.

    A class from a library is written as the library's name and its own.
    """
    name, options = split(entrant)
    if name.startswith("lib:"):
        path = name.removeprefix("lib:").split(".")
        name = ".".join(dict.fromkeys((path[0], path[-1])))
    return DISPLAY_NAMES.get(name.replace("_", "-"), name) + (f" ({options})" if options else "")
