"""Memory of a rank in training, by kind: any model, rule, engine and number of ranks.

    found = footprint(model, rule, "sharded", Setting(), ranks=256)
    found.total_bytes, found.state_bytes

Arithmetic: no tensor is made. What an engine holds between steps is `layouts.held`. Buffers and
activations come on top, at the moment when a step needs most. Without a count: temporary tensors of
an update, and what the context, workspaces and fragmentation take (memory.RESERVED_FRACTION).
"""

from dataclasses import dataclass

from errors import UserError
from planner.cluster.setting import Setting
from planner.memory import activations as memory
from planner.memory import update_rules
from planner.memory.layouts import NumberBytes, Tensors, check, held, owned
from planner.memory.update_rules import UpdateRule
from planner.models import Model
from runtime import command_line
from runtime.command_line import knob

# DeepSpeed's defaults, in numbers (its runtime/zero/config.py): reduce_bucket_size, and
# stage3_max_live_parameters.
DEEPSPEED_BUCKET, DEEPSPEED_LIVE = 5 * 10**8, 10**9
DEEPSPEED_RULES = ("adamw", "muon", "muon-split")


@dataclass(frozen=True)
class Kept:
    """What the backward pass finds kept. Its fields are flags of the command line."""

    checkpointing: bool = knob(
        "keep the input of each layer only, and compute the rest anew", False
    )
    loss_chunk: int = knob("tokens whose logits are in memory at once; 0: all; assumed", 1024)

    def __post_init__(self) -> None:
        command_line.at_least(self, loss_chunk=0)


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank by kind."""

    model: str
    rule: str
    engine: str
    ranks: int
    params_bytes: float  # also fsdp2's whole copies of what a rank owns
    master_bytes: float  # float32 copies of what a rank updates
    grads_bytes: float
    matrix_state_bytes: float  # of hidden matrices
    other_state_bytes: float  # AdamW's, of all else
    buffers_bytes: float  # of communication: what they add to the peak
    activations_bytes: float  # also the logits

    @property
    def state_bytes(self) -> float:
        return self.matrix_state_bytes + self.other_state_bytes

    @property
    def total_bytes(self) -> float:
        return (
            self.params_bytes + self.master_bytes + self.grads_bytes + self.state_bytes
            + self.buffers_bytes + self.activations_bytes
        )  # fmt: skip

    def fits(self, memory_bytes: int) -> bool:
        """Whether a GPU of this memory holds it."""
        return self.total_bytes <= (1 - memory.RESERVED_FRACTION) * memory_bytes


def footprint(
    model: Model,
    rule: UpdateRule,
    engine: str,
    setting: Setting,
    ranks: int,
    kept: Kept | None = None,
    activations_bytes: float | None = None,
    mean: bool = False,
) -> Footprint:
    """The rank that holds most, or the mean over all ranks.

    kept: None: activations are not checkpointed. activations_bytes: in place of the formula, such
    as traced ones. Raises UserError for what cannot be.
    """
    refuse(model, rule, engine, setting, ranks)
    of = NumberBytes(
        setting.param_number_bytes, setting.master_number_bytes, setting.grad_number_bytes,
        setting.state_number_bytes,
    )  # fmt: skip
    parts = tensors(model, rule, setting, ranks)
    has = held(engine, parts, of, mean)
    matrix_state = has.whole_state
    if not rule.whole:
        hidden = [t for t, w in zip(parts, model.weights, strict=True) if w.hidden]
        matrix_state = held(engine, hidden, of, mean).state
    tokens = pass_tokens(model, setting, ranks)
    if activations_bytes is None:
        activations_bytes = activations(model, setting, tokens, kept or Kept())
    return Footprint(
        model=model.name,
        rule=rule.name,
        engine=engine,
        ranks=ranks,
        params_bytes=has.params,
        master_bytes=has.master,
        grads_bytes=has.grads,
        matrix_state_bytes=matrix_state,
        other_state_bytes=has.state - matrix_state,
        buffers_bytes=_buffers(model, engine, setting, parts, of, tokens, activations_bytes, mean),
        activations_bytes=activations_bytes,
    )


def refuse(model: Model, rule: UpdateRule, engine: str, setting: Setting, ranks: int) -> None:
    """Raise UserError for what cannot be planned."""
    check(engine)
    if ranks < 1:
        raise UserError(f"--ranks {ranks}: must be at least 1; run with --ranks 8")
    if engine == "single" and ranks != 1:
        raise UserError(
            f"--engine single: takes one rank, not {ranks}; run with --ranks 1, or --engine ddp"
        )
    if engine.startswith("deepspeed") and rule.name not in DEEPSPEED_RULES:
        raise UserError(
            f"--engine {engine}: DeepSpeed has {', '.join(DEEPSPEED_RULES)}, not {rule.name}; "
            f"run with --engine {engine.removeprefix('deepspeed-').replace('zero0', 'ddp')}"
        )
    setting.check(model, ranks)
    pass_tokens(model, setting, ranks)


def tensors(model: Model, rule: UpdateRule, setting: Setting, ranks: int) -> list[Tensors]:
    """What a rank has before its engine divides it, in the order of the model's weights."""
    # Groups of the recipes, each of which is a flat row of DeepSpeed: hidden matrices that a rule
    # takes apart alike, then embedding, head and vectors.
    rows: dict[object, int] = {}
    found = []
    for each in model.weights:
        whole = rule.whole and (each.hidden or rule.name == update_rules.EVERYTHING)
        splits = update_rules.blocks(rule, each) if whole else None
        group = (splits if rule.orthogonalises else None) if each.hidden else each.role
        # Numbers in half as many bytes count as half as many.
        low = 0.5 if each.low and setting.dtype == "float32" else 1.0
        found.append(
            Tensors(
                shape=(each.rows, each.cols),
                count=each.count * setting.held_share(each) * low,
                whole=whole,
                state=update_rules.state_numbers(rule, each),
                processes=setting.group_size(each, ranks),
                row=rows.setdefault(group, len(rows)),
                splits=splits,
            )
        )
    return found


# ---- Activations -------------------------------------------------------------------------------


def passes_of_one_sequence(model: Model, setting: Setting, ranks: int) -> int:
    """Passes of a step on each rank, where each takes one sequence."""
    return max(1, setting.tokens(model) // model.seq_len // (ranks // setting.pipeline))


def pass_tokens(model: Model, setting: Setting, ranks: int) -> float:
    """Tokens of a microbatch on one rank. Raises UserError if they make no sequence."""
    found = setting.tokens(model) * setting.pipeline / ranks / setting.microbatches
    if found < model.seq_len:
        most = passes_of_one_sequence(model, setting, ranks)
        raise UserError(
            f"--microbatches {setting.microbatches}: leaves {found:,.0f} tokens for a pass, less "
            f"than a sequence of {model.seq_len:,}; run with --microbatches {most} at most"
        )
    return found


def activations(model: Model, setting: Setting, tokens: float, kept: Kept) -> float:
    """Bytes that the backward pass finds kept on a rank of the stage that keeps most.

    The first of P pipeline stages keeps P microbatches of its layers, if a step has as many: it
    does one forward and one backward pass in turn. The last stage keeps one, and the logits.
    tokens: of a microbatch.
    """
    number = setting.param_number_bytes
    layer, layers = kept_by_layer(model, number), model.n_layer / setting.pipeline
    stream = number * model.n_embd * model.streams
    each = stream if kept.checkpointing else layer
    # Both ends of the residual stream, and with checkpointing the layer that is computed anew.
    more = 3 * stream + layer * kept.checkpointing
    at_once = min(setting.pipeline, setting.microbatches)
    tables = model.of_roles(("head",)) or model.of_roles(("embed",))
    rows = max((table.rows for table in tables), default=0)
    logits = memory.logits_bytes(int(tokens), rows, kept.loss_chunk)
    first, last = layers * at_once * each + more, layers * each + more
    return max(tokens * first, tokens * last + logits)


def kept_by_layer(model: Model, number_bytes: int) -> float:
    """Bytes that a layer keeps for one token, on average over the layers: `memory.kept_bytes`.

    An expert has its own copy of a token's row, and of the row that it returns.
    """
    layers, queries = model.n_layer, model.n_head * model.qk_size
    attention = model.of_roles(("attention",))
    # All that the products of the attention put out, but for the last, which the residual has.
    out = max(0.0, sum(w.rows * w.count for w in attention) / layers - model.n_embd)
    rotated = queries + min(queries, max(0.0, out - queries))
    hidden = met = copied = 0.0
    for weight in model.of_roles(("mlp", "experts")):
        times = weight.count * weight.token_share / layers
        if weight.rows == model.n_embd:
            met += times * weight.cols  # goes into the last product of a block
            copied += times * 2 * model.n_embd * (weight.role == "experts")
        else:
            hidden += times * weight.rows
    return memory.kept_bytes(
        n_embd=model.n_embd,
        products=model.n_head * model.v_size + met + copied,
        attention=out + rotated,
        hidden=hidden,
        n_head=model.n_head,
        residual_bytes=number_bytes * model.streams,
        product_bytes=number_bytes,
    )


def experts_met(model: Model) -> float:
    """Experts of a layer that one token meets, on average over the layers."""
    last = [w for w in model.of_roles(("experts",)) if w.rows == model.n_embd]
    return sum(w.count * w.token_share for w in last) / model.n_layer


# ---- Buffers -----------------------------------------------------------------------------------


def _buffers(
    model: Model, engine: str, setting: Setting, parts: list[Tensors], of: NumberBytes,
    tokens: float, activations_bytes: float, mean: bool,
) -> float:  # fmt: skip
    """Bytes that communication adds to the peak, beside all that is held.

    Those of the passes add to the activations. Those of the update come when the activations are
    gone, so they only add what goes beyond.
    """
    passes = pass_buffers(model, engine, setting, of)
    if setting.expert_parallel > 1:
        # The rows on their way to the experts; those that arrive are kept as activations.
        passes += tokens * experts_met(model) * model.n_embd * of.param
    return max(passes, _update_buffers(engine, parts, of, mean) - activations_bytes)


def pass_buffers(model: Model, engine: str, setting: Setting, of: NumberBytes) -> float:
    """Bytes in the forward and backward passes, by what each engine keeps at once.

    single, ddp, sharded, zero1: none. ddp's buckets are the gradients; `sharded` sends from the
    gradients and into the parameters. zero2: the gradients of a layer before they are reduced.
    zero3: two layers, or a table and a layer, of which one comes while the other is used, and the
    gradients of one. fsdp2: both tables for both passes with their gradients, two layers of
    parameters, one of gradients and one that is on its way. DeepSpeed: its bucket, and at stage 3
    as many parameters as it lets live.
    """
    layer, tables = 0.0, []
    for weight in model.weights:
        if weight.role in ("embed", "head"):
            tables.append(float(weight.params))
        else:
            layer += weight.params * setting.held_share(weight) * setting.pipeline / model.n_layer
    # A stage of several has one table at most.
    ends = sum(tables) if setting.pipeline == 1 else max(tables, default=0.0)
    unit = max([layer, *tables])
    numbers = layer * model.n_layer / setting.pipeline + ends  # of a stage
    return {
        "zero2": unit * of.grad,
        "zero3": (unit + layer) * of.param + unit * of.grad,
        "fsdp2": 2 * ends * of.param + layer * (3 * of.param + of.grad),
        "deepspeed-zero1": DEEPSPEED_BUCKET * of.param,
        "deepspeed-zero2": DEEPSPEED_BUCKET * of.param,
        "deepspeed-zero3": (DEEPSPEED_BUCKET + min(numbers, DEEPSPEED_LIVE)) * of.param,
    }.get(engine, 0.0)


def _update_buffers(engine: str, parts: list[Tensors], of: NumberBytes, mean: bool) -> float:
    """Bytes in the update.

    fsdp2 and zero3: the shards of gradients for the owners, those that arrive, and the whole ones
    that an owner joins. DeepSpeed's stages 1 and 2: a float32 gradient of a rank's part of its
    largest row.
    """
    whole = [t for t in parts if t.whole]
    if engine in ("fsdp2", "zero3") and any(t.processes > 1 for t in whole):
        mine = owned(tuple(whole), stacked=engine == "zero3", mean=mean).params
        return (sum(t.numbers / t.processes for t in whole) + 2 * mine) * of.grad
    if engine in ("deepspeed-zero1", "deepspeed-zero2"):
        rows: dict[int, float] = {}
        for t in parts:
            rows[t.row] = rows.get(t.row, 0.0) + t.numbers / t.processes
        return 4 * max(rows.values())
    return 0.0
