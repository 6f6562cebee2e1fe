"""Checkpoints: a run that is killed goes on as if it had not been, and what is damaged is named.

python -m pytest tests/test_checkpoints.py
"""

import errno
import logging
import os
import pickle
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import speedrun
from engines import Owned, _state
from errors import UserError
from host import ending
from optim import library
from runtime import checkpoints, machine
from speedrun import Options, Track, Trainer
from tests.conftest import Noisy
from tracking import resume, store
from tracking.schema import Run

pytestmark = pytest.mark.slow  # whole races

Curve = list[tuple[Any, ...]]


class Killed(BaseException):
    """In place of SIGKILL: nothing of the trainer catches it."""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rule of tests/conftest.py by a name."""
    rule_of = library.rule
    noisy = "tests.conftest.Noisy"
    monkeypatch.setattr(library, "rule", lambda path: Noisy if path == noisy else rule_of(path))
    logging.disable(logging.CRITICAL)  # torch's, of every tensor, which pytest would keep
    yield
    logging.disable(logging.NOTSET)
    library.recipe_of.cache_clear()


def race(
    track: Track,
    options: Options,
    names: list[str],
    kill_at: int = 0,
    do: Callable[[], object] | None = None,
) -> list[Run]:
    """Race on, with what is recorded; `do` something, or be killed, in the step of this number."""
    taken = [0]
    step_of = Trainer.step

    def step(self: Trainer, *arguments: Any, **more: Any) -> Tensor:
        taken[0] += 1
        if taken[0] == kill_at:
            if do is None:
                raise Killed
            do()
        return step_of(self, *arguments, **more)

    root = Path(options.results)
    entrants = [speedrun.enter(name, "tiny") for name in names]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "step", step)
        trainer = Trainer(track, options)
        return speedrun.race(trainer, entrants, 1, "race", store.read_runs(root))


def killed(track: Track, options: Options, names: list[str], at: int) -> None:
    with pytest.raises(Killed):
        race(track, options, names, at)


def curves(options: Options) -> dict[str, Curve]:
    """What the rows and files of a race say of each run, without seconds and bytes."""
    root, found = Path(options.results), {}
    for run in store.read_runs(root):
        points = [
            (p.step, p.tokens, p.train_loss, p.val_loss, p.lr, p.grad_norm)
            for p in store.read_curve(root, run.run)
        ]
        logits = [(r.step, r.layer, r.head, r.max_logit) for r in store.read_logits(root, run.run)]
        spectra = list(map(astuple, store.read_spectra(root, run.run)))
        taken = [turn.steps for turn in store.read_turns(root, run.run)]
        found[run.label] = [
            (run.status, run.steps, run.final_loss),
            *points,
            *logits,
            *spectra,
            *taken,
        ]
    return found


def folders(options: Options) -> list[str]:
    return sorted(path.name for path in Path(options.results).glob("checkpoints/race/*"))


@cache
def whole(track: Track, *names: str) -> dict[str, Curve]:
    """What a race says that is not killed."""
    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            dtype="float32", threads=1, compile=False, save_every=0, results=Path(folder)
        )
        race(track, options, [*names])
        return curves(options)


def without_turns(found: dict[str, Curve]) -> dict[str, Curve]:
    return {name: [row for row in rows if isinstance(row, tuple)] for name, rows in found.items()}


PAIR = ["adamw:steps=8", "muon:steps=8"]
RULES = ["adamw:steps=6", "muon:steps=4", "soap:steps=6", "schedule-free:steps=6"]
RULES += ["lib:tests.conftest.Noisy:steps=6"]


@pytest.fixture
def saving(micro_options: Options) -> Options:
    return replace(micro_options, save_every=2)


def test_a_race_that_is_killed_goes_on_to_the_bit(micro_track: Track, saving: Options) -> None:
    killed(micro_track, saving, RULES, 14)  # after 10 steps comes a checkpoint, and turns of 2
    assert folders(saving) == ["000000"]
    torch.manual_seed(99)  # of the process that is killed nothing is left
    runs = race(micro_track, saving, RULES)
    assert curves(saving) == whole(micro_track, *RULES) and len(runs) == 5
    assert {run.turn_steps for run in runs} == {2} and len({run.heat for run in runs}) == 1
    assert not Path(saving.results, "checkpoints").exists()


def test_a_run_that_is_alone_goes_on_to_the_bit(micro_track: Track, saving: Options) -> None:
    killed(micro_track, saving, ["muon:steps=8"], 6)
    steps = []
    taken = race(micro_track, saving, ["muon:steps=8"], 1, lambda: steps.append(1))
    assert curves(saving) == whole(micro_track, "muon:steps=8") and [r.heat for r in taken] == [""]


def test_a_later_seed_goes_on_too(
    micro_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["adamw:steps=4", "muon:steps=4", "--seeds=2", "--save-every=2", *micro_flags]
    taken, step_of = [0], Trainer.step

    def step(self: Trainer, *arguments: Any, **more: Any) -> Tensor:
        taken[0] += 1
        if taken[0] == 14:  # of 16, eight of which are of the first seed
            raise Killed
        return step_of(self, *arguments, **more)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(Killed):
        speedrun.main(flags)
    assert speedrun.main([*flags, "--resume"]) == 0
    assert taken[0] == 14 + 4  # of both entrants, the last two


def test_the_logits_of_qk_clip_are_kept(micro_track: Track, saving: Options) -> None:
    track = replace(speedrun.TRACKS["tiny-mla"], name="custom")
    names = ["width", "seq_len", "batch_tokens", "val_tokens", "val_every", "val_every_late"]
    track = replace(track, **{name: getattr(micro_track, name) for name in names}, target=6.9)
    names = ["muonclip:lr=0.1,tau=0.2,steps=6", "adamw:steps=6"]
    killed(track, saving, names, 6)
    race(track, saving, names)
    assert curves(saving) == whole(track, *names)
    (clip,) = (run for run in store.read_runs(Path(saving.results)) if "clip" in run.entrant)
    steps = {row.step for row in store.read_logits(Path(saving.results), clip.run)}
    assert steps == {1, 2, 3, 4, 5, 6}


def test_the_spectra_that_were_measured_are_kept(micro_track: Track, saving: Options) -> None:
    names = ["adamw:steps=12", "muon:steps=12"]
    logging = replace(saving, log_spectra=True)
    killed(micro_track, logging, names, 21)
    race(micro_track, logging, names)
    runs = store.read_runs(Path(logging.results))
    found = [store.read_spectra(Path(logging.results), run.run) for run in runs]
    assert [sorted({row.step for row in rows}) for rows in found] == [[4, 8, 12], [4, 8, 12]]
    with tempfile.TemporaryDirectory() as folder:
        unbroken = replace(logging, save_every=0, results=Path(folder))
        race(micro_track, unbroken, names)
        assert curves(unbroken) == curves(logging)
        assert without_spectra(curves(unbroken)) == whole(micro_track, *names)


def without_spectra(found: dict[str, Curve]) -> dict[str, Curve]:
    """A row of a spectrum has many columns, and no other row has as many."""
    return {
        name: [row for row in rows if not isinstance(row, tuple) or len(row) < 10]
        for name, rows in found.items()
    }


def test_a_run_that_has_ended_since_the_checkpoint_is_not_run_again(
    micro_track: Track, saving: Options
) -> None:
    names, rarely = ["adamw:steps=12", "muon:steps=10"], replace(saving, save_every=8)
    killed(micro_track, rarely, names, 21)  # the checkpoint is of step 8, muon ended after it
    (done,) = store.read_runs(Path(rarely.results))
    runs = race(micro_track, rarely, names)
    assert [run.run for run in runs] == [done.run, runs[1].run]
    assert without_turns(curves(rarely)) == without_turns(whole(micro_track, *names))
    # Its turns were taken again at another time than those of the run that had ended.
    assert (done.turn_steps, runs[1].heat, runs[1].turn_steps) == (2, "", 0)


def test_the_clock_and_what_it_measured_go_on(micro_track: Track, saving: Options) -> None:
    killed(micro_track, saving, PAIR, 11)
    name = checkpoints.newest(Path(saving.results) / "checkpoints" / "race")
    about = checkpoints.Saved(Path(saving.results) / "checkpoints" / "race" / name).abouts[0]
    kept = dict(map(tuple, about["runs"][0]["out"]["dict"]))
    race(micro_track, saving, PAIR)
    (run,) = (r for r in store.read_runs(Path(saving.results)) if r.label.startswith("adamw"))
    turns = store.read_turns(Path(saving.results), run.run)
    before = dict(kept["clock"]["dict"])["seconds"]
    assert kept["steps"] == 4 and run.train_seconds > before > 0
    assert sum(turn.train_seconds for turn in turns[:2]) == pytest.approx(before)
    assert sum(turn.train_seconds for turn in turns) == pytest.approx(run.train_seconds)


# ---- Files -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """For the results of a race that is killed once for all tests."""
    return [tmp_path_factory.mktemp("stopped") / "results"]


@pytest.fixture
def two(micro_track: Track, saving: Options, stopped: list[Path]) -> Path:
    """The folder of a race that was killed when it had two checkpoints."""
    if not stopped[0].exists():
        killed(micro_track, replace(saving, results=stopped[0]), PAIR, 13)
    shutil.copytree(stopped[0], saving.results)
    assert folders(saving) == ["000001", "000002"]  # the last two of three
    return Path(saving.results) / "checkpoints" / "race"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    damage: Callable[[Path], None], two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(path.name for path in (two / "000002").iterdir())
    assert files == [".metadata", "__0_0.distcp", "manifest.txt"]
    for name in files:
        path = two / "000002" / name
        content = path.read_bytes()
        damage(path)
        assert checkpoints.newest(two) == "000001"
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "000002 is damaged" in error and name in error
        path.write_bytes(content)
        assert checkpoints.newest(two) == "000002"


def test_with_no_sound_checkpoint_the_heat_begins_anew(
    two: Path, micro_track: Track, saving: Options
) -> None:
    for name in ("000001", "000002"):
        cut(two / name / "__0_0.distcp")
    race(micro_track, saving, PAIR)
    assert curves(saving) == whole(micro_track, *PAIR)


class Evil:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def test_metadata_of_other_classes_is_not_read(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (two / "000002" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(checkpoints.DamagedError, match="names posix.system"):
        checkpoints.Saved(two / "000002")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_ends_the_save_and_not_the_race(
    micro_track: Track,
    saving: Options,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    saves, fsync = [0], os.fsync

    def full(file: int) -> None:
        if checkpoints.MAKING in os.readlink(f"/proc/self/fd/{file}"):
            saves[0] += 1
            if saves[0] > 4:  # of the first checkpoint: tensors, metadata, manifest, folder
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    killed(micro_track, saving, PAIR, 14)
    error = capfd.readouterr().err
    assert error.count("no checkpoint in") == 2 and "No space left on device" in error
    assert folders(saving) == ["000000"]
    race(micro_track, saving, PAIR)
    assert curves(saving) == whole(micro_track, *PAIR)


def test_state_that_no_checkpoint_can_hold_is_named_once(
    micro_track: Track, saving: Options, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    class Odd(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state[self.param_groups[0]["params"][0]]["odd"] = object()
            return super().step(closure)

    monkeypatch.setattr(library, "rule", lambda path: Odd)
    names = ["lib:tests.conftest.Odd:steps=6", "adamw:steps=6"]
    assert len(race(micro_track, saving, names)) == 2
    assert capfd.readouterr().err.count("the race has no checkpoints") == 1
    library.recipe_of.cache_clear()


def test_a_checkpoint_of_another_program_is_not_used(
    two: Path, micro_track: Track, saving: Options, capfd: pytest.CaptureFixture[str]
) -> None:
    track = replace(micro_track, val_every=2)
    runs = race(track, saving, PAIR)
    assert "written with another track_hash; it is not used" in capfd.readouterr().err
    assert len(runs) == 2 and {run.track_hash for run in runs} == {track.hash()}


# ---- The command -------------------------------------------------------------------------------


def test_sigterm_saves_and_exits_and_resume_goes_on(
    micro_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    flags = ["adamw:steps=8", "muon:steps=8", "--seeds=1", *micro_flags]
    root, taken, step_of = tmp_path / "results", [0], Trainer.step

    def step(self: Trainer, *arguments: Any, **more: Any) -> Tensor:
        taken[0] += 1
        if taken[0] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step_of(self, *arguments, **more)

    monkeypatch.setattr(Trainer, "step", step)
    assert speedrun.main(flags) == 143
    assert "go on with --resume" in capfd.readouterr().err
    assert len([*root.glob("checkpoints/*/000000")]) == 1 and not store.read_runs(root)
    assert speedrun.main([*flags, "--resume"]) == 0
    assert taken[0] == 8 + 8  # none was taken twice
    rows = store.read_runs(root)
    assert len(rows) == 2 and len({run.race for run in rows}) == 1


def test_a_race_that_was_killed_before_anything_was_saved_keeps_its_name(
    micro_flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["adamw:steps=4", "--seeds=1", *micro_flags]
    step_of = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *arguments, **more: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        speedrun.main(flags)
    monkeypatch.setattr(Trainer, "step", step_of)
    (setup,) = (tmp_path / "results" / "setups").iterdir()
    assert speedrun.main([*flags, "--resume"]) == 0
    assert [run.race for run in store.read_runs(tmp_path / "results")] == [setup.stem]


def test_a_signal_is_noted_and_then_has_its_old_meaning() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with ending.noticed() as asked:
        assert asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


# ---- State under names -------------------------------------------------------------------------


def parts_of(params: list[Tensor], cuts: list[list[int]]) -> list[list[Owned]]:
    """The flattened parameters, cut at these places, each part on a process of its own."""
    ranks = []
    for rank in range(len(cuts[0]) - 1):
        pieces = []
        for number, (param, places) in enumerate(zip(params, cuts, strict=True)):
            a, b = places[rank], places[rank + 1]
            part = torch.nn.Parameter(param.detach().flatten()[a:b].clone())
            pieces.append(Owned(0, f"p{number}", a, b, part))
        ranks.append(pieces)
    return ranks


def steps(optimizer: torch.optim.Optimizer, pieces: list[Owned], count: int) -> None:
    """Steps on gradients that depend on the place in the flattened parameter alone."""
    for _ in range(count):
        for piece in pieces:
            piece.param.grad = torch.arange(piece.start, piece.stop).sin() + piece.param.detach()
        optimizer.step()


@pytest.mark.parametrize("rule", [torch.optim.AdamW, torch.optim.SGD])
def test_state_goes_on_in_a_layout_that_cuts_elsewhere(rule: Any) -> None:
    torch.manual_seed(0)
    params = [torch.randn(5, 4), torch.randn(7)]
    options = {"momentum": 0.9} if rule is torch.optim.SGD else {}

    def build(pieces: list[Owned]) -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = rule([p.param for p in pieces], lr=0.1, **options)
        return made

    def saved(world: list[tuple[Any, list[Owned]]]) -> tuple[dict[str, Tensor], list[Any]]:
        tensors, structures = {}, []
        for rank, (optimizer, pieces) in enumerate(world):
            held, structure = _state.save([optimizer], pieces, rank)
            tensors |= held
            structures.append(structure)
        return tensors, structures

    world = [(build(pieces), pieces) for pieces in parts_of(params, [[0, 20], [0, 7]])]
    (reference, whole) = world[0]
    steps(reference, whole, 2)
    for cuts in ([[0, 7, 7, 20], [0, 2, 5, 7]], [[0, 13, 20], [0, 0, 7]], [[0, 20], [0, 7]]):
        tensors, structures = saved(world)
        values = [torch.empty(20), torch.empty(7)]
        for _, pieces in world:
            for piece in pieces:
                values[int(piece.name[1:])][piece.start : piece.stop] = (
                    piece.param.detach().flatten()
                )
        world = [(build(pieces), pieces) for pieces in parts_of(values, cuts)]
        for rank, (optimizer, pieces) in enumerate(world):
            read = {name: value.clone() for name, value in tensors.items()}.__getitem__
            _state.load(read, structures, rank, [optimizer], pieces)
            steps(optimizer, pieces, 1)
        if len(world) > 1:
            steps(reference, whole, 1)
    steps(reference, whole, 1)
    ours = [p.param for p in world[0][1]]
    torch.testing.assert_close(ours, [piece.param for piece in whole], rtol=1e-6, atol=0)


def test_state_of_whole_parameters_is_refused_where_they_are_cut() -> None:
    param = torch.nn.Parameter(torch.randn(4, 4))
    optimizer = torch.optim.Adafactor([param], lr=0.1)
    param.grad = torch.randn(4, 4)
    optimizer.step()
    tensors, structure = _state.save([optimizer], [Owned(0, "p0", 0, 16, param)], 0)
    ((piece,), _) = parts_of([param], [[0, 8, 16]])
    other = torch.optim.Adafactor([piece.param], lr=0.1)
    with pytest.raises(UserError, match="p0 that only the whole parameter has"):
        _state.load(tensors.__getitem__, [structure], 0, [other], [piece])


def test_state_of_a_form_of_its_own_is_refused_in_another_layout() -> None:
    class Odd(torch.optim.SGD):
        def state_dict(self) -> Any:
            return {"mine": torch.ones(2), "more": [1, (2.5, None)]}

        def load_state_dict(self, state_dict: Any) -> None:
            assert state_dict["more"] == [1, (2.5, None)]

    param = torch.nn.Parameter(torch.randn(4))
    tensors, structure = _state.save([Odd([param])], [Owned(0, "p0", 0, 4, param)], 0)
    _state.load(tensors.__getitem__, [structure], 0, [Odd([param])], [Owned(0, "p0", 0, 4, param)])
    with pytest.raises(UserError, match="Odd keeps state in a form of its own"):
        _state.load(
            tensors.__getitem__, [structure], 0, [Odd([param])], [Owned(0, "p0", 0, 2, param)]
        )


def test_numbers_of_python_and_of_numpy_are_drawn_as_before() -> None:
    machine.seed_random(3)
    state = machine.random_state(torch.device("cpu"))

    def drawn() -> list[float]:
        return [random.random(), float(np.random.rand()), torch.rand(()).item()]

    first = drawn()
    machine.set_random_state(torch.device("cpu"), state)
    assert drawn() == first
    machine.seed_random(3)
    assert drawn() == first


def test_another_layout_is_for_a_run_that_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    columns = {"track": "tiny", "engine": "ddp", "world_size": 2, "threads": 1, "device": "x"}
    options = dict.fromkeys(resume.UNRECORDED, 0)
    race_id, _ = resume.open_race(tmp_path, ["adamw"], None, columns, options)
    now = columns | {"engine": "single", "world_size": 1}
    with pytest.raises(UserError, match="has engine ddp, now it is single"):
        resume.open_race(tmp_path, ["adamw"], race_id, now, options)
    (tmp_path / "checkpoints" / race_id / "000000").mkdir(parents=True)
    assert resume.open_race(tmp_path, ["adamw"], race_id, now, options) == (race_id, [])
    with pytest.raises(UserError, match="has device x, now it is y"):
        resume.open_race(tmp_path, ["adamw"], "", now | {"device": "y"}, options)
