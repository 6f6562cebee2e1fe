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
            z = causal_logits(q, k)
            y = plain_attention(z, v, self.scale)
            largest = self.scale * z.detach().amax((0, 2, 3)) if self.measuring else None
        else:
            y = fused_attention(q, k, v, self.scale)
            largest = max_logits(q.detach(), k.detach(), self.scale) if self.measuring else None
        if largest is not None:
            self.max_logits.copy_(torch.maximum(self.max_logits, largest))
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


def fused_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention (B H T D) of queries (B H T D), keys and values (B H_kv T D): torch's kernel."""
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=k.size(1) < q.size(1)
    )


def causal_logits(q: Tensor, k: Tensor) -> Tensor:
    """q^T k of each query and key (B H T T), -inf for later keys; float32 or wider.

    q (B H T D), k (B H_kv T D). The queries of heads that share keys are one matrix, so no key is
    repeated.
    """
    B, H, T, D = q.shape
    z = q.reshape(B, k.size(1), -1, D) @ k.mT  # B H_kv (H/H_kv T) T
    later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return upcast(z.view(B, H, T, T)).masked_fill(later, -math.inf)


def plain_attention(z: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention (B H T D) by the logits z (B H T T) before the scale, and values v (B H_kv T D)."""
    B, H, T, _ = z.shape
    p = (scale * z).softmax(-1).type_as(v)
    return (p.view(B, v.size(1), -1, T) @ v).view(B, H, T, -1)


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
