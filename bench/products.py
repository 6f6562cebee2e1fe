"""Matrix products of Newton-Schulz's shapes at many sizes: what a machine delivers of its peak.

    python -m bench.products    # under two minutes on two CPU cores, seconds on a GPU

In each precision, on a CPU also on one thread alone: X X^T and a X + B X of square matrices and of
matrices four times as wide as high, one at a time and 16 in a batch; whole iterations; and a copy,
for the memory's bandwidth. All of one precision take turns in one process. Small products repeat in
a turn until it takes a millisecond, so a time is the time of one in a row of many. GFLOP/s counts
the FLOPs of the published form. GB/s counts each operand and each result once.

The planner reads the CSV (`planner/time/efficiency.py`): its curves of efficiency against size are
the square products, and it is compared with the iterations.
"""

import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bench import Row, environment, medians, precisions, run, write
from host.cores import cores
from muon import BACKENDS, COEFFICIENTS, candidates
from optim import kernels
from runtime import machine

WIDE, BATCH = 4, 16
ROUNDS = 5
TURN_SECONDS = 1e-3  # that a turn takes at least
TURN_FLOPS = 4e10  # that a turn on a CPU takes at most: one product of 2048, or a batch
COPIED_BYTES = 2**28  # more than a processor's caches hold
GRAM, ADDED, ITERATION = "X X^T", "a X + B X", "Newton-Schulz"
ABC = COEFFICIENTS["jordan"] * 5
ITERATED = ((16, 128, 128), (8, 128, 512), (1, 512, 512), (1, 512, 2048), (2, 768, 768))


class Case(NamedTuple):
    """What is measured: a product or a copy, of a batch of K matrices (m n)."""

    product: str
    K: int
    m: int
    n: int

    @property
    def flops(self) -> float:
        """Of the published form."""
        per_step = 4 * self.n * self.m**2 + 2 * self.m**3
        if self.product.startswith(ITERATION):
            return self.K * len(ABC) * per_step
        return 0 if self.product == "copy" else self.K * 2 * self.n * self.m**2

    @property
    def moved(self) -> int:
        """Numbers that are read and written, each once."""
        m, n = self.m, self.n
        if self.product.startswith(ITERATION):
            return self.K * len(ABC) * (3 * m * n + 4 * m**2)
        return self.K * {GRAM: m * n + m**2, ADDED: m**2 + 2 * m * n}.get(self.product, 2 * m * n)


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    """All that is measured in one precision."""
    largest = 8192 if device.type == "cuda" else 2048
    sides = [16 * 2**i for i in range(largest.bit_length() - 4)]
    shapes = [(K, m, m * wide) for m in sides for wide in (1, WIDE) for K in (1, BATCH)]
    found = [Case(name, *shape) for shape in shapes for name in (GRAM, ADDED)]
    number_bytes = torch.empty(0, dtype=dtype).element_size()
    found = [
        case
        for case in found
        if max(case.n, case.K * case.m) <= 2 * largest
        and case.moved * number_bytes < 2**32
        and (device.type == "cuda" or case.flops <= TURN_FLOPS)
    ]
    found += [
        Case(f"{ITERATION}, {name}", *shape)
        for shape in ITERATED
        for name in candidates(dtype, device, ABC, "auto")
    ]
    side = int((COPIED_BYTES / number_bytes) ** 0.5)
    return [*found, Case("copy", 1, side, side)]


def work_of(case: Case, dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """A function that does the work of a case once."""
    K, m, n = case.K, case.m, case.n
    X = torch.randn(K, m, n, generator=torch.Generator().manual_seed(0)).to(device)
    X = (X / torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)).to(dtype)
    if case.product.startswith(ITERATION):
        return partial(BACKENDS[case.product.removeprefix(f"{ITERATION}, ")].iterate, X, ABC)
    if case.product == "copy":
        return partial(torch.empty_like(X).copy_, X)
    if case.product == GRAM:
        return partial(torch.bmm, X, X.mT) if K > 1 else partial(torch.mm, X[0], X[0].mT)
    B = X[..., :m].contiguous()
    if K > 1:
        return partial(torch.baddbmm, X, B, X, beta=2.0)
    return partial(torch.addmm, X[0], B[0], X[0], beta=2.0)


def repeated(work: Callable[[], object], times: int, device: torch.device) -> None:
    """Do the work several times, and wait for it."""
    for _ in range(times):
        work()
    machine.synchronize(device)


def rows_of(dtype: torch.dtype, device: torch.device, rounds: int) -> list[Row]:
    """Measure all cases of a precision, on as many threads as torch uses now; a row for each."""
    return list(_rows(cases(device, dtype), dtype, device, rounds))


def _rows(
    chosen: Iterable[Case], dtype: torch.dtype, device: torch.device, rounds: int
) -> Iterable[Row]:
    contenders, repeats = {}, {}
    for case in chosen:
        work = work_of(case, dtype, device)
        repeated(work, 2, device)  # warms up
        begun = time.perf_counter()
        repeated(work, 2, device)
        once = (time.perf_counter() - begun) / 2
        repeats[case] = max(1, round(TURN_SECONDS / once))
        contenders[case] = partial(repeated, work, repeats[case], device)
    number_bytes = torch.empty(0, dtype=dtype).element_size()
    for case, turn_ms in medians(contenders, rounds).items():
        ms = turn_ms / repeats[case]
        yield {
            "product": case.product,
            "batch": case.K,
            "m": case.m,
            "n": case.n,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "ms": f"{ms:.4g}",
            "GFLOP/s": f"{case.flops / ms / 1e6:.4g}" if case.flops else "",
            "GB/s": f"{case.moved * number_bytes / ms / 1e6:.3g}",
        }


def measure_all() -> None:
    """Measure, and write the rows."""
    device, rows = machine.local_device(), []
    kernels.register()
    machine.keep_memory()  # as a run does
    threads = sorted({1, cores()}) if device.type == "cpu" else [torch.get_num_threads()]
    torch.set_num_threads(threads[-1])
    for name in precisions(device):
        for count in threads:
            torch.set_num_threads(count)
            rows += rows_of(getattr(torch, name), device, ROUNDS)
    measured_on = environment(device)
    del measured_on["threads"]  # each row says its own
    write("products", rows, measured_on)


def main() -> int:
    """Run the command; its exit code."""
    return run("products", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
