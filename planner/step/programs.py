"""What programs of a step are made of: computations, collectives, buckets of gradients, passes.

    step = Step(job, links)
    averaged = passes(step, all_reduce)
    step.update_elements(divided=False, after=averaged)
    step.program

`strategies.py` makes the program of each strategy of these.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from planner.step import dealing
from planner.step.collectives import Cost, Group, Links
from planner.step.jobs import Job, Stack, Unit
from planner.step.streams import (
    BACKWARD,
    COMMUNICATE,
    COMPUTE,
    FORWARD,
    GRADIENTS,
    ORTHOGONALISE,
    PIPELINE,
    UPDATE,
    Floats,
    Operation,
)

Done = tuple[int, ...]  # places in a program of operations that something waits for
Collective = Callable[[Links, Group, float], Cost]


class Step:
    """A program in the making."""

    def __init__(self, job: Job, links: Links) -> None:
        self.job, self.links = job, links
        self.program: list[Operation] = []
        self.last: Done = ()  # the last computation
        self._blocking: Done = ()  # communication that stops the next computation

    def compute(self, kind: str, seconds: float | Floats, after: Done = ()) -> Done:
        """Add a computation."""
        after, self._blocking = (*after, *self._blocking), ()
        self.program.append(Operation(COMPUTE, kind, seconds, after))
        self.last = (len(self.program) - 1,)
        return self.last

    def send(self, kind: str, cost: Cost, experts: bool, after: Done = ()) -> Done:
        """Add a collective of all ranks, or of each group of experts."""
        if not cost.sent_bytes:
            return ()
        groups = self.job.expert_groups if experts else 1
        if not self.job.hides:
            after = (*after, *self.last)
        self.program.append(
            Operation(COMMUNICATE, kind, cost.seconds, after, groups, cost.sent_bytes)
        )
        done = (len(self.program) - 1,)
        self._blocking = () if self.job.hides else done
        return done

    def group(self, experts: bool) -> Group:
        """The ranks that share the dense parameters, or one group's experts."""
        stride = self.job.expert_groups if experts else 1
        return self.links.group(self.job.ranks // stride, stride)

    def collect(
        self,
        kind: str,
        collective: Collective,
        experts: bool,
        total_bytes: float,
        after: Done = (),
        times: int = 1,
    ) -> Done:
        """Add a collective that takes one number of bytes, or some of them in a row."""
        cost = collective(self.links, self.group(experts), total_bytes)
        return self.send(kind, Cost(*(times * each for each in cost)), experts, after)

    def places(self, values: Floats, experts: bool) -> Floats:
        """Values of the ranks of a group as values of all ranks."""
        return np.repeat(values, self.job.expert_groups) if experts else values

    def of(self, experts: bool) -> list[Stack]:
        """The stacks of the dense matrices, or of the experts."""
        return [stack for stack in self.job.stacks if stack.experts == experts]

    def kinds(self) -> Iterator[tuple[bool, list[Stack], int]]:
        """Dense parameters and experts: their stacks, and the size of their group."""
        for experts in (False, True):
            if self.job.numbers(experts):
                yield experts, self.of(experts), self.group(experts).size

    def elements(self, experts: bool) -> float:
        """Numbers of the parameters in no stack."""
        return max(0.0, self.job.numbers(experts) - self.job.matrix_numbers(experts))

    def update_elements(self, divided: bool, after: Done = ()) -> Done:
        """Update the parameters in no stack: all of them on each rank, or a part."""
        share = sum(self.elements(x) / (size if divided else 1) for x, _, size in self.kinds())
        return self.compute(UPDATE, share * self.job.update_seconds, after)

    def orthogonalise(
        self,
        deal: Sequence[dealing.Counts],
        stacks: Sequence[Stack],
        experts: bool,
        batched: bool,
        after: Done = (),
    ) -> Done:
        """Orthogonalise and update the matrices that each rank was dealt."""
        size, total = self.group(experts).size, np.zeros(self.group(experts).size)
        for stack, counts in zip(stacks, deal, strict=True):
            total += dealing.seconds(stack, counts, batched)
        self.compute(ORTHOGONALISE, self.places(total, experts), after)
        own = dealing.numbers(stacks, deal, size) * self.job.matrix_update_seconds
        return self.compute(UPDATE, self.places(own, experts))


class Buckets:
    """Gradients that travel once enough of them are there."""

    def __init__(self, step: Step, collective: Collective) -> None:
        self.step, self.collective = step, collective
        self.waiting = {False: 0.0, True: 0.0}  # bytes, of dense parameters and of experts
        self.sent: Done = ()  # the last one; those before it have ended earlier

    def add(self, unit: Unit, ready: Done) -> None:
        """Take the gradients of a unit."""
        for experts, numbers in ((False, unit.dense), (True, unit.experts)):
            self.waiting[experts] += numbers * self.step.job.grad_number_bytes
            if self.waiting[experts] >= self.step.job.bucket_bytes:
                self._send(experts, ready)

    def flush(self, ready: Done) -> None:
        """Send what is left."""
        for experts in (False, True):
            self._send(experts, ready)

    def _send(self, experts: bool, ready: Done) -> None:
        total, self.waiting[experts] = self.waiting[experts], 0.0
        sent = self.step.collect(GRADIENTS, self.collective, experts, total, ready)
        self.sent = sent or self.sent


def passes(step: Step, collective: Collective | None, every: bool = False) -> Done:
    """The passes of replicas, and a collective for their gradients; the last operation.

    every: after each microbatch, not only after the last one.
    """
    job = step.job
    forward = sum(unit.forward_seconds for unit in job.units)
    backward = sum(unit.backward_seconds for unit in job.units)
    step.compute(PIPELINE, job.bubble_seconds)
    early = 0 if every else job.microbatches - 1
    if early:
        step.compute(FORWARD, early * forward)
        step.compute(BACKWARD, early * backward)
    if collective is None:
        step.compute(FORWARD, forward)
        return step.compute(BACKWARD, backward)
    buckets = Buckets(step, collective)
    for _ in range(job.microbatches - early):
        step.compute(FORWARD, forward)
        for unit in reversed(job.units):
            ready = step.compute(BACKWARD, unit.backward_seconds)
            buckets.add(unit, ready)
        buckets.flush(ready)
    return buckets.sent
