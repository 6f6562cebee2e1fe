"""Checks and measurements of the trainer's own step, on random tokens.

Checked: compiled training has the losses of eager training, a seed gives the same curve each time,
the parts of the step add up to all of it, and a process holds the bytes that the planner predicts.
Measured: tokens a second, MFU, the parts of the step, memory; and the optimizers alone.
"""

import contextlib
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from bench import medians, newton_schulz, optimizer_step
from bench.gpu_check import in_turns
from bench.gpu_check.config import ENTRANTS, TRACK, Config
from bench.gpu_check.runner import Recorder
from host.cores import cores
from layers.config import preset
from model import GPT
from planner.cluster.hardware import GPUS
from planner.race import dry_run
from runtime import machine
from speedrun import Outcome, Trainer, choose_dtype

GOAL = 0.55  # MFU of the step, optimizer included, on one H100
PARTS = ("forward_backward", "optimizer", "data")

# Limits of a difference between losses, nats per token. Two programs that round differently drift
# apart with each step: where a gradient is nothing but rounding errors, AdamW's first steps have
# the signs of the errors.
FIRST_LOSS, LATER_LOSSES = 0.005, 0.1
Curve = list[tuple[float, float]]  # (training loss, validation loss) of each step


def peak(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `machine`: what the device is, and the peak of its matrix products."""
    device, n = config.device, config.sizes.matmul_n
    kinds = (torch.float32,) if config.size == "toy" else (torch.bfloat16, torch.float32)
    for dtype in kinds:
        flops = machine.matmul_flops(device, dtype, n, repeats=20)
        name = str(dtype).removeprefix("torch.")
        recorder.measure(f"{n} x {n} product", f"{name} peak", flops / 1e12, "TFLOP/s")
    if device.type == "cuda":
        memory_bytes = torch.cuda.get_device_properties(device).total_memory
        recorder.measure("device", "memory", memory_bytes / 1e9, "GB")
        if config.dtype == torch.bfloat16:
            taken = choose_dtype("auto", device, width=768) == torch.bfloat16
            recorder.check("the trainer takes bfloat16 by itself", float(taken), least=1)
    else:
        recorder.measure("device", "cores", cores(), "")


# ---------------------------------------------------------------------------------------------
# Checks.


def curve(trainer: Trainer, config: Config, entrant: str) -> Curve:
    """The losses of a few steps of seed 0."""
    return curve_of(trainer.run(config.entrant(entrant, config.sizes.check_steps), seed=0))


def curve_of(out: Outcome) -> Curve:
    """The losses of a run that was validated after each step."""
    return [(point.train_loss or 0.0, point.val_loss) for point in out.points]


def apart(a: Curve, b: Curve) -> list[float]:
    """The difference of two curves after each step: of training or validation loss, the larger."""
    return [max(abs(x - y) for x, y in zip(p, q, strict=True)) for p, q in zip(a, b, strict=True)]


def same_training(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `training`: one seed twice, and compiled against eager."""
    let_cublas_repeat()
    track = config.track(config.sizes.check_seqs)
    eager = Trainer(track, config.options())
    plain: dict[str, Curve] = {}
    for name in ENTRANTS:
        with recorder.attempt(f"{name}: eager, the same seed"), deterministic():
            plain[name], again = (curve(eager, config, name) for _ in range(2))
            same_seed(recorder, f"{name}, eager, deterministic", plain[name], again, most=0)
    del eager
    release(config)
    if not config.compile:
        recorder.skip("compiled against eager", "nothing is compiled here without --compile")
        return
    trainer = Trainer(track, config.options(compiled=True))
    for name, losses in plain.items():
        with recorder.attempt(f"{name}: compiled"):
            found = curve(trainer, config, name)
            if trainer.program.eager_reason:
                why = f"it ran eagerly: {trainer.program.eager_reason}"
                if "compiler" in trainer.program.eager_reason and config.device.type == "cpu":
                    recorder.skip("compiled against eager", why)
                else:
                    recorder.fail("compiled against eager", why)
                return
            first, off = abs(found[0][0] - losses[0][0]), apart(found, losses)
            recorder.check(f"{name}: compiled off eager, first loss", first, most=FIRST_LOSS)
            recorder.check(f"{name}: compiled off eager, any loss", max(off), most=LATER_LOSSES)
            most = 0 if config.device.type == "cpu" else LATER_LOSSES
            same_seed(recorder, f"{name}, compiled", found, curve(trainer, config, name), most)


def let_cublas_repeat() -> None:
    """Let `deterministic` have matrix products; call it before the first one of a process.

    torch reads the variable then, and never again.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch use only deterministic kernels, and raise an error where it has none.

    If torch were allowed to warn instead, the backward pass of fused attention would stay the one
    that adds in any order.
    """
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def same_seed(recorder: Recorder, what: str, first: Curve, second: Curve, most: float) -> None:
    """Check two curves of one seed; the note says from which step on they differ."""
    off = apart(first, second)
    where = next((number for number, x in enumerate(off, start=1) if x), None)
    note = f"bit for bit, {len(off)} steps" if where is None else f"differs from step {where} on"
    recorder.check(f"{what}: the same seed gives the same curve", max(off), most, note=note)


def release(config: Config) -> None:
    """Free the memory of a trainer that is not used any more, and its compiled program."""
    gc.collect()
    if config.compile:
        torch.compiler.reset()
    if config.device.type == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------
# The step.


def step(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `step`: compiled, compiled with the published Newton-Schulz, in turns, and eager."""
    track = config.track(config.sizes.step_seqs)
    for compiled in (True, False) if config.compile else (False,):
        trainer = Trainer(track, config.options(compiled))
        how, alone = "compiled" if compiled else "eager", {}
        for name in ENTRANTS:
            with recorder.attempt(f"{name}, {how}"):
                out = timed(config, recorder, trainer, name, f"{name}, {how}")
                alone[name] = out, trainer.memory.read()
        # A run that failed alone has its failed check, and leaves nothing to compare.
        if compiled == config.compile and len(alone) > 1:
            with recorder.attempt("in turns"):
                in_turns.compare(config, recorder, trainer, alone)
            trainer.dismiss()  # what follows runs alone again
        if compiled:
            with recorder.attempt("muon, compiled, plain Newton-Schulz"):
                trainer.options = replace(trainer.options, ns_backend="plain")
                timed(config, recorder, trainer, "muon", "muon, compiled, plain Newton-Schulz")
        del trainer
        release(config)


def timed(config: Config, recorder: Recorder, trainer: Trainer, name: str, case: str) -> Outcome:
    """Run some steps, and record what the clock says about them."""
    sizes, track = config.sizes, trainer.track
    eager = not trainer.options.compile
    entrant = config.entrant(name, sizes.eager_steps if eager else sizes.timed_steps)
    out = trainer.run(entrant, seed=0, only_last=True)
    if trainer.options.compile and trainer.program.eager_reason:
        recorder.fail(case, f"it ran eagerly: {trainer.program.eager_reason}")
        return out
    peak_bytes = trainer.memory.read()
    ms = 1e3 * out.clock.seconds / out.steps
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    rate = flops / ms * 1e3
    recorder.measure(case, "step", ms, "ms")
    for part in PARTS:
        recorder.measure(case, part, 1e3 * out.clock.parts[part] / out.steps, "ms")
    recorder.measure(case, "speed", track.batch_tokens / ms * 1e3, "tokens/s")
    recorder.measure(case, "MFU", rate / trainer.matmul_peak, "of the measured peak")
    sheet = data_sheet(config)
    if sheet:
        recorder.measure(case, "MFU, data sheet", rate / sheet, "of the data sheet's peak")
    recorder.measure(case, "warm-up", out.compile_seconds, "s")
    counted = sum(out.clock.parts.values()) / out.clock.seconds
    slack = 0.5 if config.size == "toy" else 0.1  # a step of toy size is mostly overhead
    recorder.check(f"{case}: parts of the step over all of it", counted, 1.01, least=1 - slack)
    memory(config, recorder, trainer, name, case, out, peak_bytes)
    return out


def data_sheet(config: Config) -> float | None:
    """FLOP/s in bfloat16 by the data sheet of a GPU that the planner knows; else None."""
    name = machine.device_name(config.device).lower()
    if (
        config.device.type != "cuda" or "pcie" in name or "nvl" in name
    ):  # the planner has SXM modules
        return None
    return next((gpu.peak_flops for key, gpu in GPUS.items() if key in name), None)


def memory(
    config: Config,
    recorder: Recorder,
    trainer: Trainer,
    name: str,
    case: str,
    out: Outcome,
    peak_bytes: int,
) -> None:
    """Bytes by kind, measured and planned. Parameters, gradients and state must agree.

    The plan of activations and logits is an estimate, which is recorded and not checked.
    """
    gpt, sizes = config.meta_model(), config.sizes
    plan = dry_run.measure(gpt, config.entrant(name, 1), validations=0)
    planned = dict(params=plan.param_bytes, grads=plan.grad_bytes, state=plan.state_bytes)
    for kind, size in planned.items():
        off = abs(out.memory[kind] - size)
        recorder.check(f"{case}: {kind} off the planner's, bytes", off, most=0)
        recorder.measure(case, f"{kind}, planned", size / 1e9, "GB")
        recorder.measure(case, f"{kind}, measured", out.memory[kind] / 1e9, "GB")
    shape = dry_run.shape_of(gpt, sizes.seq_len, sizes.loss_chunk)
    estimate = shape.working_bytes(trainer.program.microbatch)
    recorder.measure(case, "activations and logits, planned", estimate / 1e9, "GB")
    if config.device.type == "cuda":  # on a CPU the peak is of the whole process
        working = peak_bytes - sum(out.memory.values())
        recorder.measure(case, "activations and logits, measured", working / 1e9, "GB")
    recorder.measure(case, "peak", peak_bytes / 1e9, "GB")


# ---------------------------------------------------------------------------------------------
# The optimizers alone.


def optimizers(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `optimizer_step`: our optimizers against torch's, on the hidden matrices."""
    sizes, device = config.sizes, config.device
    gpt = GPT(preset(sizes.model, sizes.vocab_size, sizes.seq_len, sizes.width))
    gpt.init_weights(0)
    contenders = optimizer_step.contenders(gpt.to(device), config.dtype)
    for name, ms in medians(contenders, sizes.rounds).items():
        recorder.measure(name, "optimizer step", ms, "ms")


def backends(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `newton_schulz`: every backend on the batches of the model."""
    for shape in config.sizes.matrices:
        with recorder.attempt(f"Newton-Schulz on {shape}"):
            rows: Sequence[dict[str, Any]] = newton_schulz.rows_of(
                TRACK, shape, config.dtype, config.device, config.sizes.rounds
            )
            for row in rows:
                taken = " (Muon takes it)" if row["auto"] else ""
                case = f"{row['batch']}, {row['backend']}{taken}"
                recorder.measure(case, f"{row['dtype']} iteration", float(row["ms"]), "ms")
