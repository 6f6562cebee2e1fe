"""Muon, against figures, equations and implementations that are not its own.

    python -m pytest tests/test_muon.py

The Newton-Schulz iteration is held to the scalar range of its coefficients, to the polar factor
of a singular value decomposition, and to the published iteration in float64; the optimizer to a
transcription of its equations in float64, and step by step to `torch.optim.Muon`. Matrices in
bfloat16 are small, as that is emulated on most processors. bfloat16 results move by up to 3% with
the order of the operations alone, so what must be equal is compared in float32.
"""

import io
import math
from collections.abc import Callable, Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import muon
from muon import COEFFICIENTS, Coefficients, Muon, newton_schulz
from tests.matrices import (
    BF16,
    F16,
    F32,
    F64,
    FIVE,
    JORDAN,
    STABLE,
    Options,
    distance,
    draw,
    factors,
    gradient,
    polar,
    published,
    scalar,
    train,
    weights,
)

TYPED = {"jordan": JORDAN, "stable": STABLE, "you": FIVE}

# ---------------------------------------------------------------------------------------------
# The iteration.


@pytest.mark.parametrize(
    ("name", "steps", "divisor", "slope", "low", "smallest", "largest"),
    [
        ("jordan", 5, 1, 484.9, 1e-3, 0.4705, 1.2024),
        ("jordan", 5, 1, 484.9, 1e-2, 0.6818, 1.1344),
        ("stable", 12, 1, 4096, 1e-3, 1.0, 1.0),
        ("you", 5, 1, 492.7, 1e-3, 0.4750, 1.1450),
        ("you", 5, 1, 492.7, 1e-2, 0.9778, 1.0318),
        ("polar-express", 5, 1.02, 989.5, 1e-3, 0.8589, 1.1411),
        ("polar-express-1.01", 5, 1.01, 1026.1 / 1.01**5, 1e-3, 0.8462, 1.1236),
        ("polar-express-1.01", 5, 1.01, 1026.1 / 1.01**5, 1e-2, 0.8703, 1.1236),
        ("polar-express-1.01", 8, 1.01, 6363.4, 1e-3, 1.0, 1.0),
        ("cans", 5, 1, 1048.9, 1e-3, 0.8844, 1.1198),
        ("cubic5", 5, 1, 119.3, 1e-2, 0.7741, 1.3000),
        ("deepseek-v4", 10, 1, 79263, 1e-4, 1.0000, 1.0020),
    ],
)
def test_singular_values_land_where_the_coefficients_send_them(
    name: str,
    steps: int,
    divisor: float,  # of X, beside its norm
    slope: float,
    low: float,
    smallest: float,
    largest: float,
) -> None:
    s = torch.logspace(math.log10(low * divisor), 0, 8001, dtype=F64).clamp(max=1)
    s = torch.cat([s, torch.tensor([1e-9], dtype=F64)])
    for columns in (2, 64):  # the published form, and the Gram matrix's
        X = torch.zeros(len(s), 2, columns, dtype=F64)  # diagonal, of Frobenius norm 1
        X[:, 0, 0], X[:, 1, 1] = s, (1 - s**2).sqrt()
        out = newton_schulz(X, COEFFICIENTS[name], steps)
        assert out.dtype == F64
        values = out[:, 0, 0]
        assert values[:-1].min().item() == pytest.approx(smallest, abs=1e-4)
        assert values[:-1].max().item() == pytest.approx(largest, abs=1e-4)
        assert divisor * values[-1].item() / 1e-9 == pytest.approx(slope, rel=5e-4)
        if name in TYPED:
            assert (values - scalar(s, TYPED[name], steps)).abs().max() < 1e-7
        assert (out[:, 0, 1:].abs().max(), out[:, 1, 0].abs().max()) == (0, 0)


def test_polar_express_has_the_digits_of_its_paper() -> None:
    """The fifth step of the paper's table, in which a digit that is off moves nothing visible."""
    a, b, c = COEFFICIENTS["polar-express-1.01"][4]
    raw = (a * 1.01, b * 1.01**3, c * 1.01**5)
    expected = (2.300652019954817, -1.6689039845747493, 0.4188073119525673)
    assert raw == pytest.approx(expected, rel=4e-15)


def test_a_gaussian_matrix_gives_the_reference_figures() -> None:
    X = draw(768, 3072)
    out = newton_schulz(X[None])[0]
    eigenvalues, Q = torch.linalg.eigh(X @ X.mT)  # condition 9: float32 is enough
    exact = Q @ (Q.mT @ X / eigenvalues.sqrt()[:, None])
    gram = out @ out.mT
    values = torch.linalg.eigvalsh(gram).sqrt()
    assert values[0].item() == pytest.approx(0.682, abs=0.002)
    assert values[-1].item() == pytest.approx(1.134, abs=0.002)
    assert distance(out, exact) == pytest.approx(0.162, abs=0.003)
    assert (gram - torch.eye(768)).abs().max().item() == pytest.approx(0.142, abs=0.02)


@pytest.mark.parametrize("shape", [(64, 256), (64, 72), (256, 64), (1, 40), (40, 1)])
@pytest.mark.parametrize("name", ["jordan", "stable"])
def test_float32_keeps_the_singular_vectors(shape: tuple[int, int], name: str) -> None:
    table, steps = {"jordan": (JORDAN, 5), "stable": (STABLE, 12)}[name]
    U, Vh = factors(min(shape), max(shape))
    S = torch.linspace(1, 2, min(shape), dtype=F64)
    X = (U * S) @ Vh
    expected = (U * scalar(S / S.norm(), table, steps)) @ Vh
    if shape[0] > shape[1]:
        X, expected = X.mT, expected.mT
    out = newton_schulz(X.float()[None], COEFFICIENTS[name], steps)[0]
    assert out.dtype == F32
    assert distance(out, expected) < 1e-5
    assert distance(out, polar(X)) < {"jordan": 0.32, "stable": 1e-3}[name]


@pytest.mark.parametrize("shape", [(48, 192), (192, 48)])
@pytest.mark.parametrize(
    ("name", "steps", "low", "high", "cosine"),
    [
        ("jordan", 5, 0.6818, 1.1344, 0.985),
        ("stable", 12, 1.0, 1.0, 0.9995),
        ("you", 5, 0.9778, 1.0318, 0.9995),
        ("polar-express", 5, 0.8589, 1.1411, 0.994),
        ("deepseek-v4", 10, 1.0, 1.0005, 0.9995),
    ],
)
def test_bfloat16_is_close_to_the_polar_factor(
    shape: tuple[int, int], name: str, steps: int, low: float, high: float, cosine: float
) -> None:
    X = draw(*shape)
    out = newton_schulz(X.bfloat16()[None], COEFFICIENTS[name], steps)[0]
    assert out.dtype == BF16
    values = torch.linalg.svdvals(out.double())
    assert low - 0.02 < values.min() and values.max() < high + 0.02
    exact = polar(X)
    assert (out.double() * exact).sum() / out.double().norm() / exact.norm() >= cosine


@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (F32, 1e-5), (BF16, 0.03)])
def test_a_tall_matrix_is_a_wide_one_turned_over(dtype: torch.dtype, tolerance: float) -> None:
    X = draw(1, 32, 80).to(dtype)
    tall = newton_schulz(X.mT.contiguous())
    assert tall.shape == (1, 80, 32)
    assert distance(tall.mT, newton_schulz(X)) < tolerance


@pytest.mark.parametrize("columns", [64, 256])  # published, Gram
@pytest.mark.parametrize(
    ("spectrum", "tolerance"),
    # A singular value s enters the Gram matrix as s^2, of which rounding leaves nothing below
    # s = 2e-4; the tolerances for small ones are still far below bfloat16's noise.
    [("flat", 1e-5), ("gaussian", 1e-5), ("rank 16", 1e-4), ("log", 1e-3)],
)
def test_any_spectrum_gives_what_the_published_iteration_does(
    spectrum: str, tolerance: float, columns: int
) -> None:
    spectra = {
        "flat": torch.linspace(0.5, 1, 64),
        "rank 16": torch.cat([torch.linspace(0.5, 1, 16), torch.zeros(48)]),
        "log": torch.logspace(0, -4, 64),
    }
    U, Vh = factors(64, columns)
    X = draw(64, columns) if spectrum == "gaussian" else ((U * spectra[spectrum]) @ Vh).float()
    out = newton_schulz(X[None])[0]
    assert distance(out, published(X)) < tolerance
    for name in ("you", "polar-express", "polar-express-1.01", "cans"):
        other = newton_schulz(X[None], COEFFICIENTS[name])[0]
        assert distance(other, published(X, COEFFICIENTS[name])) < max(tolerance, 2e-5) * 5
    if spectrum == "rank 16":  # nothing grows in the null space
        assert distance(out, polar(X)) < 0.25


@pytest.mark.parametrize("shape", [(32, 128), (40, 40)])  # Gram, published
def test_every_step_has_its_coefficients_and_the_last_ones_repeat(shape: tuple[int, int]) -> None:
    X = draw(*shape)
    for table, steps in ((FIVE, 5), (FIVE, 3), (FIVE[2:], 5), (JORDAN, 1), (STABLE, 4)):
        assert distance(newton_schulz(X[None], table, steps)[0], published(X, table, steps)) < 1e-5


@pytest.mark.parametrize(
    ("m", "n", "dtype", "table", "steps", "gram"),
    [
        (32, 128, F32, JORDAN, 5, True),
        (128, 32, F32, JORDAN, 5, True),
        (32, 64, F32, JORDAN, 5, True),
        (32, 40, F32, JORDAN, 5, False),  # not cheaper
        (32, 32, F32, JORDAN, 5, False),
        (32, 128, F32, JORDAN, 8, False),  # slope 19819 at zero: too steep for float32 ...
        (32, 128, F32, STABLE, 12, False),
        (32, 128, F64, STABLE, 12, True),  # ... not for float64
        (32, 128, F32, COEFFICIENTS["polar-express"], 5, True),
        (32, 128, F32, COEFFICIENTS["cans"], 5, True),
        (32, 128, F32, COEFFICIENTS["polar-express-1.01"], 8, False),
        (16, 64, BF16, JORDAN, 5, False),
        (64, 16, BF16, JORDAN, 5, False),
        (16, 64, BF16, STABLE, 3, False),
        (16, 64, F16, JORDAN, 5, False),
    ],
)
def test_the_gram_iteration_is_taken_where_cheaper_and_accurate(
    m: int, n: int, dtype: torch.dtype, table: Coefficients, steps: int, gram: bool
) -> None:
    X = draw(1, m, n).to(dtype)
    with FlopCounterMode(display=False) as counter:
        newton_schulz(X, table, steps)
    m, n = min(m, n), max(m, n)
    gram_flops = 4 * n * m**2 + (8 * steps - 6) * m**3
    published_flops = steps * (4 * n * m**2 + 2 * m**3)
    assert counter.get_total_flops() == (gram_flops if gram else published_flops)


@pytest.mark.parametrize("shape", [(4, 16, 48), (4, 48, 16), (4, 24, 24)])
def test_a_batch_equals_its_matrices_one_by_one(shape: tuple[int, int, int]) -> None:
    X = draw(*shape) * torch.tensor([1e-4, 1.0, 30.0, 1e5])[:, None, None]
    out = newton_schulz(X)
    for i in range(len(X)):
        assert distance(out[i], newton_schulz(X[i : i + 1])[0]) < 1e-6


@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16])
def test_zero_gives_zero_and_nothing_else_is_touched(dtype: torch.dtype) -> None:
    X = draw(3, 16, 32).to(dtype)
    X[1] = 0
    before = X.clone()
    out = newton_schulz(X)
    assert torch.equal(X, before)
    assert torch.equal(out[1], torch.zeros_like(X[1]))
    assert torch.equal(out[[0, 2]], newton_schulz(X[[0, 2]]))
    assert out.isfinite().all() and out[0].double().norm() > 3


# ---------------------------------------------------------------------------------------------
# The optimizer.


def transcription(p: Tensor, grads: Sequence[Tensor], options: Options) -> tuple[Tensor, Tensor]:
    """Weights and momentum after the docstring's equations in float64."""
    W, M, mu = p.detach().double(), torch.zeros_like(p).double(), options.get("momentum", 0.95)
    scale = max(1, p.size(0) / p.size(1)) ** 0.5
    if options.get("adjust_lr_fn") == "match_rms_adamw":
        scale = 0.2 * max(p.shape) ** 0.5
    lr, decay = options["lr"], options.get("weight_decay", 0.0)
    for G in (g.double() for g in grads):
        M = mu * M + (1 - mu) * G
        U = (1 - mu) * G + mu * M if options.get("nesterov", True) else M
        X = published(U, options.get("ns_coefficients", JORDAN), options.get("ns_steps", 5))
        W = (1 - lr * decay) * W - lr * scale * X
    return W, M


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.1},
        {"lr": 0.1, "nesterov": False},
        {"lr": 0.5, "weight_decay": 0.2, "momentum": 0.8},
        {"lr": 0.5, "weight_decay": 0.2, "nesterov": False, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.2, "momentum": 0.0},
        {"lr": 0.1, "ns_coefficients": FIVE, "adjust_lr_fn": "match_rms_adamw"},
        {"lr": 0.1, "ns_coefficients": STABLE, "ns_steps": 12, "weight_decay": 1.0},
    ],
)
def test_float32_equals_the_equations_in_float64(options: Options) -> None:
    params = weights(((32, 96), (96, 32), (32, 96), (48, 56)))
    before = deepcopy(params)
    optimizer = Muon(params, **options)
    train(params, optimizer, 8)
    for i, (p, start) in enumerate(zip(params, before, strict=True)):
        W, M = transcription(start, [gradient(p, t, i) for t in range(8)], options)
        assert distance(p - start, W - start) < 1e-5
        assert distance(optimizer.state[p]["momentum_buffer"], M) < 1e-6


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_every_step_equals_torch_muon(
    nesterov: bool, adjust_lr_fn: str, weight_decay: float
) -> None:
    ours, theirs = weights(), weights()
    options: Options = dict(lr=0.1, weight_decay=weight_decay, nesterov=nesterov)
    options |= dict(adjust_lr_fn=adjust_lr_fn)
    optimizer = Muon(ours, ns_dtype=BF16, **options)
    reference = torch.optim.Muon(theirs, **options)
    for step in range(20):
        before, theirs_before = deepcopy(ours), deepcopy(theirs)
        train(ours, optimizer, 1, first=step)
        train(theirs, reference, 1, first=step)
        decayed = 1 - 0.1 * weight_decay
        for i, (p, q) in enumerate(zip(ours, theirs, strict=True)):
            buffer = optimizer.state[p]["momentum_buffer"]
            assert torch.equal(buffer, reference.state[q]["momentum_buffer"])
            assert distance(p - decayed * before[i], q - decayed * theirs_before[i]) < 0.03
    for p, q, start in zip(ours, theirs, weights(), strict=True):
        assert distance(p - start, q - start) < 0.015  # rounding averages out, an error adds up


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_without_further_options_a_step_is_its_equations_to_the_bit(
    nesterov: bool, weight_decay: float
) -> None:
    params = weights(((32, 96), (48, 48), (96, 32), (32, 96)))
    expected, buffers = deepcopy(params), [torch.zeros_like(p) for p in params]
    optimizer = Muon(params, lr=0.1, weight_decay=weight_decay, nesterov=nesterov)
    for step in range(5):
        train(params, optimizer, 1, first=step)
        U = []
        for i, (W, M) in enumerate(zip(expected, buffers, strict=True)):
            G = gradient(W, step, i)
            M.lerp_(G, 1 - 0.95)
            U.append(G.lerp(M, 0.95) if nesterov else M)
        a, b, c = newton_schulz(torch.stack([U[0], U[2].T, U[3]]))
        (square,) = newton_schulz(U[1][None])
        with torch.no_grad():
            for W, X in zip(expected, (a, square, b.T, c), strict=True):
                W.mul_(1 - 0.1 * weight_decay)
                W.sub_(X, alpha=0.1 * max(1, len(W) / len(W.T)) ** 0.5)
    for p, W, M in zip(params, expected, buffers, strict=True):
        assert torch.equal(p, W)
        assert optimizer.state[p].keys() == {"momentum_buffer"}
        assert torch.equal(optimizer.state[p]["momentum_buffer"], M)


@pytest.mark.parametrize(("scale", "tolerance"), [(1e-6, 1e-5), (1e6, 1e-5), (2.0**-40, 0)])
def test_the_scale_of_the_gradients_does_not_matter(scale: float, tolerance: float) -> None:
    def moved(of: Callable[..., Tensor]) -> list[nn.Parameter]:
        params = weights()
        train(params, Muon(params, lr=0.1, weight_decay=0.1), 5, of=of)
        return params

    plain, scaled = moved(gradient), moved(lambda *a: scale * gradient(*a))
    other = moved(lambda p, t, i: gradient(p, t, i) * (1 if i else scale))  # the first alone
    for p, q, r, start in zip(plain, scaled, other, weights(), strict=True):
        assert distance(q - start, p - start) <= tolerance
        assert distance(r - start, p - start) <= tolerance


def test_a_batch_keeps_what_is_a_groups_own() -> None:
    table: list[Options] = [
        {"lr": 0.1},
        {"lr": 0.02},
        {"lr": 0.1, "weight_decay": 0.5},
        {"lr": 0.1, "momentum": 0.5},
        {"lr": 0.1, "ns_steps": 3},
        {"lr": 0.1, "ns_coefficients": FIVE},
        {"lr": 0.1, "ns_dtype": BF16},
    ]
    start = 0.1 * draw(16, 48)
    params = [nn.Parameter(start.clone()) for _ in table]
    groups = [{"params": [p], **o} for p, o in zip(params, table, strict=True)]
    train(params, Muon(groups), 2, of=lambda p, t, _: gradient(p, t))
    for p, options in zip(params, table, strict=True):
        alone = nn.Parameter(start.clone())
        train([alone], Muon([alone], **options), 2)
        assert distance(p - start, alone - start) < 1e-6
        assert p is params[0] or distance(p - start, params[0] - start) > 0.005


@pytest.mark.parametrize("splits", [(32, 32, 32), (64, 16, 16)])
@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
def test_a_fused_parameter_equals_its_blocks_apart(
    splits: tuple[int, ...], adjust_lr_fn: str
) -> None:
    fused = nn.Parameter(draw(96, 32))
    blocks = [nn.Parameter(block.clone()) for block in fused.detach().split(splits)]
    whole = nn.Parameter(fused.detach().clone())
    options: Options = dict(lr=0.1, weight_decay=0.1, adjust_lr_fn=adjust_lr_fn)
    train([fused], Muon([fused], splits=splits, **options), 4)
    block = lambda _, step, i: gradient(fused, step).split(splits)[i]  # noqa: E731
    train(blocks, Muon(blocks, **options), 4, of=block)
    train([whole], Muon([whole], **options), 4)
    assert torch.equal(fused, torch.cat(blocks))
    assert distance(whole, fused) > 0.01


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(("lr", "decay", "size"), [(0.1, 0, 0), (0.1, 0.5, 0), (0, 0.5, 1)])
def test_zero_gradients_leave_only_weight_decay_and_lr_zero_nothing(
    lr: float, decay: float, size: float, dtype: torch.dtype
) -> None:
    params, start = weights(), weights()
    options: Options = dict(adjust_lr_fn="match_rms_adamw", ns_dtype=dtype)
    optimizer = Muon(params, lr=lr, weight_decay=decay, **options)
    train(params, optimizer, 1, of=lambda *a: size * gradient(*a))
    for p, q in zip(params, start, strict=True):
        assert torch.equal(p, q * (1 - lr * decay))  # by the lr that is not scaled


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    params = weights()
    optimizer = Muon(params, lr=0.1, weight_decay=0.5)
    fresh, start = params[2], params[2].detach().clone()
    for _ in range(2):
        for i in (0, 1, 3):
            params[i].grad = gradient(params[i], 0, i)
        optimizer.step()
    assert torch.equal(fresh, start) and fresh not in optimizer.state

    p = params[0]  # with state from before
    weight, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad, fresh.grad = None, gradient(fresh, 0)
    optimizer.step()
    assert torch.equal(p, weight) and torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    assert not torch.equal(fresh, start)

    for q in params:
        q.grad = None
    before = deepcopy(params)
    optimizer.step()  # none at all
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("dtype", "ns_dtype"), [(BF16, BF16), (BF16, None), (F32, BF16)])
def test_gradients_and_momentum_are_left_as_they_are(
    nesterov: bool, dtype: torch.dtype, ns_dtype: torch.dtype | None
) -> None:
    params = [nn.Parameter(p.detach().to(dtype)) for p in weights(((16, 48), (48, 16), (24, 24)))]
    start = deepcopy(params)
    optimizer = Muon(params, lr=0.5, nesterov=nesterov, ns_dtype=ns_dtype)
    buffers = [torch.zeros_like(p) for p in params]
    for step in range(3):
        grads = [gradient(p, step, i) for i, p in enumerate(params)]
        for p, G, buffer in zip(params, grads, buffers, strict=True):
            p.grad = G.clone()
            buffer.lerp_(G, 0.05)
        optimizer.step()
        for p, G, buffer in zip(params, grads, buffers, strict=True):
            assert p.grad is not None and torch.equal(p.grad, G)
            assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    for i, (p, q) in enumerate(zip(params, start, strict=True)):
        assert p.dtype == dtype
        grads = [gradient(p, t, i) for t in range(3)]
        W, _ = transcription(q, grads, {"lr": 0.5, "nesterov": nesterov})
        assert distance(p - q, W - q.double()) < 0.1


def test_a_scheduler_sets_the_size_of_the_steps() -> None:
    (p,) = params = weights(((24, 48),))
    optimizer = Muon(params, lr=0.4)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    moves = []
    for _ in range(3):
        start = p.detach().clone()
        train(params, optimizer, 1, of=lambda p, *_: gradient(p, 0))  # always the same
        scheduler.step()
        moves.append(p.detach() - start)
    assert distance(moves[1], 0.5 * moves[0]) < 1e-5
    assert distance(moves[2], 0.25 * moves[0]) < 1e-5


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "ns_dtype": BF16}])
def test_a_saved_state_goes_on_as_if_never_stopped(options: Options) -> None:
    params = weights(((16, 48), (48, 16)))
    optimizer = Muon(params, lr=0.1, weight_decay=0.1, **options)
    train(params, optimizer, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = deepcopy(params)
    other = Muon(resumed, lr=7.0)  # every hyperparameter comes from the file
    other.load_state_dict(torch.load(file, weights_only=True))
    train(params, optimizer, 3, first=3)
    train(resumed, other, 3, first=3)
    for p, q in zip(params, resumed, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], other.state[q]["momentum_buffer"])


@pytest.mark.parametrize("nesterov", [True, False])
def test_without_the_iteration_it_is_sgd_with_momentum(
    nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "newton_schulz", lambda X, *_: X.clone())
    shapes = ((24, 24), (16, 40))  # whose scale is 1
    params, reference = weights(shapes), weights(shapes)
    train(params, Muon(params, lr=0.5, nesterov=nesterov), 10)
    # From a zero buffer, the average of SGD's heavy-ball momentum is its (1 - momentum)-fold.
    sgd = torch.optim.SGD(reference, lr=0.5 * 0.05, momentum=0.95, nesterov=nesterov)
    train(reference, sgd, 10)
    for p, q, start in zip(params, reference, weights(shapes), strict=True):
        assert distance(p - start, q - start) < 1e-5


def test_a_closure_is_evaluated_with_gradients() -> None:
    (p,) = params = weights(((8, 16),))
    optimizer = Muon(params, lr=0.1)

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) > optimizer.step(closure)


def test_a_regression_is_solved_the_same_way_every_time() -> None:
    X = draw(256, 32) * torch.logspace(0, -2, 32)  # the inputs' spectrum spans two decades
    Y = X @ draw(32, 16, seed=1)
    solutions, losses = [], []
    for _ in range(2):
        W = nn.Parameter(torch.zeros(16, 32))
        optimizer = Muon([W])
        for step in range(150):
            optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 150)
            optimizer.zero_grad()
            loss = (X @ W.T - Y).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        solutions.append(W.detach())
    assert losses[149] < 1e-3 * losses[0]
    assert torch.equal(*solutions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ns_coefficients": "jordon"}, "jordon.*jordan"),
        ({"adjust_lr_fn": "spectral"}, "spectral.*original"),
        ({"splits": (32, 32)}, r"\(32, 32\)"),
        ({"lr": -0.1}, "-0.1"),
        ({"lr": float("nan")}, "nan"),
        ({"weight_decay": -0.1}, "-0.1"),
        ({"momentum": 1.0}, "1.0"),
        ({"ns_steps": 0}, "ns_steps=0"),
        ({"ns_steps": 100}, "ns_steps=100"),
    ],
)
@pytest.mark.parametrize("where", ["arguments", "group"])
def test_impossible_options_are_refused(options: Options, message: str, where: str) -> None:
    params = weights(((96, 32),))
    with pytest.raises(ValueError, match=message):
        if where == "arguments":
            Muon(params, **options)
        else:  # as an engine gives them
            Muon([{"params": params, **options}])


@pytest.mark.parametrize("shape", [(), (32,), (4, 8, 2), (8, 4, 3, 3)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2-D"):
        Muon([nn.Parameter(torch.zeros(shape))])
    optimizer = Muon(weights())
    with pytest.raises(ValueError, match="2-D"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(shape))]})
