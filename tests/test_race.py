"""The race as a user runs it, in processes of its own: killed, stopped, resumed, repeated."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import speedrun
from data import corpus
from leaderboard import verify
from studies import kills
from tracking import store

pytestmark = pytest.mark.slow  # each test starts processes
ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "speedrun.py"), *arguments]


def start(*arguments: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    # A shell starts what it sends to the background with Ctrl-C ignored, and so would be the tests.
    return subprocess.Popen(
        command(*arguments),
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=environment,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rows(root: Path, process: "subprocess.Popen[str]", rows: int) -> None:
    while len(store.read_runs(root)) < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_kills_at_random_moments_lose_double_and_change_no_row(tmp_path: Path) -> None:
    seed = random.randrange(1000)
    rows = list(kills.kill_all(2, seed, tmp_path))
    assert [(row.processes, row.kill) for row in rows] == [(1, 1), (2, 2)]
    assert all(row[-4:] == (0, 0, 0, 0) for row in rows), (seed, rows)


def test_ctrl_c_shows_what_is_finished_and_says_how_to_go_on(
    micro_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "results"
    process = start("adamw", "muon", "--seeds=50", "--steps=40", *micro_flags)
    wait_for_rows(root, process, rows=2)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in error and "Traceback" not in error
    table = out[out.rindex("entrant") :]
    assert "adamw" in table and "muon" in table
    rows = store.read_runs(root)
    assert 2 <= len(rows) < 100
    race = ["adamw", f"--seeds={len(rows)}", "--steps=40", *micro_flags, "--resume"]
    assert speedrun.main(race) == 2 and "also has muon" in capsys.readouterr().err


def test_two_races_at_once_leave_one_sound_file(micro_flags: list[str], tmp_path: Path) -> None:
    race = ["adamw", "--seeds=4", "--steps=4", *micro_flags]
    processes = [start(*race) for _ in range(2)]
    for process in processes:
        assert process.wait() == 0, process.communicate()
    rows = store.read_runs(tmp_path / "results")
    assert len(rows) == 8 and len({run.race for run in rows}) == 2
    assert verify.problems(tmp_path / "results") == []


def test_a_clone_stays_clean_when_its_user_races(micro_flags: list[str], tmp_path: Path) -> None:
    clone = tmp_path / "clone"

    def git(*arguments: str, root: Path = clone) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    if not (ROOT / ".git").exists():
        pytest.skip("this copy of the project is no git checkout")
    for name in git("ls-files", root=ROOT).splitlines():
        if (ROOT / name).exists():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, clone / name)
    git("init", "--quiet")
    git("add", "--all")
    git("-c", "user.name=x", "-c", "user.email=x@x", "commit", "--quiet", "--message=all")
    shutil.copytree(corpus.ROOT, clone / "data" / corpus.ROOT.name)
    race = ["speedrun.py", "adamw", "muon", "--seeds=2", "--steps=4", *micro_flags[:-1]]
    for words in (race, ["-m", "analysis.charts"], ["-m", "leaderboard", "verify", "results"]):
        done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = store.read_runs(clone / "results")
    assert len(rows) == 4 and all(row.clean for row in rows)
    assert (clone / "plots" / "loss_curves.png").exists()
    assert git("status", "--porcelain") == ""
