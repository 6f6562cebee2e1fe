"""Which of two ways is faster on this machine, measured so that the answer is always the same.

The two take turns in blocks, and the least time of each in a block counts, since other work only
ever adds time. A block has an answer; what several blocks in a row say is taken, and where they do
not agree the first way is. On a CPU the ways run on one thread, on a part of the batch that takes
milliseconds, and the time is what the thread itself spent: the time in which another process has
the core does not count. So a busy machine answers as a quiet one. A race that is resumed does not
measure again: it takes what its rows say.

What hardware alone decides is not measured: `bfloat16_pays`. The decisions that follow are
`choose_dtype` and `choose_attention` in speedrun.py.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from layers.attention import PlainAttention, fused_attention
from layers.config import GPTConfig
from runtime import machine

ROUNDS = 10  # turns of each way in a block
AGREE = 4  # blocks in a row that must have the same answer
BLOCKS = 40  # after as many without agreement the two are taken to be equally fast
MARGIN = 0.9  # plain attention must take less than this part of the fused one's time
BFLOAT16_MARGIN = 1 / 1.5  # and a product in bfloat16 than this part of the one in float32
PART_TOKENS = 256  # of a batch, on a CPU
MEMORY_SHARE = 1 / 8  # of the device's memory that the logits of all layers may take


def clearly_faster(
    challenger: Callable[[], object],
    first: Callable[[], object],
    margin: float,
    device: torch.device,
) -> bool:
    """Whether the challenger takes less than `margin` times the first one's time."""
    with _one_thread(device):
        for call in (challenger, first):  # an untimed turn each
            call()
        answers: list[bool] = []
        while len(answers) < BLOCKS:
            ours, theirs = _least_seconds(challenger, first, device)
            answers.append(ours < margin * theirs)
            if len(answers) >= AGREE and len(set(answers[-AGREE:])) == 1:
                return answers[-1]
    return False


def _least_seconds(
    challenger: Callable[[], object], first: Callable[[], object], device: torch.device
) -> tuple[float, float]:
    """The least time of each in one block of turns."""
    now = time.perf_counter if device.type == "cuda" else time.thread_time
    times = {challenger: float("inf"), first: float("inf")}
    for _ in range(ROUNDS):
        for call in times:
            machine.synchronize(device)
            begun = now()
            call()
            machine.synchronize(device)
            times[call] = min(times[call], now() - begun)
    return times[challenger], times[first]


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bfloat16_pays(device: torch.device, width: int) -> bool:
    """Whether matrix products are clearly faster in bfloat16 than in float32.

    They are where the device has tensor cores or AMX, which is made for them, and are not where
    bfloat16 is emulated. For other units a product is measured: the first one of an MLP of `width`
    channels.
    """
    units = machine.bfloat16_units(device)
    if not units or set(units) & set(machine.MATRIX_UNITS):
        return bool(units)
    m, k, n = 4 * PART_TOKENS, width, 4 * width
    half, full = (
        partial(torch.mm, torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype).mT)
        for dtype in (torch.bfloat16, torch.float32)
    )
    return clearly_faster(half, full, BFLOAT16_MARGIN, device)


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
    ours, theirs = (partial(forward_backward, way) for way in (plain, fused))
    return "plain" if clearly_faster(ours, theirs, MARGIN, device) else "fused"
