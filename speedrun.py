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
import platform
import re
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
from torch import Tensor

import engines
import machine
import optim
import tune
from data import open_dataset
from data.loader import Batches, val_batches
from errors import UserError
from model import GPT, GPTConfig, preset
from optim import Linear
from optim.entrants import TUNED, Entrant, entrant_options, parse
from results import report, store
from results.live import Live
from results.schema import DIVERGED, FINISHED, MISSED, REACHED, Point, Run, Trial
from results.stats import crossing

RULES = 1  # version of the protocol; results of different versions are not comparable
ROOT = Path(__file__).parent


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
            for part in (self.config(vocab_size=0), replace(self, target=0.0))
            for knob in fields(part)
            if getattr(part, knob.name) != knob.default
        }
        text = json.dumps(frozen | {"rules": RULES}, sort_keys=True)
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
        batch_tokens=40 * 128,
        val_tokens=800 * 128,
        val_every=25,
        val_every_late=5,
        target=4.0,
        shuffle=True,
        search_steps=100,
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


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype, float]:
    """The precision of the matrix products, and the machine's peak in it, FLOP/s.

    "auto" takes bfloat16 where it is at least 1.5 times as fast as float32: where the processor
    has units for it.
    """
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name not in ("auto", *names):
        raise UserError(f"dtype {name!r}: must be auto, float32 or bfloat16")
    dtype = names.get(name)
    if dtype is None:
        # Without such units bfloat16 is emulated, a hundred times slower: look at a small product.
        small = {dt: machine.matmul_flops(device, dt, 256, 3) for dt in names.values()}
        fast = small[torch.bfloat16] > 1.5 * small[torch.float32]
        dtype = torch.bfloat16 if fast else torch.float32
    n = 8192 if device.type == "cuda" else 2048
    return dtype, machine.matmul_flops(device, dtype, n, 5)


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
        self.dtype, self.matmul_peak = choose_dtype(options.dtype, self.device)
        self.model: Callable[..., Tensor] = self.engine.wrap(self.gpt)
        self.eager = machine.compiler_missing(self.device) if options.compile else "as asked"
        if not self.eager:
            self.model = torch.compile(self.model, dynamic=False)

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
            return self.warm_up()
        self.engine.step()
        self.engine.load(saved)
        return self.now() - begun


# ---------------------------------------------------------------------------------------------
# What is written down.


def program() -> dict[str, str]:
    """The files that decide a number, by name: their hash is in every row."""
    patterns = ("*.py", "optim/*.py", "engines/*.py", "data/*.py", "results/s*.py")
    paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def provenance(trainer: Trainer, entrant: Entrant, seed: int, source: str) -> dict[str, Any]:
    """The columns that races and tuning trials share; see results.schema.Provenance."""
    outputs = (":!*.csv", ":!results/sources", ":!plots/*.png", ":!plots/*.svg", ":!*.toml")
    commit = machine.git(ROOT, "rev-parse", "HEAD")
    changes = machine.git(ROOT, "status", "--porcelain", "--", ".", *outputs)
    return dict(
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        track=trainer.track.name,
        track_hash=trainer.track.hash(),
        label=entrant.label,
        entrant=entrant.spelled,
        seed=seed,
        engine=trainer.options.engine,
        world_size=trainer.engine.world_size,
        device=machine.device_name(trainer.device),
        threads=torch.get_num_threads(),
        dtype=str(trainer.dtype).removeprefix("torch."),
        compiled=not trainer.eager,
        compile_note=trainer.eager,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=commit,
        clean=bool(commit) and not changes,
        source_hash=store.source_hash(source),
        data_hash=trainer.data.hash,
    )


def as_run(trainer: Trainer, race: str, facts: dict[str, Any], planned: int, out: Outcome) -> Run:
    """The row of runs.csv."""
    track, clock = trainer.track, out.clock
    hit = crossing(out.points, track.target) if out.status == REACHED else None
    loss = out.points[-1].val_loss if out.points else None
    bits = None if loss is None else loss / math.log(2) / trainer.data.bytes_per_token
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    name = re.sub(r"[^a-z0-9]+", "-", facts["entrant"].partition(":")[0])
    digest = hashlib.sha256(facts["entrant"].encode()).hexdigest()[:6]
    return Run(
        **facts,
        race=race,
        run=f"{race}-{name}-{digest}-s{facts['seed']}",
        status=out.status,
        target=track.target,
        steps_planned=planned,
        steps=out.steps,
        tokens=out.steps * track.batch_tokens,
        final_loss=loss,
        final_bits_per_byte=bits,
        steps_to_target=hit.step if hit else None,
        tokens_to_target=hit.tokens if hit else None,
        seconds_to_target=hit.seconds if hit else None,
        train_seconds=clock.seconds,
        **{f"{part}_seconds": seconds for part, seconds in clock.parts.items()},
        compile_seconds=out.compile_seconds,
        val_seconds=out.val_seconds,
        param_count=sum(p.numel() for p in trainer.gpt.parameters()),
        param_bytes=out.memory.get("params", 0),
        grad_bytes=out.memory.get("grads", 0),
        state_bytes=out.memory.get("state", 0),
        peak_memory_bytes=machine.peak_memory(trainer.device),
        flops_per_step=flops,
        matmul_peak_flops=trainer.matmul_peak,
        mfu=flops * out.steps / clock.seconds / trainer.matmul_peak / trainer.engine.world_size,
    )


# ---------------------------------------------------------------------------------------------
# The race.


def race(
    trainer: Trainer, entrants: Sequence[Entrant], seeds: int, race_id: str, done: Sequence[Run]
) -> list[Run]:
    """Run every entrant with every seed, but those `done`, and record each as it ends.

    Seeds outside, entrants inside, the order reversed every other seed, so that a machine that
    drifts hits all alike.
    """
    source, root = store.source_text(program()), Path(trainer.options.results)
    runs, finished = list(done), {(run.entrant, run.seed) for run in done}
    with Live(total=seeds * len(entrants), done=done) as live:
        for seed in range(seeds):
            for entrant in entrants if seed % 2 == 0 else reversed(entrants):
                if (entrant.spelled, seed) in finished:
                    continue
                steps = schedule_of(entrant).steps
                live.start(entrant.label, seed, steps)
                facts = provenance(trainer, entrant, seed, source)
                out = trainer.run(entrant, seed, live.watch)
                run = as_run(trainer, race_id, facts, steps, out)
                store.record(root, run, out.points, source)
                runs.append(run)
                live.finish(run)
    return runs


def find_race(trainer: Trainer, entrants: Sequence[Entrant], name: str) -> tuple[str, list[Run]]:
    """The race to go on with, and its finished runs: the one called `name`, or the newest."""
    rows = store.read_runs(Path(trainer.options.results))
    wanted = name or (rows[-1].race if rows else "")
    done = [run for run in rows if run.race == wanted]
    if not done:
        raise UserError(
            f"--resume {name}: no finished run of such a race; start one: make speedrun"
        )
    facts = provenance(trainer, entrants[0], 0, store.source_text(program()))
    for key in ("track_hash", "source_hash", "data_hash", "device", "dtype", "threads"):
        if getattr(done[0], key) != facts[key]:
            raise UserError(
                f"--resume: race {wanted} had {key} {getattr(done[0], key)}, now it is "
                f"{facts[key]}; a race must be one experiment: start a new one without --resume"
            )
    strangers = {run.label for run in done} - {entrant.label for entrant in entrants}
    if strangers:
        raise UserError(f"--resume: race {wanted} also has {', '.join(strangers)}; name them too")
    return wanted, done


def add_flags(parser: argparse.ArgumentParser, declared: type, note: str) -> None:
    """A flag for each field of a dataclass; a flag that is not given is absent."""
    group = parser.add_argument_group(note)
    hints = get_type_hints(declared)
    for knob in fields(declared):
        if knob.name == "name":
            continue
        flag, kind = "--" + knob.name.replace("_", "-"), hints[knob.name]
        if kind is bool:
            group.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS
            )
        else:
            kind = int if kind == (int | None) else kind
            group.add_argument(flag, type=kind, metavar=kind.__name__, default=argparse.SUPPRESS)


def given(arguments: argparse.Namespace, declared: type) -> dict[str, Any]:
    """The values of a dataclass that the command line gave."""
    return {f.name: getattr(arguments, f.name) for f in fields(declared) if f.name in arguments}


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="speedrun.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="[tune] ENTRANT", help="default: adamw muon")
    parser.add_argument("--track", default="tiny", help=f"one of {', '.join(TRACKS)}")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each entrant (default 3)")
    parser.add_argument("--resume", nargs="?", const="", metavar="RACE", help="default: the newest")
    parser.add_argument("--steps", type=int, help="horizon of every entrant; a custom track")
    add_flags(parser, Options, "how it runs")
    add_flags(parser, Track, "overrides of the track, for a quick look; they make it custom")
    tune.add_flags(parser)
    return parser


def settle_track(arguments: argparse.Namespace) -> Track:
    """The track, with what the command line overrides."""
    if arguments.track not in TRACKS:
        raise UserError(f"unknown track {arguments.track!r}: one of {', '.join(TRACKS)}")
    track, overrides = TRACKS[arguments.track], given(arguments, Track)
    if overrides or arguments.steps is not None:
        track = replace(track, name="custom", **overrides)
    return track


def race_main(trainer: Trainer, words: Sequence[str], arguments: argparse.Namespace) -> None:
    """Race, then say who won."""
    entrants = [enter(word, arguments.track, arguments.steps) for word in words]
    if len({entrant.spelled for entrant in entrants}) < len(entrants):
        raise UserError(f"{' '.join(words)}: an entrant is named twice; name each once")
    for entrant in entrants:
        trainer.check(entrant)
        print(f"{entrant.label}: {entrant.origin}\n    {entrant.spelled}")
    if arguments.resume is None:
        race_id = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{trainer.track.name}-{secrets.token_hex(2)}"
        done: list[Run] = []
    else:
        race_id, done = find_race(trainer, entrants, arguments.resume)
    try:
        race(trainer, entrants, arguments.seeds, race_id, done)
    finally:
        runs = store.read_runs(Path(trainer.options.results))
        runs = [run for run in runs if run.race == race_id]
        print("", report.text(report.summarise(runs)), *report.sentences(runs), sep="\n")


def tune_main(trainer: Trainer, recipes: Sequence[str], arguments: argparse.Namespace) -> None:
    """Tune each recipe, as far as --stage and the other shards allow."""
    track, root = trainer.track, Path(trainer.options.results)
    source, shard = store.source_text(program()), tune.read_shard(arguments.shard)
    for recipe in recipes or ["adamw", "muon"]:
        options = entrant_options(recipe, Schedule)

        def entrant_of(job: tune.Job, recipe: str = recipe) -> Entrant:
            values = ",".join(f"{key}={value}" for key, value in job.settings.items())
            return parse(f"{recipe}:{values}", track.name, Schedule, {}, {}, tuned=None)

        def find(job: tune.Job, recipe: str = recipe) -> Trial | None:
            key = (track.hash(), job.stage, job.trial, entrant_of(job).spelled, job.seed)
            for row in store.read_trials(root):
                same = (row.track_hash, row.stage, row.trial, row.entrant, row.seed) == key
                if same and row.target in (None, track.target):
                    return row
            return None

        def run(job: tune.Job, recipe: str = recipe) -> Trial:
            entrant = entrant_of(job)
            facts = provenance(trainer, entrant, job.seed, source)
            out = trainer.run(entrant, job.seed, only_last=True)
            finished = out.status if job.stage == "horizon" or out.status == DIVERGED else FINISHED
            trial = Trial(
                **facts,
                recipe=recipe,
                stage=job.stage,
                trial=job.trial,
                steps=job.settings["steps"],
                status=finished,
                target=track.target if job.stage == "horizon" else None,
                final_loss=out.points[-1].val_loss if out.points else None,
                train_seconds=out.clock.seconds,
            )
            store.record_trial(root, trial, source)
            print(
                f"{recipe} {job.stage} {job.trial} seed {job.seed}: {trial.final_loss}", flush=True
            )
            return trial

        study = tune.Study(options, arguments.trials, track.search_steps, shard, find, run)
        tune.conduct(study, recipe, track.name, arguments.stage, TUNED)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = command_line().parse_args(argv)
    words = arguments.words or ["adamw", "muon"]
    tuning = words[0] == "tune"
    try:
        track = settle_track(arguments)
        options = Options(**given(arguments, Options))
        if arguments.seeds < 1:
            raise UserError(f"--seeds {arguments.seeds}: must be at least 1; run with --seeds 3")
        trainer = Trainer(track, options)
        if tuning:
            tune_main(trainer, words[1:], arguments)
        else:
            race_main(trainer, words, arguments)
    except UserError as error:
        print(f"speedrun.py: {error}", file=sys.stderr)
        return 2
    except tune.Incomplete as left:
        print(f"speedrun.py: {left}; run again without --shard when they are done")
    except KeyboardInterrupt:
        print("\nstopped; what is finished is recorded: go on with --resume", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
