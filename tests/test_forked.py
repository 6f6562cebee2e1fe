"""Processes of a gloo world that fail or stand still end the world, with the reason.

python -m pytest tests/test_forked.py
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench._forked import ONE_THREAD

pytestmark = pytest.mark.slow  # starts processes
ROOT = Path(__file__).parents[1]
PROGRAM = """
import time
import torch.distributed as dist
from bench._forked import work_in_world

def sum_up(rank):
    dist.barrier()

def fail(rank):
    if rank == 1:
        raise OSError("rank 1 has no disk")
    dist.barrier()

def stand_still_alone(rank):
    if rank == 1:
        time.sleep(600)
    dist.barrier()

work_in_world(2, sum_up)
for work, limit in ((fail, 60), (stand_still_alone, 2)):
    try:
        work_in_world(2, work, limit)
    except RuntimeError as error:
        print(work.__name__, "process" in str(error), flush=True)
"""


def test_a_process_that_fails_or_stands_still_ends_its_world_and_is_shown() -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT, env=os.environ | ONE_THREAD, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == ["fail True", "stand_still_alone True"]
    assert "OSError: rank 1 has no disk" in done.stderr
    assert "in stand_still_alone" in done.stderr  # where the process stood
    assert time.monotonic() - begun < 60
