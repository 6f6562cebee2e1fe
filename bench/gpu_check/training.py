"""Checks and measurements of the training step: the trainer's own, on random tokens.

Checked: compiled training has the losses of eager training, a seed gives the same curve each time,
the clock's parts add up to its seconds, and what a process holds is what the dry run says.
Measured: tokens a second, MFU, the split of the step, memory; and the optimizers alone.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench import medians, newton_schulz, optimizer_step
from bench.gpu_check.config import ENTRANTS, TRACK, Setting
from bench.gpu_check.runner import Notes
from layers.config import preset
from model import GPT
from planner import dry_run
from planner.hardware import GPUS
from runtime import machine
from speedrun import Outcome, Trainer, choose_dtype

GOAL = 0.55  # MFU of the step, optimizer included, on one H100
PARTS = ("forward_backward", "optimizer", "data")

# Nats. Two programs that round differently drift apart with each step: where a gradient is all
# rounding, AdamW's first steps have the sign of the rounding.
FIRST_LOSS, LATER_LOSSES = 0.005, 0.1
Curve = list[tuple[float, float]]  # (training loss, validation loss) of each step


def peak(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part `machine`: what it is, and the peak of its matrix products."""
    device, n = setting.device, setting.sizes.matmul_n
    kinds = (torch.float32,) if setting.size == "toy" else (torch.bfloat16, torch.float32)
    for dtype in kinds:
        flops = machine.matmul_flops(device, dtype, n, repeats=20)
        name = str(dtype).removeprefix("torch.")
        notes.measure(f"{n} x {n} product", f"{name} peak", flops / 1e12, "TFLOP/s")
    chosen = choose_dtype("auto", device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        notes.measure("device", "memory", properties.total_memory / 1e9, "GB")
        low = chosen == torch.bfloat16
        if properties.major >= 8:
            notes.check("the trainer takes bfloat16 by itself", float(low), least=1)
    else:
        notes.measure("device", "cores", machine.cores(), "")


# ---------------------------------------------------------------------------------------------
# Checks.


def curve(trainer: Trainer, setting: Setting, entrant: str) -> Curve:
    """The losses of a few steps of seed 0."""
    return curve_of(trainer.run(setting.entrant(entrant, setting.sizes.check_steps), seed=0))


def curve_of(out: Outcome) -> Curve:
    """The losses of a run that was validated after each step."""
    return [(point.train_loss or 0.0, point.val_loss) for point in out.points]


def apart(a: Curve, b: Curve) -> list[float]:
    """How far two curves are apart after each step: the larger of both losses' differences."""
    return [max(abs(x - y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]


def same_training(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part `training`: eager against compiled, and one seed twice."""
    # torch looks at it at the first matrix product of a process, and never again.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    track = setting.track(setting.sizes.check_seqs)
    eager = Trainer(track, setting.options())
    plain = {name: curve(eager, setting, name) for name in ENTRANTS}
    for name in ENTRANTS:
        with notes.attempt(f"{name}: eager, the same seed"), deterministic():
            one, two = (curve(eager, setting, name) for _ in range(2))
            same_seed(notes, f"{name}, eager, deterministic", one, two, most=0)
    del eager
    release(setting)
    if not setting.compile:
        notes.skip("compiled against eager", "nothing is compiled here without --compile")
        return
    trainer = Trainer(track, setting.options(compiled=True))
    for name, losses in plain.items():
        with notes.attempt(f"{name}: compiled"):
            found = curve(trainer, setting, name)
            if trainer.eager:
                why = f"it ran eagerly: {trainer.eager}"
                if "compiler" in trainer.eager and setting.device.type == "cpu":
                    notes.skip("compiled against eager", why)
                else:
                    notes.fail("compiled against eager", why)
                return
            first, off = abs(found[0][0] - losses[0][0]), apart(found, losses)
            notes.check(f"{name}: compiled off eager, first loss", first, most=FIRST_LOSS)
            notes.check(f"{name}: compiled off eager, any loss", max(off), most=LATER_LOSSES)
            most = 0 if setting.device.type == "cpu" else LATER_LOSSES
            same_seed(notes, f"{name}, compiled", found, curve(trainer, setting, name), most)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Have torch take its deterministic kernels, and raise where it has none.

    Where it may only warn, fused attention keeps the backward pass that adds in any order.
    """
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def same_seed(notes: Notes, what: str, first: Curve, second: Curve, most: float) -> None:
    """Says whether both are alike to the bit, and from which step on they are not."""
    off = apart(first, second)
    where = next((number for number, x in enumerate(off, start=1) if x), None)
    note = f"bit for bit, {len(off)} steps" if where is None else f"differs from step {where} on"
    notes.check(f"{what}: the same seed gives the same curve", max(off), most, note=note)


def release(setting: Setting) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if setting.compile:
        torch.compiler.reset()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------
# The step.


def step(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part `step`: compiled with both optimizers, with Muon's published form, and eager."""
    track = setting.track(setting.sizes.step_seqs)
    if setting.compile:
        trainer = Trainer(track, setting.options(compiled=True))
        for name in ENTRANTS:
            with notes.attempt(f"{name}, compiled"):
                timed(setting, notes, trainer, name, f"{name}, compiled")
        with notes.attempt("muon, compiled, plain Newton-Schulz"):
            trainer.options = replace(trainer.options, ns_backend="plain")
            timed(setting, notes, trainer, "muon", "muon, compiled, plain Newton-Schulz")
        del trainer
        release(setting)
    trainer = Trainer(track, setting.options())
    for name in ENTRANTS:
        with notes.attempt(f"{name}, eager"):
            timed(setting, notes, trainer, name, f"{name}, eager")


def timed(setting: Setting, notes: Notes, trainer: Trainer, name: str, case: str) -> None:
    """Run some steps, and note what the clock says of them."""
    sizes, track = setting.sizes, trainer.track
    eager = not trainer.options.compile
    entrant = setting.entrant(name, sizes.eager_steps if eager else sizes.timed_steps)
    out = trainer.run(entrant, seed=0, only_last=True)
    if trainer.options.compile and trainer.eager:
        notes.fail(case, f"it ran eagerly: {trainer.eager}")
        return
    peak_bytes = machine.peak_memory(setting.device)
    ms = 1e3 * out.clock.seconds / out.steps
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    rate = flops / ms * 1e3
    notes.measure(case, "step", ms, "ms")
    for part in PARTS:
        notes.measure(case, part, 1e3 * out.clock.parts[part] / out.steps, "ms")
    notes.measure(case, "speed", track.batch_tokens / ms * 1e3, "tokens/s")
    notes.measure(case, "MFU", rate / trainer.matmul_peak, "of the measured peak")
    sheet = data_sheet(setting)
    if sheet:
        notes.measure(case, "MFU, data sheet", rate / sheet, "of the data sheet's peak")
    notes.measure(case, "warm-up", out.compile_seconds, "s")
    counted = sum(out.clock.parts.values()) / out.clock.seconds
    slack = 0.5 if setting.size == "toy" else 0.1  # a toy's step is mostly overhead
    notes.check(f"{case}: parts of the step over all of it", counted, 1.01, least=1 - slack)
    memory(setting, notes, trainer, name, case, out, peak_bytes)


def data_sheet(setting: Setting) -> float | None:
    """FLOP/s in bfloat16 by the maker's data sheet, for a GPU that the planner knows."""
    name = machine.device_name(setting.device).lower()
    if setting.device.type != "cuda" or "pcie" in name or "nvl" in name:  # it knows SXM modules
        return None
    return next((gpu.peak_flops for key, gpu in GPUS.items() if key in name), None)


def memory(
    setting: Setting,
    notes: Notes,
    trainer: Trainer,
    name: str,
    case: str,
    out: Outcome,
    peak_bytes: int,
) -> None:
    """Bytes by kind against the dry run's: what is held must be equal, the rest is an estimate."""
    gpt, sizes = setting.meta_model(), setting.sizes
    plan = dry_run.measure(gpt, setting.entrant(name, 1), validations=0)
    planned = dict(params=plan.param_bytes, grads=plan.grad_bytes, state=plan.state_bytes)
    for kind, size in planned.items():
        off = abs(out.memory[kind] - size)
        notes.check(f"{case}: {kind} off the dry run's, bytes", off, most=0)
        notes.measure(case, f"{kind}, planned", size / 1e9, "GB")
        notes.measure(case, f"{kind}, measured", out.memory[kind] / 1e9, "GB")
    shape = dry_run.shape_of(gpt, sizes.seq_len, sizes.loss_chunk)
    estimate = shape.working_bytes(trainer.microbatch)
    notes.measure(case, "activations and logits, planned", estimate / 1e9, "GB")
    if setting.device.type == "cuda":  # elsewhere the peak is that of the whole process
        working = peak_bytes - sum(out.memory.values())
        notes.measure(case, "activations and logits, measured", working / 1e9, "GB")
    notes.measure(case, "peak", peak_bytes / 1e9, "GB")


# ---------------------------------------------------------------------------------------------
# The optimizers alone.


def optimizers(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part `optimizer_step`: ours against torch's, on the hidden matrices."""
    sizes, device = setting.sizes, setting.device
    config = preset(sizes.model, sizes.vocab_size, sizes.seq_len, sizes.width)
    gpt = GPT(config)
    gpt.init_weights(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    contenders = optimizer_step.contenders(gpt.to(device), dtype)
    for name, ms in medians(contenders, sizes.rounds).items():
        notes.measure(name, "optimizer step", ms, "ms")


def backends(setting: Setting, notes: Notes, seconds: float) -> None:
    """The part `newton_schulz`: every backend on the batches of the model."""
    for shape in setting.sizes.matrices:
        with notes.attempt(f"Newton-Schulz on {shape}"):
            rows: Sequence[dict[str, Any]] = newton_schulz.rows_of(
                TRACK, shape, setting.device, setting.sizes.rounds
            )
            for row in rows:
                taken = " (Muon takes it)" if row["auto"] else ""
                case = f"{row['batch']}, {row['backend']}{taken}"
                notes.measure(case, f"{row['dtype']} iteration", float(row["ms"]), "ms")
