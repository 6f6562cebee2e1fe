"""Seconds of matrix products: a roofline of arithmetic, memory and launches.

    python -m planner time deepseek-v4 --curve h800-published

A product takes the longest of three times: its FLOPs at what the machine delivers for that size,
its bytes at the memory's bandwidth, and its launch. What a machine delivers for a size is a curve
of shares of its peak. `names()` lists the curves: measured here on a GPU and on processors, or
published. A batch of K equal products counts as one product of K times the volume, and a product of
any shape as the cube of the same volume; `measured_time.py` says how far that is off.
"""

import csv
import difflib
import math
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from errors import UserError
from host import paths
from planner.cluster.hardware import GPU, GPUS
from planner.time.newton_schulz import Iteration

PRODUCTS = ("X X^T", "a X + B X")  # of bench/products.py
LAUNCH_SECONDS = 5e-6  # of a kernel on a GPU, assumed
PUBLISHED = Path(__file__).parents[1] / "curves.toml"
GPU_RECORDS, RECORDS = paths.RESULTS / "gpu", paths.RESULTS / "records"


@dataclass(frozen=True)
class Curve:
    """The share of the peak that a square product of a size gets."""

    name: str
    source: str
    points: tuple[tuple[float, float], ...]  # (side, share), by rising side
    measured_from: float = math.inf  # points at smaller sides are assumed
    # (side, how much faster a kernel is that computes half of a symmetric product); 2: the ceiling.
    gains: tuple[tuple[float, float], ...] = ((1.0, 2.0),)
    launch_seconds: float = LAUNCH_SECONDS
    in_turn: bool = False  # a launch is not hidden behind the product before it, as on a CPU
    number_bytes: int = 2  # of an operand
    machine: GPU | None = None  # that it was measured on, where `GPUS` does not have it

    def share(self, side: float) -> float:
        """At a side: linear in its logarithm; constant above all points, proportional below."""
        return _at(self.points, side) * min(1.0, side / self.points[0][0])

    def gain(self, side: float) -> float:
        """How much faster a kernel is that computes half: as `share`, but constant below, too."""
        return _at(self.gains, side)


def _at(points: Sequence[tuple[float, float]], side: float) -> float:
    """Linear in the logarithm of the side; constant beyond both ends."""
    for (left, low), (right, high) in pairwise(points):
        if side <= right:
            return low + max(0.0, math.log(side / left)) / math.log(right / left) * (high - low)
    return points[-1][1]


# Near what an H800 is published to get, in round numbers; no measurement.
ASSUMED = Curve(
    "assumed", "assumed", ((1024, 0.2), (2048, 0.4), (4096, 0.5), (8192, 0.6)),
    gains=((1024, 1.0), (2048, 1.2), (4096, 1.6)),
)  # fmt: skip
BOUNDS = ("arithmetic", "memory", "launches")


class Cost(NamedTuple):
    """What a batch of orthogonalisations takes on one rank."""

    seconds: float
    bound: str  # one of BOUNDS: what most of the seconds are spent on
    flops: float
    moved_bytes: float


def orthogonalisation(
    gpu: GPU, iteration: Iteration, m: int, n: int, batch: int, curve: Curve = ASSUMED
) -> Cost:
    """What the products take for `batch` matrices of sides m <= n in one batch.

    Norms, momentum and the update of the weights come on top.
    """
    spent = dict.fromkeys(BOUNDS, 0.0)
    flops = moved_bytes = 0.0
    for product in iteration.products(m, n):
        side = (batch * product.volume) ** (1 / 3)
        moved = batch * product.moved_numbers * curve.number_bytes
        arithmetic = batch * 2 * product.volume / (curve.share(side) * gpu.peak_flops)
        if product.half:
            arithmetic /= curve.gain(side)
        each = dict(
            zip(
                BOUNDS,
                (arithmetic, moved / gpu.memory_bytes_per_s, curve.launch_seconds),
                strict=True,
            )
        )
        longest = max(each, key=lambda name: each[name])
        seconds = each[longest]
        if curve.in_turn:
            seconds = max(each["arithmetic"], each["memory"]) + each["launches"]
        spent[longest] += product.times * seconds
        flops += product.times * batch * product.flops
        moved_bytes += product.times * moved
    most = max(spent, key=lambda name: spent[name])
    return Cost(sum(spent.values()), most, flops, moved_bytes)


def orthogonalise_seconds(
    gpu: GPU, iteration: Iteration, m: int, n: int, batch: int, curve: Curve = ASSUMED
) -> float:
    """Seconds for `batch` matrices of sides m <= n in one batch."""
    return orthogonalisation(gpu, iteration, m, n, batch, curve).seconds


# ---- Curves ------------------------------------------------------------------------------------


@cache
def curves() -> dict[str, Curve]:
    """Every curve that a plan can take, by its name."""
    found = [ASSUMED, *_published(), *_of_gpus(), *_of_processors()]
    return {curve.name: curve for curve in found}


def load(name: str) -> Curve:
    """The curve of a name. Raises UserError for an unknown one."""
    if name not in curves():
        near = difflib.get_close_matches(name, curves(), 1)
        hint = f"did you mean {near[0]}?" if near else "run with --curve assumed"
        raise UserError(f"--curve {name}: must be one of {', '.join(curves())}; {hint}")
    return curves()[name]


AUTO = "auto"  # the curve of the GPU itself
CURVE_HELP = "efficiency of products by size; auto: the GPU's, or else assumed"
LAUNCH_HELP = "microseconds of a launch; 0: the curve's, for a GPU 5, assumed"


def chosen(gpu: str, curve: str = AUTO, launch_us: float = 0.0) -> Curve:
    """The curve of a plan. launch_us: microseconds of a launch; 0: the curve's own.

    Raises UserError for an unknown curve, and for a launch that takes less than no time.
    """
    if not 0 <= launch_us < math.inf:
        raise UserError(f"--launch-us {launch_us}: must be 0 or more; or leave it out")
    found = of_gpu(gpu) if curve == AUTO else load(curve)
    return replace(found, launch_seconds=launch_us / 1e6) if launch_us else found


def of_gpu(gpu: str) -> Curve:
    """The curve of a GPU of `GPUS`: measured, else published, else assumed."""
    alike = {"h100": "h800"}.get(gpu, gpu)  # an H800 is an H100 with slower links
    for name in (alike, f"{alike}-published"):
        if name in curves():
            return curves()[name]
    return ASSUMED


def _published() -> Iterator[Curve]:
    """The curves of curves.toml, of one product X X^T of a square X."""
    table = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))
    for gpu, each in table["gpus"].items():
        ms = {float(side): pair for side, pair in each["ms"].items()}
        points = tuple(
            (side, 2 * side**3 / (full / 1e3) / each["peak_flops"])
            for side, (full, _) in ms.items()
        )
        gains = tuple((side, full / half) for side, (full, half) in ms.items())
        yield Curve(f"{gpu}-published", table["source"], points, points[0][0], gains)


class Iterated(NamedTuple):
    """A measured iteration on `batch` matrices (m, n)."""

    batch: int
    m: int
    n: int
    backend: str  # plain, gram, or a kernel that computes half of what is symmetric
    seconds: float

    @property
    def iteration(self) -> Iteration:
        """As the plan has it: five steps, as the benches take."""
        form = "gram" if self.backend == "gram" else "plain"
        return Iteration(ns_form=form, symmetric=self.backend.startswith("triton"))

    @property
    def flops(self) -> float:
        return self.batch * self.iteration.flops(self.m, self.n)

    @property
    def side(self) -> float:
        """Of the cube that has the mean volume of its products."""
        products = self.iteration.products(self.m, self.n)
        volume = sum(each.times * each.volume for each in products)
        return (self.batch * volume / sum(each.times for each in products)) ** (1 / 3)

    def halves(self, plain: "Iterated") -> bool:
        """Whether it is the same with kernels that compute half."""
        return self.iteration.symmetric and self[:3] == plain[:3]

    def gain(self, seconds: float) -> float:
        """How much faster the symmetric products are, if the whole takes `seconds` with kernels
        that compute half of them, and the others take as long as before."""
        half = replace(self.iteration, symmetric=True).products(self.m, self.n)
        whole = sum(each.times * each.volume for each in half)
        symmetric = sum(each.times * each.volume for each in half if each.half) / whole
        return symmetric / (seconds / self.seconds - 1 + symmetric)


def iterated(batch: str, backend: str, seconds: float) -> Iterated:
    """From the words of a bench, such as "48 x 768 x 768"."""
    K, m, n = map(int, batch.split(" x "))
    return Iterated(K, m, n, backend, seconds)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def gpu_records() -> dict[str, Path]:
    """The newest measurement of each GPU of `GPUS` in results/gpu/."""
    found = {}
    for path in sorted(GPU_RECORDS.glob("*/measures.csv")):
        gpu = path.parent.name.rpartition("-")[2]
        if gpu in GPUS:
            found[gpu] = path
    return found


def gpu_iterations(path: Path) -> list[Iterated]:
    """The iterations of Newton-Schulz that a measurement of a GPU has."""
    found = []
    for row in read_rows(path):
        if row["part"] == "newton_schulz" and row["quantity"] == "bfloat16 iteration":
            batch, backend = row["case"].removesuffix(" (Muon takes it)").split(", ")
            found.append(iterated(batch, backend, float(row["value"]) / 1e3))
    return found


def _of_gpus() -> Iterator[Curve]:
    """Two points from whole iterations and one from a square product. The rest is assumed: it has
    the shape of the published curve of an H800."""
    shape = next(curve for curve in _published() if curve.name == "h800-published")
    for gpu, path in gpu_records().items():
        (square,) = (row for row in read_rows(path) if row["quantity"] == "bfloat16 peak")
        points = {float(square["case"].partition(" x ")[0]): float(square["value"]) * 1e12}
        gains = {}
        iterations = gpu_iterations(path)
        for plain in (each for each in iterations if each.backend == "plain"):
            points[plain.side] = plain.flops / plain.seconds
            halves = [each.seconds for each in iterations if each.halves(plain)]
            if halves:
                gains[plain.side] = plain.gain(min(halves))
        measured_from, lowest = min(points.items())
        scale = lowest / shape.share(measured_from)
        points |= {at: share * scale for at, share in shape.points if at < measured_from}
        gains |= {at: gain for at, gain in shape.gains if not min(gains) <= at <= max(gains)}
        source = f"results/gpu/{path.parent.name}; below {measured_from:,.0f}, and of kernels that "
        source += f"compute half beyond what is measured: assumed, the shape of {shape.source}"
        peak = GPUS[gpu].peak_flops
        shares = tuple((at, rate / peak) for at, rate in sorted(points.items()))
        yield Curve(gpu, source, shares, measured_from, tuple(sorted(gains.items())))


def products_records() -> list[Path]:
    """The measurements of bench/products.py that are committed."""
    return sorted(RECORDS.glob("products-*/products.csv"))


def _of_processors() -> Iterator[Curve]:
    """A curve for each precision and number of threads of each measurement."""
    for path in products_records():
        rows = read_rows(path)
        for dtype, threads in dict.fromkeys((row["dtype"], row["threads"]) for row in rows):
            name = f"{path.parent.name}/{dtype}/{threads}"
            yield processor_curve(
                name, [row for row in rows if (row["dtype"], row["threads"]) == (dtype, threads)]
            )


def processor_curve(name: str, rows: Sequence[dict[str, str]]) -> Curve:
    """The curve of the square products, of one matrix at a time, in one precision.

    The time of the smallest product counts as a launch; a product takes it and the time of its
    arithmetic. The peak is the best of all products, and the bandwidth that of a copy. A step of
    Newton-Schulz has one product of the first kind and two of the second: so has the mean.
    """
    products = [row for row in rows if row["product"] in PRODUCTS]
    mean: dict[int, float] = {}
    for row in products:
        if row["batch"] == "1" and row["m"] == row["n"]:
            part = 1 / 3 if row["product"] == PRODUCTS[0] else 2 / 3
            mean[int(row["m"])] = mean.get(int(row["m"]), 0.0) + part * float(row["ms"]) / 1e3
    launch = mean[min(mean)]
    peak = max(float(row["GFLOP/s"]) * 1e9 for row in products)
    points = tuple(
        (float(side), min(1.0, 2 * side**3 / (each - launch) / peak))
        for side, each in sorted(mean.items())
        if each > 1.5 * launch
    )
    copied = next(float(row["GB/s"]) * 1e9 for row in rows if row["product"] == "copy")
    number_bytes = {"float32": 4, "bfloat16": 2}[rows[0]["dtype"]]
    on_gpu = "," not in rows[0]["device"]  # a processor's name ends with its cores
    curve = Curve(
        name, f"results/records/{name.partition('/')[0]}/products.csv", points,
        measured_from=points[0][0], launch_seconds=launch, number_bytes=number_bytes,
        machine=GPU(rows[0]["device"], peak, 0, copied),
    )  # fmt: skip
    return curve if on_gpu else replace(curve, in_turn=True)
