"""The control groups that limit this process, such as a container's, in version 1 or 2.

for folder in groups("memory"):   # /sys/fs/cgroup/... and the folders above it
    print(number(folder / "memory.max"))
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self")  # what the system says of this process


def groups(controller: str, proc: Path = PROC) -> Iterator[Path]:
    """The folders of the groups that limit this process, each before the one that it is in.

    controller: "cpu" or "memory". None where the system has no control groups.
    """
    try:
        lines = (proc / "cgroup").read_text("utf-8", "replace").splitlines()
        mounts = (proc / "mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return
    own: dict[str, str] = {}  # controllers, "" in version 2: the path of the group
    for line in lines:
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in mounts:
        head, separator, tail = line.partition(" - ")
        if not separator:
            continue
        root, point = (_unescaped(word) for word in head.split()[3:5])
        kind, options = tail.split()[0], tail.split()[-1].split(",")
        name = {"cgroup2": "", "cgroup": controller}.get(kind)
        if name is None or name not in own or (name and controller not in options):
            continue
        mount, group = Path(point), PurePosixPath(own[name])
        # In a container the mount may begin at its own group, of which the path tells nothing.
        inside = group.relative_to(root) if group.is_relative_to(root) else PurePosixPath()
        folder = mount / inside
        folder = folder if folder.is_dir() else mount
        yield folder
        yield from (each for each in folder.parents if each.is_relative_to(mount))


def number(path: Path, key: str = "", unit: int = 1) -> int | None:
    """The number after `key` at the start of a line of a file; None if there is none."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
        line = next(line for line in lines if line.startswith(key))
        return int(line[len(key) :].split()[0]) * unit
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def memory_limits(proc: Path = PROC) -> Iterator[tuple[int, int]]:
    """Bytes that each group may use, and those that it could still allocate.

    Files that are only cached can be dropped.
    """
    for folder in groups("memory", proc):
        if (folder / "memory.max").exists():
            names = ("memory.max", "memory.current", "inactive_file")
        else:  # version 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        limit, used = (number(folder / name) for name in names[:2])
        cached = number(folder / "memory.stat", names[2])
        if limit is not None and used is not None and cached is not None:
            yield limit, limit - used + cached


def _unescaped(word: str) -> str:
    """A path of mountinfo, which spells a space as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
