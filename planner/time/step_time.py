"""What orthogonalisation takes of a training step: FLOPs, their share, and seconds on a GPU.

    python -m planner time gpt2-124m --ranks 8
    python -m planner time deepseek-v4 --ns-coefficients deepseek-v4 --pipeline 16 --ranks 2048
    python -m planner time llama-405b --ns-form cheaper --symmetric --gpu h100 --chart share.png

The first table has a row for each kind of hidden matrix: its FLOPs as a share of the FLOPs that the
model does with it, on the tokens that it sees (an expert sees few), and the seconds that one rank
would need for all of them. The second one shows shares at several batch sizes, and the third one
the ways to divide the work: the seconds of the busiest rank, and their share of the step, if
nothing hides them.

A matrix product takes the longest of its arithmetic, its memory traffic and its launch. A measured
curve says what arithmetic gets of the peak at each size. Forward and backward take `--mfu` of the
peak. Norms, momentum and communication are not counted.
"""

import argparse
import csv
import importlib
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

from analysis.table import aligned
from host import entry, paths
from planner import models
from planner.cluster.setting import Setting
from planner.models import Model
from planner.time import optimizer_time
from planner.time.efficiency import curves
from planner.time.newton_schulz import Iteration
from planner.time.optimizer_time import Timing
from runtime import command_line
from tracking.files import write_atomic

FACTORS = (1 / 16, 1 / 4, 1, 4, 16)  # of the batch
FLAGS = ("batch_tokens", "pipeline", "expert_parallel")  # of Setting that this command uses


def flops(value: float) -> str:
    return f"{value:.3g}".replace("e+", "e")


def percent(share: float) -> str:
    return f"{share:.3g}%" if (share := 100 * share) < 100 else f"{share:,.0f}%"


def duration(seconds: float) -> str:
    """In the largest unit in which it has a digit before the point."""
    if seconds >= 1:
        return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.3g} us"


def kinds_table(
    model: Model, iteration: Iteration, timing: Timing, tokens: float
) -> list[list[str]]:
    """A line for each kind of hidden matrix, the first a heading, and their sum."""
    rows = optimizer_time.kinds(model, iteration, timing, tokens)
    table = [["matrix", "role", "m x n", "count", "FLOPs", "share", "one rank", "bound by"]]
    for row in rows:
        table.append([
            row.weight.name, row.weight.role, f"{row.m:,} x {row.n:,}", f"{row.matrices:,}",
            flops(row.cost.flops), percent(row.share), duration(row.cost.seconds), row.cost.bound,
        ])  # fmt: skip
    total, seconds = (sum(each) for each in zip(*(row.cost[2::-2] for row in rows), strict=True))
    products = sum(row.model_flops for row in rows)
    count = f"{sum(row.matrices for row in rows):,}"
    sums = [flops(total), percent(total / products), duration(seconds), ""]
    return [*table, ["all hidden matrices", "", "", count, *sums]]


def shares_table(model: Model, iteration: Iteration, tokens: float) -> list[list[str]]:
    """Shares of FLOPs at several batch sizes, the first line a heading."""
    batches = [round(tokens * factor) for factor in FACTORS]
    columns = [optimizer_time.shares(model, iteration, batch) for batch in batches]
    heading = ["share of FLOPs at tokens of a step", *(f"{batch:,}" for batch in batches)]
    return [
        heading,
        *([name, *(percent(column[name]) for column in columns)] for name in columns[0]),
    ]


def prices_table(
    model: Model, iteration: Iteration, timing: Timing, setting: Setting
) -> list[list[str]]:
    """What a step waits for in each way to divide the work, the first line a heading."""
    ranks = timing.of_ranks(model, setting)
    heading = [f"divided over {ranks:,} ranks", "busiest rank", "of the step", "over the mean"]
    return [
        [*heading, "idle ranks"],
        *(
            [
                price.way, duration(price.seconds), percent(price.share),
                f"{price.imbalance:,.2f}x", f"{price.idle:,}",
            ]
            for price in optimizer_time.prices(model, iteration, timing, setting)
        ),
    ]  # fmt: skip


def write_csv(path: Path, rows: Sequence[optimizer_time.Kind]) -> None:
    """The first table in numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "matrix", "role", "m", "n", "count", "flops", "model_flops", "share", "moved_bytes",
        "one_rank_seconds", "bound",
    ])  # fmt: skip
    for row in rows:
        writer.writerow([
            row.weight.name, row.weight.role, row.m, row.n, row.matrices, row.cost.flops,
            row.model_flops, row.share, row.cost.moved_bytes, row.cost.seconds, row.cost.bound,
        ])  # fmt: skip
    write_atomic(path, [text.getvalue().encode()])


def command(arguments: argparse.Namespace) -> None:
    """Print the tables; write the CSV and the chart if they are asked for. Raises UserError."""
    model = models.chosen(arguments)
    iteration = Iteration(**command_line.given(arguments, Iteration))
    timing = Timing(**command_line.given(arguments, Timing))
    setting = Setting(**command_line.given(arguments, Setting))
    ranks, gpu = timing.of_ranks(model, setting), timing.kind
    setting.check(model, ranks)
    tokens, curve = setting.tokens(model), timing.efficiency
    tables = [
        kinds_table(model, iteration, timing, tokens),
        shares_table(model, iteration, tokens),
        prices_table(model, iteration, timing, setting),
    ]
    step = optimizer_time.model_seconds(model, timing, tokens, ranks)
    print(f"{model.title}, {tokens:,} tokens a step, {iteration.steps} steps of Newton-Schulz\n")
    print(*map(aligned, tables), sep="\n\n")
    print(
        f"\nForward and backward: {flops(model.flops_per_token * tokens)} FLOPs, "
        f"{duration(step)} on {ranks:,} x {gpu.name} at {timing.mfu:.0%} of "
        f"{gpu.peak_flops / 1e12:,.0f} TFLOP/s (--mfu, assumed).\nProducts: curve {curve.name}: "
        f"{curve.source}."
    )
    if arguments.csv:
        write_csv(arguments.csv, optimizer_time.kinds(model, iteration, timing, tokens))
    if arguments.chart:
        chart = importlib.import_module("planner.charts.optimizer_share")  # matplotlib
        write = importlib.import_module("planner.charts._write").write
        write(arguments.chart, lambda: chart.draw(model, iteration, timing, setting))


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    names = textwrap.fill(f"Curves: {', '.join(curves())}.", 100, break_on_hyphens=False)
    parser = entry.parser("planner time", f"{__doc__}\n{names}")
    models.add(parser)
    command_line.add(parser, Setting, "the step", only=FLAGS)
    command_line.add(parser, Iteration, "orthogonalisation")
    command_line.add(parser, Timing, "the machine")
    note = "write the first table there, in numbers"
    parser.add_argument("--csv", type=paths.typed, metavar="FILE", help=note)
    note = "draw the shares against the batch there, as PNG and SVG"
    parser.add_argument("--chart", type=paths.typed, metavar="FILE", help=note)
    return entry.run(parser, argv, command)
