"""The table of embeddings, with gradients that are the same in every run."""

from typing import Any

import torch
from torch import Tensor, nn


class Lookup(torch.autograd.Function):
    """Rows of a table by their numbers.

    On a CPU, torch.compile makes the gradient of F.embedding a loop of atomic additions: slow, and
    in another order each time. `scatter_add` stays a kernel of torch, with one order.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.table_shape = table.shape
        return table[rows]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        index = rows.flatten()[:, None].expand(-1, grad.size(-1))  # B*T C
        return grad.new_zeros(ctx.table_shape).scatter_add(0, index, grad.flatten(0, -2)), None


class Embedding(nn.Embedding):
    """nn.Embedding whose gradient is deterministic on a CPU, compiled as well."""

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu":
            return super().forward(input)
        found: Tensor = Lookup.apply(self.weight, input)
        return found
