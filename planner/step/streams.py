"""The event simulation of a step: every rank has a stream of computation and one of communication.

    done = resolve([Operation(COMPUTE, "forward", 0.1)], ranks=4)

A stream does its operations in the order of the program, one at a time. An operation begins once
its stream is free and the operations that it waits for have ended on the same rank. A collective
begins once all ranks of its group have come to it. All ranks have the same program; how long an
operation takes may differ from rank to rank.

So the order of events is known beforehand, and each operation is resolved for all ranks at once, in
the program's order. A test holds the times equal to those of an event queue.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
COMPUTE, COMMUNICATE = 0, 1

# Kinds of operations, as charts and totals name them.
PIPELINE, FORWARD, BACKWARD = "pipeline", "forward", "backward"
ORTHOGONALISE, UPDATE = "orthogonalise", "update"
GRADIENTS, MATRICES, PARAMETERS = "gradients", "matrices", "parameters"
KINDS = (PIPELINE, FORWARD, BACKWARD, ORTHOGONALISE, UPDATE, GRADIENTS, MATRICES, PARAMETERS)


class Operation(NamedTuple):
    """One operation of every rank."""

    stream: int  # COMPUTE or COMMUNICATE
    kind: str
    seconds: float | Floats  # on each rank; of a collective, one number
    after: tuple[int, ...] = ()  # places in the program of operations that must have ended
    groups: int = 0  # of a collective: rank r is in group r modulo this number; 0: no collective
    sent_bytes: float = 0.0  # by one rank


class Span(NamedTuple):
    """When a rank did what."""

    rank: int
    stream: int
    kind: str
    start_s: float
    stop_s: float


@dataclass
class Resolved:
    """What came of a program."""

    seconds: float  # until the last rank has ended
    busy: dict[str, Floats]  # seconds of each kind on each rank
    exposed: Floats  # seconds on each rank in which it communicates and does not compute
    idle: Floats  # seconds on each rank in which it does neither: it waits for others
    sent_bytes: float  # by one rank, the mean
    spans: list[Span] = field(default_factory=list)  # of the ranks that were watched


class _Ranks:
    """The clocks of all ranks."""

    def __init__(self, ranks: int) -> None:
        self.free = [np.zeros(ranks), np.zeros(ranks)]  # when each stream is free
        self.exposed, self.computed = np.zeros(ranks), np.zeros(ranks)
        self.sent: list[tuple[Floats, Floats]] = []  # collectives that a computation may wait for

    def expose(self, since: Floats, until: Floats) -> None:
        """Count the communication in a gap between two computations."""
        for start, stop in reversed(self.sent):
            self.exposed += np.maximum(np.minimum(until, stop) - np.maximum(since, start), 0.0)
            if (stop <= since).all():
                break

    def forget(self) -> None:
        """Drop collectives that ended before every rank's last computation did."""
        free = self.free[COMPUTE]
        while self.sent and (self.sent[0][1] <= free).all():
            del self.sent[0]


def resolve(
    program: Sequence[Operation],
    ranks: int,
    slowness: Floats | float = 1.0,
    watched: Sequence[int] = (),
) -> Resolved:
    """Simulate a program.

    slowness: the factor of each rank's computation. watched: ranks whose spans are kept.
    """
    clocks, busy = _Ranks(ranks), {kind: np.zeros(ranks) for kind in KINDS}
    last_use = {before: place for place, each in enumerate(program) for before in each.after}
    ends: dict[int, Floats] = {}
    spans = []
    for place, each in enumerate(program):
        begin = clocks.free[each.stream]
        for before in each.after:
            begin = np.maximum(begin, ends[before])
        if each.groups:
            begin = np.tile(begin.reshape(-1, each.groups).max(axis=0), ranks // each.groups)
            seconds = each.seconds
        else:
            seconds = each.seconds * slowness
        end = begin + seconds
        if each.stream == COMPUTE:
            if each.after and clocks.sent:
                clocks.expose(clocks.free[COMPUTE], begin)
            clocks.computed += seconds
        else:
            clocks.sent.append((begin, end))
        clocks.free[each.stream] = end
        if each.stream == COMPUTE and clocks.sent:
            clocks.forget()
        busy[each.kind] += seconds
        if last_use.get(place, -1) > place:
            ends[place] = end
        for before in set(each.after):
            if last_use[before] == place:
                del ends[before]
        spans += [
            Span(rank, each.stream, each.kind, float(begin[rank]), float(end[rank]))
            for rank in watched
        ]
    stop = max(float(free.max()) for free in clocks.free)
    clocks.expose(clocks.free[COMPUTE], np.full(ranks, stop))
    idle = np.maximum(stop - clocks.computed - clocks.exposed, 0.0)
    sent = sum(each.sent_bytes for each in program)
    return Resolved(stop, busy, clocks.exposed, idle, sent, spans)
