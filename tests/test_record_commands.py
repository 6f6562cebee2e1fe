"""submit makes a record or leaves nothing behind; rerun compares, and keeps a doubt."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from leaderboard import board, judge, rerun, submit, verify
from leaderboard.claims import FAILED, PASSED, UNCHECKED
from tests.record_maker import (
    FIRST,
    cover,
    edit_form,
    edit_runs,
    forge,
    make_race,
    remove_run,
    small_rules,
)
from tests.rows import SOURCE, make_points
from tracking import store

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def tracks() -> Iterator[None]:
    with small_rules():
        yield


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A results folder with one race."""
    make_race(tmp_path / "results", seeds=3)
    return tmp_path / "results"


def make(root: Path, *arguments: str) -> int:
    return submit.main([*arguments, f"--root={root}", f"--to={root}", "--author=A. Name"])


def refusal(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.startswith("leaderboard submit: ") and said.count("\n") == 1
    return said


def left(root: Path) -> list[str]:
    """What is in the folder of records."""
    return sorted(str(path.relative_to(root)) for path in root.glob("records/**/*"))


# ---- submit ------------------------------------------------------------------------------------


def test_a_race_becomes_a_record(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(root, "duel", "--new=Wider heads.") == 0
    said = capsys.readouterr().out
    folder = root / "records" / "2026-08-01_tiny_duel"
    assert f"\nwritten: {folder}\nnext:\n" in said and "leaderboard verify" in said
    report = judge.examine(folder)
    assert report.record and report.state == PASSED
    assert (report.record.new, report.record.authors) == ("Wider heads.", ("A. Name",))
    page = (folder / "README.md").read_text()
    assert "<!-- begin:claims" in page and "3.2100" in page
    assert [path.name for path in (root / "records").iterdir()] == [folder.name]
    assert make(root) == 2 and "race one: is in" in refusal(capsys)


def test_a_record_is_named_after_what_it_claims(root: Path) -> None:
    assert make(root) == 0
    assert [path.name for path in (root / "records").iterdir()] == ["2026-08-01_tiny_muon"]


def test_results_may_have_any_name(root: Path, tmp_path: Path) -> None:
    to = tmp_path / "a" / "b"
    assert submit.main(["x", f"--root={root}", f"--to={to}", "--author=A"]) == 0
    assert verify.main([str(to / "records" / "2026-08-01_tiny_x")]) == 0


def unclock(root: Path) -> None:
    edit_runs(root, lambda run: replace(run, train_seconds=1.0))


def other_source(root: Path) -> None:
    (root / "sources" / f"{store.source_hash(SOURCE)}.txt").write_text(SOURCE + "x")


def custom(root: Path) -> None:
    edit_runs(root, lambda run: replace(run, track="custom"))


def stray(root: Path) -> None:
    (root / "records").write_text("a file")


def taken(root: Path) -> None:
    (root / "records" / "2026-08-01_tiny_x").mkdir(parents=True)


@pytest.mark.parametrize(
    ("tamper", "arguments", "message"),
    [
        (None, ["x", "--runs=two"], "no race 'two' in runs.csv; its races: one"),
        (None, ["x", "--claim=sgd"], "claim: sgd: no such entrant in the race, which has adamw, m"),
        (None, ["X"], "NAME 'X': must be of a-z"),
        (None, ["x" * 81], "NAME 'x+': must be of a-z, 0-9 and -.+, 80 characters"),
        (None, ["../x"], "NAME '../x': must be of a-z"),
        (None, ["x", "--author="], "authors: name at least one"),
        (None, ["x", "--new=\x1b[31m"], "new = '.*' is not str, finite and in one line"),
        (None, ["x", f"--new={'x' * 3000}"], "new = 'x+' is not str"),
        (taken, ["x"], "2026-08-01_tiny_x: is there already; choose another NAME"),
        (stray, ["x"], "cannot write .*2026-08-01_tiny_x: .*; make the folder writable, then"),
        (
            unclock,
            ["x"],
            "_tiny_x: rows: run one-adamw-0: .* (and .* more); see RULES.md",
        ),
        (other_source, ["x"], "txt: not the text that it is named after; restore the file"),
        (custom, ["x"], "track custom: has no leaderboard; a record is of tiny"),
        (
            lambda root: remove_run(root, "one-muon-1"),
            ["x"],
            "race one: dropped run: muon: seed 1 is missing of the seeds 0 to 2",
        ),
        (
            lambda root: [forge(root, f"one-muon-{n}", make_points(floor=3.49)) for n in (0, 2)],
            ["x", "--claim=muon"],
            "race one: curves: run one-muon-2: has the losses of run one-muon-0",
        ),
        (
            lambda root: forge(root, "one-muon-0", make_points(floor=3.9)),
            ["x", "--claim=muon"],
            "target: muon: mean loss 3.*; more seeds may",
        ),
    ],
)
def test_a_record_that_is_refused_leaves_nothing(
    tamper: Any, arguments: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if tamper:
        tamper(root)
    before = left(root)
    assert make(root, *arguments) == 2
    assert re.search(message.replace("(and .* more)", r"\(and .* more\)"), refusal(capsys))
    assert left(root) == before and not list(root.rglob(".record*"))
    assert (root / "records").exists() == (tamper in (taken, stray))


def test_a_race_does_not_change_what_newer_records_set(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(root, "x") == 0
    before = left(root)
    make_race(root, "older", "2026-07-01", (3.105, 2.905), 3, 80, 0.08)
    assert make(root, "y", "--runs=older") == 2
    message = "race older: is older than 2026-08-01_tiny_x, and would change what that record sets"
    assert message in refusal(capsys)
    assert left(root) == before


def test_an_entrant_that_proves_nothing_is_not_claimed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(root, "one-adamw-0", make_points(floor=3.9))
    assert make(root, "x") == 0
    assert "\nnot claimed: target: adamw: mean loss 3." in capsys.readouterr().out
    (adamw, muon) = board.entries(root)
    assert (adamw.claimed, muon.claimed, muon.state) == (False, True, PASSED)


# ---- rerun -------------------------------------------------------------------------------------

# A program that writes its rows at once. Its losses are those of the record, and --worse more.
PROGRAM = '''"""A race that takes no time."""
import sys
sys.path.insert(0, {repository!r})
from pathlib import Path
from dataclasses import replace
from tests import record_maker, rows
from tracking import store
arguments = sys.argv[1:]
seeds = int(arguments[arguments.index("--seeds") + 1])
root = Path(arguments[arguments.index("--results") + 1])
text = Path("text").read_text()
rows.SOURCE = record_maker.SOURCE = text
rows.PROVENANCE["source_hash"] = store.source_hash(text)
worse = float(Path({worse!r}).read_text())
floors = (3.203 + worse, 3.003 + worse)
record_maker.make_race(root, "again", "2026-08-03", floors, seeds)
'''


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """A record with PROGRAM, and the file that says how much worse its losses are."""
    from tests import record_maker, rows

    worse = tmp_path / "worse"
    worse.write_text("0")
    program = PROGRAM.format(repository=str(REPOSITORY), worse=str(worse))
    files = {"speedrun.py": program, rerun.PRINTS: "# prints\n"}
    text = store.source_text(files)
    for module in (record_maker, rows):
        monkeypatch.setattr(module, "SOURCE", text)
    monkeypatch.setitem(rows.PROVENANCE, "source_hash", store.source_hash(text))
    unpack = rerun.unpack
    # The text that it was unpacked from lies beside the program, which a real one makes itself.
    monkeypatch.setattr(
        rerun,
        "unpack",
        lambda folder, record, commit, place: [
            unpack(folder, record, commit, place),
            (place / "text").write_text(text),
        ],
    )
    make_race(tmp_path / "own")
    results = tmp_path / "results"
    submit.submit(tmp_path / "own", results, "first", authors=["A"])
    yield results / "records" / FIRST, worse


@pytest.mark.slow
def test_a_rerun_that_holds(record: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = record
    assert rerun.main([str(folder)]) == 0
    said = capsys.readouterr().out
    assert "adamw: holds\nmuon: holds\n" in said and "runs the program of" in said


@pytest.mark.slow
def test_a_rerun_that_fails_is_kept_as_a_doubt(
    record: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, worse = record
    results = folder.parents[1]
    worse.write_text("0.2")
    arguments = [str(folder), "--keep", f"--to={results}", "--author=B. Name"]
    assert rerun.main(arguments) == 1
    said = capsys.readouterr().out
    assert re.search(r"muon: FAILS: mean loss 3.21800, above 3.0\d+\n", said)
    doubt = results / "records" / "2026-08-03_tiny_first-rerun"
    assert (
        f"written: {doubt}\n" in said
        and f"(../{FIRST}/README.md)" in (doubt / "README.md").read_text()
    )
    assert verify.main([str(doubt)]) == 0
    for entry in board.entries(results):
        assert (entry.record, entry.doubts) == (FIRST, (doubt.name,))

    # A doubt by name alone: of runs that hold, of another program, of no record.
    def found(name: str) -> list[str]:
        reports = judge.examine_all(verify.folders(results))
        return [str(f) for r in reports if r.name == name for f in r.findings]

    forms = (doubt / "record.toml").read_text()
    edit_form(doubt, (f'questions = "{FIRST}', 'questions = "2026-08-01_tiny_none'))
    assert found(doubt.name) == [
        f"{UNCHECKED}: rerun: 2026-08-01_tiny_none: is not beside this folder"
    ]
    (doubt / "record.toml").write_text(forms)
    for number, run in enumerate(store.read_runs(doubt)):
        floor = 3.201 if run.label == "adamw" else 3.001
        forge(doubt, run.run, make_points(floor=floor + 0.01 * run.seed + 1e-3 * (number % 2)))
    cover(doubt)
    (line,) = found(doubt.name)
    assert line.startswith(f"{FAILED}: rerun: its runs give what {FIRST} claims")
    assert not any(entry.doubts for entry in board.entries(results))
    edit_runs(doubt, lambda run: replace(run, dtype="float32"))
    cover(doubt)
    assert found(doubt.name) == [f"{FAILED}: rerun: dtype float32, but {FIRST} has bfloat16"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../x": ""}, r"names the file \.\./x, outside of the program; refused"),
        ({"/elsewhere/x": ""}, "names the file /elsewhere/x, outside of the program; refused"),
        ({"a": "", "a/b": ""}, "cannot be unpacked in .*: (Not a directory|File exists)"),
        ({"data": ""}, "cannot be unpacked in .*: File exists"),
        ({".": ""}, "cannot be unpacked in .*: Is a directory"),
        ({}, "has no speedrun.py, so it is no program of a race"),
    ],
)
def test_a_program_that_leaves_its_folder_is_not_unpacked(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "records" / "x"
    text = store.source_text(files | {rerun.PRINTS: ""})
    (folder / "sources").mkdir(parents=True)
    (folder / "sources" / f"{store.source_hash(text)}.txt").write_text(text)
    digest = store.source_hash(text)
    made = rerun.Record("evidence", "2026-08-01", "x", ("A",), "y", source_hash=digest)
    (tmp_path / "place").mkdir()
    with pytest.raises(rerun.UserError, match=message):
        rerun.unpack(folder, made, "", tmp_path / "place")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds 0: must be at least 1"),
        (["--claim=sgd"], "--claim sgd: the record claims adamw, muon; name one"),
    ],
)
def test_a_rerun_of_nothing_is_refused(
    arguments: list[str],
    message: str,
    record: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rerun.main([str(record[0]), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_record_that_fails_is_not_run(
    record: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    edit_form(record[0], ("n = 4", "n = 5"))
    assert rerun.main([str(record[0])]) == 2
    assert "does not verify; run: python -m leaderboard verify" in capsys.readouterr().err


def test_rows_of_an_older_program_get_the_columns_that_came_later(tmp_path: Path) -> None:
    make_race(tmp_path, seeds=1)
    path = tmp_path / "runs.csv"
    rows = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=["heat", "turn_steps"])
    rows.to_csv(path, index=False)
    rerun._add_columns(path)
    assert [(run.heat, run.turn_steps) for run in store.read_runs(tmp_path)] == [("", 0)] * 2
