"""DeepSpeed, loaded so that nothing is compiled as it runs: neither its operators nor its Muon.

Compiling takes minutes, and a compiler, which a machine may lack. What is left are DeepSpeed's own
steps in torch's operators. DeepSpeed is not imported before an engine asks for it.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from errors import UserError

VERSION = "0.19.8"  # others train something else; see docs/engines.md
INSTALL = "make setup EXTRAS=deepspeed"


def load(device: torch.device) -> ModuleType:
    """The module `deepspeed`, for processes that have a process group. Raises UserError."""
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise UserError(f"--engine deepspeed: DeepSpeed is not installed; run: {INSTALL}") from None
    if found != VERSION:
        raise UserError(
            f"--engine deepspeed: DeepSpeed {found} is installed, and only {VERSION} was found to "
            f"train what it should; run: {INSTALL}"
        )
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)  # else it reports every buffer
    # torch 2.13 has a new name for a function that DeepSpeed calls by its old one.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor", FutureWarning)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer_class()
    deepspeed.init_distributed("nccl" if device.type == "cuda" else "gloo", verbose=False)
    module: ModuleType = deepspeed
    return module


def optimizer_class() -> Any:
    """DeepSpeed's Muon with Adam for the rest, not compiled."""
    from deepspeed.runtime import compiler

    with mock.patch.object(compiler, "compile", lambda: compiler.dummy_decorator):
        from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
    return MuonWithAuxAdam


def iterating_in(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """A context in which DeepSpeed's Newton-Schulz is in float32, if that is `dtype`.

    Else it is as DeepSpeed has it, which no option of its own changes: in float16 where the device
    supports it, which some processors do, and in float32 elsewhere.
    """
    if dtype != torch.float32:
        return nullcontext()
    from deepspeed.runtime.zero.muon import original_muon

    return mock.patch.object(original_muon, "ns_compute_dtype", lambda method="gram": dtype)


def forget(module: Any) -> None:
    """Take a model off the list on which stage 3 keeps all models that it has seen."""
    from deepspeed.runtime.zero import parameter_offload

    stack = parameter_offload.FWD_MODULE_STACK
    stack[:] = [each for each in stack if each is not module]


BLOCKING = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_coalesced", "broadcast",
    "reduce", "reduce_scatter", "reduce_scatter_tensor", "all_to_all_single",
)  # fmt: skip


@contextmanager
def timed(mark: Callable[[], Any] | None, intervals: list[tuple[Any, Any]]) -> Iterator[None]:
    """Within it, begin and end of what waits for DeepSpeed's collectives are added to `intervals`.

    mark: records a moment; None: nothing is added. Of a collective that runs beside computation,
    only the wait for its end counts.
    """
    if mark is None:
        yield
        return
    from deepspeed.comm import comm

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            begin = mark()
            result = method(*args, **kwargs)
            intervals.append((begin, mark()))
            if hasattr(result, "wait"):
                return _Work(result, waiting(result.wait))
            return result

        return call

    with ExitStack() as stack:
        for name in BLOCKING:
            method = getattr(comm.cdb, name)
            stack.enter_context(mock.patch.object(comm.cdb, name, waiting(method)))
        yield


class _Work:
    """A collective that runs, with a `wait` of its own."""

    def __init__(self, work: Any, wait: Callable[..., Any]) -> None:
        self._work, self.wait = work, wait

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
