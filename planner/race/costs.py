"""What a race costs: data, memory, FLOPs, time and price, one column an load.

Every process is taken to hold the whole model and the whole optimizer state, and to run the whole
optimizer: data parallelism without sharding. Time is FLOPs over what a GPU is assumed to deliver.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from errors import UserError
from planner.cluster.hardware import Machine
from planner.memory.activations import Shape, microbatch
from planner.race.corpora import Corpus


@dataclass(frozen=True)
class Task:
    """What the entrants of a race share."""

    track: str
    corpus: Corpus
    shuffle: bool  # then epochs repeat, and no horizon is too long
    batch_tokens: int  # of one step, all processes together
    val_tokens: int
    shape: Shape
    model_flops: float  # of one token, forward and backward


@dataclass(frozen=True)
class Load:
    """What one optimizer does and holds, in one process."""

    label: str
    steps: int
    validations: int
    parameters: tuple[tuple[str, str, int], ...]  # (role, rule, number of parameters)
    param_bytes: int
    grad_bytes: int
    state_bytes: int
    optimizer_flops: float  # of a step, on average


@dataclass(frozen=True)
class Cost:
    """What one run of an entrant costs on a machine."""

    train_seconds: float
    val_seconds: float
    price: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.val_seconds


def tokens_needed(task: Task, load: Load) -> int:
    """Training tokens of one run. Raises UserError if the data set has fewer."""
    needed = load.steps * task.batch_tokens + 1  # the last target
    available = task.corpus.train_tokens
    if task.shuffle:
        return min(needed, available)
    if needed > available:
        raise UserError(
            f"{load.label}: {load.steps} steps need {needed:,} tokens, the data set has "
            f"{available:,}; run with --steps {(available - 1) // task.batch_tokens}"
        )
    return needed


def cost(task: Task, load: Load, machine: Machine) -> Cost:
    """Expected time and price of one run."""
    step_flops = task.model_flops * task.batch_tokens / machine.gpus + load.optimizer_flops
    train = load.steps * step_flops / machine.flops
    val_flops = task.model_flops / 3 * task.val_tokens / machine.gpus  # forward alone
    val = load.validations * val_flops / machine.flops
    return Cost(train, val, (train + val) / 3600 * machine.gpus * machine.price_per_hour)


def table(task: Task, loads: Sequence[Load], machine: Machine) -> list[list[str]]:
    """The plan of one run of each entrant, as lines of cells, the first a heading."""
    columns = [_column(task, load, machine) for load in loads]
    names = list(dict.fromkeys(name for column in columns for name in column))
    peak = f"{machine.kind.peak_flops / 1e12:,.0f} TFLOP/s"
    gpus = f"{machine.gpus} x {machine.kind.name}, {machine.mfu:.0%} of {peak}"
    heading = [f"one run of {task.track} on {gpus}", *(load.label for load in loads)]
    return [heading, *([name, *(column.get(name, "-") for column in columns)] for name in names)]


def _column(task: Task, load: Load, machine: Machine) -> dict[str, str]:
    sequences = _share(task, machine)
    held = load.param_bytes + load.grad_bytes + load.state_bytes
    count = microbatch(task.shape, sequences, held, machine.kind.memory_bytes)
    needed, spent = tokens_needed(task, load), cost(task, load, machine)
    shape, step_ms = task.shape, 1e3 * spent.train_seconds / load.steps
    model_flops = task.model_flops * task.batch_tokens
    all_flops = load.steps * (model_flops + machine.gpus * load.optimizer_flops)
    loss = shape.loss_bytes(count) + shape.cast_bytes()
    column = {
        "steps": f"{load.steps:,}",
        "tokens": f"{load.steps * task.batch_tokens / 1e9:,.3f} G",
        "training shards": f"{task.corpus.shards(needed)}",
        "disk": f"{task.corpus.disk_bytes(needed) / 1e9:,.2f} GB",
    }
    for role in dict.fromkeys(role for role, _, _ in load.parameters):
        rules = [f"{n:,} {rule}" for name, rule, n in load.parameters if name == role]
        column[f"{role} parameters"] = " + ".join(rules)
    column |= {
        "parameters": f"{sum(n for _, _, n in load.parameters):,}",
        "sequences at a time, per GPU": f"{count} of {sequences}",
        "memory per GPU: parameters": _gb(load.param_bytes),
        "gradients": _gb(load.grad_bytes),
        "optimizer state": _gb(load.state_bytes),
        "activations (estimate)": _gb(shape.activation_bytes(count)),
        "logits and casts (estimate)": _gb(loss),
        "memory per GPU": _gb(held + shape.working_bytes(count)),
        "FLOPs per step: model": f"{model_flops / 1e12:,.1f} T",
        "FLOPs per step: optimizer, each GPU": f"{load.optimizer_flops / 1e12:,.2f} T",
        "FLOPs of the run": f"{all_flops / 1e18:,.3f} E",
        "ms per step": f"{step_ms:,.1f}",
        "training seconds": f"{spent.train_seconds:,.0f}",
        "validation seconds": f"{spent.val_seconds:,.0f}",
    }
    if machine.price_per_hour:
        column["price"] = f"{spent.price:,.2f}"
    return column


def total(task: Task, loads: Sequence[Load], machine: Machine, seeds: int) -> str:
    """What the race takes, in a line."""
    costs = [cost(task, load, machine) for load in loads]
    hours = seeds * sum(each.seconds for each in costs) / 3600
    line = f"{seeds} run{'s' if seeds > 1 else ''} of each: {hours:.2f} hours"
    if machine.price_per_hour:
        price = seeds * sum(each.price for each in costs)
        line += f", {price:,.2f} at {machine.price_per_hour:g} per GPU and hour"
    return f"{line}, beside compilation and what the MFU of the assumption leaves out."


def _share(task: Task, machine: Machine) -> int:
    """Sequences of one process a step. Raises UserError if they do not divide."""
    sequences = task.batch_tokens // task.shape.seq_len
    if sequences % machine.gpus:
        fits = next(n for n in range(machine.gpus, 0, -1) if sequences % n == 0)
        raise UserError(
            f"--gpus {machine.gpus}: must divide the {sequences} sequences of a step; "
            f"run with --gpus {fits}"
        )
    return sequences // machine.gpus


def _gb(size: int) -> str:
    return f"{size / 1e9:,.3f} GB"
