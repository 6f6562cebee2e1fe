"""Which rank of a group orthogonalises how many matrices, by each way to deal them.

    balanced([stack], 1024)[0]     # of this stack, on each of 1,024 ranks

A deal is an array of counts for each stack, an entry for each rank of the group.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from host import owners
from planner.step.jobs import Stack

Counts = NDArray[np.int64]


def balanced(stacks: Sequence[Stack], size: int) -> list[Counts]:
    """As engines/sharded.py: each stack evenly, and what is left over by cost."""
    chosen = owners.owners([[stack.cost] * stack.count for stack in stacks], size)
    return [np.bincount(np.asarray(each, dtype=np.int64), minlength=size) for each in chosen]


def by_cost(stacks: Sequence[Stack], size: int) -> list[Counts]:
    """As engines/fsdp2.py: the most costly first, each to the rank with the least work so far."""
    order = [number for number, stack in enumerate(stacks) for _ in range(stack.count)]
    chosen = owners.owners([[stacks[number].cost] for number in order], size)
    found = [np.zeros(size, dtype=np.int64) for _ in stacks]
    for number, (owner,) in zip(order, chosen, strict=True):
        found[number][owner] += 1
    return found


def back_and_forth(stacks: Sequence[Stack], size: int) -> list[Counts]:
    """As layer-wise optimizers: by size, to the first rank, ..., the last, the last, ..., the
    first."""
    order = largest_first(stacks)
    lap, place = np.divmod(np.arange(len(order)), size)
    ranks = np.where(lap % 2, size - 1 - place, place)
    return [np.bincount(ranks[order == number], minlength=size) for number in range(len(stacks))]


def overlapping(stacks: Sequence[Stack], size: int) -> list[Counts]:
    """As DeepSpeed's stages 1 and 2: all matrices are one row of numbers, the largest first, which
    is cut evenly; a matrix across a cut is computed on both sides."""
    total = sum(stack.count * stack.numbers for stack in stacks)
    edges = np.arange(size + 1) * (total / size)
    found = [np.zeros(size, dtype=np.int64) for _ in stacks]
    begin = 0.0
    for number in sorted(range(len(stacks)), key=lambda number: -stacks[number].numbers):
        stack = stacks[number]
        where = (edges - begin) / stack.numbers
        near = np.round(where)
        where = np.where(np.abs(where - near) < 1e-6, near, where)  # a cut between two matrices
        first = np.clip(np.floor(where[:-1]), 0, stack.count)
        last = np.clip(np.ceil(where[1:]), 0, stack.count)
        found[number] = np.maximum(last - first, 0).astype(np.int64)
        begin += stack.count * stack.numbers
    return found


def largest_first(stacks: Sequence[Stack]) -> Counts:
    """The number of the stack of each matrix, the largest matrices first."""
    order = sorted(range(len(stacks)), key=lambda number: -stacks[number].numbers)
    return np.repeat(
        np.array(order, dtype=np.int64),
        np.array([stacks[number].count for number in order], dtype=np.int64),
    )


def seconds(stack: Stack, counts: Counts, batched: bool) -> NDArray[np.float64]:
    """Seconds to orthogonalise so many of a stack on each rank, at once or one by one."""
    if not batched:
        return counts.astype(np.float64) * stack.seconds(1)
    different, place = np.unique(counts, return_inverse=True)
    each = [stack.seconds(int(count)) if count else 0.0 for count in different]
    return np.array(each, dtype=np.float64)[place.reshape(-1)]


def numbers(stacks: Sequence[Stack], deal: Sequence[Counts], size: int) -> NDArray[np.float64]:
    """Numbers in the matrices of each rank."""
    total = np.zeros(size)
    for stack, counts in zip(stacks, deal, strict=True):
        total += stack.numbers * counts
    return total
