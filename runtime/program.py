"""The compiled program: one model's forward and backward passes on this machine.

It compiles the model once for all runs, divides a batch into microbatches that fit the memory, and
may replay passes as CUDA graphs. None of this changes what is learned, but for rounding. The
training step, which calls it, is `Trainer.step` in speedrun.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import engines
import muon
from engines import Engine
from errors import UserError
from model import GPT
from runtime import machine
from runtime.graphs import Captured
from runtime.memory import CrowdedError

MOST_TOKENS = 1 << 16  # of a microbatch: enough to fill a GPU, and more would not fit most
NO_COMPILER, NO_MEMORY = 1.0, 2.0  # what can go wrong in `try_step`, the worst last


class Program:
    """Forward and backward passes of a model, a microbatch at a time."""

    def __init__(
        self,
        gpt: GPT,
        engine: Engine,
        *,
        dtype: torch.dtype,
        shape: tuple[int, int],
        microbatch: int,
        eager_reason: str,
        cuda_graphs: bool,
    ) -> None:
        """dtype: of matrix products. shape: of this process's part of a batch, (B T).

        microbatch: sequences of a pass; 0: the most that fit the memory. eager_reason: why the
        model runs uncompiled; empty: compile it. A model that is like one compiled before takes
        the same compiled code. Raises UserError if the microbatch does not divide B, or if CUDA
        graphs cannot be had.
        """
        self.gpt, self.engine, self.dtype, self.device = gpt, engine, dtype, engine.device
        self.batch_seqs, self.seq_len = shape
        self.auto_microbatch = not microbatch  # then it may shrink
        self.set_microbatch(microbatch or self.divisor(max(1, MOST_TOKENS // self.seq_len)))
        self.wrapped = engine.wrap(gpt)
        self.model: Callable[..., Tensor] = self.wrapped
        self.eager_reason = eager_reason or machine.compiler_missing(self.device)
        if not self.eager_reason:
            self.model = torch.compile(self.wrapped, dynamic=False)
        if cuda_graphs and (self.device.type != "cuda" or engine.world_size > 1):
            raise UserError("--cuda-graphs: is for one process on a GPU; leave it out")
        self.cuda_graphs = engine.keep_grads = cuda_graphs
        self.state_bytes = 0  # optimizer state of a run, from its warm-up on

    # ---- Passes ----------------------------------------------------------------------------------

    def microbatches(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """A batch (B T) in parts of `microbatch` sequences."""
        size = self.microbatch
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Forward pass: the loss summed over tokens, nats; matrix products in `dtype`."""
        with self.precision():
            return self.model(inputs, targets)

    def precision(self) -> torch.autocast:
        """A context in which matrix products are in `dtype`."""
        low = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=low)

    def forward_backward(self, inputs: Tensor, targets: Tensor, of: int, last: bool) -> Tensor:
        """Add the gradients of a microbatch's part of a mean loss.

        of: tokens that the mean is over. last: no more gradients are added before the step.
        Returns that part of the mean loss.
        """
        if self.captured is not None:
            return self.captured(inputs, targets)
        return self._launch(inputs, targets, of, last)

    def _launch(self, inputs: Tensor, targets: Tensor, of: int, last: bool) -> Tensor:
        loss = self.loss(inputs, targets) / of
        self.engine.backward(loss, last=last)
        return loss.detach()

    def to_device(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Arrays of tokens (B T) as tensors where the model is."""
        return torch.as_tensor(inputs).to(self.device), torch.as_tensor(targets).to(self.device)

    # ---- Microbatches ----------------------------------------------------------------------------

    def set_microbatch(self, microbatch: int) -> None:
        """Go through batches in parts of `microbatch` sequences. Raises UserError."""
        if self.batch_seqs % microbatch:
            raise UserError(
                f"--microbatch {microbatch}: must divide the {self.batch_seqs} sequences of a "
                f"process; run with --microbatch {self.divisor(microbatch)}"
            )
        self.microbatch = microbatch
        self.captured: Captured | None = None

    def divisor(self, most: int) -> int:
        """The largest microbatch of at most `most` sequences that divides the batch."""
        return max(n for n in range(1, most + 1) if self.batch_seqs % n == 0)

    def halve_microbatch(self) -> None:
        """Take smaller microbatches. Raises UserError where the user fixed their size, or at 1."""
        if not self.auto_microbatch or self.microbatch == 1:
            count, device = self.microbatch, machine.device_name(self.device)
            if count == 1:
                raise UserError(
                    f"1 sequence of {self.seq_len} tokens does not fit the memory of {device}; run "
                    "with a smaller --width or --seq-len, or on a device with more memory"
                )
            raise UserError(
                f"{count} sequences of {self.seq_len} tokens do not fit the memory of {device}; "
                f"run with --microbatch {self.divisor(count // 2)}"
            )
        torch.compiler.reset()  # torch compiles a function for eight shapes and no more
        torch.cuda.empty_cache()
        self.set_microbatch(self.divisor(self.microbatch // 2))

    # ---- Warm-up ---------------------------------------------------------------------------------

    def warm_up(self, tau: float | None, alone: bool = True, reserve: int = 0) -> None:
        """Compile, and touch all that a run touches, on dummy tokens; then restore all state.

        Falls back to eager execution if compilation fails, and to smaller microbatches where the
        memory does not suffice: on all processes alike. tau: of QK-Clip; None: the run does not
        clip. alone: no other run holds memory; else raises CrowdedError in place of shrinking.
        reserve: bytes on a GPU that the other runs will need for their optimizers' state.
        """
        saved, self.captured = self.engine.save(), None
        while fault := self.engine.all_reduce_max(torch.tensor(self.try_step(tau, reserve))).item():
            self.engine.load(saved)
            if fault == NO_MEMORY and not alone:
                raise CrowdedError
            if fault == NO_MEMORY:
                self.halve_microbatch()
            else:
                self.eager_reason = self.eager_reason or "compilation failed"
                self.model = self.wrapped
        tokens = self.batch_seqs * self.seq_len
        if self.engine.world_size > 1:
            # Each rank has measured its fastest Newton-Schulz; replicas must round alike.
            muon.adopt_backends(self.engine.broadcast(muon.chosen_backends()))
            self._launch(*self._dummies(), of=tokens, last=True)  # with its communication
        if self.cuda_graphs and tau is None:
            work = partial(self._launch, of=tokens, last=True)
            try:
                self.captured = Captured(work, (self.microbatch, self.seq_len), self.device)
            except RuntimeError as error:
                if alone or not engines.out_of_memory(error):
                    raise
                raise CrowdedError from None
        self.state_bytes = self.engine.state_bytes()["state"]
        self.engine.load(saved)
        self.gpt.pop_max_logits()  # of the dummy tokens
        machine.synchronize(self.device)

    def rehearse(self, tau: float | None) -> None:
        """A step on dummy tokens that leaves weights and state as they were."""
        saved = self.engine.save()
        fault = self.try_step(tau)
        assert not fault, "the warm-up has made this step before"
        self.engine.load(saved)
        self.gpt.pop_max_logits()

    def _dummies(self) -> tuple[Tensor, Tensor]:
        # Two tensors: for one tensor in both places torch.compile makes another program than for a
        # batch, which would then be compiled in the first step, on the clock.
        shape = self.microbatch, self.seq_len
        return self.to_device(*(torch.zeros(shape, dtype=torch.int64) for _ in range(2)))

    def try_step(self, tau: float | None, reserve: int = 0) -> float:
        """A step on dummy tokens without communication: 0, or what went wrong in this process.

        reserve: bytes that stay free on a GPU.
        """
        inputs, targets = self._dummies()
        try:
            if self.device.type == "cuda":
                room = torch.empty(reserve, dtype=torch.uint8, device=self.device)  # noqa: F841
            # A GPU's second step has the memory that is left beside the optimizers' state.
            for _ in range(2 if self.device.type == "cuda" else 1):
                with self.gpt.measuring(tau is not None):
                    self._launch(inputs, targets, of=targets.numel(), last=False)
                with torch.no_grad():
                    self.loss(inputs, targets)
                self.engine.step()
                if tau is not None:
                    self.gpt.clip_qk(self.gpt.pop_max_logits(), tau)
        except RuntimeError as error:
            if engines.out_of_memory(error):
                return NO_MEMORY
            if self.eager_reason:
                raise
            self.eager_reason = f"compilation failed: {str(error).strip().splitlines()[0][:200]}"
            return NO_COMPILER
        return 0.0
