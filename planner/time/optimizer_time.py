"""What orthogonalisation is of a training step: of its FLOPs, and of its time on ranks.

Arithmetic of `python -m planner time`. A share of FLOPs needs no machine. A share of the time needs
a GPU, a curve of efficiency (`efficiency.py`), the part of the peak that forward and backward get,
and who does the work; nothing is taken to be hidden behind communication or other work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from errors import UserError
from planner.cluster.hardware import GPU, GPUS
from planner.cluster.setting import Setting
from planner.models import Model, Weight
from planner.time import efficiency
from planner.time.efficiency import LAUNCH_HELP, Cost, Curve, orthogonalisation
from planner.time.newton_schulz import Iteration
from planner.time.owners import WAYS, deal
from runtime import command_line
from runtime.command_line import knob

DENSE = ("attention", "mlp", "router")
EVERY_RANK = "every rank does all"
RANKS = 1024  # of a plan that names none


@dataclass(frozen=True)
class Timing:
    """The machine of a plan of time. Its fields are flags of the command line."""

    gpu: str = knob(f"one of {', '.join(GPUS)}", "h200")
    ranks: int = knob(f"GPUs; 0: {RANKS:,}, or as many as a step has sequences", 0)
    mfu: float = knob("share of the peak that forward and backward get; assumed", 0.4)
    curve: str = knob(
        "efficiency of products by size; auto: the GPU's, or else assumed", efficiency.AUTO
    )
    launch_us: float = knob(LAUNCH_HELP, 0.0)

    def __post_init__(self) -> None:
        if self.gpu not in GPUS:
            known = ", ".join(GPUS)
            raise UserError(f"--gpu {self.gpu}: must be one of {known}; run with --gpu h200")
        command_line.at_least(self, ranks=0)
        if not 0 < self.mfu <= 1:
            raise UserError(f"--mfu {self.mfu}: must be above 0 and at most 1; try --mfu 0.4")
        efficiency.chosen(self.gpu, self.curve, self.launch_us)  # raises UserError

    @property
    def kind(self) -> GPU:
        return GPUS[self.gpu]

    @property
    def efficiency(self) -> Curve:
        """The curve, with the launches of the plan."""
        return efficiency.chosen(self.gpu, self.curve, self.launch_us)

    def of_ranks(self, model: Model, setting: Setting) -> int:
        """The ranks, or in place of 0 as many as divide, by stages and parts of experts."""
        if self.ranks:
            return self.ranks
        cut = setting.pipeline * setting.expert_parallel
        most = min(RANKS, setting.tokens(model) // model.seq_len * setting.pipeline)
        return max(1, most // cut) * cut


class Kind(NamedTuple):
    """Equal matrices of a model, orthogonalised by one rank."""

    weight: Weight
    m: int
    n: int
    matrices: int
    model_flops: float  # of its products in forward and backward, on the tokens that it sees
    cost: Cost

    @property
    def share(self) -> float:
        """Of orthogonalisation in the FLOPs of these products."""
        return self.cost.flops / self.model_flops


def hidden(model: Model) -> tuple[Weight, ...]:
    """The weights that Muon takes. Raises UserError if there are none."""
    found = tuple(weight for weight in model.weights if weight.hidden)
    if not found:
        raise UserError(f"{model.title}: has no hidden matrix, so Muon has nothing to do; name one")
    return found


def product_flops(weights: Sequence[Weight], tokens: float) -> float:
    """FLOPs of weights' products, forward and backward, on a step's tokens."""
    return sum(6.0 * weight.params * weight.token_share * tokens for weight in weights)


def kinds(model: Model, iteration: Iteration, timing: Timing, tokens: float) -> list[Kind]:
    """A row for each hidden weight, or for each kind of matrix in it."""
    found = []
    for weight in hidden(model):
        for m, n, each in iteration.blocks(weight):
            count = weight.count * each
            cost = orthogonalisation(timing.kind, iteration, m, n, count, timing.efficiency)
            part = each * m * n / weight.size
            products = part * product_flops([weight], tokens)
            found.append(Kind(weight, m, n, count, products, cost))
    return found


def shares(model: Model, iteration: Iteration, tokens: float) -> dict[str, float]:
    """Of orthogonalisation in FLOPs: of the products of some weights, and of the whole step."""
    found = {}
    groups = {"dense matrices": DENSE, "experts": ("experts",)}
    for name, roles in groups.items():
        weights = model.of_roles(roles)
        if weights:
            flops = sum(map(iteration.weight_flops, weights))
            found[name] = flops / product_flops(weights, tokens)
    flops = sum(map(iteration.weight_flops, hidden(model)))
    found["all of the step"] = flops / (model.flops_per_token * tokens)
    return found


class Price(NamedTuple):
    """What a step waits for, where the work is divided in one way."""

    way: str
    imbalance: float  # the busiest rank's work over the mean
    idle: int  # ranks without work
    seconds: float  # of the busiest rank
    share: float  # of the step's time


def model_seconds(model: Model, timing: Timing, tokens: float, ranks: int) -> float:
    """Forward and backward of a step."""
    return model.flops_per_token * tokens / (timing.mfu * timing.kind.peak_flops * ranks)


def prices(model: Model, iteration: Iteration, timing: Timing, setting: Setting) -> list[Price]:
    """The price of each way to divide the work. Raises UserError if ranks do not divide."""
    ranks, gpu, curve = timing.of_ranks(model, setting), timing.kind, timing.efficiency
    step = model_seconds(model, timing, setting.tokens(model), ranks)
    dealt = {way: deal(model, iteration, ranks, setting, way) for way in WAYS}
    batches: dict[tuple[int, int], int] = {}  # by shape, as Muon forms them
    for weight in hidden(model):
        for m, n, each in iteration.blocks(weight):
            held = math.ceil(weight.count * each * setting.held_share(weight))
            batches[m, n] = batches.get((m, n), 0) + held
    seconds = sum(
        orthogonalisation(gpu, iteration, m, n, held, curve).seconds
        for (m, n), held in batches.items()
    )
    found = [Price(EVERY_RANK, 1.0, 0, seconds, seconds / (seconds + step))]
    for way, work in dealt.items():
        seconds = work.seconds(gpu, iteration, curve)
        share = seconds / (seconds + step)
        found.append(Price(way, work.imbalance, work.idle, seconds, share))
    return found
