"""Checks of the other ways to run a step: replayed as one CUDA graph, and by the engine of several
processes, though of one here.

On a model as small as `tiny`, of whose kernels none takes as long as its launch, in two
microbatches a step: each way must train as the single process that launches its kernels does.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from bench.gpu_check.config import Setting
from bench.gpu_check.runner import Notes
from bench.gpu_check.training import Curve, apart, curve_of, release
from speedrun import Trainer

# Of losses in nats, and of gradients relative: it is the same program, but for sums in another
# order and for what is compiled together.
NEAR = 0.05
LAUNCHED = "launched"
WAYS: dict[str, dict[str, Any]] = {  # changed options of the trainer
    LAUNCHED: {},
    "one CUDA graph": dict(cuda_graphs=True),
    "ddp of one process": dict(engine="ddp"),
}


def run(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part."""
    found = {}
    for way, changes in WAYS.items():
        if changes.get("cuda_graphs") and setting.device.type != "cuda":
            notes.skip(way, "there are none on a CPU")
            continue
        with notes.attempt(way), alone():
            found[way] = trained(setting, notes, way, changes)
        release(setting)
    if LAUNCHED in found:
        losses, norm = found.pop(LAUNCHED)
        for way, (theirs, their_norm) in found.items():
            off = max(apart(theirs, losses))
            notes.check(f"{way}: losses off those of {LAUNCHED} kernels", off, most=NEAR)
            off = abs(their_norm / norm - 1)
            notes.check(f"{way}: norm of the gradients off theirs", off, most=NEAR)


def trained(
    setting: Setting, notes: Notes, way: str, changes: dict[str, Any]
) -> tuple[Curve, float]:
    """The losses of a few steps and the norm of the last gradients; notes what more steps take."""
    sizes, track = setting.sizes, setting.small_track()
    half = track.batch_tokens // track.seq_len // 2
    options = replace(
        setting.options(setting.compile), microbatch=half, loss_chunk=half * track.seq_len // 2
    )
    trainer = Trainer(track, replace(options, **changes))
    try:
        short = trainer.run(setting.entrant("muon", sizes.check_steps), seed=0)
        if setting.compile and trainer.eager:
            notes.fail(way, f"it ran eagerly: {trainer.eager}")
        long = trainer.run(setting.entrant("muon", sizes.small_steps), seed=0, only_last=True)
    finally:
        trainer.engine.close()
    notes.measure(way, "step", 1e3 * long.clock.seconds / long.steps, "ms")
    for part in ("forward_backward", "optimizer", "communication"):
        notes.measure(way, part, 1e3 * long.clock.parts[part] / long.steps, "ms")
    return curve_of(short), short.grad_norm


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """What torchrun would tell the only process that it started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
