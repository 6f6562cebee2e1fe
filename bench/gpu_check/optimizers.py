"""Checks of the optimizers on the device: what tests/test_muon.py claims on a CPU.

Each backend of Newton-Schulz is compared with the scalar polynomial of the coefficients and with
the iteration in float64; Muon and AdamW with torch.optim. In bfloat16 the order of the operations
alone moves a result by a few per cent, hence the wide limits there.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import optim
import optim.kernels
from bench.gpu_check.config import Config
from bench.gpu_check.runner import Recorder
from muon import BACKENDS, COEFFICIENTS, Coefficients, Muon, candidates, newton_schulz

BF16, F32, F64 = torch.bfloat16, torch.float32, torch.float64
STEPS = {"jordan": 5, "stable": 12}
# Where singular values of 0.01 to 1 times the norm end: the polynomials' ranges (Jordan et al.).
RANGES = {"jordan": (0.6818, 1.1344), "stable": (0.9999, 1.0001)}
# Limit of the distance from the exact result, relative, in the Frobenius norm.
NEAR = {F32: 1e-4, BF16: 0.06}


def draw(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)


def distance(x: Tensor, y: Tensor) -> float:
    """The distance of x from y, relative to y, in the Frobenius norm."""
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).norm() / y.norm())


def table(name: str) -> Coefficients:
    """The coefficients of each step."""
    return COEFFICIENTS[name] * STEPS[name]


def published(X: Tensor, abc: Coefficients) -> Tensor:
    """The iteration as published by Jordan et al., in float64; X: (..., m, n), m <= n."""
    X = X.double() / X.double().norm(dim=(-2, -1), keepdim=True)
    for a, b, c in abc:
        A = X @ X.mT
        X = a * X + (b * A + c * A @ A) @ X
    return X


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def run(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `optimizers`."""
    optim.kernels.register()
    device, toy = config.device, config.size == "toy"
    m, n = (48, 160) if toy else (512, 1536)
    for name in STEPS:
        with recorder.attempt(f"{name}: singular values in float64"):
            singular_values(recorder, device, name)
        for dtype in (F32,) if toy else (F32, BF16):
            for backend in candidates(dtype, device, table(name), "auto"):
                if dtype == F32 and backend.startswith("triton"):
                    continue  # `kernels` checks it; compiling it for one more shape takes seconds
                with recorder.attempt(f"{name}, {backend}, {name_of(dtype)}"):
                    factors(recorder, device, name, backend, dtype, m, n)
    with recorder.attempt("batches and scales"):
        batches_and_scales(recorder, device, m, n)
    with recorder.attempt("Triton against plain"):
        kernels(recorder, device, toy)
    shapes = ((m // 2, n // 2), (n // 2, m // 2), (m // 2, m // 2), (m // 2, n // 2))
    with recorder.attempt("Muon against its equations"):
        equations(recorder, device, shapes)
    names = ["plain"] if toy else candidates(BF16, device, table("jordan"), "auto")
    for backend in names:
        with recorder.attempt(f"Muon, {backend}, against torch.optim.Muon"):
            against_torch(recorder, device, shapes, backend, steps=3 if toy else 20)
    for dtype in (F32, BF16):
        with recorder.attempt(f"fused AdamW, {name_of(dtype)}"):
            fused_adamw(recorder, device, dtype)


def singular_values(recorder: Recorder, device: torch.device, name: str) -> None:
    """Singular values end within the published range; shown on diagonal matrices of norm 1."""
    s = torch.logspace(-2, 0, 401, dtype=F64, device=device).clamp(max=1)
    X = torch.zeros(len(s), 2, 64, dtype=F64, device=device)
    X[:, 0, 0], X[:, 1, 1] = s, (1 - s**2).sqrt()
    values = newton_schulz(X, COEFFICIENTS[name], STEPS[name])[:, 0, 0]
    low, high = RANGES[name]
    what = f"{name}: %s of the singular values, float64"
    recorder.check(what % "least", values.min().item(), least=low - 1e-4)
    recorder.check(what % "greatest", values.max().item(), most=high + 1e-4)


def factors(
    recorder: Recorder,
    device: torch.device,
    name: str,
    backend: str,
    dtype: torch.dtype,
    m: int,
    n: int,
) -> None:
    """Singular vectors stay, and each singular value becomes the polynomial of it."""
    U = torch.linalg.qr(draw(device, m, m).double())[0]
    Vh = torch.linalg.qr(draw(device, n, m, seed=1).double())[0].mT
    s = torch.linspace(0.2, 1, m, dtype=F64, device=device)
    sent = s / s.norm()
    for a, b, c in table(name):
        sent = a * sent + b * sent**3 + c * sent**5
    X = ((U * s) @ Vh).to(dtype)
    for turned in (False, True):
        out = newton_schulz(
            (X.mT if turned else X).contiguous()[None], COEFFICIENTS[name], STEPS[name],
            backend=backend,
        )[0]  # fmt: skip
        out = out.mT if turned else out
        what = f"{name}, {backend}, {name_of(dtype)}, {'tall' if turned else 'wide'}"
        recorder.check(f"{what}: off U f(S) V^T", distance(out, (U * sent) @ Vh), most=NEAR[dtype])
        if name == "stable":
            recorder.check(f"{what}: off the polar factor", distance(out, U @ Vh), most=NEAR[dtype])


def batches_and_scales(recorder: Recorder, device: torch.device, m: int, n: int) -> None:
    """A batch gives the results of its matrices one by one; a factor 2^k changes no bit."""
    X = draw(device, 4, m, n)
    scales = torch.tensor([2.0**-40, 1.0, 2.0**5, 2.0**30], device=device)[:, None, None]
    out = newton_schulz(X * scales, backend="plain")
    alone = torch.cat([newton_schulz(X[i : i + 1], backend="plain") for i in range(len(X))])
    recorder.check(
        "a batch off its matrices one by one, float32", distance(out, alone), most=NEAR[F32]
    )
    X[1] = 0
    for dtype in (F32, BF16):
        plain = newton_schulz(X.to(dtype), backend="plain")
        scaled = newton_schulz((X * 2.0**20).to(dtype), backend="plain")
        what = f"{name_of(dtype)}: a power of two in front changes"
        recorder.check(what, float((plain - scaled).abs().max()), most=0)
        recorder.check(f"{name_of(dtype)}: zero gives", float(plain[1].abs().max()), most=0)


def kernels(recorder: Recorder, device: torch.device, toy: bool) -> None:
    """The Triton kernels: products within one rounding of the exact ones, and the iteration."""
    names = [name for name in BACKENDS if name.startswith("triton")]
    if not names:
        recorder.skip("Triton against plain", "triton is not installed")
        return
    for dtype in (F32, BF16):
        abc = table("jordan")
        fit = [name for name in names if BACKENDS[name].applies(device, dtype, abc)]
        if not fit:
            why = f"no kernel for {name_of(dtype)} on {device.type}"
            recorder.skip(f"Triton against plain, {name_of(dtype)}", why)
            continue
        from optim.kernels.symmetric import product

        X = draw(device, 2, 37, 70) if toy else draw(device, 6, 771, 1030)
        X = (X / X.norm(dim=(-2, -1), keepdim=True)).to(dtype)
        exact = published(X, abc)
        for name, tile in zip(names, optim.kernels.TILES, strict=True):
            if name not in fit:
                continue
            what, rounding = f"{name}, {name_of(dtype)}", 1e-5 if dtype == F32 else 4e-3
            A = product(X, tile)
            off = distance(A, X.double() @ X.double().mT)
            recorder.check(f"{what}: X X^T off the exact one", off, most=rounding)
            recorder.check(f"{what}: asymmetry", float((A - A.mT).abs().max()), most=0)
            B = product(A, tile, alpha=2.0315, beta=-4.775)
            off = distance(B, 2.0315 * A.double() @ A.double() - 4.775 * A.double())
            recorder.check(f"{what}: cAA + bA off the exact one", off, most=rounding)
            out = BACKENDS[name].iterate(X, abc)
            again = BACKENDS[name].iterate(X, abc)
            recorder.check(f"{what}: iteration off float64", distance(out, exact), most=NEAR[dtype])
            recorder.check(f"{what}: run to run", float((out - again).abs().max()), most=0)


Shapes = Sequence[tuple[int, int]]


def weights(device: torch.device, shapes: Shapes) -> list[nn.Parameter]:
    return [
        nn.Parameter(0.1 * draw(device, *shape, seed=100 + i)) for i, shape in enumerate(shapes)
    ]


def step(params: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    """A step with gradients that depend only on the step's number."""
    for i, p in enumerate(params):
        p.grad = draw(p.device, *p.shape, seed=1000 * number + i).to(p.dtype)
    optimizer.step()


def equations(recorder: Recorder, device: torch.device, shapes: Shapes) -> None:
    """Four steps in float32 against the equations in float64."""
    lr, decay, mu = 0.1, 0.2, 0.95
    params, start = weights(device, shapes), weights(device, shapes)
    W = [p.detach().double() for p in start]
    M = [torch.zeros_like(w) for w in W]
    optimizer = Muon(params, lr=lr, weight_decay=decay, ns_backend="plain")
    for number in range(4):
        step(params, optimizer, number)
        for i, p in enumerate(params):
            assert p.grad is not None
            G = p.grad.double()
            M[i] = mu * M[i] + (1 - mu) * G
            turned = p.size(0) > p.size(1)
            U = (1 - mu) * G + mu * M[i]
            X = published(U.mT if turned else U, table("jordan"))
            scale = max(1, p.size(0) / p.size(1)) ** 0.5
            W[i] = (1 - lr * decay) * W[i] - lr * scale * (X.mT if turned else X)
    off = max(distance(p - q, w - q) for p, q, w in zip(params, start, W, strict=True))
    recorder.check("Muon off its equations, float32", off, most=1e-4)


def against_torch(
    recorder: Recorder, device: torch.device, shapes: Shapes, backend: str, steps: int
) -> None:
    """Each step against torch.optim.Muon's: the momentum in float32, the rest in bfloat16."""
    ours, theirs, start = (weights(device, shapes) for _ in range(3))
    options: dict[str, Any] = dict(lr=0.1, weight_decay=0.5)
    optimizer = Muon(ours, ns_dtype=BF16, ns_backend=backend, **options)
    reference = torch.optim.Muon(theirs, **options)
    worst, momentum = 0.0, 0.0
    for number in range(steps):
        before = copy.deepcopy(ours), copy.deepcopy(theirs)
        step(ours, optimizer, number)
        step(theirs, reference, number)
        for p, q, p0, q0 in zip(ours, theirs, *before, strict=True):
            kept = 1 - options["lr"] * options["weight_decay"]
            worst = max(worst, distance(p - kept * p0, q - kept * q0))
            buffers = optimizer.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"]
            momentum = max(momentum, distance(*buffers))
    what = f"Muon, {backend}, off torch.optim.Muon"
    recorder.check(f"{what}: momentum", momentum, most=1e-6)
    recorder.check(f"{what}: the worst of {steps} steps", worst, most=0.05)
    end = max(distance(p - s, q - s) for p, q, s in zip(ours, theirs, start, strict=True))
    recorder.check(f"{what}: after {steps} steps", end, most=0.03)  # rounding averages out


def fused_adamw(recorder: Recorder, device: torch.device, dtype: torch.dtype) -> None:
    """torch's fused AdamW, which the recipes use, against its plain AdamW in float64."""

    def trained(fused: bool, upcast: bool) -> Tensor:
        p = nn.Parameter(draw(device, 300, 70).to(dtype))
        p = nn.Parameter(p.detach().double()) if upcast else p
        rule: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
        optimizer = rule([p], lr=0.01, betas=(0.8, 0.95), eps=1e-10, fused=fused, foreach=False)
        for number in range(5):
            p.grad = draw(device, *p.shape, seed=number).to(dtype).to(p.dtype)
            optimizer.step()
        return p.detach()

    off = distance(trained(True, False), trained(False, True))
    recorder.check(
        f"fused AdamW off the plain one in float64, {name_of(dtype)}", off,
        most=1e-5 if dtype == F32 else 0.01,
    )  # fmt: skip
