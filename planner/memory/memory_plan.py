"""What a rank holds in training, by kind, for each optimizer and engine, and the GPUs it fits.

    python -m planner memory deepseek-v4 --ranks 4096 --pipeline 16 --expert-parallel 64
    python -m planner memory llama-405b --optimizer adamw muon soap --engine zero3 --ranks 1024
    python -m planner memory gpt2-124m --ranks 8 --csv memory.csv --chart memory.png
    python -m planner memory --from-model gpt2 --engine single --ranks 1   # activations traced

The rank that holds most, and in `mean` the mean over all ranks: owners of whole matrices do not
have equally much. Hidden matrices have the optimizer, all else has AdamW; their states are apart.
Buffers are what communication adds to the peak. Activations are by a stated formula
(planner/memory/footprint.py), or traced on the real model, uncompiled, with --from-model. A pass is
of one sequence unless --microbatches says otherwise, and with --from-model as the trainer makes it.
Engines: single, ddp, sharded, fsdp2 and deepspeed-zero0 to 3 as this project runs them; zero1 to
zero3 as published, with owners of whole matrices. A GPU fits if a tenth of its memory stays free.
GB are 10^9 bytes.
"""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from analysis.table import aligned
from errors import UserError
from host import entry, paths
from planner import models, tables
from planner.cluster.hardware import GPUS
from planner.cluster.setting import Setting
from planner.memory import layouts, update_rules
from planner.memory.footprint import Footprint, Kept, footprint, pass_tokens, passes_of_one_sequence
from planner.models.weights import Model
from runtime import command_line
from tracking.spelling import display_name

ENGINES = ("ddp", "sharded", "zero1", "zero2", "zero3", "fsdp2")
KINDS = (
    "params_bytes", "master_bytes", "grads_bytes", "matrix_state_bytes", "other_state_bytes",
    "buffers_bytes", "activations_bytes",
)  # fmt: skip
HEADINGS = (
    "optimizer", "engine", "parameters", "master", "gradients", "its state", "AdamW's state",
    "buffers", "activations", "total GB", "mean", "fits",
)  # fmt: skip


class Row(NamedTuple):
    """An optimizer on an engine."""

    most: Footprint
    mean: Footprint

    def fits(self, gpus: Sequence[str]) -> list[str]:
        return [name for name in gpus if self.most.fits(GPUS[name].memory_bytes)]


def gigabytes(size: float) -> str:
    """Three digits or more: 0.123, 12.3, 12,345."""
    number = size / 1e9
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}" if number >= 0.001 else "0"


def table(rows: Sequence[Row], gpus: Sequence[str]) -> str:
    """The rows as plain text."""
    lines = [
        [
            display_name(row.most.rule),
            row.most.engine,
            *(gigabytes(getattr(row.most, kind)) for kind in KINDS),
            gigabytes(row.most.total_bytes),
            gigabytes(row.mean.total_bytes),
            " ".join(row.fits(gpus)) or "none",
        ]
        for row in rows
    ]
    return aligned([HEADINGS, *lines])


def csv_table(rows: Sequence[Row], gpus: Sequence[str]) -> list[list[object]]:
    """The rows in bytes, with headings."""
    totals = ["total_bytes", "mean_state_bytes", "mean_total_bytes"]
    lines: list[list[object]] = [["model", "optimizer", "engine", "ranks", *KINDS, *totals, "fits"]]
    for most, mean in rows:
        held = [round(getattr(most, kind)) for kind in KINDS]
        sums = [most.total_bytes, mean.state_bytes, mean.total_bytes]
        fits = " ".join(Row(most, mean).fits(gpus))
        named = [most.model, most.rule, most.engine, most.ranks]
        lines.append([*named, *held, *map(round, sums), fits])
    return lines


def heading(model: Model, setting: Setting, ranks: int, traced: bool) -> str:
    """What all rows have in common."""
    cut = [f"{setting.pipeline} pipeline stages"] * (setting.pipeline > 1)
    cut += [f"experts over {setting.expert_parallel} ranks"] * (setting.expert_parallel > 1)
    where = f"{ranks:,} ranks" if ranks > 1 else "1 rank"
    master = ", float32 master copies" if setting.master_number_bytes else ""
    passes, tokens = setting.microbatches, pass_tokens(model, setting, ranks)
    of = f"{passes:,} passes" if passes > 1 else "1 pass"
    how = "by formula"
    if traced:
        share = importlib.import_module("planner.memory.traced").COMPILED_SHARE
        how = f"traced, uncompiled (compiled, an H200 took {share:.0%} of that for gpt2)"
    return (
        f"{model.title} on {', '.join([where, *cut])}: parameters {setting.dtype}{master}, "
        f"gradients {setting.grad_dtype}, state {setting.state_dtype}\n"
        f"a step of {setting.tokens(model):,} tokens, on each rank in {of} of "
        f"{tokens:,.0f} tokens; activations {how}"
    )


def chosen(arguments: argparse.Namespace, model: Model, ranks: int) -> Setting:
    """The setting of a command line: where it does not say how many passes, as many as possible."""
    given = command_line.given(arguments, Setting)
    own = {"dtype": "float32"} if arguments.from_model else {}
    setting = Setting(**(own | given))
    setting.check(model, ranks)
    if "microbatches" in given:
        return setting
    passes = passes_of_one_sequence(model, setting, ranks)
    if arguments.from_model:  # as the trainer does it
        passes = importlib.import_module("planner.memory.traced").usual_passes(
            passes, model.seq_len
        )
    return replace(setting, microbatches=passes)


def rows_of(arguments: argparse.Namespace, model: Model, setting: Setting) -> list[Row]:
    """All optimizers on all engines. Raises UserError."""
    kept = Kept(**command_line.given(arguments, Kept))
    ranks, found = arguments.ranks, []
    if arguments.from_model and kept.checkpointing:
        raise UserError("--checkpointing: no model of this project does it; leave it out")
    for name in arguments.optimizer:
        rule, activations = update_rules.find(name), None
        if arguments.from_model:
            sequences = int(pass_tokens(model, setting, ranks)) // model.seq_len
            traced = importlib.import_module(
                "planner.memory.traced"
            )  # torch, which others do not need
            activations = traced.working_bytes(arguments.from_model, name, sequences)
        for engine in arguments.engine or (ENGINES if ranks > 1 else ("single",)):
            two = [
                footprint(model, rule, engine, setting, ranks, kept, activations, mean)
                for mean in (False, True)
            ]
            found.append(Row(*two))
    return found


def command(arguments: argparse.Namespace) -> None:
    """Print the table, and write what was asked for."""
    gpus = arguments.gpu or [*GPUS]
    for name in gpus:
        if name not in GPUS:
            raise UserError(f"--gpu {name}: must be one of {', '.join(GPUS)}; run with --gpu h100")
    if arguments.ranks < 1:
        raise UserError(f"--ranks {arguments.ranks}: must be at least 1; run with --ranks 8")
    for name in arguments.optimizer:
        update_rules.find(name)
    for name in arguments.engine or ():
        layouts.check(name)
    model = models.chosen(arguments)
    setting = chosen(arguments, model, arguments.ranks)
    rows = rows_of(arguments, model, setting)
    first = heading(model, setting, arguments.ranks, bool(arguments.from_model))
    print(f"{first}\n\n{table(rows, gpus)}")
    if arguments.csv:
        tables.write_csv(arguments.csv, csv_table(rows, gpus))
    if arguments.chart:
        charts = importlib.import_module("planner.charts.memory_by_kind")  # imports matplotlib
        write = importlib.import_module("planner.charts._write").write
        title, caption = f"Memory of a rank: {model.title}", first.replace("\n", "; ")
        shown = [row.most for row in rows]
        kinds = [GPUS[name] for name in gpus]
        for path in write(arguments.chart, lambda: charts.draw(shown, title, caption, kinds)):
            print(f"wrote {paths.from_here(str(path))}")


def main(argv: Sequence[str]) -> int:
    """The subcommand `memory`; its exit code."""
    parser = entry.parser("planner memory", __doc__)
    models.add(parser)
    names = ", ".join(update_rules.RULES)
    parser.add_argument(
        "--optimizer", nargs="+", default=["adamw", "muon"], metavar="NAME",
        help=f"any of {names} (default: adamw muon)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", nargs="+", metavar="NAME",
        help=f"any of {', '.join(layouts.ENGINES)} (default: {' '.join(ENGINES)})",
    )  # fmt: skip
    note = "GPUs, one process on each (default: 8)"
    parser.add_argument("--ranks", type=int, default=8, metavar="INT", help=note)
    note = f"that may fit, any of {', '.join(GPUS)} (default: all)"
    parser.add_argument("--gpu", nargs="+", metavar="NAME", help=note)
    tables.add_csv(parser)
    parser.add_argument("--chart", type=paths.typed, metavar="FILE.png", help="draw the table")
    command_line.add(parser, Setting, "how it is trained")
    command_line.add(parser, Kept, "activations")
    return entry.run(parser, argv, command)
