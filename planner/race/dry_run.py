"""What a race would take, counted without a GPU and without data.

    python -m planner race adamw muon --track gpt2
    python -m planner race muon --track xl --gpu b200 --mfu 0.4 --price-per-hour 4
    python -m planner race adamw muon --track gpt2 --csv gpt2.csv

The model, its table of roles, the recipes and their update rules are the real ones. They run on
tensors without storage or, where a rule needs numbers, on random ones, one shape at a time. So
bytes of parameters, gradients and state are the bytes that a run's row would hold. The optimizer's
FLOPs are counted while it steps, averaged from one refresh of a preconditioner to the next; a rule
that refreshes less and less often, such as kron, counts as at its start. The time takes all FLOPs
at one assumed MFU, although decompositions (QR, eigenvectors) run far below it.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import engines
import optim
from engines._bytes import held_bytes, parts_in, walk
from errors import UserError
from model import GPT
from optim.entrants import Entrant
from planner.cluster.hardware import Machine
from planner.memory.activations import Shape
from planner.race import corpora, decompositions
from planner.race import costs as race
from speedrun import Track

DECOMPOSITIONS = {  # for torch's counter, which hands over shapes
    torch.ops.aten._linalg_eigh: lambda A, *_, **__: decompositions.eigh(A),
    torch.ops.aten.linalg_qr: lambda A, *_, **__: decompositions.qr(A),
    torch.ops.aten.linalg_solve_triangular: (
        lambda A, B, out_shape, **_: decompositions.solve_triangular(out_shape, A[-1])
    ),
}


def place(gpt: GPT, entrant: Entrant) -> tuple[engines.Engine, list[optim.Group]]:
    """An entrant's optimizers for a model on the meta device, and the plan they were built from.

    Matrix products are in bfloat16. Raises UserError if the entrant's options make no plan.
    """
    engine = engines.make("single", torch.device("meta"))
    engine.wrap(gpt)
    try:
        groups = optim.plan(engine.roles(), entrant.recipe, entrant.recipe_settings, torch.bfloat16)
        gpt.check_clip(optim.qk_clip(groups))
        for group in groups:
            if "fused" in group.options:
                group.options["fused"] = False  # that kernel has no meta version; the state is same
        engine.build(groups)
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"{entrant.label}: {error}") from None
    return engine, groups


@dataclass(frozen=True)
class RuleCost:
    """What an update rule holds and does for one parameter."""

    state_bytes: int
    flops: float  # of a step, on average


def rule_costs(group: optim.Group, label: str) -> list[RuleCost]:
    """What the rule of a group costs for each of its parameters, in their order.

    label: names the entrant. One pair of parameters is stepped for each shape: the first of a group
    may hold what all share. That is exact for rules that treat each parameter apart, or all
    parameters of one shape as a batch. It is on the meta device or, where the rule needs numbers,
    on random ones on the CPU. Raises UserError if the rule fails on them too.
    """
    pairs: dict[Any, list[RuleCost]] = {}
    found = []
    for number, row in enumerate(group.params):
        key = row.param.shape, row.param.dtype
        if key not in pairs:
            pairs[key] = _pair(group, row.param, label)
        found.append(pairs[key][0 if number == 0 else 1])
    return found


def _pair(group: optim.Group, like: torch.Tensor, label: str) -> list[RuleCost]:
    """The costs of two parameters that are `like` one, the first of a group and another."""
    with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
        try:
            first, other = _step(group, like, "meta")
            if first.state_bytes >= other.state_bytes:
                return [first, other]
            # The rule tells parameters apart by their addresses, which are all 0 there.
        except Exception:  # any class may raise anything where there are no numbers
            pass
        try:
            return _step(group, like, "cpu")
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{label}: {group.rule.__name__} steps neither without numbers nor on random ones "
                f"({reason}), so it cannot be planned; mend its options or leave it out"
            ) from error


def _step(group: optim.Group, like: torch.Tensor, device: str) -> list[RuleCost]:
    """What two like parameters hold and cost if the rule has only these two.

    FLOPs are averaged over the steps from one refresh of a preconditioner to the next, after as
    many steps that are not counted: they make the state, and some rules refresh in each of them.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, where there is one

    params = [nn.Parameter(torch.randn_like(like, device=device)) for _ in range(2)]
    optimizer = group.rule(params, **group.options)
    period = optimizer.param_groups[0].get("precondition_frequency", 1)
    counter = FlopCounterMode(display=False, custom_mapping=DECOMPOSITIONS)
    for measured in (nullcontext(), counter):
        with measured:
            for _ in range(period):
                for p in params:
                    p.grad = torch.randn_like(p)
                optimizer.step()
    flops = counter.get_total_flops() / period / len(params)
    counted: set[int] = set()
    held_bytes([*params, [p.grad for p in params]], counted)
    inner = [each.state for each in walk(optimizer) if isinstance(each, torch.optim.Optimizer)]
    own, others = ([state.get(p) for state in inner] for p in params)
    first, other = held_bytes(own, counted), held_bytes(others, counted)
    first += held_bytes(optimizer, counted)  # also what it holds beside the parameters' state
    # The results of one call for all parameters may lie in one piece of memory, a view for each.
    views = {(part.untyped_storage()._cdata, part.storage_offset()) for part in parts_in(own)}
    shared = {piece for piece, _ in views}
    for part in parts_in(others):
        piece, offset = part.untyped_storage()._cdata, part.storage_offset()
        if piece in shared and (piece, offset) not in views:
            first, other = first - part.nbytes, other + part.nbytes
    return [RuleCost(first, flops), RuleCost(other, flops)]


def measure(gpt: GPT, entrant: Entrant, validations: int) -> race.Load:
    """What an optimizer holds and does for a model on the meta device.

    Matrix products are in bfloat16. Raises UserError if the entrant's options make no plan, or one
    of its rules cannot step.
    """
    engine, groups = place(gpt, entrant)
    param_bytes = engine.state_bytes()["params"]
    costs = [cost for group in groups for cost in rule_costs(group, entrant.label)]
    counts: dict[tuple[str, str], int] = {}
    for group in groups:
        for row in group.params:
            key = (row.role, group.rule.__name__)
            counts[key] = counts.get(key, 0) + row.param.numel()
    return race.Load(
        label=entrant.label,
        steps=entrant.settings["steps"],
        validations=validations,
        parameters=tuple((role, rule, count) for (role, rule), count in sorted(counts.items())),
        param_bytes=param_bytes,
        grad_bytes=param_bytes,  # a gradient is like its parameter
        state_bytes=sum(cost.state_bytes for cost in costs),
        optimizer_flops=sum(cost.flops for cost in costs),
    )


def shape_of(gpt: GPT, seq_len: int, loss_chunk: int) -> Shape:
    """What decides the activations of a model, on the meta device or not, that is trained.

    seq_len: tokens of a sequence. loss_chunk: tokens whose logits are in memory at once; 0: all.
    """
    config = gpt.config
    weights = sum(row.param.numel() for row in gpt.roles() if row.role in ("matrix", "head"))
    return Shape(
        n_layer=config.n_layer,
        n_embd=config.n_embd,
        n_head=config.n_head,
        mlp_ratio=config.mlp_ratio,
        seq_len=seq_len,
        table_rows=config.table_rows,
        product_weights=weights,
        residual_bytes=gpt.embed.weight.element_size(),
        loss_chunk=loss_chunk,
    )


def race_table(
    track: Track, entrants: Sequence[Entrant], loss_chunk: int, machine: Machine, seeds: int
) -> tuple[list[list[str]], str]:
    """The table of a race, a column for each entrant, and a sentence on all of its runs together.

    loss_chunk: tokens whose logits are in memory at once; 0: all. Raises UserError.
    """
    corpus = corpora.corpus(track.dataset)
    with torch.device("meta"):
        gpt = GPT(track.config(corpus.vocab_size))
    task = race.Task(
        track=track.name,
        corpus=corpus,
        shuffle=track.shuffle,
        batch_tokens=track.batch_tokens,
        val_tokens=track.val_tokens,
        shape=shape_of(gpt, track.seq_len, loss_chunk),
        model_flops=gpt.flops_per_token(track.seq_len),
    )
    columns = []
    for entrant in entrants:
        steps = entrant.settings["steps"]
        validations = len(track.validated(steps))
        columns.append(measure(gpt, entrant, validations))
    return race.table(task, columns, machine), race.total(task, columns, machine, seeds)
