"""The whole path: a hub, its shards, a race of several processes, rows. And ranks that die or hang.

    python -m pytest tests/test_ddp.py

The processes are real, started by torchrun, and talk over gloo; the client of the hub is the real
one; the hub is on this machine, its shards are of random tokens, and the model is a toy.
"""

import contextlib
import gc
import os
import subprocess
import sys
import weakref
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import engines
import speedrun
from bench.gpu_check.graphs_and_engines import one_process
from data import manifest
from leaderboard import verify
from tests.hub import Hub, shard
from tests.world import ROOT, TAU, clip, moving, train
from tracking import store
from tracking.schema import Run

pytestmark = pytest.mark.slow  # each test starts processes
SCRIPT = ROOT / "tests" / "world.py"


@cache
def nameless_host() -> list[str]:
    """What to write before a command so that nothing resolves its host's own name, which makes
    torchrun wait for minutes; nothing where the system does not let a test rename its host."""
    prefix = ["unshare", "--map-root-user", "--uts", "sh", "-c"]
    with contextlib.suppress(OSError):
        if (
            subprocess.run([*prefix, "hostname no-such.invalid"], capture_output=True).returncode
            == 0
        ):
            return [*prefix, 'hostname no-such.invalid && exec "$@"', "sh"]
    return []


def started(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*nameless_host(), sys.executable, *command],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )  # fmt: skip


def torchrun(scenario: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    return started(*command, "--nproc_per_node=2", str(SCRIPT), scenario, *arguments)


def launched(
    scenario: str, *arguments: str, restarts: int = 0
) -> "subprocess.CompletedProcess[str]":
    """As torchrun does it, without its command line."""
    return started(str(SCRIPT), "launch", str(restarts), scenario, *arguments)


def race_flags(micro_flags: list[str], results: Path, seeds: int = 1) -> list[str]:
    race = ["adamw", "muon", f"--seeds={seeds}", "--steps=6"]
    return [*race, *micro_flags[:-1], f"--results={results}"]


def fineweb_flags(micro_flags: list[str], shards: Path, results: Path) -> list[str]:
    # The vocabulary is that of GPT-2, so a token costs much: batches are small.
    flags = race_flags(micro_flags, results)
    flags += ["--seq-len=8", "--batch-tokens=64", "--val-tokens=128"]
    return [*flags, "--track=gpt2", "--model=tiny", f"--dataset=fineweb:{shards}", "--target=10"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards of six batches, fetched from a hub; and what two processes will leave behind."""
    folder = tmp_path_factory.mktemp("world")
    files = {"fineweb_val_000000.bin": shard(150, 0)}
    files |= {f"fineweb_train_{n:06d}.bin": shard(125 + n, n) for n in range(1, 9)}
    hub = Hub(files)
    hub.start()
    command = [sys.executable, "-m", "data.fineweb", "--tokens=384", f"--root={folder / 'shards'}"]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home")}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True
    )
    hub.stop()
    assert done.returncode == 0 and "4 training shards" in done.stdout, done.stdout + done.stderr
    return folder


@pytest.fixture
def two(world: Path, micro_flags: list[str]) -> Path:
    """The world, started once: training, a race of MuonClip, then one in microbatches of 2."""
    if not (world / "engine0.pt").exists():
        moving(world / "from-one", stop_at=10)
        flags = fineweb_flags(micro_flags, world / "shards", world / "two")
        done = torchrun("engine", str(world), *flags, "--microbatch=2")
        assert done.returncode == 0, done.stdout + done.stderr
        (world / "out.txt").write_text(done.stdout)
    return world


@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_train_as_one_does(two: Path, rank: int) -> None:
    ours, one = (
        torch.load(two / f"engine{rank}.pt"),
        train(engines.make("single", torch.device("cpu")), micro=8),
    )
    assert ours["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert ours["norm"] == pytest.approx(one["norm"], rel=1e-4)
    for a, b in zip(ours["weights"], one["weights"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert ours["max"] == [1.0, 0.0] and ours["shared"] == {"from": 0}


def test_processes_hold_the_same_weights_to_the_bit(two: Path) -> None:
    first, second = (torch.load(two / f"engine{rank}.pt")["weights"] for rank in (0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_race_of_two_processes_has_the_losses_of_one(
    two: Path, micro_flags: list[str], tmp_path: Path
) -> None:
    assert speedrun.main(fineweb_flags(micro_flags, two / "shards", tmp_path / "one")) == 0
    ours, theirs = store.read_runs(two / "two"), store.read_runs(tmp_path / "one")
    assert [(run.world_size, run.engine) for run in ours] == [(2, "ddp")] * 2
    assert [(run.world_size, run.engine) for run in theirs] == [(1, "single")] * 2
    assert all(run.heat and run.turn_steps == 2 for run in [*ours, *theirs])
    for a, b in zip(ours, theirs, strict=True):
        assert (a.entrant, a.tokens, a.track_hash) == (b.entrant, b.tokens, b.track_hash)
        assert a.data_hash == b.data_hash == manifest.read(two / "shards", "").hash
        left, right = (
            store.read_curve(two / "two", a.run),
            store.read_curve(tmp_path / "one", b.run),
        )
        for x, y in zip(left, right, strict=True):
            assert x.val_loss == pytest.approx(y.val_loss, abs=2e-4)
            assert x.train_loss == pytest.approx(y.train_loss, abs=2e-4)
            assert x.grad_norm == pytest.approx(y.grad_norm, rel=1e-3)
        assert a.communication_seconds > 0 == b.communication_seconds
    assert verify.problems(two / "two") == []


def test_qk_clip_sees_the_logits_of_every_process(two: Path, tmp_path: Path) -> None:
    clip(tmp_path)
    (ours,), (theirs,) = store.read_runs(two / "clip"), store.read_runs(tmp_path)
    assert (ours.world_size, theirs.world_size) == (2, 1)
    assert ours.entrant == theirs.entrant
    left, right = store.read_logits(two / "clip", ours.run), store.read_logits(tmp_path, theirs.run)
    assert [(r.step, r.layer, r.head) for r in left] == [
        (step, layer, head) for step in range(1, 9) for layer in range(4) for head in range(2)
    ]
    # From the second step on, logits follow from what was clipped before.
    assert all(r.max_logit > TAU for r in right if r.step == 1)
    for a, b in zip(left, right, strict=True):
        assert a.max_logit == pytest.approx(b.max_logit, rel=1e-4), (a, b)
    # The mean of both processes, which would have parted if each clipped by its own logits.
    assert ours.final_loss == pytest.approx(theirs.final_loss, rel=1e-5)


def test_a_race_goes_on_with_another_number_of_processes(two: Path, tmp_path: Path) -> None:
    moving(tmp_path)
    moving(two / "from-two")
    whole = {run.label: run for run in store.read_runs(tmp_path)}
    for name, layouts in (("from-one", "single@1+ddp@2"), ("from-two", "ddp@2+single@1")):
        runs = store.read_runs(two / name)
        assert sorted(run.label for run in runs) == sorted(whole)
        for run in runs:
            left = store.read_curve(two / name, run.run)
            right = store.read_curve(tmp_path, whole[run.label].run)
            assert [x.step for x in left] == [y.step for y in right]
            for x, y in zip(left, right, strict=True):
                assert x.val_loss == pytest.approx(y.val_loss, rel=1e-5), (name, run.label)
                assert x.train_loss == pytest.approx(y.train_loss, rel=1e-5), (name, run.label)
            # Its turns were not all of one layout, so no price of a step is made from them.
            assert (run.engine, run.heat, run.turn_steps) == (layouts, "", 0)


def test_only_the_first_process_speaks(two: Path) -> None:
    out = (two / "out.txt").read_text()
    assert out.count("Muon reached") + out.count("No ") <= 1
    assert out.count("entrant ") == 2  # the table at the start and the one at the end


def test_a_rank_that_dies_is_named_and_a_restart_goes_on_with_the_race(
    micro_flags: list[str], tmp_path: Path
) -> None:
    done = launched("die", *race_flags(micro_flags, tmp_path / "r", seeds=2), restarts=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "exitcode: 7" in done.stderr and "local_rank: 1" in done.stderr
    assert "rank 0 lost rank 1, which has ended" in done.stderr
    runs: list[Run] = store.read_runs(tmp_path / "r")
    assert {(run.label, run.seed) for run in runs[:2]} == {("adamw", 0), ("muon", 0)}
    assert {(run.label, run.seed) for run in runs[2:]} == {("adamw", 1), ("muon", 1)}
    assert len({run.race for run in runs}) == 1
    assert done.stdout.count("seed 0  6 steps, warming up") == 2  # what was finished stays


@pytest.fixture
def hung(world: Path, micro_flags: list[str]) -> Path:
    """The world, with a race in which rank 1 can compile nothing, and hangs in seed 1."""
    if not (world / "hung.txt").exists():
        flags = race_flags(micro_flags, world / "hung", seeds=2)
        flags = [each for each in flags if each != "--no-compile"]
        done = launched("hang", *flags, "--timeout=4")
        assert done.returncode != 0
        (world / "hung.txt").write_text(done.stderr)
    return world


def test_where_one_rank_cannot_compile_all_run_uncompiled_for_its_reason(hung: Path) -> None:
    note = "compilation failed: rank 1 has no Python.h"
    said = (hung / "hung.txt").read_text()
    assert said.count(f"{note}: the model runs uncompiled") == 1
    rows = store.read_runs(hung / "hung")
    assert {(row.compiled, row.compile_note) for row in rows} == {(False, note)} and len(rows) == 2


def test_a_rank_that_hangs_is_named_and_what_is_finished_is_kept(hung: Path) -> None:
    said = (hung / "hung.txt").read_text()
    assert "rank 1 is behind the others" in said and "--resume" in said
    runs = store.read_runs(hung / "hung")
    assert {(run.label, run.seed) for run in runs} == {("adamw", 0), ("muon", 0)}


def test_one_process_refuses_to_be_ddp(
    micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert speedrun.main(["adamw", "--engine=ddp", *micro_flags]) == 2
    assert "torchrun --standalone" in capsys.readouterr().err


def test_what_reduces_ends_before_its_group() -> None:
    """The other way round a process may stand still at its end; engines/ddp.py says why."""
    for _ in range(2):  # torch itself may keep the first group of a process
        ended: list[str] = []
        with one_process():
            engine = engines.make("ddp", torch.device("cpu"), timeout=30)
            wrapped: Any = engine.wrap(torch.nn.Linear(4, 4))
            weakref.finalize(wrapped.reducer, ended.append, "reducer")
            weakref.finalize(wrapped.process_group, ended.append, "group")
            engine.close()
        assert ended == []
        del wrapped, engine
        gc.collect()
    assert ended == ["reducer", "group"]
