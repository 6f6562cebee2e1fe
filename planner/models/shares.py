"""What Muon may take of a model, and what the model's design does to it.

    python -m planner shares deepseek-v4 --ns-coefficients deepseek-v4
    python -m planner shares gpt2-124m llama-405b --batch-tokens 4000000
    python -m planner shares --csv shares.csv            # all presets

The first table is by role: parameters, bytes of gradients and of optimizer state. Hidden matrices
have the optimizer, all else has AdamW. The second table is by design: the model as it is, and with
one change each. Orthogonalisation is counted against all FLOPs of a step, and that of the experts
against the FLOPs of the experts alone, which see few tokens each.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from analysis.table import aligned, markdown_grid
from host import entry
from planner import models
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.memory.update_rules import UpdateRule
from planner.models import design
from planner.models.weights import HIDDEN, ROLES, Model, Weight
from planner.tables import add_csv, short, size, write_csv
from planner.time.newton_schulz import Iteration
from runtime import command_line
from tracking.spelling import display_name

HIDDEN_SUM, ALL = "hidden", "all"  # the rows below the roles


@dataclass(frozen=True)
class RoleShare:
    """What the weights of some roles hold, in a whole model."""

    role: str  # one of ROLES, HIDDEN_SUM or ALL
    params: int
    params_share: float
    grad_bytes: float
    grad_share: float
    state_bytes: float
    state_share: float
    adamw_state_bytes: float  # with AdamW for all parameters

    @property
    def saved(self) -> float:
        """The share of AdamW's state that is not there."""
        return 1 - self.state_bytes / self.adamw_state_bytes


@dataclass(frozen=True)
class Design:
    """A design of a model, and what an optimizer holds and computes for it."""

    words: str
    params: int
    active_params: float
    hidden_share: float
    adamw_state_bytes_per_param: float
    state_bytes_per_param: float
    ns_flops: float  # of a step
    ns_share: float  # of all FLOPs of the model in a step
    experts_ns_share: float | None  # of the experts' FLOPs, for their matrices; None: no experts


@dataclass(frozen=True)
class Question:
    """What a table is about, beside the model."""

    rule: UpdateRule
    setting: Setting
    iteration: Iteration

    def state_bytes(self, weights: Sequence[Weight], rule: UpdateRule | None = None) -> float:
        """Bytes of optimizer state of some weights; rule: in place of this one."""
        used = rule or self.rule
        numbers = sum(update_rules.state_numbers(used, w) * w.count for w in weights)
        return numbers * self.setting.state_number_bytes

    def ns_flops(self, weights: Sequence[Weight]) -> float:
        """FLOPs of orthogonalisation in a step."""
        if not self.rule.orthogonalises:
            return 0.0
        return sum(self.iteration.weight_flops(weight) for weight in weights if weight.hidden)


def rows(model: Model, question: Question) -> list[RoleShare]:
    """A row for each role that the model has, for all hidden matrices and for the whole model."""
    groups = {role: model.of_roles((role,)) for role in ROLES}
    groups |= {HIDDEN_SUM: model.of_roles(HIDDEN), ALL: model.weights}
    all_state = question.state_bytes(model.weights)
    return [
        RoleShare(
            role=role,
            params=(params := sum(weight.params for weight in weights)),
            params_share=params / model.params,
            grad_bytes=float(params * question.setting.grad_number_bytes),
            grad_share=params / model.params,  # all gradients have the same type
            state_bytes=(state := question.state_bytes(weights)),
            state_share=state / all_state,
            adamw_state_bytes=question.state_bytes(weights, update_rules.RULES["adamw"]),
        )
        for role, weights in groups.items()
        if weights
    ]


def designs(model: Model, question: Question) -> list[Design]:
    """A row for the model as it is, for each change that applies to it, and for Muon Split."""
    found = [_design(words, each, question) for words, each in design.variants(model).items()]
    iteration = question.iteration
    if not iteration.split and any(weight.parts > 1 for weight in model.weights):
        split = replace(question, iteration=replace(iteration, split=True))
        found.append(_design("each head a matrix (Muon Split)", model, split))
    return found


def _design(words: str, model: Model, question: Question) -> Design:
    tokens = question.setting.tokens(model)
    experts = model.of_roles(("experts",))
    expert_flops = 6.0 * tokens * sum(w.params * w.token_share for w in experts)
    flops = question.ns_flops(model.weights)
    return Design(
        words=words,
        params=model.params,
        active_params=model.active_params,
        hidden_share=model.hidden_params / model.params,
        adamw_state_bytes_per_param=(
            question.state_bytes(model.weights, update_rules.RULES["adamw"]) / model.params
        ),
        state_bytes_per_param=question.state_bytes(model.weights) / model.params,
        ns_flops=flops,
        ns_share=flops / (model.flops_per_token * tokens),
        experts_ns_share=question.ns_flops(experts) / expert_flops if experts else None,
    )


# ---- As tables ---------------------------------------------------------------------------------

NOTE = (
    "hidden: the share of parameters in hidden matrices. State: bytes a parameter, on average. NS: "
    "Newton-Schulz, FLOPs of a step; their share of the model's FLOPs, and the experts' share of "
    "the experts' FLOPs."
)


def role_headings(question: Question) -> list[str]:
    """The headings above `role_cells`."""
    state = f"{display_name(question.rule.name)}'s state"
    named = ["role", "parameters", "share", "gradients", "share", state, "share"]
    return [*named, "AdamW's state", "saved"]


def design_headings(question: Question) -> list[str]:
    """The headings above `design_cells`."""
    state = f"{display_name(question.rule.name)}'s state"
    named = ["design", "parameters", "active", "hidden", "AdamW's state", state]
    return [*named, "NS FLOPs", "of the model's", "of the experts'"]


def role_cells(shares: Sequence[RoleShare]) -> list[list[str]]:
    """The rows as cells."""
    return [
        [
            each.role,
            f"{each.params:,}",
            f"{each.params_share:.2%}",
            size(each.grad_bytes),
            f"{each.grad_share:.2%}",
            size(each.state_bytes),
            f"{each.state_share:.2%}",
            size(each.adamw_state_bytes),
            f"{each.saved:.1%}",
        ]
        for each in shares
    ]


def design_cells(found: Sequence[Design]) -> list[list[str]]:
    """The rows as cells."""
    return [
        [
            each.words,
            short(each.params),
            short(each.active_params),
            f"{each.hidden_share:.1%}",
            f"{each.adamw_state_bytes_per_param:.2f}",
            f"{each.state_bytes_per_param:.2f}",
            f"{each.ns_flops:.2e}",
            f"{each.ns_share:.2%}",
            "-" if each.experts_ns_share is None else f"{each.experts_ns_share:.2%}",
        ]
        for each in found
    ]


def markdown(model: Model, question: Question) -> str:
    """Both tables of a model in Markdown."""
    by_role = markdown_grid(role_headings(question), role_cells(rows(model, question)))
    by_design = markdown_grid(design_headings(question), design_cells(designs(model, question)))
    return f"{by_role}\n\n{by_design}\n\n{NOTE}"


def text(model: Model, question: Question) -> str:
    """Both tables of a model as plain text."""
    by_role = aligned([role_headings(question), *role_cells(rows(model, question))])
    by_design = aligned([design_headings(question), *design_cells(designs(model, question))])
    tokens = question.setting.tokens(model)
    return f"{model.title}, {tokens:,} tokens a step\n\n{by_role}\n\n{by_design}"


CSV_HEADINGS = [
    "model", "design", "role", "parameters", "grad_bytes", "state_bytes", "adamw_state_bytes",
    "ns_flops", "model_flops",
]  # fmt: skip


def csv_rows(model: Model, question: Question) -> list[list[object]]:
    """A line for each design and role; FLOPs of the model stand in the lines of `ALL`."""
    lines: list[list[object]] = []
    for words, changed in design.variants(model).items():
        step = changed.flops_per_token * question.setting.tokens(changed)
        for each in rows(changed, question):
            chosen = {ALL: ROLES, HIDDEN_SUM: HIDDEN}.get(each.role, (each.role,))
            flops = question.ns_flops(changed.of_roles(chosen))
            lines.append(
                [model.name, words, each.role, each.params, each.grad_bytes, each.state_bytes,
                 each.adamw_state_bytes, flops, step if each.role == ALL else ""]
            )  # fmt: skip
    return lines


def command(arguments: argparse.Namespace) -> None:
    """Print the tables of each model."""
    chosen = models.chosen_many(arguments)
    question = Question(
        update_rules.find(arguments.optimizer),
        Setting(**command_line.given(arguments, Setting)),
        Iteration(**command_line.given(arguments, Iteration)),
    )
    if arguments.csv:
        lines = [line for model in chosen for line in csv_rows(model, question)]
        write_csv(arguments.csv, [CSV_HEADINGS, *lines])
    print("\n\n\n".join(text(model, question) for model in chosen), NOTE, sep="\n\n")


def main(argv: Sequence[str]) -> int:
    """The subcommand `shares`; its exit code."""
    parser = entry.parser("planner shares", __doc__)
    models.add(parser, many=True)
    note = f"one of {', '.join(update_rules.RULES)} (default: muon)"
    parser.add_argument("--optimizer", default="muon", metavar="NAME", help=note)
    add_csv(parser)
    only = ("batch_tokens", "grad_dtype", "state_dtype")
    command_line.add(parser, Setting, "the step", only=only)
    command_line.add(parser, Iteration, "orthogonalisation")
    return entry.run(parser, argv, command)
