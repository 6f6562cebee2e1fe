"""The Triton kernels as machine code for GPUs that are not there: they fit, and nothing spills.

    python -m pytest tests/test_kernels.py

Triton compiles them in another process, because tests/conftest.py turns its interpreter on here.
"""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import kernels
from bench.kernels import GPUS, TILES, Usage, blocks_per_sm

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "records" / "kernels" / "kernels.csv"
BY_CAPABILITY = {gpu.capability: gpu for gpu in GPUS}
COMPILED = (80,)  # each takes ten seconds; the code of the others is nearly the same

# Prints what is compiled for these GPUs, and for two tiles that are wrong.
PROGRAM = """
import json, sys, torch, triton
from bench import kernels

def batch(dtype, *shape):
    return torch.empty(shape, dtype=dtype, device="meta")

gpus = [gpu for gpu in kernels.GPUS if gpu.capability in map(int, sys.argv[1:])]
found = []
for gpu in gpus:
    for tile in kernels.TILES:
        for dtype in kernels.DTYPES:
            shapes = [*kernels.BATCHES["tiny"], *kernels.BATCHES["gpt2"], (3, 37, 70), (1, 1, 8)]
            batches = [batch(dtype, *shape) for shape in shapes] + [batch(dtype, 4, 96, 40).mT]
            for kernel in kernels.compiled(gpu, tile, batches):
                row = kernels.row_of(gpu, tile, dtype, kernel)
                found.append([gpu.capability, tile.side, row, kernel.ptx])

tile, gpu = kernels.TILES[0], gpus[0]
few = tile._replace(full=tile.full._replace(num_warps=1))
deep = tile._replace(half=tile.half._replace(num_stages=20))
few = kernels.compiled(gpu, few, [batch(torch.float32, 1, 64, 64)])
try:
    kernels.compiled(gpu, deep, [batch(torch.bfloat16, 1, 64, 64)])
    error = ""
except triton.runtime.errors.OutOfResources as raised:
    error = str(raised)
spilled = [kernel.usage.spilled_bytes for kernel in few]
json.dump({"found": found, "spilled": spilled, "error": error, "triton": triton.__version__},
          sys.stdout)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All kernels, compiled once for the tests of this file."""
    pytest.importorskip("triton", reason="triton has no build for this platform")
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = os.environ | {"TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", PROGRAM, *map(str, COMPILED)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def of(built: dict[str, Any], capability: int) -> list[tuple[int, dict[str, Any], str]]:
    """What is compiled for a GPU: side of the tile, row and PTX of each kernel."""
    return [(side, row, ptx) for number, side, row, ptx in built["found"] if number == capability]


@pytest.mark.slow
@pytest.mark.parametrize("capability", COMPILED)
def test_a_kernel_fits_its_gpu_and_no_register_spills(
    built: dict[str, Any], capability: int
) -> None:
    tiles = {tile.side: tile for tile in TILES}
    rows = [(side, row) for side, row, _ in of(built, capability)]
    assert len({(side, row["dtype"], row["product"]) for side, row in rows}) == 8
    for side, row in rows:
        assert row["spilled bytes"] == 0, row
        planned = tiles[side].shared_bytes(getattr(torch, row["dtype"]).itemsize)
        assert row["shared bytes"] <= planned <= row["shared limit"], row
        assert row["blocks per SM"] >= 1, row


@pytest.mark.slow
@pytest.mark.parametrize("capability", COMPILED)
def test_each_product_is_compiled_once_for_all_shapes(
    built: dict[str, Any], capability: int
) -> None:
    assert len(of(built, capability)) == len(TILES) * len(kernels.DTYPES) * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "instruction"),
    [(80, "mma.sync")],
)
def test_products_in_bfloat16_are_work_of_the_tensor_cores_of_each_gpu(
    built: dict[str, Any], capability: int, instruction: str
) -> None:
    for _, row, ptx in of(built, capability):
        if row["dtype"] == "bfloat16":
            assert instruction in ptx, row
        else:
            assert "mma" not in ptx and "tf32" not in ptx, row  # full float32


@pytest.mark.slow
@pytest.mark.parametrize("capability", COMPILED)
def test_memory_is_read_and_written_16_bytes_at_once(
    built: dict[str, Any], capability: int
) -> None:
    for _, row, ptx in of(built, capability):
        if row["dtype"] == "bfloat16":
            assert re.search(r"cp[.]async[.]cg[.]shared[.]global .*, 0x10", ptx), row
            stores = re.findall(r"st[.]global\S*", ptx)
            assert stores and all("v4" in store for store in stores), (row, stores)


@pytest.mark.slow
def test_a_tile_with_too_few_warps_or_too_many_stages_is_found(built: dict[str, Any]) -> None:
    assert max(built["spilled"]) > 0
    assert "out of resource: shared memory" in built["error"]


@pytest.mark.slow
def test_the_record_is_of_the_kernels_as_they_are(built: dict[str, Any]) -> None:
    rows = recorded()
    if built["triton"] != rows[0]["triton"]:
        pytest.skip(f"the record is of triton {rows[0]['triton']}")
    found = [{name: str(value) for name, value in row.items()} for _, _, row, _ in built["found"]]
    targets = {row["target"] for row in found}
    of_these = [row for row in rows if row["target"] in targets]
    for row in of_these:
        del row["triton"]
    assert found == of_these, "run: python -m bench.kernels, and copy its table to the record"


def recorded() -> list[dict[str, str]]:
    with RECORD.open(newline="") as file:
        return list(csv.DictReader(file))


def test_in_the_record_every_tile_fits_every_gpu_and_nothing_spills() -> None:
    rows = recorded()
    names = ("GPU", "tile", "dtype", "product")
    assert len({tuple(row[name] for name in names) for row in rows}) == len(rows)
    assert len(rows) == len(GPUS) * len(TILES) * len(kernels.DTYPES) * 2
    for row in rows:
        gpu = BY_CAPABILITY[int(row["target"].removeprefix("sm_"))]
        assert row["GPU"] == gpu.name and row["spilled bytes"] == "0"
        assert int(row["shared bytes"]) <= 1024 * gpu.shared_kib_per_block


def test_every_tile_is_planned_to_fit_the_smallest_gpu() -> None:
    smallest = 1024 * min(gpu.shared_kib_per_block for gpu in GPUS)
    for tile in TILES:
        assert all(tile.shared_bytes(dtype.itemsize) <= smallest for dtype in kernels.DTYPES)


@pytest.mark.parametrize(
    ("capability", "usage", "blocks"),
    [
        (80, Usage(64, 0, 8, 0, 0), 4),  # 65,536 registers / (64 x 256 threads)
        (80, Usage(65, 0, 8, 0, 0), 3),  # of a warp they are rounded up, to 72 a thread
        (80, Usage(168, 0, 4, 0, 0), 3),  # a quarter of an SM holds 3 such warps
        (80, Usage(32, 0, 1, 0, 0), 32),  # no more blocks on an SM
        (86, Usage(32, 0, 1, 0, 0), 16),
        (89, Usage(32, 0, 16, 0, 0), 3),  # 48 warps
        (90, Usage(32, 0, 16, 0, 0), 4),  # 64 warps
        (90, Usage(32, 0, 4, 113 * 1024, 0), 2),  # each takes 1 KiB more
        (90, Usage(32, 0, 4, 113 * 1024 + 1, 0), 1),
        (100, Usage(32, 0, 4, 0, 256), 2),  # 512 columns
    ],
)
def test_blocks_on_an_sm_are_as_many_as_the_scarcest_resource_allows(
    capability: int, usage: Usage, blocks: int
) -> None:
    assert blocks_per_sm(BY_CAPABILITY[capability], usage) == blocks


def test_without_triton_the_bench_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.kernels"])
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    assert kernels.main() == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("bench.kernels: triton is not installed")


def test_kernels_that_are_interpreted_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    symmetric = pytest.importorskip("optim.kernels.symmetric", reason="triton is not installed")
    monkeypatch.setattr(sys, "argv", ["bench.kernels"])
    monkeypatch.setattr(symmetric, "interpreted", lambda: True)
    assert kernels.main() == 2
    assert "run with TRITON_INTERPRET=0" in capsys.readouterr().err
