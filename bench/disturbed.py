"""What another user of the machine does to a race's ratio in seconds.

    python -m bench.disturbed    # or: make bench-disturbed; a quarter of an hour on two CPU cores

It races AdamW against Muon on the track `tiny`, three seeds, four times: in lockstep and a run at a
time, each on a quiet machine and while another process burns all cores for a random half of the
time.
The goal: disturbed and in lockstep, the ratio in seconds is within 3% of the quiet race's just
before, and its 95% interval is no wider than 8% to either side. Nothing else may run meanwhile.

The races themselves stay in results/bench/disturbed/, so that the table can be computed again.
"""

import multiprocessing
import random
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess

import speedrun
from analysis.pairs import UNITS, Pairs
from analysis.price import Prices, read_prices
from analysis.table import by_label
from bench import FOLDER, Row, environment, run, write
from host import ending
from host.cores import cores
from speedrun import TRACKS, Options, Trainer, enter
from tracking.schema import Run
from tracking.store import read_runs

SEEDS = 3
MEAN_SECONDS = 5.0  # of a burst, and of the quiet between two
ORDERS = {"lockstep": Options.turn_steps, "a run at a time": 0}  # turn_steps


def burn(seed: int, begun: float) -> None:
    """Keep a core busy for a random half of the time since `begun`, with one seed together."""
    draw, until = random.Random(seed), 0.0
    while True:
        until += draw.expovariate(1 / MEAN_SECONDS)
        time.sleep(max(0.0, begun + until - time.time()))
        until += draw.expovariate(1 / MEAN_SECONDS)
        while time.time() < begun + until:
            pass


def burner(seed: int, begun: float) -> None:
    """Burn in a process of its own, which would burn for ever once its race was killed."""
    ending.begin_worker()
    burn(seed, begun)


@contextmanager
def burners(count: int, seed: int) -> Iterator[list[SpawnProcess]]:
    """Within it, `count` other processes burn a core each, all at the same random times.

    Raises RuntimeError if one ended too early: then the machine was quieter than it would say.
    """
    context = multiprocessing.get_context("spawn")
    work = (seed, time.time())
    processes = [context.Process(target=burner, args=work, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield processes
        if not all(process.is_alive() for process in processes):
            raise RuntimeError("a process that burns a core ended before the race")
    finally:
        for process in processes:
            process.kill()
            process.join()


def row_of(runs: list[Run], prices: Prices, order: str, busy: bool) -> Row:
    """What a race says about Muon against AdamW. prices: of a step in it."""
    steps, seconds = (Pairs(by_label(runs), unit, prices).of("adamw", "muon") for unit in UNITS)
    assert steps.ratio and seconds.ratio, "a run missed the target"
    found = seconds.ratio.estimate
    row: Row = {
        "order": order,
        "machine": "disturbed" if busy else "quiet",
        "ratio in steps": f"{steps.ratio.estimate.value:.3f}",
        "ratio in seconds": f"{found.value:.3f}",
    }
    assert found.low and found.high
    wide = max(found.high / found.value, found.value / found.low) - 1
    ms = [1e3 * run.train_seconds / run.steps for run in runs]
    return row | {
        "95% interval": f"{found.low:.3f} to {found.high:.3f}",
        "to either side": f"{wide:.1%}",
        "ms per step": f"{min(ms):.0f} to {max(ms):.0f}",
    }


def measure_all() -> None:
    """Measure, and write the rows."""
    rows: list[Row] = []
    entrants = [enter(name, "tiny") for name in ("adamw", "muon")]
    root = FOLDER / "disturbed"
    shutil.rmtree(root, ignore_errors=True)  # the races of the last time
    for number, (order, turn_steps) in enumerate(ORDERS.items()):
        options = Options(engine="single", turn_steps=turn_steps, results=root)
        trainer = Trainer(TRACKS["tiny"], options)
        for busy in (False, True):
            race = f"{order.replace(' ', '-')}-{'disturbed' if busy else 'quiet'}"
            print(race, flush=True)
            with burners(cores() if busy else 0, seed=number):
                speedrun.race(trainer, entrants, SEEDS, race, [])
            runs = [run for run in read_runs(root) if run.race == race]
            rows.append(row_of(runs, read_prices(root, runs), order, busy))
        quiet, disturbed = (float(row["ratio in seconds"]) for row in rows[-2:])
        rows[-2]["off the quiet race"] = ""
        rows[-1]["off the quiet race"] = f"{max(disturbed / quiet, quiet / disturbed) - 1:.1%}"
    dtype: Row = {"dtype": runs[0].dtype, "attention": runs[0].attention}
    write("disturbed", rows, dtype | environment(trainer.device))


def main() -> int:
    """Run the command; its exit code."""
    return run("disturbed", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
