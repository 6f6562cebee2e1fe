"""A row says what was: whether the model was compiled is counted, and a race has one kind of run.

    python -m pytest tests/test_observed.py

Claims: compilation that fails, is switched off or gives up in silence is said once and stands in
every row, of trials too; all runs of a heat and all processes then run the same way; a race takes
its choices from its rows; --resume refuses what differs, before any training.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import muon
import speedrun
from errors import UserError
from leaderboard import verify
from runtime import fastest, machine, program
from speedrun import Options, Track, Trainer
from studies import tune
from studies.study import Budget, Shard, Study
from tests.conftest import MICRO
from tests.rows import make_run, make_trial
from tracking import resume, store
from tracking.schema import COMMON

pytestmark = pytest.mark.slow  # whole races

Model = Callable[..., Tensor]
RACE = ["adamw", "muon", "--steps=4", "--threads=1", "--dtype=float32", "--attention=fused"]
RACE += [f"--{name.replace('_', '-')}={value}" for name, value in MICRO.items()]


def fails(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    raise OSError(28, "No space left on device", "/full/torchinductor")


def header_is_missing(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    output = "x.h:3: fatal error: Python.h"
    raise RuntimeError(f"C++ compile error\n\nCommand:\ng++ x.cpp\n\nOutput:\n{output}")


def gives_up(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    return model(inputs, targets)  # Python runs it, which nothing reports


def works(model: Any, inputs: Tensor, targets: Tensor) -> Tensor:
    loss: Tensor = model(inputs, targets)
    model.eager_passes -= 1  # compiled code does not count
    return loss


NOTES = {
    fails: "compilation failed: [Errno 28] No space left on device: '/full/torchinductor'",
    header_is_missing: "compilation failed: C++ compile error: x.h:3: fatal error: Python.h",
    gives_up: "torch.compile is switched off, or gave up without an error",
}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets torch.compile make these of the models that it is given, the last one of all others."""

    def behaves(*how: Any) -> None:
        left = list(how)

        def compile(model: Any, dynamic: bool) -> Model:
            made = left.pop(0) if len(left) > 1 else left[0]
            return lambda *tokens: made(model, *tokens)

        monkeypatch.setattr(torch, "compile", compile)

    monkeypatch.setattr(machine, "compiler_missing", lambda device: "")
    return behaves


@pytest.mark.parametrize("how", NOTES, ids=lambda how: how.__name__)
def test_every_row_of_a_race_says_that_it_was_not_compiled_and_a_line_says_why(
    how: Any, compiler: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler(how)
    turn_steps = 0 if how is gives_up else 2  # also where each run has the machine to itself
    race = [*RACE, f"--turn-steps={turn_steps}", f"--results={tmp_path}"]
    assert speedrun.main([*race, "--seeds=1"]) == 0
    error = capsys.readouterr().err
    assert error.count(NOTES[how]) == 1 and "the model runs uncompiled" in error
    assert speedrun.main([*race, "--seeds=2", "--resume"]) == 0
    rows = store.read_runs(tmp_path)
    assert {(row.compiled, row.compile_note) for row in rows} == {(False, NOTES[how])}
    assert len(rows) == 4 and verify.problems(tmp_path) == []
    compiler(works)
    capsys.readouterr()
    assert speedrun.main([*race, "--seeds=3", "--resume"]) == 2
    error = capsys.readouterr().err
    assert f"not compiled ({NOTES[how]}), now the model is" in error and "--no-compile" in error
    assert len(store.read_runs(tmp_path)) == 4


def test_a_race_that_is_compiled_is_not_resumed_uncompiled(
    compiler: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    race = [*RACE, f"--results={tmp_path}"]
    compiler(works)
    assert speedrun.main([*race, "--seeds=1"]) == 0
    assert "uncompiled" not in capsys.readouterr().err
    rows = store.read_runs(tmp_path)
    assert {(row.compiled, row.compile_note) for row in rows} == {(True, "")}
    for how, more in ((fails, ()), (works, ("--no-compile",))):
        compiler(how)
        assert speedrun.main([*race, "--seeds=2", "--resume", *more]) == 2
        error = capsys.readouterr().err
        note = "as asked" if more else NOTES[how]
        assert f"that are compiled, now the model is not ({note})" in error
        assert "go on with --resume" in error and "Traceback" not in error
    assert store.read_runs(tmp_path) == rows
    compiler(works)
    assert speedrun.main([*race, "--seeds=2", "--resume"]) == 0


def test_a_heat_in_which_one_run_cannot_be_compiled_runs_uncompiled_as_a_whole(
    compiler: Any, tmp_path: Path
) -> None:
    compiler(works, fails)  # the disk is full after the first
    assert speedrun.main([*RACE, "--seeds=2", f"--results={tmp_path}"]) == 0
    rows = store.read_runs(tmp_path)
    assert {(row.compiled, row.compile_note) for row in rows} == {(False, NOTES[fails])}
    assert all(row.heat for row in rows) and verify.problems(tmp_path) == []


def test_passes_that_ran_uncompiled_later_stand_in_the_row(
    compiler: Any, micro_track: Track, micro_options: Options
) -> None:
    calls = 0

    def late(model: Any, *tokens: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return (works if calls < 5 else gives_up)(model, *tokens)

    compiler(late)
    trainer = Trainer(micro_track, replace(micro_options, compile=True))
    out = trainer.run(speedrun.enter("adamw", "tiny", 4), seed=0)
    facts = trainer.facts(out)
    assert not facts["compiled"]
    assert facts["compile_note"] == f"{calls - 4} passes ran uncompiled"


def test_a_trial_says_what_it_was_and_not_what_was_meant(
    compiler: Any, micro_track: Track, micro_options: Options
) -> None:
    compiler(fails)
    trainer = Trainer(micro_track, replace(micro_options, compile=True))
    study = Study(trainer, "tiny", "adamw", Budget(1, Shard(), "search"))
    (trial,) = study.search()
    assert (trial.compiled, trial.compile_note) == (False, NOTES[fails])


@pytest.mark.parametrize("switch", ["disable", "recompile_limit"])
def test_torchs_own_switches_are_noticed(
    switch: str, micro_track: Track, micro_options: Options
) -> None:
    import torch._dynamo.config

    torch.compiler.reset()
    trainer = Trainer(micro_track, replace(micro_options, compile=True, attention="fused"))
    with torch._dynamo.config.patch({switch: 0 if switch == "recompile_limit" else True}):
        out = trainer.run(speedrun.enter("adamw", "tiny", 2), seed=0)
    torch.compiler.reset()
    assert trainer.facts(out)["compile_note"] == NOTES[gives_up]


def test_a_cache_that_torch_cannot_use_is_refused_by_its_name(tmp_path: Path) -> None:
    """Also where the model is not compiled: the optimizers need the compiler."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": "/proc/nowhere"}
    done = subprocess.run(
        [sys.executable, "speedrun.py", *RACE, f"--results={tmp_path}", "--no-compile"],
        cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "TORCHINDUCTOR_CACHE_DIR=/proc/nowhere: torch cannot write there" in done.stderr


class Ranks:
    """Two processes of a program, whose collectives meet without processes."""

    def __init__(self, rank: int, other: list[float]) -> None:
        self.rank, self.other, self.device = rank, other, torch.device("cpu")

    def all_reduce_max(self, value: Tensor) -> Tensor:
        theirs = torch.tensor(self.other.pop(0)) if value.ndim == 0 else torch.zeros_like(value)
        return torch.maximum(value, theirs)


def test_a_process_learns_why_another_one_cannot_compile() -> None:
    for rank, other, text, known in (
        (1, 0.0, "no g++ ± x", "no g++ ± x"),
        (1, 0.0, "x" * 999, "x" * program.REASON_MOST),
        (0, 0.0, "", ""),
        (0, 2.0, "mine", ""),  # the text of the last rank, which Ranks does not know, is taken
    ):
        one: Any = program.Program.__new__(program.Program)
        one.engine = Ranks(rank, [other])
        assert one._shared(text) == known


# ---- What is chosen by measurement ---------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Each measurement says the opposite of the one before; the list of those made."""
    made: list[str] = []

    def clearly_faster(*_: Any) -> bool:
        made.append("measured")
        return len(made) % 2 == 1

    monkeypatch.setattr(fastest, "clearly_faster", clearly_faster)
    monkeypatch.setattr(machine, "bfloat16_units", lambda device: ["avx512_bf16"])
    yield made


def test_a_resumed_race_takes_its_choices_from_its_rows(
    measured: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    race = [word for word in RACE if not word.startswith(("--dtype", "--attention"))]
    race += ["--no-compile", f"--results={tmp_path}"]
    assert speedrun.main([*race, "--seeds=1"]) == 0 and len(measured) == 2
    assert speedrun.main([*race, "--seeds=2", "--resume"]) == 0 and len(measured) == 2
    rows = store.read_runs(tmp_path)
    assert {(row.dtype, row.attention) for row in rows} == {("bfloat16", "fused")}
    for asked, message in (
        ("--dtype=float32", "has dtype bfloat16, now it is float32"),
        ("--attention=plain", "has attention fused, now it is plain"),
        ("--ns-backend=plain", "has ns_backend auto, now it is plain"),
        ("--microbatch=4", "has microbatch 0, now it is 4"),
    ):
        assert speedrun.main([*race, "--seeds=3", "--resume", asked]) == 2
        assert message in capsys.readouterr().err
    assert store.read_runs(tmp_path) == rows


def test_options_are_settled_by_the_newest_row() -> None:
    rows = [make_trial(dtype=name, started=day) for name, day in (("float32", "2"), ("x", "1"))]
    auto = Options()
    assert resume.settled(auto, []) == auto
    settled = resume.settled(auto, [*rows, make_run(started="0")])
    assert (settled.dtype, settled.attention) == ("float32", rows[0].attention)
    asked = replace(auto, dtype="bfloat16")
    assert resume.settled(asked, rows).dtype == "bfloat16"


def test_a_search_goes_on_with_the_choices_of_its_trials_on_this_device(
    micro_track: Track, tmp_path: Path
) -> None:
    here = machine.device_name(torch.device("cpu"))
    row = make_trial(track_hash=micro_track.hash(), device=here, dtype="bfloat16")
    others = replace(row, device="else", dtype="x"), replace(row, track_hash="else", dtype="x")
    options = Options(results=tmp_path)
    for each in (row, *others):
        store.append(tmp_path / "tuning.csv", each)
    assert tune.settled(micro_track, options).dtype == "bfloat16"


def test_the_choices_that_no_row_holds_are_kept_for_the_rest_of_the_race(
    micro_track: Track, micro_options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ("auto", 3, 64, 128, torch.bfloat16, muon.COEFFICIENTS["you"])
    monkeypatch.setattr(muon, "_chosen", {key: "gram"})
    trainer = Trainer(micro_track, micro_options)
    trainer.program.set_microbatch(4)
    resume.keep(tmp_path, "race", vars(micro_options), trainer.program.setup())
    muon._chosen.clear()
    other = Trainer(micro_track, micro_options)
    other.program.adopt(store.read_setup(tmp_path, "race"))
    assert muon.chosen_backends() == {key: "gram"} and other.program.microbatch == 4
    monkeypatch.setattr(muon, "BACKENDS", {"plain": muon.BACKENDS["plain"]})
    with pytest.raises(UserError, match="took Newton-Schulz gram, which is not here"):
        other.program.adopt(store.read_setup(tmp_path, "race"))
    other.program.adopt(store.read_setup(tmp_path, "older"))  # a race without the file
    for text in ("{", "[]"):
        (tmp_path / "setups" / "race.json").write_text(text)
        with pytest.raises(UserError, match=r"race.json.*restore the file or remove it"):
            store.read_setup(tmp_path, "race")


def test_what_a_race_compares_is_known_before_the_warm_up_but_for_one_column(
    micro_track: Track, micro_options: Options
) -> None:
    trainer = Trainer(micro_track, micro_options)
    assert set(COMMON) - set(trainer.conditions()) == {"compiled", "target"}
