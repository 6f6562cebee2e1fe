"""Seconds of collectives over gloo on this machine, and the latency and bandwidth that they give.

    python -m bench.links          # half a minute; nothing else may run on the machine

Two and four processes of one thread each take turns at every collective and size. Each computes for
some milliseconds before, as in a training step: so caches are cold, threads sleep, and processes
are late for each other as they are there. A time is what the process that was last took with the
collective, less what processes take on average without it; medians over rounds. The fit is that of
planner/step/links.py.
"""

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bench import FOLDER, environment, run, write
from engines._watch import stay_local
from errors import UserError
from host import paths
from planner.step.links import MESSAGES, fit, largest_error, transfer
from runtime import machine
from tracking import store
from tracking.schema import LinkTime

PROCESSES = (2, 4)
SIZES = tuple(4**k for k in range(6, 13, 2))  # bytes: 4 KiB, 64 KiB, 1 MiB, 16 MiB
ROUNDS = 15
SIDE, PRODUCTS = 512, 4  # of what is computed before a collective: about ten milliseconds
ALONE = ("none", 0)
LEAST = 1e-5  # seconds, which a clock may take for less
TABLE = "links.csv"
# torch 2.13 has new names for these, and warns of the old ones, which torch 2.11 has.
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def collectives(whole: Tensor, part: Tensor, other: Tensor) -> dict[str, Callable[[], object]]:
    """Each collective on these tensors. part: this process's share of `whole`; other: as large."""
    found = {
        "all-reduce": lambda: dist.all_reduce(whole),
        "reduce-scatter": lambda: _scatter(part, whole),
        "all-gather": lambda: _gather(whole, part),
        "all-to-all": lambda: dist.all_to_all_single(other, whole),
    }
    assert found.keys() == MESSAGES.keys()
    return found


def measure_here() -> dict[tuple[str, int], float]:
    """In each of several processes: seconds of each collective and size."""
    n, factor = dist.get_world_size(), torch.full((SIDE, SIDE), 1 / SIDE)
    contenders: dict[tuple[str, int], Callable[[], object]] = {ALONE: lambda: None}
    for size in SIZES:
        whole = torch.zeros(size // 4 // n * n)
        made = collectives(whole, torch.zeros(len(whole) // n), torch.zeros_like(whole))
        contenders |= {(name, size): each for name, each in made.items()}
    times: dict[tuple[str, int], list[float]] = {each: [] for each in contenders}
    for number in range(-1, ROUNDS):
        for each in list(contenders) if number % 2 else reversed(list(contenders)):
            dist.barrier()
            begun = time.perf_counter()
            for _ in range(PRODUCTS):
                factor @ factor
            contenders[each]()
            seconds = torch.tensor([time.perf_counter() - begun], dtype=torch.float64)
            dist.all_reduce(seconds, dist.ReduceOp.SUM if each == ALONE else dist.ReduceOp.MAX)
            if number >= 0:
                times[each].append(seconds.item() / (n if each == ALONE else 1))
    found = {each: statistics.median(values) for each, values in times.items()}
    alone = found.pop(ALONE)
    return {each: max(LEAST, seconds - alone) for each, seconds in found.items()}


def work(path: Path) -> None:
    """In each of several processes: measure, and let the first one write the rows."""
    torch.set_num_threads(1)
    stay_local()
    dist.init_process_group("gloo")
    seconds, rank, n = measure_here(), dist.get_rank(), dist.get_world_size()
    dist.destroy_process_group()
    device = machine.device_name(torch.device("cpu"))
    for (name, size), each in seconds.items() if rank == 0 else ():
        row = LinkTime(name, n, size, float(f"{each:.4g}"), 1, device, torch.__version__)
        store.append(path, row)


def measure(path: Path, processes: Sequence[int] = PROCESSES) -> list[LinkTime]:
    """Append the times on each number of processes to a table; all its rows. Raises UserError."""
    for n in processes:
        command = [
            sys.executable, "-m", "torch.distributed.run",
            "--standalone", "--local-addr=127.0.0.1", f"--nproc_per_node={n}",
            "--module", "bench.links", str(path),
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=paths.PROJECT, env=environment)
        if done.returncode:
            raise UserError(f"{n} processes ended with exit code {done.returncode}, see above")
    return store.read(path, LinkTime)


def measure_all() -> None:
    """Measure, and write the rows."""
    path = FOLDER / TABLE
    path.unlink(missing_ok=True)
    measured = measure(path)
    names = [each.name for each in fields(LinkTime) if each.name not in ("threads", "device")]
    rows = [{name: getattr(row, name) for name in names} for row in measured]
    write("links", rows, environment(torch.device("cpu")))
    for n in PROCESSES:
        alike = [transfer(r.collective, n, r.size_bytes, r.seconds) for r in measured
                 if r.processes == n]  # fmt: skip
        link = fit(alike)
        print(
            f"{n} processes: {1e6 * link.latency_s:.0f} us a message, "
            f"{link.bytes_per_s / 1e9:.2f} GB/s, at most {largest_error(link, alike):.0%} off"
        )


def main() -> int:
    """Run the command; its exit code."""
    if "RANK" in os.environ:
        work(Path(sys.argv[1]))
        return 0
    return run("links", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
