"""The architectures: what can be chosen about a GPT, and the models of the tracks.

The defaults of `GPTConfig` are the fixed setting of the modded-nanogpt optimization track (track
3): RoPE, QK-norm, ReLU^2, soft-capped logits, zero-initialised projections, untied head. `PRESETS`
holds the models that are raced; a new model is a line there. `model.py` builds them.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from errors import UserError


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and constants of the architecture."""

    vocab_size: int
    block_size: int  # longest sequence, tokens
    n_layer: int
    n_head: int
    n_embd: int
    attention: str = "mha"  # a file of layers/ that has a class SelfAttention
    n_kv_head: int = 0  # mha: heads of keys and values; fewer than n_head: GQA; 0: n_head
    q_rank: int = 0  # mla: channels that queries are compressed to
    kv_rank: int = 0  # mla: channels that keys with values are compressed to
    rope_size: int = 0  # mla: rotary channels of a head; all heads share their keys
    mlp_ratio: int = 4  # hidden channels of the MLP / n_embd
    rope_base: float = 1024.0
    attn_scale: float = 0.12  # mha with qk_norm: of the logits, for heads of 128 channels
    softcap: float = 15.0  # bound of the output logits; 0: none
    vocab_multiple: int = 1  # rows of the tables are padded to a multiple of it
    tied: bool = False  # one table is both embedding and head
    # in every linear layer except a tied head and the layers of mla, and in LayerNorm
    bias: bool = True
    norm: Literal["rms", "layer"] = "rms"
    norm_gain: bool = True  # in every norm except the norms of queries and keys
    norm_embed: bool = True  # a norm of the embedding
    qk_norm: bool = True  # queries and keys have length sqrt(D); without it: scale 1 / sqrt(D)
    positions: Literal["rope", "learned"] = "rope"
    rope_half: bool = True  # RoPE on half of the channel pairs; see Rotary
    activation: Literal["relu2", "gelu", "gelu_tanh"] = "relu2"
    init: Literal["zero_proj", "gpt2"] = "zero_proj"  # see GPT.init_weights
    embed_dtype: Literal["float32", "bfloat16"] = "float32"  # as stored and trained

    @property
    def table_rows(self) -> int:
        """Rows of the embedding and of the head: the vocabulary, padded."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_head or self.n_head

    def __post_init__(self) -> None:
        if self.n_embd % self.n_head or self.head_size % 4:
            raise ValueError(
                f"n_embd={self.n_embd} with n_head={self.n_head}: heads must have equal sizes, "
                "a multiple of 4"
            )
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head={self.n_kv_head}: must divide n_head={self.n_head}")


# The fixed setting of track 3, without its sizes. The embedding is stored in bfloat16; the other
# parameters are float32 and are cast to the type of what they multiply.
_TRACK_3 = dict(vocab_multiple=128, embed_dtype="bfloat16")

# The 2024 logs behind the 35% claim: tied head, GELU, unpadded vocabulary, no biases, no QK-norm,
# no soft cap. The logs do not say the rest, so it is chosen here: RMSNorm, without gains and not on
# the embedding; RoPE on all channel pairs with the usual base; the exact GELU; GPT-2's
# initialisation, with which the loss starts at 10.94 (in the logs: 10.93 to 11.01).
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

# GPT-2 as published (Radford et al. 2019), its GELU the tanh approximation of the released code.
_CLASSIC = dict(
    positions="learned",
    norm="layer",
    activation="gelu_tanh",
    tied=True,
    norm_embed=False,
    qk_norm=False,
    softcap=0.0,
    init="gpt2",
)

_TINY = dict(n_layer=4, n_head=4, n_embd=128)

# Neither GQA nor MLA has QK-norm here, so that they differ in their attention alone, and so that
# QK-Clip has something to do. In both, 16 of a head's 32 channels are rotary; values have all 32,
# as in GLM-5. The cache of a token has 32 + 16 numbers a layer with MLA, 128 with GQA.
_GQA = dict(n_kv_head=2, qk_norm=False)
_MLA = dict(attention="mla", q_rank=64, kv_rank=32, rope_size=16, rope_half=False, qk_norm=False)

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": _TINY,
    "tiny-gqa": dict(**_TINY, **_GQA),
    "tiny-mla": dict(**_TINY, **_MLA),
    "tiny-classic": dict(**_TINY, **_CLASSIC),
    "gpt2": dict(n_layer=12, n_head=6, n_embd=768, **_TRACK_3),
    "gpt2-2024": dict(n_layer=12, n_head=12, n_embd=768, **_OCTOBER_2024),
    # Called 350M: parameters without the embedding. With it 405M, as the head is untied.
    "medium": dict(n_layer=24, n_head=8, n_embd=1024, **_TRACK_3),
    "xl": dict(n_layer=52, n_head=12, n_embd=1536, **_OCTOBER_2024),
}


def preset(name: str, vocab_size: int, block_size: int, width: int | None = None) -> GPTConfig:
    """The configuration of a model in `PRESETS`.

    vocab_size: of the data set, tokens. block_size: the longest sequence, tokens. width: channels
    in place of the model's own. Heads keep their size, the number of heads that share a key stays,
    and ranks keep their ratio to the width. Raises UserError for an unknown name, or a width that
    these rules do not divide.
    """
    if name not in PRESETS:
        raise UserError(
            f"--model {name}: must be one of {', '.join(PRESETS)}; leave it out for the track's own"
        )
    config = GPTConfig(vocab_size, block_size, **PRESETS[name])
    if width is None:
        return config
    sharing = config.n_head // config.kv_heads
    unit = config.head_size * sharing
    if width < 1 or width % unit:
        times = f" times the {sharing} heads that share a key" if sharing > 1 else ""
        raise UserError(
            f"--width {width}: must be a multiple of the head size {config.head_size}{times}; "
            f"run with --width {max(1, round(width / unit)) * unit}"
        )
    sizes = {
        name: getattr(config, name) * width // config.n_embd
        for name in ("n_head", "n_kv_head", "q_rank", "kv_rank")
    }
    return replace(config, n_embd=width, **sizes)
