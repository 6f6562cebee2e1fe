"""Where an optimizer class comes from: its distribution and version, or the hash of its files.

A class comes from the file that defines it, whatever the name was by which it was found. A file
belongs to a distribution that lists it as its own. The files of anybody else, and of a checkout
that is installed in place, are told by their hash, because they change without a new version.
"""

import ast
import hashlib
import inspect
import sys
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch

from errors import UserError

ROOT = Path(__file__).resolve().parents[1]


def version(found: type[torch.optim.Optimizer]) -> str:
    """The version of the class's library, or the hash of its files, and those of its bases.

    For torch it is "torch", as rows of a race have a column for its version. A base from elsewhere
    is named, 0f3a...+heavyball-3.2.1, if it is an optimizer too.
    """
    versions: dict[str, str] = {}
    for base in (each for each in found.__mro__ if issubclass(each, torch.optim.Optimizer)):
        top = base.__module__.partition(".")[0]
        if top not in versions and (top != "torch" or base is found):
            versions[top] = _version(base)
    first, *others = versions.items()
    return "+".join([first[1], *(f"{top}-{version}" for top, version in others)])


def _version(found: type) -> str:
    module = sys.modules[found.__module__]
    if found.__module__.partition(".")[0] == "torch":
        return "torch"
    owner = distribution(module)
    return owner.version if owner else _hash(found, module)


def _hash(found: type, module: ModuleType) -> str:
    """12 hex digits over the module's file or, in a package, over all its Python files."""
    if not getattr(module, "__file__", None):
        raise UserError(f"{found.__module__}.{found.__qualname__}: has no file; write it into one")
    top = sys.modules.get(found.__module__.partition(".")[0], module)
    folders = [Path(folder) for folder in getattr(top, "__path__", ())]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    digest = hashlib.sha256()
    for file in files or [Path(str(module.__file__))]:
        digest.update(file.read_bytes().replace(b"\r\n", b"\n"))  # as git may check them out
    return digest.hexdigest()[:12]


def distribution(module: ModuleType) -> metadata.Distribution | None:
    """The installed distribution that a module's file belongs to; None if there is none."""
    if not getattr(module, "__file__", None):
        return None
    file = Path(str(module.__file__)).resolve()
    for folder in dict.fromkeys(Path(entry).resolve() for entry in sys.path):
        if file.is_relative_to(folder):
            own = file.relative_to(folder).as_posix()
            for found in metadata.distributions(path=[str(folder)]):
                if _lists(found, own):
                    return found
    return None


def _lists(found: metadata.Distribution, own: str) -> bool:
    """Whether a distribution lists a file, by its path from the folder of the distribution."""
    record = found.read_text("RECORD")
    if record is None:  # an older form, of which there are few
        return any(each.as_posix() == own for each in found.files or ())
    # `files` makes an object of each line, which takes half a second for all distributions.
    return any(line.startswith(f"{own},") for line in record.splitlines())


def hidden(module_name: str) -> Path | None:
    """The file of another module of this name, where one of this project was imported.

    This project's folder comes first in Python's search, so that its `muon` hides any other. Also
    looks in the working directory, where Python does not look, but its user may.
    """
    top = module_name.partition(".")[0]
    if _file_of(top, ROOT) is None:
        return None
    for entry in dict.fromkeys([*sys.path, "."]):
        folder = Path(entry).resolve()
        if folder != ROOT and (found := _file_of(module_name, folder)):
            return found
    return None


def imported(module: ModuleType) -> set[str]:
    """The modules that a module's file imports by their whole names."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError, SyntaxError):
        return set()  # it is no Python file
    nodes = list(ast.walk(tree))
    names = {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    return names | {
        node.module
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def _file_of(module_name: str, folder: Path) -> Path | None:
    """The file of a module below a folder; None if there is none, without importing anything."""
    places: list[str] | None = [str(folder)]
    file = None
    parts = module_name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), places) if places else None
        if spec is None:
            return None
        places, file = spec.submodule_search_locations, spec.origin
    return Path(file) if file else None
