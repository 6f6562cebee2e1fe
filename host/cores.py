"""The CPU cores that this process may use, which are often fewer than the machine has.

    python -m host.cores    # prints their number

Two things limit them: the affinity (taskset, a queue's cpuset) and the quota of a control group (a
container started with `--cpus`, a pod's limit).
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from host import cgroups, entry


def cores(proc: Path = cgroups.PROC) -> int:
    """Cores that this process may use, at least 1.

    A quota is rounded down: a thread more than it would stop all of them for a part of each
    period. proc: what the system says of this process.
    """
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min([count, *(int(quota) for quota in _quotas(proc))]))


def _quotas(proc: Path) -> Iterator[float]:
    """The cores that each control group above this process allows."""
    for folder in cgroups.groups("cpu", proc):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            yield _quota(folder)


def _quota(folder: Path) -> float:
    """The cores that one control group allows. Raises OSError or ValueError if it sets no limit."""
    if (folder / "cpu.max").exists():  # version 2: "150000 100000", or "max 100000"
        quota, period = (folder / "cpu.max").read_text("ascii").split()
    else:
        quota = (folder / "cpu.cfs_quota_us").read_text("ascii")
        period = (folder / "cpu.cfs_period_us").read_text("ascii")
    if float(quota) <= 0:  # -1: no limit
        raise ValueError(quota)
    return float(quota) / float(period)


if __name__ == "__main__":
    parser = entry.parser("host.cores", __doc__)
    sys.exit(entry.run(parser, None, lambda _: print(cores())))
