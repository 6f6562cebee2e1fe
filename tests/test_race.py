"""The race as a user runs it, in processes of its own: killed, stopped, resumed, repeated."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data import corpus
from leaderboard import verify
from tracking import store
from tracking.schema import Run

pytestmark = pytest.mark.slow  # each test starts processes
ROOT = Path(__file__).parents[1]
# What another run of the same race may change: when, beside which others, how fast, and in how much
# memory.
VARIES = ("started", "race", "run", "heat", "turn_steps", "seconds", "memory", "peak", "mfu")


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


def fixed(run: Run) -> dict[str, Any]:
    return {
        key: value for key, value in asdict(run).items() if not any(word in key for word in VARIES)
    }


def curves(root: Path, runs: list[Run]) -> list[list[tuple[int, float, float | None]]]:
    return [
        [
            (point.step, point.val_loss, point.train_loss)
            for point in store.read_curve(root, run.run)
        ]
        for run in runs
    ]


def wait_for_rows(root: Path, process: "subprocess.Popen[str]", rows: int) -> None:
    while len(store.read_runs(root)) < rows:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def test_a_race_killed_at_a_random_moment_and_resumed_gives_the_same_rows(
    micro_flags: list[str], tmp_path: Path
) -> None:
    race = ["adamw", "muon", "--seeds=3", "--steps=40", *micro_flags[:-1]]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(*race, f"--results={killed}")
    wait_for_rows(killed, process, rows=1)
    delay = random.uniform(0, 1.0)
    time.sleep(delay)
    process.kill()
    process.communicate()
    before = store.read_runs(killed)
    assert len(before) < 6, "the race was over before it was killed: give it more steps"
    resumed = start(*race, f"--results={killed}", "--resume")
    assert resumed.wait() == 0, resumed.communicate()
    uninterrupted = start(*race, f"--results={whole}")
    assert uninterrupted.wait() == 0, uninterrupted.communicate()
    assert store.read_runs(killed)[: len(before)] == before
    ours, theirs = (
        sorted(store.read_runs(root), key=lambda run: (run.seed, run.label))
        for root in (killed, whole)
    )
    assert len({run.race for run in ours}) == 1
    assert [fixed(run) for run in ours] == [fixed(run) for run in theirs], f"delay {delay}"
    assert curves(killed, ours) == curves(whole, theirs)
    assert [(run.label, run.seed) for run in ours] == [
        ("adamw", 0), ("muon", 0), ("adamw", 1), ("muon", 1), ("adamw", 2), ("muon", 2)
    ]  # fmt: skip
    assert verify.problems(whole) == []


def test_ctrl_c_shows_what_is_finished_and_says_how_to_go_on(
    micro_flags: list[str], tmp_path: Path
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
    fewer = subprocess.run(command(*race), capture_output=True, text=True, cwd=ROOT)
    assert fewer.returncode == 2 and "also has muon" in fewer.stderr


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
    for words in (race, ["-m", "analysis.charts"], ["-m", "leaderboard.verify"]):
        done = subprocess.run([sys.executable, *words], cwd=clone, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = store.read_runs(clone / "results")
    assert len(rows) == 4 and all(row.clean for row in rows)
    assert (clone / "plots" / "loss_curves.png").exists()
    assert git("status", "--porcelain") == ""
