"""How even the work is when each matrix is orthogonalised whole by one rank, its owner.

    python -m planner time deepseek-v4 --ranks 2048 --expert-parallel 64

Three ways to deal a model's hidden matrices to ranks:

    round-robin   one after another in the order of their shapes (Jordan's Muon of 2024)
    balanced      equal shapes evenly, the rest by cost to the least loaded (host/owners.py, as the
                  engines of this project do)
    layer-wise    whole layers, one after another

Each stage of a pipeline deals its own share, and each part of the experts is dealt to the ranks
that hold it; what does not divide is rounded up, so this is the fullest stage. Arithmetic on counts
of equal matrices: 70,000 matrices on 16,384 ranks take some milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from host.owners import even_count, orthogonal_cost
from planner.cluster.hardware import GPU
from planner.cluster.setting import Setting
from planner.models import Model, Weight
from planner.time.efficiency import Curve, orthogonalise_seconds
from planner.time.newton_schulz import Iteration

Blocks = tuple[tuple[int, int, int], ...]  # (m, n, how many) of the matrices in a parameter
Counts = npt.NDArray[np.int64]  # (ranks of a stage, stacks): parameters that each rank owns


@dataclass(frozen=True, order=True)
class Stack:
    """Parameters of one shape in the fullest stage, or in a rank's part of its experts."""

    rows: int
    cols: int
    blocks: Blocks
    group: int  # ranks that they are dealt to; the ranks of a stage are equal groups
    layers: tuple[int, ...]  # how many of them each layer of the stage has

    @property
    def count(self) -> int:
        return sum(self.layers)

    def flops(self, iteration: Iteration) -> float:
        """To orthogonalise one parameter."""
        return sum(count * iteration.flops(m, n) for m, n, count in self.blocks)

    @property
    def cost(self) -> int:
        """As host/owners.py balances it."""
        return sum(count * int(orthogonal_cost((m, n))) for m, n, count in self.blocks)


class Dealing(NamedTuple):
    """What the ranks do."""

    way: str  # one of WAYS
    ranks: int
    idle: int  # ranks without a matrix
    mean_flops: float  # of a rank
    busiest_flops: float
    busiest: tuple[tuple[int, int, int], ...]  # (m, n, how many) of the busiest rank's matrices

    @property
    def imbalance(self) -> float:
        """Work of the busiest rank, for which the others wait, over the mean."""
        return self.busiest_flops / self.mean_flops if self.mean_flops else 1.0

    def seconds(self, gpu: GPU, iteration: Iteration, curve: Curve) -> float:
        """Of the busiest rank, which has a batch for each shape."""
        return sum(
            orthogonalise_seconds(gpu, iteration, m, n, count, curve)
            for m, n, count in self.busiest
        )


def deal(
    model: Model, iteration: Iteration, ranks: int, setting: Setting, way: str = "balanced"
) -> Dealing:
    """Deal the hidden matrices to ranks. Raises UserError if ranks or experts do not divide.

    setting: its pipeline stages, and the ranks that share the experts of a stage.
    """
    setting.check(model, ranks)
    hidden = [weight for weight in model.weights if weight.hidden]
    stacks = _stacks(model, hidden, iteration, ranks, setting)
    counts = _DEALT[way](stacks, ranks // setting.pipeline)
    work = counts @ np.array([stack.flops(iteration) for stack in stacks])
    most = int(work.argmax())
    owned: dict[tuple[int, int], int] = {}
    for stack, count in zip(stacks, counts[most].tolist(), strict=True):
        for m, n, each in stack.blocks if count else ():
            owned[m, n] = owned.get((m, n), 0) + count * each
    return Dealing(
        way=way,
        ranks=ranks,
        idle=int((work == 0).sum()) * setting.pipeline,
        mean_flops=sum(iteration.weight_flops(weight) for weight in hidden) / ranks,
        busiest_flops=float(work[most]),
        busiest=tuple((*sides, count) for sides, count in owned.items()),
    )


def _stacks(
    model: Model, hidden: Sequence[Weight], iteration: Iteration, ranks: int, setting: Setting
) -> list[Stack]:
    """The stacks of the stage with most work, those of the largest shape first."""
    found: dict[tuple[int, int, Blocks, int], list[int]] = {}  # and how many each layer has
    stage_ranks = ranks // setting.pipeline
    for weight in hidden:
        group = setting.group_size(weight, ranks)
        key = weight.rows, weight.cols, iteration.blocks(weight), group
        layers = found.setdefault(key, [0] * model.n_layer)
        for i, count in enumerate(_by_layer(weight.count, model.n_layer)):
            layers[i] += -(-count * group // stage_ranks)
    length = -(-model.n_layer // setting.pipeline)
    stages = [
        [Stack(*key, tuple(layers[begin : begin + length])) for key, layers in found.items()]
        for begin in range(0, model.n_layer, length)
    ]

    work = [sum(each.count * each.flops(iteration) / each.group for each in s) for s in stages]
    return sorted(stages[work.index(max(work))], reverse=True)


def _by_layer(count: int, n_layer: int) -> list[int]:
    """How many of `count` equal parameters each layer has.

    Equally many in as many layers as possible: of all layers, else of the largest number that
    divides the count. Models whose layers differ begin with the kind that they have fewer of, as
    those with experts begin with dense layers.
    """
    having = next(n for n in range(min(n_layer, count), 0, -1) if count % n == 0)
    each, none = [count // having] * having, [0] * (n_layer - having)
    return each + none if 2 * having < n_layer else none + each


def _round_robin(stacks: Sequence[Stack], stage_ranks: int) -> Counts:
    counts = np.zeros((stage_ranks, len(stacks)), np.int64)
    rank = np.arange(stage_ranks)
    begun: dict[int, int] = {}  # of each group, how many are dealt
    for number, stack in enumerate(stacks):
        begin = begun.get(stack.group, 0)
        place = (rank - begin) % stack.group  # of a rank behind the first that has one
        counts[:, number] = stack.count // stack.group + (place < stack.count % stack.group)
        begun[stack.group] = begin + stack.count
    return counts


def _balanced(stacks: Sequence[Stack], stage_ranks: int) -> Counts:
    """As host/owners.py: experts first, where they have ranks of their own."""
    counts = np.zeros((stage_ranks, len(stacks)), np.int64)
    for number, stack in enumerate(stacks):
        counts[:, number] = even_count(stack.count, stack.group)
    load = counts @ np.array([stack.cost for stack in stacks], np.int64)
    order = sorted(range(len(stacks)), key=lambda i: (stacks[i].group, -stacks[i].cost))
    for number in order:
        stack = stacks[number]
        # All groups hold equal parts, and the smaller ones come first, so they are equally loaded.
        mine = load[: stack.group]
        taken = np.zeros(stack.group, np.int64)
        left = stack.count % stack.group
        while left:
            free = np.flatnonzero(mine == mine.min())[:left]
            taken[free] += 1
            mine[free] += stack.cost
            left -= len(free)
        groups = stage_ranks // stack.group
        counts[:, number] += np.tile(taken, groups)
        load = np.tile(mine, groups)
    return counts


def _layer_wise(stacks: Sequence[Stack], stage_ranks: int) -> Counts:
    counts = np.zeros((stage_ranks, len(stacks)), np.int64)
    rank = np.arange(stage_ranks)
    for number, stack in enumerate(stacks):
        for layer, count in enumerate(stack.layers):
            counts[:, number] += count * (rank % stack.group == layer % stack.group)
    return counts


_DEALT = {"round-robin": _round_robin, "balanced": _balanced, "layer-wise": _layer_wise}
WAYS = tuple(_DEALT)
