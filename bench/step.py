"""The training step of the tiny track, as a share of what the machine's matrix products reach.

    python -m bench.step

Each precision, compiled and eager, without an optimizer and with AdamW's or Muon's step. The share
is the model's FLOPs over seconds and over the peak of a 2048 x 2048 product measured in the same
precision between the rounds. Goal: 45% compiled. The last column says what the step would take if
its matrix products ran at that peak and nothing else took time.
"""

import torch

from bench import Row, medians, setting, write
from runtime import machine
from speedrun import TRACKS, Options, Trainer, enter

ROUNDS = 15
# An emulated precision takes minutes a step: it is reported by its peak alone.
EMULATED = 0.1  # of float32's peak


def rows_of(dtype: str, compiled: bool) -> Row:
    """Measure one way to run the step."""
    track = TRACKS["tiny"]
    trainer = Trainer(track, Options(dtype=dtype, compile=compiled))
    trainer.gpt.init_weights(0)
    plans = {name: trainer.plan(enter(name, track.name)) for name in ("adamw", "muon")}
    optimizers = {name: trainer.engine.optimizers(plan) for name, plan in plans.items()}
    trainer.optimizers = optimizers["muon"]
    trainer.warm_up()
    inputs, targets = trainer.to_device(*trainer.batches(0).batch(0))

    def forward_backward() -> None:
        trainer.gpt.zero_grad(set_to_none=True)
        trainer.engine.backward(trainer.loss(inputs, targets) / targets.numel(), last=True)

    def step(name: str) -> None:
        for optimizer in optimizers[name]:
            optimizer.step()

    peak = machine.matmul_flops(trainer.device, trainer.dtype, 2048, repeats=7)
    ms = medians(
        {
            "forward_backward": forward_backward,
            "adamw": lambda: step("adamw"),
            "muon": lambda: step("muon"),
        },
        ROUNDS,
    )
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens

    def share(milliseconds: float) -> str:
        return f"{flops / milliseconds * 1e3 / peak:.1%}"

    base = ms["forward_backward"]
    return {
        "dtype": dtype,
        "compiled": "yes" if not trainer.eager else "no",
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
    cpu = torch.device("cpu")
    torch.set_num_threads(machine.cores())
    peaks = {
        name: machine.matmul_flops(cpu, getattr(torch, name), 512, repeats=3)
        for name in ("float32", "bfloat16")
    }
    rows: list[Row] = []
    for dtype, peak in peaks.items():
        if peak < EMULATED * peaks["float32"]:
            print(f"{dtype}: {peak / 1e9:.1f} GFLOP/s: emulated here, not measured further")
            continue
        rows += [rows_of(dtype, compiled) for compiled in (True, False)]
    write("step", rows, setting(machine.local_device()))


if __name__ == "__main__":
    main()
