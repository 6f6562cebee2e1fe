"""host.ending, host.workers, data.workspace: how commands end, and that nothing of them lives on.

    python -m pytest tests/test_ending.py

Claims: a command that is told to end, by whatever signal, prints one line, gives that signal's exit
code and leaves neither a process nor a file; what a killed one must leave, the next one removes.
"""

import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest

from data import corpus, workspace
from data.progress import bytes_bar
from errors import UserError
from host import ending, entry, workers
from host.paths import PROJECT
from tracking.files import write_atomic
from tracking.live import Live


def eventually(what: Callable[[], bool], seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


# --- signals --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def as_in_a_terminal() -> Iterator[None]:
    """Signals as a terminal gives them: `nohup` and a shell's `&` would have some ignored."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(*numbers: int) -> None:
    """Send signals to this process, and do not end by oneself."""
    for number in numbers:
        os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGHUP], 129),
    ],
)
@pytest.mark.parametrize("once", [False, True])
def test_a_command_that_is_told_to_end_says_so_in_a_line(
    numbers: list[int], code: int, once: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, *ending.ASKING)]
    parser = entry.parser("some.command", "")
    cleaned: list[bool] = []

    def command(_: object) -> None:
        try:
            send(*numbers)
        finally:
            if once:  # a second signal does not stop the cleaning
                for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(os.getpid(), each)
                time.sleep(0.01)
            cleaned.append(True)

    assert entry.run(parser, [], command, "all is kept", once) == code
    assert cleaned and capsys.readouterr().err == "\nstopped; all is kept\n"
    assert [signal.getsignal(each) for each in (signal.SIGINT, *ending.ASKING)] == handlers


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
@pytest.mark.parametrize("once", [False, True])
def test_a_stop_that_falls_into_a_finalizer_is_not_lost(
    number: int, code: int, once: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # the exception is raised here at the latest, and Python drops it

    def command(_: object) -> int:
        Finalized()
        time.sleep(10)
        return 99

    hook = sys.unraisablehook
    assert entry.run(entry.parser("some.command", ""), [], command, "all is kept", once) == code
    assert capsys.readouterr().err == "\nstopped; all is kept\n"
    assert sys.unraisablehook is hook


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        with ending.stoppable(once=True):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_under_torchrun_signals_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with ending.stoppable():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_cursor_is_never_left_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("TERM", "COLUMNS"):
        monkeypatch.setenv(name, {"TERM": "xterm", "COLUMNS": "100"}[name])
    for stream, display in (("stderr", bytes_bar), ("stdout", partial(Live, 3.0, 1))):
        terminal = Terminal()
        monkeypatch.setattr(sys, stream, terminal)
        with display():
            shown = terminal.getvalue()
        monkeypatch.undo()
        monkeypatch.setenv("TERM", "xterm")
        hides, shows = shown.rfind("\x1b[?25l"), shown.rfind("\x1b[?25h")
        assert hides < shows, stream  # also if it is killed now


# --- workers --------------------------------------------------------------------------------------


def work(task: object) -> object:
    """What workers of these tests do."""
    if task == "large":
        return bytes(1 << 24)
    if isinstance(task, int) and task < 0:
        os.kill(os.getpid(), -task)
    if task == "unsendable":
        raise UserError(lambda: None)  # type: ignore[arg-type]
    if task == "mistake":
        raise UserError("a mistake")
    return os.getpid() if task == "pid" else task


def test_workers_answer_every_task() -> None:
    assert sorted(workers.unordered(work, range(40), 2)) == list(range(40))
    assert list(workers.unordered(work, [], 2)) == []


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (-signal.SIGKILL, "ended with signal 9"),
        (-signal.SIGTERM, "ended with signal 15"),
        ("mistake", "a mistake"),
        ("unsendable", "lambda"),
    ],
)
def test_however_a_worker_ends_the_command_hears_of_it(task: object, message: str) -> None:
    with pytest.raises((UserError, workers.WorkerDiedError, RuntimeError), match=message):
        for _ in workers.unordered(work, [task, *range(10)], 2):
            pass
    assert not active_children()


def test_a_worker_that_is_killed_within_a_large_result_holds_up_nothing() -> None:
    answers = workers.unordered(work, ["pid", "large", "large"], 1)
    pid = next(answers)
    assert isinstance(pid, int)
    # The next result is larger than a pipe holds, so the worker now waits in the middle of it.
    with contextlib.suppress(ValueError):
        time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(workers.WorkerDiedError):
        list(answers)


def test_a_generator_that_is_closed_ends_its_workers() -> None:
    answers = workers.unordered(work, ["pid", *range(100)], 2)
    next(answers)
    assert active_children()
    answers.close()
    assert not active_children()


PARENT = """
import os, time
from multiprocessing import get_context
from tests.test_ending import idle
if __name__ == "__main__":
    processes = [get_context("{method}").Process(target=idle) for _ in range(2)]
    for process in processes:
        process.start()
        os.write(1, b"%d\\n" % process.pid)  # a line in one piece: the workers write too
    time.sleep(60)
"""


def idle() -> None:
    """A worker that does nothing, for ever."""
    ending.begin_worker()
    os.write(1, b"begun\n")
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path, method: str) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(method=method))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert parent.stdout
    told = [parent.stdout.readline().strip() for _ in range(4)]
    pids = [int(line) for line in told if line.isdigit()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def test_burners_of_the_benchmark_are_such_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import disturbed  # here, because the workers of these tests import this file

    def begun() -> None:
        raise InterruptedError

    monkeypatch.setattr(ending, "begin_worker", begun)
    with pytest.raises(InterruptedError):
        disturbed.burner(0, time.time())


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# --- the folder of what is being made -------------------------------------------------------------


def test_a_folder_that_a_killed_call_left_is_removed_by_the_next_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (".a.making", ".b.making"):
        (tmp_path / name / "buckets").mkdir(parents=True)
        (tmp_path / name / workspace.LOCK).write_text("")
    mine = tmp_path / ".mine.making"
    mine.mkdir()
    with workspace.beside(tmp_path / "a") as folder:
        assert {path.name for path in folder.iterdir()} == {workspace.LOCK}
        # One that is held is nobody else's.
        with (
            pytest.raises(UserError, match="another process is making .*a; wait for its end"),
            workspace.beside(tmp_path / "a"),
        ):
            pass
        (folder / "shard").write_text("whole")
        workspace.finish(folder, tmp_path / "a")
    told = capsys.readouterr().err
    assert told.count("a call that was killed had left it") == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".mine.making"}
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"shard"}


def test_an_unfinished_file_of_a_killed_process_is_removed_by_the_next_write(
    tmp_path: Path,
) -> None:
    names = [".a.csv.123.0a1b2c3d.tmp", ".b.bin.99.ffffffff.tmp", ".mine.tmp"]
    for name in names:
        (tmp_path / name).write_text("half")
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / ".c.1.00000000.tmp").write_text("of a process that writes just now")
    write_atomic(tmp_path / "a.csv", [b"whole"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.csv", ".mine.tmp", ".c.1.00000000.tmp",
    }  # fmt: skip


def test_an_error_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), workspace.beside(tmp_path / "a") as folder:
        (folder / "x").write_text("")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


# --- the command that prepares text ---------------------------------------------------------------

OPTIONS = [f"--vocab={corpus.ROOT / corpus.TOKENIZER}", "--workers=1"]


@pytest.fixture
def preparing(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """`data.text` with a worker at work, in the middle of its input, which never ends."""
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}) + "\n")
    os.mkfifo(tmp_path / "pipe")
    command = [sys.executable, "-m", "data.text", *OPTIONS, str(tmp_path / "out")]
    files = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "pipe")]
    process = subprocess.Popen(
        [*command, *files], cwd=PROJECT,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    sorted_text = tmp_path / ".out.making" / "buckets"
    assert eventually(lambda: sorted_text.is_dir() and any(sorted_text.iterdir()))
    yield process
    process.kill()
    process.communicate()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda pid: os.kill(pid, signal.SIGTERM), 143),
        (lambda pid: os.killpg(pid, signal.SIGTERM), 143),
        (lambda pid: os.killpg(pid, signal.SIGHUP), 129),
        (lambda pid: [os.killpg(pid, signal.SIGINT) for _ in range(3)], 130),
        (lambda pid: os.kill(pid, signal.SIGKILL), -9),
    ],
)
def test_whatever_ends_it_nothing_of_it_lives_on(
    preparing: "subprocess.Popen[str]", tmp_path: Path, end: Callable[[int], object], code: int
) -> None:
    processes = children(preparing.pid)
    assert processes
    end(preparing.pid)
    told = preparing.communicate(timeout=60)[1]
    assert preparing.returncode == code
    assert eventually(lambda: not any(alive(pid) for pid in processes))
    names = {path.name for path in tmp_path.iterdir()}
    if code == -9:
        assert ".out.making" in names
        with workspace.beside(tmp_path / "out"):
            pass
    else:
        assert told.endswith("\nstopped; no data set was made\n") and "Traceback" not in told
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl", "pipe"}


@pytest.mark.slow
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"{n} " + "word " * 900}) + "\n" for n in range(300))
    (tmp_path / "a.jsonl").write_text(lines)
    command = [sys.executable, "-m", "data.text", *OPTIONS, str(tmp_path / "out")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    done = subprocess.run(
        [*command, str(tmp_path / "a.jsonl")], cwd=PROJECT, stderr=subprocess.PIPE, text=True,
        preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 2 and "cannot be made: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl"}
