"""Predicted seconds of whole orthogonalisations beside measured ones.

    from planner.time import measured_time
    measured_time.rows()

A processor's curve comes from single square products alone, so its rows test all of the roofline.
A GPU's curve comes from the plain iterations themselves, and the gain of its symmetric kernels from
the fastest of them: these rows show what the curve smooths, and are marked. Rows of whole optimizer
steps hold momentum and the update of the weights too, which the prediction leaves out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from planner.cluster.hardware import GPU, GPUS
from planner.time import efficiency
from planner.time.efficiency import Curve, Iterated, iterated, load, orthogonalisation, read_rows
from planner.time.newton_schulz import Iteration

OWN = "the curve is made of it"
WHOLE_STEP = "measured with momentum and the update"
OTHER = "curve of another processor at this one's peak"
BENCHES = efficiency.RECORDS
TINY = ("16 x 128 x 128", "8 x 128 x 512")  # the hidden matrices of the track tiny
GPT2 = ("48 x 768 x 768", "24 x 768 x 3072")


class Row(NamedTuple):
    """One measurement and its prediction."""

    record: str  # folder in results/
    machine: str
    what: str
    measured_seconds: float
    predicted_seconds: float
    bound: str  # what the prediction is bound by
    note: str = ""

    @property
    def error(self) -> float:
        """How much longer the prediction is than the measurement, as a share of this."""
        return self.predicted_seconds / self.measured_seconds - 1


def rows() -> list[Row]:
    """A row for each committed measurement."""
    return [*_of_gpus(), *_of_processors(), *_of_benches()]


def predicted(gpu: GPU, curve: Curve, measured: Iterated) -> tuple[float, str]:
    """Seconds, and what they are bound by."""
    cost = orthogonalisation(gpu, measured.iteration, measured.m, measured.n, measured.batch, curve)
    return cost.seconds, cost.bound


def _row(record: str, gpu: GPU, curve: Curve, measured: Iterated, note: str = "") -> Row:
    what = f"{measured.batch} x {measured.m} x {measured.n}, {measured.backend}"
    seconds, bound = predicted(gpu, curve, measured)
    return Row(record, gpu.name, what, measured.seconds, seconds, bound, note)


def _of_gpus() -> Iterator[Row]:
    for name, path in efficiency.gpu_records().items():
        record, gpu, curve = f"gpu/{path.parent.name}", GPUS[name], load(name)
        iterations = efficiency.gpu_iterations(path)
        fastest: dict[tuple[int, int, int, Iteration], float] = {}
        for each in iterations:
            key = each.batch, each.m, each.n, each.iteration
            fastest[key] = min(fastest.get(key, each.seconds), each.seconds)
        for each in iterations:
            own = each.seconds == fastest[each.batch, each.m, each.n, each.iteration]
            yield _row(record, gpu, curve, each, OWN if own else "")
        steps = {
            row["case"]: float(row["value"]) / 1e3
            for row in read_rows(path)
            if row["part"] == "optimizer_step"
        }
        batches = [iterated(batch, "triton", 0.0) for batch in GPT2]
        alone = [each._replace(batch=1) for each in batches for _ in range(each.batch)]
        for case, parts in (("Muon", batches), ("Muon, a matrix at a time", alone)):
            if case in steps:
                yield _sum(record, gpu, curve, f"optimizer step: {case}", steps[case], parts)


def _sum(
    record: str, gpu: GPU, curve: Curve, what: str, seconds: float, parts: list[Iterated],
    note: str = WHOLE_STEP,
) -> Row:  # fmt: skip
    each = [predicted(gpu, curve, part) for part in parts]
    longest = max(each)[1]
    return Row(record, gpu.name, what, seconds, sum(time for time, _ in each), longest, note)


def _of_processors() -> Iterator[Row]:
    for path in efficiency.products_records():
        for row in read_rows(path):
            product, _, backend = row["product"].partition(", ")
            if product != "Newton-Schulz":
                continue
            curve = load(f"{path.parent.name}/{row['dtype']}/{row['threads']}")
            batch = f"{row['batch']} x {row['m']} x {row['n']}"
            measured = iterated(batch, backend, float(row["ms"]) / 1e3)
            assert curve.machine is not None
            found = _row(f"records/{path.parent.name}", curve.machine, curve, measured)
            threads = "thread" if row["threads"] == "1" else "threads"
            yield found._replace(what=f"{found.what}, {row['dtype']}, {row['threads']} {threads}")


def _of_benches() -> Iterator[Row]:
    """Of earlier benches on processors: their iterations, and the whole step on `tiny`."""
    for path in sorted(BENCHES.glob("bench-*/optimizer_step.csv")):
        steps = read_rows(path)
        curve, note = _curve_for(steps[0], "float32")
        if curve is None or curve.machine is None:
            continue
        record, gpu = f"records/{path.parent.name}", curve.machine
        if note:
            gpu = gpu._replace(
                name=steps[0]["device"], peak_flops=_peak(path.with_name("step.csv"))
            )
        iterations = path.with_name("newton_schulz.csv")
        for row in read_rows(iterations) if iterations.exists() else []:
            measured = iterated(row["batch"], row["backend"], float(row["ms"]) / 1e3)
            found = _row(record, gpu, curve, measured, note)
            yield found._replace(what=f"{found.what}, {row['dtype']}, {row['threads']} threads")
        for step in steps:
            if step["step"] == "Muon":
                backends = ("plain", "gram")  # as Muon chooses on these
                parts = [iterated(*each, 0.0) for each in zip(TINY, backends, strict=True)]
                notes = "; ".join(filter(None, (WHOLE_STEP, note)))
                what = f"optimizer step on tiny, float32, {step['threads']} threads"
                yield _sum(record, gpu, curve, what, float(step["ms"]) / 1e3, parts, notes)


def _curve_for(row: dict[str, str], dtype: str) -> tuple[Curve | None, str]:
    """The curve of the machine that a row is from, else the one of another, and a note if so."""
    same = f"/{dtype}/{row['threads']}"
    found = [curve for name, curve in efficiency.curves().items() if name.endswith(same)]
    for curve in found:
        if curve.machine is not None and curve.machine.name == row["device"]:
            return curve, ""
    return (found[0] if found else None), OTHER


def _peak(path: Path) -> float:
    """FLOP/s of a large product in float32, as the bench of the whole step measured it."""
    return max(float(row["peak GFLOP/s"]) * 1e9 for row in read_rows(path))
