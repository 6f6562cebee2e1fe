"""Parameters in shards, each of which goes whole to one owner and comes back: an all-to-all.

Processes cut a parameter along its rows, as FSDP2 does. An update that needs the whole parameter
is computed by its owner alone: the gradient goes there, the new weights come back
(`engines._shards.exchange_bytes`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engines._shards import row_numel


@dataclass
class Cut:
    """A parameter of the model in shards."""

    name: str
    param: nn.Parameter  # of the model, a DTensor with the shape of the whole
    local: Tensor  # this process's rows: plain, the memory of the DTensor
    rows: list[int]  # in the shard of each process
    owner: int | None = None  # who updates it whole; None: each process updates its own rows
    whole: nn.Parameter | None = None  # the owner's copy

    @property
    def row_numel(self) -> int:
        return row_numel(self.param.shape)

    def range(self, rank: int) -> tuple[int, int]:
        """The flat range of the parameter that a process has in its shard."""
        start = sum(self.rows[:rank])
        return start * self.row_numel, (start + self.rows[rank]) * self.row_numel


class Exchange:
    """Parameters of one type that one rule updates whole, on their way to their owners and back.

    They travel together: one collective there, one back.
    """

    def __init__(
        self, cuts: Sequence[Cut], rank: int, processes: int, group: Any, wire: torch.dtype
    ) -> None:
        """wire: the type of what travels."""
        self.group, self.wire = group, wire
        self.cuts = sorted(cuts, key=lambda cut: cut.owner or 0)  # as they lie in a shard's buffer
        self.mine = [cut for cut in self.cuts if cut.owner == rank]
        # Elements for each owner, and from each process for this owner.
        self.out = [
            sum(cut.local.numel() for cut in self.cuts if cut.owner == owner)
            for owner in range(processes)
        ]
        self.back = [
            sum(cut.rows[source] * cut.row_numel for cut in self.mine)
            for source in range(processes)
        ]

    def to_owners(self, shards: Sequence[Tensor]) -> "Transfer":
        """Begin to send shards, in the order of `cuts`, to the owners."""
        return self._send([shard.flatten() for shard in shards], self.out, self.back)

    def join(self, transfer: "Transfer") -> list[Tensor]:
        """The whole tensors that `to_owners` sent here, for `mine`: they have arrived."""
        joined = [cut.local.new_empty(cut.param.shape) for cut in self.mine]
        transfer.unpack(self._by_process(joined))
        return joined

    def to_shards(self) -> "Transfer":
        """Begin to send the owners' copies back."""
        wholes = [cut.whole.detach() for cut in self.mine if cut.whole is not None]
        return self._send(
            [part.flatten() for part in self._by_process(wholes)], self.back, self.out
        )

    def spread(self, transfer: "Transfer") -> None:
        """Put what `to_shards` sent here into the shards."""
        transfer.unpack([cut.local for cut in self.cuts])

    def _by_process(self, wholes: Sequence[Tensor]) -> list[Tensor]:
        """Views of the whole tensors of `mine`: the rows of the first process, of the second..."""
        parts = [each.split(cut.rows) for each, cut in zip(wholes, self.mine, strict=True)]
        return [part for parts_of_one in zip(*parts, strict=True) for part in parts_of_one]

    def _send(self, parts: Sequence[Tensor], out: list[int], back: list[int]) -> "Transfer":
        device = self.cuts[0].local.device
        sent = torch.cat([*parts]) if parts else torch.empty(0, device=device)
        sent = sent.to(self.wire)
        received = torch.empty(sum(back), dtype=self.wire, device=device)
        work = dist.all_to_all_single(received, sent, back, out, group=self.group, async_op=True)
        return Transfer(received, sent, work)


@dataclass
class Transfer:
    """A collective under way."""

    received: Tensor
    sent: Tensor  # kept until it has left
    work: Any

    def unpack(self, places: Sequence[Tensor]) -> None:
        """Copy what was received into these tensors, one after the other."""
        parts = self.received.split([place.numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            place.copy_(part.view(place.shape))
