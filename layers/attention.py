"""Causal attention: what the variants share, and what QK-Clip needs of each.

A variant is a file of this folder with a class `SelfAttention`, a subclass of `Attention`. It
projects activations to queries, keys and values, and scales the logits of a head through its
weights, which is all that QK-Clip asks for. The configuration names the file.

Attention itself is computed in one of two ways, which are equal but for rounding: "fused" is the
kernel of torch, which never holds the logits; "plain" is two batched products with a softmax
between, which torch.compile fuses. `runtime/fastest.py` measures which one is faster.

Shapes: B sequences, T tokens, C channels (n_embd), H heads, D head size.
"""

import math
import pkgutil
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import layers
from errors import UserError
from layers.config import GPTConfig
from layers.linear import Linear
from layers.norms import upcast

WAYS = ("fused", "plain")  # the first one needs less memory, and is taken where they tie


class Attention(nn.Module):
    """Causal attention, the same for all variants but for their projections."""

    max_logits: Tensor  # H: the largest since they were last read, while `measuring`
    proj: Linear  # back into the residual stream

    def __init__(self, config: GPTConfig, scale: float) -> None:
        """scale: of the logits, scale q^T k."""
        super().__init__()
        self.n_head, self.head_size, self.scale = config.n_head, config.head_size, scale
        self.way, self.measuring = WAYS[0], False
        # Not persistent: a measurement, no learned weight.
        self.register_buffer("max_logits", torch.full((config.n_head,), -math.inf), False)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B T H D), keys and values (B T H_kv D) of x (B T C)."""
        raise NotImplementedError

    def scale_logits(self, gamma: Tensor) -> None:
        """Change the weights so that each head's logits are multiplied by its gamma (H)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (z.transpose(1, 2) for z in self.project(x))  # B H T D
        if self.way == "plain":
            y, largest = PlainAttention.apply(q, k, v, self.scale)
        else:
            y, largest = fused_attention(q, k, v, self.scale), None
        if self.measuring:
            if largest is None:
                largest = max_logits(q.detach(), k.detach(), self.scale)
            self.max_logits.copy_(torch.maximum(self.max_logits, largest))
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention (B H T D) of queries (B H T D), keys and values (B H_kv T D): torch's kernel."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=k.size(1) < q.size(1)
    )


class PlainAttention(torch.autograd.Function):
    """What `fused_attention` computes, by products and a softmax; also the largest logits (H).

    The softmax is computed in float32 or wider, from logits in the type of the product. Only the
    probabilities are kept for the backward pass, in the type of the values. Products are batches of
    matrices, one for each sequence and key head: the queries of heads that share keys are one
    matrix.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        (B, H, T, D), H_kv = q.shape, k.size(1)
        q = q.reshape(B * H_kv, -1, D)  # (B H_kv) (H/H_kv T) D
        k, v = (z.reshape(B * H_kv, T, D) for z in (k, v))
        # Compared as int32, which takes half the time of int64 in a vectorised loop.
        position = torch.arange(T, dtype=torch.int32, device=q.device)
        later = position > position[:, None]  # T T
        z = upcast(q @ k.mT).view(B, H, T, T).masked_fill(later, -math.inf)
        row_max = z.amax(-1, keepdim=True)  # B H T 1
        e = (scale * (z - row_max)).exp()
        p = (e / e.sum(-1, keepdim=True)).type_as(v).view(B * H_kv, -1, T)
        ctx.save_for_backward(q, k, v, p)
        ctx.scale = scale
        largest = scale * row_max.amax((0, 2, 3))
        ctx.mark_non_differentiable(largest)
        return (p @ v).view(B, H, T, D), largest

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> Any:
        q, k, v, p = ctx.saved_tensors
        B, T, D = dy.size(0), dy.size(2), dy.size(3)
        dy = dy.reshape_as(q)
        wide, dp = upcast(p), upcast(dy @ v.mT)
        dz = ctx.scale * wide * (dp - (wide * dp).sum(-1, keepdim=True))
        dz = dz.type_as(q)  # of q k^T
        grads = dz @ k, dz.mT @ q, p.mT @ dy
        return *(grad.view(B, -1, T, D) for grad in grads), None


def max_logits(q: Tensor, k: Tensor, scale: float, chunk: int = 128) -> Tensor:
    """The largest causal logit of each head before the softmax (H), float32 or wider.

    q (B H T D), k (B H_kv T D). Recomputes QK^T, because fused attention does not return logits.
    Takes `chunk` queries at a time to bound memory, each chunk with the keys up to its last query.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    largest = []
    for begin in range(0, q.size(2), chunk):
        queries = q[:, :, begin : begin + chunk]
        end = begin + queries.size(2)
        later = torch.ones(end - begin, end, dtype=torch.bool, device=q.device).triu(begin + 1)
        z = queries @ k[:, :, :end].mT  # B H chunk end
        largest.append(z.masked_fill(later, -math.inf).amax(dim=(0, 2, 3)))
    return scale * upcast(torch.stack(largest).amax(0))


def make_attention(config: GPTConfig) -> Attention:
    """The attention that `config.attention` names: the class `SelfAttention` of that file.

    Raises UserError, naming the known ones, if there is no such file, and ValueError for sizes that
    the attention cannot take.
    """
    names = [module.name for module in pkgutil.iter_modules(layers.__path__)]
    files = {name: import_module(f"{layers.__name__}.{name}") for name in names}
    known = [name for name, file in files.items() if hasattr(file, "SelfAttention")]
    if config.attention not in known:
        raise UserError(
            f"attention {config.attention!r}: must be one of {', '.join(known)}; "
            "a new one is a file of that name in layers/ with a class SelfAttention"
        )
    made: Attention = files[config.attention].SelfAttention(config)
    return made
