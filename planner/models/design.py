"""Other designs of a model, for the question what a design leaves to Muon.

Each function takes a model and returns the changed one, or None where it does not apply. What a
change does to the loss is not said: the counts of active parameters are kept only where a function
says so. New sizes follow a published model, scaled to the width of this one.
"""

from collections.abc import Callable
from dataclasses import replace

from planner.models.weights import Model, Weight

EXPERTS, CHOSEN = 64, 8  # experts of a layer in place of a dense MLP, and those that a token sees
KV_HEADS = 8  # of grouped queries, as in Llama 3
VOCABULARY = 4  # the part of the vocabulary that is kept is one of so many
# Multi-head latent attention of DeepSeek-V3: ranks for its width, and rotary channels of a head
# beside those that have no positions.
V3_WIDTH, V3_Q_RANK, V3_KV_RANK, V3_ROPE, V3_NOPE = 7168, 1536, 512, 64, 128
UNIT = 32  # ranks are multiples of it


def variants(model: Model) -> dict[str, Model]:
    """The model itself and its other designs, by a few words for each."""
    found = {"as it is": model}
    for words, change in CHANGES.items():
        changed = change(model)
        if changed is not None:
            found[words] = changed
    return found


def _last(weight: Weight) -> str:
    """The last word of a weight's name: "qkv" of "attention.qkv" or "attn.qkv.weight"."""
    return weight.name.removesuffix(".weight").rpartition(".")[2]


def _table(model: Model) -> tuple[int, int]:
    """The shape of the head, which the embedding shares."""
    head = model.of_roles(("head",))
    return (head[0].rows, head[0].cols) if head else (0, 0)


def tied(model: Model) -> Model | None:
    """One table as embedding and head: its gradient reaches every row in every step."""
    same = [
        w for w in model.of_roles(("embed",)) if (w.rows, w.cols, w.count) == (*_table(model), 1)
    ]
    if not same:
        return None
    return replace(model, weights=tuple(w for w in model.weights if w is not same[0]))


def untied(model: Model) -> Model | None:
    """A table of its own for the embedding."""
    rows, cols = _table(model)
    if not rows or model.of_roles(("embed",)):
        return None
    embed = Weight("embed", "embed", rows, cols, token_share=1 / rows)
    return replace(model, weights=(embed, *model.weights))


def small_vocabulary(model: Model) -> Model | None:
    """A quarter of the vocabulary, in every table that has a row for each token."""
    vocab, _ = _table(model)
    rows = -(-vocab // VOCABULARY)
    if not vocab:
        return None

    def cut(weight: Weight) -> Weight:
        if weight.rows != vocab or weight.hidden:
            return weight
        share = 1 / rows if weight.role == "embed" else weight.token_share
        return replace(weight, rows=rows, token_share=share)

    return replace(model, weights=tuple(map(cut, model.weights)))


def _without_attention(model: Model) -> list[Weight]:
    """The weights that are no part of attention, also not as its norms and biases."""
    names = tuple({f"{w.name.partition('.')[0]}." for w in model.of_roles(("attention",))})
    return [w for w in model.weights if w.role != "attention" and not w.name.startswith(names)]


def latent(model: Model) -> Model | None:
    """Latent attention in place of multi-head or grouped-query attention."""
    names = {_last(w) for w in model.of_roles(("attention",))}
    if not names <= {"q", "k", "v", "qkv", "o", "proj"}:  # none of them, or others beside them
        return None
    d, n, heads, v = model.n_embd, model.n_layer, model.n_head, model.v_size
    q_rank, kv_rank = (_scaled(rank, d) for rank in (V3_Q_RANK, V3_KV_RANK))
    nope, rope = model.qk_size, model.qk_size * V3_ROPE // V3_NOPE
    weights = (
        Weight("attention.q_down", "attention", q_rank, d, n),
        Weight("attention.q_norm", "vector", q_rank, 1, n),
        Weight("attention.q_up", "attention", heads * (nope + rope), q_rank, n, heads),
        Weight("attention.kv_down", "attention", kv_rank + rope, d, n),
        Weight("attention.kv_norm", "vector", kv_rank, 1, n),
        Weight("attention.k_up", "attention", heads * nope, kv_rank, n, heads),
        Weight("attention.v_up", "attention", heads * v, kv_rank, n, heads),
        Weight("attention.o", "attention", d, heads * v, n),
    )
    kept = _without_attention(model)
    return replace(model, weights=(*weights, *kept), qk_size=nope + rope)


def _scaled(rank: int, d: int) -> int:
    """A rank of DeepSeek-V3 at width d."""
    return max(1, round(rank * d / V3_WIDTH / UNIT)) * UNIT


def grouped(model: Model) -> Model | None:
    """Grouped-query attention in place of latent attention: as many heads, of the values' size."""
    if "kv_down" not in {_last(w) for w in model.of_roles(("attention",))}:
        return None
    d, n, heads, size = model.n_embd, model.n_layer, model.n_head, model.v_size
    kv = min(KV_HEADS, heads)
    weights = (
        Weight("attention.q", "attention", heads * size, d, n, heads),
        Weight("attention.k", "attention", kv * size, d, n, kv),
        Weight("attention.v", "attention", kv * size, d, n, kv),
        Weight("attention.o", "attention", d, heads * size, n),
    )
    kept = _without_attention(model)
    return replace(model, weights=(*weights, *kept), qk_size=size)


def sparse(model: Model) -> Model | None:
    """Experts in place of the dense MLP, with as many active parameters but for the router.

    They have no biases.
    """
    mlp = model.of_roles(("mlp",))
    if model.of_roles(("experts",)) or not mlp or any(_width(model, w) % CHOSEN for w in mlp):
        return None
    share = CHOSEN / EXPERTS
    router = Weight("router", "router", EXPERTS, model.n_embd, model.n_layer)
    weights = [router, *(w for w in model.weights if not w.name.startswith("mlp."))]
    for w in mlp:
        narrow = _width(model, w) // CHOSEN
        rows, cols = (w.rows, narrow) if w.rows == model.n_embd else (narrow, w.cols)
        name = f"experts.{_last(w)}"
        weights.append(Weight(name, "experts", rows, cols, w.count * EXPERTS, token_share=share))
    return replace(model, weights=tuple(weights))


def dense(model: Model) -> Model | None:
    """A dense MLP in place of the experts, with as many active parameters but for the router."""
    experts = model.of_roles(("experts",))
    if not experts:
        return None
    routers = model.of_roles(("router",))
    layers = routers[0].count if routers else model.n_layer
    weights = [w for w in model.weights if w.role not in ("experts", "router")]
    for w in experts:
        wide = round(_width(model, w) * w.count / layers * w.token_share)
        rows, cols = (w.rows, wide) if w.rows == model.n_embd else (wide, w.cols)
        weights.append(Weight(f"mlp.wide_{_last(w)}", "mlp", rows, cols, layers))
    return replace(model, weights=tuple(weights))


def _width(model: Model, weight: Weight) -> int:
    """Hidden channels of an MLP's matrix: its side that is not the model's width."""
    return weight.cols if weight.rows == model.n_embd else weight.rows


def joined(model: Model) -> Model | None:
    """A fused query, key and value orthogonalised as one matrix."""
    if not any(weight.splits for weight in model.weights):
        return None
    return replace(model, weights=tuple(replace(weight, splits=()) for weight in model.weights))


CHANGES: dict[str, Callable[[Model], Model | None]] = {
    "one table as embedding and head": tied,
    "a table each for embedding and head": untied,
    "a quarter of the vocabulary": small_vocabulary,
    "latent attention": latent,
    "grouped queries": grouped,
    f"{EXPERTS} experts, {CHOSEN} a token": sparse,
    "a dense MLP": dense,
    "q, k and v as one matrix": joined,
}
