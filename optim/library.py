"""Any optimizer class, named by its dotted path: the adapter to other libraries.

    python speedrun.py muon lib:heavyball.SOAP:lr=3e-3
    python speedrun.py lib:torch.optim.NAdam:betas=0.9/0.95,scope=all

The options of `lib:PATH` are the arguments of the class's constructor whose defaults are None,
numbers, booleans, strings or tuples of numbers. A tuple is written with slashes, and None as none.
What an argument whose default is None takes else is read from its annotation or, without one, from
the value: a number, numbers with slashes, true, false, or a word. The adapter adds:

scope: "matrices": the class has the hidden matrices and AdamW the rest; "all": it has all
    parameters. In both cases `embed_lr`, `head_lr` and `vector_lr` are the learning rates of the
    rest, and weight decay applies to the hidden matrices alone.
version: of the library that the class comes from (optim/origin.py), or the hash of your own files.
    Rows of a race hold it, and another version is refused.

The tuner searches `lr` from a tenth of its default to ten times that, and `weight_decay` likewise,
or from 0.01 to 1 if its default is 0. An argument with the name of a schedule option keeps the
class's default. optim/library_recipes.py has recipes for the classes that are raced most.
"""

import difflib
import inspect
import warnings
from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

import torch

from errors import UserError
from optim import Group, Log, Option, Recipe, Roles, options, origin, pick, with_signature
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
            values = [None if _is_none(text) else number(text) for text in values.split("/")]
        return super().__new__(cls, values)

    def __str__(self) -> str:
        return "/".join(map(str, self))


class switch:  # noqa: N801  as above
    """Converts true and false."""

    def __new__(cls, text: str) -> Any:
        return {"true": True, "false": False}[text.lower()]


class value:  # noqa: N801  as above
    """Converts text to what it looks like: true, false, a number, numbers, or else a word."""

    def __new__(cls, text: str) -> Any:
        for kind in (switch, number, numbers):
            try:
                return kind(text)
            except (KeyError, ValueError):
                continue
        return text


def _is_none(text: str) -> bool:
    return text.lower() == "none"


def _or_none(kind: type) -> type:
    """Converts "none" to None, and all else as `kind` does."""

    def convert(_: type, text: str) -> Any:
        return None if _is_none(text) else kind(text)

    return type(f"{kind.__name__} or none", (), {"__new__": convert})


def rule(path: str) -> OptimizerClass:
    """The class at a dotted path. Raises UserError if there is none that is an optimizer."""
    module_name, _, name = path.rpartition(".")
    if not all(path.split(".")) or not module_name:
        raise UserError(f"lib:{path}: must be a module and a class, such as lib:torch.optim.NAdam")
    _require_ours(path, module_name)
    try:
        module = import_module(module_name)
    except BaseException as error:  # a user's file may raise anything, or call sys.exit()
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UserError(f"lib:{path}: {_no_module(module_name, error)}") from None
    for used in sorted(origin.imported(module)):
        if other := origin.hidden(used):
            raise UserError(
                f"lib:{path}: {module_name} imports {used}, but {used.partition('.')[0]} is a "
                f"module of this project, which hides {other}; give that another name, and import "
                f"it by that in {module.__file__}"
            )
    _require_pin(path, module)
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


def _no_module(module: str, error: BaseException) -> str:
    """A message: why a module cannot be imported, and what to do."""
    if not isinstance(error, ModuleNotFoundError):
        return f"importing {module} fails: {type(error).__name__}: {_first_line(error)}; mend it"
    missing = error.name or module
    top = missing.partition(".")[0]
    if missing != top and find_spec(top):
        return f"there is no module {missing}; name one that {top} has, such as {top}.ClassName"
    if Path(f"{top}.py").is_file() or Path(top, "__init__.py").is_file():
        return f"Python does not look for {top} in this folder; race with PYTHONPATH=. in front"
    what = f"-r {PINS.name}" if top in _pins() else top
    return f"{top} is not installed; run: python -m pip install {what}"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _require_ours(path: str, module_name: str) -> None:
    """Raise UserError if a module of this project hides another one of that name."""
    other = origin.hidden(module_name)
    if other:
        top = module_name.partition(".")[0]
        what, copied = (other.parent, "") if other.stem == "__init__" else (other, ".py")
        raise UserError(
            f"lib:{path}: {top} is a module of this project, which hides {other}; copy that to "
            f"another name: cp -r {what} other_{top}{copied}; then race "
            f"lib:other_{path} with PYTHONPATH=. in front"
        )


def _require_pin(path: str, module: ModuleType) -> None:
    """Raise UserError if a pinned library is installed in another version than its pin."""
    found = origin.distribution(module)
    pinned = _pins().get(found.name.replace("-", "_")) if found else None
    if found and pinned and found.version != pinned:
        raise UserError(
            f"lib:{path}: {found.name} {found.version} is installed, but races use {pinned}; "
            f"run: python -m pip install -r {PINS.name}"
        )


def declared(path: str, found: OptimizerClass) -> dict[str, Option]:
    """The arguments of a class that can be given as options.

    Raises UserError, naming them, if the class requires other arguments, or a closure in each step.
    """
    parameters = _parameters(found)
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


def _parameters(found: OptimizerClass) -> list[inspect.Parameter]:
    """The arguments of a class's constructor but the first, which are the model's parameters.

    Those of its base class, if the class hands on what it is given. Annotations are types, where
    their names can be resolved.
    """
    signatures = []
    for base in (base for base in found.__mro__ if "__init__" in vars(base)):
        try:
            signature = [*inspect.signature(base, eval_str=True).parameters.values()]
        except Exception:  # an annotation may be any expression
            signature = [*inspect.signature(base).parameters.values()]
        signatures.append(signature)
        if not any(p.kind is p.VAR_KEYWORD for p in signature):
            break
    with_lr = [each for each in signatures if any(p.name == "lr" for p in each)]
    return (with_lr or signatures)[0][1:]


def _is_required(p: inspect.Parameter) -> bool:
    return p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)


def _option(p: inspect.Parameter) -> Option | None:
    """The option of an argument; None if its default cannot be written, as a function cannot."""
    default = p.default
    if isinstance(default, torch.Tensor) and default.numel() == 1:
        default = default.item()
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
    if default is None:
        return Option(_or_none(_kind(p.annotation)), None, None)
    several = isinstance(default, tuple | list) and len(default) > 0
    if several and all(isinstance(x, int | float | None) for x in default):
        return Option(numbers, numbers(default), None)
    return None


def _kind(annotation: Any) -> type:
    """How an argument that may be None is read otherwise."""
    if isinstance(annotation, str):  # it could not be resolved
        return value
    kinds = {kind for kind in (get_args(annotation) or (annotation,)) if kind is not type(None)}
    if get_origin(annotation) in (tuple, list, Sequence):
        return numbers
    if kinds == {int, float}:
        return number
    (only,) = kinds if len(kinds) == 1 else (None,)
    if get_origin(only) in (tuple, list, Sequence):
        return numbers
    return {float: number, int: int, bool: switch, str: str}.get(only, value)  # type: ignore[arg-type]


def _rest(
    roles: Roles,
    scope: str = "matrices",
    embed_lr: EmbedLR = 0.3,
    head_lr: HeadLR = 0.01,
    vector_lr: VectorLR = 0.01,
) -> None:
    """The options that the adapter adds."""


def _marking(found: OptimizerClass) -> OptimizerClass:
    """The class; if it tells its groups apart by a key `use_muon`, a subclass that sets the key.

    Several packages have Muon and AdamW in one class, and ask for the key in every group.
    """
    makers = [vars(base)["__init__"] for base in found.__mro__[:-1] if "__init__" in vars(base)]
    try:
        marked = any("use_muon" in inspect.getsource(maker) for maker in makers)
    except (OSError, TypeError):
        return found
    if not marked:
        return found

    def construct(self: Any, params: Iterable[Any], **options: Any) -> None:
        groups = [each if isinstance(each, dict) else {"params": [each]} for each in params]
        found.__init__(self, [{"use_muon": True} | group for group in groups], **options)

    names = {"__init__": construct, "__module__": found.__module__}
    return type(found.__name__, (found,), names)


@cache
def recipe_of(name: str) -> Recipe:
    """The recipe `lib:PATH`. Raises UserError for a class that cannot be raced."""
    path = name.removeprefix("lib:")
    found = rule(path)
    installed = origin.version(found)
    own = declared(path, found)
    found = _marking(found)
    adapter = options(_rest) | {"version": Option(str, installed, None)}

    def made(roles: Roles, **settings: Any) -> list[Group]:
        given = {key: settings[key] for key in own if key in settings and key not in adapter}
        given = {k: tuple(v) if isinstance(v, numbers) else v for k, v in given.items()}
        if settings["version"] != installed:
            raise UserError(
                f"{name}: version={settings['version']}: {installed} is installed; "
                f"install {settings['version']}"
            )
        if settings["scope"] not in ("matrices", "all"):
            raise UserError(
                f"{name}: scope={settings['scope']}: must be matrices or all; type scope=matrices"
            )
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
