"""The trainer: races optimizers to a target validation loss and writes down what it cost them.

    python speedrun.py                                  # AdamW against Muon, on this machine
    python speedrun.py adamw muon:lr=0.05 --seeds 5     # an entrant is name[:key=value,...]
    python speedrun.py adamw muon --resume              # go on with a race that was stopped
    python speedrun.py tune adamw muon --trials 32      # the search behind optim/tuned.toml

Every decision that could change a reported number, except model math and update math, is read in
this file: tracks, schedule, clock, validation, precision, warm-up, order of the runs. A race adds
one row per run to results/runs.csv and one curve per run to results/curves/; `python -m
results.report` reads them back. On two CPU cores the default race takes about five minutes.
"""

import argparse
import hashlib
import json
import math
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

import engines
import flags
import machine
import optim
import record
import tune
from data import open_dataset
from data.loader import Batches, val_batches
from errors import UserError
from model import GPT, GPTConfig, preset
from optim import Linear
from optim.entrants import TUNED, Entrant, entrant_options, parse
from results import report, store
from results.live import Live
from results.schema import DIVERGED, MISSED, REACHED, Point, Run
from results.stats import crossing

RULES = 1  # version of the protocol; results of different versions are not comparable


# ---------------------------------------------------------------------------------------------
# Tracks: what is frozen.


@dataclass(frozen=True)
class Track:
    """Everything that entrants of a race share. Change any of it and the track is "custom"."""

    name: str
    dataset: str
    model: str  # a preset of model.py
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
            if isinstance(value, int | float) and not (value > 0 or value is False):
                raise UserError(
                    f"{flag} {value}: must be above 0; leave it out for the track's own"
                )

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's sizes on a data set with this vocabulary."""
        config = preset(self.model, vocab_size, self.seq_len)
        if self.width is None:
            return config
        head_size = config.n_embd // config.n_head
        if self.width < 1 or self.width % head_size:
            raise UserError(
                f"width {self.width}: must be a multiple of the head size {head_size}; "
                f"run with --width {max(1, round(self.width / head_size)) * head_size}"
            )
        return replace(config, n_embd=self.width, n_head=self.width // head_size)

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


TRACKS = {
    "tiny": Track(
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

    engine: str = "single"
    dtype: str = "auto"  # auto, float32 or bfloat16
    threads: int = 0  # CPU threads; 0: one for each core that this process may use
    compile: bool = True
    results: str = "results"  # folder


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision of the matrix products.

    "auto" takes bfloat16 where it is at least 1.5 times as fast as float32: where the processor
    has units for it. Without them it is emulated, a hundred times slower, hence the small product.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        speed = {dt: machine.matmul_flops(device, dt, n=256, repeats=3) for dt in names.values()}
        fast = speed[torch.bfloat16] > 1.5 * speed[torch.float32]
        return torch.bfloat16 if fast else torch.float32
    if name not in names:
        raise UserError(f"dtype {name!r}: must be auto, float32 or bfloat16")
    return names[name]


# ---------------------------------------------------------------------------------------------
# The clock.


class Clock:
    """Training time. It runs between `start` and `stop`; `part` says what it was spent on."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._started: float | None = None
        self._before = 0.0
        self._lap: dict[str, float] = {}
        self.parts = {"data": 0.0, "forward_backward": 0.0, "optimizer": 0.0, "communication": 0.0}

    @property
    def seconds(self) -> float:
        running = 0.0 if self._started is None else self._now() - self._started
        return self._before + running

    def start(self) -> None:
        assert self._started is None
        self._started = self._now()

    def stop(self) -> None:
        self._before = self.seconds
        self._started = None

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begun = self._now()
        yield
        self.parts[name] += self._now() - begun

    def lap(self) -> dict[str, float]:
        """Seconds since the lap before, of each part and of "all"."""
        total = self.parts | {"all": self.seconds}
        lap = {name: seconds - self._lap.get(name, 0.0) for name, seconds in total.items()}
        self._lap = total
        return lap


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
    memory: dict[str, int] = field(default_factory=dict)  # bytes of params, grads and state


Watch = Callable[[int, int, float, float | None], None]  # step, steps, train_loss, val_loss


class Trainer:
    """One model on one machine, trained anew for each entrant and seed.

    The model object, and with it the compiled program, is shared by all runs; weights, optimizers
    and their state are not.
    """

    def __init__(
        self, track: Track, options: Options, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.track, self.options, self.now = track, options, now
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if options.threads < 0:
            raise UserError(f"--threads {options.threads}: must be 0 (all cores) or more")
        torch.set_num_threads(options.threads or machine.cores())
        self.data = open_dataset(track.dataset, val_tokens=track.val_tokens)
        self.engine = engines.make(options.engine, self.device)
        self.gpt = GPT(track.config(self.data.vocab_size))
        self.share: dict[str, int] = dict(  # of the data, for this process
            seq_len=track.seq_len,
            vocab_size=self.data.vocab_size,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
        )
        self.batch_seqs = len(self.batches(seed=0).batch(0)[0])
        self.val = val_batches(
            self.data.val, val_tokens=track.val_tokens, batch_seqs=self.batch_seqs, **self.share
        )
        self.dtype = choose_dtype(options.dtype, self.device)
        self.model: Callable[..., Tensor] = self.engine.wrap(self.gpt)
        self.eager = machine.compiler_missing(self.device) if options.compile else "as asked"
        if not self.eager:
            self.model = torch.compile(self.model, dynamic=False)

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
        recipe_settings = {
            key: value
            for key, value in entrant.settings.items()
            if key not in Schedule.__dataclass_fields__
        }
        try:
            plan = optim.plan(self.engine.roles(), entrant.recipe, recipe_settings, self.dtype)
            self.engine.optimizers(plan)
        except ValueError as error:
            raise UserError(f"{entrant.label}: {error}") from None
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
        self.optimizers = self.engine.optimizers(plan)
        matrix_lr = next(g.options["lr"] for g in plan if g.params[0].role == "matrix")
        exploded = 2 * math.log(self.data.vocab_size)  # twice the loss of a uniform guess
        out = Outcome(Clock(self.now), compile_seconds=self.warm_up())
        batches = self.batches(seed)
        machine.reset_peak_memory(self.device)
        losses: list[float] = []  # since the last validation
        for step in range(schedule.steps):
            factor, out.steps = schedule.factor(step), step + 1
            due = out.steps == schedule.steps or (
                track.validates(out.steps, schedule.steps) and not only_last
            )
            losses.append(self.step(batches, factor, out, measure=due))
            val_loss = self.validate(out) if due else None
            if not (losses[-1] < exploded and (val_loss is None or val_loss < exploded)):  # or NaN
                out.status = DIVERGED
                break
            if val_loss is not None:
                train_loss = statistics.fmean(losses)
                out.points.append(self.point(out, train_loss, val_loss, matrix_lr * factor))
                losses = []
            if watch:
                watch(out.steps, schedule.steps, (losses or [train_loss])[-1], val_loss)
        if out.status != DIVERGED and crossing(out.points, track.target):
            out.status = REACHED
        return out

    def step(self, batches: Batches, factor: float, out: Outcome, measure: bool = False) -> float:
        """Step number out.steps, on the clock; its training loss, nats per token.

        `measure`: note gradient norm and memory too, off the clock, while there are gradients.
        """
        clock = out.clock
        for group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            group["lr"] = group["base_lr"] * factor
        clock.start()
        with clock.part("data"):
            inputs, targets = self.to_device(*batches.batch(out.steps - 1))
        with clock.part("forward_backward"):
            loss = self.loss(inputs, targets) / targets.numel()
            self.engine.backward(loss, last=True)
        if measure:
            clock.stop()
            out.grad_norm, out.memory = self.engine.grad_norm(), self.engine.state_bytes()
            clock.start()
        with clock.part("optimizer"):
            self.engine.step()
        clock.stop()
        return self.engine.mean(loss.detach())

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over tokens, nats; matrix products in the run's precision."""
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
            return self.model(inputs, targets)

    def to_device(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        return tuple(torch.from_numpy(x).to(self.device) for x in (inputs, targets))  # type: ignore

    @torch.no_grad()
    def validate(self, out: Outcome) -> float:
        """The loss on the validation tokens, nats per token: the same ones every time."""
        begun = self.now()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in self.val:
            total += self.loss(*self.to_device(*batch))
        share = self.track.val_tokens / self.engine.world_size
        loss = self.engine.mean(total / share)
        out.val_seconds += self.now() - begun
        return loss

    def point(self, out: Outcome, train_loss: float, val_loss: float, lr: float) -> Point:
        """The row of the curve for the validation just made."""
        since = out.steps - (out.points[-1].step if out.points else 0)
        lap = out.clock.lap()
        return Point(
            step=out.steps,
            tokens=out.steps * self.track.batch_tokens,
            train_seconds=out.clock.seconds,
            train_loss=train_loss,
            val_loss=val_loss,
            lr=lr,
            grad_norm=out.grad_norm,
            step_ms=1e3 * lap["all"] / since,
            optimizer_ms=1e3 * lap["optimizer"] / since,
            peak_memory_bytes=machine.peak_memory(self.device),
        )

    def warm_up(self) -> float:
        """Compile, and touch all that a run touches, on dummy tokens; then restore all state.

        Returns the seconds it took. Falls back to eager execution if compilation fails.
        """
        begun = self.now()
        saved = self.engine.save()
        tokens = torch.zeros(self.batch_seqs, self.track.seq_len, dtype=torch.int64)
        inputs, targets = tokens.to(self.device), tokens.to(self.device)
        try:
            self.engine.backward(self.loss(inputs, targets) / targets.numel(), last=True)
            with torch.no_grad():
                self.loss(inputs, targets)
        except RuntimeError as error:
            if self.eager:
                raise
            self.eager = f"compilation failed: {str(error).strip().splitlines()[0][:200]}"
            self.model = self.engine.wrap(self.gpt)
            self.engine.load(saved)
            return self.warm_up()
        self.engine.step()
        self.engine.load(saved)
        return self.now() - begun


# ---------------------------------------------------------------------------------------------
# The race.


def race(
    trainer: Trainer, entrants: Sequence[Entrant], seeds: int, race_id: str, done: Sequence[Run]
) -> list[Run]:
    """Run every entrant with every seed, but those `done`, and record each as it ends.

    Seeds outside, entrants inside, the order reversed every other seed, so that a machine that
    drifts hits all alike.
    """
    source, root = record.program(), Path(trainer.options.results)
    runs, finished = list(done), {(run.entrant, run.seed) for run in done}
    with Live(total=seeds * len(entrants), done=done) as live:
        for seed in range(seeds):
            for entrant in entrants if seed % 2 == 0 else reversed(entrants):
                if (entrant.spelled, seed) in finished:
                    continue
                steps = schedule_of(entrant).steps
                live.start(entrant.label, seed, steps)
                facts = record.provenance(trainer, entrant, seed, source)
                out = trainer.run(entrant, seed, live.watch)
                run = record.run_row(trainer, facts, race_id, steps, out)
                store.record(root, run, out.points, source)
                runs.append(run)
                live.finish(run)
    return runs


def settle_track(arguments: argparse.Namespace) -> Track:
    """The track, with what the command line overrides."""
    if arguments.track not in TRACKS:
        raise UserError(f"unknown track {arguments.track!r}: one of {', '.join(TRACKS)}")
    track, overrides = TRACKS[arguments.track], flags.given(arguments, Track)
    if overrides or arguments.steps is not None:
        track = replace(track, name="custom", **overrides)
    return track


def race_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Race, then say who won."""
    words = arguments.words or ["adamw", "muon"]
    entrants = [enter(word, arguments.track, arguments.steps) for word in words]
    if len({entrant.spelled for entrant in entrants}) < len(entrants):
        raise UserError(f"{' '.join(words)}: an entrant is named twice; name each once")
    if arguments.seeds < 1:
        raise UserError(f"--seeds {arguments.seeds}: must be at least 1; run with --seeds 3")
    trainer = Trainer(track, options)
    for entrant in entrants:
        trainer.check(entrant)
        print(f"{entrant.label}: {entrant.origin}\n    {entrant.spelled}")
    done: list[Run] = []
    race_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{track.name}-{secrets.token_hex(2)}"
    if arguments.resume is not None:
        facts = record.provenance(trainer, entrants[0], 0, record.program())
        root, target = Path(options.results), track.target
        done = record.find_race(root, arguments.resume, facts, target, entrants)
        race_id = done[0].race
    try:
        race(trainer, entrants, arguments.seeds, race_id, done)
    finally:
        runs = [run for run in store.read_runs(Path(options.results)) if run.race == race_id]
        print("", report.text(report.summarise(runs)), *report.sentences(runs), sep="\n")


def tune_main(track: Track, options: Options, arguments: argparse.Namespace) -> None:
    """Tune each recipe, as far as --stage and the other shards allow."""
    recipes = arguments.words[1:] or ["adamw", "muon"]
    plan = tune.Plan(arguments.trials, tune.read_shard(arguments.shard), arguments.stage)
    knobs = {recipe: entrant_options(recipe, Schedule) for recipe in recipes}
    trainer = Trainer(track, options)
    for recipe in recipes:
        settle = partial(enter, track=arguments.track)
        tune.conduct(tune.Study(trainer, recipe, knobs[recipe], settle, plan), TUNED)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = flags.command_line(__doc__, TRACKS, Options, Track)
    tune.add_flags(parser)
    arguments = parser.parse_args(argv)
    command = tune_main if arguments.words[:1] == ["tune"] else race_main
    try:
        options = Options(**flags.given(arguments, Options))
        track = settle_track(arguments)
        store.ready(Path(options.results))
        command(track, options, arguments)
    except UserError as error:
        print(f"speedrun.py: {error}", file=sys.stderr)
        return 2
    except tune.Incomplete as left:
        print(f"speedrun.py: {left}; run the command again without --shard when they are done")
    except KeyboardInterrupt:
        print("\nstopped; what is finished is recorded: go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
