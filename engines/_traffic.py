"""The bytes that collectives send, counted as they are called, whoever calls them.

    meter()                            # count from now on
    sent_bytes()                       # what this process has sent since then

Every collective of torch.distributed ends in a method of a process group. These methods are
counted, so the collectives of FSDP2 and of DeepSpeed count like an engine's own. Not seen are those
that C++ code calls, such as DTensor's own; no training step of an engine here depends on such.

The ring convention decides how much a process sends. Of S bytes over N processes, an all-reduce
sends 2 S (N - 1) / N; a reduce-scatter and an all-gather send S (N - 1) / N, where S is all that is
scattered or gathered. An all-to-all sends what is for others. What one process sends to all others
or gets from them, S bytes in each, counts as S (N - 1) / N, the mean over the processes. What a
library really sends depends on its algorithm.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

# The methods of a process group: how often the bytes of which argument cross the ring.
# 0 is the output and 1 the input, as torch.distributed passes them.
COUNTED = {
    "allreduce": (2, 0),
    "allreduce_coalesced": (2, 0),
    "broadcast": (1, 0),
    "reduce": (1, 0),
    "allgather": (1, 0),
    "_allgather_base": (1, 0),
    "all_gather_single": (1, 0),
    "allgather_coalesced": (1, 0),
    "allgather_into_tensor_coalesced": (1, 0),
    "reduce_scatter": (1, 1),
    "_reduce_scatter_base": (1, 1),
    "reduce_scatter_single": (1, 1),
    "reduce_scatter_tensor_coalesced": (1, 1),
    "gather": (1, 1),
    "scatter": (1, 0),
    "alltoall": (1, 1),
    "alltoall_base": (1, 1),
    "all_to_all_single": (1, 1),
}
_sent = 0.0


def sent_bytes() -> int:
    """Bytes that this process has sent since `meter` was called first."""
    return round(_sent)


def meter() -> None:
    """Count the collectives of this process from now on. May be called again."""
    for name, (times, index) in COUNTED.items():
        method = getattr(dist.ProcessGroup, name, None)  # torch 2.11 lacks some
        if method is not None and not hasattr(method, "counts"):
            setattr(dist.ProcessGroup, name, _counting(method, name, times, index))


def _counting(method: Callable[..., Any], name: str, times: int, index: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def counted(group: Any, *args: Any, **kwargs: Any) -> Any:
        global _sent
        n, held = group.size(), args[index]
        if name.startswith(("alltoall", "all_to_all")):
            _sent += _bytes(held) - _own_bytes(held, args, group.rank(), n)
        else:
            _sent += times * _bytes(held) * (n - 1) / n
        return method(group, *args, **kwargs)

    counted.counts = True  # type: ignore[attr-defined]
    return counted


def _own_bytes(sent: Any, args: tuple[Any, ...], rank: int, n: int) -> float:
    """Bytes of an all-to-all that stay here. args: of its method, the fourth has the splits."""
    if not isinstance(sent, Tensor):
        return sent[rank].nbytes
    splits = args[3]
    return sent.nbytes * splits[rank] / max(1, sum(splits)) if splits else sent.nbytes / n


def _bytes(held: Any) -> int:
    """The bytes of tensors in lists."""
    if isinstance(held, Tensor):
        return held.nbytes
    return sum(map(_bytes, held)) if isinstance(held, list | tuple) else 0
