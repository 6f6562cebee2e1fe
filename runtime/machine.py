"""What this machine is and can do: measured or read, never assumed.

    python -m runtime.machine           # the device, and whether it has bfloat16 units
    python -m runtime.machine --gpus    # how many GPUs torch will use

Names, precision, the peak of a matrix product, memory, compiler. The decisions are in speedrun.py.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import platform
import random
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from errors import UserError
from host import cgroups, entry, launcher
from host.cores import cores

MATRIX_UNITS = ("tensor cores", "amx_bf16")  # several times as fast in bfloat16 as in float32
_STATUS = Path("/proc/self/status")
DRIVERS = (Path("/proc/driver/nvidia/gpus"), Path("/dev/kfd"))  # there is a GPU, of NVIDIA or AMD
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
          "NVIDIA_VISIBLE_DEVICES")  # fmt: skip


def local_device() -> torch.device:
    """The GPU of this process, one for each of torchrun's on a machine; else the CPU.

    Raises UserError if torchrun started more processes than torch sees GPUs.
    """
    index, count = launcher.number("LOCAL_RANK", 0), gpus()
    if index >= count > 0:
        raise UserError(
            f"LOCAL_RANK={index}: torchrun started more processes than the {count} GPUs that torch "
            f"sees; run with --nproc_per_node={count}"
        )
    return torch.device("cuda", index) if count else torch.device("cpu")


def gpus() -> int:
    """The GPUs that torch will use.

    Those that are hidden from it (CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES), that its build cannot
    use, or that their driver is too old for are none, whatever the system lists.
    """
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def why_no_gpu() -> str:
    """Why torch uses none of the GPUs that this machine has; empty if it has none, or uses one."""
    if gpus() or not any(path.exists() for path in DRIVERS):
        return ""
    hidden = [name for name in HIDING if name in os.environ]
    if torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) is built for the CPU alone"
    if hidden:
        return ", ".join(f"{name}={os.environ[name]}" for name in hidden)
    return "its driver does not answer, or is too old for this torch"


def patience_note(device: torch.device, flops: float, peak: float) -> str:
    """That something takes days, where it does; else empty.

    flops: of its matrix products. peak: FLOP/s that the device, or all of them together, can do.
    """
    days = flops / peak / 86400
    if days < 1:
        return ""
    note = f"at the full speed of {device_name(device)} this takes at least {days:,.0f} days"
    why = why_no_gpu()
    return f"{note}; torch uses no GPU: {why}" if why else f"{note}; Ctrl-C stops"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    unit = "core" if cores() == 1 else "cores"
    return f"{names[0] if names else platform.machine()}, {cores()} {unit}"


def threads() -> int:
    """CPU threads that leave each of torchrun's processes on this machine its share of cores."""
    return max(1, cores() // launcher.number("LOCAL_WORLD_SIZE", 1))


def matmul_flops(device: torch.device, dtype: torch.dtype, n: int, repeats: int) -> float:
    """FLOP/s of an (n n) x (n n) product: the median of `repeats`, after one untimed."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 1):
        synchronize(device)
        begun = time.perf_counter()
        torch.mm(a, b)
        synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return 2 * n**3 / statistics.median(seconds[1:])


def bfloat16_units(device: torch.device) -> list[str]:
    """What computes matrix products in bfloat16, as the system names it; empty: it is emulated.

    ONEDNN_MAX_CPU_ISA turns a processor's units off: AVX2 all, AVX512_CORE_BF16 those for matrices.
    """
    if device.type == "cuda":
        return ["tensor cores"] if torch.cuda.is_bf16_supported(including_emulation=False) else []
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text("utf-8", "replace") if cpuinfo.exists() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    names: list[str] = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in ("AVX", "AVX512_CORE", "AVX512_CORE_VNNI") or limit.startswith(("SSE", "AVX2")):
        return []
    if limit.startswith(("AVX512_CORE_", "AVX10_1")) and "AMX" not in limit:
        names = [name for name in names if name not in MATRIX_UNITS]
    return names


def seed_random(seed: int) -> None:
    """Begin the random numbers of torch, of Python and of NumPy anew."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_state(device: torch.device) -> list[Any]:
    """The state of these random numbers, for `set_random_state`."""
    numpy: Any = np.random.get_state(legacy=False)
    key = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    of_numpy = [key, numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"]]
    state = [torch.get_rng_state(), random.getstate(), of_numpy]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(device: torch.device, state: list[Any]) -> None:
    """Let random numbers be drawn as they would have been when `random_state` was called."""
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    key, *rest = state[2]
    np.random.set_state(("MT19937", key.numpy().astype(np.uint32), *rest))
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[3], device)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the GPU has; without a GPU those that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limits = [limit for limit, _ in cgroups.memory_limits()]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def keep_memory() -> None:
    """Let this process keep the memory that a step frees, for the next step, until `free_memory`.

    Otherwise glibc gives large tensors back to the system, which then clears their pages anew in
    each step: up to 25 ms of it on the track `tiny`. Nothing where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 32 << 20)  # the most that is allowed
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def free_memory() -> None:
    """Give back to the system what was freed, so that a run's peak holds nothing of the last run.

    On a CPU the process keeps such memory, and counts it. Nothing where the C library is not glibc.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` count from now, where the system allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux: resets VmHWM. Where that is refused, the peak counts the whole process so
        # far.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", "utf-8")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the GPU's allocator held, or the process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not tell."""
    return _status_bytes("VmRSS:")


def _status_bytes(key: str) -> int:
    lines = _STATUS.read_text("utf-8", "replace").splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def compiler_missing(device: torch.device) -> str:
    """Why torch.compile cannot work here; empty if it can. A CPU needs a C++ compiler."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in candidates if name):
        return "no C++ compiler found"
    return ""


@cache
def load_compiler() -> None:
    """Import torch's compiler, which its optimizers need too. Raises UserError.

    At its import it makes the folder of its cache. What libraries have made until then stays, so
    that garbage is never looked for in it: that would take a quarter of a second in each run.
    """
    try:
        import_module("torch._dynamo")
    except OSError as error:
        name = "TORCHINDUCTOR_CACHE_DIR"
        raise UserError(
            f"{name}={os.environ.get(name, '')}: torch cannot write there ({error}); "
            f"unset {name}, or set it to a folder of yours"
        ) from error
    gc.freeze()


def command(given: argparse.Namespace) -> None:
    """Print the device, and whether it has bfloat16 units; or the number of GPUs alone."""
    if given.gpus:
        print(gpus())
        return
    here = local_device()
    units = ", ".join(bfloat16_units(here))
    print(f"{device_name(here)}; bfloat16 units: {units or 'none'}")
    if why_no_gpu():
        print(f"torch uses none of the GPUs that are here: {why_no_gpu()}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    parser = entry.parser("runtime.machine", __doc__)
    note = "print how many GPUs torch will use, and nothing else"
    parser.add_argument("--gpus", action="store_true", help=note)
    return entry.run(parser, argv, command)


if __name__ == "__main__":
    sys.exit(main())
