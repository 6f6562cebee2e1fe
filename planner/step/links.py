"""Latency and bandwidth of links from measured collectives: least squares, relative to each time.

    link = fit([Transfer(1, 4096, 1e-4), Transfer(1, 4_194_304, 3e-3)])
    link.seconds(messages=2, moved_bytes=1e6)

A collective takes its messages, one after the other, and the bytes that a process moves: so many
latencies, and so many bytes at the bandwidth. `MESSAGES` and `MOVED` say how many, by the
algorithms of a ring. `python -m bench.links` measures the times on this machine.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from errors import UserError

# By collective: messages one after the other, and bytes moved by a process, over those of all, on
# n processes.
MESSAGES: dict[str, Callable[[int], int]] = {
    "all-reduce": lambda n: 2 * (n - 1),
    "reduce-scatter": lambda n: n - 1,
    "all-gather": lambda n: n - 1,
    "all-to-all": lambda n: n - 1,
}
MOVED: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
}


class Transfer(NamedTuple):
    """One collective as it was measured."""

    messages: int  # one after the other
    moved_bytes: float  # by a process
    seconds: float


class Link(NamedTuple):
    """What connects processes."""

    latency_s: float  # of a message
    bytes_per_s: float  # in one direction

    def seconds(self, messages: float, moved_bytes: float) -> float:
        """Of a collective."""
        return messages * self.latency_s + moved_bytes / self.bytes_per_s


def transfer(collective: str, processes: int, size_bytes: float, seconds: float) -> Transfer:
    """A measured collective, by its algorithm. size_bytes: of all that is reduced or gathered."""
    if collective not in MESSAGES:
        known = ", ".join(MESSAGES)
        raise UserError(f"collective {collective!r}: must be one of {known}; mend links.csv")
    moved = size_bytes * MOVED[collective](processes)
    return Transfer(MESSAGES[collective](processes), moved, seconds)


def fit(measured: Sequence[Transfer]) -> Link:
    """The latency and the bandwidth with the least squares of relative errors.

    Raises UserError where the times do not give both, such as times that fall with the bytes.
    """
    rows = [(t.messages / t.seconds, t.moved_bytes / t.seconds) for t in measured if t.seconds > 0]
    mm, mb, bb = (
        math.fsum(f(m, b) for m, b in rows)
        for f in (lambda m, b: m * m, lambda m, b: m * b, lambda m, b: b * b)
    )
    m1, b1 = math.fsum(m for m, _ in rows), math.fsum(b for _, b in rows)
    determinant = mm * bb - mb * mb
    if len(rows) < 2 or determinant <= 1e-12 * mm * bb:
        raise UserError(
            "links.csv: needs times of at least two sizes to give a latency and a bandwidth; "
            "run: python -m bench.links"
        )
    latency, per_byte = (bb * m1 - mb * b1) / determinant, (mm * b1 - mb * m1) / determinant
    if per_byte <= 0 or latency < 0:
        raise UserError(
            f"links.csv: the times give a latency of {latency:.2g} s and {per_byte:.2g} s a byte, "
            "which must not be negative; run: python -m bench.links, alone on the machine"
        )
    return Link(latency, 1 / per_byte)


def largest_error(link: Link, measured: Sequence[Transfer]) -> float:
    """The largest relative error of the fit among measured times."""
    return max(abs(link.seconds(t.messages, t.moved_bytes) / t.seconds - 1) for t in measured)
