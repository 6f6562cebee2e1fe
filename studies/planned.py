"""Calibration, for now."""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from host import paths
from host.cores import cores
from optim.entrants import Entrant
from speedrun import Trainer
from studies.engines import SINGLE, Series
from tracking.schema import Calibrated

ROUNDS = 7


def seconds_of(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median over rounds, of which the first is not counted."""
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def passes_of(trainer: Trainer, sequences: int) -> Callable[[], object]:
    """Forward and backward of a microbatch of so many sequences."""
    inputs, targets = trainer.program.to_device(*trainer.train_batches(seed=0).batch(0))
    x, y = inputs[:sequences], targets[:sequences]
    return lambda: trainer.program.forward_backward(x, y, of=y.numel(), last=True)


def forward_of(trainer: Trainer, sequences: int) -> Callable[[], object]:
    inputs, targets = trainer.program.to_device(*trainer.train_batches(seed=0).batch(0))

    def forward() -> None:
        with torch.no_grad():
            trainer.program.loss(inputs[:sequences], targets[:sequences])

    return forward


def updates(trainer: Trainer, entrant: Entrant) -> Iterator[tuple[str, float]]:
    """Seconds of each rule of an entrant, on all that it updates."""
    trainer.build(entrant)
    trainer.engine.set_lr(0.0)
    for optimizer in trainer.engine.optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        yield type(optimizer).__name__.lower(), seconds_of(optimizer.step, 3 * ROUNDS)


@contextmanager
def beside(others: int, series: Series, sequences: int) -> Iterator[None]:
    """Within it, other processes do passes."""
    command = [sys.executable, "-m", "studies.planned", f"--passes={sequences}"]
    command += [f"--results={series.results}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command, cwd=paths.PROJECT, env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(others)
    ]  # fmt: skip
    try:
        for each in started:
            assert each.stdout is not None
            each.stdout.readline()  # it has begun
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def calibrate(series: Series, processes: Sequence[int]) -> list[Calibrated]:
    trainer, found = series.trainer(SINGLE), []
    entrants = series.entered(SINGLE)
    trainer.build(entrants[0])
    whole = trainer.program.batch_seqs
    for n in processes:
        for name, make in (("forward", forward_of), ("passes", passes_of)):
            found.append(Calibrated(name, f"{whole // n}", seconds_of(make(trainer, whole // n)), "s"))
    alone = found[-1].value
    n = processes[-1]
    work = passes_of(trainer, whole // n)
    with beside(cores() - 1, series, whole // n):
        together = seconds_of(work)
    found.append(Calibrated("beside", "", together / seconds_of(work), ""))
    for entrant in entrants:
        for rule, seconds in updates(trainer, entrant):
            found.append(Calibrated("update", f"{entrant.recipe} {rule}", seconds, "s"))
    found.append(Calibrated("cores", "", cores(), ""))
    return found


def burn(series: Series, sequences: int) -> None:
    trainer = series.trainer(SINGLE)
    trainer.build(series.entered(SINGLE)[0])
    work = passes_of(trainer, sequences)
    work()
    print("begun", flush=True)
    while True:
        work()


if __name__ == "__main__":
    from pathlib import Path
    s = Series(Path("/tmp/w-E/cal"), batch_tokens=6144)
    if len(sys.argv) > 1:
        burn(s, int(sys.argv[1].split("=")[1]))
    for row in calibrate(s, (1, 2, 4)):
        print(row)
