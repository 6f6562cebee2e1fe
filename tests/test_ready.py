"""What would make a row unwritable is found before training, and line ends make no difference."""

import errno
import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from runtime import provenance
from studies import scale
from tests.rows import SOURCE, make_points, make_run, make_trial
from tracking import files, spelling, store
from tracking.schema import Run, ScalePoint

REPOSITORY = Path(__file__).parents[1]


# ---- Line ends, byte-order marks, the order of columns -----------------------------------------


def with_crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def with_bom(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def as_a_spreadsheet_saves(path: Path) -> None:
    path.write_text(path.read_text("utf-8").replace(",true", ",TRUE"), "utf-8")
    with_bom(path)
    with_crlf(path)


@pytest.mark.parametrize("change", [with_crlf, with_bom, as_a_spreadsheet_saves])
def test_a_table_that_git_or_a_spreadsheet_rewrote_is_read_and_extended(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    store.record(tmp_path, make_run(seed=1), make_points(), SOURCE)
    for path in (tmp_path / "runs.csv", store.curve_path(tmp_path, "muon-0")):
        change(path)
    store.ready(tmp_path)
    store.append(tmp_path / "runs.csv", make_run(seed=2))
    assert store.read_runs(tmp_path) == [make_run(seed=1), make_run(seed=2)]
    assert store.read_curve(tmp_path, "muon-0") == make_points()
    content = (tmp_path / "runs.csv").read_bytes()
    assert content.count(b"\r\n") in (0, content.count(b"\n"))  # the file keeps its line ends


def test_a_last_row_that_an_editor_left_without_a_line_end_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    store.append(path, make_run(seed=1))
    store.append(path, make_run(seed=2))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"runs.csv: its last row has no line end.*run: echo >> "):
        store.ready(tmp_path)
    subprocess.run(["sh", "-c", f"echo >> {path}"], check=True)  # as the message says
    store.ready(tmp_path)
    assert [run.seed for run in store.read_runs(tmp_path)] == [1, 2]
    for torn in (b"2026-08-01,tiny", b"started"):  # what is no row is cut as ever
        path.write_bytes(path.read_bytes() + torn)
        store.ready(tmp_path)
    path.write_bytes(b"started,track,tr")
    store.ready(tmp_path)


def test_a_row_is_added_in_the_order_of_the_files_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(",".join(reversed([field.name for field in fields(Run)])) + "\n", "utf-8")
    store.ready(tmp_path)
    store.append(path, make_run())
    assert store.read_runs(tmp_path) == [make_run()]


def test_the_hash_of_the_program_does_not_know_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []
    for end in ("\n", "\r\n"):
        root = tmp_path / str(len(end))
        (root / "data").mkdir(parents=True)
        for name in ("speedrun.py", "data/corpus.py", *provenance.PINS):
            text = (REPOSITORY / name).read_text("utf-8")
            (root / name).write_bytes(text.replace("\n", end).encode())
        monkeypatch.setattr(provenance, "ROOT", root)
        texts.append(provenance.program_text())
    assert texts[0] == texts[1] and "\r" not in texts[1]


def test_a_checkout_has_line_feeds_whatever_git_is_told() -> None:
    names = [
        "results/records/2026-11-26_tiny_duel/runs.csv",
        "speedrun.py",
        "tests/golden/page.txt",
    ]
    command = [
        "git",
        "check-attr",
        "eol",
        "text",
        "--",
        *names,
        "plots/2026-11-27_tiny_duel-tuned/memory.png",
    ]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no checkout")
    assert done.stdout.count("eol: lf") >= len(names)
    assert "memory.png: text: unset" in done.stdout


# ---- Before training ---------------------------------------------------------------------------


def test_a_check_leaves_nothing_behind(tmp_path: Path) -> None:
    store.ready(tmp_path / "new" / "results")
    assert list(tmp_path.iterdir()) == []
    store.record(tmp_path, make_run(), make_points(), SOURCE)
    before = sorted(tmp_path.rglob("*"))
    store.ready(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def a_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("", "utf-8")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: a_file(root), "results"),
        (lambda root: a_file(root.parent), "results"),
        *[(lambda root, n=n: a_file(root / n), n) for n in store.FOLDERS],
        *[(lambda root, n=n: (root / n).mkdir(parents=True), n) for n in store.TABLES],
        (lambda root: store.append(root / "tuning.csv", make_run()), "unknown column"),
        (lambda root: (root / "runs.csv", a_file(root / "runs.csv"))[0].write_text("a,b\n"),
         "unknown column 'a'"),
        (lambda root: store.append(root / "points.csv", make_trial()), "points.csv line 1"),
    ],
)  # fmt: skip
def test_a_folder_in_which_a_row_could_not_be_written_is_refused(
    tmp_path: Path, prepare: Callable[[Path], Any], message: str
) -> None:
    root = tmp_path / "mine" / "results"
    prepare(root)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as refused:
        store.ready(root, {"points.csv": ScalePoint})
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_name_of_a_folder_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="File name too long.*--results"):
        store.ready(tmp_path / ("x" * 300))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_a_disk_that_is_full_or_may_not_be_written_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError) as refused:
        store.ready(tmp_path)
    assert os.strerror(number) in str(refused.value)
    assert ("free some space" in str(refused.value)) == (number != errno.EROFS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    with pytest.raises(UserError, match="Permission denied; choose another folder with --results"):
        store.ready(tmp_path)


def test_a_file_system_without_locks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match="No locks available"):
        store.ready(tmp_path)


def test_a_lock_that_is_held_is_waited_for_and_then_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append(tmp_path / "runs.csv", make_run())
    monkeypatch.setattr(store, "LOCK_SECONDS", 0.05)
    with open(tmp_path / "runs.csv", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for call in (
            lambda: store.ready(tmp_path),
            lambda: store.append(tmp_path / "runs.csv", make_run(seed=1)),
        ):
            with pytest.raises(UserError, match="another process has held its lock"):
                call()
    store.append(tmp_path / "runs.csv", make_run(seed=1))


def test_no_entrant_has_a_file_name_that_is_too_long() -> None:
    long, longer = (f"lib:torch.{'x' * count}.Adam:lr=0.1" for count in (300, 301))
    names = [spelling.file_name(entrant) for entrant in (long, longer)]
    assert max(map(len, names)) < 80 and names[0] != names[1]
    short = "lib:torch.optim.NAdam:lr=0.003"
    assert spelling.file_name(short).startswith("lib-torch.optim.NAdam-")


def test_the_tuner_and_the_study_look_before_they_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from studies import tune

    def refuse(folder: Path, *_: object, **__: object) -> None:
        if folder == tune.tuned.TUNED.parent:
            raise UserError(f"cannot write to {folder}")

    for module in (tune, files):
        monkeypatch.setattr(module, "check_writable", refuse)
    monkeypatch.setattr(tune, "Trainer", lambda *_: pytest.fail("it began"))
    assert tune.main(["adamw", f"--results={tmp_path}"]) == 2
    assert "cannot write to" in capsys.readouterr().err
    store.append(tmp_path / "points.csv", replace(make_run()))
    monkeypatch.setattr(scale, "Trainer", lambda *_: pytest.fail("it began"))
    assert scale.main([f"--results={tmp_path}"]) == 2
    assert "points.csv line 1" in capsys.readouterr().err


def test_line_ends_of_an_old_mac_are_refused_and_no_row_is_cut(tmp_path: Path) -> None:
    store.append(tmp_path / "runs.csv", make_run())
    old = (tmp_path / "runs.csv").read_bytes().replace(b"\n", b"\r")
    (tmp_path / "runs.csv").write_bytes(old)
    with pytest.raises(UserError, match=r"carriage returns alone.*sed -i 's/\\r/\\n/g'"):
        store.ready(tmp_path)
    assert (tmp_path / "runs.csv").read_bytes() == old


def test_every_folder_that_a_run_writes_to_is_tried(tmp_path: Path) -> None:
    for name in ("curves", "turns", "logits", "spectra", "setups", "sources"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=f"cannot write to .*{name}"):
            store.ready(tmp_path)
        (tmp_path / name).unlink()
