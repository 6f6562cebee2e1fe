"""The model that one would take instead: GPT-2 of Hugging Face `transformers`, at our sizes.

`bench.step` measures its training step beside ours. The peer is given what makes it fast: no cache
of keys, no dropout, and torch's own GELU (the one that its configuration names by default is the
same function in six passes over the activations). `transformers` is a requirement of development
only, so it is imported where it is used.
"""

from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import Any

from torch import Tensor, nn

from bench import Row
from layers.config import GPTConfig

NAME = "transformers' GPT-2"
MISSING = (
    "transformers: not installed, so only our own models are measured; "
    "run: pip install -r requirements-dev.txt"
)
# How it computes attention: torch's fused function, or products with a softmax between.
ATTENTIONS = ("sdpa", "eager")


def installed() -> bool:
    """Whether `transformers` can be imported."""
    return find_spec("transformers") is not None


def version() -> Row:
    """The version of `transformers` as a column; no column where it is not installed."""
    return {"transformers": version_of("transformers")} if installed() else {}


class GPT2(nn.Module):
    """`GPT2LMHeadModel` with the arguments and the result of our own model, untrained."""

    def __init__(self, config: GPTConfig, attention: str) -> None:
        """config: a model with the architecture of GPT-2 as published, such as `tiny-classic`.

        attention: one of ATTENTIONS.
        """
        from transformers import GPT2Config, GPT2LMHeadModel

        super().__init__()
        assert (config.positions, config.norm, config.activation, config.softcap) == (
            "learned", "layer", "gelu_tanh", 0.0
        )  # fmt: skip
        sizes: dict[str, Any] = dict(
            vocab_size=config.table_rows,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.mlp_ratio * config.n_embd,
            tie_word_embeddings=config.tied,
        )
        self.inner = GPT2LMHeadModel(
            GPT2Config(
                **sizes,
                activation_function="gelu_pytorch_tanh",
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                use_cache=False,
                attn_implementation=attention,
                bos_token_id=None,  # none of the vocabulary's tokens is special
                eos_token_id=None,
            )
        )
        # Its own loss. Left to find that out, it warns, which breaks its compiled graph in two.
        self.inner.loss_type = "ForCausalLM"

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The mean cross-entropy, nats per token. inputs, targets: (B T), int64."""
        # Without shift_labels the model would take the labels one place further on.
        loss: Tensor = self.inner(inputs, labels=targets, shift_labels=targets).loss
        return loss
