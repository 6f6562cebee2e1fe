"""The rules of the design: which part may import which, where code lives, how large files get."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from leaderboard import pages

ROOT = Path(__file__).parents[1]
SCRIPTS = {"speedrun", "model", "muon", "errors"}  # the only files at the root
# May import the trainer, and all that it imports.
COMMANDS = {"studies", "bench", "tests", "examples"}

# What each part may import of torch and of the project, beside itself and errors. A part stands
# below those that may import it.
ALLOWED = {
    "errors": set(),
    "host": set(),
    "muon": {"torch"},
    "tracking": {"host"},
    "data": {"host", "tracking"},
    "layers": {"torch"},
    "optim": {"torch", "muon", "tracking"},
    "engines": {"torch", "host"},
    "model": {"torch", "layers"},
    "analysis": {"host", "tracking"},
    "leaderboard": {"analysis", "host", "tracking"},
    "runtime": {"torch", "data", "engines", "host", "layers", "model", "muon", "tracking"},
    "speedrun": {
        "torch", "analysis", "data", "engines", "host", "layers", "model", "optim", "runtime",
        "tracking",
    },
}  # fmt: skip
ALL = {*ALLOWED, "torch"}
PACKAGES = sorted((ALL | COMMANDS | {"planner"}) - SCRIPTS - {"torch"})

# The files of the planner that count on the trainer's own model and rules; the others compute from
# plain numbers, with the sizes of the data sets, the flags of the command line, tables and charts.
PLANNER_COMMANDS = {"__main__", "tracks", "dry_run", "assignment", "own_models", "traced", "pages"}
PLANNER_ARITHMETIC = {"analysis", "data", "host", "runtime", "tracking"}

FILES = sorted(
    path for path in ROOT.rglob("*.py") if not path.relative_to(ROOT).parts[0].startswith(".")
)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def part(path: Path) -> str:
    return name_of(path).partition(".")[0]


def imported(tree: ast.AST) -> set[str]:
    """Dotted names of all that is imported in a piece of code, also inside functions."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def allowed(path: Path) -> set[str]:
    if part(path) in COMMANDS:
        return ALL | COMMANDS | {"planner"}
    if part(path) == "planner":
        return ALL if path.stem in PLANNER_COMMANDS else PLANNER_ARITHMETIC
    return ALLOWED[part(path)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_keep_to_the_design(path: Path) -> None:
    names = imported(ast.parse(path.read_text()))
    tops = {name.partition(".")[0] for name in names}
    internal = tops & (ALL | COMMANDS | {"planner"})
    extra = internal - allowed(path) - {part(path), "errors"}
    assert not extra, f"{name_of(path)} imports {extra}"
    if part(path) == "muon":  # so that it can be copied into any repository
        assert tops - sys.stdlib_module_names <= {"torch"}
    if part(path) == "optim":
        assert not any(name.startswith("torch.distributed") for name in names)


def test_a_part_may_import_only_parts_that_stand_before_it() -> None:
    below = {"torch"}
    for name, may in ALLOWED.items():
        assert may <= below, f"{name} may import {may - below}, which come after it"
        below.add(name)


def test_no_files_import_each_other_in_a_circle() -> None:
    modules = {name_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = set()
        for dotted in imported(ast.parse(path.read_text())):
            # `from package import module` names a module, `from module import name` a name in it.
            found |= {dotted} & set(modules) or {dotted.rpartition(".")[0]} & set(modules)
        graph[name] = found - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_file_is_where_the_design_has_it() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == SCRIPTS
    assert {part(path) for path in FILES} - SCRIPTS == set(PACKAGES)
    output = [path for path in FILES if part(path) in ("results", "plots")]
    assert not output, "folders of output hold no code"


def test_the_trainer_has_a_type_wherever_it_is_passed() -> None:
    untyped = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.arg) and node.arg == "trainer" and part(path) != "tests":
                annotation = "" if node.annotation is None else ast.unparse(node.annotation)
                untyped += [] if annotation.endswith("Trainer") else [name_of(path)]
    assert not untyped


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_keep_their_size(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= (820 if path.name == "speedrun.py" else 560)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_what_it_is(path: Path) -> None:
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_part_is_type_checked_and_in_the_tree_of_the_readme() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert set(config["modules"]) == SCRIPTS
    assert set(config["packages"]) == set(PACKAGES) - {"tests", "examples"}
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    missing = [name for name in SCRIPTS if f"{name}.py" not in tree]
    missing += [name for name in PACKAGES if f"{name}/" not in tree]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= 200


@pytest.mark.slow
def test_results_can_be_read_drawn_and_verified_without_torch() -> None:
    program = (
        "import sys, analysis.report, analysis.charts.__main__, leaderboard.verify\n"
        "import tracking.live, tracking.tuned, data.loader, planner.race.costs\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


@pytest.mark.slow
def test_the_pages_show_what_the_csvs_hold() -> None:
    texts = "".join(path.read_text() for path in pages.pages())
    shown = {name for _, name, *_ in pages.MARKED.findall(texts)}
    assert shown == set(pages.MARKERS) | pages.ELSEWHERE
    command = [sys.executable, "-m", "leaderboard", "docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_committed_results_verify() -> None:
    command = [sys.executable, "-m", "leaderboard", "verify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
