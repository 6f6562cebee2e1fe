"""The result files: what is written, what survives, what is refused."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest

from errors import UserError
from tests.rows import SOURCE, make_points, make_run, make_trial
from tracking import store, tuned
from tracking.schema import Run, Validation

REPOSITORY = Path(__file__).parents[1]

# ---- store: rows -------------------------------------------------------------------------------


def test_a_row_comes_back_as_it_was(tmp_path):
    path = tmp_path / "new" / "runs.csv"
    rows = [
        make_run(entrant='x:a=1,b="q"', train_seconds=0.1 + 0.2, clean=False, seed=-1),
        make_run(final_loss=None, final_bits_per_byte=None, mfu=1e-300, commit=""),
        make_run(device="Prozessor für 2 €, 'schnell'", target=3),
    ]
    for row in rows:
        store.append(path, row)
    assert store.read(path, Run) == rows
    lines = path.read_text().splitlines()
    assert lines[0] == ",".join(field.name for field in fields(Run))
    assert len(lines) == 4


def test_a_row_is_one_line_whatever_it_says(tmp_path):
    path = tmp_path / "runs.csv"
    store.append(path, make_run(compile_note="no compiler:\n  g++ not found\r\n"))
    assert len(path.read_bytes().splitlines()) == 2
    assert store.read(path, Run)[0].compile_note == "no compiler:   g++ not found"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_loss": float("nan")}, "final_loss nan is not a finite float"),
        ({"mfu": float("inf")}, "mfu inf is not a finite float"),
        ({"train_seconds": None}, "train_seconds None is not a finite float"),
        ({"seed": True}, "seed True is not int"),
        ({"steps": 3.0}, "steps 3.0 is not int"),
        ({"clean": 1}, "clean 1 is not bool"),
        ({"label": 7}, "label 7 is not str"),
        ({"compile_note": "x" * 200_000}, "compile_note has 200000 characters"),
    ],
)
def test_a_value_that_the_reader_would_refuse_is_not_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        store.append(tmp_path / "runs.csv", make_run(**changes))
    assert not (tmp_path / "runs.csv").exists()


@pytest.mark.parametrize("torn", ["", "2026-08-01,tiny,12", "x" * 5000])
def test_a_torn_last_line_is_not_read_and_then_cut_off(tmp_path, torn):
    path = tmp_path / "runs.csv"
    store.append(path, make_run(seed=1))
    with open(path, "a") as file:
        file.write(torn)
    assert [run.seed for run in store.read(path, Run)] == [1]
    store.append(path, make_run(seed=2))
    assert [run.seed for run in store.read(path, Run)] == [1, 2]


def test_a_torn_header_is_written_again(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("started,track,tr")
    assert store.read(path, Run) == []
    store.append(path, make_run())
    assert store.read(path, Run) == [make_run()]


def test_a_file_with_other_columns_is_not_appended_to(tmp_path):
    path = tmp_path / "runs.csv"
    store.append(path, make_trial())
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"runs.csv line 1: not the columns .*; move the file"):
        store.append(path, make_run())
    assert path.read_bytes() == before


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "runs.csv"
    store.append(path, make_run())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, hard))  # room for a part only
    try:
        with pytest.raises(UserError, match="cannot write .*runs.csv: No space left on device"):
            store.append(path, make_run())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_the_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch, call):
    path = tmp_path / "runs.csv"
    store.append(path, make_run())
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        UserError, match="No space left on device; free some space, then go on with --resume"
    ):
        store.append(path, make_run())
    monkeypatch.undo()
    assert path.read_bytes() == before


# Rows are long here, so that a write of one takes the kernel long enough to be interrupted.
APPENDER = """
import sys
from pathlib import Path
from dataclasses import replace
from tracking import store
from tests.rows import make_run
path, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
row = make_run(compile_note=str(first) * 30_000)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(first, first + count):
    store.append(path, replace(row, seed=seed))
"""


def start_appender(path: Path, first: int, count: int) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(path), str(first), str(count)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    return process


def let_go(process: subprocess.Popen) -> None:
    """Lets a process that has finished importing append."""
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


def test_processes_append_at_once(tmp_path):
    path = tmp_path / "runs.csv"
    processes = [start_appender(path, 1000 * i, 15) for i in (1, 2, 3)]
    for process in processes:
        let_go(process)
    assert [process.wait(timeout=60) for process in processes] == [0, 0, 0]
    seeds = [run.seed for run in store.read(path, Run)]
    assert sorted(seeds) == [1000 * i + k for i in (1, 2, 3) for k in range(15)]
    for i in (1, 2, 3):  # each process's rows in the order in which it wrote them
        own = [seed for seed in seeds if seed // 1000 == i]
        assert own == sorted(own)


def test_a_killed_process_leaves_whole_rows(tmp_path):
    path = tmp_path / "runs.csv"
    written = 0
    for delay in (0.05, 0.13, 0.21):
        process, size = start_appender(path, 0, 10**6), path.stat().st_size if written else 0
        let_go(process)
        deadline = time.monotonic() + 30
        while not (path.exists() and path.stat().st_size > size) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        rows = store.read(path, Run)
        seeds = [run.seed for run in rows[written:]]
        assert seeds == list(range(len(seeds))) and seeds
        written = len(rows)
    store.append(path, make_run(seed=77))  # not held up by the dead process's lock
    assert store.read(path, Run)[written:] == [make_run(seed=77)]


# ---- store: refusals of the reader -------------------------------------------------------------


def edit_cell(column: str, text: str):
    """Replaces a cell of the second row, on line 3."""
    index = [field.name for field in fields(Run)].index(column)

    def edit(lines: list[str]) -> None:
        cells = lines[2].split(",")
        cells[index] = text
        lines[2] = ",".join(cells)

    return edit


def edit_line(number: int, change):
    def edit(lines: list[str]) -> None:
        lines[number - 1] = change(lines[number - 1])

    return edit


@pytest.mark.parametrize(
    ("edit", "line", "message"),
    [
        (edit_line(1, lambda s: s.replace("seed", "sede")), 1, "unknown column 'sede'"),
        (edit_line(1, lambda s: s.replace("seed,", "")), 1, "column 'seed' is missing"),
        (edit_line(1, lambda s: s.replace("steps,", "seed,")), 1, "column 'seed' is repeated"),
        (edit_line(3, lambda s: s + ",1"), 3, f"{len(fields(Run)) + 1} cells for"),
        (edit_line(3, lambda s: s[: s.rindex(",")]), 3, f"{len(fields(Run)) - 1} cells for"),
        (edit_line(2, lambda s: ""), 2, "0 cells for"),
        (edit_cell("mfu", '"0.5'), 3, "unexpected end of data"),
        (edit_cell("seed", "1.5"), 3, "seed '1.5' is not int"),
        (edit_cell("seed", "1_0"), 3, "seed '1_0' is not int"),
        (edit_cell("seed", ""), 3, "seed '' is not int"),
        (edit_cell("clean", "True"), 3, "clean 'True' is not bool"),
        (edit_cell("target", "low"), 3, "target 'low' is not a finite float"),
        (edit_cell("target", "nan"), 3, "target 'nan' is not a finite float"),
        (edit_cell("target", "1e999"), 3, "target '1e999' is not a finite float"),
        (edit_cell("target", ""), 3, "target '' is not a finite float"),
        (edit_cell("final_loss", "inf"), 3, "final_loss 'inf' is not a finite float"),
        (edit_cell("status", "won"), 3, "status 'won' is not one of reached, missed, diverged"),
        (edit_cell("commit", "\udcff"), 3, "can't decode byte 0xff"),
    ],
)
def test_the_reader_refuses_with_the_line(tmp_path, edit, line, message):
    path = tmp_path / "runs.csv"
    for seed in range(3):
        store.append(path, make_run(seed=seed, entrant="muon", device="cpu"))
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError) as refusal:
        store.read(path, Run)
    assert str(refusal.value).startswith(f"{path} line {line}: ")
    assert message in str(refusal.value)
    assert "restore the file" in str(refusal.value)


def test_columns_may_be_in_another_order(tmp_path):
    path = tmp_path / "curve.csv"
    names = [field.name for field in fields(Validation)]
    path.write_text(",".join(reversed(names)) + "\n5,,,1.5,0.1,3.5,,2.5,40,10\n")
    assert store.read(path, Validation) == [
        Validation(10, 40, 2.5, None, 3.5, 0.1, 1.5, None, None, 5)
    ]


# ---- store: the result of a run ----------------------------------------------------------------


def test_record_writes_source_curve_and_row(tmp_path):
    store.record(tmp_path, make_run(), make_points(), SOURCE)
    assert store.read_runs(tmp_path) == [make_run()]
    assert store.read_curve(tmp_path, "muon-0") == make_points()
    assert store.source_path(tmp_path, make_run().source_hash).read_text() == SOURCE
    store.record_trial(tmp_path, make_trial(), SOURCE)
    assert store.read_trials(tmp_path) == [make_trial()]
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        ["runs.csv", "tuning.csv", "muon-0.csv", f"{store.source_hash(SOURCE)}.txt"]
    )


def test_records_share_one_pool_of_sources(tmp_path):
    digest, pool = store.source_hash(SOURCE), tmp_path / "records" / "sources"
    assert store.records(tmp_path) == []
    for name in ("second", "first"):
        store.record(tmp_path / "records" / name, make_run(), make_points(), SOURCE)
    store.record_trial(tmp_path / "records" / "third", make_trial(), SOURCE)
    (tmp_path / "records" / "table").mkdir()  # no runs and no trials
    assert [path.name for path in store.records(tmp_path)] == ["first", "second", "third"]
    assert list(tmp_path.rglob("*.txt")) == [pool / f"{digest}.txt"]
    first = tmp_path / "records" / "first"
    assert store.source_path(first, digest) == pool / f"{digest}.txt"
    own = first / "sources" / f"{digest}.txt"  # a source of its own comes first
    own.parent.mkdir()
    own.write_text(SOURCE)
    assert store.source_path(first, digest) == own
    assert store.source_path(tmp_path, digest) == tmp_path / "sources" / f"{digest}.txt"


def test_the_row_is_written_last(tmp_path, monkeypatch):
    def fail(path, row):
        assert store.read_curve(tmp_path, "muon-0") == make_points()
        assert store.source_path(tmp_path, make_run().source_hash).exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "append", fail)
    with pytest.raises(KeyboardInterrupt):
        store.record(tmp_path, make_run(), make_points(), SOURCE)
    assert store.read_runs(tmp_path) == []


def test_a_curve_is_written_whole_or_not_at_all(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(SOURCE) + 20, hard))
    try:
        with pytest.raises(UserError, match="cannot write .*muon-0.csv"):
            store.record(tmp_path, make_run(), make_points(), SOURCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "curves").iterdir()) == []
    assert store.read_runs(tmp_path) == []


def test_what_is_not_there(tmp_path):
    assert store.read_runs(tmp_path) == [] and store.read_trials(tmp_path) == []
    with pytest.raises(UserError, match=r"curves/muon-0.csv is missing"):
        store.read_curve(tmp_path, "muon-0")


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "runs.csv").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*runs.csv: Is a directory"):
        store.read_runs(tmp_path)


@pytest.mark.parametrize("name", ["../muon", "a/b", "", ".hidden"])
def test_a_run_id_is_a_file_name(tmp_path, name):
    with pytest.raises(UserError, match="must be a file name"):
        store.read_curve(tmp_path, name)


def test_a_source_text_is_unambiguous():
    two = store.source_text({"b": "second", "a": "first"})
    assert two == store.source_text({"a": "first", "b": "second"})
    inside = two.split("\n", 1)[1].removesuffix("\n")  # both files, from a's first line on
    disguised = store.source_text({"a": inside})
    assert store.source_hash(disguised) != store.source_hash(two)
    assert re.fullmatch("[0-9a-f]{16}", store.source_hash(two))


def test_tuned_settings_are_read(tmp_path):
    path = tmp_path / "tuned.toml"
    assert tuned.read(path) == []
    path.write_text("[tiny.adamw]\nlr = 0.003\nsteps = 220\ntrials = [17]\n")
    assert tuned.read(path) == [tuned.Tuned("tiny", "adamw", {"lr": 0.003}, 220, (17,))]


@pytest.mark.parametrize("text", ["[tiny.adamw]\nlr = 1\n", "lr = 1\n", "[tiny", "[a]\nlr = 1\n"])
def test_tuned_settings_of_another_form_are_refused(tmp_path, text):
    path = tmp_path / "tuned.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"tuned.toml: .*sections \[track.recipe\]"):
        tuned.read(path)


def test_the_committed_settings_begin_with_the_header_that_the_tuner_writes() -> None:
    assert tuned.TUNED.read_text(encoding="utf-8").startswith(tuned.HEADER)
