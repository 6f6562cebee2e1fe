"""A model's weights, their sums by role and against the published totals, sources, assumptions.

    python -m planner model deepseek-v4
    python -m planner model --from-model tiny            # of a track of this project
    python -m planner model my-model.toml --csv weights.csv

Muon takes the roles attention, mlp, experts and router, which are hidden matrices. A shared expert
is an mlp. `tokens` is the share of a step's tokens that a weight sees.
"""

import argparse
from collections.abc import Sequence

from analysis.table import aligned
from host import entry
from planner import models
from planner.models.weights import HIDDEN, ROLES, Model
from planner.tables import add_csv, short, write_csv

HEADINGS = ["weight", "role", "rows", "cols", "count", "parts", "tokens", "parameters"]


def weight_rows(model: Model) -> list[list[str]]:
    """A line of cells for each weight."""
    return [
        [
            weight.name,
            weight.role,
            *(f"{size:,}" for size in (weight.rows, weight.cols, weight.count, weight.parts)),
            f"{weight.token_share:.3g}",
            f"{weight.params:,}",
        ]
        for weight in model.weights
    ]


def role_rows(model: Model) -> list[list[str]]:
    """Parameters by role, and of all hidden matrices."""
    sums = [(role, sum(w.params for w in model.of_roles((role,)))) for role in ROLES]
    sums = [(role, params) for role, params in sums if params]
    sums += [(f"hidden: {', '.join(HIDDEN)}", model.hidden_params), ("all", model.params)]
    return [[name, f"{params:,}", f"{params / model.params:.2%}"] for name, params in sums]


def published_rows(model: Model) -> list[list[str]]:
    """Published totals beside the sums of the weights."""
    pairs = [
        ("parameters", model.published_params, float(model.params)),
        ("active parameters", model.published_active_params, model.active_params),
    ]
    return [
        [
            name,
            short(published) if published else "-",
            short(summed),
            _difference(published, summed),
        ]
        for name, published, summed in pairs
    ]


def _difference(published: float, summed: float) -> str:
    return f"{summed / published - 1:+.2%}" if published else "-"


def text(model: Model) -> str:
    """All that is known of a model, as plain text."""
    tokens = short(model.train_tokens) if model.train_tokens else "unknown"
    facts = (
        f"{model.n_layer} layers of {model.n_embd:,} channels, {model.n_head} heads "
        f"(queries of {model.qk_size}, values of {model.v_size}), "
        f"{short(model.flops_per_token)} FLOPs a token\n"
        f"training: {model.batch_tokens:,} tokens a step in sequences of {model.seq_len:,}, of "
        f"which a query sees {model.attended:,.0f} on average; {tokens} tokens in all"
    )
    parts = [
        f"{model.title}\n{facts}",
        aligned([HEADINGS, *weight_rows(model)]),
        aligned([["role", "parameters", "share"], *role_rows(model)]),
        aligned([["", "published", "summed", "difference"], *published_rows(model)]),
        _sources(model),
    ]
    if model.assumed:
        parts.append("\n".join(["assumed:", *(f"- {each}" for each in model.assumed)]))
    return "\n\n".join(parts)


def _sources(model: Model) -> str:
    named = [f"- {weight.name}: {weight.source}" for weight in model.weights if weight.source]
    return "\n".join([f"source: {' '.join(model.source.split()) or 'none given'}", *named])


def command(arguments: argparse.Namespace) -> None:
    """Print a model."""
    model = models.chosen(arguments)
    if arguments.csv:
        lines = [
            [w.name, w.role, w.rows, w.cols, w.count, w.parts, w.token_share, w.params, w.source]
            for w in model.weights
        ]
        write_csv(arguments.csv, [[*HEADINGS, "source"], *lines])
    print(text(model))


def main(argv: Sequence[str]) -> int:
    """The subcommand `model`; its exit code."""
    parser = entry.parser("planner model", __doc__)
    models.add(parser)
    add_csv(parser)
    return entry.run(parser, argv, command)
