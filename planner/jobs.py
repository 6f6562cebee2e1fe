"""What one training step has to do, in seconds and numbers: the input of a simulation.

    planned = job(model, update_rules.find("muon"), Iteration(), Setting(), cluster)
    strategies.simulate(planned, "sharded", links_of(cluster))

A `Job` says nothing of where its seconds come from: `job` computes them from FLOPs and bytes, and a
test of the simulation fills in what it has measured. It is of one stage of a pipeline; all stages
are taken alike.

Left out, because it costs all optimizers the same: recomputation, tensor parallelism, what stages
send each other, and the all-to-all of tokens between experts. A bubble of the pipeline is one term:
stages - 1 microbatches, in which a rank waits.
"""

from collections.abc import Callable
from dataclasses import dataclass

BUCKET_BYTES = 25 * 2**20  # of gradients that travel together, as in torch's DDP


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
