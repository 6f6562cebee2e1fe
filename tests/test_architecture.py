"""Who may import whom, and how large things may get: the rules of the design."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from analysis import report

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "engines", "optim", "planner", "plots", "results", "runtime")
OWN = {*PACKAGES, *(path.stem for path in ROOT.glob("*.py"))}
# What a part may import of torch and of the project, beside itself and errors: lower layers first.
ALLOWED = {
    "errors": set(),
    # leaves
    "muon": {"torch"},
    "flags": set(),
    "presets": set(),
    # packages
    "optim": {"torch", "muon"},
    "engines": {"torch"},
    "data": set(),
    "results": set(),
    "plots": {"results"},
    "planner": set(),
    # the model
    "attention": {"torch", "presets"},
    "model": {"torch", "attention", "presets"},
    # training: how a step is done, fed and timed, whoever's rule it is
    "runtime": {"torch", "data", "engines", "model", "muon"},
    # commands and records: what runs around a training, or without one
    "record": {"torch", "optim", "results", "runtime"},
    "tune": {"torch", "optim", "record", "results"},
    "dryrun": {"torch", "engines", "flags", "model", "optim", "planner", "results"},
    "assignment": {"torch", "dryrun", "model", "optim", "planner", "results"},
    # on top of all: no part of a model, no rule's arithmetic, no chart, no estimate
    "speedrun": {
        "torch", "assignment", "data", "dryrun", "engines", "flags", "model", "optim", "presets",
        "record", "results", "runtime", "tune",
    },
}  # fmt: skip
FILES = sorted(
    path for path in ROOT.rglob("*.py") if not {".venv"} & set(path.relative_to(ROOT).parts)
)
SOURCES = [path for path in FILES if path.relative_to(ROOT).parts[0] not in ("tests", "bench")]


def imported(path: Path) -> set[str]:
    """Dotted names of all that a file imports, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_design(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imported(path)}
    internal = tops & (OWN | {"torch", "bench", "tests"})
    allowed = ALLOWED[part(path)] | {part(path), "errors"}
    if part(path) == "muon":  # can be copied into any repository
        internal, allowed = tops - sys.stdlib_module_names, {"torch"}
    assert internal <= allowed, f"{path.name} imports {internal - allowed}"
    if part(path) == "optim":
        assert not any(name.startswith("torch.distributed") for name in imported(path))


def test_every_part_has_a_rule_and_may_import_only_what_stands_before_it() -> None:
    assert set(ALLOWED) == OWN
    below = {"torch"}
    for name, allowed in ALLOWED.items():
        assert allowed <= below, f"{name} may import {allowed - below}, which come after it"
        below.add(name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_keep_their_size(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= (600 if path.name == "speedrun.py" else 560)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_says_what_it_is(path: Path) -> None:
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_file_at_the_top_is_type_checked_and_in_the_tree_of_the_readme() -> None:
    files = {path.stem for path in ROOT.glob("*.py")}
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    assert sorted(config["modules"]) == sorted(files)
    assert sorted(config["packages"]) == sorted((*PACKAGES, "bench"))
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    missing = [name for name in files if f"{name}.py" not in tree]
    missing += [name for name in config["packages"] if f"{name}/" not in tree]
    assert missing == []


def test_records_can_be_read_and_drawn_without_torch() -> None:
    program = (
        "import importlib.abc, sys\n"
        "class NoTorch(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, NoTorch())  # scipy looks into sys.modules\n"
        "import analysis.report, leaderboard.verify, tracking.live, analysis.charts, data.loader\n"
        "import planner.race\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_pages_show_what_the_records_hold() -> None:
    texts = "".join(path.read_text() for path in report.pages())
    shown = {name for _, name, *_ in report.MARKED.findall(texts)}
    assert shown == set(report.MARKERS)  # the example, `file`, among them
    command = [sys.executable, "-m", "analysis.report", "--docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_committed_results_verify() -> None:
    command = [sys.executable, "-m", "leaderboard.verify"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
