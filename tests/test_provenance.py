"""The commit of a row is this checkout's own, and what is not known is not called a change.

python -m pytest tests/test_provenance.py
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import report
from analysis.table import commit_words
from runtime import provenance
from tests.rows import make_run
from tracking import store
from tracking.schema import Run

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=x", "-c", "user.email=x@x")
    done = subprocess.run(["git", *who, *arguments], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def repository(root: Path) -> str:
    """A repository with the project's rules on what to ignore; its commit."""
    for name in ("speedrun.py", "data/text.py", "results/README.md", "plots/README.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    shutil.copyfile(ROOT / ".gitignore", root / ".gitignore")
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=all")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> tuple[Path, str]:
    root = tmp_path / "a check out"
    return root, repository(root)


def test_the_commit_is_known_and_a_change_is(checkout: tuple[Path, str]) -> None:
    root, head = checkout
    assert provenance.commit(root) == (head, True)
    (root / "speedrun.py").write_text("other")
    assert provenance.commit(root) == (head, False)
    git(root, "commit", "--all", "--quiet", "--message=other")
    assert provenance.commit(root) == (git(root, "rev-parse", "HEAD"), True)
    git(root, "rm", "--quiet", "speedrun.py")
    assert not provenance.commit(root)[1]


@pytest.mark.parametrize("name", ["optim/mine.py", "torch/__init__.py", "muon.pyc", "data/x.py"])
def test_a_file_that_python_could_import_is_a_change(name: str, checkout: tuple[Path, str]) -> None:
    root, head = checkout
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_text("")
    assert provenance.commit(root) == (head, False)


@pytest.mark.parametrize("name", [".venv", "data/tiny", "results", "plots", "mine.txt"])
def test_links_and_what_others_leave_are_no_change(
    name: str, checkout: tuple[Path, str], tmp_path: Path
) -> None:
    root, head = checkout
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "site.py").write_text("")
    shutil.rmtree(root / name, ignore_errors=True)
    (root / name).symlink_to(elsewhere)
    for dropping in (".DS_Store", "speedrun.py~", ".speedrun.py.swp", "nohup.out", ".idea/a.xml"):
        (root / dropping).parent.mkdir(exist_ok=True)
        (root / dropping).write_text("")
    assert provenance.commit(root) == (head, True)


@pytest.mark.parametrize("name", ["venv", "env", ".env", ".direnv"])
def test_a_virtual_environment_by_another_name_is_no_change(
    name: str, checkout: tuple[Path, str]
) -> None:
    root, head = checkout
    (root / name).mkdir()
    (root / name / "site.py").write_text("")
    assert provenance.commit(root) == (head, True)


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_of_a_file_that_git_may_not_look_at_nothing_is_known(
    flag: str, checkout: tuple[Path, str]
) -> None:
    root, head = checkout
    git(root, "update-index", flag, "speedrun.py")
    (root / "speedrun.py").write_text("other")
    assert provenance.commit(root) == (head, None)


def test_the_right_to_execute_is_no_part_of_the_program(checkout: tuple[Path, str]) -> None:
    root, head = checkout
    (root / "speedrun.py").chmod(0o755)
    assert provenance.commit(root) == (head, True)


def test_a_record_that_is_made_is_no_change(checkout: tuple[Path, str]) -> None:
    root, head = checkout
    (root / "results" / "records" / "mine").mkdir(parents=True)
    (root / "results" / "records" / "mine" / "runs.csv").write_text("rows")
    (root / "results" / "README.md").write_text("another text")
    assert provenance.commit(root) == (head, True)


def test_a_copy_inside_another_repository_has_no_commit(checkout: tuple[Path, str]) -> None:
    root, _ = checkout
    copy = root / "vendor" / "speedrun"
    copy.mkdir(parents=True)
    (copy / "speedrun.py").write_text("")
    assert provenance.commit(copy) == ("", None)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=vendored")
    assert provenance.commit(copy) == ("", None)


def test_a_link_to_the_checkout_is_the_checkout(checkout: tuple[Path, str], tmp_path: Path) -> None:
    root, head = checkout
    (tmp_path / "link").symlink_to(root)
    assert provenance.commit(tmp_path / "link") == (head, True)


def test_gits_environment_and_settings_have_no_say(
    checkout: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, head = checkout
    other = tmp_path / "other"
    repository(other)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        "[status]\n short = true\n branch = true\n showUntrackedFiles = no\n"
        f'[color]\n ui = always\n[core]\n fsmonitor = "{hook}"\n quotePath = true\n'
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    settings.rename(tmp_path / ".gitconfig")
    for name, value in (
        ("GIT_DIR", other / ".git"),
        ("GIT_WORK_TREE", other),
        ("GIT_INDEX_FILE", tmp_path / "index"),
        ("GIT_CEILING_DIRECTORIES", tmp_path),
        ("GIT_OBJECT_DIRECTORY", tmp_path),
        ("GIT_CONFIG_PARAMETERS", "'status.showUntrackedFiles=no'"),
        ("GIT_LITERAL_PATHSPECS", "1"),
        ("GIT_TRACE", "2"),
    ):
        monkeypatch.setenv(name, str(value))
    assert provenance.commit(root) == (head, True)
    (root / "ünknown.py").write_text("")
    assert provenance.commit(root) == (head, False)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "index").exists()


@pytest.mark.parametrize("fault", ["owner", "no commit", "no git", "broken", "elsewhere", "plain"])
def test_what_git_does_not_tell_is_unknown(
    fault: str, checkout: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = checkout
    if fault == "owner":
        if os.geteuid():
            pytest.skip("only root can give a folder away")
        monkeypatch.setenv("HOME", str(tmp_path))  # without a safe.directory of the user
        for path in (root, root / ".git"):
            os.chown(path, 12345, 12345)
    elif fault == "no commit":
        shutil.rmtree(root / ".git")
        git(root, "init", "--quiet")
    elif fault == "no git":
        monkeypatch.setenv("PATH", "")
    elif fault == "broken":
        shutil.rmtree(root / ".git")
        (root / ".git").write_text("gitdir: /nowhere\n")
    elif fault == "elsewhere":
        git(root, "config", "core.worktree", str(tmp_path))
    else:
        shutil.rmtree(root / ".git")
    assert provenance.commit(root) == ("", None)


def test_a_state_that_cannot_be_read_is_unknown_though_the_commit_is(
    checkout: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, head = checkout
    ask: Callable[..., str | None] = provenance._git

    def slow(root: Path, *arguments: str) -> str | None:
        return None if arguments[0] == "status" else ask(root, *arguments)

    monkeypatch.setattr(provenance, "_git", slow)
    assert provenance.commit(root) == (head, None)


def test_an_unknown_reads_as_unknown(tmp_path: Path) -> None:
    head = "0123456789abcdef"
    assert commit_words("", None) == commit_words("", False) == "unknown"
    assert commit_words(head, True) == "0123456789ab"
    assert commit_words(head, False) == "0123456789ab with uncommitted changes"
    assert commit_words(head, None) == "0123456789ab, unknown whether with changes"
    runs = [make_run(commit="", clean=None), make_run(commit=head, clean=None, run="b")]
    for run in runs:
        store.append(tmp_path / "runs.csv", run)
    assert store.read(tmp_path / "runs.csv", Run) == runs
    assert "commit unknown." in report.machine(runs[:1])
    assert "uncommitted" not in report.machine([replace(run, clean=None) for run in runs])
