"""The memory of a training step of a track's model, traced without memory: its peak, by kind.

    python -m planner memory --from-model gpt2 --optimizer adamw muon --engine single --ranks 1

The model, the rules and the passes are the real ones. They run on fake tensors, which have shapes
and no storage, while torch's MemTracker adds up what would be in memory. The model is uncompiled,
and one process has it. It is traced on the CPU's operators, but with the norm of a GPU, which keeps
its input for the backward pass and no float32 copies of it.

Against an H200 with the model of `gpt2` and 32 sequences (results/gpu, uncompiled): a test compares
the two. Compiled, the same GPU took as much for 64 sequences: the compiler computes parts of a
layer anew, and joins the stages of the loss. COMPILED_SHARE is what is left of it.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import optim
from engines import single
from errors import UserError
from layers import norms
from model import GPT
from optim.entrants import Entrant
from planner.race import corpora
from runtime.program import MOST_TOKENS
from speedrun import TRACKS, Options, Track, enter

# Of the uncompiled program's activations, logits and temporary tensors for as many sequences, what
# the compiled one takes: measured and traced at 64 sequences of the model of `gpt2` on an H200.
COMPILED_SHARE = 0.72
KINDS = {  # names of torch's _MemRefType
    "Parameter": "params_bytes",
    "Gradient": "grads_bytes",
    "Activation": "activations_bytes",
}


@dataclass(frozen=True)
class Peak:
    """The largest sum of bytes in a step, by kind."""

    params_bytes: int
    grads_bytes: int
    state_bytes: int
    activations_bytes: int  # of the forward pass, kept or not: also the logits
    temporary_bytes: int  # all else

    @property
    def working_bytes(self) -> int:
        """What comes on top of parameters, gradients and state."""
        return self.activations_bytes + self.temporary_bytes


class _Norm(torch.autograd.Function):
    """A norm that keeps its input and a number for each row, as a GPU's does. It has no numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, gain, x.new_empty(x.shape[:-1], dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, gain, _ = ctx.saved_tensors
        return torch.empty_like(x), None if gain is None else torch.empty_like(gain)


def _rms_norm(x: Tensor, _: Any, gain: Tensor | None = None, eps: float | None = None) -> Tensor:
    normed: Tensor = _Norm.apply(x, gain)
    return normed


@contextlib.contextmanager
def _without_memory() -> Iterator[None]:
    """A context in which tensors are fake, and nothing is compiled or drawn."""
    with (
        FakeTensorMode(),
        torch.compiler.set_stance("force_eager"),
        torch.random.fork_rng(devices=[]),
        mock.patch.object(norms.F, "rms_norm", _rms_norm),
    ):
        yield


def trace(
    track: Track, entrant: Entrant, sequences: int, dtype: torch.dtype = torch.bfloat16
) -> Peak:
    """The peak of a step whose passes have this many sequences.

    dtype: of matrix products. Raises UserError for an entrant whose rule needs numbers.
    """
    config = track.config(corpora.corpus(track.dataset).vocab_size)
    with _without_memory():
        gpt = GPT(config, Options().loss_chunk)
        gpt.use_attention("fused")
        engine = single.Engine(torch.device("cpu"), timeout=300)
        engine.model = gpt  # not by `wrap`, which would replace fake tensors
        groups = optim.plan(engine.roles(), entrant.recipe, entrant.recipe_settings, dtype)
        engine.build(groups)
        tokens = torch.zeros(sequences, track.seq_len, dtype=torch.int64)
        params = list(gpt.parameters())
        try:
            _set_gradients(params)
            engine.step()  # makes the state
            if sequences * track.seq_len < track.batch_tokens:
                _set_gradients(params)  # of the microbatch before
            tracker = MemTracker()
            tracker.track_external(gpt, *engine.optimizers)
            with tracker:
                with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
                    loss = gpt(tokens, tokens)
                engine.backward(loss / tokens.numel(), last=True)
                engine.step()
        except UserError as error:  # a decomposition without numbers
            raise UserError(
                f"{entrant.label}: cannot be traced without numbers ({error}); leave it out"
            ) from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fake tensors have no address, which it asks for
            state_bytes = engine.state_bytes()["state"]  # also what is nested in a rule's state
        (snapshot,) = tracker.get_tracker_snapshot("peak").values()
    return _by_kind({getattr(kind, "value", kind): n for kind, n in snapshot.items()}, state_bytes)


def _set_gradients(params: list[torch.nn.Parameter]) -> None:
    for p in params:
        p.grad = torch.empty_like(p)


def _by_kind(snapshot: dict[str, int], state_bytes: int) -> Peak:
    counted = {field: snapshot[name] for name, field in KINDS.items()}
    rest = snapshot["Total"] - snapshot["Optstate"] - sum(counted.values())
    return Peak(**counted, state_bytes=state_bytes, temporary_bytes=rest)


def working_bytes(track: str, recipe: str, sequences: int) -> int:
    """What a step needs beside parameters, gradients and state, with the tuned settings."""
    return trace(TRACKS[track], enter(recipe, track), sequences).working_bytes


def usual_passes(sequences: int, seq_len: int) -> int:
    """Passes of a step on a rank that has this many sequences of it, as the trainer makes them."""
    most = max(1, MOST_TOKENS // seq_len)
    return sequences // max(n for n in range(1, most + 1) if sequences % n == 0)
