"""The bytes that tensors really hold, whatever they are called and however they are nested.

A tensor whose values are in other tensors, as an 8-bit state with its scales, is what those hold.
Memory that several share is counted once.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

OPTIONS = ("param_groups", "defaults")  # attributes of an optimizer
COMPRESSED = {  # the tensors of a sparse layout
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_coo: ("_indices", "_values"),
}


def tensors_in(held: Any) -> Iterator[Tensor]:
    """The tensors in containers, dataclasses and optimizers, however they are nested."""
    return (each for each in walk(held) if isinstance(each, Tensor))


def walk(held: Any) -> Iterator[Any]:
    """All that is nested in containers, dataclasses, optimizers and attributes of tensors."""
    met: set[int] = set()
    waiting = [held]
    while waiting:
        each = waiting.pop()
        if id(each) not in met:
            met.add(id(each))
            yield each
            waiting += _inside(each)


def _inside(each: Any) -> Iterable[Any]:
    if isinstance(each, Mapping):
        return [*each.values()]
    if isinstance(each, list | tuple | set | frozenset | deque):
        return [*each]
    if isinstance(each, Tensor):
        return [*vars(each).values()]
    if isinstance(each, torch.optim.Optimizer):
        held = [value for name, value in vars(each).items() if name not in OPTIONS]
        options = [value for group in each.param_groups for value in group.values()]
        # A tensor of one element is an option or a counter there.
        return held + [x for x in options if not isinstance(x, Tensor) or x.numel() > 1]
    if is_dataclass(each) and not isinstance(each, type):
        return [getattr(each, part.name, None) for part in fields(each)]
    return []


def held_bytes(held: Any, counted: set[int] | None = None) -> int:
    """The bytes of memory behind all tensors in `held`.

    counted: the pieces of memory that count no more; those found are added.
    """
    counted = set() if counted is None else counted
    total = 0
    for part in parts_in(held):
        storage = part.untyped_storage()
        if storage._cdata not in counted:
            counted.add(storage._cdata)
            total += storage.nbytes()
    return total


def parts_in(held: Any) -> Iterator[Tensor]:
    """The plain tensors that hold the values of all tensors in `held`."""
    for tensor in tensors_in(held):
        yield from _parts(tensor)


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a tensor's values: itself, if it is a plain one."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))
    elif tensor.layout in COMPRESSED:
        for name in COMPRESSED[tensor.layout]:
            yield from _parts(getattr(tensor, name)())
    elif not _is_shell(tensor):
        yield tensor
        if tensor.is_quantized and tensor.qscheme() == torch.per_channel_affine:
            yield from (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())


def _is_shell(tensor: Tensor) -> bool:
    """Whether a tensor has no memory of its own, only attributes that `tensors_in` finds."""
    if tensor.is_meta:
        return False
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return True
    return False
