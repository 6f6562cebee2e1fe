"""The trainer: races optimizers to a target validation loss and writes down what it cost them.

    python speedrun.py                                  # AdamW against Muon, on this machine
    python speedrun.py adamw muon:lr=0.05 --seeds 5     # an entrant is name[:key=value,...]
    python speedrun.py adamw muon --resume              # go on with a race that was stopped
    python speedrun.py adamw muon --track gpt2 --dry-run    # what a race would take
    python speedrun.py plan muon --track gpt2           # the rule of every parameter
    python speedrun.py tune adamw muon --trials 32      # the search behind optim/tuned.toml

Every decision that could change a reported number, except model math and update math, is read in
this file: tracks, schedule, clock, validation, precision, warm-up, order of the runs. A race adds
one row per run to results/runs.csv and one curve per run to results/curves/; `python -m
analysis.report` reads them back.
"""

import argparse
import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

import engines
import optim
from analysis import report, table
from data import open_dataset
from data.loader import Batches, val_batches
from errors import UserError
from layers.config import GPTConfig, preset
from model import GPT
from optim import Linear
from optim.entrants import Entrant, assigned, entrant_options, parse
from planner import assignment, dry_run
from runtime import command_line, machine, provenance
from runtime.clock import Clock
from runtime.feed import Feed
from runtime.program import Passes
from studies import tune
from tracking import spelling, store, tuned
from tracking.crossing import crossing
from tracking.live import Live
from tracking.schema import DIVERGED, MISSED, REACHED, Point, Run

# Reading a loss waits for the device, so on a GPU several steps are read together.
READ_EVERY = {"cpu": 1, "cuda": 25}  # steps

RULES = 1  # version of the protocol; results of different versions are not comparable


# ---------------------------------------------------------------------------------------------
# Tracks: what is frozen.


@dataclass(frozen=True)
class Track:
    """Everything that entrants of a race share. Change any of it and the track is "custom"."""

    name: str
    dataset: str
    model: str  # one of presets.PRESETS
    width: int | None  # channels, instead of the preset's; heads keep their size
    seq_len: int  # tokens
    batch_tokens: int  # tokens of one step, all processes together
    val_tokens: int  # the first targets of the validation shards
    val_every: int  # steps between validations ...
    val_every_late: int  # ... and in the last tenth of a run, where the target is crossed
    target: float  # validation loss, nats per token
    shuffle: bool  # windows in an order drawn from the seed; else the order of the stream
    search_steps: int  # horizon of the tuner's trials, and of whoever has not been tuned

    def __post_init__(self) -> None:
        for knob in fields(self):
            value, flag = getattr(self, knob.name), "--" + knob.name.replace("_", "-")
            if isinstance(value, int | float) and not (0 < value < math.inf or value is False):
                raise UserError(
                    f"{flag} {value}: must be above 0 and finite; leave it out for the track's own"
                )

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's sizes on a data set with this vocabulary."""
        return preset(self.model, vocab_size, self.seq_len, self.width)

    def hash(self) -> str:
        """16 hex digits over every frozen value but the target, which rows hold themselves.

        Values at their declared default are left out, so that a new knob renames no old result.
        """
        frozen = {
            knob.name: getattr(part, knob.name)
            for part in (self.config(vocab_size=0), self)
            for knob in fields(part)
            if getattr(part, knob.name) != knob.default
        }
        text = json.dumps(frozen | {"rules": RULES, "target": 0.0}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def validates(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is validated after `step` of them."""
        late = step > 0.9 * steps and step % self.val_every_late == 0
        return late or step % self.val_every == 0 or step == steps


GPT2 = Track(  # the fixed setting of modded-nanogpt's track 3
    name="gpt2",
    dataset="fineweb",
    model="gpt2",
    width=None,
    seq_len=1024,
    batch_tokens=8 * 64 * 1024,
    val_tokens=10_485_760,
    val_every=125,
    val_every_late=25,
    target=3.28,
    shuffle=False,
    search_steps=5000,
)
TINY = Track(
    name="tiny",
    dataset="sotu",
    model="tiny",
    width=None,
    seq_len=128,
    batch_tokens=48 * 128,
    val_tokens=816 * 128,
    val_every=20,
    val_every_late=4,
    target=3.68,  # a tuned AdamW; see tune.target_from
    shuffle=True,
    search_steps=70,
)
TRACKS = {
    "tiny": TINY,
    # Other models on the same data. Their targets are tiny's until AdamW has been tuned there.
    "tiny-gqa": replace(TINY, name="tiny-gqa", model="tiny-gqa"),
    "tiny-mla": replace(TINY, name="tiny-mla", model="tiny-mla"),
    "tiny-classic": replace(TINY, name="tiny-classic", model="tiny-classic"),
    "gpt2": GPT2,
    # The setting of October 2024, behind the claim of 35%.
    "gpt2-2024": replace(GPT2, name="gpt2-2024", model="gpt2-2024", search_steps=9500),
    "medium": replace(GPT2, name="medium", model="medium", target=2.92, search_steps=15_000),
    # The target is what AdamW reached there.
    "xl": replace(
        GPT2, name="xl", model="xl", batch_tokens=480 * 1024, target=2.7737, search_steps=20_000
    ),
}


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: linear up from 0, flat, linear down to 0."""

    steps: int = 0  # the horizon; a run always goes to its end
    warmup: Annotated[float, Linear(0.0, 0.2)] = 0.0  # fraction of the steps
    cooldown: Annotated[float, Linear(0.3, 1.0)] = 0.7  # fraction of the steps

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps={self.steps}: must be at least 1; run with --steps 100")
        if min(self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > 1.2:
            raise UserError(
                f"warmup={self.warmup},cooldown={self.cooldown}: fractions of the run from 0, "
                "their sum at most 1.2; try warmup=0.1,cooldown=0.7"
            )

    def factor(self, step: int) -> float:
        """What every learning rate is multiplied by in `step`, counted from 0."""
        up = (step + 1) / (self.warmup * self.steps) if self.warmup else 1.0
        down = (self.steps - step) / (self.cooldown * self.steps) if self.cooldown else 1.0
        return min(1.0, up, down)


def schedule_of(entrant: Entrant) -> Schedule:
    """The schedule among an entrant's options."""
    return Schedule(**{f.name: entrant.settings[f.name] for f in fields(Schedule)})


def enter(text: str, track: str, steps: int | None = None) -> Entrant:
    """The entrant spelled `text`, on a track of TRACKS; `steps` replaces its horizon.

    What it leaves out comes from optim/tuned.toml, then from its recipe and from Schedule.
    """
    defaults = {"steps": TRACKS[track].search_steps}
    fixed = {} if steps is None else {"steps": steps}
    entrant = parse(text, track, Schedule, defaults, fixed)
    schedule_of(entrant)  # refuses values that make no schedule
    return entrant


@dataclass(frozen=True)
class Options:
    """How the runs are run. Nothing here may change what is learned, but for rounding."""

    engine: str = "auto"
    dtype: str = "auto"  # auto, float32 or bfloat16
    threads: int = 0  # CPU threads; 0: this process's share of the cores
    compile: bool = True
    cuda_graphs: bool = False  # replay forward and backward as one graph: for small models on a GPU
    microbatch: int = 0  # sequences of a forward and backward pass; 0: as many as fit
    loss_chunk: int = 8192  # tokens of a process whose logits are in memory at once; 0: all
    ns_backend: str = "auto"  # of Newton-Schulz: auto (the fastest), plain, gram or triton
    log_logits: bool = False  # the largest attention logits, at validations, off the clock
    timeout: int = 300  # seconds without progress after which several processes give up
    results: str = "results"  # folder

    def __post_init__(self) -> None:
        for name, least in (("threads", 0), ("microbatch", 0), ("loss_chunk", 0), ("timeout", 1)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                flag = "--" + name.replace("_", "-")
                raise UserError(f"{flag} {value}: must be {least} or more; or leave it out")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the matrix products.

    "auto" takes bfloat16 where it is at least 1.5 times as fast as float32: where the processor
    has units for it. A CPU without them emulates it, a hundred times slower, hence the small
    product there; on a GPU a small one would time its launch.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        n = 4096 if device.type == "cuda" else 256
        speed = {dt: machine.matmul_flops(device, dt, n, repeats=3) for dt in names.values()}
        fast = speed[torch.bfloat16] > 1.5 * speed[torch.float32]
        return torch.bfloat16 if fast else torch.float32
    if name not in names:
        raise UserError(f"dtype {name!r}: must be auto, float32 or bfloat16")
    return names[name]


# ---------------------------------------------------------------------------------------------
# One run.


@dataclass
class Outcome:
    """What a run did and what it cost."""

    clock: Clock
    compile_seconds: float = 0.0  # and the rest of the warm-up
    status: str = MISSED
    steps: int = 0
    points: list[Point] = field(default_factory=list)
    val_seconds: float = 0.0
    grad_norm: float = 0.0  # when last measured
    logits: list[tuple[int, Tensor]] = field(default_factory=list)  # step, largest (n_layer H)
    memory: dict[str, int] = field(default_factory=dict)  # bytes of params, grads and state


Watch = Callable[[int, int, float, float | None], None]  # step, steps, train_loss, val_loss


class Trainer(Passes):
    """One model on one machine, trained anew for each entrant and seed.

    The model object, and with it the compiled program, is shared by all runs; weights, optimizers
    and their state are not.
    """

    def __init__(
        self, track: Track, options: Options, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.track, self.options, self.device = track, options, machine.local_device()
        torch.set_num_threads(options.threads or machine.threads())
        self.data = open_dataset(track.dataset, val_tokens=track.val_tokens)
        self.engine = engines.make(options.engine, self.device, options.timeout)
        self.gpt = GPT(track.config(self.data.vocab_size), options.loss_chunk)
        self.share: dict[str, int] = dict(  # of the data, for this process
            seq_len=track.seq_len,
            vocab_size=self.data.vocab_size,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
        )
        batch_seqs = len(self.batches(seed=0).batch(0)[0])  # of this process
        super().__init__(
            self.gpt,
            self.engine,
            dtype=self.engine.share(choose_dtype(options.dtype, self.device)),
            shape=(batch_seqs, track.seq_len),
            microbatch=options.microbatch,
            compiled=options.compile,
            cuda_graphs=options.cuda_graphs,
            now=now,
        )

    def divide_batch(self, microbatch: int) -> None:
        """Validation goes through its tokens in microbatches too."""
        super().divide_batch(microbatch)
        tokens = self.track.val_tokens
        self.val = val_batches(
            self.data.val, val_tokens=tokens, batch_seqs=microbatch, **self.share
        )

    @cached_property
    def matmul_peak(self) -> float:
        """FLOP/s of a large matrix product on this machine, in the run's precision."""
        n = 8192 if self.device.type == "cuda" else 2048
        return machine.matmul_flops(self.device, self.dtype, n, repeats=5)

    def batches(self, seed: int) -> Batches:
        """The training data of a run. Raises UserError if the batch does not divide."""
        order = seed if self.track.shuffle else None
        tokens = self.track.batch_tokens
        return Batches(self.data.train, batch_tokens=tokens, shuffle_seed=order, **self.share)

    def plan(self, entrant: Entrant) -> list[optim.Group]:
        """The entrant's rule for each parameter. Raises UserError if its options make none."""
        roles, settings = self.engine.roles(), entrant.recipe_settings
        try:
            plan = optim.plan(roles, entrant.recipe, settings, self.dtype, self.options.ns_backend)
            self.engine.optimizers(plan)
            self.gpt.check_clip(optim.qk_clip(plan))
        except ValueError as error:
            raise UserError(f"{entrant.label}: {error}") from None
        except ArithmeticError as error:
            raise UserError(f"{entrant.label}: {error}; change the options given") from None
        return plan

    def check(self, entrant: Entrant) -> None:
        """Raise UserError now for what would stop this entrant's runs later."""
        self.batches(seed=0).require(schedule_of(entrant).steps)
        self.plan(entrant)

    def run(
        self, entrant: Entrant, seed: int, watch: Watch | None = None, only_last: bool = False
    ) -> Outcome:
        """Train to the end of the schedule, or to divergence; no validation loss stops a run.

        `watch` is called off the clock. `only_last`: validate at the end alone.
        """
        schedule, track = schedule_of(entrant), self.track
        self.gpt.init_weights(seed)
        plan = self.plan(entrant)
        self.optimizers, self.tau = self.engine.optimizers(plan), optim.qk_clip(plan)
        matrix_lr = next(g.options["lr"] for g in plan if optim.pick(g.params, "matrix"))
        machine.free_memory()
        exploded = 2 * math.log(self.data.vocab_size)  # twice the loss of a uniform guess
        out = Outcome(Clock(self.now, self.device), compile_seconds=self.warm_up())
        self.engine.mark = out.clock.mark
        torch.manual_seed(seed)  # for rules that draw numbers
        machine.reset_peak_memory(self.device)
        unread: list[Tensor] = []  # losses that are still on the device
        losses: list[float] = []  # since the last validation
        with Feed(self.batches(seed), schedule.steps, self.device) as feed:
            for step in range(schedule.steps):
                factor, out.steps = schedule.factor(step), step + 1
                due = out.steps == schedule.steps or (
                    track.validates(out.steps, schedule.steps) and not only_last
                )
                unread.append(self.step(feed, factor, out, measure=due))
                if not due and len(unread) < READ_EVERY[self.device.type]:
                    continue
                out.clock.stop()
                losses += [self.engine.mean(torch.stack(unread).mean())] * len(unread)
                unread = []
                val_loss = self.validate(out) if due else None
                if not (
                    losses[-1] < exploded and (val_loss is None or val_loss < exploded)
                ):  # or NaN
                    out.status = DIVERGED
                    break
                if watch:
                    watch(out.steps, schedule.steps, losses[-1], val_loss)
                if val_loss is not None:
                    train_loss = statistics.fmean(losses)
                    lr = matrix_lr * factor
                    out.points.append(provenance.point_row(self, out, train_loss, val_loss, lr))
                    losses = []
        if out.status != DIVERGED and crossing(out.points, track.target):
            out.status = REACHED
        return out

    def step(self, feed: Feed, factor: float, out: Outcome, measure: bool = False) -> Tensor:
        """Step number out.steps; its training loss in this process, nats per token, unread.

        It starts the clock and leaves it running. `measure`: note gradient norm and memory too,
        off the clock, while there are gradients.
        """
        clock = out.clock
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["initial_lr"] * factor
        clock.start()
        with clock.part("data"):
            inputs, targets = feed.next()
        with clock.part("forward_backward"):
            loss = self.forward_backward(inputs, targets)
        for begin, end in self.engine.waits:
            clock.spend("communication", begin, end, instead_of="forward_backward")
        self.engine.waits.clear()
        if measure:
            clock.stop()
            out.grad_norm, out.memory = self.engine.grad_norm(), self.engine.state_bytes()
            if self.options.log_logits and not self.tau:
                self.measure_logits(inputs, targets)
                self.note_logits(out)
            clock.start()
        with clock.part("optimizer"):
            self.engine.step()
        if self.tau:  # by the logits of this step's forward pass, as published
            with clock.part("communication"):
                largest = self.note_logits(out)
            with clock.part("optimizer"):
                self.gpt.clip_qk(largest, self.tau)
        return loss

    def note_logits(self, out: Outcome) -> Tensor:
        """The largest attention logits since the last call, of all processes: (n_layer H)."""
        largest = self.engine.max(self.gpt.pop_max_logits())
        out.logits.append((out.steps, largest))
        return largest

    @torch.no_grad()
    def validate(self, out: Outcome) -> float:
        """The loss on the validation tokens, nats per token: the same ones every time."""
        begun = self.now()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.engine.evaluation():
            for batch in self.val:
                total += self.loss(*self.to_device(*batch))
        share = self.track.val_tokens / self.engine.world_size
        loss = self.engine.mean(total / share)
        out.val_seconds += self.now() - begun
        return loss


# ---------------------------------------------------------------------------------------------
# The race.


def race(
    trainer: Trainer, entrants: Sequence[Entrant], seeds: int, race_id: str, done: Sequence[Run]
) -> list[Run]:
    """Run every entrant with every seed, but those `done`, and record each as it ends.

    Seeds outside, entrants inside, the order reversed every other seed, so that a machine that
    drifts hits all alike.
    """
    source, root = provenance.program(), Path(trainer.options.results)
    runs, finished = list(done), {(run.entrant, run.seed) for run in done}
    first = trainer.engine.rank == 0  # the others say and write nothing
    with Live(total=seeds * len(entrants), done=done, silent=not first) as live:
        for seed in range(seeds):
            for entrant in entrants if seed % 2 == 0 else reversed(entrants):
                if (entrant.canonical, seed) in finished:
                    continue
                steps = schedule_of(entrant).steps
                live.start(entrant.label, seed, steps)
                facts = provenance.provenance(trainer, entrant, seed, source)
                out = trainer.run(entrant, seed, live.watch)
                run = provenance.run_row(trainer, facts, race_id, steps, out)
                if first:
                    store.record(root, run, out.points, source, provenance.logit_rows(out))
                runs.append(run)
                live.finish(run)
    return runs


def settle_track(arguments: argparse.Namespace) -> Track:
    """The track, with what the command line overrides."""
    if arguments.track is None:
        arguments.track = "gpt2" if torch.cuda.is_available() else "tiny"
    if arguments.track not in TRACKS:
        raise UserError(f"unknown track {arguments.track!r}: one of {', '.join(TRACKS)}")
    track, overrides = TRACKS[arguments.track], command_line.given(arguments, Track)
    if overrides or arguments.steps is not None:
        track = replace(track, name="custom", **overrides)
    return track


def entrants_of(arguments: argparse.Namespace) -> list[Entrant]:
    """The entrants that the command line names."""
    words = arguments.words or ["adamw", "muon"]
    entrants = [enter(word, arguments.track, arguments.steps) for word in words]
    if len({entrant.canonical for entrant in entrants}) < len(entrants):
        raise UserError(f"{' '.join(words)}: an entrant is named twice; name each once")
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: must be at least 1; run with --seeds 3")
    return entrants


def dry_run_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Say what the race would take; it needs neither data nor a GPU."""
    dry_run.conduct(track, entrants_of(arguments), options.loss_chunk, arguments)


def plan_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Show what each parameter gets; it needs neither data nor a GPU."""
    arguments.words = arguments.words[1:]
    assignment.conduct(track, entrants_of(arguments))


def race_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Race, then say who won."""
    entrants = entrants_of(arguments)
    trainer = Trainer(track, options)
    first = trainer.engine.rank == 0
    for entrant in entrants:
        trainer.check(entrant)
        if first:
            print(f"{entrant.label}: {entrant.origin}\n    {entrant.canonical}")
    race_id, done = trainer.engine.share(
        provenance.open_race(trainer, entrants, arguments.resume) if first else None
    )
    try:
        race(trainer, entrants, arguments.seeds, race_id, done)
    finally:
        if first:
            runs = [run for run in store.read_runs(Path(options.results)) if run.race == race_id]
            print("", table.text(table.summarise(runs)), *report.sentences(runs), sep="\n")
    trainer.engine.close()


def tune_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Tune each recipe, as far as --stage and the other shards allow."""
    words = arguments.words[1:] or ["adamw", "muon"]
    plan = tune.Plan(arguments.trials, tune.read_shard(arguments.shard), arguments.stage)
    recipes = [spelling.recipe_of(word) for word in words]
    if len(set(recipes)) < len(recipes):
        raise UserError(f"tune {' '.join(words)}: a recipe is named twice; name each once")
    knobs = [entrant_options(recipe, Schedule) for recipe in recipes]
    fixed = [assigned(word, known) for word, known in zip(words, knobs, strict=True)]
    trainer = Trainer(track, options)
    if trainer.engine.world_size > 1:
        raise UserError("tune: runs in one process; share the trials with --shard instead")
    settle = partial(enter, track=arguments.track)
    for recipe, known, given in zip(recipes, knobs, fixed, strict=True):
        tune.conduct(tune.Study(trainer, recipe, known, settle, plan, given), tuned.TUNED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = command_line.command_line(__doc__, TRACKS, Options, Track)
    tune.add_flags(parser)
    dry_run.add_flags(parser)
    arguments = parser.parse_args(argv)
    command = dry_run_main if arguments.dry_run else race_main
    command = {"tune": tune_main, "plan": plan_main}.get("".join(arguments.words[:1]), command)
    try:
        if arguments.dry_run and command is not dry_run_main:
            raise UserError(f"--dry-run {arguments.words[0]}: plans a race; name entrants alone")
        options = Options(**command_line.given(arguments, Options))
        track = settle_track(arguments)
        if command in (race_main, tune_main):
            store.ready(Path(options.results))
        command(track, options, arguments)
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(2)  # torchrun ends this process once the first has said the same
        print(f"speedrun.py: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not engines.lost_contact(error):
            raise
        print(
            f"speedrun.py: rank {os.environ['RANK']} lost the others; torchrun names the rank "
            f"that failed; what is finished is recorded: go on with --resume\n    {error}",
            file=sys.stderr,
        )
        return 1
    except tune.Incomplete as left:
        print(f"speedrun.py: {left}; run the command again without --shard when they are done")
    except KeyboardInterrupt:
        print("\nstopped; what is finished is recorded: go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
