"""How far DeepSpeed's Muon and Adam are from ours, at every ZeRO stage, and what its traps do.

    make zero    # half a minute on two processes of a CPU; nothing is timed, any machine will do

Two processes train a small model whose matrices do not divide for five steps, each on its half of
the batch. One process takes the same steps on whole batches in float32, with this project's rules.
The columns `muon` and `adam` are the norm of the difference between the weights, over the norm of
the weights, of all parameters that Muon has and of all others. `must be` is what a test holds.

`as here` is --engine deepspeed. Other rows call DeepSpeed as its users do, and change one thing.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import optim
from bench import Row, run, write
from engines import _deepspeed, _rules, deepspeed
from layers.config import GPTConfig
from model import GPT

CONFIG = GPTConfig(vocab_size=37, block_size=16, n_layer=2, n_head=3, n_embd=36)
STEPS, SEQUENCES = 5, 8
ROUNDING, HALF, WRONG = "below 1e-05", "below 1e-02", "above 1e-03"
Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """A way of training that is compared."""

    setting: str
    stage: int
    precision: str
    must_be: str  # of the larger difference; empty: DeepSpeed refuses it
    why: str = ""
    issues: str = ""  # DeepSpeed's
    train: Callable[["Case", deepspeed.Engine], Weights] | None = None
    clip: float = 0.0  # of the reference: the norm that gradients are clipped to


# ---- The model, the batches, the reference ------------------------------------------------------


def fresh() -> GPT:
    """The model, without the zeros that the trainer begins with.

    After zeros the first gradients are far below the 1e-7 that DeepSpeed's Muon adds to a norm.
    """
    gpt = GPT(CONFIG)
    gpt.init_weights(0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in gpt.parameters():
            if p.norm() == 0:
                p.copy_(0.02 * torch.randn(p.shape, generator=draw))
    return gpt


def batches() -> Tensor:
    """Tokens of all steps: (step B T + 1)."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(
        CONFIG.vocab_size, (STEPS, SEQUENCES, CONFIG.block_size + 1), generator=draw
    )


def mean_loss(model: Any, tokens: Tensor) -> Tensor:
    """Of sequences (B T + 1)."""
    loss: Tensor = model(tokens[:, :-1], tokens[:, 1:])
    return loss / tokens[:, 1:].numel()


def planned(roles: Any, dtype: torch.dtype = torch.float32) -> list[optim.Group]:
    """Muon's groups and Adam's, each with an lr that a few steps go far with, but not too far."""
    settings = dict(blocks="fused", lr=0.02, embed_lr=0.01, head_lr=0.005, vector_lr=0.005)
    return optim.plan(roles, "muon", settings, dtype)


def reference(clip: float = 0.0) -> Weights:
    """What one process learns, on whole batches, in float32."""
    gpt = fresh()
    optimizers = _rules.build(planned(gpt.roles()))
    for tokens in batches():
        mean_loss(gpt, tokens).backward()
        if clip:
            nn.utils.clip_grad_norm_(gpt.parameters(), clip)
        _rules.step(optimizers)
        gpt.zero_grad()
    return copied(gpt)


def copied(gpt: GPT) -> Weights:
    return {name: p.detach().float().clone() for name, p in gpt.named_parameters()}


# ---- Ways to train ------------------------------------------------------------------------------


def as_here(case: Case, engine: deepspeed.Engine) -> Weights:
    """By the engine of this project."""
    engine.zero_stage = case.stage
    gpt = fresh()
    model = engine.wrap(gpt)
    dtype = getattr(torch, case.precision)
    engine.build(planned(engine.roles(), dtype))
    engine.set_lr(1.0)
    low = dtype != torch.float32
    for tokens in batches():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = mean_loss(model, tokens.chunk(engine.world_size)[engine.rank])
        engine.backward(loss, last=True)
        engine.step()
    engine.build(())
    return copied(gpt)


def by_hand(
    case: Case,
    engine: deepspeed.Engine,
    config: dict[str, Any] | None = None,
    tagged: bool = True,
    own_iteration: bool = False,
    ns_method: str = "gram",
    client: bool = True,
) -> Weights:
    """By DeepSpeed as its users call it: with a client optimizer, which is right, or as told."""
    gpt, config = fresh(), {**base_config(case), **(config or {})}
    config = {key: value for key, value in config.items() if value is not None}
    params = dict(gpt.named_parameters())
    groups = deepspeed.translated(planned(gpt.roles()), stage=1)
    for group, options in zip(planned(gpt.roles()), groups, strict=True):
        del options["blocks"]
        options["params"] = [params[row.name] for row in group.params]
        if options["use_muon"]:
            options["ns_method"] = ns_method
        for p in options["params"]:
            p.use_muon = tagged and options["use_muon"]
    optimizer = _deepspeed.optimizer_class()(groups) if client else None
    ds, *_ = engine.module.initialize(
        model=gpt, optimizer=optimizer, config=config, dist_init_required=False
    )
    full = case.precision == "float32" and not own_iteration
    # Where DeepSpeed manages the accumulation, stages 1 and 2 iterate in the backward pass.
    with _deepspeed.iterating_in(torch.float32 if full else None):
        for tokens in batches():
            ds.backward(mean_loss(ds, tokens.chunk(engine.world_size)[engine.rank]))
            ds.step()
    read = engine.module.utils.safe_get_full_fp32_param  # None at stage 0 in float32
    weights = {name: read(p) if read(p) is not None else p for name, p in params.items()}
    weights = {name: p.detach().float().clone() for name, p in weights.items()}
    ds.destroy()
    return weights


def base_config(case: Case) -> dict[str, Any]:
    """DeepSpeed's configuration with all that a user of Muon must set."""
    return {
        "train_micro_batch_size_per_gpu": SEQUENCES // int(os.environ["WORLD_SIZE"]),
        "gradient_clipping": 0.0,
        "bf16": {"enabled": case.precision != "float32"},
        "zero_optimization": {"stage": case.stage, "reduce_scatter": case.stage < 3},
    }


def by_hand_with(**changes: Any) -> Callable[[Case, deepspeed.Engine], Weights]:
    return lambda case, engine: by_hand(case, engine, **changes)


# ---- The table ----------------------------------------------------------------------------------

FROM_CONFIG = {
    "optimizer": {
        "type": "Muon",
        "params": {
            "muon_lr": 0.02, "adam_lr": 0.005, "momentum": 0.95, "weight_decay": 0.05,
            "betas": [0.8, 0.95], "eps": 1e-10, "torch_adam": True,
        },
    }
}  # fmt: skip
ONE_LR = {"scheduler": {"type": "OneCycle", "params": {
    "cycle_min_lr": 0.005, "cycle_max_lr": 0.02, "cycle_momentum": False}}}  # fmt: skip
EPS = "It adds 1e-7 to a matrix's norm before it iterates, and sums in another order."
CASES = [
    *(Case("as here", stage, "float32", ROUNDING, EPS, train=as_here) for stage in range(4)),
    *(
        Case(
            "as here", stage, "bfloat16", HALF, "Matrix products of the passes are in bfloat16.",
            train=as_here,
        )
        for stage in range(4)
    ),
    *(
        Case(
            "bf16 section", stage, "bfloat16", HALF,
            "The weights of the passes, their gradients and, from stage 1 on, the momentum are in "
            "bfloat16.",
            train=by_hand_with(),
        )
        for stage in range(4)
    ),
    Case("client optimizer", 1, "float32", ROUNDING, EPS, train=by_hand_with()),
    Case(
        "its own iteration", 1, "float32", HALF,
        "It iterates in float16 where the processor or GPU has it, whatever the weights are.",
        train=by_hand_with(own_iteration=True),
    ),
    Case(
        "ns_method standard", 1, "float32", HALF, "It iterates in bfloat16.",
        train=by_hand_with(own_iteration=True, ns_method="standard"),
    ),
    Case(
        "gradient_clipping left out", 1, "float32", WRONG,
        "Then it is 1.0, and clips what Muon has orthogonalised with Adam's gradients. "
        "The reference clips all gradients to 1.0 before.",
        "8439 7776", by_hand_with(config={"gradient_clipping": None}), clip=1.0,
    ),
    Case(
        "optimizer from the config", 1, "float32", WRONG,
        "The name decides: Muon has the head, here head.weight, as it would have nanoGPT's wte.",
        train=by_hand_with(config=FROM_CONFIG, client=False),
    ),
    Case(
        "a scheduler", 1, "float32", WRONG, "It gives the groups of Muon and Adam one lr.",
        "7713", by_hand_with(config=ONE_LR),
    ),
    Case(
        "use_muon in the group alone", 1, "float32", WRONG,
        "ZeRO looks for it on the parameter: without it, the step is plain SGD.",
        train=by_hand_with(tagged=False),
    ),
    Case(
        "reduce_scatter left out", 3, "float32", "",
        train=by_hand_with(config={"zero_optimization": {"stage": 3}}),
    ),
]  # fmt: skip


def row_of(case: Case, engine: deepspeed.Engine, references: dict[float, Weights]) -> Row:
    """A row of the table, the same in every process."""
    start: Row = {"setting": case.setting, "stage": case.stage, "precision": case.precision}
    differences: Row = {"muon": "", "adam": ""}
    why = case.why
    assert case.train
    try:
        weights = case.train(case, engine)
    except ValueError as error:
        why = f"Refused: {error}."
    else:
        right = references[case.clip]
        matrices = {row.name for row in fresh().roles() if row.role == "matrix"}
        for key, names in (("muon", matrices), ("adam", {*right} - matrices)):
            ours = torch.cat([right[name].flatten() for name in sorted(names)])
            theirs = torch.cat([weights[name].flatten() for name in sorted(names)])
            differences[key] = f"{((theirs - ours).norm() / ours.norm()).item():.1e}"
    return {**start, **differences, "must be": case.must_be, "why": why, "issues": case.issues}


def fault(row: Row) -> str:
    """What is not as it must be; empty: nothing."""
    if not row["must be"]:
        return "" if str(row["why"]).startswith("Refused") else "was not refused"
    if not row["muon"]:
        return str(row["why"])
    word, bound = str(row["must be"]).split()
    largest = max(float(str(row[key])) for key in ("muon", "adam"))
    right = largest < float(bound) if word == "below" else largest > float(bound)
    return "" if right else f"{largest:.1e} is not {row['must be']}"


def table(engine: deepspeed.Engine, cases: Sequence[Case] = CASES) -> list[Row]:
    """All rows; every process makes them."""
    references = {clip: reference(clip) for clip in sorted({case.clip for case in cases})}
    with mock.patch.object(engine, "mark", None):
        return [row_of(case, engine, references) for case in cases]


def compare_all() -> None:
    """Make the table, write it, and print what is not as it must be."""
    torch.set_num_threads(1)
    engine = deepspeed.Engine(torch.device("cpu"), timeout=300)
    rows = table(engine)
    if engine.rank == 0:
        write("zero", rows, {name: version(name) for name in ("torch", "deepspeed")})
        for row in rows:
            if fault(row):
                print(f"{row['setting']}, stage {row['stage']}: {fault(row)}")
    engine.close()


def main() -> int:
    """Run the command; its exit code."""
    return run("zero", __doc__, compare_all)


if __name__ == "__main__":
    sys.exit(main())
