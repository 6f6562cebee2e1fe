"""The training step of the track `tiny`, as a share of the peak of the machine's matrix products.

    python -m bench.step

It measures each precision, compiled and eager: the forward and backward pass, and the steps of
AdamW and of Muon. Share: the model's FLOPs a second over the peak, which is measured beside it with
a 2048 x 2048 product in the same precision. Goal: 45% compiled. The last column, "ms at peak", is
the time that the model's FLOPs take at the peak. Runs on the GPU if there is one, else on the CPU.
"""

from functools import partial

import torch

import engines
import optim
from bench import Row, environment, medians, read_command_line, write
from engines import Engine
from runtime import machine
from speedrun import TRACKS, Options, Trainer, enter

ROUNDS = 15
# A precision below this share of float32's peak is emulated: a step would take minutes.
EMULATED = 0.1


def engine_of(trainer: Trainer, name: str) -> Engine:
    """An engine for the trainer's model that has the optimizers of the entrant `name`."""
    engine = engines.make("single", trainer.device)
    engine.wrap(trainer.gpt)
    entrant, dtype = enter(name, trainer.track.name), trainer.program.dtype
    engine.build(optim.plan(engine.roles(), entrant.recipe, entrant.recipe_settings, dtype))
    return engine


def row_of(dtype: str, compiled: bool) -> Row:
    """Measure the step in one precision, compiled or eager."""
    track = TRACKS["tiny"]
    trainer = Trainer(track, Options(engine="single", dtype=dtype, compile=compiled))
    program, parameters = trainer.program, list(trainer.gpt.parameters())
    trainer.gpt.init_weights(0)
    trainer.build(enter("muon", track.name))
    program.warm_up(tau=None)
    inputs, targets = program.to_device(*trainer.train_batches(seed=0).batch(0))

    def forward_backward() -> None:
        trainer.gpt.zero_grad(set_to_none=True)
        program.forward_backward(inputs, targets, of=targets.numel(), last=True)
        machine.synchronize(trainer.device)

    forward_backward()
    gradients = [p.grad for p in parameters]

    def step(engine: Engine) -> None:
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient  # the engine's step clears it
        engine.step()
        machine.synchronize(trainer.device)

    peak = machine.matmul_flops(trainer.device, program.dtype, 2048, repeats=7)
    steps = {name: partial(step, engine_of(trainer, name)) for name in ("adamw", "muon")}
    ms = medians({"forward_backward": forward_backward, **steps}, ROUNDS)
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens

    def share(milliseconds: float) -> str:
        return f"{flops / milliseconds * 1e3 / peak:.1%}"

    base = ms["forward_backward"]
    return {
        "dtype": dtype,
        "compiled": "no" if program.eager_reason else "yes",
        "peak GFLOP/s": round(peak / 1e9),
        "forward-backward ms": round(base, 1),
        "adamw ms": round(ms["adamw"], 2),
        "muon ms": round(ms["muon"], 2),
        "share": share(base),
        "share with adamw": share(base + ms["adamw"]),
        "share with muon": share(base + ms["muon"]),
        "muon's part of the step": f"{ms['muon'] / (base + ms['muon']):.1%}",
        "ms at peak": round(flops / peak * 1e3, 1),
    }


def main() -> None:
    read_command_line("python -m bench.step", __doc__)
    device = machine.local_device()
    torch.set_num_threads(machine.cores())
    peaks = {
        name: machine.matmul_flops(device, getattr(torch, name), 512, repeats=3)
        for name in ("float32", "bfloat16")
    }
    rows: list[Row] = []
    for dtype, peak in peaks.items():
        if peak < EMULATED * peaks["float32"]:
            print(f"{dtype}: {peak / 1e9:.1f} GFLOP/s: emulated here, not measured further")
            continue
        rows += [row_of(dtype, compiled) for compiled in (True, False)]
    write("step", rows, environment(device))


if __name__ == "__main__":
    main()
