"""One race on every engine: the same losses, and what each engine costs.

    make engines                          # AdamW and Muon on tiny, two processes: results/engines
    python -m studies.engines --steps 20 --processes 3

AdamW and Muon train with one seed on the engine `single`, then on all others. Those take turns in
one group of processes, so that a machine which drifts hits all alike. Matrix products are in
float32 and nothing is compiled, because DeepSpeed cannot be. `analysis.engines` makes the table,
with the formulas of `planner.layouts` beside what was measured.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import optim
from analysis import engines
from engines import _rules
from errors import UserError
from host import entry, paths
from model import GPT
from optim.entrants import Entrant
from planner.layouts import Group, Model, layout
from speedrun import TRACKS, Options, Trainer, enter
from tracking import store
from tracking.schema import Planned, Run

ENTRANTS = ("adamw", "muon")
TURN_STEPS = 2


class Engine(NamedTuple):
    """Values of --engine and --zero-stage."""

    name: str
    zero_stage: int = 1

    @property
    def label(self) -> str:
        """As its rows have it."""
        return f"{self.name}-zero{self.zero_stage}" if self.name == "deepspeed" else self.name


SINGLE = Engine(engines.REFERENCE)
SEVERAL = (
    Engine("ddp"), Engine("sharded"), Engine("fsdp2"),
    Engine("deepspeed", 1), Engine("deepspeed", 2), Engine("deepspeed", 3),
)  # fmt: skip


def trainer_of(engine: Engine, arguments: argparse.Namespace, threads: int) -> Trainer:
    """A trainer of `tiny` on an engine."""
    track = TRACKS["tiny"]
    if arguments.steps:
        track = replace(track, name="custom")
    options = Options(
        engine=engine.name, zero_stage=engine.zero_stage, threads=threads, dtype="float32",
        attention="plain", compile=False, turn_steps=TURN_STEPS, results=arguments.results,
    )  # fmt: skip
    return Trainer(track, options)


def race_of(trainer: Trainer) -> str:
    """The id of an engine's race: the runs of a race have one engine."""
    return f"{engines.ENGINES}-{trainer.engine.name}-{store.source_hash(trainer.source)[:6]}"


def run_alone(entrants: Sequence[Entrant], arguments: argparse.Namespace) -> dict[str, Model]:
    """Run the reference on one process; what the formulas start from, by entrant."""
    trainer, found = trainer_of(SINGLE, arguments, threads=0), {}
    for entrant in entrants:
        trainer.check(entrant)
        plan = trainer.build(entrant)
        out = trainer.run(entrant, seed=0)
        run = trainer.run_row(out, race_of(trainer))
        store.record(arguments.results, run, out.points, trainer.source)
        found[run.entrant] = model_of(trainer.gpt, plan, run.state_bytes)
        trainer.forget()
    return found


def model_of(gpt: GPT, plan: Sequence[optim.Group], state_bytes: int) -> Model:
    """What the formulas start from. state_bytes: of the optimizers in one process."""
    groups = tuple(
        Group(
            not _rules.is_elementwise(g.rule),
            tuple(row.param.nbytes for row in g.params),
            tuple(tuple(row.param.shape) for row in g.params),
            g.options.get("splits"),
        )
        for g in plan
    )
    return Model(groups, sum(p.nbytes for p in gpt.blocks.parameters()), state_bytes)


def run_together(entrants: Sequence[Entrant], arguments: argparse.Namespace) -> None:
    """In each of several processes: run on all engines of SEVERAL, in turns."""
    trainers = [trainer_of(engine, arguments, threads=1) for engine in SEVERAL]
    alive = []
    for trainer in trainers:
        trainer.matmul_peak = trainers[0].matmul_peak
        for entrant in entrants:
            trainer.check(entrant)
        for entrant, by in zip(entrants, trainer.crew(len(entrants)), strict=True):
            turns = by.run_in_turns(entrant, 0, TURN_STEPS)
            next(turns)  # warms up
            alive.append((by, turns))
    rounds = 0
    while alive:
        for each in alive[:: 1 if rounds % 2 == 0 else -1]:
            by, turns = each
            out = next(turns)
            if out.status:
                # A heat belongs to one race; all heats here have their rounds at the same time.
                run = by.run_row(out, race_of(by), heat=race_of(by))
                if by.engine.rank == 0:
                    store.record(arguments.results, run, out.points, by.source, (), out.turns)
                    print(f"{run.engine}: {run.label} ended at {run.final_loss:.4f}", flush=True)
                alive.remove(each)
        rounds += 1
    trainers[0].engine.close()


def launch(arguments: argparse.Namespace) -> None:
    """Start this command in several processes. Raises UserError if one of them fails."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        f"--nproc_per_node={arguments.processes}", "--module", "studies.engines",
        f"--results={arguments.results}",
        *([f"--steps={arguments.steps}"] if arguments.steps else []),
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=paths.PROJECT, env=environment)
    if done.returncode:
        raise UserError(
            f"{arguments.processes} processes ended with exit code {done.returncode}, see above; "
            "the DeepSpeed engine needs: make setup EXTRAS=deepspeed"
        )


def planned(run: Run, model: Model, validations: int) -> Planned:
    """What the formulas say of a run. validations: of it, the one at its end included."""
    costs = layout(run.engine, model, run.world_size)
    sent = costs.sent * run.steps + costs.sent_anew * validations
    held = (costs.params, costs.grads, costs.state, sent)
    return Planned(run.run, *map(round, held))


def study(arguments: argparse.Namespace) -> None:
    """The reference here, the others in processes of torchrun; then the table. Raises UserError."""
    entrants = [enter(name, "tiny", arguments.steps) for name in ENTRANTS]
    if "RANK" in os.environ:
        return run_together(entrants, arguments)
    if arguments.processes < 2:
        must = "must be at least 2; run with --processes 2"
        raise UserError(f"--processes {arguments.processes}: {must}")
    root = arguments.results
    store.ready(root, {"planned.csv": Planned})
    if store.read_runs(root):
        raise UserError(f"{root}: holds a study; move it away, or name another with --results")
    models = run_alone(entrants, arguments)
    launch(arguments)
    order = [each.label for each in (SINGLE, *SEVERAL)]
    runs = store.read_runs(root)
    for run in sorted(runs, key=lambda run: (order.index(run.engine), run.label)):
        count = len(store.read_curve(root, run.run))
        store.append(root / "planned.csv", planned(run, models[run.entrant], count))
    print(engines.markdown(engines.measured(root)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("studies.engines", __doc__)
    note = "of all engines but `single` (default: 2)"
    parser.add_argument("--processes", type=int, default=2, metavar="INT", help=note)
    note = "horizon of both; makes the track custom (default: the tuned ones)"
    parser.add_argument("--steps", type=int, metavar="INT", help=note)
    default: Path = paths.RESULTS / engines.ENGINES
    note = f"folder (default: results/{engines.ENGINES})"
    parser.add_argument("--results", type=paths.typed, default=default, help=note)
    return entry.run(parser, argv, study, "nothing is lost but the engines under way")


if __name__ == "__main__":
    sys.exit(main())
