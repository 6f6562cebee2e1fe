"""The linear layer of the model, which knows the matrices and heads that its weight is made of."""

import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """y = x W^T + b, with W (n_out n_in) and b cast to the type of the input.

    splits: row counts of the matrices stacked in W, top to bottom, such as the rows of q, k and v;
        one matrix if left out. head_rows: rows of a head in each of them; 0: they have no heads.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        bias: bool = False,
        splits: tuple[int, ...] = (),
        head_rows: int = 0,
    ) -> None:
        super().__init__(n_in, n_out, bias=bias)
        self.splits, self.head_rows = splits or (n_out,), head_rows

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.type_as(x)
        return F.linear(x, self.weight.type_as(x), bias)

    def scale_rows(self, factors: Tensor) -> None:
        """Multiply each output by its factor; factors: (n_out)."""
        self.weight.mul_(factors[:, None])
        if self.bias is not None:
            self.bias.mul_(factors)
