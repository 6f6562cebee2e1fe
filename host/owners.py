"""Which process updates what, where the optimizers of one model are divided over processes.

Arithmetic on counts and costs alone. Every process computes the same answer. `engines/sharded.py`
does as it says, and the planner asks for it without a cluster and without torch.

Parameters of one shape lie in a stack. With K of them and N processes, the first floor(K / N) N are
divided evenly, by their place in the stack. The others, fewer than N, have one owner each, chosen
so that the work is balanced over all stacks together. Parameters of a rule that may be given any
part of them are one flat row of numbers, of which every process owns an equal part.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple


class Range(NamedTuple):
    """Entries `start` up to `stop` of the parameter that stands at `place`."""

    place: int
    start: int
    stop: int


def orthogonal_cost(shape: Sequence[int], splits: Sequence[int] | None = None) -> float:
    """n m^2 for each matrix (m <= n) in a parameter, which Newton-Schulz's FLOPs are proportional
    to; splits: their rows. Of a parameter that is no matrix: its size."""
    if len(shape) != 2:
        return float(_product(shape))
    rows, cols = shape
    return float(sum(max(r, cols) * min(r, cols) ** 2 for r in splits or (rows,)))


def _product(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def even_count(count: int, world_size: int) -> int:
    """How many parameters of a stack each process owns by their place."""
    return count // world_size


def owners(stacks: Sequence[Sequence[float]], world_size: int) -> list[tuple[int, ...]]:
    """The owner of every parameter in every stack; `stacks` has the cost of each.

    The left-over parameters of all stacks are given away by cost, the largest first, each to the
    process with the least work so far, of several the first.
    """
    load = [0.0] * world_size
    found = [[-1] * len(costs) for costs in stacks]
    left = []
    for number, costs in enumerate(stacks):
        each = even_count(len(costs), world_size)
        for place, cost in enumerate(costs):
            if place < each * world_size:
                found[number][place] = place // each
                load[place // each] += cost
            else:
                left.append((-cost, number, place))
    waiting = [(work, rank) for rank, work in enumerate(load)]
    heapq.heapify(waiting)  # so that 16,384 processes take no longer than a second
    for cost, number, place in sorted(left):
        work, rank = waiting[0]
        found[number][place] = rank
        heapq.heapreplace(waiting, (work - cost, rank))
    return [tuple(each) for each in found]


def padded(size: int, world_size: int) -> int:
    """The size of a flat row of numbers that divides: at most N - 1 more than `size`."""
    return -(-size // world_size) * world_size


def parts(sizes: Sequence[int], world_size: int, rank: int) -> list[Range]:
    """What a process owns of a flat row of parameters with these sizes."""
    share = padded(sum(sizes), world_size) // world_size
    found, begin = [], 0
    for place, size in enumerate(sizes):
        start, stop = max(rank * share - begin, 0), min((rank + 1) * share - begin, size)
        if start < stop:
            found.append(Range(place, start, stop))
        begin += size
    return found
