"""Measurements of speed: each compares things run in turn in one process, on a quiet machine.

Results are CSVs in this folder, which the README shows.
"""

import csv
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import machine
from results.table import aligned

Row = dict[str, str | float]


def medians(contenders: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each contender: the median over rounds in which all take turns.

    One untimed round goes first. The order is reversed every other round.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(-1, rounds):
        for name in list(contenders) if number % 2 else reversed(list(contenders)):
            begun = time.perf_counter()
            contenders[name]()
            if number >= 0:
                times[name].append(1e3 * (time.perf_counter() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def write(name: str, rows: list[Row]) -> None:
    """Print the rows as a table and keep them as bench/<name>.csv."""
    path = Path(__file__).with_name(f"{name}.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(aligned([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))


def machine_line(threads: int) -> str:
    """What the figures were measured on."""
    return (
        f"{machine.device_name(torch.device('cpu'))}, {threads} threads, torch {torch.__version__}"
    )
