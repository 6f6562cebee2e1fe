"""The importer of public logs: every line format, every quirk, and files that are no logs.

The logs are small files of numbers that were made up for these tests.
"""

import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import strategies as st

from errors import UserError
from leaderboard import log_file, public_logs
from leaderboard.log_lines import Memory, Result, parse
from leaderboard.public_logs import read_logs
from tests.fuzzing import damage, damaged, fuzz, ran
from tracking.schema import PublicPoint, PublicRun
from tracking.store import read

MIB = 1 << 20
RULE = "=" * 100
SECONDS = """\
step:0/250 val_loss:10.82584 train_time:0.0s step_avg:nanms
step:125/250 val_loss:4.60783 train_time:18.2s step_avg:158.3ms val_ema_loss:4.7
step:250/250 val_loss:3.3 train_time:36.6s step_avg:147.2ms val_ema_loss:3.28
peak memory allocated: 30210 MiB reserved: 31000 MiB
"""
MILLISECONDS = """\
step:0/6200 val_loss:10.9 train_time:285ms step_avg:nanms
step:1/6200 train_loss:10.8 train_time:400ms step_avg:nanms
step:11/6200 train_loss:9.5 train_time:200ms step_avg:200.00ms
step:125/6200 val_loss:5.0 train_time:24000ms step_avg:208.7ms
step:126/6200 train_time:24200ms step_avg:208.6ms
step:250/6200 val_loss:4.5 train_time:51000ms step_avg:212.5ms
peak memory consumption: 41403 MiB
"""
LLM_C = """\
s:0 tel:10.96887
s:1 trl:10.95 lr:0.000003 norm:14.2
s:128 trl:6.05 lr:0.001 norm:1.1
s:128 tel:6.03445
s:250 tel:5.23113
s:250 eval:0.25
"""
PROGRAM = '''\
"""A trainer.

step:125/6200 val_loss:1.0 train_time:24000ms step_avg:208.1ms
"""
import torch
def main():
step:250/6200 val_loss:1.1 train_time:24000ms
    print0(f"step:{step}/{args.num_iterations} val_loss:{val_loss:.4f} train_time:{t:.0f}ms")
'''


def import_one(tmp_path: Path, text: str) -> tuple[list[PublicRun], list[list[PublicPoint]]]:
    (tmp_path / "log.txt").write_text(text)
    found = read_logs([tmp_path / "log.txt"])
    assert not found.unread
    return list(found.runs), [list(found.curves[run.name]) for run in found.runs]


def losses(points: list[PublicPoint]) -> list[tuple[int, float | None, float | None]]:
    return [(p.step, p.val_loss, p.train_seconds) for p in points]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s:128 tel:6.0344", Result("llm.c", 128, None, 6.0344)),
        ("s:1 trl:10.95 lr:1e-05 norm:2.5", Result("llm.c", 1, None, None, 10.95)),
        (
            "step:125/6200 val_loss:5.0 train_time:24000ms step_avg:208.1ms",
            Result("ms", 125, 6200, 5.0, None, 24.0),
        ),
        (
            "step:126/6200 train_loss:4.9 train_time:24200ms step_avg:nanms",
            Result("ms", 126, 6200, None, 4.9, 24.2),
        ),
        (
            "step:126/6200 train_time:24200ms step_avg:208.6ms",
            Result("ms", 126, 6200, None, None, 24.2),
        ),
        (
            "step:125/3250 val_loss:4.7 train_time:18.2s step_avg:145.1ms",
            Result("s", 125, 3250, 4.7, None, 18.2),
        ),
        (
            "step:125/3250 val_loss:4.7 val_ema_loss:4.8 train_time:18.2s step_avg:145.1ms x:2",
            Result("s", 125, 3250, 4.7, None, 18.2, {"val_ema_loss": (4.8, ""), "x": (2, "")}),
        ),
        (
            "step:125/3250 val_loss:4.7 train_time:18.2s step_avg:145.1ms mfu:45.72%",
            Result("s", 125, 3250, 4.7, None, 18.2, {"mfu": (45.72, "%")}),
        ),
        ("step:5/9 val_loss:4.7% train_time:1s", Result("s", 5, 9, None, None, 1.0)),
        ("peak memory consumption: 41403 MiB", Memory(41403 * MIB)),
        (
            "peak memory allocated: 30210 MiB reserved: 31000 MiB",
            Memory(30210 * MIB, 31000 * MIB),
        ),
        ('print(f"step:{step}/{n} val_loss:{loss}")', None),
        ("step:{step}/{n} val_loss:{val_loss:.4f} train_time:{t}ms", None),
        ("step:12", None),
        ("step:x/3 val_loss:3.0", None),
        ("    step:125/250 val_loss:1.0", None),
        (f"step:{'9' * 5000} val_loss:1.0", None),
    ],
)
def test_each_line_format_gives_step_loss_and_time(
    line: str, expected: Result | Memory | None
) -> None:
    assert parse(line) == expected


def test_a_log_of_track_3_gives_a_run_with_its_readouts_and_memory(tmp_path: Path) -> None:
    (run,), (points,) = import_one(tmp_path, SECONDS)
    assert losses(points) == [(0, 10.82584, 0.0), (125, 4.60783, 18.2), (250, 3.3, 36.6)]
    assert (run.era, run.planned_steps, run.steps, run.final_val_loss) == ("s", 250, 250, 3.3)
    assert (run.readouts, points[1].readouts) == ("val_ema_loss=3.28", "val_ema_loss=4.7")
    assert (run.peak_memory_bytes, run.reserved_memory_bytes) == (30210 * MIB, 31000 * MIB)
    assert run.step_ms == pytest.approx(1000 * (36.6 - 18.2) / 125)
    assert run.notes == ""


def test_a_clock_in_milliseconds_that_restarts_after_ten_steps(tmp_path: Path) -> None:
    (run,), (points,) = import_one(tmp_path, MILLISECONDS)
    assert losses(points) == [(0, 10.9, 0.285), (125, 5.0, 24.0), (250, 4.5, 51.0)]
    assert [p.train_loss for p in points] == [None, 9.5, 9.5]
    assert run.step_ms == pytest.approx(1000 * 27 / 125)  # not the step_avg of the log
    assert run.peak_memory_bytes == 41403 * MIB
    assert (run.era, run.steps) == ("ms", 250)
    assert run.notes == (
        "its seconds leave out the first 1 to 10 steps: the clock restarts; "
        "ends before its planned steps"
    )


def test_seconds_without_the_first_ten_steps_are_said_to_be_so(tmp_path: Path) -> None:
    text = MILLISECONDS.replace("step:11/", "step:10/6200 train_time:6000ms\nstep:11/")
    (run,), _ = import_one(tmp_path, text)
    assert "its seconds leave out the first 10 steps" in run.notes
    (run,), _ = import_one(tmp_path, "step:0/5 val_loss:9.0 train_time:9ms\n" + one_validation())
    assert "its seconds" not in run.notes  # no step is left out


def one_validation(losses: str = "val_loss:3.1", steps: Iterable[int] = range(1, 61)) -> str:
    """A run that validates at step 60, with 20 ms a step after a slow start."""
    lines = [f"step:{i}/60 train_time:{0 if i == 1 else 500 + 20 * i}ms" for i in steps]
    return "\n".join([*lines, f"step:60/60 {losses} train_time:1800ms"])


def test_a_run_with_one_validation_has_the_milliseconds_of_its_training_lines(
    tmp_path: Path,
) -> None:
    (run,), _ = import_one(tmp_path, one_validation())
    assert (run.train_seconds, run.step_ms, run.notes) == (1.8, 20.0, "")
    (run,), _ = import_one(tmp_path, one_validation(steps=range(51, 61)))
    assert run.step_ms is None  # nine steps


def test_a_loss_before_the_last_step_is_no_final_loss(tmp_path: Path) -> None:
    text = SECONDS.replace("step:250/250 val_loss:3.3 ", "step:250/250 ")
    text = text.replace(" val_ema_loss:3.28", "")
    (run,), (points,) = import_one(tmp_path, text)
    assert (run.steps, run.final_val_loss, run.readouts) == (250, None, "")
    assert run.notes == "no validation after step 125 (its last line is of step 250)"
    assert losses(points)[-1] == (125, 4.60783, 18.2)
    (run,), _ = import_one(tmp_path, SECONDS + "step:300/300 val_loss:nan train_time:40s")
    assert (run.steps, run.final_val_loss) == (300, None)
    assert "no validation" not in run.notes
    (run,), _ = import_one(tmp_path, "step:5/5 train_loss:3.0 train_time:40s")
    assert (run.final_val_loss, run.notes) == (None, "no validation")


def test_a_log_of_llm_c_has_no_clock_and_no_planned_steps(tmp_path: Path) -> None:
    (run,), (points,) = import_one(tmp_path, LLM_C)
    assert losses(points) == [(0, 10.96887, None), (128, 6.03445, None), (250, 5.23113, None)]
    assert (run.era, run.planned_steps, run.train_seconds, run.step_ms) == (
        "llm.c", None, None, None,
    )  # fmt: skip
    assert (points[1].train_loss, run.readouts) == (6.05, "eval=0.25")


def test_runs_in_one_file_are_split_where_the_step_does_not_increase(tmp_path: Path) -> None:
    second = "step:125/250 val_loss:4.5 train_time:18.0s\nstep:250/250 val_loss:3.2 train_time:36s"
    runs, curves = import_one(tmp_path, SECONDS + second)
    assert [run.name for run in runs] == ["log-run1", "log-run2"]
    assert [run.line for run in runs] == [1, 5]
    assert [run.steps for run in runs] == [250, 250]
    assert losses(curves[1]) == [(125, 4.5, 18.0), (250, 3.2, 36.0)]
    assert runs[1].peak_memory_bytes is None


def test_a_line_that_two_processes_wrote_is_taken_once(tmp_path: Path) -> None:
    doubled = "".join(line + "\n" + line + "\n" for line in SECONDS.splitlines())
    assert len(import_one(tmp_path, doubled)[0]) == 1


def test_the_same_run_in_two_files_is_named_as_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(SECONDS)
    (tmp_path / "b.log").write_text("# copied\n" + SECONDS)
    (tmp_path / "c.txt").write_text(SECONDS.replace("3.3 ", "3.31 "))
    found = read_logs([tmp_path])
    assert [(run.name, run.duplicate_of) for run in found.runs] == [
        ("a", ""), ("b", "a"), ("c", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "copied"),
    [
        (one_validation(), "# copied\n" + one_validation(), ["a"]),
        (one_validation(), one_validation("val_loss:3.2"), [""]),
        (one_validation(), one_validation().replace(":1800ms", ":1801ms"), [""]),
        ("step:0/9 val_loss:9.0 train_time:1ms", "\nstep:0/9 val_loss:9.0 train_time:1ms", [""]),
        ("s:5 tel:3.0", "s:5 tel:3.0", ["a"]),  # the same bytes
        ("s:5 tel:3.0", "s:5 tel:3.0\n", [""]),  # no clock
        ("s:5 trl:3.0\ns:5 trl:3.1", "s:5 trl:3.0\ns:5 trl:3.1", ["a-run1", "a-run2"]),
    ],
)
def test_a_single_validation_with_its_time_or_the_same_bytes_tell_a_copy(
    tmp_path: Path, first: str, second: str, copied: list[str]
) -> None:
    for name, text in (("a", first), ("b", second)):
        (tmp_path / f"{name}.txt").write_text(text)
    of = {run.name: run.duplicate_of for run in read_logs([tmp_path]).runs}
    assert [of[name] for name in of if name[0] == "b"] == copied
    assert not any(of[name] for name in of if name[0] == "a")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["01/console.log", "02/console.log", "02/x.txt"], ["01-console", "02-console", "x"]),
        (["a/1/c.log", "b/1/c.log", "b/2/c.log"], ["a-1-c", "b-1-c", "b-2-c"]),
        (["a/c.log", "a/c.txt"], ["c", "c-2"]),
        (["a/c.log", "a/c.txt", "b/c.txt"], ["a-c", "a-c-2", "b-c"]),
        (["a/c.log", "a-c.log", "b/c.log"], ["a-c", "a-c-2", "b-c"]),
        (["é é/c.log", "b/c.log"], ["b-c", "c"]),
        (["1/" + "x" * 99 + ".log", "2/" + "x" * 99 + ".log"], ["x" * 80, "x" * 80 + "-2"]),
        (["1" * 60 + "/" + "x" * 30 + ".log", "2/" + "x" * 30 + ".log"],
         ["1" * 49 + "-" + "x" * 30, "2-" + "x" * 30]),
    ],
)  # fmt: skip
def test_files_of_one_name_are_told_apart_by_their_folders(
    tmp_path: Path, files: list[str], names: list[str]
) -> None:
    for i, file in enumerate(files):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / file).write_text(SECONDS.replace("3.3 ", f"3.3{i} "))
    found = read_logs([tmp_path])
    assert sorted(run.name for run in found.runs) == names == sorted(found.curves)


def test_a_claim_before_the_last_step_or_on_another_readout_is_in_the_curve(
    tmp_path: Path,
) -> None:
    _, (points,) = import_one(tmp_path, SECONDS)
    by_step = {point.step: point for point in points}
    assert by_step[125].val_loss == 4.60783
    assert by_step[250].readouts == "val_ema_loss=3.28"


def test_lines_of_the_programs_own_text_are_left_out_and_said_so(tmp_path: Path) -> None:
    (run,), (points,) = import_one(tmp_path, f"{PROGRAM}{RULE}\ntorch 2.6\n{RULE}\n{SECONDS}")
    assert len(points) == 3 and run.final_val_loss == 3.3
    assert "2 lines that look like results are in its program text, from line 3" in run.notes


def test_a_second_program_in_the_file_ends_the_run_before_it(tmp_path: Path) -> None:
    text = f"{PROGRAM}{RULE}\n{SECONDS}"
    runs, curves = import_one(tmp_path, text + text.replace("3.3 ", "3.2 "))
    assert [len(curve) for curve in curves] == [3, 3]
    assert [run.final_val_loss for run in runs] == [3.3, 3.2]


def test_a_program_without_a_rule_behind_it_is_read_with_a_note(tmp_path: Path) -> None:
    (run,), _ = import_one(tmp_path, "import torch\n" + SECONDS)
    assert run.final_val_loss == 3.3
    assert "no rule of '=' ends its program text" in run.notes


def test_a_rule_with_words_ends_the_program_text(tmp_path: Path) -> None:
    (run,), (points,) = import_one(tmp_path, f"{PROGRAM}===== run output =====\n{SECONDS}")
    assert len(points) == 3 and run.final_val_loss == 3.3
    assert "no rule of '='" not in run.notes and "from line 3: left out" in run.notes


@pytest.mark.parametrize(
    "text",
    [
        "# ===== run output =====\n",
        "    ===== run output =====\n",
        'print("===== run output =====")\n',
        'TEXT = """\n===== run output =====\n"""\n',
        "print('''\n===== run output =====\n",
        "====== = ======\n",
        "=======\n",
    ],
)
def test_a_rule_with_words_in_the_program_text_ends_it_not(tmp_path: Path, text: str) -> None:
    result = "step:7/250 val_loss:1.0 train_time:1.0s\n"
    (run,), (points,) = import_one(tmp_path, f"{PROGRAM}{text}{result}{RULE}\n{SECONDS}")
    assert len(points) == 3 and run.final_val_loss == 3.3
    assert "3 lines that look like results are in its program text" in run.notes


@pytest.mark.parametrize(
    ("line", "note"),
    [
        ("step:300/300 val_loss:nan train_time:40s", "a loss is not finite"),
        ("step:300/300 val_loss:3.0 train_time:4s", "the clock runs backwards"),
        ("step:300/300 val_loss:3.0 val_ema_loss:inf", "a read-out is not finite"),
        ("step:300/250 val_loss:3.0 train_time:40", "train_time is no time with a unit"),
        ("step:300/250 val_loss:3.0 train_time:40%", "train_time is no time with a unit"),
        ("step:300/400 val_loss:3.0 train_time:40s", "the planned steps change"),
    ],
)
def test_what_is_odd_about_a_run_stands_in_its_row(tmp_path: Path, line: str, note: str) -> None:
    (run,), _ = import_one(tmp_path, SECONDS + line)
    assert f"line 5: {note}" in run.notes


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "latin-1"])
def test_other_encodings_and_line_ends_are_read(tmp_path: Path, encoding: str) -> None:
    text = ("GPU: é\n" + SECONDS).replace("\n", "\r\n")
    (tmp_path / "log.txt").write_bytes(text.encode(encoding))
    (run,) = read_logs([tmp_path / "log.txt"]).runs
    assert run.final_val_loss == 3.3
    assert ("replaced" in run.notes) == (encoding == "latin-1")
    assert ("utf-16" in run.notes) == (encoding == "utf-16")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"hello\n", "no training log"),
        (b"", "no training log"),
        (SECONDS.encode() + b"\0\n", "line 5: holds a NUL"),
        (SECONDS.encode() + b"x" * 2000, "line 5: longer than 1000 characters"),
        (SECONDS.encode() * 100, "bytes: above"),
        (b"\n" * 101, "more than 100 lines"),
    ],
)
def test_a_file_that_is_not_read_is_named_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, reason: str
) -> None:
    monkeypatch.setattr(log_file, "MOST_LINE", 1000)
    monkeypatch.setattr(log_file, "MOST_FILE_BYTES", 10_000)
    monkeypatch.setattr(log_file, "MOST_LINES", 100)
    (tmp_path / "log.txt").write_bytes(content)
    ((file, found),) = read_logs([tmp_path / "log.txt"]).unread
    assert file.endswith("log.txt") and reason in found


def test_links_pipes_and_other_files_are_not_read(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "logs"
    outside.mkdir()
    folder.mkdir()
    (outside / "a.txt").write_text(SECONDS)
    (folder / "link.txt").symlink_to(outside / "a.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "code.py").write_text(SECONDS)
    os.mkfifo(folder / "pipe.txt")
    found = read_logs([folder])
    assert not found.runs
    reasons = {Path(file).name: reason for file, reason in found.unread}
    assert "link" in reasons["link.txt"] and "link" in reasons["folder"]
    assert "no regular file" in reasons["pipe.txt"]
    assert "1 files in it" in reasons["logs"]


def test_too_many_runs_files_and_validations_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("step:5/9 val_loss:3.0\nstep:5/9 val_loss:3.1\n" * 3)
    (tmp_path / "b.txt").write_text(SECONDS)
    monkeypatch.setattr(public_logs, "MOST_IN_ALL", 8)
    with pytest.raises(UserError, match="more than 8 validations"):
        read_logs([tmp_path])
    monkeypatch.setattr(log_file, "MOST_RUNS", 2)
    assert "more than 2 runs" in read_logs([tmp_path]).unread[0][1]
    monkeypatch.setattr(public_logs, "MOST_FILES", 1)
    with pytest.raises(UserError, match="more than 1 files"):
        read_logs([tmp_path])


def test_a_step_with_very_many_readouts_keeps_the_first_ones(tmp_path: Path) -> None:
    words = " ".join(f"val_{i}:{i}" for i in range(1000))
    (run,), _ = import_one(tmp_path, f"step:5/5 {words}\n")
    assert run.readouts.split()[-1] == "val_15=15.0"


def test_a_readout_keeps_all_its_digits_and_its_unit(tmp_path: Path) -> None:
    (run,), _ = import_one(tmp_path, "step:5/5 val_loss:3.0 val_ema_loss:10.82584 mfu:45.70%\n")
    assert run.readouts == "val_ema_loss=10.82584 mfu=45.7%"


def test_the_command_writes_tables_that_the_strict_reader_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    for name, text in (("a b.txt", SECONDS), ("c.txt", MILLISECONDS), ("d.txt", "nothing")):
        (logs / name).write_text(text)
    assert public_logs.main([str(logs), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"not read: {logs / 'd.txt'}: has no line of results" in said
    assert "2 runs in 2 files, 0 of them duplicates" in said
    runs = read(out / "runs.csv", PublicRun)
    assert [(run.name, run.final_val_loss) for run in runs] == [("a-b", 3.3), ("c", 4.5)]
    curve = read(out / "curves" / "c.csv", PublicPoint)
    assert losses(curve) == [(0, 10.9, 0.285), (125, 5.0, 24.0), (250, 4.5, 51.0)]
    assert public_logs.main([str(logs), "--out", str(out)]) == 2  # never over an older import
    assert "already has a runs.csv" in capsys.readouterr().err


def test_where_nothing_is_read_the_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert public_logs.main([str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    (tmp_path / "a.txt").write_text("nothing")
    assert public_logs.main([str(tmp_path / "a.txt")]) == 2
    assert "no training log among 1 files" in capsys.readouterr().err


@pytest.fixture
def try_(request: pytest.FixtureRequest) -> Callable[..., None]:
    return partial(fuzz, request)


def test_no_bytes_end_the_importer(
    try_: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "log.txt", tmp_path / "out"
    whole = f"{PROGRAM}{RULE}\n{SECONDS}{LLM_C}{MILLISECONDS}".encode()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for name in sorted(out.rglob("*"), reverse=True):
            name.rmdir() if name.is_dir() else name.unlink()
        code = public_logs.main([str(path), "--out", str(out)])
        if ran(code, capsys.readouterr().err):
            runs = read(out / "runs.csv", PublicRun)
            assert runs
            for run in runs:
                steps = [point.step for point in read(out / f"curves/{run.name}.csv", PublicPoint)]
                assert steps == sorted(set(steps)) and steps[-1] <= run.steps

    try_(check, st.builds(damaged, st.just(whole), damage(1)) | st.binary(max_size=300))


def test_nothing_of_a_log_is_executed(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    import_one(tmp_path, f"import os\nos.mkdir({str(marker)!r})\n{RULE}\n{SECONDS}")
    assert not marker.exists()
