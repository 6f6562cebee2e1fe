"""One optimizer step on the hidden matrices of the track `tiny`: our Muon against torch's.

    python -m bench.optimizer_step

All contenders get the same matrices and gradients and take turns in one process; the times are
medians. "Muon" is ours in float32. Goal: at least twice as fast as torch.optim.Muon. That one
always iterates in bfloat16, which a processor without bfloat16 units emulates. So there are two
fairer comparisons: our Muon in bfloat16, and our Muon one matrix at a time. Runs on the CPU;
`bench.gpu_check` measures the same on a GPU.
"""

import copy
import sys
from collections.abc import Callable
from functools import partial

import torch

from bench import Row, environment, medians, run, write
from host.cores import cores
from layers.config import preset
from model import GPT
from muon import Muon
from optim import kernels
from runtime import machine

ROUNDS = 15
OURS = "Muon"


def matrices(gpt: GPT) -> list[tuple[torch.nn.Parameter, tuple[int, ...]]]:
    """A model's hidden matrices with random gradients, and the rows of the blocks in each."""
    generator = torch.Generator().manual_seed(1)
    rows = [row for row in gpt.roles() if row.role == "matrix"]
    for row in rows:
        row.param.grad = torch.randn(row.param.shape, generator=generator).to(row.param.device)
    return [(row.param, row.splits) for row in rows]


def separated(source: list[tuple[torch.nn.Parameter, tuple[int, ...]]]) -> list[torch.nn.Parameter]:
    """A copy in which each block of rows is a parameter, as torch.optim.Muon needs it."""
    params = []
    for param, splits in source:
        assert param.grad is not None
        for block, grad in zip(param.split(splits), param.grad.split(splits), strict=True):
            params.append(torch.nn.Parameter(block.detach().clone()))
            params[-1].grad = grad.clone()
    return params


def contenders(gpt: GPT, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """A step of each optimizer, waited for, on its own copy of a model's hidden matrices.

    dtype: in which our Muon iterates.
    """
    kernels.register()  # as the plan of a run does
    source, device = matrices(gpt), gpt.embed.weight.device

    def ours(ns_dtype: torch.dtype) -> Callable[[], object]:
        own = copy.deepcopy(source)
        for (param, _), (original, _) in zip(own, source, strict=True):
            param.grad = original.grad
        groups = [{"params": [param], "splits": splits} for param, splits in own]
        return Muon(groups, ns_dtype=ns_dtype).step

    one_by_one = [Muon([param], ns_dtype=dtype) for param in separated(source)]
    whole = [param for param, _ in copy.deepcopy(source)]
    for param, (original, _) in zip(whole, source, strict=True):
        param.grad = original.grad
    steps: dict[str, Callable[[], object]] = {
        OURS: ours(dtype),
        "Muon, a matrix at a time": lambda: [optimizer.step() for optimizer in one_by_one],
    }
    if dtype != torch.bfloat16:
        steps["Muon, bfloat16"] = ours(torch.bfloat16)
    steps |= {
        "torch.optim.Muon (bfloat16)": torch.optim.Muon(separated(source), lr=0.02).step,
        "torch.optim.AdamW(fused=True)": torch.optim.AdamW(whole, fused=True).step,
    }

    def waited(step: Callable[[], object]) -> None:
        step()
        machine.synchronize(device)

    return {name: partial(waited, step) for name, step in steps.items()}


def measure_all() -> None:
    """Measure, and write the rows."""
    torch.set_num_threads(cores())
    machine.keep_memory()  # as a run does
    gpt = GPT(preset("tiny", vocab_size=1024, block_size=128))
    gpt.init_weights(0)
    ms = medians(contenders(gpt, torch.float32), ROUNDS)
    rows: list[Row] = [
        {"step": name, "ms": round(value, 2), f"times {OURS}": f"{value / ms[OURS]:.2f}x"}
        for name, value in ms.items()
    ]
    write("optimizer_step", rows, environment(torch.device("cpu")))


def main() -> int:
    """Run the command; its exit code."""
    return run("optimizer_step", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
