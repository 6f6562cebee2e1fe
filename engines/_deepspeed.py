"""DeepSpeed, loaded so that nothing is compiled as it runs: neither its operators nor its Muon.

Compiling takes minutes, and a compiler, which a machine may lack. What is left are DeepSpeed's own
steps in torch's operators. DeepSpeed is not imported before an engine asks for it.
"""

import contextlib
import logging
import os
from contextlib import AbstractContextManager
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
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)
    import deepspeed

    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)  # it reports every buffer
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
        return contextlib.nullcontext()
    from deepspeed.runtime.zero.muon import original_muon

    return mock.patch.object(original_muon, "ns_compute_dtype", lambda method="gram": dtype)
