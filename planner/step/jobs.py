"""What one training step has to do, in seconds and numbers: the input of a simulation.

    planned = job(model, update_rules.find("muon"), Iteration(), Setting(), cluster)
    strategies.simulate(planned, "sharded", links_of(cluster))

A `Job` says nothing of where its seconds come from: `job` computes them from FLOPs and bytes, and a
test of the simulation fills in what it has measured. It is of one stage of a pipeline; all stages
are taken alike.

Left out, because it costs all optimizers the same: recomputation, tensor parallelism, what stages
send each other, and the all-to-all of tokens between experts. The share of the peak that passes get
is taken to include the pipeline's bubble; with `--bubble` it is a term of its own, stages - 1
microbatches in which a rank waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from errors import UserError
from planner.cluster.clusters import Cluster
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.memory.update_rules import UpdateRule
from planner.models import Model, Weight
from planner.time import efficiency
from planner.time.newton_schulz import Iteration

BUCKET_BYTES = 25 * 2**20  # of gradients that travel together, as in torch's DDP
ORTHOGONAL_BYTES = 2  # of a number that goes into Newton-Schulz or comes out of it


@dataclass(frozen=True)
class Unit:
    """What is computed, gathered and reduced together: a layer, or an end of the model."""

    name: str
    forward_seconds: float  # of one microbatch
    backward_seconds: float
    dense: float  # numbers in parameters that all ranks share
    experts: float = 0.0  # numbers in experts, of one group of experts
    root: bool = False  # outside of the layers: FSDP2 gathers it once a pass


@dataclass(frozen=True)
class Stack:
    """Equal matrices of a rule that needs them whole."""

    name: str
    numbers: float  # in one of them
    count: int  # in the job; of experts: in one group
    cost: float  # of one, in any unit: owners are balanced by it
    seconds: Callable[[int], float]  # to orthogonalise so many of them at once on one rank
    experts: bool = False
    row: int = 0  # which flat row of DeepSpeed they lie in: those that the rule takes apart alike


@dataclass(frozen=True)
class Job:
    """One step of one stage.

    Its ranks share the dense parameters. Rank r belongs to the group of experts r modulo
    `expert_groups`; the ranks of a group share its experts.
    """

    ranks: int
    units: tuple[Unit, ...]  # in the order of the forward pass
    stacks: tuple[Stack, ...] = ()  # none: the rule works on each element
    update_seconds: float = 0.0  # of the rule of all other parameters, for one number
    matrix_update_seconds: float = 0.0  # of the stacks' rule beside orthogonalising, for a number
    microbatches: int = 1
    bubble_seconds: float = 0.0
    expert_groups: int = 1
    param_number_bytes: int = 2  # in the passes, and where parameters travel
    grad_number_bytes: int = 4
    state_number_bytes: int = 4
    bucket_bytes: float = BUCKET_BYTES
    hides: bool = True  # communication goes on beside computation; else it stops it

    def numbers(self, experts: bool) -> float:
        """Numbers of parameters that a rank holds, the dense ones or the experts."""
        return sum(unit.experts if experts else unit.dense for unit in self.units)

    def matrix_numbers(self, experts: bool) -> float:
        """Those of them that lie in stacks."""
        return sum(s.numbers * s.count for s in self.stacks if s.experts == experts)


def job(
    model: Model,
    rule: UpdateRule,
    iteration: Iteration,
    setting: Setting,
    cluster: Cluster,
    bucket_numbers: int = 0,
    latest: float = 1.0,
) -> Job:
    """The step of a model on a cluster. Raises UserError for what does not fit or is not planned.

    It is of the stage with most layers. bucket_numbers: gradients in a bucket; 0: the larger of 40M
    and 1M for each rank, as in Megatron-LM, so that the time of a message does not rule. latest:
    how much longer the slowest rank takes than the mean. The share of the peak that passes get
    (Cluster.mfu) is of a whole step, so uneven stages and the slowest rank are part of it.
    """
    setting.check(model, cluster.ranks)
    if rule.whole and not rule.orthogonalises:
        raise UserError(
            f"--optimizer {rule.name}: the time of its decompositions is not planned; "
            "run with --optimizer muon"
        )
    ranks = cluster.ranks // setting.pipeline
    layers = -(-model.n_layer // setting.pipeline)
    stage = layers / model.n_layer  # the share of the layers that a stage has at most
    stacks = _stacks(model, iteration, setting, cluster, stage)
    units = _units(model, setting, cluster, stacks, layers, latest)
    passes = sum(unit.forward_seconds + unit.backward_seconds for unit in units)
    bucket = bucket_numbers or max(40_000_000, 1_000_000 * ranks)
    return Job(
        ranks=ranks,
        units=units,
        stacks=stacks if rule.whole else (),
        update_seconds=_update_bytes(model, rule, setting) / cluster.kind.memory_bytes_per_s,
        matrix_update_seconds=(
            (_touched(setting, 1.0) + 2 * ORTHOGONAL_BYTES) / cluster.kind.memory_bytes_per_s
        ),
        microbatches=setting.microbatches,
        bubble_seconds=(setting.pipeline - 1) * passes if setting.bubble else 0.0,
        expert_groups=setting.expert_parallel,
        param_number_bytes=setting.param_number_bytes,
        grad_number_bytes=setting.grad_number_bytes,
        state_number_bytes=setting.state_number_bytes,
        bucket_bytes=bucket * setting.grad_number_bytes,
    )


def _touched(setting: Setting, states: float) -> float:
    """Bytes that an update reads and writes for one parameter with so many numbers of state."""
    weights = 2 * (setting.master_number_bytes or setting.param_number_bytes)
    copy = setting.param_number_bytes if setting.master_number_bytes else 0
    return setting.grad_number_bytes + 2 * states * setting.state_number_bytes + weights + copy


def _update_bytes(model: Model, rule: UpdateRule, setting: Setting) -> float:
    """The mean over the parameters that no owner has."""
    adamw, total, count = update_rules.RULES["adamw"], 0.0, 0
    for weight in model.weights:
        if weight.hidden and rule.whole:
            continue
        states = (rule if weight.hidden else adamw).numbers(weight.rows, weight.cols) / weight.size
        total += weight.params * _touched(setting, states)
        count += weight.params
    return total / count if count else 0.0


def _stacks(
    model: Model, iteration: Iteration, setting: Setting, cluster: Cluster, stage: float
) -> tuple[Stack, ...]:
    """The hidden matrices of a stage, those of one shape together."""
    curve, found = cluster.efficiency, dict[tuple[int, int, int, bool], list[Weight]]()
    for weight in model.weights:
        if weight.hidden:
            parts = iteration.matrices(weight)[2]
            key = weight.rows, weight.cols, parts, weight.role == "experts"
            found.setdefault(key, []).append(weight)
    stacks, flat = [], dict[object, int]()
    for (rows, cols, parts, experts), weights in found.items():
        m, n, _ = iteration.matrices(weights[0])
        cut = setting.expert_parallel if experts else 1
        counts = [round(weight.count * stage / cut) for weight in weights]
        if not any(counts):  # most stages have none, such as the first layers' dense MLP
            continue

        def seconds(count: int, m: int = m, n: int = n, parts: int = parts) -> float:
            kind = cluster.kind
            return efficiency.orthogonalise_seconds(kind, iteration, m, n, count * parts, curve)

        cost = parts * iteration.flops(m, n)
        name = ", ".join(weight.name for weight in weights)
        apart = (rows // parts, parts) if parts > 1 else ()
        row = flat.setdefault(apart, len(flat))
        stacks.append(Stack(name, rows * cols, sum(counts), cost, cache(seconds), experts, row))
    return tuple(stacks)


def _units(
    model: Model,
    setting: Setting,
    cluster: Cluster,
    stacks: Sequence[Stack],
    layers: int,
    latest: float,
) -> tuple[Unit, ...]:
    """The layers of a stage, all alike, between the two ends of the model.

    A stage has its share of the ends, too, since all stages are taken alike.
    """
    ends = {"embed": 0.0, "head": 0.0}
    vectors = 0.0
    for weight in model.weights:
        lone = not weight.hidden and weight.count == 1  # also positions and the last norm
        if weight.role in ends or lone:
            ends["head" if weight.role == "head" else "embed"] += weight.params / setting.pipeline
        elif not weight.hidden:
            vectors += weight.params / model.n_layer
    dense, experts = (
        sum(stack.numbers * stack.count for stack in stacks if stack.experts == kind) / layers
        for kind in (False, True)
    )
    tokens = setting.tokens(model) * setting.pipeline / cluster.ranks / setting.microbatches
    head_flops = 6.0 * sum(weight.params for weight in model.of_roles(("head",)))
    layer_flops = max(0.0, model.flops_per_token - head_flops) / model.n_layer
    even = model.n_layer / (layers * setting.pipeline)  # layers of a mean stage over this one's
    layer = even * layer_flops * tokens / cluster.flops / latest
    head = head_flops / setting.pipeline * tokens / cluster.flops / latest
    inside = [
        Unit(f"layer {number}", layer / 3, 2 * layer / 3, dense + vectors, experts)
        for number in range(layers)
    ]
    return (
        Unit("embedding", 0.0, 0.0, ends["embed"], root=True),
        *inside,
        Unit("head", head / 3, 2 * head / 3, ends["head"], root=True),
    )
