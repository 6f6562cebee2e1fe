"""What the planner says of every engine, beside what runs measure: memory, traffic and step time.

    make planned                      # about eight minutes on two quiet cores: results/planned
    python -m studies.planned --processes 2 3 --timed 2 --results mine

Bytes: AdamW, Muon and SOAP take a few steps of `tiny`, with a small batch, on every engine that has
them, on one to four processes. planned.csv has what planner/memory/footprint.py and
planner/memory/layouts.py say of each run.

Times: AdamW and Muon take steps with the batch of the track, on ddp, sharded and fsdp2, on one, two
and four processes of one thread. times.csv has what the simulation of planner/step/strategies.py
says of them. It starts from calibration.csv and links.csv, which hold nothing of these runs:
- passes of one process alone, forward and backward, of the share of a batch that a process has;
- updates of one process alone, by rule, with all parameters;
- how much slower a pass is while the other cores do passes too (`beside`), and the number of cores;
- collectives over gloo, of bench.links, without any model.
No step, engine or optimizer of several processes is in it. What one process measured predicts two
and four. A machine on which others work gives times that mean nothing; bytes do not mind.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from analysis import planned
from bench import links as bench_links
from bench import medians
from engines import single
from errors import UserError
from host import entry, paths
from host.cores import cores
from optim.entrants import Entrant
from planner.memory import update_rules
from planner.models import own_models
from planner.step import gloo
from planner.step.links import transfer
from speedrun import TRACKS, Trainer
from studies import engines
from studies.engines import KNOWN, SINGLE, Series
from tracking import store
from tracking.schema import Calibrated, LinkTime, Planned, Run, StepTime
from tracking.spelling import recipe_of

ENTRANTS = ("adamw", "muon", "soap")
COUNTED = Series(Path(), planned.PLANNED, tuple(KNOWN.values()), ENTRANTS, 3, 12 * 32, 32)
TIMED = Series(
    Path(), "timed", tuple(KNOWN[label] for label in gloo.USED), engines.ENTRANTS, 10,
    TRACKS["tiny"].batch_tokens,
)  # fmt: skip
ROUNDS = 9
CALIBRATION = "calibration.csv"
TABLES = {
    "planned.csv": Planned, CALIBRATION: Calibrated, bench_links.TABLE: LinkTime,
    planned.TIMES: StepTime,
}  # fmt: skip

# ---- Calibration -------------------------------------------------------------------------------


class Passes:
    """The passes of one process alone, of a part of a batch."""

    def __init__(self, series: Series) -> None:
        self.trainer: Trainer = series.trainer(SINGLE)
        self.trainer.build(series.entered(SINGLE)[0])
        batch = self.trainer.train_batches(seed=0).batch(0)
        self.inputs, self.targets = self.trainer.program.to_device(*batch)

    def forward(self, sequences: int) -> None:
        with torch.no_grad():
            self.trainer.program.loss(self.inputs[:sequences], self.targets[:sequences])

    def both(self, sequences: int) -> None:
        """Forward and backward, as a step has them."""
        self.trainer.gpt.zero_grad(set_to_none=True)
        x, y = self.inputs[:sequences], self.targets[:sequences]
        self.trainer.program.forward_backward(x, y, of=y.numel(), last=True)


def calibrate(series: Series, processes: Sequence[int]) -> list[Calibrated]:
    """What the prediction of times starts from, but for the collectives."""
    alone = Passes(series)
    shares = [len(alone.inputs) // n for n in processes]
    contenders: dict[tuple[str, int], Callable[[], object]] = {}
    for n in shares:
        contenders["forward", n] = lambda n=n: alone.forward(n)  # type: ignore[misc]
        contenders["passes", n] = lambda n=n: alone.both(n)  # type: ignore[misc]
    found = [
        Calibrated(name, f"{n} sequences", rounded(ms / 1e3), "s")
        for (name, n), ms in medians(contenders, ROUNDS).items()
    ]
    for entrant in series.entered(SINGLE):
        found += updates(alone.trainer, entrant)
    sequences = shares[-1] if len(shares) == 1 else shares[1]
    found.append(Calibrated("beside", f"{sequences} sequences", beside(alone, sequences), ""))
    return [*found, Calibrated("cores", "", cores(), "")]


def rounded(value: float) -> float:
    """To four digits."""
    return float(f"{value:.4g}")


def updates(trainer: Trainer, entrant: Entrant) -> list[Calibrated]:
    """Seconds of each rule of an entrant, on all that the rule updates."""
    trainer.build(entrant)
    engine = trainer.engine
    assert isinstance(engine, single.Engine)
    engine.set_lr(0.0)
    for optimizer in engine.optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            p.grad = torch.randn_like(p)
    steps = {type(each).__name__.lower(): each.step for each in engine.optimizers}
    return [
        Calibrated("update", f"{entrant.recipe}: {rule}", rounded(ms / 1e3), "s")
        for rule, ms in medians(steps, 3 * ROUNDS).items()
    ]


def beside(alone: Passes, sequences: int) -> float:
    """A pass while the other cores do passes, over a pass alone: median over neighbours in time."""
    command = [sys.executable, "-m", "studies.planned", f"--occupy={sequences}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ratios = []
    with ExitStack() as stack:
        others = []
        for _ in range(cores() - 1):
            other = subprocess.Popen(
                command, cwd=paths.PROJECT, env=environment, stdout=subprocess.PIPE
            )
            stack.callback(other.wait)
            stack.callback(other.kill)
            others.append(other)
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()  # it has begun
        for _ in range(ROUNDS):
            times = []
            for order in (signal.SIGSTOP, signal.SIGCONT):
                for other in others:
                    other.send_signal(order)
                alone.both(sequences)  # untimed: the others may not have heard yet
                begun = time.perf_counter()
                alone.both(sequences)
                times.append(time.perf_counter() - begun)
            ratios.append(times[1] / times[0])
    return rounded(statistics.median(ratios))


def occupy(series: Series, sequences: int) -> None:
    """Do passes until this process is ended."""
    own = Passes(series)
    own.both(sequences)
    print("begun", flush=True)
    while True:
        own.both(sequences)


def machine_of(rows: Sequence[Calibrated], times: Sequence[LinkTime], batch: int) -> gloo.Machine:
    """What was calibrated. batch: sequences of a step."""
    values = {(row.name, row.of): row.value for row in rows}
    beside = next(row.value for row in rows if row.name == "beside")
    shares = [int(row.of.split()[0]) for row in rows if row.name == "passes"]
    updated = {tuple(row.of.split(": ")): row.value for row in rows if row.name == "update"}
    transfers: dict[tuple[str, int], list[gloo.links.Transfer]] = {}
    for t in times:
        own = transfer(t.collective, t.processes, t.size_bytes, t.seconds)
        transfers.setdefault((t.collective, t.processes), []).append(own)
    return gloo.Machine(
        cores=round(values["cores", ""]),
        beside=beside,
        passes={
            batch // n: gloo.Passes(
                values["forward", f"{n} sequences"], values["passes", f"{n} sequences"]
            )
            for n in shares
        },
        whole_seconds={recipe: s for (recipe, rule), s in updated.items() if rule == recipe},
        other_seconds={recipe: s for (recipe, rule), s in updated.items() if rule == "adamw"},
        transfers=transfers,
    )


# ---- The study ---------------------------------------------------------------------------------


def time_row(machine: gloo.Machine, root: Path, run: Run) -> StepTime:
    """A timed run, and its prediction."""
    recipe = recipe_of(run.entrant)
    rule = update_rules.find(recipe)
    tiny = own_models.from_track("tiny")
    step = gloo.predict(machine, tiny, rule, run.engine, run.world_size)
    parts = (step.seconds, step.passes_seconds, step.update_seconds, step.exposed_seconds)
    predicted, *rest = (rounded(1e3 * each) for each in parts)
    measured = rounded(planned.step_ms(root, run.run))
    return StepTime(run.run, run.engine, recipe, run.world_size, predicted, measured, *rest)


def write_times(root: Path) -> None:
    """Write times.csv: a row for each timed run of a folder."""
    tiny = TRACKS["tiny"]
    calibrated = store.read(root / CALIBRATION, Calibrated)
    collectives = store.read(root / bench_links.TABLE, LinkTime)
    machine = machine_of(calibrated, collectives, tiny.batch_tokens // tiny.seq_len)
    order = [*gloo.USED]
    runs = [run for run in store.read_runs(root) if run.race.startswith(f"{TIMED.name}-")]
    for run in sorted(runs, key=lambda run: (order.index(run.engine), run.label, run.world_size)):
        store.append(root / planned.TIMES, time_row(machine, root, run))


def dividing(flag: str, given: Sequence[int], series: Series) -> list[int]:
    """Numbers of processes, each once, which divide a batch. Raises UserError."""
    found = engines.counts(given, flag=flag)
    tiny = TRACKS["tiny"]
    batch = (series.batch_tokens or 0) // (series.seq_len or tiny.seq_len)
    for n in found:
        if batch % n:
            raise UserError(
                f"{flag} {n}: a batch of {batch} sequences must divide by it; run with {flag} 1 2 4"
            )
    return found


def study(arguments: argparse.Namespace) -> None:
    """Calibrate, count, measure, predict; then the tables. Raises UserError."""
    if arguments.occupy:
        return occupy(TIMED, arguments.occupy)
    root, began = arguments.results, time.monotonic()
    counted, timed = (replace(each, results=root) for each in (COUNTED, TIMED))
    processes = dividing("--processes", arguments.processes, counted)
    timed_on = dividing("--timed", arguments.timed, timed)
    engines.ready(root, TABLES)
    torch.set_num_threads(1)

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:4.0f} s: {what}", flush=True)

    tell("calibrating passes and updates, one process alone")
    for row in calibrate(timed, timed_on):
        store.append(root / CALIBRATION, row)
    tell("calibrating collectives")
    bench_links.measure(root / bench_links.TABLE, [n for n in timed_on if n > 1])
    for n in timed_on:
        tell(f"timing on {n}")
        engines.launch(timed, n)
    tell("counting bytes on one process, the reference")
    sizes = engines.run_alone(counted)
    for n in processes:
        tell(f"counting bytes on {n}")
        engines.launch(counted, n)
    engines.plan_runs(root, sizes)
    write_times(root)
    tell("done")
    print(planned.markdown(planned.predicted(root)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("studies.planned", __doc__)
    note = "whose bytes are counted (default: 1 2 3 4)"
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2, 3, 4], metavar="INT", help=note
    )
    note = "whose steps are timed; they divide the batch (default: 1 2 4)"
    parser.add_argument("--timed", type=int, nargs="+", default=[1, 2, 4], metavar="INT", help=note)
    parser.add_argument("--occupy", type=int, default=0, help=argparse.SUPPRESS)
    default: Path = paths.RESULTS / planned.PLANNED
    note = f"folder (default: results/{planned.PLANNED})"
    parser.add_argument("--results", type=paths.typed, default=default, help=note)
    return entry.run(parser, argv, study, "nothing is lost but the engines under way")


if __name__ == "__main__":
    sys.exit(main())
