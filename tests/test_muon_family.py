"""Muon's variants and Dion, against their papers' equations in float64 and what they reduce to.

    python -m pytest tests/test_muon_family.py

The equations are written here from the papers, on one matrix at a time, and the optimizers are run
in float64 too, so that they must agree to rounding. `tests/test_engine.py` has all recipes train a
model.
"""

import io
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optim
from layers.config import GPTConfig
from model import GPT
from muon import COEFFICIENTS, Muon, newton_schulz
from optim.dion import Dion
from tests.matrices import (
    BF16,
    F64,
    JORDAN,
    NAMES,
    Options,
    distance,
    draw,
    gradient,
    polar,
    published,
    train,
    weights,
)

SHAPES = ((16, 40), (40, 16), (16, 40), (24, 24))
MODEL = GPTConfig(vocab_size=37, block_size=8, n_layer=2, n_head=2, n_embd=32)


def rule_of(name: str) -> Callable[..., torch.optim.Optimizer]:
    """A recipe's rule for the hidden matrices with its options, but whole matrices."""
    group = optim.plan(GPT(MODEL).roles(), name, {}, torch.float32)[0]
    assert group.params[0].role == "matrix"
    fixed = {
        key: value for key, value in group.options.items() if key not in ("splits", "ns_dtype")
    }
    return lambda params, **changes: group.rule(params, **(fixed | changes))


def double(shapes: Sequence[tuple[int, int]] = SHAPES) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().double()) for p in weights(shapes)]


# ---------------------------------------------------------------------------------------------
# The papers' equations.

Equations = Callable[[Tensor, Sequence[Tensor], float, float], Tensor]
Along = Callable[[Sequence[Tensor]], list[Tensor]]  # what is orthogonalised, before its changes


def average(grads: Sequence[Tensor], mu: float = 0.95) -> list[Tensor]:
    """The momentum of each step; the average is the published sum but for a factor."""
    averages, M = [], torch.zeros_like(grads[0])
    for G in grads:
        M = mu * M + (1 - mu) * G
        averages.append(M)
    return averages


def nesterov(grads: Sequence[Tensor], mu: float = 0.95) -> list[Tensor]:
    """The momentum of each step, and beyond it by one gradient."""
    return [(1 - mu) * G + mu * M for G, M in zip(grads, average(grads, mu), strict=True)]


def shape_scale(W: Tensor) -> float:
    return max(1.0, W.size(0) / W.size(1)) ** 0.5


def normuon(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    v = torch.zeros(W.size(0), dtype=F64)
    for U in nesterov(grads):
        X = published(U)
        v = 0.95 * v + 0.05 * X.pow(2).mean(1)
        normed = X / v.sqrt()[:, None]
        X = normed * X.norm() / normed.norm()
        W = W - lr * decay * W - lr * shape_scale(W) * X
    return W


def adamuon(
    W: Tensor, grads: Sequence[Tensor], lr: float, decay: float, along: Along = nesterov
) -> Tensor:
    V = torch.zeros_like(W)
    for U in along(grads):
        X = published(U.sign())
        V = 0.95 * V + 0.05 * X**2
        X = X / V.sqrt()
        W = W - lr * decay * W - lr * 0.2 * W.numel() ** 0.5 / X.norm() * X
    return W


def muon2(
    W: Tensor, grads: Sequence[Tensor], lr: float, decay: float, along: Along = nesterov
) -> Tensor:
    V = torch.zeros_like(W)
    for G, U in zip(grads, along(grads), strict=True):
        V = 0.95 * V + 0.05 * G**2
        W = W - lr * decay * W - lr * shape_scale(W) * published(U / V.sqrt())
    return W


def muonh(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    R = W.norm()
    for U in nesterov(grads):
        X = published(U)
        W = W - lr * R * X / X.norm()
        W = R * W / W.norm()
    return W


def moonlight(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    for U in nesterov(grads):
        W = W - lr * (0.2 * max(W.shape) ** 0.5 * published(U) + decay * W)
    return W


def deepseek_v4(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    table = (*JORDAN * 8, *((2.0, -1.5, 0.5),) * 2)
    for U in nesterov(grads):
        W = W - lr * (0.2 * max(W.shape) ** 0.5 * published(U, table, 10) + decay * W)
    return W


def polar_express(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    table = COEFFICIENTS["polar-express"]  # whose figures are in test_muon.py
    for U in nesterov(grads):
        W = W - lr * (shape_scale(W) * published(U, table) + decay * W)
    return W


def dion(W: Tensor, grads: Sequence[Tensor], lr: float, decay: float) -> Tensor:
    rank = round(0.25 * min(W.shape))
    M, Q = torch.zeros_like(W), draw(W.size(1), rank).double()
    for G in grads:
        B = M + G
        P = torch.linalg.qr(B @ Q)[0]
        R = B.T @ P
        M = B - (1 - 0.95) * P @ R.T
        Q = R / R.norm(dim=0)
        W = W - lr * decay * W - lr * (W.size(0) / W.size(1)) ** 0.5 * P @ Q.T
    return W


EQUATIONS: dict[str, Equations] = {
    "moonlight": moonlight,
    "polar-express": polar_express,
    "deepseek-v4": deepseek_v4,
    "normuon": normuon,
    "adamuon": adamuon,
    "muon2": muon2,
    "muonh": muonh,
    "dion": dion,
}


@pytest.mark.parametrize("name", EQUATIONS)
def test_a_variant_follows_its_equations(name: str) -> None:
    params, decay = double(), 0.0 if name == "muonh" else 0.3
    start = deepcopy(params)
    train(params, rule_of(name)(params, lr=0.05, weight_decay=decay), 6)
    for i, (p, W) in enumerate(zip(params, start, strict=True)):
        grads = [gradient(p, t, i) for t in range(6)]
        expected = EQUATIONS[name](W.detach(), grads, 0.05, decay)
        assert distance(p - W, expected - W) < 1e-9


@pytest.mark.parametrize("equations", [adamuon, muon2])
def test_a_variant_whose_paper_has_plain_momentum_takes_it(
    equations: Callable[..., Tensor],
) -> None:
    """Their equations have the average itself; `nesterov` is Muon's addition, and its default."""
    params = double()
    start = deepcopy(params)
    rule = rule_of(equations.__name__)(params, lr=0.05, weight_decay=0.3, nesterov=False)
    train(params, rule, 6)
    for i, (p, W) in enumerate(zip(params, start, strict=True)):
        grads = [gradient(p, t, i) for t in range(6)]
        expected = equations(W.detach(), grads, 0.05, 0.3, along=average)
        assert distance(p - W, expected - W) < 1e-9


@pytest.mark.parametrize("name", [name for name in NAMES if name != "muon-split"])
@pytest.mark.parametrize("splits", [(16, 16, 16), (24, 16, 8)])
def test_a_stacked_parameter_equals_its_matrices_apart(name: str, splits: tuple[int, ...]) -> None:
    stacked = nn.Parameter(draw(48, 16).double())
    blocks = [nn.Parameter(block.clone()) for block in stacked.detach().split(splits)]
    rule = rule_of(name)
    train([stacked], rule([stacked], lr=0.1, splits=splits), 4)
    part = lambda _, step, i: gradient(stacked, step).split(splits)[i]  # noqa: E731
    train(blocks, rule(blocks, lr=0.1), 4, of=part)
    assert distance(torch.cat(blocks), stacked) < 1e-12


# ---------------------------------------------------------------------------------------------
# What every rule must do.


@pytest.mark.parametrize("name", NAMES)
def test_a_quadratic_is_lowered_the_same_way_every_time(name: str) -> None:
    target = draw(16, 24, seed=1)
    start = draw(16, 24, seed=2)
    start *= target.norm() / start.norm()  # as one of the rules keeps the norm
    ends, losses = [], []
    for _ in range(2):
        W = nn.Parameter(start.clone())
        optimizer = rule_of(name)([W], weight_decay=0.0)
        scale = {"muonh": 0.2, "dion": 0.6}.get(name, 0.4)
        for step in range(120):
            optimizer.param_groups[0]["lr"] = scale * (1 - step / 120)
            optimizer.zero_grad()
            loss = (W - target).square().mean()
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        ends.append(W.detach())
    assert losses[119] < 0.05 * losses[0]
    assert torch.equal(*ends)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in NAMES),
        ("muon", {"momentum_warmup": 5}),
        ("muon", {"cautious": True}),
    ],
)
def test_a_saved_state_goes_on_as_if_never_stopped(name: str, changes: Options) -> None:
    params, rule = weights(SHAPES), rule_of(name)
    optimizer = rule(params, lr=0.1, **changes)
    train(params, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = deepcopy(params)
    other = rule(resumed, lr=7.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    train(params, optimizer, 3, first=3)
    train(resumed, other, 3, first=3)
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("name", NAMES)
def test_zero_gradients_move_nothing_and_do_no_harm(name: str) -> None:
    params, idle = weights(SHAPES), weights(SHAPES)
    optimizer = rule_of(name)(params, lr=0.1, weight_decay=0.0)
    train(params, optimizer, 2, of=lambda p, *_: torch.zeros_like(p))
    for p, q in zip(params, idle, strict=True):
        assert distance(p, q) < 1e-6  # keeping a norm rounds
    train(params, optimizer, 3, first=2)
    train(idle, rule_of(name)(idle, lr=0.1, weight_decay=0.0), 3, first=2)
    for p, q in zip(params, idle, strict=True):
        assert p.isfinite().all()
        assert distance(p, q) < 1e-4  # as if there had been no zeros
    p, before = params[0], params[0].detach().clone()
    for q in params:
        q.grad = None
    optimizer.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_left_as_they_are(name: str) -> None:
    params = weights(SHAPES)
    train(params, rule_of(name)(params, lr=0.1), 2)
    for i, p in enumerate(params):
        assert p.grad is not None and torch.equal(p.grad, gradient(p, 1, i))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dion"])
def test_the_scale_of_the_gradients_does_not_matter(name: str) -> None:
    params, scaled = weights(SHAPES), weights(SHAPES)
    train(params, rule_of(name)(params, lr=0.1), 3)
    tiny = lambda *a: 2.0**-20 * gradient(*a)  # noqa: E731
    train(scaled, rule_of(name)(scaled, lr=0.1), 3, of=tiny)
    for p, q in zip(params, scaled, strict=True):
        assert distance(p, q) < 1e-6


def test_a_batch_of_variants_keeps_what_is_each_ones_own() -> None:
    start = 0.1 * draw(16, 40)
    rules = [rule_of(name) for name in NAMES if name != "dion"]
    table = [rule([nn.Parameter(start.clone())]).param_groups[0] for rule in rules]
    table += [table[0] | {"cautious": True}, table[0] | {"momentum_warmup": 9}]
    table += [table[0] | {"second_moment": "row", "beta2": 0.5}]
    for transposed in (False, True):
        groups, ends = [], []
        for option in table:
            p = nn.Parameter((start.T if transposed else start).clone())
            alone = nn.Parameter(p.detach().clone())
            decay = 0.0 if option["adjust_lr_fn"] == "hyperball" else 0.5
            groups.append(option | {"params": [p], "lr": 0.05, "weight_decay": decay})
            train([alone], Muon([groups[-1] | {"params": [alone]}]), 3)
            ends.append(alone)
        together = [group["params"][0] for group in groups]
        train(together, Muon(groups), 3, of=lambda p, t, _: gradient(p, t))
        for p, q in zip(together, ends, strict=True):
            assert distance(p, q) < 1e-6
        # Muon Split is Muon where nothing is split.
        assert len({round(p.abs().sum().item(), 5) for p in together}) == len(together) - 1


@pytest.mark.parametrize("name", ["normuon", "muon2", "muonh", "moonlight"])
def test_bfloat16_products_change_a_step_by_their_rounding_only(name: str) -> None:
    params, low = weights(SHAPES[:3]), weights(SHAPES[:3])
    start = deepcopy(params)
    train(params, rule_of(name)(params, lr=0.1), 3)
    train(low, rule_of(name)(low, lr=0.1, ns_dtype=BF16), 3)
    for p, q, W in zip(params, low, start, strict=True):
        assert 0 < distance(q - W, p - W) < 0.03


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("muon", lambda r, c: r * c),
        ("moonlight", lambda r, c: r * c),
        ("muonh", lambda r, c: r * c),
        ("normuon", lambda r, c: r * c + r),
        ("adamuon", lambda r, c: 2 * r * c),
        ("muon2", lambda r, c: 2 * r * c),
        ("dion", lambda r, c: r * c + c * min(r, c) // 4),
    ],
)
def test_state_is_as_large_as_published(name: str, floats: Callable[[int, int], int]) -> None:
    params = weights(((16, 40), (40, 16)))
    optimizer = rule_of(name)(params, lr=0.1)
    train(params, optimizer, 1)
    for p in params:
        held = sum(x.numel() for x in optimizer.state[p].values() if isinstance(x, Tensor))
        assert held == floats(*p.shape)


# ---------------------------------------------------------------------------------------------
# What each reduces to.


def moved(options: Options, shape: tuple[int, int] = (24, 40)) -> Tensor:
    """The first update of a matrix, over its lr."""
    p = nn.Parameter(draw(*shape, seed=5).double())
    before = p.detach().clone()
    train([p], Muon([p], lr=0.5, **options), 1)
    return (before - p.detach()) / 0.5


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_normuon_levels_the_rows_and_keeps_the_norm(shape: tuple[int, int]) -> None:
    plain, levelled = moved({}, shape), moved({"second_moment": "row"}, shape)
    assert levelled.norm().item() == pytest.approx(plain.norm().item(), rel=1e-12)
    rows = levelled.norm(dim=1)  # after one step, alike
    assert (rows.max() - rows.min()) / rows.max() < 1e-12
    assert (plain.norm(dim=1) / rows - 1).abs().max() > 0.01


def test_adamuon_has_the_root_mean_square_of_adam_and_begins_with_a_sign() -> None:
    options: Options = dict(sign=True, second_moment="entry", adjust_lr_fn="exact_rms")
    first = moved(options)
    X = newton_schulz(gradient(draw(24, 40).double(), 0).sign()[None])[0]
    assert (first - 0.2 * X.sign()).abs().max() < 1e-9
    p = nn.Parameter(draw(24, 40).double())
    optimizer = Muon([p], lr=0.5, **options)
    for step in range(4):
        before = p.detach().clone()
        train([p], optimizer, 1, first=step)
        assert (p - before).square().mean().sqrt().item() == pytest.approx(0.1, rel=1e-9)


def test_muon2_without_memory_orthogonalises_the_sign() -> None:
    squared = moved({"second_moment": "gradient", "beta2": 0.0, "momentum": 0.0})
    assert distance(squared, moved({"sign": True, "momentum": 0.0})) < 1e-12


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_hyperball_keeps_the_norm_of_every_matrix(shape: tuple[int, int]) -> None:
    splits = (shape[0] // 2, shape[0] // 4, shape[0] // 4)
    p = nn.Parameter(draw(*shape))
    radii = [block.norm().item() for block in p.detach().split(splits)]
    optimizer = Muon([p], lr=0.3, splits=splits, adjust_lr_fn="hyperball")
    for step in range(30):
        before = p.detach().clone()
        train([p], optimizer, 1, first=step)
        assert [block.norm().item() for block in p.detach().split(splits)] == pytest.approx(
            radii, rel=1e-5
        )
        assert distance(p, before) > 0.05


def test_hyperball_gives_zeros_the_norm_of_torchs_initialisation() -> None:
    torch.manual_seed(0)
    for shape in ((64, 256), (256, 64), (64, 64)):
        p = nn.Parameter(torch.zeros(shape))
        optimizer = Muon([p], lr=0.0, adjust_lr_fn="hyperball")
        train([p], optimizer, 1)
        assert not p.any()  # lr 0 leaves it
        optimizer.param_groups[0]["lr"] = 1e-3
        train([p], optimizer, 1)
        torchs = nn.Linear(shape[1], shape[0]).weight
        assert p.norm().item() == pytest.approx((shape[0] / 3) ** 0.5, rel=1e-5)
        assert p.norm().item() == pytest.approx(torchs.norm().item(), rel=0.05)
        assert (p * gradient(p, 0)).sum() < 0  # downhill
        train([p], optimizer, 5)
        assert p.norm().item() == pytest.approx((shape[0] / 3) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_cautious_decay_is_of_the_weights_that_the_update_shrinks(shape: tuple[int, int]) -> None:
    update = moved({}, shape)
    W = draw(*shape, seed=5).double()
    decayed = moved({"weight_decay": 0.3, "cautious": True}, shape) - update
    shrinks = update * W > 0
    assert 0.3 < shrinks.double().mean() < 0.7
    assert (decayed - 0.3 * W * shrinks).abs().max() < 1e-12
    plain = moved({"weight_decay": 0.3}, shape) - update
    assert (plain - 0.3 * W).abs().max() < 1e-12


@pytest.mark.parametrize("nesterov", [True, False])
def test_the_momentum_rises_as_a_trainer_would_raise_it(nesterov: bool) -> None:
    params, reference = weights(SHAPES), weights(SHAPES)
    options: Options = dict(lr=0.1, momentum=0.95, nesterov=nesterov)
    warm = Muon(params, momentum_start=0.85, momentum_warmup=4, **options)
    plain = Muon(reference, **options)
    for step, mu in enumerate((0.85, 0.875, 0.9, 0.925, 0.95, 0.95)):
        plain.param_groups[0]["momentum"] = mu
        train(params, warm, 1, first=step)
        train(reference, plain, 1, first=step)
        for p, q in zip(params, reference, strict=True):
            assert distance(p, q) < 1e-6


def test_the_momentum_falls_back_at_the_end_of_the_horizon() -> None:
    (p,), state = weights([(6, 8)]), []
    schedule: Options = dict(momentum_start=0.85, momentum_warmup=2, momentum_cooldown=4)
    optimizer = Muon([p], momentum=0.95, momentum_horizon=8, **schedule)
    for step in range(9):
        state.append(optimizer._momentum(p, optimizer.param_groups[0]))
        assert optimizer.state[p]["step"] == step + 1
    assert state == pytest.approx([0.85, 0.9, 0.95, 0.95, 0.925, 0.9, 0.875, 0.85, 0.85])


def test_a_schedule_of_momentum_without_its_horizon_and_decay_of_a_kept_norm_are_refused() -> None:
    with pytest.raises(ValueError, match="momentum_cooldown=5: .* momentum_horizon=0; give"):
        Muon(weights(SHAPES), momentum_cooldown=5)
    for cautious in (True, False):
        with pytest.raises(ValueError, match="weight_decay=0.1: must be 0 with adjust_lr_fn='hyp"):
            Muon(weights(SHAPES), adjust_lr_fn="hyperball", weight_decay=0.1, cautious=cautious)


def test_a_class_made_from_muon_loads_an_older_state() -> None:
    class Scaled(Muon):
        def __init__(self, params: list[nn.Parameter], factor: float = 2.0, **options: Any) -> None:
            super().__init__(params, **options)
            self.factor = factor

    params = weights(SHAPES)
    optimizer = Scaled(params, beta2=0.5)
    train(params, optimizer, 2)
    saved = deepcopy(optimizer.state_dict())
    del saved["param_groups"][0]["beta2"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["beta2"] == 0.5


def test_dion_turns_to_the_polar_factor_at_full_rank() -> None:
    for shape in ((12, 20), (20, 12)):
        U, _, Vh = torch.linalg.svd(draw(*shape).double(), full_matrices=False)
        G = U * torch.logspace(0, -3, 12, base=2, dtype=F64) @ Vh
        p = nn.Parameter(torch.zeros(shape, dtype=F64))
        optimizer = Dion([p], lr=1.0, weight_decay=0.0, rank_fraction=1.0)
        train([p], optimizer, 60, of=lambda *_, G=G: G.clone())
        before = p.detach().clone()
        train([p], optimizer, 1, of=lambda *_, G=G: G.clone())
        update = (before - p.detach()) / (shape[0] / shape[1]) ** 0.5
        assert distance(update, polar(G)) < 1e-3


def test_dion_keeps_what_its_subspace_does_not_see() -> None:
    p = nn.Parameter(torch.zeros(16, 24, dtype=F64))
    optimizer = Dion([p], momentum=0.0, rank_fraction=0.25)
    train([p], optimizer, 1)
    G, M = gradient(p, 0), optimizer.state[p]["momentum_buffer"]
    assert torch.linalg.matrix_rank(M) == 12  # 4 of 16 directions are used up
    seen = G - M
    assert (seen * M).sum().abs() < 1e-9 * G.square().sum()
