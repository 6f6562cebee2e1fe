"""A model from the config.json of a Hugging Face checkpoint. No weights are needed.

    python -m planner model path/to/config.json          # or the folder that holds it

It reads GPT-2, Llama and Mistral, Qwen 2 and 3 with and without experts, and DeepSeek-V2, V3 and
V3.2, Kimi K2 and GLM-5. Each weight says from which keys its numbers are. Layers that predict
further tokens (num_nextn_predict_layers) are not counted, as in the published totals. A config.json
does not say how a model was trained, so batch and sequence are assumed; flags change them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from errors import UserError
from planner.models.preset_file import whole
from planner.models.weights import Model, Weight

BATCH_TOKENS = 4 * 2**20  # of a step, assumed
MOST_LAYERS = 10_000
SEQ_LEN = 4096  # tokens of a training sequence, assumed, or fewer where the model takes fewer


@dataclass(frozen=True)
class Config:
    """The values of a config.json. Its methods raise UserError and name the key."""

    path: Path
    values: Mapping[str, Any]

    def size(self, key: str, default: int | None = None, least: int = 1) -> int:
        """A whole number; `default` if the key is absent or null, where it may be."""
        value = self.values.get(key)
        if value is None and default is None:
            raise UserError(
                f"{self.path}: {key} is missing, which model_type {self.values['model_type']} "
                "needs; take the config.json of the checkpoint, or add it"
            )
        return whole(f"{self.path}: {key}", default if value is None else value, least)

    def layers(self) -> int:
        """Layers of the model."""
        key = "num_hidden_layers"
        n = self.size(key)
        if n > MOST_LAYERS:
            raise UserError(f"{self.path}: {key}={n}: must be at most {MOST_LAYERS}; mend the file")
        return n

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.path}: {key}={value!r}: must be true or false; mend the file")
        return value

    def words(self, key: str, length: int) -> list[str] | None:
        """A list with one word for each layer, or None if the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) < length:
            raise UserError(f"{self.path}: {key}: must have a word for each of {length} layers")
        return [str(each) for each in value[:length]]


@dataclass(frozen=True)
class Architecture:
    """What a family reads from a config.json, beside the training."""

    weights: list[Weight]
    n_layer: int
    n_embd: int
    n_head: int
    qk_size: int
    v_size: int
    longest: int  # tokens that the model takes
    window: int = 0  # keys that a query sees at most; 0: all earlier ones
    assumed: tuple[str, ...] = ()


def read(path: Path) -> Model:
    """The model of a config.json. Raises UserError."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name a config.json") from error
    except (ValueError, RecursionError) as error:  # it is no JSON, or no UTF-8
        raise UserError(f"{path}: is no JSON file: {error}; name a config.json") from error
    known = ", ".join(FAMILIES)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise UserError(f"{path}: model_type is missing; it must be one of {known}")
    family = FAMILIES.get(values["model_type"])
    if family is None:
        raise UserError(
            f"{path}: model_type={values['model_type']!r}: must be one of {known}; describe "
            "another model in a TOML file, as planner/models/preset_file.py shows"
        )
    config = Config(path, values)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return _trained(name, config, family(config))


def _trained(name: str, config: Config, parts: Architecture) -> Model:
    seq_len = min(SEQ_LEN, parts.longest)
    window = parts.window if 0 < parts.window < seq_len else 0
    # The first `window` queries see half of them on average.
    attended = window - window**2 / (2 * seq_len) if window else seq_len / 2
    return Model(
        name=name,
        title=f"{name} ({config.values['model_type']})",
        weights=tuple(parts.weights),
        n_layer=parts.n_layer,
        n_embd=parts.n_embd,
        seq_len=seq_len,
        n_head=parts.n_head,
        qk_size=parts.qk_size,
        v_size=parts.v_size,
        attended=attended,
        batch_tokens=BATCH_TOKENS,
        train_tokens=0,
        source=str(config.path),
        assumed=(
            f"A step has {BATCH_TOKENS:,} tokens, which no config.json says: --batch-tokens.",
            f"A training sequence has {seq_len:,} tokens: --seq-len.",
            *parts.assumed,
        ),
    )


# ---- Weights that families share -----------------------------------------------------------------


def _ends(config: Config, d: int, tied: bool, width: str = "hidden_size") -> list[Weight]:
    """Embedding and head. A table that is both is the head. width: the key of d."""
    vocab, source = config.size("vocab_size"), f"vocab_size, {width}"
    head = Weight("head", "head", vocab, d, source=source)
    if tied:
        return [replace(head, source=f"{source}, tie_word_embeddings")]
    return [Weight("embed", "embed", vocab, d, token_share=1 / vocab, source=source), head]


def _gated(
    name: str, role: str, d: int, width: int, count: int, share: float, source: str
) -> list[Weight]:
    """The three matrices of a gated MLP."""
    return [
        Weight(f"{name}.gate", role, width, d, count, 1, share, source),
        Weight(f"{name}.up", role, width, d, count, 1, share, source),
        Weight(f"{name}.down", role, d, width, count, 1, share, source),
    ]


def _experts(d: int, layers: int, experts: int, chosen: int, width: int, keys: str) -> list[Weight]:
    """Routed experts and their router."""
    source = f"{keys}: {layers} layers of {experts} experts"
    router = Weight("router", "router", experts, d, layers, source=keys.split(",")[0])
    return [
        router,
        *_gated("experts", "experts", d, width, layers * experts, chosen / experts, source),
    ]


def _grouped_query(config: Config, bias: str) -> tuple[list[Weight], int, int, int, int]:
    """Attention with a matrix each for q, k, v and o; its layers, channels, heads, head size.

    bias: the projections that have one, such as "qkv".
    """
    d, n, heads = config.size("hidden_size"), config.layers(), config.size("num_attention_heads")
    kv = config.size("num_key_value_heads", heads)
    if d % heads and config.values.get("head_dim") is None:
        raise UserError(
            f"{config.path}: num_attention_heads={heads}: must divide hidden_size={d}; "
            "or add head_dim"
        )
    size = config.size("head_dim", d // heads or 1)
    source = "{} x head_dim, hidden_size, num_hidden_layers"
    q, k = source.format("num_attention_heads"), source.format("num_key_value_heads")
    rows = dict(q=heads * size, k=kv * size, v=kv * size, o=d)
    weights = [
        Weight("attention.q", "attention", rows["q"], d, n, heads, source=q),
        Weight("attention.k", "attention", rows["k"], d, n, kv, source=k),
        Weight("attention.v", "attention", rows["v"], d, n, kv, source=k),
        Weight("attention.o", "attention", d, heads * size, n, source=q),
    ]
    weights += [
        Weight(f"attention.{part}_bias", "vector", rows[part], 1, n, source="biases of attention")
        for part in bias
    ]
    return weights, n, d, heads, size


def _norms(d: int, n: int) -> Weight:
    """The gains of two norms in each layer, and of the last one."""
    return Weight("norms", "vector", d, 1, 2 * n + 1, source="hidden_size: 2 a layer and the last")


# ---- Families ----------------------------------------------------------------------------------


def _gpt2(config: Config) -> Architecture:
    d, n, heads = (config.size(key) for key in ("n_embd", "n_layer", "n_head"))
    if d % heads:
        raise UserError(f"{config.path}: n_head={heads}: must divide n_embd={d}; mend the file")
    longest, inner = config.size("n_positions"), config.size("n_inner", 4 * d)
    weights = [
        Weight(
            "attention.qkv",
            "attention",
            3 * d,
            d,
            n,
            3 * heads,
            source="n_embd, n_head",
            splits=(d, d, d),
        ),
        Weight("attention.o", "attention", d, d, n, source="n_embd"),
        Weight("mlp.up", "mlp", inner, d, n, source="n_inner (4 n_embd), n_embd"),
        Weight("mlp.down", "mlp", d, inner, n, source="n_embd, n_inner (4 n_embd)"),
        Weight("positions", "vector", longest, d, source="n_positions, n_embd: learned positions"),
        Weight(
            "norms", "vector", 2 * d, 1, 2 * n + 1, source="gains and biases: 2 a layer, 1 last"
        ),
        Weight("attention.qkv_bias", "vector", 3 * d, 1, n, source="biases of attention"),
        Weight("attention.o_bias", "vector", d, 1, n, source="biases of attention"),
        Weight("mlp.up_bias", "vector", inner, 1, n, source="biases of the MLP"),
        Weight("mlp.down_bias", "vector", d, 1, n, source="biases of the MLP"),
    ]
    weights += _ends(config, d, config.flag("tie_word_embeddings", True), "n_embd")
    return Architecture(weights, n, d, heads, d // heads, d // heads, longest)


def _llama(config: Config) -> Architecture:
    """Llama, Mistral, Qwen 2 and Qwen 3, whose layers all have a dense MLP."""
    kind = config.values["model_type"]
    bias = "qkv" if kind == "qwen2" else "qkvo" if config.flag("attention_bias", False) else ""
    weights, n, d, heads, size = _grouped_query(config, bias)
    width = config.size("intermediate_size")
    source = "intermediate_size, hidden_size, num_hidden_layers"
    weights += _gated("mlp", "mlp", d, width, n, 1.0, source)
    if config.flag("mlp_bias", False):
        weights.append(Weight("mlp.up_bias", "vector", width, 1, 2 * n, source="mlp_bias"))
        weights.append(Weight("mlp.down_bias", "vector", d, 1, n, source="mlp_bias"))
    return _dense_ends(config, weights, n, d, heads, size)


def _qwen3_moe(config: Config) -> Architecture:
    bias = "qkvo" if config.flag("attention_bias", False) else ""
    weights, n, d, heads, size = _grouped_query(config, bias)
    step = config.size("decoder_sparse_step", 1)
    dense_only = config.values.get("mlp_only_layers") or []
    if not isinstance(dense_only, list):
        raise UserError(f"{config.path}: mlp_only_layers: must be a list; mend the file")
    sparse = sum(i not in dense_only and (i + 1) % step == 0 for i in range(n))
    weights += _moe(config, d, sparse, "num_experts")
    if sparse < n:
        width = config.size("intermediate_size")
        source = "intermediate_size, hidden_size, decoder_sparse_step, mlp_only_layers"
        weights += _gated("mlp", "mlp", d, width, n - sparse, 1.0, source)
    return _dense_ends(config, weights, n, d, heads, size)


def _dense_ends(
    config: Config, weights: list[Weight], n: int, d: int, heads: int, size: int
) -> Architecture:
    kind = config.values["model_type"]
    if kind.startswith("qwen3"):
        weights.append(Weight("attention.qk_norms", "vector", size, 1, 2 * n, source="head_dim"))
    weights += [_norms(d, n), *_ends(config, d, config.flag("tie_word_embeddings", False))]
    slides = kind == "mistral" or config.flag("use_sliding_window", False)
    window = config.size("sliding_window", 0, least=0) if slides else 0
    longest = config.size("max_position_embeddings", SEQ_LEN)
    return Architecture(weights, n, d, heads, size, size, longest, window)


def _moe(config: Config, d: int, layers: int, key: str) -> list[Weight]:
    experts, chosen = config.size(key), config.size("num_experts_per_tok")
    if chosen > experts:
        raise UserError(
            f"{config.path}: num_experts_per_tok={chosen}: must be at most {key}={experts}; "
            "mend the file"
        )
    width = config.size("moe_intermediate_size")
    return _experts(d, layers, experts, chosen, width, f"{key}, moe_intermediate_size, hidden_size")


def _deepseek(config: Config) -> Architecture:
    """DeepSeek-V2, V3 and V3.2, Kimi K2 and GLM-5: latent attention, a shared expert or more."""
    d, n, heads = config.size("hidden_size"), config.layers(), config.size("num_attention_heads")
    nope, rope, v = (
        config.size(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    weights = _latent(config, d, n, heads, nope, rope, v)
    if config.values["model_type"] in ("glm_moe_dsa", "deepseek_v32"):
        weights += _indexer(config, d, n)
    layer_types = config.words("mlp_layer_types", n)
    freq = config.size("moe_layer_freq", 1)
    first = config.size("first_k_dense_replace", 0, least=0)
    sparse = (
        sum(i >= first and i % freq == 0 for i in range(n))
        if layer_types is None
        else layer_types.count("sparse")
    )
    if sparse < n:
        width, source = config.size("intermediate_size"), "intermediate_size, first_k_dense_replace"
        weights += _gated("mlp", "mlp", d, width, n - sparse, 1.0, source)
    if sparse:
        weights += _moe(config, d, sparse, "n_routed_experts")
        shared = config.size("n_shared_experts", 0, least=0) * config.size("moe_intermediate_size")
        if shared:
            source = "n_shared_experts x moe_intermediate_size, hidden_size"
            weights += _gated("shared", "mlp", d, shared, sparse, 1.0, source)
    weights += [_norms(d, n), *_ends(config, d, config.flag("tie_word_embeddings", False))]
    note = "Layers that predict further tokens (num_nextn_predict_layers) are left out."
    assumed = (note,) if config.size("num_nextn_predict_layers", 0, least=0) else ()
    longest = config.size("max_position_embeddings", SEQ_LEN)
    return Architecture(weights, n, d, heads, nope + rope, v, longest, assumed=assumed)


def _latent(
    config: Config, d: int, n: int, heads: int, nope: int, rope: int, v: int
) -> list[Weight]:
    """Multi-head latent attention. kv_b_proj is listed as its keys and its values, apart."""
    kv_rank = config.size("kv_lora_rank")
    q = "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)"
    weights: list[Weight] = []
    if config.values.get("q_lora_rank") is None:
        source = f"{q}, hidden_size"
        weights.append(
            Weight("attention.q", "attention", heads * (nope + rope), d, n, heads, source=source)
        )
    else:
        q_rank = config.size("q_lora_rank")
        weights += [
            Weight(
                "attention.q_down", "attention", q_rank, d, n, source="q_lora_rank, hidden_size"
            ),
            Weight("attention.q_norm", "vector", q_rank, 1, n, source="q_lora_rank"),
            Weight(
                "attention.q_up", "attention", heads * (nope + rope), q_rank, n, heads,
                source=f"{q}, q_lora_rank",
            ),
        ]  # fmt: skip
    down, of = "kv_lora_rank + qk_rope_head_dim, hidden_size", "kv_lora_rank (of kv_b_proj)"
    return [
        *weights,
        Weight("attention.kv_down", "attention", kv_rank + rope, d, n, source=down),
        Weight("attention.kv_norm", "vector", kv_rank, 1, n, source="kv_lora_rank"),
        Weight(
            "attention.k_up", "attention", heads * nope, kv_rank, n, heads,
            source=f"num_attention_heads x qk_nope_head_dim, {of}",
        ),
        Weight(
            "attention.v_up", "attention", heads * v, kv_rank, n, heads,
            source=f"num_attention_heads x v_head_dim, {of}",
        ),
        Weight(
            "attention.o", "attention", d, heads * v, n,
            source="hidden_size, num_attention_heads x v_head_dim",
        ),
    ]  # fmt: skip


def _indexer(config: Config, d: int, n: int) -> list[Weight]:
    """What selects keys in DeepSeek's sparse attention, in the layers that have their own."""
    heads, size = config.size("index_n_heads"), config.size("index_head_dim")
    rank, types = config.size("q_lora_rank"), config.words("indexer_types", n)
    freq, skip = config.size("index_topk_freq", 1), config.size("index_skip_topk_offset", 2, 0)
    full = (
        sum(max(i - skip + 1, 0) % freq == 0 for i in range(n))
        if types is None
        else types.count("full")
    )
    return [
        Weight(
            "indexer.q", "attention", heads * size, rank, full, heads,
            source="index_n_heads x index_head_dim, q_lora_rank",
        ),
        Weight("indexer.k", "attention", size, d, full, source="index_head_dim, hidden_size"),
        Weight("indexer.weights", "attention", heads, d, full, source="index_n_heads, hidden_size"),
        Weight("indexer.k_norm", "vector", 2 * size, 1, full, source="index_head_dim: gain, bias"),
    ]  # fmt: skip


FAMILIES: dict[str, Callable[[Config], Architecture]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "mistral": _llama,
    "qwen2": _llama,
    "qwen3": _llama,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "deepseek_v32": _deepseek,
    "kimi_k2": _deepseek,
    "glm_moe_dsa": _deepseek,
}
