"""Checks of CUDA graphs and of the engines: all must train like the plain program.

The plain program is the engine `single`, which launches its kernels one by one. CUDA graphs replay
a pass with one launch. The other engines run here with one process, over NCCL. The model is `tiny`,
which is launch-bound, in two microbatches a step.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.gpu_check.config import Config
from bench.gpu_check.runner import Recorder
from bench.gpu_check.training import Curve, apart, curve_of
from runtime import machine
from speedrun import Trainer

# Limit of the difference of losses, in nats, and of the norm of the gradients, relative. The
# programs differ in the order of sums and in which operations are compiled together.
NEAR = 0.05
LAUNCHED = "launched"
PROGRAMS: dict[str, dict[str, Any]] = {  # name -> changed options of the trainer
    LAUNCHED: {},
    "one CUDA graph": dict(cuda_graphs=True),
    "ddp of one process": dict(engine="ddp"),
    "sharded of one process": dict(engine="sharded"),
    "fsdp2 of one process": dict(engine="fsdp2"),
}


def run(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `graphs and engines`.

    The compiler is not reset in between: a program of the same shapes needs no new compilation.
    """
    found = {}
    for name, changes in PROGRAMS.items():
        if changes.get("cuda_graphs") and config.device.type != "cuda":
            recorder.skip(name, "there are none on a CPU")
            continue
        with recorder.attempt(name), one_process():
            found[name] = trained(config, recorder, name, changes)
        machine.free_memory()
    if LAUNCHED in found:
        losses, norm = found.pop(LAUNCHED)
        for name, (other_losses, other_norm) in found.items():
            off = max(apart(other_losses, losses))
            recorder.check(f"{name}: losses off the losses of {LAUNCHED} kernels", off, most=NEAR)
            off = abs(other_norm / norm - 1)
            check = f"{name}: norm of the gradients off the norm with {LAUNCHED} kernels"
            recorder.check(check, off, most=NEAR)


def trained(
    config: Config, recorder: Recorder, name: str, changes: dict[str, Any]
) -> tuple[Curve, float]:
    """The losses of a few steps and the norm of the last gradients; records the time of a step."""
    sizes, track = config.sizes, config.small_track()
    half = track.batch_tokens // track.seq_len // 2
    options = replace(
        config.options(config.compile), microbatch=half, loss_chunk=half * track.seq_len // 2
    )
    trainer = Trainer(track, replace(options, **changes))
    try:
        short = trainer.run(config.entrant("muon", sizes.check_steps), seed=0)
        if config.compile and trainer.engine.compiles and trainer.program.eager_reason:
            recorder.fail(name, f"it ran eagerly: {trainer.program.eager_reason}")
        long = trainer.run(config.entrant("muon", sizes.small_steps), seed=0, only_last=True)
    finally:
        trainer.engine.close()
    recorder.measure(name, "step", 1e3 * long.clock.seconds / long.steps, "ms")
    for part in ("forward_backward", "optimizer", "communication"):
        recorder.measure(name, part, 1e3 * long.clock.parts[part] / long.steps, "ms")
    return curve_of(short), short.grad_norm


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Set the environment variables that torchrun sets when it starts one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
