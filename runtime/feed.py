"""The batches of a run as tensors on the device: each is there before its step asks for it.

A thread reads ahead of the training (`data.loader.ReadAhead`). On a GPU it reads into pinned
memory, from where a stream of its own copies the next batch while the current step computes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.loader import Batches, ReadAhead

Tokens = tuple[Tensor, Tensor]  # inputs and targets (sequences, tokens), int64, on the device


class Feed:
    """The batches of `steps` in order, one a call of `next`; close it, or use it in a `with`."""

    def __init__(self, batches: Batches, steps: range, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._reader = ReadAhead(batches, steps, allocate=pinned if self._cuda else None)
        if self._cuda:
            self._stream = torch.cuda.Stream(device)
            self._copied = torch.cuda.Event()
            self._coming = self._send()

    def next(self) -> Tokens:
        """The batch of the next step, the caller's until it asks for another.

        Raises what reading it raised; StopIteration after the last one.
        """
        if not self._cuda:
            inputs, targets = next(self._reader)
            return torch.from_numpy(inputs), torch.from_numpy(targets)
        if self._coming is None:
            raise StopIteration
        arrived, computing = self._coming, torch.cuda.current_stream(self._device)
        computing.wait_event(self._copied)
        for tokens in arrived:
            tokens.record_stream(computing)  # its memory is not used again before the step is done
        # The pinned arrays that the reader is about to fill again were copied from during the last
        # step: this waits for no computation.
        self._copied.synchronize()
        self._coming = self._send()
        return arrived

    def _send(self) -> Tokens | None:
        """Begin to copy the next batch; None: there is none."""
        batch = next(self._reader, None)
        if batch is None:
            return None
        with torch.cuda.stream(self._stream):
            inputs, targets = (
                torch.from_numpy(array).to(self._device, non_blocking=True) for array in batch
            )
            self._copied.record(self._stream)
        return inputs, targets

    def close(self) -> None:
        """Stop reading. May be called again."""
        self._reader.close()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def pinned(shape: tuple[int, int]) -> NDArray[Any]:
    """An int64 array in pinned memory, which a GPU copies from while the host goes on."""
    array: NDArray[np.int64] = torch.empty(shape, dtype=torch.int64, pin_memory=True).numpy()
    return array
