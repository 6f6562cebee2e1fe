"""The symmetric kernel and the choice of a backend, against float64 and the published iteration.

    python -m pytest tests/test_symmetric.py

On a GPU the kernel is compiled and run there. Elsewhere Triton's interpreter runs it, which
tests/conftest.py turns on. For what it is compiled to, see tests/test_kernels.py.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import muon
from muon import COEFFICIENTS, Backend, Coefficients, Muon, choose, newton_schulz
from runtime import provenance

pytest.importorskip("triton", reason="triton has no build for this platform")

import numpy
import triton

from bench.newton_schulz import rows_of
from optim import kernels
from optim.kernels import TILES, Loop, Tile, aligned, iterate, symmetric
from optim.kernels.symmetric import product

kernels.register()

ROOT = Path(__file__).parents[1]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
# One rounding, relative; float32's with its sums. Triton's interpreter cuts bfloat16 off where a
# GPU rounds to the nearest, so what it computes in bfloat16 is a little further from exact.
EPS = {F32: 1e-6, BF16: 2**-8 if DEVICE.type == "cuda" else 2**-7, F16: 2**-11}
# Many tiles in a small matrix.
SMALL = Tile(16, half=Loop(64, num_warps=2, num_stages=2), full=Loop(32, num_warps=2, num_stages=2))


def release(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split(".")[:2])


def runs_kernel(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that runs the kernel: slow in Triton's interpreter, which must know numpy."""
    unknown = release(triton.__version__) < (3, 7) and release(numpy.__version__) >= (2, 5)
    reason = f"the interpreter of triton {triton.__version__} does not know numpy 2.5"
    skip = pytest.mark.skipif(DEVICE.type == "cpu" and unknown, reason=reason)
    return pytest.mark.slow(skip(test))


JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
STABLE = ((2.0, -1.5, 0.5),) * 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def distance(x: Tensor, y: Tensor) -> float:
    """Of x from y, relative to y, in the Frobenius norm."""
    x, y = x.detach().double().cpu(), y.detach().double().cpu()
    return float((x - y).norm() / y.norm())


def published(X: Tensor, abc: Coefficients) -> Tensor:
    """The iteration as Jordan et al. write it, with torch's operations in X's dtype."""
    X = (X / X.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-15)).to(X.dtype)
    for a, b, c in abc:
        A = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)
    return X


# ---------------------------------------------------------------------------------------------
# The kernel.


@runs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize(
    ("shape", "tile"),
    [
        ((2, 5, 40), SMALL),  # one tile, not full
        ((1, 1, 1), SMALL),
        ((2, 32, 16), SMALL),  # full tiles
        ((2, 37, 70), SMALL),  # three a side, the last not full
        ((1, 50, 3), SMALL),
        ((2, 70, 90), TILES[0]),
        ((1, 130, 65), TILES[1]),
    ],
)
def test_a_product_is_the_exact_one_rounded_once(
    shape: tuple[int, int, int], tile: Tile, dtype: torch.dtype
) -> None:
    X = draw(*shape).to(dtype)
    before = X.clone()
    A = product(X, tile)
    exact = X.double() @ X.double().mT
    assert A.dtype == dtype and torch.equal(A, A.mT) and torch.equal(X, before)
    assert ((A.double() - exact).abs() <= EPS[dtype] * exact.abs() + 1e-5).all()

    S = (A / A.double().norm(dim=(-2, -1), keepdim=True)).to(dtype)
    B = product(S, tile, alpha=2.0315, beta=-4.775)
    exact = 2.0315 * S.double() @ S.double() - 4.775 * S.double()
    assert torch.equal(B, B.mT)
    assert ((B.double() - exact).abs() <= EPS[dtype] * exact.abs() + 1e-5).all()


@runs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_strides_do_not_matter_and_nothing_outside_a_matrix_is_read(dtype: torch.dtype) -> None:
    X = draw(2, 21, 35).to(dtype)
    expected = product(X, SMALL)
    around = torch.full((3, 30, 80), float("nan"), dtype=dtype, device=DEVICE)
    around[:2, 4:25, 3:73:2] = X
    for same in (X.mT.contiguous().mT, around[:2, 4:25, 3:73:2], X.flip(0)[[1, 0]]):
        assert distance(product(same, SMALL), expected) < EPS[dtype]
    repeated = product(X[:1].expand(3, -1, -1), SMALL)
    assert all(distance(A, expected[0]) < EPS[dtype] for A in repeated)


# ---------------------------------------------------------------------------------------------
# The iteration.


def test_what_is_added_to_a_batch_is_zeros_and_a_whole_one_is_not_copied() -> None:
    X = draw(2, 21, 35)
    filled = aligned(X)
    assert filled.shape == (2, 32, 48) and torch.equal(filled[:, :21, :35], X)
    assert filled.count_nonzero() == X.count_nonzero()
    for whole in (draw(2, 16, 48), draw(1, 32, 32)):
        assert aligned(whole) is whole
    turned = draw(2, 48, 16).mT
    assert aligned(turned).is_contiguous() and torch.equal(aligned(turned), turned)


@runs_kernel
@pytest.mark.parametrize(("dtype", "tolerance"), [(F32, 1e-5), (BF16, 0.03), (F16, 0.005)])
@pytest.mark.parametrize("shape", [(2, 20, 70), (1, 33, 33)])
def test_an_iteration_equals_the_published_one(
    shape: tuple[int, int, int], dtype: torch.dtype, tolerance: float
) -> None:
    X = draw(*shape)
    X = (X / X.norm(dim=(-2, -1), keepdim=True)).to(dtype)
    table = tuple((a, b + 0.1 * i, c) for i, (a, b, c) in enumerate(JORDAN[:2]))
    out = iterate(X, table, SMALL)
    assert out.dtype == dtype
    assert distance(out, published(X.double(), table)) < tolerance
    assert torch.equal(out, iterate(X, table, SMALL))


@runs_kernel
@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (40, 40)])
@pytest.mark.parametrize(
    ("name", "abc", "dtype", "tolerance"),
    [
        ("jordan", JORDAN, F32, 1e-4),
        ("stable", STABLE, F32, 1e-4),
        ("jordan", JORDAN, BF16, 0.06),
    ],
)
def test_singular_values_go_where_the_coefficients_send_them_and_vectors_stay(
    shape: tuple[int, int], name: str, abc: Coefficients, dtype: torch.dtype, tolerance: float
) -> None:
    U, _, Vh = torch.linalg.svd(draw(*shape, seed=1).double(), full_matrices=False)
    s = torch.linspace(0.2, 1, min(shape), dtype=F64, device=DEVICE)
    X = ((U * s) @ Vh).to(dtype)
    out = newton_schulz(X[None], COEFFICIENTS[name], len(abc), backend="triton-64")[0]
    s = s / s.norm()
    for a, b, c in abc:
        s = a * s + b * s**3 + c * s**5
    assert (torch.linalg.svdvals(out.double()) - s.sort(descending=True)[0]).abs().max() < tolerance
    assert distance(out, (U * s) @ Vh) < tolerance
    assert distance(out, U @ Vh) < (0.3 if name == "jordan" else 1e-3)


@runs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("scale", [2.0**-30, 2.0**20])
def test_the_scale_of_the_input_does_not_matter(scale: float, dtype: torch.dtype) -> None:
    X = draw(3, 24, 40).to(dtype)
    X[1] = 0
    out = newton_schulz(scale * X, backend="triton-64")
    assert torch.equal(out, newton_schulz(X, backend="triton-64"))
    assert torch.equal(out[1], torch.zeros_like(X[1]))


def train(backend: str, dtype: torch.dtype | None = None, steps: int = 2) -> list[nn.Parameter]:
    shapes = ((96, 32), (32, 96), (40, 40), (40, 40))
    params = [nn.Parameter(0.1 * draw(*shape, seed=i)) for i, shape in enumerate(shapes)]
    optimizer = Muon(params, lr=0.1, ns_dtype=dtype, ns_backend=backend)
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = draw(*p.shape, seed=10 * step + i)
        optimizer.step()
    return params


@runs_kernel
@pytest.mark.parametrize(("dtype", "tolerance"), [(None, 3e-5), (BF16, 0.05)])
def test_muon_trains_alike_with_every_backend(
    dtype: torch.dtype | None, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def spied(name: str, original: Backend) -> Backend:
        def run(X: Tensor, abc: Coefficients) -> Tensor:
            ran.append(name)
            return original.iterate(X, abc)

        return original._replace(iterate=run)

    spies = {name: spied(name, backend) for name, backend in muon.BACKENDS.items()}
    monkeypatch.setattr(muon, "BACKENDS", spies)
    start, plain = train("plain", dtype, steps=0), train("plain", dtype)
    assert set(ran) == {"plain"}
    backends = ["auto", "triton"] + (["gram"] if dtype is None else [])
    for backend in backends:
        ran.clear()
        for p, q, s in zip(train(backend, dtype), plain, start, strict=True):
            assert distance(p - s, q - s) < tolerance
        assert backend == "auto" or {name.partition("-")[0] for name in ran} == {backend}


# ---------------------------------------------------------------------------------------------
# The choice.


@pytest.mark.parametrize("shape", [(16, 128, 128), (8, 128, 512), (8, 512, 128), (3, 32, 96)])
def test_on_a_cpu_the_default_and_plain_are_bit_for_bit_these_formulas(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon, "_fastest", None)  # nothing is measured on a CPU
    X = draw(*shape).cpu()
    X, turn = (X.mT, True) if shape[1] > shape[2] else (X, False)
    direct = published(X, JORDAN)
    if X.size(1) == X.size(2):
        expected = direct
    else:
        N = X / X.norm(dim=(-2, -1), keepdim=True)
        R = N @ N.mT
        Z = torch.eye(R.size(-1)).expand_as(R)
        for i, (a, b, c) in enumerate(JORDAN):
            B = torch.baddbmm(R, R, R, beta=b, alpha=c)
            Z = a * Z + B if i == 0 else torch.baddbmm(Z, B, Z, beta=a)
            if i < 4:
                W = torch.baddbmm(R, B, R, beta=a)
                R = torch.baddbmm(W, B, W, beta=a)
        expected = Z @ N
        assert not torch.equal(expected, direct)
    X, expected, direct = (Y.mT if turn else Y for Y in (X, expected, direct))
    assert torch.equal(newton_schulz(X), expected)
    assert torch.equal(newton_schulz(X, backend="plain"), direct)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """A pretended GPU with four backends: how many milliseconds each takes there."""
    times = {"plain": 10.0, "gram": 8.0, "fast-1": 6.0, "fast-2": 5.0}
    runs: list[tuple[Any, ...]] = []

    def backend(name: str) -> Backend:
        def run(X: Tensor, abc: Coefficients) -> Tensor:
            runs.append((name, tuple(X.shape), X.dtype, float(X.float().square().sum())))
            return X

        return Backend(run, lambda device, dtype, abc: name != "gram" or dtype != BF16)

    def milliseconds(run: Callable[..., Tensor], X: Tensor, abc: Coefficients) -> float:
        run(X, abc)
        (name, *_) = runs[-1]
        slow = 100.0 if sum(past[0] == name for past in runs) == 1 else 0.0  # it compiles
        return times[name] + slow

    on_cpu = muon._fastest
    monkeypatch.setattr(muon, "BACKENDS", {name: backend(name) for name in times})
    monkeypatch.setattr(muon, "_chosen", {})
    monkeypatch.setattr(muon, "_milliseconds", milliseconds)
    monkeypatch.setattr(
        muon, "_fastest", lambda names, shape, dtype, _, abc: on_cpu(names, shape, dtype, CPU, abc)
    )
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    times["runs"] = runs  # type: ignore[assignment]
    return times


def test_the_fastest_is_taken_and_measured_once_for_each_shape(gpu: dict[str, Any]) -> None:
    assert choose((4, 8, 16), BF16, CUDA, JORDAN) == "fast-2"
    measured = list(gpu["runs"])
    assert {name for name, *_ in measured} == {"plain", "fast-1", "fast-2"}  # gram is inaccurate
    assert all(run[1:3] == ((4, 8, 16), BF16) for run in measured)
    assert all(run[3] == pytest.approx(4, rel=0.02) for run in measured)  # of norm 1 each
    gpu["fast-2"] = 50.0
    assert choose((4, 8, 16), BF16, CUDA, JORDAN) == "fast-2" and gpu["runs"] == measured
    assert choose((5, 8, 16), BF16, CUDA, JORDAN) == "fast-1"  # another shape
    gpu["fast-1"] = 50.0
    assert choose((4, 8, 16), F32, CUDA, JORDAN) == "gram"  # another dtype
    gpu["gram"] = 9.9  # no faster than by chance
    assert choose((4, 8, 16), F32, CUDA, STABLE) == "plain"
    assert len(muon.chosen_backends()) == 4
    gpu |= {"fast-1": 2.0, "fast-2": 1.95}  # of two that tie the first, whatever chance says
    assert choose((6, 8, 16), BF16, CUDA, JORDAN) == "fast-1"


def test_a_backend_can_be_forced(gpu: dict[str, Any]) -> None:
    assert choose((4, 8, 16), F32, CUDA, JORDAN, "plain") == "plain"
    assert choose((4, 8, 16), F32, CUDA, JORDAN, "gram") == "gram"
    assert choose((4, 8, 16), F32, CUDA, JORDAN, "fast-1") == "fast-1"
    assert gpu["runs"] == []
    assert choose((4, 8, 16), F32, CUDA, JORDAN, "fast") == "fast-2"
    assert {name for name, *_ in gpu["runs"]} == {"fast-1", "fast-2"}
    assert choose((4, 8, 16), F32, CUDA, JORDAN) == "fast-2"
    gpu["plain"] = 1.0
    assert choose((5, 8, 16), F32, CUDA, JORDAN) == "plain"
    assert choose((5, 8, 16), F32, CUDA, JORDAN, "fast") == "fast-2"  # each has its own choice


def test_a_backend_that_fails_is_not_taken_but_the_first_one_must_work(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(X: Tensor, abc: Coefficients) -> Tensor:
        raise OSError("no C compiler")

    backends = muon.BACKENDS
    for name, left in (("fast-2", "fast-1"), ("fast-1", "plain")):
        monkeypatch.setitem(backends, name, backends[name]._replace(iterate=broken))
        with pytest.warns(UserWarning, match="fails here: no C compiler") as warned:
            assert choose((4, 8, 16), BF16, CUDA, JORDAN) == left
        assert any(f"'{name}'" in str(warning.message) for warning in warned)
        muon._chosen.clear()
    with pytest.raises(OSError, match="no C compiler"):
        choose((4, 8, 16), BF16, CUDA, JORDAN, "fast")


def test_what_another_process_chose_is_taken_without_measuring(gpu: dict[str, Any]) -> None:
    choose((4, 8, 16), BF16, CUDA, JORDAN)
    muon.adopt_backends(dict.fromkeys(muon.chosen_backends(), "fast-1"))
    gpu["runs"].clear()
    assert choose((4, 8, 16), BF16, torch.device("cuda:1"), JORDAN) == "fast-1"
    assert gpu["runs"] == []


def test_nothing_is_measured_while_a_graph_is_captured(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert choose((4, 8, 16), BF16, CUDA, JORDAN) == "plain"
        assert gpu["runs"] == [] and muon.chosen_backends() == {}
    choose((4, 8, 16), BF16, CUDA, JORDAN)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert choose((4, 8, 16), BF16, CUDA, JORDAN) == "fast-2"


def test_measuring_leaves_the_random_numbers_of_a_run_alone(gpu: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    choose((4, 8, 16), BF16, CUDA, JORDAN)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_an_iteration_compiles_whole() -> None:
    compiled = torch.compile(newton_schulz, backend="eager", fullgraph=True)
    for shape in ((2, 16, 48), (2, 24, 24)):
        X = draw(*shape)
        assert distance(compiled(X), newton_schulz(X)) < 1e-5


@pytest.mark.parametrize(
    ("backend", "dtype", "message"),
    [
        ("tritn", F32, "ns_backend='tritn': must be one of auto, plain, gram, triton$"),
        ("gram", BF16, "ns_backend='gram': not for torch.bfloat16 on cpu.*auto or plain"),
        ("triton", F64, "ns_backend='triton': not for torch.float64"),
        ("triton", F32, "ns_backend='triton': not for torch.float32 on cpu"),
    ],
)
def test_a_backend_that_cannot_be_is_refused(
    backend: str, dtype: torch.dtype, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symmetric, "interpreted", lambda: False)  # an ordinary CPU
    with pytest.raises(ValueError, match=message):
        Muon([nn.Parameter(torch.zeros(8, 16))], ns_dtype=dtype, ns_backend=backend)


def test_a_tile_that_does_not_fit_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symmetric, "interpreted", lambda: False)
    applies = {name: b.applies for name, b in muon.BACKENDS.items() if name.startswith("triton")}
    for major, shared, fit in (
        (9, 227 * 1024, ["triton-64", "triton-128"]),
        (8, 99 * 1024, ["triton-64", "triton-128"]),
        (8, 72 * 1024, ["triton-64"]),
        (7, 96 * 1024, []),
    ):
        gpu = type("Properties", (), dict(major=major, shared_memory_per_block_optin=shared))
        gpu.shared_memory_per_block = 48 * 1024  # type: ignore[attr-defined]
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, gpu=gpu: gpu)
        assert [n for n, applies in applies.items() if applies(CUDA, BF16, JORDAN)] == fit


def test_only_tiles_on_or_above_the_diagonal_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    grids: list[tuple[int, int]] = []

    class Kernel:
        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            grids.append(grid)
            return lambda *args, **options: None

    monkeypatch.setattr(symmetric, "_product", Kernel())
    product(torch.zeros(2, 768, 1), TILES[1])
    product(torch.zeros(2, 769, 1), TILES[0])
    assert grids == [(21, 2), (91, 2)]  # of 36 and 169


@runs_kernel
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_the_bench_compares_every_backend_that_applies(dtype: torch.dtype) -> None:
    rows = rows_of("none", (1, 8, 32), dtype, DEVICE, rounds=1)
    gram = ["gram"] if dtype == F32 else []  # bfloat16 rounds too much for it
    assert [row["backend"] for row in rows] == ["plain", *gram, "triton-64", "triton-128"]
    assert sum(row["auto"] == "yes" for row in rows) == 1
    assert all(float(row["off plain by"]) < 0.05 for row in rows)


@pytest.mark.slow
def test_no_file_of_the_optimizers_changes_muon_when_it_is_imported() -> None:
    program = (
        "import muon, optim, torch; optim.recipes()\n"
        "assert list(muon.BACKENDS) == ['plain', 'gram'], muon.BACKENDS\n"
        "from model import GPT; from layers.config import preset\n"
        "roles = GPT(preset('tiny', 37, 8)).roles()\n"
        "optim.plan(roles, 'adamw', {}, torch.float32)\n"
        "assert len(muon.BACKENDS) == 2\n"
        "optim.plan(roles, 'muon', {}, torch.float32)\n"
        "assert list(muon.BACKENDS) == ['plain', 'gram', 'triton-64', 'triton-128']\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)


def test_the_kernels_are_part_of_the_program_that_a_row_names() -> None:
    assert "def _product(" in provenance.program_text()
