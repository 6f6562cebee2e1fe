"""Forward and backward passes over this process's share of a batch, and their warm-up.

Compilation, precision, microbatches that fit the memory, CUDA graphs: how a pass is done, none of
which may change what is learned, but for rounding. `speedrun.Trainer` decides what is asked for,
when, and what is on the clock.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import muon
from engines import Engine
from errors import UserError
from model import GPT
from runtime import machine
from runtime.graphs import Captured

MOST_TOKENS = 1 << 16  # of a microbatch: a GPU is full with them, and more would not fit most
NO_COMPILER, NO_MEMORY = 1.0, 2.0  # what can go wrong in a rehearsal, the worst last


class Passes:
    """A model on a device, gone through in microbatches."""

    def __init__(
        self,
        gpt: GPT,
        engine: Engine,
        *,
        dtype: torch.dtype,
        shape: tuple[int, int],
        microbatch: int,
        compiled: bool,
        cuda_graphs: bool,
        now: Callable[[], float],
    ) -> None:
        """shape: of this process's part of a batch, (sequences, tokens). dtype: of matrix products.

        microbatch: sequences that go through the model at a time; 0: as many as fit. Raises
        UserError if it does not divide the batch, or CUDA graphs cannot be had.
        """
        self.gpt, self.engine, self.dtype, self.now = gpt, engine, dtype, now
        self.device = engine.device
        self.batch_seqs, self.seq_len = shape
        self.fits = not microbatch  # whether the microbatch may shrink
        self.tau: float | None = None  # of QK-Clip, where the entrant asks for it
        self.divide_batch(microbatch or self.divisor(max(1, MOST_TOKENS // self.seq_len)))
        self.wrapped = engine.wrap(gpt)
        self.model: Callable[..., Tensor] = self.wrapped
        self.eager = machine.compiler_missing(self.device) if compiled else "as asked"
        if not self.eager:
            self.model = torch.compile(self.wrapped, dynamic=False)
        if cuda_graphs and (self.device.type != "cuda" or engine.world_size > 1):
            raise UserError("--cuda-graphs: is for one process on a GPU; leave it out")
        self.cuda_graphs = engine.keep_grads = cuda_graphs

    def divide_batch(self, microbatch: int) -> None:
        """Go through batches in parts of `microbatch` sequences. Raises UserError."""
        if self.batch_seqs % microbatch:
            fits = self.divisor(microbatch)
            raise UserError(
                f"--microbatch {microbatch}: must divide the {self.batch_seqs} sequences of a "
                f"process; run with --microbatch {fits}"
            )
        self.microbatch = microbatch
        self.captured: Captured | None = None

    def divisor(self, most: int) -> int:
        """The largest microbatch of at most so many sequences that divides the batch."""
        return max(n for n in range(1, most + 1) if self.batch_seqs % n == 0)

    @torch.no_grad()
    def measure_logits(self, inputs: Tensor, targets: Tensor) -> None:
        """Go through a batch once more for its attention logits, which the training step hides."""
        with self.gpt.measuring():
            for part in self.parts(inputs, targets):
                self.loss(*part)

    def forward_backward(self, inputs: Tensor, targets: Tensor, last: bool = True) -> Tensor:
        """Gradients of the mean loss over these tokens, microbatch by microbatch; that loss.

        `last`: no more gradients are added before the step.
        """
        parts, total = self.parts(inputs, targets), torch.zeros((), device=self.device)
        for number, part in enumerate(parts, start=1):
            ends = last and number == len(parts)
            work = partial(self.accumulate, of=targets.numel(), last=ends)
            total += ((None if self.tau else self.captured) or work)(*part)
        return total

    def accumulate(self, inputs: Tensor, targets: Tensor, of: int, last: bool) -> Tensor:
        """Add the gradients of a microbatch's part of a mean over `of` tokens; that part."""
        with self.gpt.measuring(self.tau is not None):
            loss = self.loss(inputs, targets) / of
        self.engine.backward(loss, last=last)
        return loss.detach()

    def parts(self, inputs: Tensor, targets: Tensor) -> list[tuple[Tensor, ...]]:
        """A batch in microbatches."""
        return list(zip(*(x.split(self.microbatch) for x in (inputs, targets)), strict=True))

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over tokens, nats; matrix products in the run's precision."""
        low = self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
            return self.model(inputs, targets)

    def to_device(self, inputs: Any, targets: Any) -> tuple[Tensor, Tensor]:
        """Arrays of tokens, (sequences, tokens), as tensors where the model is."""
        return torch.as_tensor(inputs).to(self.device), torch.as_tensor(targets).to(self.device)

    def warm_up(self) -> float:
        """Compile, and touch all that a run touches, on dummy tokens; then restore all state.

        Returns the seconds it took. Falls back to eager execution if compilation fails, and to
        smaller microbatches where memory runs out: on all processes alike.
        """
        begun, self.engine.mark = self.now(), None
        saved = self.engine.save()
        while fault := self.engine.max(torch.tensor(self.rehearse())).item():
            self.engine.load(saved)
            if fault == NO_MEMORY:
                self.shrink()
            else:
                self.eager, self.model = self.eager or "compilation failed", self.wrapped
        if self.engine.world_size > 1:
            # Each has measured for itself, but replicas must round alike.
            muon.adopt_backends(self.engine.share(muon.chosen_backends()))
            dummy = torch.zeros(self.microbatch, self.seq_len, dtype=torch.int64)
            self.forward_backward(*self.to_device(dummy, dummy))
        if self.cuda_graphs and not (self.captured or self.tau):
            shape = self.microbatch, self.seq_len
            work = partial(self.accumulate, of=self.batch_seqs * self.seq_len, last=True)
            self.captured = Captured(work, shape, self.device)
        self.engine.load(saved)
        self.gpt.pop_max_logits()  # of the dummy tokens
        machine.synchronize(self.device)
        return self.now() - begun

    def rehearse(self) -> float:
        """A step on dummy tokens without communication: 0, or what went wrong in this process."""
        dummy = torch.zeros(self.microbatch, self.seq_len, dtype=torch.int64)
        inputs, targets = self.to_device(dummy, dummy)
        try:
            # A GPU's second step has the memory that is left beside the optimizers' state.
            for _ in range(2 if self.device.type == "cuda" else 1):
                self.forward_backward(inputs, targets, last=False)
                with torch.no_grad():
                    self.loss(inputs, targets)
                self.engine.step()
                if self.tau:
                    self.gpt.clip_qk(self.gpt.pop_max_logits(), self.tau)
        except RuntimeError as error:
            if machine.out_of_memory(error):
                return NO_MEMORY
            if self.eager:
                raise
            self.eager = f"compilation failed: {str(error).strip().splitlines()[0][:200]}"
            return NO_COMPILER
        return 0.0

    def shrink(self) -> None:
        """Halve the microbatch, or say that it cannot be. The result stays the same."""
        if not self.fits or self.microbatch == 1:
            smaller = max(1, self.microbatch // 2)
            raise UserError(
                f"{self.microbatch} sequences of {self.seq_len} tokens do not fit the "
                f"memory of {machine.device_name(self.device)}; run with --microbatch {smaller}"
            )
        torch.compiler.reset()  # torch compiles a function for eight shapes and no more
        torch.cuda.empty_cache()
        self.divide_batch(self.divisor(self.microbatch // 2))
