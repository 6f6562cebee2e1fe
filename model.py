"""GPT-2 in the form the speedruns race: RoPE, QK-norm, ReLU^2, zero-initialised projections.

The model is plain single-process PyTorch: parallelism, precision and compilation are applied from
outside. `GPT.roles()` is the contract with the optimizers: one row per parameter that says what
the parameter is for. Read by `speedrun.py`; nothing here decides how it is trained.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, D head size, V vocabulary.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError

Role = Literal["embed", "head", "matrix", "vector"]


class RoleRow(NamedTuple):
    """What one parameter is for.

    `splits` are the row counts of the matrices stacked in it, top to bottom (q, k, v in a fused
    projection); `head_rows` is the number of rows of one attention head, 0 outside attention.
    """

    name: str
    param: nn.Parameter
    role: Role
    splits: tuple[int, ...] = ()
    head_rows: int = 0


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and constants of the architecture."""

    vocab_size: int
    block_size: int  # longest sequence, tokens
    n_layer: int
    n_head: int
    n_embd: int
    mlp_ratio: int = 4
    rope_base: float = 1024.0
    attn_scale: float = 0.12  # of the pre-softmax logits, for heads of 128; see Attention
    softcap: float = 15.0  # bound of the output logits

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 4:
            raise ValueError(
                f"n_embd={self.n_embd} with n_head={self.n_head}: heads must have equal sizes, "
                "a multiple of 4"
            )


PRESETS = {  # n_layer, n_head, n_embd
    "tiny": (4, 4, 128),
}


def preset(name: str, vocab_size: int, block_size: int) -> GPTConfig:
    """The sizes of a named model; the data set gives the vocabulary, the track the context.

    Raises UserError on an unknown name.
    """
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}: must be one of {', '.join(PRESETS)}")
    n_layer, n_head, n_embd = PRESETS[name]
    return GPTConfig(vocab_size, block_size, n_layer, n_head, n_embd)


class Rotary(nn.Module):
    """Rotary position embedding over the first half of the channel pairs (Su et al. 2104.09864).

    The other half has frequency 0 and so carries no position, as in the fixed setting of the
    modded-nanogpt optimization track.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_size: int, block_size: int, base: float) -> None:
        super().__init__()
        n = head_size // 4
        frequency = torch.cat([base ** -torch.linspace(0, 1, n), torch.zeros(n)])
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
    """Causal multi-head attention with normalised queries and keys, q, k and v in one matrix.

    A normalised query has length sqrt(D), so the scale that keeps the logits' range is
    attn_scale * sqrt(128 / D): `attn_scale` itself at the heads of 128 that it was chosen for.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.head_size = config.n_embd // config.n_head
        self.scale = config.attn_scale * (128 / self.head_size) ** 0.5
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.rotary = Rotary(self.head_size, config.block_size, config.rope_base)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, self.head_size).unbind(2)  # B T H D
        q = self.rotary(F.rms_norm(q, (self.head_size,)))
        k = self.rotary(F.rms_norm(k, (self.head_size,)))
        y = F.scaled_dot_product_attention(  # B H T D
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            scale=self.scale,
        )
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two matrices with ReLU^2 between (So et al. 2109.08668)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.fc = nn.Linear(config.n_embd, config.mlp_ratio * config.n_embd)
        self.proj = nn.Linear(config.mlp_ratio * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.relu(self.fc(x)).square())


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.n_embd)
        self.attn = Attention(config)
        self.norm2 = nn.RMSNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Decoder-only transformer with an untied head; call `init_weights` before use."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.norm_embed = nn.RMSNorm(config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_final = nn.RMSNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, config.vocab_size)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter anew: the same seed gives the same weights on any device.

        Projections back into the residual stream start at zero, the embedding at N(0, 1), other
        matrices at variance .33 / fan_in, biases at 0, gains at 1.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(param: Tensor, std: float) -> None:
            param.copy_(torch.randn(param.shape, generator=generator) * std)

        for name, param in self.named_parameters():
            if name == "embed.weight":
                normal(param, 1.0)
            elif name.endswith("bias") or name.endswith("proj.weight"):
                param.zero_()
            elif param.ndim == 1:
                param.fill_(1.0)
            else:
                normal(param, (0.33 / param.size(1)) ** 0.5)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed over all tokens, float32.

        inputs, targets: (B T) int64.
        """
        x = self.norm_embed(self.embed(inputs))  # B T C
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(
            self.logits(self.norm_final(x)).flatten(0, 1), targets.flatten(), reduction="sum"
        )

    def logits(self, x: Tensor) -> Tensor:
        """Soft-capped float32 logits (B T V) of normalised activations x (B T C)."""
        z = self.head(x).float()
        cap = self.config.softcap
        return cap * z * torch.rsqrt(z.square() + cap * cap)

    def roles(self) -> list[RoleRow]:
        """One row per parameter, in the order of `named_parameters`."""
        C = self.config.n_embd
        head_size = C // self.config.n_head
        rows = []
        for name, param in self.named_parameters():
            if name == "embed.weight":
                rows.append(RoleRow(name, param, "embed"))
            elif name == "head.weight":
                rows.append(RoleRow(name, param, "head"))
            elif param.ndim < 2:
                rows.append(RoleRow(name, param, "vector"))
            elif name.endswith("attn.qkv.weight"):
                rows.append(RoleRow(name, param, "matrix", (C, C, C), head_size))
            else:
                rows.append(RoleRow(name, param, "matrix", (param.size(0),)))
        return rows

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of forward and backward for one token of a sequence of `seq_len`.

        6 per weight of a matrix product (Kaplan et al. 2001.08361), and the attention products,
        of which causality leaves half: 12 * n_layer * C * T / 2.
        """
        weights = sum(r.param.numel() for r in self.roles() if r.role in ("matrix", "head"))
        return 6.0 * weights + 6.0 * self.config.n_layer * self.config.n_embd * seq_len
