"""What a record cannot hold is refused with one line: files, links, encodings, numbers, neighbours.

The records are those of tests/test_records.py.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from leaderboard import intake, judge, seal, verify
from tests.record_maker import (
    FIRST,
    RUN,
    SECOND,
    SOURCE_NAME,
    Tamper,
    cover,
    edit_form,
    edit_runs,
    failures,
    findings,
    forge,
    make_records,
    small_rules,
)
from tests.rows import make_points
from tracking import store


@pytest.fixture(scope="module", autouse=True)
def tracks() -> Iterator[None]:
    with small_rules():
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("good"))


@pytest.fixture
def results(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def folder(results: Path) -> Path:
    return results / "records" / FIRST


# ---- Files -------------------------------------------------------------------------------------


def write(name: str, content: bytes | str = b"x") -> Tamper:
    def tamper(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return tamper


def encode(name: str, encoding: str) -> Tamper:
    def tamper(root: Path) -> None:
        text = (root / name).read_text("utf-8").replace("A. Name", "Ä. Name")
        (root / name).write_bytes(text.encode(encoding))

    return tamper


def link(name: str, to: str) -> Tamper:
    def tamper(root: Path) -> None:
        if (root / name).is_dir():
            shutil.move(root / name, root.parent / "moved")
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(to)

    return tamper


def sparse(name: str) -> Tamper:
    def tamper(root: Path) -> None:
        with open(root / name, "wb") as file:
            file.truncate(1 << 40)

    return tamper


def deep(root: Path) -> None:
    for _ in range(60):
        root = root / "d"
    root.mkdir(parents=True)
    (root / "x.csv").write_text("a\n")


def many(root: Path) -> None:
    for number in range(32):
        (root / "curves" / f"a{number}.csv").touch()


def manifest(edit: Callable[[list[str]], list[str]]) -> Tamper:
    def tamper(root: Path) -> None:
        path = root / "manifest.csv"
        path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))

    return tamper


FILES: dict[str, tuple[Tamper, str]] = {
    "a program": (write("train.py"), "files: .*train.py: a file that no record has"),
    "a pickle": (write("curves/x.pkl"), "files: .*x.pkl: a file that no record has"),
    "another form": (write("more.toml"), "files: .*more.toml: a file that no record has"),
    "a hidden file": (write(".hidden.csv"), "files: .*hidden.csv: a file that no record has"),
    "a table": (write("more.csv", "a\n1\n"), "files: more.csv: not in manifest.csv"),
    "a curve": (write("curves/x.csv"), "files: curves/x.csv: not in manifest.csv"),
    "a link to a file": (link("README.md", "/etc/passwd"), "files: .*README.md: a link"),
    "a link to a table": (link("runs.csv", "/etc/passwd"), "files: .*runs.csv: a link"),
    "a dangling link": (link("more.csv", "nowhere"), "files: .*more.csv: a link"),
    "a link to a folder": (link("curves", "../moved"), "files: .*curves: a link that no record"),
    "a link to itself": (link("logits", "."), "files: .*logits: a link that no record has"),
    "a pipe": (lambda root: os.mkfifo(root / "more.csv"), "files: .*more.csv: not a regular file"),
    "a pipe as rows": (
        lambda root: [(root / "runs.csv").unlink(), os.mkfifo(root / "runs.csv")],
        "files: .*runs.csv: not a regular file",
    ),
    "a folder as rows": (
        lambda root: [(root / "runs.csv").unlink(), (root / "runs.csv").mkdir()],
        "files: .*runs.csv: not a regular file",
    ),
    "a folder": (lambda root: (root / "new").mkdir(), "files: .*new: a folder that no record has"),
    "a study's folder": (write("scale/runs.csv"), "files: .*scale: a folder that no record has"),
    "deep folders": (deep, "files: .*/d: a folder that no record has"),
    "dots": (write("curves/..x.csv"), r"files: .*\.\.x.csv: a file that no record has"),
    "a line in a name": (write("a\nb.csv"), "^failed: files: .*a b.csv: a file that no record"),
    "a name of another alphabet": (write("curves/é.csv"), "files: .*: a file that no record has"),
    "a name of bytes": (
        lambda root: Path(os.fsdecode(os.fsencode(root) + b"/\xff.csv")).touch(),
        r"files: .*\\udcff.csv: a file that no record has",
    ),
    "a huge file": (sparse("more.csv"), "files: .*more.csv: 1099511627776 bytes, more than"),
    "a huge page": (sparse("README.md"), "files: .*README.md: 1099511627776 bytes, more than"),
    "a huge form": (write("record.toml", b"# " + b"x" * 70_000), "files: .*70002 bytes, more than"),
    "many files": (many, "files: .*: more than 40 files, which no record needs"),
    "many lines": (write("a.csv", b"\n" * 500_001), "files: .*a.csv: more than 500000 lines"),
    "a long line": (write("a.csv", b"a" * 70_000), "files: .*one of more than 65536 bytes"),
    "a NUL": (write("a.csv", b"a\n\0\n"), "files: .*a.csv: has a NUL character"),
    "latin-1": (encode("record.toml", "latin-1"), "files: .*record.toml: not UTF-8 at byte"),
    "UTF-16": (encode("runs.csv", "utf-16"), "files: .*runs.csv: not UTF-8 at byte 0"),
    "UTF-16 without its mark": (encode("runs.csv", "utf-16-le"), "runs.csv: has a NUL character"),
    "no form": (lambda root: (root / "record.toml").unlink(), "form: .*record.toml is missing"),
    "an empty form": (write("record.toml", b""), "form: .*' is missing"),
    "empty rows": (write("runs.csv", b""), "rows: runs.csv has no run"),
    "no rows": (lambda root: (root / "runs.csv").unlink(), "files: runs.csv: in manifest.csv, but"),
    "other columns": (write("runs.csv", "a,b\n1,2\n"), "rows: .*line 1: unknown column 'a'"),
    "a curve of other columns": (write(f"curves/{RUN}.csv", "a\n"), "rows: .*unknown column 'a'"),
    "no curve": (lambda root: (root / f"curves/{RUN}.csv").unlink(), f"rows: .*{RUN}.csv is missi"),
    "no source": (
        lambda root: (root / "sources" / SOURCE_NAME).unlink(),
        "program: .*No such file",
    ),
    "a source that is a link": (
        link(f"sources/{SOURCE_NAME}", "/etc/passwd"),
        f"files: .*{SOURCE_NAME}: a link",
    ),
    "a manifest without a row": (
        manifest(lambda lines: lines[:2] + lines[3:]),
        "files: curves/.*: not in manifest.csv",
    ),
    "a manifest with a row more": (
        manifest(lambda lines: [*lines, ",x.csv,1,ab\n"]),
        "files: x.csv: in manifest.csv, but not there",
    ),
    "a manifest with a row twice": (
        manifest(lambda lines: [*lines, lines[1]]),
        "files: curves/.*: 2 rows of manifest.csv",
    ),
    "a manifest without the program": (
        manifest(lambda lines: lines[:-1]),
        "program: 19df.*speedrun.py: not in manifest.csv",
    ),
    "an empty manifest": (write("manifest.csv", b""), "files: .*: not in manifest.csv"),
    "a manifest of other columns": (write("manifest.csv", b"a\n"), "files: .*unknown column 'a'"),
    "no manifest": (lambda root: (root / "manifest.csv").unlink(), "files: .*csv is missing; run"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_a_record_is_found(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(intake, "FILES", 40)
    tamper, message = FILES[name]
    tamper(folder)
    found = failures(folder)
    assert any(re.search(message, line) for line in found), found
    if name.startswith("a pipe") or " name" in name:  # the command says so, too
        assert verify.main([str(folder)]) == 1
        assert capsys.readouterr().out.count("\n") < 60


BAD = ("nan", "inf", "-inf", "1e999", "1_0", "0x1", " 1", "", "9" * 400, "9" * 5000)


@pytest.mark.parametrize("column", ["seed", "train_seconds", "target"])
def test_a_number_that_is_none_is_refused(column: str, folder: Path) -> None:
    path = folder / "runs.csv"
    header, _, *rest = path.read_text().splitlines()
    names = header.split(",")
    for value in BAD:
        if column != "seed" and value == BAD[-2]:
            continue  # a float may have many digits; it is infinite, and refused as such
        cells = ["x"] * len(names)
        cells[names.index(column)] = value
        path.write_text("\n".join([header, ",".join(cells), *rest, ""]))
        (line,) = [x for x in failures(folder) if "failed: rows: " in x]
        assert re.search(r"runs.csv line 2: .*; restore the file", line)


def test_a_link_in_the_place_of_a_record_is_refused(results: Path) -> None:
    folder = results / "records" / FIRST
    folder.rename(results / "elsewhere")
    folder.symlink_to(results / "elsewhere")
    (section,) = [s for s in verify.everything(results, results / "x") if s.name == "elsewhere"]
    assert "a link" in str(section.failures[0])


def test_a_record_in_another_folder_is_found(results: Path) -> None:
    folder = results / "records" / FIRST
    folder.rename(results / "records" / "2026-08-01_tiny_best")
    assert (
        "folder 2026-08-01_tiny_best, but"
        in failures(results / "records" / "2026-08-01_tiny_best")[0]
    )


@pytest.mark.parametrize("where", [".", f"../{FIRST}/", f"./../../records/{FIRST}"])
def test_a_record_is_found_by_a_relative_path(
    where: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert verify.main([where]) == 0


def test_many_findings_are_cut(folder: Path) -> None:
    edit_runs(folder, lambda run: replace(run, started="x" * 3000))
    edit_runs(folder, lambda run: replace(run, label=f"{run.label}-{run.run}"))
    found = findings(folder)
    assert len(found) < 100 and max(map(len, found)) < 2000


# ---- A record among others ---------------------------------------------------------------------


def compared(results: Path, name: str) -> list[str]:
    reports = judge.examine_all(verify.folders(results))
    (report,) = [each for each in reports if each.name == name]
    return list(map(str, report.findings))


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ("[]", "muon: sets the record of none, but the boards give steps, seconds"),
        ('["steps"]', "muon: sets the record of steps, but the boards give steps, seconds"),
        ('["tokens"]', "muon: sets the record of tokens, but the boards give steps, seconds"),
    ],
)
def test_a_record_says_what_it_sets(claimed: str, message: str, results: Path) -> None:
    edit_form(results / "records" / SECOND, ('["steps", "seconds"]', claimed))
    assert compared(results, SECOND) == [f"failed: standing record: {message}"]


def test_a_record_that_does_not_beat_the_standing_one_sets_none(results: Path) -> None:
    folder = results / "records" / SECOND
    for seed, floor in enumerate((2.715, 2.815, 3.015, 3.115)):  # as many steps, and no less time
        forge(folder, f"two-muon-{seed}", make_points(floor=floor))
        forge(folder, f"two-adamw-{seed}", make_points(floor=floor + 0.1075))
    cover(folder)
    message = "muon: sets the record of steps, seconds, but the boards give none"
    assert compared(results, SECOND) == [f"failed: standing record: {message}"]


def test_a_run_of_another_record_is_found(results: Path) -> None:
    first, second = results / "records" / FIRST, results / "records" / SECOND
    for seed in range(4):
        forge(second, f"two-muon-{seed}", store.read_curve(first, f"one-muon-{seed}"))
        forge(second, f"two-adamw-{seed}", make_points(floor=3.3 + seed / 100, step_seconds=0.11))
    cover(second)
    (line, *_) = [x for x in compared(results, SECOND) if ": curves: " in x]
    assert line.endswith(
        f"run two-muon-0: has the losses and the clock of run one-muon-0 of {FIRST}"
    )


def test_evidence_is_sealed_without_a_race(tmp_path: Path) -> None:
    folder = tmp_path / "records" / "what"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# What\n\nQuestion: is it so?\n\nYes.\n")
    (folder / "table.csv").write_text("a\n1\n")
    assert seal.seal(folder).kind == "evidence"
    assert findings(folder) == []
