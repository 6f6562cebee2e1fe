"""The CPU cores that this process may use, which are often fewer than the machine has.

    python -m host.cores    # prints their number

Two things limit them: the affinity (taskset, a queue's cpuset) and the quota of a control group (a
container started with `--cpus`, a pod's limit), in version 1 or 2 of control groups.
"""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from host import entry


def cores(proc: Path = Path("/proc/self")) -> int:
    """Cores that this process may use, at least 1.

    A quota is rounded down: a thread more than it would stop all of them for a part of each
    period. proc: what the system says of this process.
    """
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    return max(1, min([count, *(int(quota) for quota in _quotas(proc))]))


def _quotas(proc: Path) -> Iterator[float]:
    """The cores that each control group above this process allows."""
    for folder, mount in _groups(proc):
        for each in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
                yield _quota(each)
            if each == mount:
                break


def _groups(proc: Path) -> Iterator[tuple[Path, Path]]:
    """The folder of this process's control group, and where its tree is mounted, for each tree."""
    try:
        groups = (proc / "cgroup").read_text("utf-8", "replace").splitlines()
        mounts = (proc / "mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    own: dict[str, str] = {}  # controllers, "" in version 2: the path of the group
    for line in groups:
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in mounts:
        head, separator, tail = line.partition(" - ")
        if not separator:
            continue
        root, point = (_unescaped(word) for word in head.split()[3:5])
        kind, options = tail.split()[0], tail.split()[-1].split(",")
        controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
        if controller is None or controller not in own or (controller and "cpu" not in options):
            continue
        mount, group = Path(point), PurePosixPath(own[controller])
        # In a container the mount may begin at its own group, of which the path tells nothing.
        inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        folder = mount / inside
        yield (folder if folder.is_dir() else mount), mount


def _unescaped(word: str) -> str:
    """A path of mountinfo, which spells a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


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
