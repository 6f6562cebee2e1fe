"""Where a class comes from: its version in the row, and modules that hide each other.

    python -m pytest tests/test_origin.py

Claims: the version is of the distribution whose file defines the class, or the hash of the files;
a module that is called as one of this project is refused by name, wherever it is.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest

import optim
from errors import UserError
from optim import library, origin

RULE = "import torch\n\n\nclass {0}(torch.optim.SGD):\n    pass\n"
Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a folder that Python searches last."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)

    def make(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        invalidate_caches()
        return path

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]
    library.recipe_of.cache_clear()


def install(write: Write, top: str, version: str, files: list[str]) -> None:
    """Writes what an installer writes for a distribution with these files."""
    info = f"{top}_dist-{version}.dist-info"
    write(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {top}-dist\nVersion: {version}\n")
    write(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*files, f"{info}/METADATA"]))


def refusal(path: str) -> str:
    with pytest.raises(UserError) as caught:
        library.recipe_of(f"lib:{path}")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def version(path: str) -> str:
    return str(optim.options(library.recipe_of(f"lib:{path}"))["version"].default)


@pytest.mark.parametrize("module", ["muon", "data", "model", "errors", "optim", "tracking"])
@pytest.mark.parametrize("form", ["{0}.py", "{0}/__init__.py"])
def test_a_module_called_as_one_of_ours_is_refused(write: Write, module: str, form: str) -> None:
    path = write(form.format(module), RULE.format("Theirs"))
    message = refusal(f"{module}.Theirs")
    assert f"{module} is a module of this project, which hides {path}" in message
    assert "cp -r" in message and f"lib:other_{module}.Theirs" in message


def test_the_copy_that_the_refusal_asks_for_races(write: Write) -> None:
    write("other_muon.py", write("muon.py", RULE.format("Muonish")).read_text())
    assert len(version("other_muon.Muonish")) == 12


def test_a_module_within_a_package_called_as_one_of_ours_is_refused(write: Write) -> None:
    write("data/__init__.py", "")
    path = write("data/rules.py", RULE.format("Theirs"))
    assert str(path) in refusal("data.rules.Theirs")


@pytest.mark.parametrize(
    "line", ["import muon", "from muon import Muon", "import torch, muon as m"]
)
def test_a_file_whose_own_import_is_hidden_is_refused(
    write: Write, tmp_path: Path, line: str
) -> None:
    write("borrowing.py", f"{line}\n{RULE.format('Mine')}")
    assert len(version("borrowing.Mine")) == 12  # it means ours
    library.recipe_of.cache_clear()
    other = write("muon.py", RULE.format("Muon"))
    with pytest.raises(
        UserError, match="borrowing imports muon, but muon is a module of"
    ) as caught:
        version("borrowing.Mine")
    assert f"hides {other}" in str(caught.value) and "borrowing.py" in str(caught.value)


def test_what_hides_nothing_is_ours(write: Write, tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()  # a folder without code
    write("optimizers.py", "")
    assert len(version("optim.lion.Lion")) == 12
    write("optim/other.py", RULE.format("Theirs"))  # and one that has no lion
    library.recipe_of.cache_clear()
    assert len(version("optim.lion.Lion")) == 12


def test_the_working_directory_is_looked_at_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("muon.py").write_text(RULE.format("Mine"))
    Path("mylion.py").write_text(RULE.format("Mine"))
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert "muon is a module of this project" in refusal("muon.Mine")
    message = refusal("mylion.Mine")
    assert "Python does not look for mylion in this folder; race with PYTHONPATH=." in message


def test_the_version_is_of_the_distribution_whose_file_it_is(write: Write) -> None:
    write("fine_rules/__init__.py", "from fine_rules.inner import Fine\n")
    write("fine_rules/inner.py", RULE.format("Fine"))
    install(write, "fine_rules", "4.5.6", ["fine_rules/__init__.py", "fine_rules/inner.py"])
    assert version("fine_rules.Fine") == "4.5.6"
    mixed = "import abc\nimport torch\n\n\nclass Mixed(torch.optim.SGD, abc.ABC):\n    pass\n"
    write("mixed.py", mixed)
    assert len(version("mixed.Mixed")) == 12  # its other bases are no rules
    write("reexports.py", "from fine_rules import Fine\n")
    assert version("reexports.Fine") == "4.5.6"
    write("derived.py", "import fine_rules\n\n\nclass Derived(fine_rules.Fine):\n    pass\n")
    own = hashlib.sha256(Path(sys.path[-1], "derived.py").read_bytes()).hexdigest()[:12]
    assert version("derived.Derived") == f"{own}+fine_rules-4.5.6"


def test_a_file_of_one_s_own_that_hides_a_distribution_has_a_hash(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(write, "hidden_rules", "4.5.6", ["hidden_rules/__init__.py"])
    write("hidden_rules/__init__.py", RULE.format("Theirs"))
    own = write("mine/hidden_rules.py", RULE.format("Mine"))
    monkeypatch.syspath_prepend(own.parent)
    digest = hashlib.sha256(own.read_bytes()).hexdigest()[:12]
    assert version("hidden_rules.Mine") == digest


def test_a_pin_holds_for_the_pinned_distribution_alone(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_pins", lambda: {"pinned_dist": "1.0", "lonely": "1.0"})
    write("lonely.py", RULE.format("Mine"))  # a file of one's own with the name of a pin
    assert len(version("lonely.Mine")) == 12
    write("pinned.py", RULE.format("Theirs"))
    install(write, "pinned", "2.0", ["pinned.py"])
    assert "pinned-dist 2.0 is installed, but races use 1.0" in refusal("pinned.Theirs")


def test_a_package_of_one_s_own_is_told_by_all_its_files(write: Write) -> None:
    write("mypack/__init__.py", "from mypack.rule import Mine\n")
    write("mypack/rule.py", RULE.format("Mine"))
    helper = write("mypack/helper.py", "x = 1\n")
    first = version("mypack.Mine")
    helper.write_text("x = 2\n")
    library.recipe_of.cache_clear()
    assert version("mypack.Mine") != first


def test_torch_s_own_classes_have_torch_s_version() -> None:
    assert origin.version(library.rule("torch.optim.AdamW")) == "torch"
    assert os.path.exists(str(import_module("torch").__file__))
