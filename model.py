"""GPT-2 in the forms that speedruns race, from a million parameters to 1.5 billion.

`layers/config.py` holds what can be chosen and the models of the tracks; the other files of
`layers/` are the parts, one file per attention.

The model is plain PyTorch of one process: parallelism, precision and compilation are applied from
outside. `GPT.roles()` is the contract with the optimizers: one row per parameter that says what
the parameter is for. `GPT.clip_qk` is QK-Clip, which needs to know the heads; a recipe only asks
for it. Nothing here decides how the model is trained: `speedrun.py` does.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, D head size, V vocabulary.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.attention import Attention, make_attention
from layers.config import GPTConfig
from layers.embedding import Embedding
from layers.linear import Linear
from layers.norms import make_norm, upcast

Role = Literal["embed", "head", "matrix", "vector"]


class RoleRow(NamedTuple):
    """What one parameter is for.

    splits: row counts of the matrices stacked in it, top to bottom (q, k, v in a fused projection).
    head_rows: rows of a head in each of these matrices; 0: they have no heads.
    """

    name: str
    param: nn.Parameter
    role: Role
    splits: tuple[int, ...] = ()
    head_rows: int = 0


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation, x (1 + tanh(u)) / 2 = x sigmoid(2u).

    The sigmoid takes half the time in a compiled loop.
    """
    z = upcast(x)
    u = math.sqrt(2 / math.pi) * (z + 0.044715 * z * z * z)
    return (z * torch.sigmoid(2 * u)).type_as(x)


class MLP(nn.Module):
    """Two matrices with ReLU^2 (So et al. 2109.08668) or GELU between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.activation = config.activation
        self.fc = Linear(config.n_embd, config.mlp_ratio * config.n_embd, bias=config.bias)
        self.proj = Linear(config.mlp_ratio * config.n_embd, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x)
        if self.activation == "relu2":
            x = F.relu(x)
            return self.proj(x * x)  # not x.square(), which a GPU's autocast makes float32
        return self.proj(gelu_tanh(x) if self.activation == "gelu_tanh" else F.gelu(x))


class Block(nn.Module):
    """Pre-norm residual block."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config, config.n_embd)
        self.attn = make_attention(config)
        self.norm2 = make_norm(config, config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def soft_cap(z: Tensor, cap: float) -> Tensor:
    """z bounded smoothly to (-cap, cap): cap z / sqrt(z^2 + cap^2). A cap of 0: z itself."""
    return cap * z * torch.rsqrt(z.square() + cap * cap) if cap else z


def after(x: Tensor, *earlier: Tensor) -> Tensor:
    """x, or NaN if an `earlier` result is not finite: so a compiled program computes those first.

    It may else compute a product of all chunks before it goes on, for loops that chunks share, and
    hold all logits at once.
    """
    seen = torch.stack([each.flatten()[-1].float() for each in earlier])
    return x.where(seen.isfinite().all(), math.nan)


EXP_CAP = 30.0  # of logits whose exponentials, down to exp(-2 cap), float32 holds well


class ChunkedLoss(torch.autograd.Function):
    """Summed cross-entropy of soft-capped logits, a chunk of tokens at a time.

    The forward pass also computes the gradients. So the logits are gone over once, and only one
    chunk of them is in memory at a time. Gradients are summed in the type of the parameters.
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
        w = weight.type_as(x)
        # Compared as int32, which takes half the time of int64 in a vectorised loop.
        words = torch.arange(weight.size(0), dtype=torch.int32, device=x.device)
        dw = torch.zeros_like(weight)
        db = None if bias is None else torch.zeros_like(bias)
        losses: list[Tensor] = []
        dxs: list[Tensor] = []
        for xs, ts in zip(x.split(chunk), targets[:, None].split(chunk), strict=True):
            if losses:
                xs = after(xs, losses[-1], dxs[-1], dw, *(() if db is None else (db,)))
            # The bias is added in the loop below, not in a pass of its own before the product.
            low = xs @ w.mT
            z = upcast(low) if bias is None else upcast(low) + upcast(bias)
            y = soft_cap(z, cap)
            # What bounds the exponent: a cap saves the search for the largest logit.
            most = cap if 0 < cap <= EXP_CAP else y.amax(-1, keepdim=True)
            log_total = most + (y - most).exp().sum(-1, keepdim=True).log()
            losses.append((log_total - y.gather(-1, ts)).sum())
            dz = (y - log_total).exp() - (words == ts.int()).to(y.dtype)  # of the capped logits
            if cap:
                slope = cap * torch.rsqrt(z.square() + cap * cap)
                dz = dz * slope * slope * slope
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


class GPT(nn.Module):
    """Decoder-only transformer (Radford et al. 2019); call `init_weights` before use.

    loss_chunk: tokens whose logits are in memory at once; 0: all. It changes the loss and the
    gradients by rounding only.
    """

    def __init__(self, config: GPTConfig, loss_chunk: int = 0) -> None:
        super().__init__()
        self.config, self.loss_chunk = config, loss_chunk
        self.eager_passes = 0  # forward passes that Python ran: compiled code does not count them
        stored = torch.bfloat16 if config.embed_dtype == "bfloat16" else None
        self.embed = Embedding(config.table_rows, config.n_embd, dtype=stored)
        self.positions = (
            nn.Embedding(config.block_size, config.n_embd)
            if config.positions == "learned"
            else None
        )
        self.norm_embed = make_norm(config, config.n_embd) if config.norm_embed else nn.Identity()
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm_final = make_norm(config, config.n_embd)
        self.head = Linear(config.n_embd, config.table_rows, config.bias and not config.tied)
        if config.tied:
            self.head.weight = self.embed.weight
        # Counted here, while all parameters are whole: an engine may shard them.
        self.param_count = sum(p.numel() for p in self.parameters())
        self.product_weights = sum(
            row.param.numel() for row in self.roles() if row.role in ("matrix", "head")
        )

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter anew: the same seed gives the same weights on any device.

        Biases start at 0, gains at 1. With `init` "zero_proj", projections back into the residual
        stream start at 0, embeddings at N(0, 1), other matrices at a variance of .33 / fan_in. With
        "gpt2" (Radford et al. 2019), all matrices have a standard deviation of .02, except the
        projections back into the residual stream: theirs is .02 over the square root of their
        number.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, param in self.named_parameters():
            std = self._init_std(name, param)
            if std and param.ndim > 1:
                param.copy_(torch.randn(param.shape, generator=generator) * std)
            else:
                param.fill_(std)

    def _init_std(self, name: str, param: Tensor) -> float:
        """Standard deviation of a matrix's entries, or the value of every entry of a vector."""
        proj = name.endswith("proj.weight")
        if param.ndim == 1:
            return 0.0 if name.endswith("bias") else 1.0
        if self.config.init == "gpt2":
            return 0.02 / (2 * self.config.n_layer) ** 0.5 if proj else 0.02
        if proj:
            return 0.0
        table = name in ("embed.weight", "positions.weight")
        return 1.0 if table else (0.33 / param.size(1)) ** 0.5

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy in nats, summed over all tokens: a float32 scalar.

        inputs, targets: (B T), int64.
        """
        if not torch.compiler.is_compiling():
            self.eager_passes += 1
        x = self.embed(inputs)  # B T C
        if not torch.is_autocast_enabled(x.device.type):
            x = upcast(x)  # float32 activations of a bfloat16 table
        if self.positions is not None:
            x = x + self.positions.weight[: x.size(1)].type_as(x)
        x = self.norm_embed(x)
        for block in self.blocks:
            x = block(x)
        x, targets = self.norm_final(x).flatten(0, 1), targets.flatten()
        chunk = self.loss_chunk or targets.numel()
        if torch.is_grad_enabled():
            loss: Tensor = ChunkedLoss.apply(
                x, self.head.weight, self.head.bias, targets, self.config.softcap, chunk
            )
            return loss
        losses = [
            F.cross_entropy(self.logits(xs), ts, reduction="sum")
            for xs, ts in zip(x.split(chunk), targets.split(chunk), strict=True)
        ]
        return torch.stack(losses).sum()

    def logits(self, x: Tensor) -> Tensor:
        """Soft-capped float32 logits (... V) of normalised activations x (... C)."""
        return soft_cap(upcast(self.head(x)), self.config.softcap)

    def roles(self) -> list[RoleRow]:
        """One row per parameter, in the order of `named_parameters`.

        A table that is both embedding and head has one row, as the head. The table of learned
        positions has the role of a vector: it is a bias for each position, has a gradient in every
        step, and is as small as gains and biases.
        """
        linear = {name: layer for name, layer in self.named_modules() if isinstance(layer, Linear)}
        rows = []
        for name, param in self.named_parameters():
            if param is self.head.weight:
                rows.append(RoleRow(name, param, "head"))
            elif param is self.embed.weight:
                rows.append(RoleRow(name, param, "embed"))
            elif param.ndim < 2 or name == "positions.weight":
                rows.append(RoleRow(name, param, "vector"))
            else:
                layer = linear[name.removesuffix(".weight")]
                rows.append(RoleRow(name, param, "matrix", layer.splits, layer.head_rows))
        return rows

    def flops_per_token(self, seq_len: int) -> float:
        """Model FLOPs of forward and backward for one token of a sequence of `seq_len` tokens.

        6 per weight of a matrix product (Kaplan et al. 2001.08361), and 12 * n_layer * C * T / 2
        for the products of attention, half of which the causal mask removes.
        """
        return 6.0 * self.product_weights + 6.0 * self.config.n_layer * self.config.n_embd * seq_len

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer."""
        return [module for module in self.modules() if isinstance(module, Attention)]

    def use_attention(self, way: str) -> None:
        """Compute attention in a way of `layers.attention.WAYS`; it changes results by rounding."""
        for attention in self.attentions:
            attention.way = way

    @contextmanager
    def measuring(self, on: bool = True) -> Iterator[None]:
        """Within it, each forward pass keeps the largest logit of every head, if `on`."""
        for attention in self.attentions:
            attention.measuring = on
        try:
            yield
        finally:
            for attention in self.attentions:
                attention.measuring = False

    def pop_max_logits(self) -> Tensor:
        """The largest logits measured since the last call, (n_layer H); -inf if none were."""
        buffers = [attention.max_logits for attention in self.attentions]
        largest = torch.stack(buffers)
        for buffer in buffers:
            buffer.fill_(-math.inf)
        return largest

    def check_clip(self, tau: float | None) -> None:
        """Raise ValueError if this model cannot be clipped at `tau`; None asks for no clip."""
        if tau is None:
            return
        if not tau > 0:
            raise ValueError(f"tau={tau}: must be above 0; the published value is 100")
        if self.config.qk_norm:
            raise ValueError(
                "QK-Clip scales the weights of queries and keys, which this model normalises: "
                "its logits are bounded already; race it on a model without QK-norm, such as "
                "--track tiny-mla"
            )

    @torch.no_grad()
    def clip_qk(self, max_logits: Tensor, tau: float) -> None:
        """QK-Clip (Kimi K2 2507.20534, algorithm 1): scale down heads with logits above tau.

        max_logits: (n_layer H), as `pop_max_logits` returns them. A head whose largest logit S
        exceeds tau has its logits multiplied by tau / S from now on, through its weights. The
        other heads stay as they are, unless they share keys with it (layers/mha.py).
        """
        gamma = torch.where(max_logits > tau, tau / max_logits, 1.0)
        for attention, factors in zip(self.attentions, gamma, strict=True):
            attention.scale_logits(factors)
