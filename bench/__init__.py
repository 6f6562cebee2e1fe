"""Measurements of speed: each times several alternatives in turn, in one process.

    make bench                     # all but the last two; nothing else may run on the machine
    make bench RECORD=bench-amx    # and keep the tables in that folder of results/records/
    make bench-disturbed           # whole races, alone and beside other work
    make bench-coverage            # a simulation, which times nothing
    make agreement                 # our update rules beside those of libraries; times nothing

`bench.kernels` times nothing either: it reads what GPUs would run.

Each writes its rows to results/bench/<name>.csv. Each row of a measurement names the machine, each
row of `bench.kernels` the compiler.
The measurements that docs/performance.md shows are in two records: bench-amx, of a processor with
bfloat16 units, and bench-epyc, of one without. `bench.products` is in products-amx, from which the
planner takes its curve of this processor; `bench.links` is part of `make planned`.
"""

import host.interpreter  # noqa: F401  # isort: skip

import argparse
import csv
import io
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch

from analysis.table import aligned, commit_words
from host import entry, paths
from runtime import machine, provenance
from tracking.files import check_writable, write_atomic

FOLDER = paths.RESULTS / "bench"  # ignored by git
Row = dict[str, str | float]
Name = TypeVar("Name", bound=Hashable)
# A precision below this share of float32's peak is emulated: a step would take minutes.
EMULATED = 0.1


def medians(contenders: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Milliseconds of each contender: the median over rounds in which all of them take turns.

    An untimed round goes first. The order is reversed every other round.
    """
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in list(contenders) if number % 2 else reversed(list(contenders)):
            begun = time.perf_counter()
            contenders[name]()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def precisions(device: torch.device) -> list[str]:
    """The precisions to measure on a device: bfloat16 only if the device does not emulate it."""
    peaks = {
        name: machine.matmul_flops(device, getattr(torch, name), 512, repeats=3)
        for name in ("float32", "bfloat16")
    }
    for name, peak in peaks.items():
        if peak < EMULATED * peaks["float32"]:
            print(f"{name}: {peak / 1e9:.1f} GFLOP/s: emulated here, not measured further")
    return [name for name, peak in peaks.items() if peak >= EMULATED * peaks["float32"]]


def run(name: str, description: str | None, measure: Callable[[], None]) -> int:
    """The command `python -m bench.NAME`, which takes no arguments; its exit code."""
    parser = entry.parser(f"bench.{name}", description)

    def command(_: argparse.Namespace) -> None:
        check_writable(FOLDER)
        measure()

    return entry.run(parser, None, command, "nothing was written")


def environment(device: torch.device) -> Row:
    """The device, its bfloat16 units, the CPU threads, the version of torch and the commit."""
    return {
        "device": machine.device_name(device),
        "bfloat16 units": " ".join(machine.bfloat16_units(device)) or "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit_words(*provenance.commit()),
    }


def write(name: str, rows: list[Row], measured_on: Row) -> None:
    """Print the rows as a table, and write them to results/bench/<name>.csv.

    measured_on: further columns, the same in every row.
    """
    path = FOLDER / f"{name}.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=[*rows[0], *measured_on], lineterminator="\n")
    writer.writeheader()
    writer.writerows(row | measured_on for row in rows)
    write_atomic(path, [text.getvalue().encode()])
    print(aligned([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))
    print("; ".join(f"{column} {value}" for column, value in measured_on.items()))
    print(paths.from_here(str(path)))
