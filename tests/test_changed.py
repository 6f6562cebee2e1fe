"""What a branch does to the records: new ones are verified, those of others stay as they are."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from errors import UserError
from host.paths import PROJECT
from leaderboard import __main__ as commands
from leaderboard import changed, seal

NOW = {"GIT_AUTHOR_DATE": "2026-11-27T12:00:00Z", "GIT_COMMITTER_DATE": "2026-11-27T12:00:00Z"}
OURS, THEIRS = "ours@example.org", "theirs@example.org"


class Checkout:
    """A scratch repository with two committed records, on a branch of somebody else."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records = root / "results" / "records"
        self.git("init", "--quiet", "--initial-branch=main")
        self.add("coverage")
        self.add("kernels")
        (self.records / "sources").mkdir()
        (self.root / "optim").mkdir()
        (self.root / "optim" / "tuned.toml").write_text("")
        (self.root / "README.md").write_text("A page.\n")
        self.commit(OURS)
        self.git("switch", "--quiet", "--create", "theirs")

    def git(self, *words: str, author: str = THEIRS) -> None:
        who = {f"GIT_{role}_{what}": author for role in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")}  # fmt: skip
        kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        plain = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
        subprocess.run(
            ["git", *words], cwd=self.root, env=kept | plain | NOW | who, check=True,
            capture_output=True,
        )  # fmt: skip

    def commit(self, author: str = THEIRS) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message=x", author=author)

    def add(self, name: str, number: int = 1) -> Path:
        """Evidence of one table, sealed."""
        folder = self.records / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(f"# {name}\n\nQuestion: does it hold?\n")
        (folder / "table.csv").write_text(f"number\n{number}\n")
        seal.seal(folder)
        return folder

    def report(self, base: str = "main") -> int:
        return changed.report(self.root, base)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_new_record_is_verified_and_no_other_is_shown(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert checkout.report() == 0 and capsys.readouterr().out == "no record differs from main\n"
    checkout.add("mine")
    (checkout.root / "a.py").write_text("")
    checkout.commit()
    command = ["changed", "main", "--repository", str(checkout.root)]
    assert commands.main(command) == 0
    out = capsys.readouterr().out
    assert "mine (evidence): passed" in out and "coverage" not in out
    assert "files outside of results/records/: 1, such as 'a.py'; a person reads them" in out


def test_a_new_record_that_fails_fails_the_branch(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkout.add("mine") / "table.csv").write_text("number\n2\n")
    checkout.commit()
    assert checkout.report() == 1
    assert re.search(r"failed: files: table.csv: .*\nfailed: mine\n", capsys.readouterr().out)


def test_a_committed_record_that_fails_now_is_shown_too(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.add("mine")
    checkout.commit()
    (checkout.records / "coverage" / "table.csv").write_text("number\n2\n")  # as a new run may do
    assert checkout.report() == 1
    assert "failed: coverage\n" in capsys.readouterr().out


def edit(checkout: Checkout) -> None:
    checkout.add("coverage", number=2)


def remove(checkout: Checkout) -> None:
    (checkout.records / "coverage" / "table.csv").unlink()
    seal.seal(checkout.records / "coverage")


def extend(checkout: Checkout) -> None:
    (checkout.records / "coverage" / "more.csv").write_text("number\n1\n")
    seal.seal(checkout.records / "coverage")


def rewrite_the_page(checkout: Checkout) -> None:
    (checkout.records / "coverage" / "README.md").write_text("Nothing.\n")


def move(checkout: Checkout) -> None:
    (checkout.records / "coverage").rename(checkout.records / "elsewhere")


def empty_everything(checkout: Checkout) -> None:
    checkout.git("rm", "-r", "--quiet", "results")


@pytest.mark.parametrize("change", [edit, remove, extend, rewrite_the_page, move, empty_everything])
def test_the_record_of_somebody_else_may_not_be_changed(
    checkout: Checkout, change: Callable[[Checkout], None], capsys: pytest.CaptureFixture[str]
) -> None:
    change(checkout)
    (checkout.root / ".mailmap").write_text(f"Us <{OURS}> <{THEIRS}>\n")  # has no say
    checkout.commit()
    assert checkout.report() == 1
    said = f"failed: committed record: coverage: changed by {THEIRS}, but it is of {OURS}; to "
    assert said in capsys.readouterr().out


def test_its_own_author_may_change_a_record_if_it_still_passes(checkout: Checkout) -> None:
    edit(checkout)
    checkout.commit(OURS)
    assert checkout.report() == 0
    (checkout.records / "coverage" / "table.csv").write_text("number\n3\n")
    checkout.commit(OURS)
    assert checkout.report() == 1


def test_a_change_that_two_people_made_is_not_its_authors(checkout: Checkout) -> None:
    edit(checkout)
    checkout.commit(OURS)
    checkout.add("coverage", number=4)
    checkout.commit(THEIRS)
    assert checkout.report() == 1


def test_what_the_base_has_gained_meanwhile_is_no_change(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.add("mine")
    checkout.commit()
    checkout.git("switch", "--quiet", "main")
    checkout.add("later")
    checkout.commit(OURS)
    checkout.git("switch", "--quiet", "theirs")
    assert checkout.report() == 0  # from where they parted
    checkout.git("merge", "--quiet", "--no-edit", "main")  # as a service merges before it tests
    assert checkout.report() == 0 and "later" not in capsys.readouterr().out


def link(records: Path) -> None:
    (records / "mine").symlink_to("/etc")


def link_inside(records: Path) -> None:
    (records / "mine").mkdir()
    (records / "mine" / "runs.csv").symlink_to("/etc/passwd")


def odd_name(records: Path) -> None:
    (records / "::error::a\nb").mkdir()
    (records / "::error::a\nb" / "runs.csv").write_text("")


def file_beside(records: Path) -> None:
    (records / "runs.csv").write_text("")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (link, "results/records/mine: a link, which no record holds"),
        (link_inside, "results/records/mine/runs.csv: a link, which no record holds"),
        (odd_name, r"'results/records/::error::a\nb/runs.csv': a name of other characters than"),
        (file_beside, "results/records/runs.csv: lies beside the folders of the records"),
    ],
)
def test_what_no_record_holds_is_refused_before_anything_is_read(
    checkout: Checkout, place: Callable[[Path], None], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    place(checkout.records)
    checkout.commit()
    monkeypatch.setattr(changed.verify, "everything", lambda *_: pytest.fail("it was read"))
    assert checkout.report() == 1
    out = capsys.readouterr().out
    assert f"failed: committed record: {message}" in out
    assert not any(line.startswith("::") for line in out.splitlines())


def test_the_shared_programs_may_grow_and_nothing_else(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    program = checkout.records / "sources" / f"{'a' * 16}.txt"
    program.write_text("x = 1\n")
    checkout.commit()
    found = changed.branch(checkout.root, "main")
    assert (found.records, found.broken) == ([], [])
    checkout.git("switch", "--quiet", "--create", "next")
    program.write_text("x = 2\n")
    checkout.commit()
    assert checkout.report("theirs") == 1
    assert "the program of committed records, which stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("base", ["nowhere", "--help", "", "main:README.md"])
def test_a_base_that_is_no_commit_is_refused_in_a_line(checkout: Checkout, base: str) -> None:
    with pytest.raises(UserError, match="name a commit that the checkout has") as refused:
        checkout.report(base)
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_checkout_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["changed", "main", "--repository"]
    assert commands.main([*command, str(tmp_path)]) == 2
    assert commands.main([*command, str(tmp_path / "none")]) == 2
    assert all(line.startswith("leaderboard ") for line in capsys.readouterr().err.splitlines())


# ---- The workflows and forms of .github ---------------------------------------------------------

FORMS = sorted((PROJECT / ".github").rglob("*.yml"))
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(path.read_text("utf-8"))


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_every_form_can_be_read(path: Path) -> None:
    assert isinstance(load(path), dict)
    for part in load(path).get("body", []):
        assert part["type"] in ("markdown", "input", "textarea") and part["attributes"]
        assert part["type"] == "markdown" or part["id"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_rights_and_calls_what_there_is(path: Path) -> None:
    text, flow = path.read_text("utf-8"), load(path)
    assert "secrets" not in text and "pull_request_target" not in text
    assert flow["permissions"] == {"contents": "read"}
    assert "pull_request" in flow[True]  # YAML takes the word `on` for true
    for job in flow["jobs"].values():
        assert "permissions" not in job and job["timeout-minutes"] <= 60
        for step in job["steps"]:
            if used := step.get("uses"):
                assert re.fullmatch(r"actions/(checkout|setup-python)@v\d+", used)
            if used and "checkout" in used:
                assert step["with"]["persist-credentials"] is False
            # What a submission can choose reaches a command only through its environment.
            assert "${{" not in step.get("run", "")
    for name in re.findall(r"python -m leaderboard (\w+)", text):
        assert name in commands.COMMANDS
    for name in re.findall(r"(?<![\w/])\.ci/run", text):
        assert os.access(PROJECT / name, os.X_OK)


def test_the_judge_of_a_pull_request_is_the_base_branch() -> None:
    steps = load(PROJECT / ".github" / "workflows" / "records.yml")["jobs"]["verify"]["steps"]
    base = "${{ github.event.pull_request.base.sha }}"
    placed = {s["with"]["path"]: s["with"] for s in steps if "checkout" in s.get("uses", "")}
    assert placed["judge"]["ref"] == base and "ref" not in placed["submission"]
    assert placed["submission"]["fetch-depth"] == 0
    commands_run = [step for step in steps if "run" in step]
    assert commands_run and all(step["working-directory"] == "judge" for step in commands_run)
    assert commands_run[-1]["env"] == {"BASE": base}
    pins = (PROJECT / "requirements.txt").read_text("utf-8")
    needed = re.search(r"grep -E '(.*)' requirements", commands_run[0]["run"])
    assert needed and len(re.findall(needed[1], pins, re.MULTILINE)) == 3
