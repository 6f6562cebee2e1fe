"""The Newton-Schulz iteration: the time of every backend that applies on this machine.

    python -m bench.newton_schulz    # three minutes on two CPU cores, seconds on a GPU

Five steps on the batches that Muon forms from the hidden matrices of a track, in the precision that
the trainer takes on this machine (`--dtype auto`; the column "dtype" says which). The backends take
turns in one process, and a time is the median of whole calls. TFLOP/s counts the FLOPs of the
published form for all backends, so it may exceed a GPU's peak where a backend computes less. The
column "auto" marks the backend that Muon takes by itself.
"""

import sys
from functools import partial

import torch
from torch import Tensor

from bench import Row, environment, medians, run, write
from host.cores import cores
from muon import BACKENDS, COEFFICIENTS, Coefficients, candidates, choose
from optim import kernels
from runtime import machine
from speedrun import choose_dtype

# (K, m, n): query, key, value and projection of all layers; both matrices of all MLPs.
BATCHES = {
    "tiny": ((16, 128, 128), (8, 128, 512)),
    "gpt2": ((48, 768, 768), (24, 768, 3072)),
}
ABC: Coefficients = COEFFICIENTS["jordan"] * 5


def rows_of(
    track: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: torch.device,
    rounds: int,
) -> list[Row]:
    """Time each backend on one batch of this shape (K m n), in this precision; a row for each."""
    kernels.register()
    K, m, n = shape
    X = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device)
    X = (X / torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)).to(dtype)
    flops = len(ABC) * K * (4 * n * m**2 + 2 * m**3)

    def run(name: str) -> Tensor:
        out = BACKENDS[name].iterate(X, ABC)
        machine.synchronize(device)
        return out

    names = candidates(dtype, device, ABC, "auto")
    plain = run("plain").float()
    ms = medians({name: partial(run, name) for name in names}, rounds)
    auto = choose(shape, dtype, device, ABC)
    return [
        {
            "track": track,
            "batch": f"{K} x {m} x {n}",
            "dtype": str(dtype).removeprefix("torch."),
            "backend": name,
            "ms": f"{ms[name]:.4g}",
            "times plain": f"{ms[name] / ms['plain']:.2f}x",
            "TFLOP/s": f"{flops / ms[name] / 1e9:.3g}",
            "off plain by": f"{float((run(name).float() - plain).norm() / plain.norm()):.1e}",
            "auto": "yes" if name == auto else "",
        }
        for name in names
    ]


def measure_all() -> None:
    """Measure, and write the rows."""
    device = machine.local_device()
    torch.set_num_threads(cores())
    dtype = choose_dtype("auto", device, width=768)
    rows = []
    for track, batches in BATCHES.items():
        rounds = 15 if track == "tiny" or device.type == "cuda" else 3
        for shape in batches:
            rows += rows_of(track, shape, dtype, device, rounds)
    write("newton_schulz", rows, environment(device))


def main() -> int:
    """Run the command; its exit code."""
    return run("newton_schulz", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
