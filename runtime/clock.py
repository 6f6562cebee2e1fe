"""Training time: the seconds between `start` and `stop`, and what they were spent on.

`speedrun.py` decides what is on the clock. On a GPU the parts are timed by CUDA events, which are
read when the clock stops, so that timing makes no host wait inside a step.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from runtime import machine

Mark = Any  # a moment: seconds on a CPU, a CUDA event on a GPU


class Clock:
    """Seconds of training: it runs between `start` and `stop`; `part` names what runs meanwhile."""

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        device: torch.device = torch.device("cpu"),  # noqa: B008
    ) -> None:
        self._now, self._device = now, device
        self._started: float | None = None
        self._before = 0.0
        self._read: dict[str, float] = {}
        self._unread: list[tuple[str, Mark, Mark, int]] = []
        self.parts = {"data": 0.0, "forward_backward": 0.0, "optimizer": 0.0, "communication": 0.0}

    @property
    def seconds(self) -> float:
        running = 0.0 if self._started is None else self._now() - self._started
        return self._before + running

    def start(self) -> None:
        """Start, or go on; nothing if it runs already."""
        if self._started is None:
            self._started = self._now()

    def stop(self) -> None:
        """Wait until the device has finished its work, then stop."""
        machine.synchronize(self._device)
        self._before, self._started = self.seconds, None
        for name, begin, end, sign in self._unread:
            self.parts[name] += sign * begin.elapsed_time(end) / 1e3
        self._unread = []

    def mark(self) -> Mark:
        """This moment, in the order of the device's work."""
        if self._device.type != "cuda":
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def add_interval(
        self, name: str, begin: Mark, end: Mark, instead_of: str | None = None
    ) -> None:
        """Count the time between two marks as part `name`, and no longer as `instead_of`."""
        for part, sign in ((name, 1), (instead_of, -1)):
            if part is None:
                continue
            if self._device.type == "cuda":
                self._unread.append((part, begin, end, sign))
            else:
                self.parts[part] += sign * (end - begin)

    def move(self, name: str, from_part: str, intervals: list[tuple[Mark, Mark]]) -> None:
        """Count these intervals as part `name` and no longer as `from_part`; empty the list."""
        for begin, end in intervals:
            self.add_interval(name, begin, end, instead_of=from_part)
        intervals.clear()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = self.mark()
        yield
        self.add_interval(name, begin, self.mark())

    def read_interval(self) -> dict[str, float]:
        """Seconds since the last call, of each part and of "all"; the clock must be stopped."""
        assert self._started is None
        total = self.parts | {"all": self.seconds}
        interval = {name: seconds - self._read.get(name, 0.0) for name, seconds in total.items()}
        self._read = total
        return interval

    def state(self) -> dict[str, Any]:
        """What has been measured, for `restore`; the clock must be stopped."""
        assert self._started is None
        return {"seconds": self.seconds, "parts": dict(self.parts), "read": dict(self._read)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._before, self.parts, self._read = state["seconds"], state["parts"], state["read"]
