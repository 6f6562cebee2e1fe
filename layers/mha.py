"""Multi-head attention, and grouped-query attention where `n_kv_head` is below `n_head`."""

import torch
from torch import Tensor, nn

from layers.attention import Attention
from layers.config import GPTConfig
from layers.linear import Linear
from layers.norms import rms_norm
from layers.rotary import Rotary


class SelfAttention(Attention):
    """Vaswani et al. 1706.03762 and Ainslie et al. 2305.13245, with q, k and v in one matrix.

    With `qk_norm`, queries and keys are divided by their root mean square (Henry et al.
    2010.04245). A normalised query has length sqrt(D), so the scale that keeps the logits' range is
    attn_scale * sqrt(128 / D): `attn_scale` itself for heads of 128 channels, for which it was
    chosen.
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
        q, k, v = (z.view(B, T, -1, self.head_size) for z in fused)  # B T H D
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        return self.rotary(q), self.rotary(k), v

    def scale_logits(self, gamma: Tensor) -> None:
        """Queries and keys are multiplied by the square root of gamma (H).

        Heads that share keys take the smallest gamma of their group, as in Megatron-LM, so some of
        them are scaled by more than they need.
        """
        root = gamma.view(self.kv_heads, -1).amin(1).sqrt()
        q = root.repeat_interleave(self.n_head // self.kv_heads)
        heads = torch.cat([q, root, torch.ones_like(root)])  # of q, k and v
        self.qkv.scale_rows(heads.repeat_interleave(self.head_size))
