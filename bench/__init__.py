"""Measurements of speed: each compares things run in turn in one process, on a quiet machine.

Results are CSVs in this folder, which the README shows. Every row names the machine.
"""

import csv
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from analysis.table import aligned
from runtime import machine

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


def setting(device: torch.device) -> Row:
    """On what torch computes here, as columns."""
    return {
        "device": machine.device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def write(name: str, rows: list[Row], on: Row) -> None:
    """Print the rows as a table and keep them as bench/<name>.csv.

    on: what they were measured on, further columns that every row has alike.
    """
    path = Path(__file__).with_name(f"{name}.csv")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *on], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | on for row in rows)
    print(aligned([list(rows[0]), *(list(map(str, row.values())) for row in rows)]))
    print("; ".join(f"{column} {value}" for column, value in on.items()))
