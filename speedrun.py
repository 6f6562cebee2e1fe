"""The trainer: trains a model with several optimizers and records what a target loss costs each.

    python speedrun.py                                  # AdamW against Muon, on this machine
    python speedrun.py adamw muon:lr=0.05 --seeds 5     # an entrant is name[:key=value,...]
    python speedrun.py adamw muon --resume              # go on with a race that was stopped

What is trained, timed and validated, and in which order, stands here in reading order: tracks,
schedule, precision, a run, its training step and its validation, the rows, the race. Elsewhere are
the model (model.py), the updates (optim/), averaging over processes (engines/) and where a curve
meets the target (tracking/crossing.py). A run adds its row to results/runs.csv and its validations
to results/curves/; where they were measured, its attention logits to results/logits/ and its
singular values to results/spectra/.

Shapes: (B T) sequences of this process by tokens, H heads.
"""

import host.interpreter  # noqa: F401  # isort: skip
import argparse
import hashlib
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

import engines
import optim
from analysis import report
from data import DATASETS, frozen, open_dataset, settled
from data.loader import Batches, ValBatches, val_batches
from errors import UserError
from host import entry
from host.paths import RESULTS, from_here
from layers.attention import WAYS
from layers.config import GPTConfig, preset
from model import GPT
from optim import Linear
from optim.entrants import Entrant, parse
from runtime import command_line, fastest, machine, provenance
from runtime.clock import Clock
from runtime.command_line import knob
from runtime.feed import Feed
from runtime.heats import LEFT, Heat, Heats
from runtime.memory import CrowdedError, Peak, load_libraries
from runtime.outcome import Outcome
from runtime.program import Program, UncompiledError, require_room, run_eagerly
from runtime.proof import prove
from runtime.rehearsal import rehearse
from runtime.spectra import Spectra, require_shown
from tracking import resume, spelling, store
from tracking.crossing import crossing
from tracking.live import Lane, Live, OnProgress, Progress, introduce
from tracking.schema import DIVERGED, MISSED, REACHED, Run, Validation, logit_rows
from tracking.spectra import spread

# Reading a loss waits for the device, so on a GPU the losses of several steps are read together.
READ_EVERY = {"cpu": 1, "cuda": 25}  # steps

PROTOCOL = 1  # version of what a run is; it is part of every track_hash


# ---------------------------------------------------------------------------------------------
# Tracks: what is frozen.


@dataclass(frozen=True)
class Track:
    """What a race is about. With any other value, or another horizon for all, it is "custom"."""

    name: str
    dataset: str = knob(f"one of {', '.join(DATASETS)}; the last two with a folder: text:FOLDER")
    model: str = knob("one of the presets in layers/config.py")
    width: int | None = knob("channels, in place of the preset's; heads keep their size")
    seq_len: int = knob("tokens of a sequence")
    batch_tokens: int = knob("tokens of one step, all processes together")
    val_tokens: int = knob("validation tokens, from the start of the validation shards")
    val_every: int = knob("steps between validations")
    val_every_late: int = knob("steps between validations in the last tenth of a run")
    target: float = knob("validation loss to reach, nats per token")
    shuffle: bool = knob("shuffle the sequences by the seed; else the same order for all seeds")
    search_steps: int = knob("horizon of the tuner's trials, and of entrants that are not tuned")

    def __post_init__(self) -> None:
        command_line.above_zero(self)

    def config(self, vocab_size: int) -> GPTConfig:
        """The model's sizes on a data set with this vocabulary."""
        return preset(self.model, vocab_size, self.seq_len, self.width)

    def hash(self) -> str:
        """16 hex digits over every frozen value but the target, which has a column of its own.

        Values at their declared default are left out, so a field that is added later with a
        default keeps the old hashes.
        """
        values = {
            each.name: getattr(part, each.name)
            for part in (self.config(vocab_size=0), replace(self, dataset=frozen(self.dataset)))
            for each in fields(part)
            if getattr(part, each.name) != each.default
        }
        text = json.dumps(values | {"rules": PROTOCOL, "target": 0.0}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def validates(self, step: int, steps: int) -> bool:
        """Whether a run of `steps` is validated after `step` of them."""
        late = step > 0.9 * steps and step % self.val_every_late == 0
        return late or step % self.val_every == 0 or step == steps

    def validated(self, steps: int) -> list[int]:
        """The steps, from 1, after which a run of `steps` is validated."""
        return [step for step in range(1, steps + 1) if self.validates(step, steps)]


GPT2 = Track(  # the fixed setting of modded-nanogpt's track 3
    name="gpt2", dataset="fineweb", model="gpt2", width=None, seq_len=1024,
    batch_tokens=8 * 64 * 1024, val_tokens=10_485_760, val_every=125, val_every_late=25,
    target=3.28, shuffle=False, search_steps=5000,
)  # fmt: skip
TINY = Track(
    name="tiny", dataset="sotu", model="tiny", width=None, seq_len=128,
    batch_tokens=48 * 128, val_tokens=816 * 128, val_every=20, val_every_late=4,
    target=3.60,  # of a tuned AdamW; see studies.tune.target_from
    shuffle=True, search_steps=70,
)  # fmt: skip
TRACKS = {
    "tiny": TINY,
    # Other models on the same data; the targets are of AdamW as it was tuned on each of them.
    "tiny-gqa": replace(TINY, name="tiny-gqa", model="tiny-gqa", target=3.65),
    "tiny-mla": replace(TINY, name="tiny-mla", model="tiny-mla", target=3.70),
    "tiny-classic": replace(TINY, name="tiny-classic", model="tiny-classic", target=4.11),
    "gpt2": GPT2,
    # The setting of October 2024, behind the claim of 35%.
    "gpt2-2024": replace(GPT2, name="gpt2-2024", model="gpt2-2024", search_steps=9500),
    "medium": replace(GPT2, name="medium", model="medium", target=2.92, search_steps=15_000),
    # Its target is the loss that AdamW reached in the public log.
    "xl": replace(
        GPT2, name="xl", model="xl", batch_tokens=480 * 1024, target=2.7737, search_steps=20_000
    ),
}


@dataclass(frozen=True)
class Schedule:
    """The learning rate over a run: linear up from 0, flat, linear down to 0."""

    steps: int = 0  # the horizon: reaching the target does not end a run
    warmup: Annotated[float, Linear(0.0, 0.2)] = 0.0  # fraction of the steps
    cooldown: Annotated[float, Linear(0.1, 1.0)] = 0.7  # fraction of the steps

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
    """The entrant spelled `text`, on a track of TRACKS; `steps`, if given, is its horizon.

    Options that it leaves out come from optim/tuned.toml, or else from the defaults of its recipe
    and of Schedule, with the track's search_steps as horizon. Raises UserError.
    """
    defaults = {"steps": TRACKS[track].search_steps}
    fixed = {} if steps is None else {"steps": steps}
    entrant = parse(text, track, Schedule, defaults, fixed)
    schedule_of(entrant)  # refuses values that make no schedule
    return entrant


@dataclass(frozen=True)
class Options:
    """How the runs are run. No option may change the result by more than rounding."""

    engine: str = knob(f"layout over processes: auto, {', '.join(engines.names())}", "auto")
    zero_stage: int = knob("of an engine with ZeRO: what it shards, from 0, nothing, to 3, all", 1)
    comm_dtype: str = knob("precision of what an engine sends, if it can choose", "float32")
    dtype: str = knob("precision of matrix products: auto, float32 or bfloat16", "auto")
    attention: str = knob(f"how it is computed: auto (fastest), {', '.join(WAYS)}", "auto")
    threads: int = knob("CPU threads of a process; 0: its share of the cores", 0)
    compile: bool = knob("compile the model with torch.compile", True)
    cuda_graphs: bool = knob("replay passes as CUDA graphs; pays for small models on a GPU", False)
    microbatch: int = knob("sequences of a pass; 0: up to 65,536 tokens, as fit the memory", 0)
    loss_chunk: int = knob("tokens whose logits are in memory at once; 0: all", 8192)
    ns_backend: str = knob("Newton-Schulz: auto (fastest), plain, gram, triton-64, ...", "auto")
    turn_steps: int = knob("steps of a turn, while other entrants wait; 0: a run at a time", 2)
    save_every: int = knob("steps between checkpoints, for --resume; 0: none", 250)
    log_logits: bool = knob("record attention logits of the batch at validated steps", False)
    log_spectra: bool = knob("record singular values at up to 8 of the validated steps", False)
    timeout: int = knob("seconds without progress until several processes give up", 300)
    results: Path = knob("folder of the rows and curves", RESULTS)  # noqa: RUF009

    def __post_init__(self) -> None:
        least = dict.fromkeys(
            ("threads", "microbatch", "loss_chunk", "turn_steps", "save_every"), 0
        )
        command_line.at_least(self, **least, timeout=1)


def choose_dtype(name: str, device: torch.device, width: int) -> torch.dtype:
    """The precision of matrix products; "auto": bfloat16 where units for it are clearly faster."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name == "auto":
        name = "bfloat16" if fastest.bfloat16_pays(device, width) else "float32"
    if name not in names:
        raise UserError(f"--dtype {name}: must be auto, float32 or bfloat16; leave it out")
    return names[name]


def choose_attention(name: str, config: GPTConfig, program: Program) -> str:
    """How attention is computed: "fused" or "plain"; "auto" takes the faster one."""
    if name == "auto":
        shape = program.microbatch, program.seq_len
        return fastest.attention(config, shape, program.dtype, program.device)
    if name not in WAYS:
        raise UserError(f"--attention {name}: must be auto, {' or '.join(WAYS)}; leave it out")
    return name


# ---------------------------------------------------------------------------------------------
# One run.


class Trainer:
    """One model on one machine, trained anew for each entrant and seed.

    The runs of a trainer follow each other and share its model object; each draws its weights anew
    and has its own optimizers. Runs that take turns have a trainer each (`crew`); all use the same
    compiled program.
    """

    def __init__(
        self, track: Track, options: Options, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.track, self.options, self.now = track, options, now
        self.device = machine.local_device()
        torch.set_num_threads(options.threads or machine.threads())
        machine.keep_memory()
        self.source, self.commit = provenance.program_text(), provenance.commit()
        self.data = open_dataset(track.dataset, val_tokens=track.val_tokens)
        self.engine = engines.make(
            options.engine, self.device, options.timeout, options.zero_stage, options.comm_dtype
        )
        if options.log_spectra:
            require_shown(self.engine)
        self._part = dict(  # this process's part of the data
            seq_len=track.seq_len,
            vocab_size=self.data.vocab_size,
            rank=self.engine.rank,
            world_size=self.engine.world_size,
        )
        width = track.config(self.data.vocab_size).n_embd
        self.dtype = self.engine.broadcast(choose_dtype(options.dtype, self.device, width))
        load_libraries(self.device)
        self._crew = [self]  # whose runs take turns; one list for all of them
        self._place(options.microbatch, "" if options.compile else "as asked")
        way = choose_attention(options.attention, self.gpt.config, self.program)
        self.attention = self.engine.broadcast(way)
        self.gpt.use_attention(self.attention)
        self.val_batches()  # refuses a number of tokens that does not divide

    def _place(self, microbatch: int, eager_reason: str) -> None:
        """Make the model and its program, in an engine that has no model yet."""
        self.memory = Peak(self.device)
        self.memory.begin_turn()
        self.gpt = GPT(self.track.config(self.data.vocab_size), self.options.loss_chunk)
        self.program = Program(
            self.gpt,
            self.engine,
            dtype=self.dtype,
            shape=self.train_batches(seed=0).shape,
            microbatch=microbatch,
            eager_reason=eager_reason,
            cuda_graphs=self.options.cuda_graphs,
        )
        self.memory.end_turn()

    def crew(self, count: int) -> Iterator["Trainer"]:
        """This trainer and others, `count` in all, whose runs can take turns.

        A missing one is made when asked for, and takes over the last one's microbatch: warm that up
        first. Raises CrowdedError if there is no memory for one more.
        """
        for number in range(count):
            if number == len(self._crew):
                require_room([each.program for each in self._crew])
                other = copy(self)
                other.engine, other.matmul_peak = self.engine.another(), self.matmul_peak
                other._place(self.program.microbatch, self.program.eager_reason)
                other.gpt.use_attention(self.attention)
                self._crew.append(other)
            yield self._crew[number]

    @property
    def others(self) -> list["Trainer"]:
        """The rest of the crew."""
        return [each for each in self._crew if each is not self]

    def dismiss(self) -> None:
        """Let the others go, and end the turn in which the memory may have run out."""
        self._crew = [self]
        self.memory.end_turn()

    def forget(self) -> None:
        """Free the optimizers of the last run, also of one that was given up in its warm-up."""
        self.memory.begin_turn()
        self.engine.build(())
        self.memory.end_turn()

    def train_batches(self, seed: int) -> Batches:
        """This process's part of the batches of a run. Raises UserError if they do not divide."""
        tokens, order = self.track.batch_tokens, seed if self.track.shuffle else None
        return Batches(self.data.train, batch_tokens=tokens, shuffle_seed=order, **self._part)

    def val_batches(self) -> ValBatches:
        """This process's part of the validation tokens, a microbatch at a time: always the same."""
        tokens, size = self.track.val_tokens, self.program.microbatch
        return val_batches(self.data.val, val_tokens=tokens, batch_seqs=size, **self._part)

    @cached_property
    def matmul_peak(self) -> float:
        """FLOP/s of a large matrix product on this machine, in the run's precision."""
        n = 8192 if self.device.type == "cuda" else 2048
        return machine.matmul_flops(self.device, self.program.dtype, n, repeats=5)

    def build(self, entrant: Entrant) -> list[optim.Group]:
        """Build the entrant's optimizers in the engine; the groups of parameters and their rules.

        Raises UserError if its options cannot be built.
        """
        roles, settings = self.engine.roles(), entrant.recipe_settings
        dtype, backend = self.program.dtype, self.options.ns_backend
        try:
            plan = optim.plan(roles, entrant.recipe, settings, dtype, backend)
            self.engine.build(plan)
            self.gpt.check_clip(optim.qk_clip(plan))
        except (ValueError, ArithmeticError) as error:
            raise UserError(f"{entrant.label}: {error}; change the options given") from None
        return plan

    def check(self, entrant: Entrant) -> None:
        """Raise UserError now for what would stop this entrant's runs later."""
        schedule = schedule_of(entrant)
        self.train_batches(seed=0).require(schedule.steps)  # enough tokens
        plan = self.build(entrant)
        rehearse(self.program, schedule.steps, schedule.factor, entrant.label)
        prove(self.program, plan, build=lambda: self.build(entrant))
        self.forget()

    def run(
        self, entrant: Entrant, seed: int, watch: OnProgress | None = None, only_last: bool = False
    ) -> Outcome:
        """Train without taking turns; see `run_in_turns`."""
        *_, out = self.run_in_turns(entrant, seed, 0, watch, only_last)
        return out

    def run_in_turns(
        self,
        entrant: Entrant,
        seed: int,
        turn_steps: int,
        watch: OnProgress | None = None,
        only_last: bool = False,
        heats: Heats | None = None,
    ) -> Iterator[Outcome]:
        """Train to the end of the schedule, or to divergence; reaching the target stops nothing.

        Yields when the run is warmed up, and after each turn of `turn_steps` steps (0: one turn):
        then other runs may use the device. `watch` is called off the clock, whenever losses are
        read. `only_last`: validate at the end alone. A run that is in a checkpoint of `heats` goes
        on from there.
        """
        schedule, track = schedule_of(entrant), self.track
        exploded = 2 * math.log(self.data.vocab_size)  # nats: twice the loss of a uniform guess

        machine.free_memory()  # what ended runs left must not be freed on this run's account
        self.memory.begin_turn()
        with self.engine.weights():
            self.gpt.init_weights(seed)
        plan = self.build(entrant)
        tau = optim.qk_clip(plan)  # None: this entrant does not clip attention logits
        # For the column lr of the curve.
        matrix_lr = next(g.options["lr"] for g in plan if optim.pick(g.params, "matrix"))
        out = Outcome(entrant, seed, Clock(self.now, self.device))
        self.warm_up(tau, out)
        machine.seed_random(seed)  # for rules that draw numbers, also as they are made
        self.build(entrant)
        if heats:
            heats.restore(self, out)  # weights, optimizers, clock, and where the run was
        due_at = [schedule.steps] if only_last else track.validated(schedule.steps)
        spectra = self.spectra(plan, due_at)
        left = range(out.steps, schedule.steps)
        with Feed(self.train_batches(seed), left, self.device) as feed:
            for step in left:
                if step == left[0] or step % (turn_steps or schedule.steps) == 0:
                    with self.others_turn(out):
                        yield out
                factor = schedule.factor(step)
                out.steps = step + 1
                due = out.steps in due_at
                measure = spectra if due else None
                loss = self.step(feed, factor, tau, out, measure)  # starts the clock
                out.unread.append(loss)
                if not due and len(out.unread) < READ_EVERY[self.device.type]:
                    continue

                out.clock.stop()  # until the next step; every unread step is given their mean loss
                read = self.engine.all_reduce_mean(torch.stack(out.unread).mean())
                out.losses += [read] * len(out.unread)
                out.unread = []
                with self.memory.aside():
                    out.spectra += spectra.after(out.steps)
                val_loss = self.validate(out) if due else None
                newest = [read] if val_loss is None else [read, val_loss]
                if not all(loss < exploded for loss in newest):  # so that NaN counts as exploded
                    out.status = DIVERGED
                    break
                if watch:
                    seconds = out.clock.seconds
                    watch(Progress(out.steps, schedule.steps, seconds, read, val_loss))
                if val_loss is not None:
                    train_loss, lr = statistics.fmean(out.losses), matrix_lr * factor
                    out.points.append(self.validation_row(out, train_loss, val_loss, lr))
                    out.losses = []
        hit = crossing(out.points, track.target)
        out.status = out.status or (REACHED if hit else MISSED)
        out.eager_reason = self.program.observed()
        out.end_turn()
        self.memory.end_turn()
        yield out

    def warm_up(self, tau: float | None, out: Outcome) -> None:
        """Compile, find a microbatch that fits and the fastest Newton-Schulz, off the clock.

        This makes steps on dummy tokens; then weights and state are restored. On a CPU it also
        measures the peak memory.
        """
        begun = self.now()
        self.engine.mark = None
        reserve = sum(each.program.state_bytes for each in self.others)
        self.program.warm_up(tau, alone=not self.others, reserve=reserve)
        out.compile_seconds = self.now() - begun
        weights = self.engine.state_bytes()["params"]
        self.memory.restart(partial(self.program.rehearse, tau), weights)
        self.engine.mark = out.clock.mark  # from here on, so that no rehearsal is on the clock

    @contextmanager
    def others_turn(self, out: Outcome) -> Iterator[None]:
        """Within it, other runs use the device: clock and memory do not count what they do."""
        out.end_turn()
        self.memory.end_turn()
        out.random = machine.random_state(self.device)
        yield
        machine.set_random_state(self.device, out.random)
        self.memory.begin_turn()

    def step(
        self,
        feed: Feed,
        factor: float,
        tau: float | None,
        out: Outcome,
        measure: Spectra | None = None,
    ) -> Tensor:
        """Training step number out.steps. It starts the clock, if need be, and leaves it running.

        factor: of every learning rate. tau: of QK-Clip, or None. measure: not None if the step is
        validated: then gradient norm, memory and what else is asked for are measured while there
        are gradients, off the clock. Returns this process's mean loss, nats per token, still on the
        device.
        """
        clock, sent = out.clock, self.engine.sent_bytes
        clock.start()
        self.engine.set_lr(factor)
        with clock.part("data"):  # waits for a batch that is read ahead
            inputs, targets = feed.next()  # (B T) each
        with clock.part("forward_backward"), self.gpt.measuring(tau is not None):
            loss = torch.zeros((), device=self.device)
            parts = self.program.microbatches(inputs, targets)
            for number, (x, y) in enumerate(parts, start=1):
                # With the last one the engine averages the gradients over processes.
                last = number == len(parts)
                loss += self.program.forward_backward(x, y, of=targets.numel(), last=last)
            if measure:
                self.engine.wait()
        # Waiting that no computation hid lies inside the backward pass: count it apart.
        clock.move("communication", "forward_backward", self.engine.exposed_communication)
        if measure:
            clock.stop()
            sent -= self.engine.sent_bytes
            out.grad_norm, out.memory = self.engine.grad_norm(), self.engine.state_bytes()
            if self.options.log_logits and tau is None:
                self.measure_logits(inputs, targets)
                self.reduce_max_logits(out)
            with self.memory.aside():
                measure.before(out.steps)
            sent += self.engine.sent_bytes  # what measuring sent does not count
            clock.start()
        with clock.part("optimizer"):
            self.engine.step()  # updates the weights and clears the gradients
        clock.move("communication", "optimizer", self.engine.exposed_communication)
        out.sent_bytes += self.engine.sent_bytes - sent
        if tau is not None:  # QK-Clip, by the logits of the forward pass above, as published
            with clock.part("communication"):
                largest = self.reduce_max_logits(out)
            with clock.part("optimizer"), self.engine.weights():
                self.gpt.clip_qk(largest, tau)
        return loss

    @torch.no_grad()
    def validate(self, out: Outcome) -> float:
        """The loss on the validation tokens, nats per token. The clock is stopped."""
        begun = self.now()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with self.engine.evaluation():  # the averaged weights, for rules that keep such
            for batch in self.val_batches():
                total += self.program.loss(*self.program.to_device(*batch))
        tokens = self.track.val_tokens / self.engine.world_size
        loss = self.engine.all_reduce_mean(total / tokens)
        out.val_seconds += self.now() - begun
        return loss

    def spectra(self, plan: Sequence[optim.Group], due_at: Sequence[int]) -> Spectra:
        """Measures singular values at some of the validated steps, if asked for."""
        steps = spread(due_at) if self.options.log_spectra else ()
        return Spectra(self.engine, self.gpt, plan, steps)

    @torch.no_grad()
    def measure_logits(self, inputs: Tensor, targets: Tensor) -> None:
        """A second forward pass that notes the attention logits of a batch (B T)."""
        with self.gpt.measuring():
            for part in self.program.microbatches(inputs, targets):
                self.program.loss(*part)

    def reduce_max_logits(self, out: Outcome) -> Tensor:
        """The largest attention logits since the last call, of all processes: (n_layer H)."""
        largest = self.engine.all_reduce_max(self.gpt.pop_max_logits())
        out.logits.append((out.steps, largest))
        return largest

    # ---- What a run writes down ------------------------------------------------------------------

    def conditions(self) -> dict[str, Any]:
        """The columns of tracking.schema.Provenance that every run has, as they are now."""
        return dict(
            track=self.track.name,
            track_hash=self.track.hash(),
            engine=self.engine.name,
            world_size=self.engine.world_size,
            source_hash=store.source_hash(self.source),
            data_hash=self.data.hash,
            **provenance.facts(self.device, self.dtype, self.attention, self.commit),
        )

    def facts(self, out: Outcome) -> dict[str, Any]:
        """The columns of tracking.schema.Provenance for a run that has ended."""
        return self.conditions() | dict(
            started=out.started,
            label=out.entrant.label,
            entrant=out.entrant.canonical,
            seed=out.seed,
            compiled=not out.eager_reason,
            compile_note=out.eager_reason,
        )

    def validation_row(
        self, out: Outcome, train_loss: float, val_loss: float, lr: float
    ) -> Validation:
        """The row of curves/<run>.csv for the validation after step out.steps."""
        since = out.steps - (out.points[-1].step if out.points else 0)
        seconds = out.clock.read_interval()
        return Validation(
            step=out.steps,
            tokens=out.steps * self.track.batch_tokens,
            train_seconds=out.clock.seconds,
            train_loss=train_loss,
            val_loss=val_loss,
            lr=lr,
            grad_norm=out.grad_norm,
            step_ms=1e3 * seconds["all"] / since,
            optimizer_ms=1e3 * seconds["optimizer"] / since,
            peak_memory_bytes=self.memory.read(),
        )

    def run_row(
        self, out: Outcome, race_id: str, heat: str = "", turn_steps: int = 0, layouts: str = ""
    ) -> Run:
        """The row of runs.csv. heat: the name of the heat; empty for a run that took no turns.

        turn_steps: if others than the options say. layouts: the engines of a run that went on with
        another one.
        """
        track, clock, engine = self.track, out.clock, self.engine
        hit = crossing(out.points, track.target) if out.status == REACHED else None
        loss = out.points[-1].val_loss if out.points else None
        flops = self.gpt.flops_per_token(track.seq_len) * track.batch_tokens
        held = engine.largest(peak=self.memory.read(), sent=out.sent_bytes, **out.memory)
        return Run(
            **self.facts(out) | {"engine": layouts or engine.name},
            race=race_id,
            run=f"{race_id}-{spelling.file_name(out.entrant.canonical)}-s{out.seed}",
            heat=heat,
            turn_steps=(turn_steps or self.options.turn_steps) if heat else 0,
            status=out.status,
            target=track.target,
            steps_planned=schedule_of(out.entrant).steps,
            steps=out.steps,
            tokens=out.steps * track.batch_tokens,
            final_loss=loss,
            final_bits_per_byte=self.data.bits_per_byte(loss),
            steps_to_target=hit.step if hit else None,
            tokens_to_target=hit.tokens if hit else None,
            seconds_to_target=hit.seconds if hit else None,
            train_seconds=clock.seconds,
            data_seconds=clock.parts["data"],
            forward_backward_seconds=clock.parts["forward_backward"],
            optimizer_seconds=clock.parts["optimizer"],
            communication_seconds=clock.parts["communication"],
            communication_bytes=held["sent"],
            compile_seconds=out.compile_seconds,
            val_seconds=out.val_seconds,
            param_count=self.gpt.param_count,
            param_bytes=held.get("params", 0),  # 0: diverged before it was measured
            grad_bytes=held.get("grads", 0),
            state_bytes=held.get("state", 0),
            peak_memory_bytes=held["peak"],
            flops_per_step=flops,
            matmul_peak_flops=self.matmul_peak,
            mfu=flops * out.steps / clock.seconds / self.matmul_peak / engine.world_size,
        )


# ---------------------------------------------------------------------------------------------
# The race.


def race(
    trainer: Trainer, entrants: Sequence[Entrant], seeds: int, race_id: str, done: Sequence[Run]
) -> list[Run]:
    """Run every entrant with every seed, but those `done`, and record each as it ends.

    The runs of a seed make a heat: they take turns, so that a machine that drifts, or that somebody
    else uses, hits all alike. Where the memory does not hold them together, each runs alone.
    """
    root, turn_steps = trainer.options.results, trainer.options.turn_steps
    runs, finished = list(done), {(run.entrant, run.seed) for run in done}
    first = trainer.engine.rank == 0  # the other ranks print and write nothing
    if turn_steps and not trainer.engine.together:
        turn_steps = 0
        if first:
            print(f"the engine {trainer.engine.name} holds one run: each runs alone", flush=True)
    total, alone = seeds * len(entrants), READ_EVERY[trainer.device.type]
    folder = store.checkpoints_path(root, race_id)
    heats = Heats(folder, trainer.engine, trainer.options.save_every, trainer.conditions())
    with Live(trainer.track.target, total, done, silent=not first, entrants=entrants) as live:
        for seed in range(seeds):
            order = entrants if seed % 2 == 0 else entrants[::-1]
            left = {e.canonical: e for e in order if (e.canonical, seed) not in finished}
            ended = {canonical for canonical, of in finished if of == seed}
            if not left:
                continue
            while left:
                heat = heats.next(seed, [*left], ended, turn_steps, alone)
                together = [left[name] for name in heat.entrants]
                try:
                    for by, out, lane in run_heat(trainer, together, heat, heats, live):
                        turn, layouts = heat.turn_steps, heats.layouts_column
                        run = by.run_row(out, race_id, heat.name, turn, layouts)
                        turns = out.turns if heat.name else []
                        if first:
                            logits = logit_rows(out.logits)
                            rows = logits, turns, out.spectra
                            store.record(root, run, out.points, by.source, *rows)
                            resume.keep(root, race_id, vars(by.options), by.program.setup())
                        runs.append(run)
                        lane.finish(run)
                        del left[run.entrant]
                except CrowdedError:
                    turn_steps = 0
                    trainer.dismiss()
                    live.give_up()
                    if first:
                        print("the memory does not hold several runs: each runs alone", flush=True)
                except UncompiledError:
                    live.give_up()
                    run_eagerly([each.program for each in (trainer, *trainer.others)])
            heats.end()
    return runs


def run_heat(
    trainer: Trainer, entrants: Sequence[Entrant], heat: Heat, heats: Heats, live: Live
) -> Iterator[tuple[Trainer, Outcome, Lane]]:
    """Run all entrants with one seed; yields each run when it has ended, with its trainer.

    They take turns, in every other round in reverse order; between two rounds a checkpoint may be
    written. A single run takes turns with nobody: its losses are read then. Raises before any
    training: CrowdedError if the memory does not hold all of them, UncompiledError if only some
    would be compiled, UserError if earlier runs of the race differ.
    """
    for each in (trainer, *trainer.others):
        each.forget()
    alive = []
    for entrant, by in zip(entrants, trainer.crew(len(entrants)), strict=True):
        lane = live.enter(entrant.label, heat.seed, schedule_of(entrant).steps)
        turns = by.run_in_turns(entrant, heat.seed, heat.turn_steps, lane.watch, heats=heats)
        out = next(turns)  # warms up
        lane.go_on(out.points, out.clock.seconds)
        alive.append((by, out, turns, lane))
    resume.require_same_kind(live.runs, trainer.program.eager_reason)
    with heats.saving():
        for number in itertools.count(heat.round):
            heats.between_rounds(replace(heat, round=number), [(by, out) for by, out, *_ in alive])
            for run in alive[:: 1 if number % 2 == 0 else -1]:
                by, out, turns, lane = run
                next(turns)
                if out.status:
                    yield by, out, lane
                    alive.remove(run)
            if not alive:
                return


def make_parser(
    description: str | None, program: str, only: Collection[str] | None = None, race: bool = True
) -> argparse.ArgumentParser:
    """The parser of this command, and of others that take entrants and a track."""
    return command_line.race_parser(description, program, [*TRACKS], Options, Track, only, race)


def chosen_track(arguments: argparse.Namespace) -> Track:
    """The track, with what the command line overrides. Raises UserError."""
    if arguments.track is None:
        arguments.track = "gpt2" if torch.cuda.is_available() else "tiny"
    if arguments.track not in TRACKS:
        names = ", ".join(TRACKS)
        raise UserError(f"--track {arguments.track}: must be one of {names}; try --track tiny")
    track, overrides = TRACKS[arguments.track], command_line.given(arguments, Track)
    dataset = settled(overrides.pop("dataset", track.dataset))
    if overrides or frozen(dataset) != track.dataset or vars(arguments).get("steps") is not None:
        overrides["name"] = "custom"
    return replace(track, dataset=dataset, **overrides)


def entrants_of(arguments: argparse.Namespace) -> list[Entrant]:
    """The entrants that the command line names. Raises UserError."""
    words = arguments.entrants or ["adamw", "muon"]
    entrants = [enter(word, arguments.track, arguments.steps) for word in words]
    if len({entrant.canonical for entrant in entrants}) < len(entrants):
        raise UserError(f"{' '.join(words)}: an entrant is named twice; name each once")
    command_line.at_least(arguments, seeds=1)
    return entrants


def race_command(arguments: argparse.Namespace) -> None:
    """Race, then print the table and what the race shows."""
    options = Options(**command_line.given(arguments, Options))
    track, root = chosen_track(arguments), options.results
    store.ready(root)
    entrants = entrants_of(arguments)
    options = resume.settled(options, resume.to_go_on_with(root, arguments.resume))
    trainer = Trainer(track, options)
    first = trainer.engine.rank == 0
    for entrant in entrants:
        trainer.check(entrant)
    if first:
        tokens = track.batch_tokens * arguments.seeds * sum(schedule_of(e).steps for e in entrants)
        flops = trainer.gpt.flops_per_token(track.seq_len) * tokens / trainer.engine.world_size
        note = machine.patience_note(trainer.device, flops, trainer.matmul_peak)
        print(from_here(introduce(entrants)), *([note] if note else []), sep="\n")
        spellings = [entrant.canonical for entrant in entrants]
        expected, asked = trainer.conditions() | {"target": track.target}, vars(options)
        opened = resume.open_race(root, spellings, arguments.resume, expected, asked)
    race_id, done = trainer.engine.broadcast(opened if first else None)
    trainer.program.adopt(trainer.engine.broadcast(store.read_setup(root, race_id)))
    try:
        race(trainer, entrants, arguments.seeds, race_id, done)
    finally:
        if first:
            print("", *report.ending(root, race_id), sep="\n")
    trainer.engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = make_parser(__doc__, "speedrun.py")
    note = "go on with RACE; without a name, with the newest race"
    parser.add_argument("--resume", nargs="?", const="", metavar="RACE", help=note)
    return engines.tell_if_lost(lambda: entry.run(parser, argv, race_command, LEFT), LEFT)


if __name__ == "__main__":
    sys.exit(main())
