"""Rotary position embedding (RoPE)."""

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """RoPE (Su et al. 2104.09864): channels j and j + D/2 are a pair, which turns with position.

    Pair j turns by base^(-2j/D) radians a position. With `half`, only the first D/4 pairs turn, by
    1 down to 1/base radians; the others have frequency 0 and carry no position, as in the fixed
    setting of track 3.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, block_size: int, base: float, half: bool) -> None:
        super().__init__()
        if half:
            n = head_size // 4
            frequency = torch.cat([base ** -torch.linspace(0, 1, n), torch.zeros(n)])
        else:
            frequency = base ** -(torch.arange(0, head_size, 2) / head_size)
        angle = torch.outer(torch.arange(block_size, dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos()[None, :, None, :], persistent=False)  # 1 T 1 D/2
        self.register_buffer("sin", angle.sin()[None, :, None, :], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Rotate x (B T H D) by its position along T."""
        T = x.size(1)
        cos, sin = self.cos[:, :T].type_as(x), self.sin[:, :T].type_as(x)
        x1, x2 = x.chunk(2, dim=-1)  # B T H D/2
        return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)
