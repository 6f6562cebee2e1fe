"""The proof that every parameter got its rule: what it accepts, and what it refuses."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

import engines
import speedrun
from engines.single import Engine
from errors import UserError
from muon import Muon, newton_schulz
from runtime.proof import is_flat, known_gradient, prove


@pytest.fixture
def trainer(micro_track: speedrun.Track, micro_options: speedrun.Options) -> speedrun.Trainer:
    return speedrun.Trainer(micro_track, micro_options)


def proven(trainer: speedrun.Trainer, spelled: str) -> int:
    entrant = speedrun.enter(spelled, "tiny")
    plan = trainer.build(entrant)
    return prove(trainer.program, plan, build=lambda: trainer.build(entrant))


@pytest.mark.parametrize(
    "spelled, count",
    [
        ("muon", 16),
        ("muon:blocks=fused", 16),
        ("muon-split", 16),
        ("normuon", 16),
        ("muonh", 16),
        ("muon:ns_steps=1", 0),  # makes no update orthogonal
        ("adamw", 0),
        ("sgd", 0),
        ("soap", 0),
        ("lion", 0),
    ],
)
def test_the_hidden_matrices_of_muon_and_nothing_else_have_orthogonal_updates(
    trainer: speedrun.Trainer, spelled: str, count: int
) -> None:
    assert proven(trainer, spelled) == count


def test_the_model_computes_as_before_afterwards(trainer: speedrun.Trainer) -> None:
    tokens = torch.arange(64).view(2, 32)
    trainer.gpt.init_weights(0)
    before = trainer.program.wrapped(tokens, tokens)
    proven(trainer, "muon")
    trainer.gpt.init_weights(0)
    assert torch.equal(trainer.program.wrapped(tokens, tokens), before)


class Flattens(Engine):
    """What a sharding wrapper does that hands slices of flattened matrices to Muon's neighbour."""

    def build(self, plan: Sequence[engines.PlannedGroup]) -> None:
        super().build(plan)
        if plan:
            group = next(g for g in self.optimizers[0].param_groups if g["params"])
            moved = group["params"].pop()
            self.optimizers.append(torch.optim.AdamW([moved], lr=0.01))
            self.optimizers[-1].param_groups[0]["initial_lr"] = 0.01


class Everything(Engine):
    """What DeepSpeed's config does: all that has two dimensions goes to Muon."""

    def build(self, plan: Sequence[engines.PlannedGroup]) -> None:
        super().build(plan)
        if plan:
            params = [p for p in self.model.parameters() if p.ndim == 2]
            self.optimizers = [Muon(params, lr=0.02)]
            self.optimizers[0].param_groups[0]["initial_lr"] = 0.02


class Forgets(Engine):
    """An engine whose optimizers do not step at all."""

    def step(self) -> None:
        self.model.zero_grad()


@pytest.mark.parametrize(
    "engine, said",
    [
        (Flattens, r"the update of blocks\.\d.*weight is not orthogonal, and Muon alone makes one"),
        (
            Everything,
            r"the update of (embed|head)\.weight is orthogonal, and AdamW alone makes one",
        ),
        (Forgets, r"the update of blocks\.0.*weight is not orthogonal"),
    ],
)
def test_a_parameter_with_another_rule_is_named(
    trainer: speedrun.Trainer, engine: Any, said: str
) -> None:
    trainer.engine.__class__ = engine
    with pytest.raises(UserError, match=said):
        proven(trainer, "muon")


def test_a_race_makes_the_proof_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch, micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "step", Forgets.step)
    assert speedrun.main(["muon", "--seeds=1", "--steps=4", *micro_flags]) == 2
    assert "race it with another --engine" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(128, 128), (384, 128), (128, 512), (50, 33), (1000, 16)])
def test_the_known_gradient_tells_rules_apart(shape: tuple[int, int]) -> None:
    gradient = known_gradient(shape)
    assert (gradient > 0).all()  # so AdamW's and Lion's update is a matrix of ones
    assert not is_flat(gradient, [shape[0]])  # and SGD's is not orthogonal
    assert is_flat(newton_schulz(gradient[None])[0], [shape[0]])
    values = torch.linalg.svdvals(gradient.double())
    assert values[0] > 4 * values[1] and values[-1] > 0.5 * values[1]
