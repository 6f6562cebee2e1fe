"""Anybody's optimizer classes: each runs as a race drives it, or is refused before the race.

    python -m pytest tests/test_rehearsal.py

Claims: what a race does is done once before it, by the same code; a warm-up leaves nothing behind,
whatever a class remembers; what a class raises in a race ends in one sentence, and in a row where
the run had diverged; the libraries' classes run or are refused.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import speedrun
from engines import RuleError, _rules
from engines.single import Engine
from errors import UserError
from optim import Group
from speedrun import TRACKS, Options, Trainer
from studies import libraries
from tests.conftest import MICRO


class Descent(torch.optim.Optimizer):
    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad * group["lr"])


class Counter(Descent):
    """Counts under a key of its state that is no parameter."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.state["steps"] = 0  # type: ignore[index]

    def step(self, closure: Any = None) -> Any:
        self.state["steps"] += 1  # type: ignore[index]
        super().step()


class OneRate(Descent):
    def step(self, closure: Any = None) -> Any:
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("all groups must have one lr")
        super().step()


class NotZero(Descent):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if any(p not in self.state and not p.grad.any() for p in group["params"]):
                raise ValueError("the first gradient is zero")
            self.state.update({p: {"scale": 1.0} for p in group["params"]})
        super().step()


class Modes(Descent):
    training = False

    def train(self) -> None:
        self.training = True

    def eval(self) -> None:
        self.training = False

    def step(self, closure: Any = None) -> Any:
        if not self.training:
            raise Exception("not in train mode")
        super().step()


class OneWay(Descent):
    """Cannot go back to training."""

    def train(self) -> None:
        raise NotImplementedError

    def eval(self) -> None:
        pass


class Word(Descent):
    """Its `eval` is no method."""

    eval, train = "a word", None


class Square(Descent):
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                torch.linalg.inv(p.detach())


class Matrices(Descent):
    def step(self, closure: Any = None) -> Any:
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("2-D parameters only")
        super().step()


class FirstRates(Descent):
    """Remembers a rate for each group that was there at first, as AdaBound does."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.first = [group["lr"] for group in self.param_groups]

    def step(self, closure: Any = None) -> Any:
        for group, first in zip(self.param_groups, self.first, strict=True):
            group["bound"] = group["lr"] / first
        super().step()


class TensorRate(Descent):
    """Its lr is a tensor, which compiled code would read."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, torch.tensor(lr))  # type: ignore[arg-type]

    def step(self, closure: Any = None) -> Any:
        assert all(isinstance(group["lr"], Tensor) for group in self.param_groups)
        super().step()


class HiddenRate(Descent):
    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            group["step_size"] = group.pop("lr")


class Closure(Descent):
    def step(self, closure: Any = None) -> Any:
        return closure()


class Own(Descent):
    """Wraps another optimizer, with a state dict of its own form and nothing optional."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.inner = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.inner.param_groups

    def state_dict(self) -> Any:
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: Any) -> None:
        self.inner.load_state_dict(state_dict["inner"])

    def step(self) -> Any:  # type: ignore[override]
        self.inner.step()

    def zero_grad(self) -> None:  # type: ignore[override]
        self.inner.zero_grad()


class Leaves(Descent):
    """Ends the program in place of raising an error."""

    def step(self, closure: Any = None) -> Any:
        sys.exit("goodbye")


class LeavesAtOnce(Descent):
    def __init__(self, params: Any, lr: float = 0.01) -> None:
        sys.exit(0)


class Hooks(Descent):
    """Steps during the backward pass."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        for p in (p for group in self.param_groups for p in group["params"]):
            p.register_post_accumulate_grad_hook(lambda p: p.data.zero_())
            p.register_hook(lambda grad: grad * 0)


class Sets(Descent):
    """Changes settings of the whole process."""

    def step(self, closure: Any = None) -> Any:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        super().step()


class Huge(Descent):
    def __init__(self, params: Any, lr: float = 0.01) -> None:
        raise MemoryError("Unable to allocate 7 PiB")


class Late(Descent):
    """Fails in its sixth step."""

    count = 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        if self.count == 6:
            raise KeyError("six")
        super().step()


class Strict(Descent):
    """Refuses gradients that are not finite, as a decomposition does."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            if any(not p.grad.isfinite().all() for p in group["params"]):
                raise torch.linalg.LinAlgError("the input is not finite")
        super().step()


class Singular(Descent):
    """Its decomposition fails: in its first step, or in its sixth."""

    first, count = 1, 0

    def step(self, closure: Any = None) -> Any:
        self.count += 1
        if self.count >= self.first:
            torch.linalg.cholesky(-torch.eye(2))
        super().step()


class SingularLater(Singular):
    first = 6


class Nothing(Descent):
    def step(self, closure: Any = None) -> Any:
        pass


class Flips(Descent):
    """Keeps the norms of all weights."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.neg_()


class Drawn(Descent):
    """Draws a number as it is made."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, lr)
        self.scale = torch.rand(()).item()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    track = replace(TRACKS["tiny"], name="custom", **MICRO)
    results = str(tmp_path_factory.mktemp("results"))
    options = Options(dtype="float32", attention="plain", threads=1, compile=False, results=results)
    return Trainer(track, options)


@pytest.fixture
def trainer(shared: Trainer) -> Iterator[Trainer]:
    yield shared
    shared.forget()


def entrant(rule: type, *options: str, steps: int = 4) -> Any:
    text = f"lib:{rule.__module__}.{rule.__qualname__}:{','.join(options)}"
    return speedrun.enter(text, "tiny", steps)


BOTH = ("matrices", "all")
EASY = (Counter, Modes, Word, FirstRates, TensorRate, Own)
RUNS = [
    *((rule, scope) for rule in EASY for scope in BOTH),
    (OneRate, "matrices"), (Matrices, "matrices"), (torch.optim.NAdam, "all"),
]  # fmt: skip
REFUSED = [
    *((NotZero, scope, "in step 1 of 4: .*the first gradient is zero") for scope in BOTH),
    *((Square, scope, "in step 1 of 4: .*must be batches of square") for scope in BOTH),
    *((Leaves, scope, "in step 1 of 4: .*SystemExit: goodbye") for scope in BOTH),
    *((LeavesAtOnce, scope, "to be constructed: SystemExit: 0") for scope in BOTH),
    *((Hooks, scope, "registers hooks on its parameters") for scope in BOTH),
    (Huge, "matrices", "to be constructed: MemoryError: Unable to allocate 7 PiB"),
    *((Closure, scope, "'NoneType' object is not callable") for scope in BOTH),
    *((OneWay, scope, "the validation after step 1: .*NotImplementedError") for scope in BOTH),
    *((HiddenRate, scope, "keeps no lr in its groups") for scope in BOTH),
    (Singular, "matrices", "in step 1 of 4: .*LinAlgError: linalg.cholesky"),
    (OneRate, "all", "RuntimeError: all groups must have one lr .test_rehearsal.py line"),
    (Matrices, "all", "ValueError: 2-D parameters only"),
    (torch.optim.SparseAdam, "all", "RuntimeError: SparseAdam"),
]


@pytest.mark.parametrize(("rule", "scope"), RUNS)
def test_a_class_that_can_run_does(trainer: Trainer, rule: type, scope: str) -> None:
    chosen = entrant(rule, f"scope={scope}")
    trainer.check(chosen)
    out = trainer.run(chosen, seed=0)
    assert out.status in ("reached", "missed") and out.steps == 4


@pytest.mark.parametrize(("rule", "scope", "why"), REFUSED)
def test_a_class_that_cannot_run_is_refused_in_a_sentence(
    trainer: Trainer, rule: type, scope: str, why: str
) -> None:
    chosen = entrant(rule, f"scope={scope}")
    with pytest.raises(UserError, match=why) as caught:
        trainer.check(chosen)
    message = str(caught.value)
    assert "\n" not in message and f"{rule.__module__}.{rule.__qualname__}" in message
    assert re.search(r"; (change its options, such as scope|mend it)", message)


def test_the_code_that_rehearses_is_the_code_that_races(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("build", "set_lr", "step", "evaluation"):
        original = getattr(_rules, name)

        def noted(*given: Any, name: str = name, original: Any = original) -> Any:
            calls.append(name)
            return original(*given)

        monkeypatch.setattr(_rules, name, noted)
    trainer.check(entrant(Counter))
    rehearsed = set(calls)
    calls.clear()
    trainer.run(entrant(Counter), seed=0)
    assert rehearsed == set(calls) == {"build", "set_lr", "step", "evaluation"}


def test_a_warm_up_leaves_nothing_behind_whatever_a_class_remembers(trainer: Trainer) -> None:
    out = trainer.run(entrant(Late, steps=5), seed=0)
    assert out.steps == 5
    assert isinstance(trainer.engine, Engine)
    assert trainer.engine.optimizers[0].count == 5  # type: ignore[attr-defined]


def test_numbers_drawn_by_a_constructor_follow_from_the_seed(trainer: Trainer) -> None:
    drawn = []
    assert isinstance(trainer.engine, Engine)
    for seed in (3, 3, 4):
        torch.rand(seed + len(drawn))  # what ran before does not matter
        trainer.run(entrant(Drawn), seed)
        drawn.append(trainer.engine.optimizers[0].scale)  # type: ignore[attr-defined]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_lr_in_a_tensor_is_set_in_place_and_each_group_has_its_own() -> None:
    params = [torch.nn.Parameter(torch.eye(2)) for _ in range(2)]
    rows = [type("Row", (), {"param": p}) for p in params]
    plan = [Group(TensorRate, [row], lr=lr) for row, lr in zip(rows, (1.0, 0.5), strict=True)]
    (optimizer,) = _rules.build(plan)
    rates = [group["lr"] for group in optimizer.param_groups]
    for factor in (0.5, 0.25):
        _rules.set_lr([optimizer], factor)
        assert [group["lr"] for group in optimizer.param_groups] == [factor, factor / 2]
    assert all(a["lr"] is b for a, b in zip(optimizer.param_groups, rates, strict=True))


def test_a_state_under_any_key_is_restored(trainer: Trainer) -> None:
    engine = trainer.engine
    for rule, count in ((Counter, lambda o: o.state["steps"]), (Own, lambda o: len(o.inner.state))):
        trainer.build(entrant(rule))
        for p in trainer.gpt.parameters():
            p.grad = torch.ones_like(p)
        engine.step()
        saved = engine.save()
        expected = count(engine.optimizers[0])  # type: ignore[attr-defined, no-untyped-call]
        engine.load(saved)
        assert count(engine.optimizers[0]) == expected > 0  # type: ignore[attr-defined, no-untyped-call]


def test_a_class_that_fails_in_a_race_ends_it_in_a_sentence(
    micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = entrant(Late).label
    assert speedrun.main([text, "--steps=8", "--seeds=1", *micro_flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Late fails in a step: KeyError: 'six' (test_rehearsal.py line" in said


def test_a_class_that_refuses_the_gradients_of_a_diverged_run_has_diverged(
    trainer: Trainer,
) -> None:
    chosen = entrant(Strict, "lr=1e30", "scope=all", "head_lr=1e30")
    trainer.check(chosen)
    assert trainer.run(chosen, seed=0).status == "diverged"


def test_a_decomposition_that_fails_in_a_race_makes_it_diverge(trainer: Trainer) -> None:
    chosen = entrant(SingularLater, steps=8)
    trainer.check(chosen)
    with pytest.warns(UserWarning, match="LinAlgError.*the run counts as diverged"):
        out = trainer.run(chosen, seed=0)
    assert out.status == "diverged" and out.steps == 7


def test_a_class_that_changes_nothing_is_named(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    for scope in BOTH:
        trainer.check(entrant(Nothing, f"scope={scope}"))
        said = capsys.readouterr().err
        assert f"Nothing:scope={scope} changed no hidden matrix in 4 steps" in said
    for rule in (Counter, Flips):
        trainer.check(entrant(rule, "scope=all", steps=3))
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError("can't allocate")],
)
def test_a_lack_of_memory_is_no_fault_of_a_class(error: Exception) -> None:
    class Large(Descent):
        def step(self, closure: Any = None) -> Any:
            raise error

    optimizer = Large([torch.nn.Parameter(torch.eye(2))])
    with pytest.raises(type(error), match="can't allocate") as caught:
        _rules.step([optimizer])
    assert not isinstance(caught.value, RuleError)


def test_hooks_of_a_class_that_is_refused_do_not_reach_the_next_run(trainer: Trainer) -> None:
    params = [row.param for row in trainer.engine.roles()]
    with pytest.raises(UserError, match="hooks"):
        trainer.check(entrant(Hooks, "scope=all"))
    assert not any(p._backward_hooks or p._post_accumulate_grad_hooks for p in params)


def test_settings_that_a_class_changes_do_not_reach_the_run_or_others(trainer: Trainer) -> None:
    trainer.check(entrant(Sets, "scope=all"))
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


# ---- Libraries ---------------------------------------------------------------------------------


REFERENCES = [
    ("schedulefree.AdamWScheduleFree", "all", 0.01),
    ("schedulefree.SGDScheduleFree", "matrices", 1.0),
    ("schedulefree.RAdamScheduleFree", "all", 0.01),
    ("prodigyopt.Prodigy", "matrices", 1.0),
    ("prodigyopt.Prodigy", "all", 1.0),
    ("heavyball.SFAdamW", "all", 0.01),
    ("pytorch_optimizer.AdaBound", "all", 0.01),
]


@pytest.mark.parametrize(("path", "scope", "lr"), REFERENCES)
def test_reference_implementations_learn(
    trainer: Trainer, path: str, scope: str, lr: float
) -> None:
    pytest.importorskip(path.partition(".")[0])
    names = ["lr"] if scope == "matrices" else ["lr", "embed_lr", "head_lr", "vector_lr"]
    rates = "".join(f",{name}={lr}" for name in names)
    chosen = speedrun.enter(f"lib:{path}:scope={scope}{rates},cooldown=0", "tiny", 12)
    trainer.check(chosen)
    losses = [point.val_loss for point in trainer.run(chosen, seed=0).points]
    assert losses[-1] < losses[0] < 7.2


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("torch.optim.Adagrad", ("ran", "missed")),
        ("torch.optim.LBFGS", ("refused", "requires closure")),
        ("torch.optim.SparseAdam", ("refused", "SparseAdam")),
        (f"{__name__}.Late", ("ran", "missed")),
    ],
)
def test_the_study_tells_a_run_from_a_refusal(path: str, found: tuple[str, str]) -> None:
    racer = test_the_study_tells_a_run_from_a_refusal.__dict__.setdefault("r", libraries.Racer())
    outcome, why = racer.race(f"lib:{path}")
    assert outcome == found[0] and found[1] in why


class Deadly(Descent):
    """Ends its process in a step."""

    def step(self, closure: Any = None) -> Any:
        os._exit(3)


@pytest.mark.slow
def test_the_study_outlives_a_class_that_ends_its_process(tmp_path: Path) -> None:
    races = libraries.Races(limit=120)
    try:
        assert races.race(f"lib:{__name__}.Deadly") == ("crashed", "ended the process")
        assert races.race("lib:torch.optim.LBFGS")[0] == "refused"
    finally:
        races.close()


def test_the_study_refuses_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaving_classes.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(UserError, match="leaving_classes: importing it fails: SystemExit: 0"):
        libraries.classes("leaving_classes")
    with pytest.raises(UserError, match="nowhere_at_all: .*ModuleNotFoundError.*; install"):
        libraries.classes("nowhere_at_all")


def test_the_summary_counts_every_outcome() -> None:
    rows = [
        libraries.Outcome("a", "1", name, scope, outcome, "")
        for name, scope, outcome in (
            ("A", "all", "ran"),
            ("B", "all", "refused"),
            ("A", "matrices", "crashed"),
        )
    ]
    assert libraries.summary(rows)[1:] == [
        ["a", "1", "all", "2", "1", "1", "0"],
        ["a", "1", "matrices", "1", "0", "0", "1"],
        ["all", "", "", "3", "1", "1", "1"],
    ]
