"""Which of several ways is fastest on this machine, measured so that the answer is always the same.

The candidates take turns and the least time of each counts, since other processes only ever add
time. On a CPU they run on one thread, on a part of the batch that takes milliseconds: with several
threads each would wait for whichever of them another process has put off its core. The decisions
that follow are `choose_dtype` and `choose_attention` in speedrun.py.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from layers.attention import PlainAttention, fused_attention
from layers.config import GPTConfig
from runtime import machine

ROUNDS, ENOUGH = 25, 1.0  # turns of each candidate, fewer if they have taken this many seconds
MARGIN = 0.9  # plain attention must take less than this part of the fused one's time
PART_TOKENS = 256  # of a batch, on a CPU
MEMORY_SHARE = 1 / 8  # of the device's memory that the logits of all layers may take


def least_seconds(
    candidates: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """The least time of each candidate; one untimed turn of each goes first."""
    times = dict.fromkeys(candidates, float("inf"))
    with _one_thread(device):
        for call in candidates.values():
            call()
        start = time.perf_counter()
        for done in range(ROUNDS):
            for name, call in candidates.items():
                machine.synchronize(device)
                begun = time.perf_counter()
                call()
                machine.synchronize(device)
                times[name] = min(times[name], time.perf_counter() - begun)
            if done >= 2 and time.perf_counter() - start > ENOUGH:
                break
    return times


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bfloat16_speed(device: torch.device, width: int) -> float:
    """How many times as fast a matrix product is in bfloat16 as in float32; 0 if it is emulated.

    The product is the first one of an MLP of `width` channels; on a GPU, where a small product
    would time its launch, one of 4096 x 4096 matrices.
    """
    if not machine.bfloat16_units(device):
        return 0.0
    m, k, n = (4096,) * 3 if device.type == "cuda" else (4 * PART_TOKENS, width, 4 * width)
    dtypes = {"bfloat16": torch.bfloat16, "float32": torch.float32}
    seconds = least_seconds(
        {
            name: partial(
                torch.mm,
                torch.randn(m, k, device=device).to(dtype),
                torch.randn(n, k, device=device).to(dtype).mT,
            )
            for name, dtype in dtypes.items()
        },
        device,
    )
    return seconds["float32"] / seconds["bfloat16"]


def attention(
    config: GPTConfig, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> str:
    """The faster way to compute attention, forward and backward: "fused" or "plain".

    shape: of a microbatch, (B T). Plain attention is measured uncompiled; compiled it is faster
    still. It is not tried where the logits of all layers would not fit the memory well.
    """
    B, T = shape
    H, H_kv, D = config.n_head, config.kv_heads, config.head_size
    # Each layer keeps its probabilities; a few tensors of float32 logits are there at a time.
    logits_bytes = B * H * T * T * (config.n_layer * dtype.itemsize + 4 * 4)
    if logits_bytes > MEMORY_SHARE * machine.total_memory(device):
        return "fused"
    if device.type == "cpu":
        B = min(B, max(1, PART_TOKENS // T))
    generator = torch.Generator(device).manual_seed(0)  # leaves the global one as it is
    q, k, v = (
        torch.randn(B, T, heads, D, generator=generator, device=device)
        .to(dtype)
        .transpose(1, 2)  # B H T D
        .requires_grad_()
        for heads in (H, H_kv, H_kv)
    )

    def plain() -> Tensor:
        y: Tensor = PlainAttention.apply(q, k, v, D**-0.5)[0]
        return y

    def forward_backward(forward: Callable[[], Tensor]) -> None:
        y = forward()
        torch.autograd.grad(y, (q, k, v), y)

    fused = partial(fused_attention, q, k, v, D**-0.5)
    ways: dict[str, Callable[[], Tensor]] = {"fused": fused, "plain": plain}
    calls = {name: partial(forward_backward, way) for name, way in ways.items()}
    seconds = least_seconds(calls, device)
    return "plain" if seconds["plain"] < MARGIN * seconds["fused"] else "fused"
