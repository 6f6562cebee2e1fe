"""Worker and thread counts: affinity and the quota of a control group, in both versions."""

import os
from pathlib import Path

import pytest

from host import cgroups
from host.cores import cores


@pytest.fixture(autouse=True)
def sixteen_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


def machine(folder: Path, *, cgroup: str, root: str, kind: str, options: str = "rw") -> Path:
    """A folder as /proc/self is, and beside it the tree of control groups that it mounts."""
    proc, mount = folder / "proc", folder / "a mount"
    proc.mkdir()
    mount.mkdir()
    (proc / "cgroup").write_text(cgroup, "utf-8")
    point = str(mount).replace(" ", "\\040")
    line = f"32 31 0:29 {root} {point} rw,relatime - {kind} cgroup {options}\n"
    (proc / "mountinfo").write_text("22 1 0:20 / / rw - ext4 /dev/vda rw\n" + line, "utf-8")
    return mount


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, "utf-8")


def test_the_affinity_counts_where_there_are_no_control_groups(tmp_path: Path) -> None:
    assert cores(tmp_path / "nowhere") == 16


@pytest.mark.parametrize(
    ("limit", "count"),
    [("max 100000", 16), ("200000 100000", 2), ("350000 100000", 3), ("50000 100000", 1),
     ("3200000 100000", 16), ("what", 16), ("", 16), ("100000 0", 16)],
)  # fmt: skip
def test_version_2_limits_the_cores(tmp_path: Path, limit: str, count: int) -> None:
    mount = machine(tmp_path, cgroup="0::/\n", root="/", kind="cgroup2")
    write(mount, cpu__max=limit + "\n")
    assert cores(tmp_path / "proc") == count


def test_the_least_limit_of_all_groups_above_counts(tmp_path: Path) -> None:
    mount = machine(tmp_path, cgroup="0::/slice/unit\n", root="/", kind="cgroup2")
    write(mount / "slice", cpu__max="400000 100000\n")
    write(mount / "slice" / "unit", cpu__max="900000 100000\n")
    assert cores(tmp_path / "proc") == 4


@pytest.mark.parametrize(("quota", "count"), [("-1", 16), ("250000", 2), ("10000", 1)])
def test_version_1_limits_the_cores(tmp_path: Path, quota: str, count: int) -> None:
    cgroup = "5:memory:/other\n4:cpu,cpuacct:/job\n0::/\n"
    options = "rw,cpu,cpuacct"
    mount = machine(tmp_path, cgroup=cgroup, root="/", kind="cgroup", options=options)
    write(mount / "job", cpu__cfs_quota_us=quota + "\n", cpu__cfs_period_us="100000\n")
    assert cores(tmp_path / "proc") == count


def test_a_container_that_is_told_its_path_outside_reads_its_own_mount(tmp_path: Path) -> None:
    cgroup, options = "4:cpu,cpuacct:/docker/abc\n", "rw,cpu,cpuacct"
    mount = machine(tmp_path, cgroup=cgroup, root="/docker/abc", kind="cgroup", options=options)
    write(mount, cpu__cfs_quota_us="300000\n", cpu__cfs_period_us="100000\n")
    assert cores(tmp_path / "proc") == 3


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_of_a_control_group_is_a_limit(tmp_path: Path, version: int) -> None:
    cgroup = {1: "7:memory:/job\n", 2: "0::/job\n"}[version]
    kind, options = {1: ("cgroup", "rw,memory"), 2: ("cgroup2", "rw")}[version]
    mount = machine(tmp_path, cgroup=cgroup, root="/", kind=kind, options=options)
    assert list(cgroups.memory_limits(tmp_path / "proc")) == []
    names = {
        1: ("memory__limit_in_bytes", "memory__usage_in_bytes", "total_inactive_file"),
        2: ("memory__max", "memory__current", "inactive_file"),
    }[version]
    files = {names[0]: "1000\n", names[1]: "700\n", "memory__stat": f"anon 1\n{names[2]} 200\n"}
    write(mount / "job", **files)
    assert list(cgroups.memory_limits(tmp_path / "proc")) == [(1000, 500)]
