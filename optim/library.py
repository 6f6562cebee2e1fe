"""Any optimizer class, named by its dotted path: the adapter to other libraries.

    python speedrun.py muon lib:heavyball.SOAP:lr=3e-3
    python speedrun.py lib:torch.optim.NAdam:betas=0.9/0.95,scope=all

The options of `lib:PATH` are the arguments of the class's constructor whose defaults are numbers,
booleans, strings or tuples of numbers. A tuple is written with slashes. The adapter adds:

scope: "matrices": the class has the hidden matrices and AdamW the rest; "all": it has all
    parameters. In both cases `embed_lr`, `head_lr` and `vector_lr` are the learning rates of the
    rest, and weight decay applies to the hidden matrices alone.
version: of the library, or the hash of your own file. Rows of a race hold it, and another version
    is refused.

The tuner searches `lr` from a tenth of its default to ten times that, and `weight_decay` likewise,
or from 0.01 to 1 if its default is 0. An argument with the name of a schedule option keeps the
class's default. optim/library_recipes.py has recipes for the classes that are raced most.
"""

import difflib
import hashlib
import inspect
import warnings
from collections.abc import Iterable
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch

from errors import UserError
from optim import Group, Log, Option, Recipe, Roles, options, pick, with_signature
from optim.adamw import EmbedLR, HeadLR, VectorLR, auxiliary

PINS = Path(__file__).parents[1] / "requirements-optimizers.txt"
DEFAULT_LR = 1e-3  # of a class whose constructor has none

OptimizerClass = type[torch.optim.Optimizer]


class number:  # noqa: N801  lower case because error messages print it: "must be number"
    """Converts text to an int if it is one, else to a float."""

    def __new__(cls, text: str) -> Any:
        try:
            return int(text)
        except ValueError:
            return float(text)


class numbers(tuple[Any, ...]):  # noqa: N801  as above
    """A tuple of numbers, written with slashes, because commas separate options."""

    def __new__(cls, values: str | Iterable[Any]) -> "numbers":
        if isinstance(values, str):
            values = [number(text) for text in values.split("/")]
        return super().__new__(cls, values)

    def __str__(self) -> str:
        return "/".join(map(str, self))


def rule(path: str) -> OptimizerClass:
    """The class at a dotted path. Raises UserError if there is none that is an optimizer."""
    module_name, _, name = path.rpartition(".")
    if not all(path.split(".")) or not module_name:
        raise UserError(f"lib:{path}: must be a module and a class, such as lib:torch.optim.NAdam")
    try:
        module = import_module(module_name)
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"lib:{path}: {_no_module(module_name, error)}") from None
    _require_pin(path)
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
        ]
        near = difflib.get_close_matches(name, classes, n=2) or sorted(classes)[:5]
        raise UserError(
            f"lib:{path}: {module_name} has no torch.optim.Optimizer called {name}; "
            f"try {' or '.join(near) or 'another module'}"
        )
    if module_name.startswith("heavyball"):
        # Warnings against what is intended here: a schedule, and a scale that an entrant gives.
        for message in ("Learning rate changed", "It's recommended to use precond_init_scale"):
            warnings.filterwarnings("ignore", message)
        if not torch.cuda.is_available():
            # heavyball compiles and autotunes each function, which takes minutes on a CPU.
            import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
    return found


def _pins() -> dict[str, str]:
    """Pinned versions by the name of the module."""
    pairs = (line.split("==") for line in PINS.read_text("utf-8").split())
    return {name.replace("-", "_"): version for name, version in pairs}


def _no_module(module: str, error: Exception) -> str:
    """A message: why a module cannot be imported, and what to do."""
    if not isinstance(error, ModuleNotFoundError):
        return f"importing {module} fails: {type(error).__name__}: {_first_line(error)}; mend it"
    missing = error.name or module
    top = missing.partition(".")[0]
    if missing != top and find_spec(top):
        return f"there is no module {missing}; name one that {top} has, such as {top}.ClassName"
    what = f"-r {PINS.name}" if top in _pins() else top
    return f"{top} is not installed; run: python -m pip install {what}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _require_pin(path: str) -> None:
    """Raise UserError if a pinned library is installed in another version than its pin."""
    top = path.partition(".")[0]
    pinned = _pins().get(top)
    if pinned and metadata.version(top) != pinned:
        raise UserError(
            f"lib:{path}: {top} {metadata.version(top)} is installed, but races use {pinned}; "
            f"run: python -m pip install -r {PINS.name}"
        )


def _version(found: OptimizerClass) -> str:
    """The version of the class's library, or the hash of its file.

    For torch it is "torch", as rows of a race have a column for its version.
    """
    top = found.__module__.partition(".")[0]
    distributions = metadata.packages_distributions().get(top)
    if top == "torch" or not distributions:
        return "torch" if top == "torch" else _file_hash(found)
    return metadata.version(distributions[0])


def _file_hash(found: OptimizerClass) -> str:
    return hashlib.sha256(
        Path(inspect.getfile(found)).read_bytes().replace(b"\r\n", b"\n")
    ).hexdigest()[:12]


def declared(path: str, found: OptimizerClass) -> dict[str, Option]:
    """The arguments of a class that can be given as options.

    Raises UserError, naming them, if the class requires other arguments, or a closure in each step.
    """
    parameters = list(inspect.signature(found).parameters.values())[1:]  # the first: params
    of_step = list(inspect.signature(found.step).parameters.values())[1:]  # the first: self
    required = [p.name for p in parameters if _is_required(p) and p.name != "lr"]
    required += [p.name for p in of_step if _is_required(p)]
    if required:
        raise UserError(
            f"lib:{path}: it requires {', '.join(required)}, which an entrant cannot give; "
            "write a recipe in optim/ that gives it"
        )
    if "lr" not in [p.name for p in parameters]:
        raise UserError(
            f"lib:{path}: it has no argument lr, which the schedule sets; write a recipe in optim/"
        )
    known = {p.name: _option(p) for p in parameters}
    return {name: option for name, option in known.items() if option}


def _is_required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def _option(p: inspect.Parameter) -> Option | None:
    """The option of an argument; None if its default cannot be written, as a function cannot."""
    default = p.default
    if p.name == "lr":
        is_rate = isinstance(default, int | float) and default > 0
        lr = float(default) if is_rate else DEFAULT_LR
        return Option(float, lr, Log(lr / 10, lr * 10))
    if p.name == "weight_decay" and isinstance(default, int | float):
        decay = float(default)
        return Option(float, decay, Log(decay / 10, decay * 10) if decay else Log(0.01, 1.0))
    if isinstance(default, bool | float | str):
        return Option(type(default), default, None)
    if isinstance(default, int):  # a default of 0 may be meant as a float
        return Option(int if p.annotation in (int, "int") else number, default, None)
    if isinstance(default, tuple) and default and all(isinstance(x, int | float) for x in default):
        return Option(numbers, numbers(default), None)
    return None


def _rest(
    roles: Roles,
    scope: str = "matrices",
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> None:
    """The options that the adapter adds."""


@cache
def recipe_of(name: str) -> Recipe:
    """The recipe `lib:PATH`. Raises UserError for a class that cannot be raced."""
    path = name.removeprefix("lib:")
    found = rule(path)
    version = _version(found)
    own = declared(path, found)
    adapter = options(_rest) | {"version": Option(str, version, None)}

    def made(roles: Roles, **settings: Any) -> list[Group]:
        given = {key: settings[key] for key in own if key in settings and key not in adapter}
        given = {k: tuple(v) if isinstance(v, numbers) else v for k, v in given.items()}
        if settings["version"] != version:
            raise UserError(
                f"{name}: version={settings['version']}: {version} is installed; "
                f"install {settings['version']}"
            )
        if settings["scope"] not in ("matrices", "all"):
            raise UserError(
                f"{name}: scope={settings['scope']}: must be matrices or all; type scope=matrices"
            )
        _try(name, found, given)
        rates = [settings[key] for key in ("embed_lr", "head_lr", "vector_lr")]
        matrices = Group(found, pick(roles, "matrix"), **given)
        if settings["scope"] == "matrices":
            return [matrices, *auxiliary(roles, *rates)]
        rest = given | ({"weight_decay": 0.0} if "weight_decay" in given else {})
        by_role = zip(("embed", "head", "vector"), rates, strict=True)
        return [matrices, *(Group(found, pick(roles, r), **rest | {"lr": lr}) for r, lr in by_role)]

    known = {key: option for key, option in own.items() if key not in adapter} | adapter
    parameters = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            default=option.default,
            annotation=Annotated[option.type, option.range] if option.range else option.type,
        )
        for key, option in known.items()
    ]
    return with_signature(made, name, parameters)


def _try(name: str, found: OptimizerClass, given: dict[str, Any]) -> None:
    """Raise UserError if the class cannot take a step on a 4 by 4 matrix with these options."""
    p = torch.nn.Parameter(torch.eye(4))
    p.grad = torch.eye(4)
    try:
        with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
            found([p], **given).step()
    except Exception as error:  # a user's class may raise anything
        raise UserError(
            f"{name}: it fails on a 4 by 4 matrix: {type(error).__name__}: {_first_line(error)}; "
            "mend its options, or write a recipe in optim/"
        ) from None
