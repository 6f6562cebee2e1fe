"""One race on every engine: the same losses, and what each engine costs.

    make engines                          # AdamW and Muon on tiny, two processes: results/engines
    python -m studies.engines --steps 20 --processes 3

AdamW and Muon train with one seed on the engine `single`, then on all others. Those take turns in
one group of processes, so that a machine which drifts hits all alike. Matrix products are in
float32 and nothing is compiled, because DeepSpeed cannot be. `analysis.engines` makes the table,
with the formulas of `planner.memory.footprint` and `planner.memory.layouts` beside what was
measured. `studies.planned` runs the same on one to four processes.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import optim
from analysis import engines
from engines import _rules
from errors import UserError
from host import entry, paths
from model import GPT
from optim.entrants import Entrant
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.memory.footprint import footprint
from planner.memory.layouts import Sizes, traffic
from planner.models import Model, own_models
from runtime import command_line
from speedrun import TRACKS, Options, Trainer, enter
from tracking import store
from tracking.schema import Planned, Run
from tracking.spelling import recipe_of

ENTRANTS = ("adamw", "muon")
TURN_STEPS = 2
MOST_PROCESSES = 16  # more would only wait for each other


class Engine(NamedTuple):
    """Values of --engine and --zero-stage."""

    name: str
    zero_stage: int = 1

    @property
    def label(self) -> str:
        """As its rows have it."""
        return f"{self.name}-zero{self.zero_stage}" if self.name == "deepspeed" else self.name

    def spelled(self, entrant: str) -> str | None:
        """An entrant as this engine can run it; None: not at all."""
        if self.name != "deepspeed":
            return entrant
        if entrant == "muon" and self.zero_stage == 0:
            return "muon:blocks=fused"  # stage 0 takes no matrices apart
        return entrant if entrant in ENTRANTS else None


SINGLE = Engine(engines.REFERENCE)
SEVERAL = (
    Engine("ddp"), Engine("sharded"), Engine("fsdp2"),
    Engine("deepspeed", 1), Engine("deepspeed", 2), Engine("deepspeed", 3),
)  # fmt: skip
KNOWN = {each.label: each for each in (*SEVERAL, Engine("deepspeed", 0))}


@dataclass(frozen=True)
class Series:
    """Optimizers on engines, all on as many processes. Its runs have a row each in `results`."""

    results: Path
    name: str = engines.ENGINES  # begins the ids of its races
    engines: tuple[Engine, ...] = SEVERAL
    entrants: tuple[str, ...] = ENTRANTS
    steps: int | None = None  # None: the tuned horizons
    batch_tokens: int | None = None  # of a step, and to validate with; None: the track's
    seq_len: int | None = None  # None: the track's
    threads: int = 1  # of a process; 0: all cores

    def trainer(self, engine: Engine) -> Trainer:
        """A trainer of `tiny` on an engine."""
        track = TRACKS["tiny"]
        tokens, changes = self.batch_tokens, dict[str, Any]()
        if tokens:
            changes |= {"batch_tokens": tokens, "val_tokens": tokens}
        if self.seq_len:
            changes["seq_len"] = self.seq_len
        if self.steps or changes:
            track = replace(track, name="custom", **changes)
        options = Options(
            engine=engine.name, zero_stage=engine.zero_stage, threads=self.threads, dtype="float32",
            attention="plain", compile=False, turn_steps=TURN_STEPS, results=self.results,
        )  # fmt: skip
        return Trainer(track, options)

    def race_of(self, trainer: Trainer) -> str:
        """The id of an engine's race: the runs of a race have one engine on as many processes."""
        where = f"{trainer.engine.name}-{trainer.engine.world_size}"
        return f"{self.name}-{where}-{store.source_hash(trainer.source)[:6]}"

    def entered(self, engine: Engine) -> list[Entrant]:
        """The entrants that an engine can run."""
        spelled = (engine.spelled(each) for each in self.entrants)
        return [enter(each, "tiny", self.steps) for each in spelled if each]

    @property
    def arguments(self) -> list[str]:
        """The flags of this command that mean the same."""
        given = {
            "--steps": self.steps, "--batch-tokens": self.batch_tokens, "--seq-len": self.seq_len
        }  # fmt: skip
        words = [f"{flag}={value}" for flag, value in given.items() if value]
        words += [f"--results={self.results}", f"--name={self.name}"]
        labels = [each.label for each in self.engines]
        return [*words, "--engines", *labels, "--entrants", *self.entrants]


def run_alone(series: Series) -> dict[str, Sizes]:
    """Run the reference on one process; what formulas start from, by label."""
    trainer, found = series.trainer(SINGLE), {}
    spelled = [each for engine in series.engines for each in series.entered(engine)]
    for entrant in {each.canonical: each for each in spelled}.values():
        trainer.check(entrant)
        plan = trainer.build(entrant)
        out = trainer.run(entrant, seed=0)
        run = trainer.run_row(out, series.race_of(trainer))
        store.record(series.results, run, out.points, trainer.source)
        found[run.label] = sizes_of(trainer.gpt, plan)
        trainer.forget()
    return found


def sizes_of(gpt: GPT, plan: Sequence[optim.Group]) -> Sizes:
    """What the formula of the traffic starts from."""
    whole = tuple(
        tuple(row.param.nbytes for row in group.params)
        for group in plan
        if not _rules.is_elementwise(group.rule)
    )
    every, blocks, last = (
        sum(p.nbytes for p in module.parameters()) for module in (gpt, gpt.blocks, gpt.head)
    )
    return Sizes(every, blocks, last, whole)


def run_together(series: Series) -> None:
    """In each of several processes: run on all engines of a series, in turns."""
    trainers = [series.trainer(engine) for engine in series.engines]
    alive = []
    for engine, trainer in zip(series.engines, trainers, strict=True):
        trainer.matmul_peak = trainers[0].matmul_peak
        entrants = series.entered(engine)
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
                race = series.race_of(by)
                run = by.run_row(out, race, heat=race)
                if by.engine.rank == 0:
                    store.record(series.results, run, out.points, by.source, (), out.turns)
                    words = f"{run.engine} on {run.world_size}: {run.label} ended at"
                    print(f"{words} {run.final_loss:.4f}", flush=True)
                alive.remove(each)
        rounds += 1
    trainers[0].engine.close()


def launch(series: Series, processes: int) -> None:
    """Start this command in some processes. Raises UserError if one of them fails."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
        f"--nproc_per_node={processes}", "--module", "studies.engines", *series.arguments,
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=paths.PROJECT, env=environment)
    if done.returncode:
        raise UserError(
            f"{processes} processes ended with exit code {done.returncode}, see above; "
            "the DeepSpeed engine needs: make setup EXTRAS=deepspeed"
        )


def planned(run: Run, sizes: Sizes, validations: int) -> Planned:
    """What the formulas say of a run. validations: of it, the one at its end included."""
    rule, n = update_rules.find(recipe_of(run.entrant)), run.world_size
    held = footprint(_tiny(), rule, run.engine, Setting(dtype=run.dtype, master=False), n)
    sent = traffic(run.engine, sizes, n)
    return Planned(
        run=run.run,
        param_bytes=round(held.params_bytes),
        grad_bytes=round(held.grads_bytes),
        state_bytes=round(held.master_bytes + held.state_bytes),  # as DeepSpeed's rows have it
        communication_bytes=round(
            sent.step * run.steps + sent.first + sent.anew * (validations - 1)
        ),
    )


@cache
def _tiny() -> Model:
    return own_models.from_track("tiny")


def plan_runs(root: Path, sizes: dict[str, Sizes]) -> None:
    """Write planned.csv: a row for each run of a folder, by engines and processes."""
    order = [each.label for each in (SINGLE, *KNOWN.values())]
    runs = store.read_runs(root)
    for run in sorted(runs, key=lambda run: (run.world_size, order.index(run.engine), run.label)):
        count = len(store.read_curve(root, run.run))
        store.append(root / "planned.csv", planned(run, sizes[run.label], count))


def ready(root: Path, tables: dict[str, type]) -> None:
    """Raise UserError if a folder cannot take a study: it holds one, or cannot be written."""
    store.ready(root, tables)
    if store.read_runs(root):
        raise UserError(f"{root}: holds a study; move it away, or name another with --results")


def counts(given: Sequence[int], least: int = 1, flag: str = "--processes") -> list[int]:
    """Numbers of processes, each once. Raises UserError."""
    for count in given:
        if not least <= count <= MOST_PROCESSES:
            must = f"must be from {least} to {MOST_PROCESSES}"
            raise UserError(f"{flag} {count}: {must}; run with {flag} 2")
    return list(dict.fromkeys(given))


def series_of(arguments: argparse.Namespace) -> Series:
    """What a command line asks for. Raises UserError."""
    for label in arguments.engines:
        if label not in KNOWN:
            known = ", ".join(KNOWN)
            raise UserError(f"--engines {label}: must be some of {known}; leave it out")
    for name in ("batch_tokens", "seq_len"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise UserError(f"{command_line.flag(name)} {value}: must be above 0; leave it out")
    return Series(
        arguments.results,
        arguments.name,
        tuple(KNOWN[label] for label in arguments.engines),
        tuple(arguments.entrants),
        arguments.steps,
        arguments.batch_tokens,
        arguments.seq_len,
    )


def study(arguments: argparse.Namespace) -> None:
    """The reference here, the others in processes of torchrun; then the table. Raises UserError."""
    series = series_of(arguments)
    for engine in series.engines:
        series.entered(engine)  # refuses what is misspelt
    if "RANK" in os.environ:
        return run_together(series)
    processes = counts([arguments.processes], least=2)
    ready(series.results, {"planned.csv": Planned})
    sizes = run_alone(replace(series, threads=0))
    for count in processes:
        launch(series, count)
    plan_runs(series.results, sizes)
    print(engines.markdown(engines.measured(series.results)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("studies.engines", __doc__)
    note = "of all engines but `single` (default: 2)"
    parser.add_argument("--processes", type=int, default=2, metavar="INT", help=note)
    note = "horizon of all; makes the track custom (default: the tuned ones)"
    parser.add_argument("--steps", type=int, metavar="INT", help=note)
    note = "tokens of a step and of a validation; makes the track custom (default: the track's)"
    parser.add_argument("--batch-tokens", type=int, metavar="INT", help=note)
    note = "tokens of a sequence; makes the track custom (default: the track's)"
    parser.add_argument("--seq-len", type=int, metavar="INT", help=note)
    labels = [each.label for each in SEVERAL]
    note = f"some of {', '.join(KNOWN)} (default: all but the last)"
    parser.add_argument("--engines", nargs="+", default=labels, metavar="ENGINE", help=note)
    note = "on each engine that has it (default: adamw muon)"
    parser.add_argument("--entrants", nargs="+", default=ENTRANTS, metavar="ENTRANT", help=note)
    note = f"begins the names of the races (default: {engines.ENGINES})"
    parser.add_argument("--name", default=engines.ENGINES, help=note)
    default: Path = paths.RESULTS / engines.ENGINES
    note = f"folder (default: results/{engines.ENGINES})"
    parser.add_argument("--results", type=paths.typed, default=default, help=note)
    return entry.run(parser, argv, study, "nothing is lost but the engines under way")


if __name__ == "__main__":
    sys.exit(main())
