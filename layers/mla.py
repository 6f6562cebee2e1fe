"""Multi-head latent attention: queries, and keys with values, pass through narrow layers."""

import torch
from torch import Tensor

from layers.attention import Attention
from layers.config import GPTConfig
from layers.linear import Linear
from layers.norms import make_norm
from layers.rotary import Rotary


class SelfAttention(Attention):
    """DeepSeek-V2 2405.04434, section 2.1, without biases.

    Queries, and keys with values, are each compressed to a narrow layer and normalised; upper
    projections make the heads from it. A head's last R channels are rotary and alone carry
    positions. Its rotary queries come from the narrow layer too; the rotary keys come from x and
    are shared by all heads. Values have D channels. The matrices that the paper fuses for speed are
    separate here, so that each has one kind of head.
    """

    def __init__(self, config: GPTConfig) -> None:
        """Raises ValueError for sizes and options that this attention cannot take."""
        C, H, D, R = config.n_embd, config.n_head, config.head_size, config.rope_size
        if not (0 < R < D and R % 4 == 0) or min(config.q_rank, config.kv_rank) < 1:
            raise ValueError(
                f"q_rank={config.q_rank}, kv_rank={config.kv_rank}, rope_size={R}: "
                f"mla needs all three, rope_size a multiple of 4 below {D}"
            )
        if config.qk_norm or config.positions != "rope" or config.n_kv_head:
            raise ValueError("mla has rotary keys, no qk_norm and no n_kv_head")
        super().__init__(config, scale=D**-0.5)
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
        """Unshared queries and keys take the square root of gamma (H), rotary queries all of it.

        The rotary keys stay as they are, because all heads share them.
        """
        for layer, factor in (
            (self.q_up, gamma.sqrt()), (self.k_up, gamma.sqrt()), (self.q_rope, gamma)
        ):  # fmt: skip
            layer.scale_rows(factor.repeat_interleave(layer.head_rows))
