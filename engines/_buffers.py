"""Parameters in one piece of memory each kind, which collectives read and write in place.

A buffer holds parameters of one rule, and another one of the same size their gradients; the model's
tensors are views of both. So a reduction, an update and a gathering copy nothing.
`host/owners.py` says which process owns what of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engines import PlannedGroup, _rules
from host import owners

# torch 2.13 has new names for these, and warns of the old ones, which torch 2.11 has.
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor

ALIGNED = 16  # entries; parameters of such a size keep those behind them on a processor's borders


class Member(NamedTuple):
    """A parameter of the model and the group that it is in."""

    name: str
    param: nn.Parameter
    group: PlannedGroup


class Piece(NamedTuple):
    """What an optimizer of this process has of a parameter: its flat range, as one tensor."""

    name: str
    start: int
    stop: int
    param: nn.Parameter
    value: Tensor  # a view of the buffer, as `param` should be
    grad: Tensor  # likewise
    group: PlannedGroup


@dataclass
class Part:
    """A group with the tensors that this process owns of it; see `engines.PlannedGroup`."""

    rule: type[torch.optim.Optimizer]
    params: tuple[Any, ...]
    options: dict[str, Any]


@dataclass
class Buffer:
    """Parameters of one rule and type, their gradients, and what this process owns of them.

    The first `even` entries are divided evenly over the processes; each of `singles` (owner, start,
    stop) has one owner.
    """

    members: list[Member]
    even: int
    singles: list[tuple[int, int, int]]
    rank: int
    world_size: int
    group: Any  # of processes; None: all
    values: Tensor = field(init=False)
    grads: Tensor = field(init=False)
    pieces: list[Piece] = field(init=False, default_factory=list)
    optimizers: list[torch.optim.Optimizer] = field(init=False, default_factory=list)  # 0 or 1
    reducing: list[Any] = field(init=False, default_factory=list)  # work that was begun
    averaged: bool = True  # what this process owns of the gradients is averaged, or never will be

    def __post_init__(self) -> None:
        size = max([self.even, *(stop for _, _, stop in self.singles)])
        like = self.members[0].param
        self.values, self.grads = (like.new_zeros(size, requires_grad=False) for _ in range(2))
        self.rule = self.members[0].group.rule
        begin = 0
        self._views = []
        for each in self.members:
            p, end = each.param, begin + each.param.numel()
            value, grad = (x[begin:end].view(p.shape) for x in (self.values, self.grads))
            value.copy_(p.detach())
            p.data, p.grad = value, grad
            self._views.append((p, value, grad))
            begin = end

    def own(self, place: int, start: int, stop: int, whole: bool) -> None:
        """Let this process's optimizer have entries of a member; whole: as the member itself."""
        name, param, group = self.members[place]
        _, value, grad = self._views[place]
        if not whole:
            value, grad = (x.flatten()[start:stop] for x in (value, grad))
            param = nn.Parameter(value)
            param.grad = grad
        self.pieces.append(Piece(name, start, stop, param, value, grad, group))

    def construct(self) -> None:
        """Build the optimizer of what this process owns, in place of an earlier one."""
        self.optimizers = []  # frees the earlier one first
        by_group: dict[int, list[Piece]] = {}
        for piece in self.pieces:
            by_group.setdefault(id(piece.group), []).append(piece)
        if by_group:
            parts = [Part(self.rule, (*own,), own[0].group.options) for own in by_group.values()]
            self.optimizers = [_rules.construct(self.rule, parts)]

    def reduce(self) -> None:
        """Begin to sum the gradients over the processes, each to its owner."""
        share = self.even // self.world_size
        if share:
            whole = self.grads[: self.even]
            mine = whole[self.rank * share : (self.rank + 1) * share]
            self.reducing.append(_reduce_scatter(mine, whole, group=self.group, async_op=True))
        for owner, start, stop in self.singles:
            grad = self.grads[start:stop]
            self.reducing.append(
                dist.reduce(grad, group_dst=owner, group=self.group, async_op=True)
            )
        self.averaged = False

    def finish(self) -> None:
        """Wait for the sums, and divide what this process owns of them."""
        for work in self.reducing:
            work.wait()
        self.reducing = []
        if not self.averaged and self.pieces:
            torch._foreach_div_([piece.grad for piece in self.pieces], self.world_size)
        self.averaged = True

    def gather(self) -> list[Any]:
        """Begin to send what each process owns of the parameters to all others."""
        share, begun = self.even // self.world_size, []
        if share:
            whole = self.values[: self.even]
            mine = whole[self.rank * share : (self.rank + 1) * share]
            begun.append(_all_gather(whole, mine, group=self.group, async_op=True))
        for owner, start, stop in self.singles:
            value = self.values[start:stop]
            begun.append(dist.broadcast(value, group_src=owner, group=self.group, async_op=True))
        return begun

    def settle(self) -> None:
        """Take over what a rule has put into new tensors of its own, which some do."""
        with torch.no_grad():
            for piece in self.pieces:
                if piece.param.data_ptr() != piece.value.data_ptr():
                    piece.value.copy_(piece.param)
                    piece.param.data = piece.value

    def clear(self) -> None:
        """Set all gradients to zero, in place."""
        self.grads.zero_()
        for p, _, grad in self._views:
            p.grad = grad
        for piece in self.pieces:
            piece.param.grad = piece.grad

    def free(self) -> None:
        """Give every parameter memory of its own again, and no gradient."""
        self.finish()
        for p, value, _ in self._views:
            p.data, p.grad = value.clone(), None


def lay_out(plan: Sequence[PlannedGroup], rank: int, world_size: int, group: Any) -> list[Buffer]:
    """The buffers of a plan, in the order in which they should be worked on.

    The first reduction and the last gathering are hidden behind no update, so the buffers at both
    ends are small: the smallest stack first, then the flat rows, whose updates take little time,
    then the other stacks, the largest first.
    """
    flat, stacks = [], []
    for members in _sorted(plan, _rules.is_elementwise):
        flat.append(_flat(members, rank, world_size, group))
    by_stack = _sorted(plan, lambda rule: not _rules.is_elementwise(rule), by_shape=True)
    costs = [
        [owners.orthogonal_cost(m.param.shape, m.group.options.get("splits")) for m in members]
        for members in by_stack
    ]
    for members, chosen in zip(by_stack, owners.owners(costs, world_size), strict=True):
        stacks.append(_stack(members, chosen, rank, world_size, group))
    stacks.sort(key=lambda each: -each.values.nbytes)
    return [*stacks[-1:], *flat, *stacks[:-1]]


def _sorted(
    plan: Sequence[PlannedGroup], wanted: Any, by_shape: bool = False
) -> list[list[Member]]:
    """The members of all groups of the wanted rules: a list for each rule, type and shape."""
    found: dict[tuple[Any, ...], list[Member]] = {}
    for group in plan:
        for row in group.params if wanted(group.rule) else ():
            shape = tuple(row.param.shape) if by_shape else ()
            key = group.rule, row.param.dtype, row.param.device, shape
            found.setdefault(key, []).append(Member(row.name, row.param, group))
    return list(found.values())


def _flat(members: list[Member], rank: int, world_size: int, group: Any) -> Buffer:
    members = sorted(members, key=lambda each: each.param.numel() % ALIGNED != 0)
    sizes = [each.param.numel() for each in members]
    buffer = Buffer(members, owners.padded(sum(sizes), world_size), [], rank, world_size, group)
    for place, start, stop in owners.parts(sizes, world_size, rank):
        buffer.own(place, start, stop, whole=False)
    return buffer


def _stack(
    members: list[Member], chosen: Sequence[int], rank: int, world_size: int, group: Any
) -> Buffer:
    size = members[0].param.numel()
    even = owners.even_count(len(members), world_size) * world_size
    singles = [(chosen[k], k * size, (k + 1) * size) for k in range(even, len(members))]
    buffer = Buffer(members, even * size, singles, rank, world_size, group)
    for k, owner in enumerate(chosen):
        if owner == rank:
            buffer.own(k, 0, size, whole=True)
    return buffer
