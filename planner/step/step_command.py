"""Simulates one training step for each strategy: what hides, who waits, and the price.

    python -m planner step deepseek-v4
    python -m planner step llama-405b --strategy sharded fsdp2 --cluster h100 --ranks 8192
    python -m planner step --from-model gpt2 --ranks 8 --timeline step.png --by-ranks ranks.png

A row is a strategy and an optimizer. The step is the mean over draws of stragglers, with the lowest
and the highest. Passes are forward and backward; a bubble is of the pipeline. Orthogonalised: by
the busiest rank, and on average over the ranks. Exposed is communication that no computation hides;
a rank that neither computes nor communicates waits for others. Sent: by one rank, as a ring does.
The price is the step over AdamW's in the same strategy; "of best", over AdamW's in its fastest one
of the table.

Cluster, layout and batch are those of planner/scale.toml, where it names the model. Whether a rank
has memory for a strategy is a question for `planner memory`. Equal for all optimizers and left out:
recomputation, messages between stages, tokens on their way to experts. A file that is named for a
chart is written as PNG and as SVG.
"""

import argparse
import importlib
from collections.abc import Sequence
from dataclasses import asdict
from types import ModuleType

from analysis.table import aligned
from host import entry, paths
from planner import models, plans, tables
from planner.cluster import clusters
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.plans import Plan
from planner.step import steps
from planner.step.steps import BASELINE, Draws, StepCost
from planner.step.strategies import STRATEGIES, known
from planner.time.newton_schulz import Iteration
from runtime import command_line
from tracking.files import check_writable

COLUMNS = (
    "model", "strategy", "optimizer", "ranks", "seconds", "low_seconds", "high_seconds",
    "compute_seconds", "bubble_seconds", "orthogonalise_seconds", "orthogonalise_mean_seconds",
    "exposed_seconds", "idle_seconds", "sent_bytes",
)  # fmt: skip


def costs_of(
    plan: Plan, rules: Sequence[str], names: Sequence[str], draws: Draws
) -> list[StepCost]:
    """Simulate a plan with each optimizer in each strategy. Raises UserError."""
    return [
        steps.step_cost(
            plan.model, rule, name, plan.cluster, plan.setting, plan.iteration, **asdict(draws)
        )
        for name in names
        for rule in rules
    ]


def csv_rows(costs: Sequence[StepCost]) -> list[list[object]]:
    """The costs in numbers, with the price, the first row a heading."""
    bases = {cost.strategy: cost for cost in costs if cost.optimizer == BASELINE}
    rows: list[list[object]] = [[*COLUMNS, "price", "low_price", "high_price"]]
    for cost in costs:
        found = steps.price(cost, bases[cost.strategy])
        numbers = [getattr(cost, name) for name in COLUMNS]
        rows.append([*numbers, found.mean, found.low, found.high])
    return rows


def command(arguments: argparse.Namespace) -> None:
    """Print the table; write the CSV and the charts if they are asked for. Raises UserError."""
    for name in arguments.strategy:
        known(name)
    rules = [update_rules.find(name).name for name in arguments.optimizer]
    rules = list(dict.fromkeys([BASELINE, *rules]))
    draws = Draws(**command_line.given(arguments, Draws))
    model, given = models.chosen(arguments), dict[str, object]()
    for declared in (clusters.Cluster, Setting, Iteration):
        given |= command_line.given(arguments, declared)
    if arguments.cluster is not None:
        given["cluster"] = arguments.cluster
    plan = plans.make(model, given | {"draws": draws.draws, "optimizer": rules[-1]})
    for path in (arguments.timeline, arguments.by_ranks):
        if path is not None:
            check_writable(path.parent, otherwise="choose another file")
    names = list(dict.fromkeys(arguments.strategy))
    costs = costs_of(plan, rules, names, draws)
    cluster, setting = plan.cluster, plan.setting
    print(
        f"{model.title}, {plan.tokens:,} tokens a step on {cluster.ranks:,} {cluster.kind.name}: "
        f"--pipeline {setting.pipeline} --expert-parallel {setting.expert_parallel} "
        f"--microbatches {setting.microbatches}, {cluster.mfu:.0%} of the peak (--mfu, assumed)\n"
    )
    print(aligned(steps.table(costs)))
    if arguments.csv:
        tables.write_csv(arguments.csv, csv_rows(costs))
    if arguments.timeline:
        chart = importlib.import_module("planner.charts.timeline")
        shown = [cost for cost in costs if cost.optimizer == rules[-1]]
        _charts().write(arguments.timeline, lambda: chart.draw_costs(shown[: chart.MOST]))
    if arguments.by_ranks:
        ranks = importlib.import_module("planner.charts.step_by_ranks")
        _charts().write(arguments.by_ranks, lambda: ranks.draw(plan, names))


def _charts() -> ModuleType:
    """What writes a chart; it imports matplotlib, which a table does not need."""
    return importlib.import_module("planner.charts._write")


def main(argv: Sequence[str]) -> int:
    """Run the command; its exit code."""
    parser = entry.parser("planner step", __doc__)
    models.add(parser)
    note = f"of {', '.join(update_rules.RULES)} (default: muon); adamw is always there"
    parser.add_argument("--optimizer", nargs="+", default=["muon"], metavar="NAME", help=note)
    note = f"of {', '.join(STRATEGIES)} (default: all)"
    parser.add_argument("--strategy", nargs="+", default=[*STRATEGIES], metavar="NAME", help=note)
    clusters.add(parser, default=None)
    command_line.add(parser, Setting, "the training")
    command_line.add(parser, Iteration, "Newton-Schulz")
    command_line.add(parser, Draws, "the simulation")
    tables.add_csv(parser)
    note = "draw the timeline of the first strategies there, with the last optimizer"
    parser.add_argument("--timeline", type=paths.typed, metavar="FILE", help=note)
    note = "draw the price against the number of ranks there"
    parser.add_argument("--by-ranks", type=paths.typed, metavar="FILE", help=note)
    return entry.run(parser, argv, command)
