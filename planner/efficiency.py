"""Seconds of matrix products: a roofline of arithmetic, memory and launches.

A product takes the longest of three times: its FLOPs at what the machine delivers for that size,
its bytes at the memory's bandwidth, and its launch. What the machine delivers for a size is a
measured curve (`CURVES`), relative to the peak; between measured sizes it is interpolated.
"""

import math
from dataclasses import dataclass

from planner.hardware import GPU
from planner.newton_schulz import Iteration

LAUNCH_SECONDS = 5e-6  # of a kernel on a GPU, assumed


@dataclass(frozen=True)
class Curve:
    """The share of the peak that a square product of a size gets."""

    name: str
    source: str
    points: tuple[tuple[float, float], ...]  # (side, share), by rising side

    def share(self, side: float) -> float:
        """At a side: linear in its logarithm, and constant beyond both ends."""
        sides = [math.log(s) for s, _ in self.points]
        shares = [share for _, share in self.points]
        x = math.log(side)
        if x <= sides[0]:
            return shares[0]
        for i in range(1, len(sides)):
            if x <= sides[i]:
                part = (x - sides[i - 1]) / (sides[i] - sides[i - 1])
                return shares[i - 1] + part * (shares[i] - shares[i - 1])
        return shares[-1]


ASSUMED = Curve("assumed", "assumed", ((256, 0.1), (1024, 0.35), (4096, 0.65)))


def orthogonalise_seconds(
    gpu: GPU, iteration: Iteration, m: int, n: int, batch: int, curve: Curve = ASSUMED
) -> float:
    """Seconds for `batch` matrices of sides m <= n in one batch, in bfloat16."""
    flops = batch * iteration.flops(m, n)
    side = (m * m * n * batch) ** (1 / 3)
    launches = 3 * iteration.steps
    moved = launches * 2 * batch * (2 * m * n + m * m)  # read and written, in 16 bits
    return max(
        flops / (curve.share(side) * gpu.peak_flops),
        moved / gpu.memory_bytes_per_s,
        launches * LAUNCH_SECONDS,
    )
