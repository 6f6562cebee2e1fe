"""Attention: multi-head, grouped-query and multi-head latent, and the layers they are made of.

A variant is a subclass of `Attention`: it projects activations to queries, keys and values, and
knows how to scale the logits of a head by its weights, which is all that QK-Clip asks of it.
`ATTENTIONS` names them for `presets.py`.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, D head size.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.config import GPTConfig


class Linear(nn.Linear):
    """A linear layer whose parameters are cast to the type of its input.

    splits, head_rows: see RoleRow; the rows are one matrix where `splits` is left out.
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
        """Multiply each output by its factor: (rows)."""
        self.weight.mul_(factors[:, None])
        if self.bias is not None:
            self.bias.mul_(factors)


def widened(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def rms_norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """x over its root mean square along the last dimension, in the type of x also in autocast."""
    gain = None if gain is None else gain.type_as(x)
    return F.rms_norm(x, x.shape[-1:], gain).type_as(x)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` with a gain, where the configuration has gains."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class LayerNorm(nn.LayerNorm):
    """Mean 0 and variance 1 along the last dimension, in the type of x also in autocast."""

    def forward(self, x: Tensor) -> Tensor:
        gain, bias = (None if p is None else p.type_as(x) for p in (self.weight, self.bias))
        return F.layer_norm(x, self.normalized_shape, gain, bias, self.eps).type_as(x)


def make_norm(config: GPTConfig, size: int) -> nn.Module:
    """The configuration's norm of `size` channels."""
    if config.norm == "layer":
        return LayerNorm(size, elementwise_affine=config.norm_gain, bias=config.bias)
    return RMSNorm(size, elementwise_affine=config.norm_gain)


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2104.09864): channels j and j + D/2 are a pair.

    `half`: only the first half of the pairs turns, at 1 down to 1 / base of a radian a position.
    The others have frequency 0 and carry no position, as in the fixed setting of track 3.
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
        x1, x2 = x.chunk(2, dim=-1)
        return torch.cat([x1 * cos + x2 * sin, x2 * cos - x1 * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention, and what QK-Clip needs of it; the projections are those of a subclass."""

    max_logits: Tensor
    proj: Linear

    def __init__(self, config: GPTConfig, scale: float) -> None:
        super().__init__()
        self.n_head, self.head_size, self.scale = config.n_head, config.head_size, scale
        self.measuring = False
        # Not persistent: it is no part of what was learned.
        self.register_buffer("max_logits", torch.full((config.n_head,), -math.inf), False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B T H D), keys and values (B T H_kv D) of x (B T C)."""
        raise NotImplementedError

    def scale_logits(self, gamma: Tensor) -> None:
        """Multiply the logits of each head by its gamma (H), for any input, by the weights."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (z.transpose(1, 2) for z in self.project(x))  # B H T D
        if self.measuring:
            largest = max_logits(q.detach(), k.detach(), self.scale)
            self.max_logits.copy_(torch.maximum(self.max_logits, largest))
        y = F.scaled_dot_product_attention(  # B H T D
            q, k, v, is_causal=True, scale=self.scale, enable_gqa=k.size(1) < q.size(1)
        )
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def max_logits(q: Tensor, k: Tensor, scale: float, chunk: int = 128) -> Tensor:
    """The largest logit of each head before the softmax (H), float32 or wider.

    q (B H T D), k (B H_kv T D). Half a matrix product as of attention itself, which does not give
    it away where it is fused: no more than `chunk` queries at a time, for memory, each with the
    keys up to the last of them alone.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    largest = []
    for begin in range(0, q.size(2), chunk):
        queries = q[:, :, begin : begin + chunk]
        end = begin + queries.size(2)
        later = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).triu(begin + 1)
        z = queries @ k[:, :, :end].mT  # B H chunk end
        largest.append(z.masked_fill(later, -math.inf).amax(dim=(0, 2, 3)))
    return scale * widened(torch.stack(largest).amax(0))


class HeadAttention(Attention):
    """Multi-head and grouped-query attention (Ainslie et al. 2305.13245), q, k, v in one matrix.

    A normalised query has length sqrt(D), so the scale that keeps the logits' range is
    attn_scale * sqrt(128 / D): `attn_scale` itself at the heads of 128 that it was chosen for.
    """

    def __init__(self, config: GPTConfig) -> None:
        D, C = config.head_size, config.n_embd
        normalised = config.attn_scale * (128 / D) ** 0.5
        super().__init__(config, scale=normalised if config.qk_norm else D**-0.5)
        self.qk_norm, self.kv_heads = config.qk_norm, config.kv_heads
        splits = (C, self.kv_heads * D, self.kv_heads * D)
        self.qkv = Linear(C, sum(splits), config.bias, splits, head_rows=D)
        self.proj = Linear(C, C, config.bias)
        rope = Rotary(D, config.block_size, config.rope_base, config.rope_half)
        self.rotary = rope if config.positions == "rope" else nn.Identity()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x.shape
        fused = self.qkv(x).split(self.qkv.splits, dim=-1)
        q, k, v = (z.view(B, T, -1, self.head_size) for z in fused)
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        return self.rotary(q), self.rotary(k), v

    def scale_logits(self, gamma: Tensor) -> None:
        """Queries and keys take the square root each; heads that share keys, their smallest gamma.

        So it is in Megatron-LM. Heads of a group that would need less are scaled along.
        """
        root = gamma.view(self.kv_heads, -1).amin(1).sqrt()
        q = root.repeat_interleave(self.n_head // self.kv_heads)
        heads = torch.cat([q, root, torch.ones_like(root)])  # of q, k and v
        self.qkv.scale_rows(heads.repeat_interleave(self.head_size))


class LatentAttention(Attention):
    """Multi-head latent attention (DeepSeek-V2 2405.04434, section 2.1), without biases.

    Queries, and keys with values, pass through a normalised narrow layer, of which the upper
    projections make the heads. The rotary part of a query comes from the same layer, that of the
    keys from x itself, one for all heads; positions are in these alone. Values have the size of a
    whole head. What the paper fuses for speed are matrices of their own here, so that each has
    one kind of head.
    """

    def __init__(self, config: GPTConfig) -> None:
        C, H, D, R = config.n_embd, config.n_head, config.head_size, config.rope_size
        super().__init__(config, scale=D**-0.5)
        self.rope_size = R
        self.q_down = Linear(C, config.q_rank)  # W^DQ
        self.q_norm = make_norm(config, config.q_rank)
        self.q_up = Linear(config.q_rank, H * (D - R), head_rows=D - R)  # W^UQ
        self.q_rope = Linear(config.q_rank, H * R, head_rows=R)  # W^QR
        self.kv_down = Linear(C, config.kv_rank)  # W^DKV
        self.kv_norm = make_norm(config, config.kv_rank)
        self.k_up = Linear(config.kv_rank, H * (D - R), head_rows=D - R)  # W^UK
        self.k_rope = Linear(C, R)  # W^KR
        self.v_up = Linear(config.kv_rank, H * D, head_rows=D)  # W^UV
        self.proj = Linear(C, C)  # W^O
        self.rotary = Rotary(R, config.block_size, config.rope_base, config.rope_half)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = (*x.shape[:2], self.n_head, -1)  # B T H ...
        low_q, low_kv = self.q_norm(self.q_down(x)), self.kv_norm(self.kv_down(x))
        q_rope = self.rotary(self.q_rope(low_q).view(heads))
        k_rope = self.rotary(self.k_rope(x)[:, :, None]).expand(heads)  # B T H R
        q = torch.cat([self.q_up(low_q).view(heads), q_rope], dim=-1)
        k = torch.cat([self.k_up(low_kv).view(heads), k_rope], dim=-1)
        return q, k, self.v_up(low_kv).view(heads)

    def scale_logits(self, gamma: Tensor) -> None:
        """The rotary keys belong to all heads, so the rotary queries take the whole of gamma."""
        for layer, factor in (
            (self.q_up, gamma.sqrt()), (self.k_up, gamma.sqrt()), (self.q_rope, gamma)
        ):  # fmt: skip
            layer.scale_rows(factor.repeat_interleave(layer.head_rows))


ATTENTIONS: dict[str, Callable[[GPTConfig], Attention]] = {
    "mha": HeadAttention,
    "mla": LatentAttention,
}
