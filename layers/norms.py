"""RMSNorm and LayerNorm, both in the type of their input.

Autocast would compute them in float32 and return float32; here the result has the input's type, so
that activations of the residual stream keep their type.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.config import GPTConfig


def upcast(x: Tensor) -> Tensor:
    """x in float32; a float64 x as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """x (... C) over its root mean square along C, times `gain` (C) if there is one."""
    gain = None if gain is None else gain.type_as(x)
    return F.rms_norm(x, x.shape[-1:], gain).type_as(x)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` (Zhang & Sennrich 1910.07467), with a gain if the configuration has gains."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class LayerNorm(nn.LayerNorm):
    """Mean 0 and variance 1 along the last dimension (Ba et al. 1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = (None if p is None else p.type_as(x) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, gain, bias, self.eps).type_as(x)


def make_norm(config: GPTConfig, size: int) -> nn.Module:
    """The norm that `config.norm` names, for `size` channels."""
    if config.norm == "layer":
        return LayerNorm(size, elementwise_affine=config.norm_gain, bias=config.bias)
    return RMSNorm(size, elementwise_affine=config.norm_gain)
