"""A plan: a model on a cluster in a setting, trained by Muon or by AdamW.

scale.toml names a plan for each preset. Each of its values is a flag of `python -m planner
verdict`, too.
"""

import argparse
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from errors import UserError
from planner import models
from planner.cluster import clusters
from planner.cluster.clusters import Cluster
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.memory.footprint import Kept
from planner.models import Model
from planner.step import strategies
from planner.time.newton_schulz import Iteration
from runtime import command_line

NAMED = Path(__file__).with_name("scale.toml")
TOKENS_PER_PARAMETER = 20  # of a training whose tokens are unknown: Hoffmann et al. 2203.15556
RANKS, MOST_DRAWS = 1024, 1000
STRATEGY = "sharded-early"  # sends no more than AdamW does, and owners share the work


@dataclass(frozen=True)
class Plan:
    """What a verdict is about."""

    model: Model
    cluster: Cluster
    setting: Setting
    iteration: Iteration
    kept: Kept
    strategy: str  # of Muon; AdamW has its fastest
    rule: str  # compared with AdamW
    train_tokens: float  # of AdamW's training
    draws: int = 8  # of stragglers
    source: str = ""  # of the cluster and the layout
    assumed: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.setting.tokens(self.model)

    @property
    def steps(self) -> float:
        """Steps of AdamW's training."""
        return self.train_tokens / self.tokens

    def with_cluster(self, **changes: Any) -> "Plan":
        """The plan on a cluster with other numbers."""
        return replace(self, cluster=replace(self.cluster, **changes))

    def with_setting(self, **changes: Any) -> "Plan":
        """The plan in another setting."""
        return replace(self, setting=replace(self.setting, **changes))

    def with_iteration(self, **changes: Any) -> "Plan":
        """The plan with another Newton-Schulz."""
        return replace(self, iteration=replace(self.iteration, **changes))


# Options of Newton-Schulz that the name of a rule stands for.
OF_RULE: dict[str, dict[str, Any]] = {
    "deepseek-v4": {"ns_coefficients": "deepseek-v4"},
    "polar-express": {"ns_coefficients": "polar-express"},
    "muon-split": {"split": True},
}


@cache
def named() -> dict[str, dict[str, Any]]:
    """The plans of scale.toml, by the name of their model."""
    return tomllib.loads(NAMED.read_text(encoding="utf-8"))


def add(parser: argparse.ArgumentParser) -> None:
    """The flags of a plan, beside the name of its model."""
    parser.add_argument(
        "--optimizer", default="muon", metavar="NAME", help="compared with AdamW (default: muon)"
    )
    note = f"of Muon: one of {', '.join(strategies.STRATEGIES)} (default: {STRATEGY})"
    parser.add_argument("--strategy", metavar="NAME", help=note)
    note = "steps whose stragglers are drawn (default: 8)"
    parser.add_argument("--draws", type=int, default=8, metavar="INT", help=note)
    clusters.add(parser, default=None)
    command_line.add(parser, Setting, "the training")
    command_line.add(parser, Iteration, "Newton-Schulz")
    command_line.add(parser, Kept, "activations")


def chosen(arguments: argparse.Namespace, model: Model) -> Plan:
    """The plan of a command line: what it gives, else what scale.toml has. Raises UserError."""
    given = {k: v for k, v in vars(arguments).items() if v is not None and k in KEYS}
    return make(model, given)


KEYS = {"cluster", "strategy", "optimizer", "draws"} | {
    each.name for declared in (Cluster, Setting, Iteration, Kept) for each in fields(declared)
}


def usual_ranks(model: Model, setting: Setting) -> int:
    """Ranks of a model that no plan names: 1,024, or the power of two that its step feeds."""
    unit = setting.pipeline * setting.expert_parallel
    most = setting.tokens(model) // model.seq_len * setting.pipeline
    ranks = unit
    while 2 * ranks <= min(RANKS, most):
        ranks *= 2
    return ranks


def make(model: Model, given: Mapping[str, Any]) -> Plan:
    """The plan of a model with these values, and those of scale.toml for the others.

    Raises UserError for values that do not fit.
    """
    defaults = dict(named().get(model.name, {}))
    if given.get("cluster", defaults.get("cluster")) != defaults.get("cluster"):
        defaults |= {"source": "", "assumed": []}  # of another cluster nothing is known
    defaults |= OF_RULE.get(str(given.get("optimizer")), {})
    values = defaults | dict(given)

    training = {
        key: defaults[key] for key in ("seq_len", "attended", "train_tokens") if key in defaults
    }
    if training and model == models.find(model.name):  # else the user's sequences stay
        model = models.Training(**training).applied(model)

    def of(declared: type) -> dict[str, Any]:
        names = {each.name for each in fields(declared)}
        return {key: value for key, value in values.items() if key in names}

    strategy = strategies.known(values.get("strategy", STRATEGY))
    rule = update_rules.find(values.get("optimizer", "muon")).name
    tokens = model.train_tokens or TOKENS_PER_PARAMETER * model.active_params
    if not 1 <= values.get("draws", 1) <= MOST_DRAWS:
        must = f"must be 1 or more, and at most {MOST_DRAWS}"
        raise UserError(f"--draws {values['draws']}: {must}; or leave it out")
    setting = Setting(**of(Setting))
    if "ranks" not in values:
        values["ranks"] = usual_ranks(model, setting)
    cluster = clusters.make(values.get("cluster", clusters.DEFAULT), **of(Cluster))
    setting.check(model, cluster.ranks)
    return Plan(
        model, cluster, setting, Iteration(**of(Iteration)), Kept(**of(Kept)), strategy, rule,
        tokens, values.get("draws", 8), values.get("source", ""), tuple(values.get("assumed", ())),
    )  # fmt: skip
