"""What the time of a compiled training step of `tiny` is spent on, by kind of work.

    python -m bench.kinds    # three minutes on two CPU cores

It profiles the step with Muon in each precision, and sorts what the profiler saw. Every part of the
time has one kind, so the kinds add up to the whole step, which a clock of its own measures: "not
attributed" is what no kernel and no operation took, such as Python between them.

The compiler names each of its kernels after the operations in it. A kernel with a matrix product in
it counts as a product, with all that is fused to it, and one with an embedding as embedding. Fused
attention counts as products of attention, with its softmax; where attention is written out as
products, its softmax is pointwise work.

FLOPs are those of `GPT.flops_per_token`, of which attention's are the half that the causal mask
leaves; they come from the model, not from the profiler, so a kernel that computes more is slow. The
loss computes the head's gradients in the forward pass, so their products count there.
"ms at peak" is their time at the peak of a 2048 x 2048 product. Runs on a CPU only: on a GPU,
kernels run beside Python, and other questions matter.
"""

import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch._inductor import config as inductor
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from bench import Row, environment, precisions, run, write
from bench.step import first_batch, warm_up
from runtime import machine
from speedrun import TRACKS, Options, Trainer

STEPS = 20  # profiled
PASSES = ("forward", "backward")
LINEAR, ATTENTION, POINTWISE = "products of linear layers", "products of attention", "pointwise"
EMBEDDING, OPTIMIZER, OTHER = "embedding", "optimizer", "copies and other operations"
UNKNOWN, WHOLE = "not attributed", "whole step"
KINDS = (
    *(f"{kind}, {part}" for kind in (LINEAR, ATTENTION, POINTWISE) for part in PASSES),
    EMBEDDING, OTHER, OPTIMIZER,
)  # fmt: skip
# A kernel that the compiler made for a CPU, as the profiler calls it: graph_0_cpp_fused_add_mul_3.
KERNEL = re.compile(r"(graph_\d+_)?cpp_")


def kind_of(name: str) -> str:
    """The kind of what the profiler calls `name`; empty for a wrapper of other work."""
    kernel, operation = KERNEL.match(name), name.partition("::")[2]
    if not (kernel or operation) or name.startswith("autograd::"):
        return ""
    words = set(re.split(r"[\W_]+", name if kernel else operation))
    if words & {"bmm", "baddbmm"} or (not kernel and "scaled_dot_product" in operation):
        return ATTENTION
    if words & {"mm", "addmm"} or (not kernel and "_linear_pointwise" in operation):
        return LINEAR
    if words & {"embedding", "scatter"}:  # the table's gradient is added up by scatter_add
        return EMBEDDING
    return POINTWISE if kernel else OTHER


def add_times(event: Any, part: str, kind: str, times: Counter[str]) -> None:
    """Add the milliseconds of an event of the profiler and of all inside it to their kinds.

    part: the pass. kind: of an event around this one; empty or OTHER if there is none that decides.
    """
    if kind in ("", OTHER):
        kind = kind_of(event.name) or kind
    if kind:
        split = kind in (LINEAR, ATTENTION, POINTWISE)
        times[f"{kind}, {part}" if split else kind] += event.self_cpu_time_total / 1e3
    for child in event.cpu_children:
        add_times(child, part, kind, times)


class Profiled(NamedTuple):
    """One step: its milliseconds, and those of each kind of work in it."""

    ms: float
    times: Counter[str]


class Step:
    """The training step with Muon of a track, on one batch, its parts marked for the profiler."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        with naming_kernels():
            warm_up(trainer)
        self.inputs, self.targets = first_batch(trainer)

    def __call__(self) -> None:
        program, engine = self.trainer.program, self.trainer.engine
        with record_function("bench.forward"):
            loss = program.loss(self.inputs, self.targets) / self.targets.numel()
        with record_function("bench.backward"):
            engine.backward(loss, last=True)
        with record_function("bench.optimizer"):
            engine.step()

    def profiled(self, steps: int) -> list[Profiled]:
        """The time of each of some steps, by kind."""
        for _ in range(3):
            self()
        ms = []
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(steps):
                begun = time.perf_counter()
                self()
                ms.append(1e3 * (time.perf_counter() - begun))
        times: list[Counter[str]] = [Counter() for _ in range(steps)]
        seen: Counter[str] = Counter()  # steps, by part
        for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
            part = event.name.removeprefix("bench.")
            if part != event.name:
                # All of the optimizer is one kind; its compiled graphs and products too.
                kind = OPTIMIZER if part == "optimizer" else ""
                add_times(event, part, kind, times[seen[part]])
                seen[part] += 1
        return [Profiled(*each) for each in zip(ms, times, strict=True)]

    def flops(self) -> dict[str, float]:
        """Model FLOPs of a step by kind; those of a linear layer are counted in each pass."""
        track, gpt = self.trainer.track, self.trainer.gpt
        counts = []
        with FlopCounterMode(display=False) as counter:
            loss = gpt(self.inputs, self.targets)  # uncompiled: the same products
            counts.append(products_of_linear(counter))
            loss.backward()
        counts.append(products_of_linear(counter) - counts[0])
        gpt.zero_grad(set_to_none=True)
        linear = dict(zip((f"{LINEAR}, {part}" for part in PASSES), counts, strict=True))
        attention = gpt.flops_per_token(track.seq_len) * track.batch_tokens - sum(counts)
        forward = {f"{ATTENTION}, forward": attention / 3}
        return linear | forward | {f"{ATTENTION}, backward": attention * 2 / 3}


def products_of_linear(counter: FlopCounterMode) -> float:
    """FLOPs of the products of two matrices that have run so far."""
    counts = counter.get_flop_counts()["Global"]
    return float(sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm)))


@contextmanager
def naming_kernels() -> Iterator[None]:
    """Within it, the compiler makes kernels that tell the profiler their names."""
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        yield


def rows_of(
    dtype: str, attention: str, steps: Sequence[Profiled], flops: dict[str, float], peak: float
) -> list[Row]:
    """A row for each kind, in one precision; the last is the whole step.

    Means over the middle half of the steps by their time: a mean of the same steps everywhere, so
    that the kinds add up. flops: by kind. peak: FLOP/s.
    """
    ordered = sorted(steps, key=lambda step: step.ms)
    kept = ordered[len(steps) // 4 : len(steps) - len(steps) // 4]
    whole = sum(step.ms for step in kept) / len(kept)
    ms = {kind: sum(step.times[kind] for step in kept) / len(kept) for kind in KINDS}
    ms |= {UNKNOWN: whole - sum(ms.values()), WHOLE: whole}
    flops = flops | {WHOLE: sum(flops.values())}
    return [
        {
            "dtype": dtype,
            "attention": attention,
            "kind": kind,
            "ms": f"{value:.2f}",
            "share": f"{value / whole:.1%}",
            "GFLOP": f"{flops[kind] / 1e9:.2f}" if kind in flops else "",
            "GFLOP/s": f"{flops[kind] / value / 1e6:.0f}" if kind in flops and value else "",
            "ms at peak": f"{1e3 * flops[kind] / peak:.2f}" if kind in flops else "",
        }
        for kind, value in ms.items()
    ]


def measure(trainer: Trainer, steps: int = STEPS) -> list[Row]:
    """Profile a trainer's step: the rows of its precision."""
    step = Step(trainer)
    peak = machine.matmul_flops(trainer.device, trainer.program.dtype, 2048, repeats=7)
    dtype, attention = trainer.options.dtype, trainer.attention
    return rows_of(dtype, attention, step.profiled(steps), step.flops(), peak)


def measure_all() -> None:
    """Measure, and write the rows."""
    device = machine.local_device()
    if device.type != "cpu":
        print("bench.kinds: measures a CPU only; run it with CUDA_VISIBLE_DEVICES= (empty)")
        return
    rows: list[Row] = []
    for dtype in precisions(device):
        trainer = Trainer(TRACKS["tiny"], Options(engine="single", dtype=dtype))
        rows += measure(trainer)
        if trainer.program.eager_reason:
            print(f"not compiled: {trainer.program.eager_reason}")
    write("kinds", rows, environment(device))


def main() -> int:
    """Run the command; its exit code."""
    return run("kinds", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
