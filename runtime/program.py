"""The compiled program: one model's forward and backward passes on this machine.

It compiles the model once for all runs, divides a batch into microbatches that fit the memory, and
may replay passes as CUDA graphs. None of this changes what is learned, but for rounding. The
training step, which calls it, is `Trainer.step` in speedrun.py.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
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
from runtime.memory import CrowdedError, available_bytes

MOST_TOKENS = 1 << 16  # of a microbatch: enough to fill a GPU, and more would not fit most
NO_COMPILER, NO_MEMORY = 1.0, 2.0  # what can go wrong in `try_step`, the worst last
REASON_MOST = 200  # characters of what is said about an error
SWITCHED_OFF = "torch.compile is switched off, or gave up without an error"


class UncompiledError(Exception):
    """Compilation fails for a run, although runs that take turns with it are compiled."""


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
        if not engine.compiles:
            eager_reason = eager_reason or f"the engine {engine.name} is not compiled"
        self.eager_reason = eager_reason
        machine.load_compiler()
        if missing := not eager_reason and self._shared(machine.compiler_missing(self.device)):
            self.run_eagerly(missing)
        elif not eager_reason:
            self.model = torch.compile(self.wrapped, dynamic=False)
        plain = engine.world_size == 1 and engine.compiles  # no hooks of an engine in the passes
        if cuda_graphs and not (plain and self.device.type == "cuda"):
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

    # ---- Compiled or not -------------------------------------------------------------------------

    def run_eagerly(self, reason: str) -> None:
        """Run the model uncompiled from now on, and say so. reason: why."""
        if not self.eager_reason and self.engine.rank == 0:
            print(
                f"{reason}: the model runs uncompiled, which is slower, and the rows say so; "
                "to compile, mend it and start a new race",
                file=sys.stderr,
                flush=True,
            )
        self.eager_reason, self.model = reason, self.wrapped

    def observed(self) -> str:
        """Why passes since the warm-up were not compiled, on any process; empty: all were.

        Counted, not believed: torch.compile has many ways to run a model uncompiled.
        """
        passes = torch.tensor(float(self.gpt.eager_passes))
        count = int(self.engine.all_reduce_max(passes).item())
        return self.eager_reason or (f"{count} passes ran uncompiled" if count else "")

    def _shared(self, text: str) -> str:
        """On all processes: the text of the last process that has one."""
        last = self.engine.all_reduce_max(torch.tensor((self.engine.rank + 1.0) * bool(text)))
        mine = text if last.item() == self.engine.rank + 1 else ""
        codes = torch.zeros(REASON_MOST)
        for index, letter in enumerate(mine[:REASON_MOST]):
            codes[index] = ord(letter)
        return "".join(chr(int(code)) for code in self.engine.all_reduce_max(codes) if code)

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

    def setup(self) -> dict[str, Any]:
        """What this machine's memory and speed have chosen, for `adopt`: it can be written as JSON.

        None of it is a column of a row, since it changes the results by rounding alone.
        """
        chosen = muon.chosen_backends().items()
        backends = [[[_plain(part) for part in key], name] for key, name in chosen]
        return {"microbatch": self.microbatch, "newton_schulz": backends}

    def adopt(self, setup: Mapping[str, Any]) -> None:
        """Take over what `setup` returned in an earlier part of the same race. Raises UserError."""
        chosen = {tuple(map(_back, key)): name for key, name in setup.get("newton_schulz", ())}
        for name in chosen.values():
            if name not in muon.BACKENDS:
                raise UserError(
                    f"--resume: the race took Newton-Schulz {name}, which is not here; install "
                    "what it needs (triton), or start a new race without --resume"
                )
        muon.adopt_backends(chosen)
        if self.auto_microbatch and "microbatch" in setup:
            self.set_microbatch(self.divisor(setup["microbatch"]))  # of another world size, perhaps

    # ---- Warm-up ---------------------------------------------------------------------------------

    def warm_up(self, tau: float | None, alone: bool = True, reserve: int = 0) -> None:
        """Compile, and touch all that a run touches, on dummy tokens; then restore all state.

        Falls back to eager execution if compilation fails, and to smaller microbatches where the
        memory does not suffice: on all processes alike. tau: of QK-Clip; None: the run does not
        clip. alone: no other run is alive; else raises CrowdedError in place of shrinking, and
        UncompiledError in place of running eagerly beside runs that are compiled.
        reserve: bytes on a GPU that the other runs will need for their optimizers' state.
        """
        saved, self.captured = self.engine.save(), None
        self.failure = ""
        while fault := self._fault(tau, reserve):
            self.engine.load(saved)
            if fault == NO_MEMORY and not alone:
                raise CrowdedError
            if fault == NO_MEMORY:
                self.halve_microbatch()
            else:
                self.run_eagerly(self._shared(self.failure))
                if not alone:
                    raise UncompiledError
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
        self.gpt.eager_passes = 0
        self.state_bytes = self.engine.state_bytes()["state"]
        self.engine.load(saved)
        self.gpt.pop_max_logits()  # of the dummy tokens
        machine.synchronize(self.device)

    def _fault(self, tau: float | None, reserve: int) -> float:
        """The worst that goes wrong in a step of any process; 0: nothing."""
        with self.engine.alone(self.wrapped):
            mine = self.try_step(tau, reserve)
        return self.engine.all_reduce_max(torch.tensor(mine)).item()

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
                if not self._passes(inputs, targets, tau):
                    return NO_COMPILER
                self.engine.step()
                if tau is not None:
                    with self.engine.weights():
                        self.gpt.clip_qk(self.gpt.pop_max_logits(), tau)
        except (RuntimeError, MemoryError) as error:
            if not engines.out_of_memory(error):
                raise
            return NO_MEMORY
        return 0.0

    def _passes(self, inputs: Tensor, targets: Tensor, tau: float | None) -> bool:
        """The passes of a step; whether they ran as they should, compiled or not.

        What a compiler and the code that it made may raise has no end: a disk without room or
        without the right to execute, a header that is missing, a lock.
        """
        before = self.gpt.eager_passes
        try:
            with self.gpt.measuring(tau is not None):
                self._launch(inputs, targets, of=targets.numel(), last=False)
            with torch.no_grad():
                self.loss(inputs, targets)
        except Exception as error:
            if self.eager_reason or engines.out_of_memory(error):
                raise
            self.failure = f"compilation failed: {_why(error)}"
            return False
        if not self.eager_reason and self.gpt.eager_passes > before:
            self.failure = SWITCHED_OFF
            return False
        return True


def require_room(programs: Sequence[Program]) -> None:
    """Raise CrowdedError if the memory does not hold one more program like these.

    It needs at least its weights, their gradients and two moments, beside the state that the
    others will have.
    """
    first = programs[0]
    least = 4 * first.engine.state_bytes()["params"]
    least += sum(each.state_bytes for each in programs)
    short = torch.tensor(float(available_bytes(first.device) < least))
    if first.engine.all_reduce_max(short).item():
        raise CrowdedError


def run_eagerly(programs: Sequence[Program]) -> None:
    """Let all of these run uncompiled, because one of them does: their runs are compared."""
    reason = next(each.eager_reason for each in programs if each.eager_reason)
    for each in programs:
        each.eager_reason = each.eager_reason or reason
        each.model = each.wrapped


def _why(error: Exception) -> str:
    """What an error of a compiler says, in a line: how it begins, and the first error in it."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("backend=")]  # torch's wrapping
    first = lines[0] if lines else type(error).__name__
    words = ("error:", "cannot ", "no space ", "permission ", "failed to ")
    details = [line for line in lines[1:] if any(word in line.lower() for word in words)]
    return ": ".join([first.rstrip(":"), *details[:1]])[:REASON_MOST]


def _plain(part: Any) -> Any:
    return str(part) if isinstance(part, torch.dtype) else part


def _back(part: Any) -> Any:
    """What `_plain` was given, from JSON, which has no tuples."""
    if isinstance(part, list):
        return tuple(map(_back, part))
    is_dtype = isinstance(part, str) and part.startswith("torch.")
    return getattr(torch, part.removeprefix("torch.")) if is_dtype else part
