"""The whole training step of our models, and of the peer that one would take instead.

    python -m bench.step    # ten minutes on two CPU cores, most of them for compilation

The peer is GPT-2 of Hugging Face `transformers` at the sizes of `tiny-classic` (bench/peers.py),
with each of its two ways to compute attention. A step is forward pass, backward pass, optimizer and
clearing of gradients, on one batch of the track. All use torch's fused AdamW with the same options;
our models also have Muon. In each precision, all take turns in one process, and a time is the
median over rounds.

"times the best peer" is the time with AdamW over the shortest time of the peer in that precision.
Goals, compiled: at most 0.5 in bfloat16 on a processor with AMX, at most 0.8 in float32.

Share: the model's FLOPs a second over the peak, which is measured beside it with a 2048 x 2048
product in the same precision. Goal: 45% compiled. "ms at peak" is the time that the model's FLOPs
take at the peak. Runs on the GPU if there is one, else on the CPU.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import engines
import optim
from bench import Row, environment, medians, peers, precisions, run, write
from host.cores import cores
from runtime import machine
from speedrun import TRACKS, Options, Track, Trainer, enter

ROUNDS = 15
TRACKS_MEASURED = (TRACKS["tiny-classic"], TRACKS["tiny"])  # the peer has the sizes of the first
OPTIMIZERS = ("adamw", "muon")


class Name(NamedTuple):
    """What is measured."""

    model: str
    attention: str  # how it is computed: ours fused or plain, the peer's sdpa or eager
    compiled: str  # "yes" or "no"
    optimizer: str


class Step:
    """One training step, always on the same batch, which notes how long its optimizer takes."""

    def __init__(
        self,
        forward_backward: Callable[[], Tensor],
        update: Callable[[], None],
        device: torch.device,
    ) -> None:
        """forward_backward: adds the gradients, and returns the mean loss.

        update: steps the optimizer and clears the gradients.
        """
        self.forward_backward, self.update, self.device = forward_backward, update, device
        self.losses: list[float] = []
        self.update_ms: list[float] = []

    def __call__(self) -> None:
        loss = self.forward_backward()
        machine.synchronize(self.device)
        begun = time.perf_counter()
        self.update()
        machine.synchronize(self.device)
        self.update_ms.append(1e3 * (time.perf_counter() - begun))
        self.losses.append(loss.item())


def warm_up(trainer: Trainer) -> None:
    """Compile a trainer's program, with fresh weights and Muon."""
    trainer.gpt.init_weights(0)
    trainer.build(enter("muon", trainer.track.name))
    trainer.program.warm_up(tau=None)


def first_batch(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """The first batch of a trainer's track, on its device: inputs and targets, (B T) each."""
    return trainer.program.to_device(*trainer.train_batches(seed=0).batch(0))


def our_steps(trainer: Trainer) -> dict[str, Step]:
    """The step of a trainer's model with each of the OPTIMIZERS.

    They share the program and the weights: each goes on from where another one stopped.
    """
    track, program = trainer.track.name, trainer.program
    warm_up(trainer)
    inputs, targets = first_batch(trainer)
    forward_backward = partial(
        program.forward_backward, inputs, targets, of=targets.numel(), last=True
    )
    steps = {}
    for name in OPTIMIZERS:
        engine, entrant = engines.make("single", trainer.device), enter(name, track)
        engine.wrap(trainer.gpt)
        settings = entrant.recipe_settings
        engine.build(optim.plan(engine.roles(), entrant.recipe, settings, program.dtype))
        steps[name] = Step(forward_backward, engine.step, trainer.device)
    return steps


def adamw_options(track: str) -> dict[str, Any]:
    """AdamW's options for all parameters of the peer: ours for hidden matrices."""
    settings = enter("adamw", track).recipe_settings
    same = {option: settings[option] for option in ("lr", "weight_decay", "eps")}
    return same | {"betas": (settings["beta1"], settings["beta2"]), "fused": True}


def peer_step(trainer: Trainer, attention: str, compiled: bool) -> Step:
    """The peer's step, at the sizes of a trainer's model, on its batch and in its precision."""
    model: nn.Module = peers.GPT2(trainer.gpt.config, attention).to(trainer.device)
    run: Callable[..., Tensor] = torch.compile(model, dynamic=False) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), **adamw_options(trainer.track.name))
    inputs, targets = first_batch(trainer)
    dtype = trainer.program.dtype

    def forward_backward() -> Tensor:
        low = dtype != torch.float32
        with torch.autocast(trainer.device.type, dtype=dtype, enabled=low):
            loss = run(inputs, targets)
        loss.backward()
        return loss.detach()

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Step(forward_backward, update, trainer.device)


def measure(
    tracks: Sequence[Track],
    options: Options,
    ways: Sequence[bool] = (True, False),
    rounds: int = ROUNDS,
) -> list[Row]:
    """Measure all steps in the precision of `options`: a row for each model and way.

    tracks: of our models; the peer has the sizes of the first. ways: whether to compile. Raises
    RuntimeError if a step does not lower the loss on its batch, which is what a step is for.
    """
    steps: dict[Name, Step] = {}
    flops: dict[str, float] = {}  # of a step, by model
    for track, compiled in product(tracks, ways):
        trainer = Trainer(track, replace(options, engine="single", compile=compiled))
        ours = our_steps(trainer)  # falls back to eager where compilation fails
        how = "no" if trainer.program.eager_reason else "yes"
        for optimizer, step in ours.items():
            steps[Name(track.model, trainer.attention, how, optimizer)] = step
        flops[track.model] = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
        if track is tracks[0] and peers.installed():
            flops[peers.NAME] = flops[track.model]
            for attention in peers.ATTENTIONS:
                name = Name(peers.NAME, attention, how, "adamw")
                steps[name] = peer_step(trainer, attention, how == "yes")
    peak = machine.matmul_flops(trainer.device, trainer.program.dtype, 2048, repeats=7)
    for step in steps.values():
        step()  # the peer compiles, and optimizers make their state
    ms = medians(steps, rounds)
    for name, step in steps.items():
        if not step.losses[-1] < step.losses[0]:
            raise RuntimeError(f"{name}: the loss went from {step.losses[0]} to {step.losses[-1]}")
    # Of the same rounds as `ms`: the first updates also make the state.
    update_ms = {name: statistics.median(step.update_ms[-rounds:]) for name, step in steps.items()}
    return rows_of(options.dtype, ms, update_ms, flops, peak)


def rows_of(
    dtype: str,
    ms: Mapping[Name, float],
    update_ms: Mapping[Name, float],
    flops: Mapping[str, float],
    peak: float,
) -> list[Row]:
    """A row for each model, compiled and eager, in one precision.

    ms: of whole steps. update_ms: of their optimizers alone. flops: of a step, by model.
    peak: FLOP/s.
    """
    best = min((ms[name] for name in ms if name.model == peers.NAME), default=None)
    rows: list[Row] = []
    for model, attention, compiled in dict.fromkeys(name[:3] for name in ms):
        adamw, muon = (Name(model, attention, compiled, optimizer) for optimizer in OPTIMIZERS)
        at_peak = 1e3 * flops[model] / peak
        row: Row = {
            "dtype": dtype,
            "model": model,
            "attention": attention,
            "compiled": compiled,
            "step ms": round(ms[adamw], 1),
            "times the best peer": f"{ms[adamw] / best:.2f}x" if best else "",
            "share": f"{at_peak / ms[adamw]:.1%}",
            "adamw ms": round(update_ms[adamw], 2),
            "step with muon ms": "",
            "share with muon": "",
            "muon ms": "",
            "muon's part of the step": "",
            "ms at peak": round(at_peak, 1),
            "peak GFLOP/s": round(peak / 1e9),
        }
        if muon in ms:
            row |= {
                "step with muon ms": round(ms[muon], 1),
                "share with muon": f"{at_peak / ms[muon]:.1%}",
                "muon ms": round(update_ms[muon], 2),
                "muon's part of the step": f"{update_ms[muon] / ms[muon]:.1%}",
            }
        rows.append(row)
    return rows


def measure_all() -> None:
    """Measure, and write the rows."""
    device = machine.local_device()
    torch.set_num_threads(cores())
    if not peers.installed():
        print(peers.MISSING)
    rows: list[Row] = []
    for dtype in precisions(device):
        rows += measure(TRACKS_MEASURED, Options(dtype=dtype))
    write("step", rows, environment(device) | peers.version())


def main() -> int:
    """Run the command; its exit code."""
    return run("step", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
