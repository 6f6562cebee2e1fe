"""Finds a model: a preset of models.toml, your own TOML, a config.json or a track of this project.

    from planner import models
    models.find("deepseek-v4")           # a preset
    models.find("my-model.toml")         # your own: planner/models/preset_file.py shows the form
    models.find("checkpoint/")           # a folder with the config.json of Hugging Face

`add` and `chosen` are the flags by which every command of the planner takes a model. Nothing is
downloaded and no tensor is made.
"""

import argparse
import difflib
import functools
import importlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from errors import UserError
from host import paths
from planner.models import huggingface, preset_file
from planner.models.weights import HIDDEN, ROLES, Model, Weight
from runtime import command_line
from runtime.command_line import knob

__all__ = [
    "HIDDEN", "ROLES", "Model", "Training", "Weight", "add", "chosen", "chosen_many", "find",
    "presets",
]  # fmt: skip

NAMED = Path(__file__).parents[1] / "models.toml"


@dataclass(frozen=True)
class Training:
    """What a plan changes of a model's training. Its fields are flags of the command line."""

    seq_len: int = knob("tokens of a training sequence; 0: the model's own", 0)
    attended: float = knob("keys that a query sees on average; 0: the model's own", 0.0)
    train_tokens: float = knob("tokens of the training; 0: the model's own", 0.0)

    def __post_init__(self) -> None:
        for name in ("seq_len", "attended", "train_tokens"):
            value = getattr(self, name)
            if not 0 <= value < 1e30:  # also nan
                flag = command_line.flag(name)
                raise UserError(f"{flag} {value}: must be 0 or more and finite; or leave it out")

    def applied(self, model: Model) -> Model:
        """The model with these changes. Raises UserError if its attention needs --attended."""
        seq_len, attended = self.seq_len or model.seq_len, self.attended or model.attended
        if seq_len != model.seq_len and not self.attended:
            if model.attended != model.seq_len / 2:
                raise UserError(
                    f"--seq-len {seq_len}: {model.title} does not attend to all earlier keys, so "
                    f"--attended must be given too; it is {model.attended:g} of {model.seq_len}"
                )
            attended = seq_len / 2
        if attended > seq_len:
            raise UserError(
                f"--attended {attended:g}: must be at most the {seq_len} tokens of a sequence; "
                "give --seq-len, or a smaller one"
            )
        tokens = self.train_tokens or model.train_tokens
        return replace(model, seq_len=seq_len, attended=attended, train_tokens=tokens)


@functools.cache
def presets() -> dict[str, Model]:
    """The models of models.toml, by name."""
    return preset_file.read(NAMED)


def find(name: str) -> Model:
    """The model of a preset's name, or of a file. Raises UserError."""
    if name in presets():
        return presets()[name]
    path = paths.typed(name)
    if name.endswith(".toml"):
        return preset_file.read_one(path)
    if path.is_dir():
        return huggingface.read(path / "config.json")
    if name.endswith(".json"):
        return huggingface.read(path)
    near = difflib.get_close_matches(name.lower(), presets(), 1)
    hint = f"did you mean {near[0]}?" if near else "run with deepseek-v4"
    raise UserError(
        f"model {name!r}: must be one of {', '.join(presets())}, or a path that ends in .toml or "
        f".json, or a folder with a config.json; {hint}"
    )


def add(parser: argparse.ArgumentParser, many: bool = False) -> None:
    """The argument MODEL, --from-model, and the flags of `Training`.

    many: any number of models.
    """
    names = ", ".join(presets())
    note = f"{names}; your own file that ends in .toml; a config.json of Hugging Face or its folder"
    default = " (default: all presets)" if many else ""
    nargs = "*" if many else "?"
    parser.add_argument("model", nargs=nargs, metavar="MODEL", help=f"{note}{default}")
    note = "the model of a track of this project" + ("" if many else ", in place of MODEL")
    parser.add_argument("--from-model", metavar="TRACK", help=note)
    command_line.add(parser, Training, "the model's training")


def chosen(arguments: argparse.Namespace) -> Model:
    """The model of a command line. Raises UserError."""
    if (arguments.model is None) == (arguments.from_model is None):
        what = "is missing" if arguments.model is None else "and --from-model are both given"
        raise UserError(f"MODEL {what}; give one of them, such as deepseek-v4 (-h lists them)")
    return _all(arguments, [] if arguments.model is None else [arguments.model])[0]


def chosen_many(arguments: argparse.Namespace) -> list[Model]:
    """The models of a command line that takes many; all presets if none is given.

    Raises UserError.
    """
    return _all(arguments, arguments.model or ([] if arguments.from_model else [*presets()]))


def _all(arguments: argparse.Namespace, names: Sequence[str]) -> list[Model]:
    """The named models, then the model of --from-model, with the flags of `Training`."""
    found = [find(name) for name in names]
    if arguments.from_model is not None:
        # Imported by name: it imports torch, which is not needed for the others.
        found.append(
            importlib.import_module("planner.models.own_models").from_track(arguments.from_model)
        )
    training = Training(**command_line.given(arguments, Training))
    return [training.applied(model) for model in found]
