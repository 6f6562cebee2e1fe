"""GPT-2 in the forms the speedruns race, from a million parameters to 1.5 billion.

The defaults of `GPTConfig` are the fixed setting of the modded-nanogpt optimization track (track
3): RoPE, QK-norm, ReLU^2, soft-capped logits, zero-initialised projections, untied head. `PRESETS`
holds the models of the tracks.

The model is plain single-process PyTorch: parallelism, precision and compilation are applied from
outside. `GPT.roles()` is the contract with the optimizers: one row per parameter that says what
the parameter is for. Read by `speedrun.py`; nothing here decides how it is trained.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, D head size, V vocabulary.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

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
    softcap: float = 15.0  # bound of the output logits; 0: none
    vocab_multiple: int = 1  # the tables have rows up to a multiple of it, which are no targets
    tied: bool = False  # one table is both embedding and head
    bias: bool = True  # in every linear layer
    norm_gain: bool = True  # in every RMSNorm of the residual stream
    norm_embed: bool = True  # RMSNorm of the embedding
    qk_norm: bool = True  # queries and keys of length sqrt(D); without, logits have 1 / sqrt(D)
    rope_half: bool = True  # RoPE on half of the channel pairs; see Rotary
    activation: Literal["relu2", "gelu"] = "relu2"
    init: Literal["zero_proj", "gpt2"] = "zero_proj"  # see GPT.init_weights
    embed_dtype: Literal["float32", "bfloat16"] = "float32"  # as stored and trained

    @property
    def table_rows(self) -> int:
        """Rows of the embedding and of the head: the vocabulary, padded."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 4:
            raise ValueError(
                f"n_embd={self.n_embd} with n_head={self.n_head}: heads must have equal sizes, "
                "a multiple of 4"
            )


# The fixed setting of track 3 but for its sizes. The embedding is stored in bfloat16; the other
# parameters are float32 and cast to the type of what they multiply.
_TRACK_3 = dict(vocab_multiple=128, embed_dtype="bfloat16")

# The 2024 logs behind the 35% claim: tied head, GELU, unpadded vocabulary, no biases, no QK-norm,
# no soft cap. The logs do not say the following, so it is chosen here: RMSNorm, without gains and
# not on the embedding; RoPE on all channel pairs with the usual base; the exact GELU; GPT-2's
# initialisation, with which the loss starts at 10.94, the logs' at 10.93 to 11.01.
_OCTOBER_2024 = dict(
    tied=True,
    bias=False,
    norm_gain=False,
    norm_embed=False,
    qk_norm=False,
    softcap=0.0,
    activation="gelu",
    rope_base=10000.0,
    rope_half=False,
    init="gpt2",
)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(n_layer=4, n_head=4, n_embd=128),
    "gpt2": dict(n_layer=12, n_head=6, n_embd=768, **_TRACK_3),
    "gpt2-2024": dict(n_layer=12, n_head=12, n_embd=768, **_OCTOBER_2024),
    # Called 350M, which is what it has without the embedding; with it 405M, as the head is untied.
    "medium": dict(n_layer=24, n_head=8, n_embd=1024, **_TRACK_3),
    "xl": dict(n_layer=52, n_head=12, n_embd=1536, **_OCTOBER_2024),
}


def preset(name: str, vocab_size: int, block_size: int, width: int | None = None) -> GPTConfig:
    """The sizes of a named model; the data set gives the vocabulary, the track the context.

    width: channels in place of the model's own; the heads keep their size. Raises UserError on an
    unknown name, or a width that is no multiple of that size.
    """
    if name not in PRESETS:
        raise UserError(f"unknown model {name!r}: must be one of {', '.join(PRESETS)}")
    config = GPTConfig(vocab_size, block_size, **PRESETS[name])
    if width is None:
        return config
    head_size = config.n_embd // config.n_head
    if width < 1 or width % head_size:
        raise UserError(
            f"width {width}: must be a multiple of the head size {head_size}; "
            f"run with --width {max(1, round(width / head_size)) * head_size}"
        )
    return replace(config, n_embd=width, n_head=width // head_size)


class Linear(nn.Linear):
    """A linear layer whose parameters are cast to the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.type_as(x)
        return F.linear(x, self.weight.type_as(x), bias)


def rms_norm(x: Tensor, gain: Tensor | None = None) -> Tensor:
    """x over its root mean square along the last dimension, in the type of x also in autocast."""
    gain = None if gain is None else gain.type_as(x)
    return F.rms_norm(x, x.shape[-1:], gain).type_as(x)


class RMSNorm(nn.RMSNorm):
    """`rms_norm` with a gain, where the configuration has gains."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.n_embd, elementwise_affine=config.norm_gain)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


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
    """Causal multi-head attention, with q, k and v in one matrix.

    A normalised query has length sqrt(D), so the scale that keeps the logits' range is
    attn_scale * sqrt(128 / D): `attn_scale` itself at the heads of 128 that it was chosen for.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.head_size = config.n_embd // config.n_head
        self.qk_norm = config.qk_norm
        normalised = config.attn_scale * (128 / self.head_size) ** 0.5
        self.scale = normalised if config.qk_norm else self.head_size**-0.5
        self.qkv = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.rotary = Rotary(self.head_size, config.block_size, config.rope_base, config.rope_half)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, self.head_size).unbind(2)  # B T H D
        if self.qk_norm:
            q, k = rms_norm(q), rms_norm(k)
        q, k = self.rotary(q), self.rotary(k)
        y = F.scaled_dot_product_attention(  # B H T D
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=True,
            scale=self.scale,
        )
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Two matrices with ReLU^2 (So et al. 2109.08668) or GELU between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.relu2 = config.activation == "relu2"
        self.fc = Linear(config.n_embd, config.mlp_ratio * config.n_embd, bias=config.bias)
        self.proj = Linear(config.mlp_ratio * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if not self.relu2:
            return self.proj(F.gelu(x))
        x = F.relu(x)
        return self.proj(x * x)  # not x.square(), which a GPU's autocast makes float32


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config)
        self.attn = Attention(config)
        self.norm2 = RMSNorm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def soft_cap(z: Tensor, cap: float) -> Tensor:
    """z bounded smoothly by +-cap; z itself where cap is 0."""
    return cap * z * torch.rsqrt(z.square() + cap * cap) if cap else z


class ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of soft-capped logits, a chunk of tokens at a time.

    The forward pass computes the gradients too, so that the logits of no more than a chunk are
    ever in memory and none is computed twice. Gradients add up in the parameters' type.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # N C
        weight: Tensor,  # V C
        bias: Tensor | None,  # V
        targets: Tensor,  # N
        cap: float,
        chunk: int,
    ) -> Tensor:
        w, b = weight.type_as(x), None if bias is None else bias.type_as(x)
        words = torch.arange(weight.size(0), device=x.device)
        dw = torch.zeros_like(weight)
        db = None if bias is None else torch.zeros_like(bias)
        losses, dxs = [], []
        for xs, ts in zip(x.split(chunk), targets.split(chunk), strict=True):
            low = F.linear(xs, w, b)
            z = _widened(low)
            y = soft_cap(z, cap)
            log_total = y.logsumexp(-1, keepdim=True)
            losses.append((log_total - y.gather(-1, ts[:, None])).sum())
            dz = (y - log_total).exp() - (words == ts[:, None]).to(y.dtype)  # of the capped logits
            if cap:
                dz = dz * (cap * torch.rsqrt(z.square() + cap * cap)) ** 3
            dz = dz.type_as(low)
            dxs.append((dz @ w).type_as(x))
            dw += dz.mT @ xs
            if db is not None:
                db += dz.sum(0, dtype=db.dtype)
        ctx.save_for_backward(torch.cat(dxs), dw, db)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        dx, dw, db = ctx.saved_tensors
        db = None if db is None else grad.type_as(db) * db
        return grad.type_as(dx) * dx, grad.type_as(dw) * dw, db, None, None, None


def _widened(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class GPT(nn.Module):
    """Decoder-only transformer; call `init_weights` before use.

    loss_chunk: tokens whose logits may be in memory at once; 0: all. It changes the loss and the
    gradients by rounding only.
    """

    def __init__(self, config: GPTConfig, loss_chunk: int = 0) -> None:
        super().__init__()
        self.config, self.loss_chunk = config, loss_chunk
        stored = torch.bfloat16 if config.embed_dtype == "bfloat16" else None
        self.embed = nn.Embedding(config.table_rows, config.n_embd, dtype=stored)
        self.norm_embed = RMSNorm(config) if config.norm_embed else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_final = RMSNorm(config)
        self.head = Linear(config.n_embd, config.table_rows, bias=config.bias)
        if config.tied:
            self.head.weight = self.embed.weight

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter anew: the same seed gives the same weights on any device.

        Biases start at 0, gains at 1. "zero_proj": projections back into the residual stream at
        zero, the embedding at N(0, 1), other matrices at variance .33 / fan_in. "gpt2": N(0, .02),
        the projections divided by the square root of their number (Radford et al. 2019).
        """
        generator = torch.Generator().manual_seed(seed)
        for name, param in self.named_parameters():
            std = self._init_std(name, param)
            if std and param.ndim > 1:
                param.copy_(torch.randn(param.shape, generator=generator) * std)
            else:
                param.fill_(std)

    def _init_std(self, name: str, param: Tensor) -> float:
        """Standard deviation of a matrix, or the value of a vector."""
        proj = name.endswith("proj.weight")
        if param.ndim == 1:
            return 0.0 if name.endswith("bias") else 1.0
        if self.config.init == "gpt2":
            return 0.02 / (2 * self.config.n_layer) ** 0.5 if proj else 0.02
        if proj:
            return 0.0
        return 1.0 if name == "embed.weight" else (0.33 / param.size(1)) ** 0.5

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed over all tokens, float32.

        inputs, targets: (B T) int64.
        """
        x = self.embed(inputs)  # B T C
        if not torch.is_autocast_enabled(x.device.type):
            x = _widened(x)  # float32 activations of a bfloat16 table
        x = self.norm_embed(x)
        for block in self.blocks:
            x = block(x)
        x, cap, chunk = self.norm_final(x), self.config.softcap, self.loss_chunk
        if not 0 < chunk < targets.numel():
            return F.cross_entropy(self.logits(x).flatten(0, 1), targets.flatten(), reduction="sum")
        x, targets = x.flatten(0, 1), targets.flatten()
        if torch.is_grad_enabled():
            loss: Tensor = ChunkedLoss.apply(
                x, self.head.weight, self.head.bias, targets, cap, chunk
            )
            return loss
        losses = [
            F.cross_entropy(self.logits(xs), ts, reduction="sum")
            for xs, ts in zip(x.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.stack(losses).sum()

    def logits(self, x: Tensor) -> Tensor:
        """Soft-capped float32 logits (... V) of normalised activations x (... C)."""
        return soft_cap(_widened(self.head(x)), self.config.softcap)

    def roles(self) -> list[RoleRow]:
        """One row per parameter, in the order of `named_parameters`.

        A table that is both embedding and head has one row, as the head.
        """
        C = self.config.n_embd
        head_size = C // self.config.n_head
        rows = []
        for name, param in self.named_parameters():
            if param is self.head.weight:
                rows.append(RoleRow(name, param, "head"))
            elif param is self.embed.weight:
                rows.append(RoleRow(name, param, "embed"))
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
