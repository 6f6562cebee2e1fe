"""What this machine is and can do: measured or read, never assumed.

    python -m runtime.machine    # the device, and whether it has bfloat16 units

Names, precision, the peak of a matrix product, memory, compiler. The decisions are in speedrun.py.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import platform
import resource
import shutil
import statistics
import time
from importlib import import_module
from pathlib import Path

import torch

from errors import UserError

MATRIX_UNITS = ("tensor cores", "amx_bf16")  # several times as fast in bfloat16 as in float32
_STATUS = Path("/proc/self/status")


def local_device() -> torch.device:
    """The GPU of this process, one for each of torchrun's on a machine; else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the cores that this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    unit = "core" if cores() == 1 else "cores"
    return f"{names[0] if names else platform.machine()}, {cores()} {unit}"


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """CPU threads that leave each of torchrun's processes on this machine its share of cores."""
    return max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


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
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    names: list[str] = [name for name in ("avx512_bf16", "amx_bf16") if name in flags]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in ("AVX", "AVX512_CORE", "AVX512_CORE_VNNI") or limit.startswith(("SSE", "AVX2")):
        return []
    if limit.startswith(("AVX512_CORE_", "AVX10_1")) and "AMX" not in limit:
        names = [name for name in names if name not in MATRIX_UNITS]
    return names


def random_state(device: torch.device) -> list[torch.Tensor]:
    """The state of torch's random numbers, for `set_random_state`."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    """Let torch draw random numbers as it would have when `random_state` was called."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that the GPU has, or the machine where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the GPU's allocator held, or the process where there is no GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM:") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_memory() -> int:
    """Bytes that this process holds now; 0 where the system does not tell."""
    return _status_bytes("VmRSS:")


def _status_bytes(key: str) -> int:
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def out_of_memory(error: RuntimeError) -> bool:
    """Whether this is a lack of memory, also where a library or a compiler says it its own way."""
    words = ("out of memory", "can't allocate memory", "ALLOC_FAILED")  # CUDA, CPU, cuBLAS
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


def compiler_missing(device: torch.device) -> str:
    """Why torch.compile cannot work here; empty if it can. A CPU needs a C++ compiler."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(name) for name in candidates if name):
        return "no C++ compiler found"
    return ""


def load_compiler() -> None:
    """Import torch's compiler, which its optimizers need too. Raises UserError.

    At its import it makes the folder of its cache.
    """
    try:
        import_module("torch._dynamo")
    except OSError as error:
        name = "TORCHINDUCTOR_CACHE_DIR"
        raise UserError(
            f"{name}={os.environ.get(name, '')}: torch cannot write there ({error}); "
            f"unset {name}, or set it to a folder of yours"
        ) from error


def main() -> None:
    """Print the device, and whether it has bfloat16 units."""
    parser = argparse.ArgumentParser(prog="python -m runtime.machine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.parse_args()
    here = local_device()
    units = ", ".join(bfloat16_units(here))
    print(f"{device_name(here)}; bfloat16 units: {units or 'none'}")


if __name__ == "__main__":
    main()
