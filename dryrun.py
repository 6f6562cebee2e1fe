"""The plan of a race, printed without a GPU and without data.

    python speedrun.py adamw muon --track gpt2 --dry-run
    python speedrun.py muon --track xl --dry-run --gpu b200 --mfu 0.4 --price-per-hour 4
    python speedrun.py adamw muon --track gpt2 --dry-run --csv planner/gpt2.csv

The model, its table of roles, the recipes and their update rules are the real ones, on tensors
without storage: bytes of parameters, gradients and state are those that a run's row would hold,
and the optimizer's FLOPs are counted while it steps. The arithmetic on them is planner/'s.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import engines
import flags
import optim
from errors import UserError
from model import GPT
from optim.entrants import Entrant
from planner import corpora, race
from planner.hardware import Machine
from planner.memory import Shape
from results.table import aligned


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the plan."""
    parser.add_argument("--dry-run", action="store_true", help="print the plan, train nothing")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the plan's table there too")
    flags.add(parser, Machine, "what --dry-run plans for")


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
        engine.optimizers(groups)
    except ValueError as error:
        raise UserError(f"{entrant.label}: {error}") from None
    return engine, groups


def measure(gpt: GPT, entrant: Entrant, validations: int) -> race.Entrant:
    """What an optimizer holds and does, from one step of it on a model on the meta device.

    Matrix products are in bfloat16. Raises UserError if the entrant's options make no plan, or its
    rule cannot step without numbers.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, where there is one

    engine, groups = place(gpt, entrant)
    for param in gpt.parameters():
        param.grad = torch.zeros_like(param)
    held = engine.state_bytes()
    with FlopCounterMode(display=False) as counter:
        try:
            engine.step()
        except (NotImplementedError, RuntimeError) as error:
            raise UserError(
                f"{entrant.label}: its rule needs numbers to step ({str(error).splitlines()[0]}), "
                "so it cannot be planned; leave it out of --dry-run"
            ) from error
    counts: dict[tuple[str, str], int] = {}
    for group in groups:
        for row in group.params:
            key = (row.role, group.rule.__name__)
            counts[key] = counts.get(key, 0) + row.param.numel()
    return race.Entrant(
        label=entrant.label,
        steps=entrant.settings["steps"],
        validations=validations,
        parameters=tuple((role, rule, count) for (role, rule), count in sorted(counts.items())),
        param_bytes=held["params"],
        grad_bytes=held["grads"],
        state_bytes=engine.state_bytes()["state"],
        optimizer_flops=float(counter.get_total_flops()),
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


def conduct(
    track: Any, entrants: Sequence[Entrant], loss_chunk: int, arguments: argparse.Namespace
) -> None:
    """Print the plan of a race on a `speedrun.Track`, as the flags of the plan ask.

    loss_chunk: tokens whose logits are in memory at once; 0: all.
    """
    machine = Machine(**flags.given(arguments, Machine))
    corpus = corpora.corpus(track.dataset)
    config = track.config(corpus.vocab_size)
    with torch.device("meta"):
        gpt = GPT(config)
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
        validations = sum(track.validates(step, steps) for step in range(1, steps + 1))
        columns.append(measure(gpt, entrant, validations))
    table = race.table(task, columns, machine)
    if arguments.csv:
        write(arguments.csv, table)
    print(aligned(table), race.total(task, columns, machine, arguments.seeds), sep="\n\n")


def write(path: Path, table: Sequence[Sequence[str]]) -> None:
    """The table as CSV. Raises UserError if it cannot be written."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(table)
    except OSError as error:
        raise UserError(f"--csv {path}: {error.strerror}; choose another file") from error
