"""What the Triton kernels take of a GPU, from their machine code: no GPU is needed.

    python -m bench.kernels    # two minutes on a CPU; needs triton

Triton compiles the kernels for each of GPUS. The table is read from the machine code: registers of
a thread, bytes that spill from them, shared memory of a block. An SM can hold only so many blocks
at once; "occupancy" is the part of its warps that they are. The code is what a run launches on that
GPU: `optim.kernels.iterate` runs here as it is, on tensors without storage, and only the last step
of a launch is left out.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import Row, run, write
from bench.newton_schulz import BATCHES
from errors import UserError
from muon import COEFFICIENTS
from optim.kernels import TILES, Tile, iterate

DTYPES = (torch.bfloat16, torch.float32)  # those of `--dtype`
TWO_STEPS = COEFFICIENTS["jordan"] * 2  # the first takes the X that it is given, the second its own


@dataclass(frozen=True)
class Gpu:
    """A GPU's limits, by its compute capability, such as 90 for 9.0."""

    name: str
    capability: int
    warps_per_sm: int
    blocks_per_sm: int
    shared_kib_per_sm: int
    shared_kib_per_block: int


# Source: CUDA Programming Guide 13, "Technical Specifications per Compute Capability".
GPUS = (
    Gpu("A100", 80, 64, 32, 164, 163),
    Gpu("A10, RTX 3090", 86, 48, 16, 100, 99),
    Gpu("L40S, RTX 4090", 89, 48, 24, 100, 99),
    Gpu("H100, H200", 90, 64, 32, 228, 227),
    Gpu("B200", 100, 64, 32, 228, 227),
    Gpu("RTX 5090", 120, 48, 24, 100, 99),
)
# The same for all of them. A quarter of an SM has its own registers, and gives them to its warps
# in units. What an SM's tensor cores sum up is in columns of tensor memory, on B200 alone.
QUARTERS, REGISTERS_PER_QUARTER, REGISTER_UNIT = 4, 16_384, 256
SHARED_UNIT, SHARED_RESERVED = 128, 1_024  # bytes; the system reserves some for each block
TENSOR_COLUMNS = 512


class Usage(NamedTuple):
    """What a block of a kernel takes."""

    registers: int  # of a thread
    spilled_bytes: int  # of a thread
    warps: int
    shared_bytes: int
    tensor_columns: int


class Compiled(NamedTuple):
    """A product as a run launches it on a GPU."""

    product: str
    usage: Usage
    ptx: str


class AbsentGpu:
    """Stands in for Triton's driver of a GPU: launches end here, after compilation and checks.

    Triton itself raises OutOfResources for a kernel that takes more than `gpu` has.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.utils = self

    def get_current_device(self) -> int:
        return self.gpu.capability  # Triton keeps the kernels of each device apart

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.gpu.capability, warp_size=32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 1024 * self.gpu.shared_kib_per_block}

    def launcher_cls(self, source: object, metadata: object) -> Any:
        return lambda *arguments: None

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        registers, spilled_bytes = registers_of(code)
        threads = 32 * QUARTERS * (REGISTERS_PER_QUARTER // _rounded(32 * registers, REGISTER_UNIT))
        return code, name, registers, spilled_bytes // 4, min(1024, threads)


def registers_of(code: bytes) -> tuple[int, int]:
    """Registers of a thread in machine code, and the bytes that spill from them."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    numbers = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", said)
    assert numbers is not None, said
    registers, stack, local = map(int, numbers.groups())
    return registers, stack + local  # the kernels have no arrays, which would be there too


def check_triton() -> None:
    """Raise UserError where kernels cannot be compiled."""
    if not find_spec("triton"):
        raise UserError(
            "triton is not installed, and compiles the kernels; on Linux, run: pip install triton"
        )
    from optim.kernels.symmetric import interpreted

    if interpreted():
        raise UserError(
            "TRITON_INTERPRET is set: kernels are interpreted, not compiled; run with "
            "TRITON_INTERPRET=0"
        )


def compiled(gpu: Gpu, tile: Tile, batches: Iterable[Tensor]) -> list[Compiled]:
    """All that iterations on these batches (K m n) launch on this GPU.

    The batches are on the device "meta". Afterwards this process can launch no kernel.
    """
    from triton.runtime import driver

    from optim.kernels.symmetric import _product

    _product.device_caches.pop(gpu.capability, None)
    driver.set_active(AbsentGpu(gpu))
    for batch in batches:
        iterate(batch, TWO_STEPS, tile)
    kernels, *_ = _product.device_caches[gpu.capability]
    added = (_product.arg_names.index("ADD_X"),)
    return [
        Compiled(
            "c A A + b A" if kernel.src.constants[added] else "X X^T",
            Usage(
                kernel.n_regs,
                4 * kernel.n_spills,
                kernel.metadata.num_warps,
                kernel.metadata.shared,
                getattr(kernel.metadata, "tmem_size", None) or 0,
            ),
            kernel.asm["ptx"],
        )
        for kernel in kernels.values()
    ]


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def blocks_per_sm(gpu: Gpu, usage: Usage) -> int:
    """Blocks that an SM holds at once."""
    registers = _rounded(32 * usage.registers, REGISTER_UNIT)  # of a warp
    shared = _rounded(usage.shared_bytes + SHARED_RESERVED, SHARED_UNIT)
    return min(
        gpu.blocks_per_sm,
        gpu.warps_per_sm // usage.warps,
        QUARTERS * (REGISTERS_PER_QUARTER // registers) // usage.warps,
        1024 * gpu.shared_kib_per_sm // shared,
        TENSOR_COLUMNS // max(usage.tensor_columns, 1),
    )


def row_of(gpu: Gpu, tile: Tile, dtype: torch.dtype, kernel: Compiled) -> Row:
    usage = kernel.usage
    blocks = blocks_per_sm(gpu, usage)
    return {
        "GPU": gpu.name,
        "target": f"sm_{gpu.capability}",
        "product": kernel.product,
        "tile": f"{tile.side} x {tile.side}",
        "dtype": str(dtype).removeprefix("torch."),
        "warps": usage.warps,
        "registers": usage.registers,
        "spilled bytes": usage.spilled_bytes,
        "shared bytes": usage.shared_bytes,
        "shared limit": 1024 * gpu.shared_kib_per_block,
        "blocks per SM": blocks,
        "occupancy": f"{blocks * usage.warps / gpu.warps_per_sm:.0%}",
    }


def rows_of(gpu: Gpu, tile: Tile, dtype: torch.dtype) -> list[Row]:
    """Compile what a run on the GPT-2 track launches; a row for each product."""
    batches = [torch.empty(shape, dtype=dtype, device="meta") for shape in BATCHES["gpt2"]]
    return [row_of(gpu, tile, dtype, kernel) for kernel in compiled(gpu, tile, batches)]


def measure_all() -> None:
    """Measure, and write the rows."""
    check_triton()
    import triton

    rows = []
    for gpu in GPUS:
        for tile in TILES:
            for dtype in DTYPES:
                rows += rows_of(gpu, tile, dtype)
    write("kernels", rows, {"triton": triton.__version__})


def main() -> int:
    """Run the command; its exit code."""
    return run("kernels", __doc__, measure_all)


if __name__ == "__main__":
    sys.exit(main())
