"""The single-process engine, the reference of all others, on a model of a few thousand weights.

    python -m pytest tests/test_engine.py

Claims: a plan trained by it equals the same groups given to torch's plain AdamW, and AdamW's
equations in float64; what it saves restores everything; its bytes and norms equal the numbers
worked out by hand.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import engines
import optim
from engines import Engine
from errors import UserError
from layers.config import GPTConfig
from model import GPT
from muon import Muon

CONFIG = GPTConfig(vocab_size=37, block_size=16, n_layer=2, n_head=2, n_embd=32)
SETTINGS: dict[str, Any] = dict(
    lr=0.004, weight_decay=0.3, beta1=0.85, beta2=0.9, eps=1e-8,
    embed_lr=0.2, head_lr=0.01, vector_lr=0.03,
)  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(37, (4, 17), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def build(recipe: str, settings: dict[str, Any] | None = None) -> tuple[Engine, GPT]:
    engine, model = engines.make("single", torch.device("cpu")), GPT(CONFIG)
    model.init_weights(0)
    engine.wrap(model)
    plan = optim.plan(engine.roles(), recipe, settings or {}, torch.float32)
    engine.build(plan)
    return engine, model


def loss_of(model: GPT, step: int) -> Tensor:
    inputs, targets = batch(step)
    return model(inputs, targets) / targets.numel()


def train(engine: Engine, model: GPT, steps: Sequence[int]) -> list[float]:
    losses = []
    torch.manual_seed(0)  # of rules that draw numbers
    for step in steps:
        loss = loss_of(model, step)
        engine.backward(loss, last=True)
        engine.step()
        losses.append(loss.item())
    return losses


def weights(model: GPT) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def hyperparameters(name: str, ndim: int) -> tuple[float, tuple[float, float], float, float]:
    """lr, betas, eps and weight decay of the recipe `adamw` with SETTINGS, for a parameter."""
    if ndim == 2 and name.startswith("blocks."):
        return 0.004, (0.85, 0.9), 1e-8, 0.3
    lr = {"embed.weight": 0.2, "head.weight": 0.01}.get(name, 0.03)
    return lr, (0.8, 0.95), 1e-10, 0.0


def test_the_adamw_recipe_equals_plain_torch_adamw() -> None:
    engine, model = build("adamw", SETTINGS)
    other = GPT(CONFIG)
    other.init_weights(0)
    groups = []
    for name, p in other.named_parameters():
        lr, betas, eps, decay = hyperparameters(name, p.ndim)
        groups.append(dict(params=[p], lr=lr, betas=betas, eps=eps, weight_decay=decay))
    reference = torch.optim.AdamW(groups, foreach=False, fused=False)
    for step in range(10):
        # The same gradients for both: else a weight whose gradient is rounding noise, which
        # AdamW divides by itself, would send them apart.
        loss = loss_of(model, step)
        engine.backward(loss, last=True)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        engine.step()
        reference.step()
    assert len(reference.state) == len(list(model.parameters()))
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_adamw_follows_the_equations_of_the_paper() -> None:
    engine, model = build("adamw", SETTINGS)
    start = weights(model)
    W = {name: p.double() for name, p in start.items()}
    m = {name: torch.zeros_like(p) for name, p in W.items()}
    v = {name: torch.zeros_like(p) for name, p in W.items()}
    for t in range(1, 5):
        engine.backward(loss_of(model, t), last=True)
        for name, p in model.named_parameters():
            lr, (beta1, beta2), eps, decay = hyperparameters(name, p.ndim)
            assert p.grad is not None
            g = p.grad.double()
            m[name] = beta1 * m[name] + (1 - beta1) * g
            v[name] = beta2 * v[name] + (1 - beta2) * g**2
            m_hat, v_hat = m[name] / (1 - beta1**t), v[name] / (1 - beta2**t)
            W[name] = W[name] - lr * (m_hat / (v_hat.sqrt() + eps) + decay * W[name])
        engine.step()
    for name, p in weights(model).items():
        error = (p - W[name]).norm() / (W[name] - start[name]).norm()
        assert error < 1e-5, name


@pytest.mark.parametrize("recipe", sorted(optim.recipes()))
def test_every_recipe_learns_a_batch_by_heart(recipe: str) -> None:
    engine, model = build(recipe)
    losses = train(engine, model, [0] * 40)
    assert losses[0] == pytest.approx(math.log(37), abs=0.5)
    assert losses[-1] < 0.5 * losses[0]


def test_muon_takes_the_step_that_it_takes_alone() -> None:
    engine, model = build("muon", dict(lr=0.05, weight_decay=0.2))
    other = GPT(CONFIG)
    other.init_weights(0)
    rows = [row for row in other.roles() if row.role == "matrix"]
    groups = [dict(params=[row.param], splits=row.splits) for row in rows]
    reference = Muon(groups, lr=0.05, weight_decay=0.2)
    for step in range(3):
        engine.backward(loss_of(model, step), last=True)
        grads = {name: p.grad for name, p in model.named_parameters()}
        for row in rows:
            grad = grads[row.name]
            assert grad is not None
            row.param.grad = grad.clone()
        engine.step()
        reference.step()
    moved = weights(model)
    for row in rows:
        torch.testing.assert_close(moved[row.name], row.param.detach(), rtol=1e-5, atol=1e-6)


def test_there_is_one_optimizer_a_rule_and_every_group_knows_its_lr() -> None:
    engine, model = build("muon")
    plan = optim.plan(engine.roles(), "muon", {"lr": 0.5, "embed_lr": 0.25}, torch.float32)
    engine.build(plan)
    optimizers = engine.optimizers  # type: ignore[attr-defined]
    assert [type(o).__name__ for o in optimizers] == ["Muon", "AdamW"]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    assert all(group["initial_lr"] == group["lr"] for group in groups)
    assert {group["initial_lr"] for group in optimizers[0].param_groups} == {0.5}
    assert 0.25 in {group["initial_lr"] for group in optimizers[1].param_groups}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_an_lr_set_between_steps_is_the_one_taken() -> None:
    engine, model = build("muon")
    engine.set_lr(0.0)
    before = weights(model)
    train(engine, model, [0])
    assert all(torch.equal(p, before[name]) for name, p in weights(model).items())


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("adamw", {"lr": -0.1}),
        ("adamw", {"beta1": 1.5}),
        ("adamw", {"weight_decay": -1.0}),
        ("muon", {"lr": -0.1}),
        ("muon", {"ns_coefficients": "jordon"}),
        ("muon", {"adjust_lr_fn": "spectral"}),
        ("muon", {"ns_steps": 0}),
        ("muon", {"embed_lr": -0.1}),
    ],
)
def test_impossible_options_are_refused_when_the_optimizers_are_built(
    recipe: str, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError):
        build(recipe, settings)


def test_gradients_add_up_until_the_step_clears_them() -> None:
    engine, model = build("adamw")
    twin = build("adamw")[1]
    for step in (0, 1):
        engine.backward(loss_of(model, step), last=step == 1)
    (loss_of(twin, 0) + loss_of(twin, 1)).backward()
    square = 0.0
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        torch.testing.assert_close(p.grad, q.grad, msg=name)
        square += sum(x**2 for x in q.grad.flatten().tolist())
    assert engine.grad_norm() == pytest.approx(math.sqrt(square), rel=1e-5)
    engine.step()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("recipe", sorted(optim.recipes()))
@pytest.mark.parametrize("before", [0, 3])
def test_what_was_saved_is_restored_to_the_bit(recipe: str, before: int) -> None:
    engine, model = build(recipe)
    train(engine, model, range(before))
    at_save, bytes_at_save = weights(model), engine.state_bytes()
    saved = engine.save()
    losses = train(engine, model, range(10, 14))
    end = weights(model)
    for _ in range(2):  # what was saved is not used up
        engine.load(saved)
        assert engine.state_bytes() == bytes_at_save
        assert all(torch.equal(p, at_save[name]) for name, p in weights(model).items())
        assert train(engine, model, range(10, 14)) == losses
        assert all(torch.equal(p, end[name]) for name, p in weights(model).items())


@pytest.mark.parametrize("recipe", sorted(optim.recipes()))
def test_state_bytes_are_those_worked_out_by_hand(recipe: str) -> None:
    engine, model = build(recipe)
    rows = model.roles()
    total = 4 * sum(row.param.numel() for row in rows)
    matrices = 4 * sum(row.param.numel() for row in rows if row.role == "matrix")
    assert total == 4 * (2 * 37 * 32 + 2 * 12 * 32**2 + 37 + 2 * 32 + 2 * (2 * 32 + 96 + 192))
    assert matrices == 4 * 2 * 12 * 32**2
    assert engine.state_bytes() == {"params": total, "grads": 0, "state": 0}
    engine.backward(loss_of(model, 0), last=True)
    assert engine.state_bytes() == {"params": total, "grads": total, "state": 0}
    engine.step()
    state = {
        # Two moments, and a counter of 4 bytes for each parameter.
        "adamw": 2 * total + 4 * len(rows),
        # One momentum for a matrix; the rest belongs to AdamW.
        "muon": matrices + 2 * (total - matrices) + 4 * (len(rows) - 2 * 4),
    }
    if recipe in state:
        assert engine.state_bytes() == {"params": total, "grads": 0, "state": state[recipe]}


def test_roles_are_those_of_the_model_that_was_wrapped() -> None:
    engine, model = build("adamw")
    found = [(row.name, row.param, row.role) for row in engine.roles()]
    expected = [(row.name, row.param, row.role) for row in model.roles()]
    for (name, p, role), (other_name, q, other_role) in zip(found, expected, strict=True):
        assert (name, role) == (other_name, other_role) and p is q


def test_one_process_is_its_own_mean_and_maximum() -> None:
    engine, _ = build("adamw")
    assert (engine.rank, engine.world_size) == (0, 1)
    assert engine.all_reduce_mean(torch.tensor(2.5)) == 2.5
    assert engine.all_reduce_max(torch.tensor(2.5)) == 2.5


@pytest.mark.parametrize("name", ["dpp", "", "os", "engines.single"])
def test_an_unknown_engine_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"--engine {name}: must be one of .*single"):
        engines.make(name, torch.device("cpu"))
