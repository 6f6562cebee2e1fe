"""A forward and backward pass as one CUDA graph: one launch in place of hundreds.

It pays where the GPU finishes kernels sooner than the host launches them, as with a model of a
million parameters; `--cuda-graphs` asks for it, and `make gpu-check` compares the two. torch's
own `mode="reduce-overhead"` is not used, because it adds up the gradients of microbatches wrongly
(pytorch issues 96693, 169545).
"""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3  # passes before the capture, which must find every kernel compiled and loaded


class Captured:
    """`work`, recorded once on inputs and targets of one shape, and replayed on others.

    work: adds to the gradients, of which each must be the same tensor from then on; returns a
    tensor. What it calls must neither wait for the device nor depend on values there.
    """

    def __init__(
        self,
        work: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, int],
        device: torch.device,
    ) -> None:
        """shape: (sequences, tokens) of int64 inputs and targets. Leaves gradients behind."""
        self._inputs, self._targets = (
            torch.zeros(shape, dtype=torch.int64, device=device) for _ in range(2)
        )
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                work(self._inputs, self._targets)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = work(self._inputs, self._targets)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """What `work` returns for these; it is overwritten by the next call."""
        self._inputs.copy_(inputs)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._out
