"""Data parallelism whose optimizers are divided: each process updates what it owns (ZeRO-1).

    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=8 speedrun.py --engine sharded

Every process holds all parameters and gradients, and 1/N of the optimizers' state and work. After
the backward pass each gradient is summed where its owner is; the owner updates the parameter and
sends it to all. That is as much traffic as averaging all gradients everywhere takes.

A rule that treats each entry by itself (`_rules.is_elementwise`) has its parameters as one row of
numbers, cut evenly. Any other rule is given whole parameters, stacked by shape, and those that do
not divide by N have owners who share the cost of Newton-Schulz: `host/owners.py`, `_buffers.py`.

What is hidden: while one buffer's parameters are updated, the next ones' gradients are still
summed and the last ones' parameters are sent. Nothing is hidden behind the backward pass, in which
a stack is complete only when the first layer is. A rule that computes a number from all its
parameters is refused (`_coupled.py`). A parameter that a microbatch does not use has a gradient of
zeros, not none. A rule that draws random numbers draws others than on one process, since each
process draws for what it owns. A rule that fails, fails on the owner alone; the others then lose
contact. Agrees with `single` up to the rounding of the average.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from engines import Flat, Owned, PlannedGroup, _coupled, _rules, ddp
from engines._buffers import Buffer, lay_out


class Engine(ddp.Engine):
    """See `engines.Engine`."""

    name = "sharded"
    _buffers: Sequence[Buffer] = ()
    _alone = False

    def another(self) -> Self:
        other = copy(self)
        other.exposed_communication, other.mark = [], None
        other._buffers = ()  # which are this engine's
        other.build(())
        return other

    def wrap(self, model: nn.Module) -> nn.Module:
        self.place_alike(model)
        return self.model

    @contextmanager
    def alone(self, wrapped: Any) -> Iterator[None]:
        self._alone = True
        try:
            yield
        finally:
            self._alone = False

    def build(self, plan: Sequence[PlannedGroup]) -> None:
        """Lay out the parameters for a plan; the empty plan gives each its own memory again.

        One optimizer for each buffer of which this process owns something. Raises UserError for a
        rule that couples its parameters.
        """
        self.plan, self.stepped, self._averaged = plan, False, False
        self.optimizers = []  # frees the earlier ones first
        for buffer in self._buffers:
            buffer.free()
        self._buffers = ()
        if self.world_size > 1:
            _coupled.refuse(plan, self.name)
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            _rules.build(plan)  # so that every process refuses what one would
        self._buffers = lay_out(plan, self.rank, self.world_size, self.group)
        self._construct()

    def _construct(self) -> None:
        self.optimizers = []
        for buffer in self._buffers:
            buffer.construct()
            self.optimizers += buffer.optimizers

    @property
    def owned(self) -> list[Owned]:
        pieces = {id(each.param): each for buffer in self._buffers for each in buffer.pieces}
        return [
            Owned(number, pieces[id(p)].name, pieces[id(p)].start, pieces[id(p)].stop, p)
            for number, optimizer in enumerate(self.optimizers)
            for group in optimizer.param_groups
            for p in group["params"]
        ]

    def backward(self, loss: Tensor, last: bool) -> None:
        self._watch.beat()
        loss.backward()
        if last and not self._alone:
            self._averaged = True
            for buffer in self._buffers:
                buffer.reduce()

    def wait(self) -> None:
        with self._exposed(any(buffer.reducing for buffer in self._buffers)):
            for buffer in self._buffers:
                buffer.finish()

    def step(self) -> None:
        """Update what this process owns, and exchange it if the gradients have been averaged."""
        self._watch.beat()
        self.stepped, self.broke = True, None
        sending: list[Any] = []
        for buffer in self._buffers:
            with self._exposed(bool(buffer.reducing)):
                buffer.finish()
            self.broke = _rules.step(buffer.optimizers) or self.broke
            buffer.settle()
            if self._averaged:
                sending += buffer.gather()
        with self._exposed(bool(sending)):
            for work in sending:
                work.wait()
        self._clear()

    @contextmanager
    def _exposed(self, waits: bool) -> Iterator[None]:
        """Note that communication within is hidden by no computation, if it waits at all."""
        begin = self.mark() if self.mark and waits else None
        yield
        if self.mark and waits:
            self.exposed_communication.append((begin, self.mark()))

    def _clear(self) -> None:
        """End a step, or give it up: the gradients are zero."""
        for buffer in self._buffers:
            buffer.finish()
        self._averaged = False
        _rules.clear(self.optimizers)
        for buffer in self._buffers:
            buffer.clear()

    def grad_norm(self) -> float:
        """L2 norm of the whole averaged gradient; waits for the averages."""
        for buffer in self._buffers:
            buffer.finish()
        own = [piece.grad for buffer in self._buffers for piece in buffer.pieces]
        norm = torch.nn.utils.get_total_norm(own).to(self.device, torch.float64)
        return float((self.all_reduce_mean(norm.square()) * self.world_size) ** 0.5)

    def gradients(self) -> list[Flat]:
        pieces = [piece for buffer in self._buffers for piece in buffer.pieces]
        return [Flat(piece.name, piece.start, piece.grad.flatten()) for piece in pieces]

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """As in `engines.Engine`; every process validates what the owners of the weights would."""
        switched = [each for each in self._buffers if _rules.has_modes(each.rule)]
        trained = [buffer.values.clone() for buffer in switched]
        try:
            with _rules.evaluation(self.optimizers):
                for buffer in switched:
                    buffer.settle()
                    for work in [] if self._alone else buffer.gather():
                        work.wait()
                yield
        finally:
            for buffer, values in zip(switched, trained, strict=True):
                buffer.settle()
                buffer.values.copy_(values)

    def load(self, saved: dict[str, Any]) -> None:
        self._clear()
        self.model.load_state_dict(saved["model"])
        self._construct()  # not all that a rule remembers is in its state dict
        self.stepped = saved["optimizers"] is not None
        if self.stepped:
            for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                _rules.restore(optimizer, deepcopy(state))  # which keeps the tensors
