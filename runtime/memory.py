"""The memory of one run, where several runs are alive and take turns.

A run's peak is the most that its device held for it: what the other runs hold is not counted. On a
GPU it is read from the allocator in the run's own turns. On a CPU only the whole process can be
read, and what one run has freed may stay with the process. So there it is what the process held
before its first run, libraries and compiled code included, and what a step of the warm-up adds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from host import cgroups
from runtime import machine


class CrowdedError(Exception):
    """The memory does not hold one more run beside those that are alive."""


def load_libraries(device: torch.device) -> None:
    """Let cuBLAS allocate what it keeps before the first turn, so that no run's peak has it."""
    if device.type == "cuda":
        for dtype in (torch.float32, torch.bfloat16):
            a = torch.ones(64, 64, device=device, dtype=dtype, requires_grad=True)
            (a @ a).sum().backward()  # the backward pass has a thread and a workspace of its own


class Peak:
    """The most bytes that one run held; `begin_turn` and `end_turn` enclose all that it does."""

    floor = 0  # bytes that this process holds without any run, on a CPU; 0: not yet known

    def __init__(self, device: torch.device) -> None:
        self._device, self._cuda = device, device.type == "cuda"
        self._own = 0  # bytes allocated for this run when its last turn ended
        self._others: int | None = None  # and for all else, within a turn; None outside of turns
        self.bytes = 0

    def begin_turn(self) -> None:
        if self._cuda:
            self._others = torch.cuda.memory_allocated(self._device) - self._own
            machine.reset_peak_memory(self._device)

    def end_turn(self) -> None:
        """End the turn, if there is one: what is allocated outside of turns is not the run's."""
        if self._others is not None:
            self.read()
            self._own = torch.cuda.memory_allocated(self._device) - self._others
            self._others = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A context within a turn that the peak does not count: it leaves nothing allocated."""
        self.end_turn()
        try:
            yield
        finally:
            self.begin_turn()

    def read(self) -> int:
        """The peak so far, bytes."""
        if self._others is not None:
            self.bytes = max(self.bytes, machine.peak_memory(self._device) - self._others)
        return self.bytes

    def restart(self, step: Callable[[], object], weights: int) -> None:
        """Forget the last run's peak. step: a training step that keeps a copy of the weights.

        weights: their bytes. The copy is a part of what the step adds, and counts for the weights
        themselves, which were there before.
        """
        self.bytes = 0
        if self._cuda:
            machine.reset_peak_memory(self._device)
            return
        machine.free_memory()
        machine.reset_peak_memory(self._device)
        held = machine.process_memory()
        Peak.floor = Peak.floor or held - weights
        step()
        self.bytes = Peak.floor + machine.peak_memory(self._device) - held


def available_bytes(device: torch.device) -> int:
    """Bytes that could still be allocated on the device."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    free = cgroups.number(Path("/proc/meminfo"), "MemAvailable:", 1024)
    left = [left for _, left in cgroups.memory_limits()]
    return min([1 << 62 if free is None else free, *left])
