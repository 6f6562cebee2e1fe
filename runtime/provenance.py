"""What is needed to repeat a run: the machine, the versions, the commit, the program's own text."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.machinery import all_suffixes
from pathlib import Path
from typing import Any

import torch

from runtime import machine
from tracking import store

ROOT = Path(__file__).parents[1]

# The program that a row's hash names: every file of the root and of these folders, which is all
# that a race needs to be run again. Left out is what plans, measures speed, verifies or draws.
PROGRAM = (
    "analysis/*", "data/**/*", "engines/**/*", "host/**/*", "layers/**/*", "optim/**/*",
    "runtime/**/*", "studies/**/*", "tracking/**/*",
)  # fmt: skip
OUTPUT = ("results", "plots")  # folders without code, which may be links to another disk
PINS = ("requirements.txt", "requirements-optimizers.txt")


def now() -> str:
    """This moment, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def program_text() -> str:
    """The source text of the program, as `tracking.store.source_text` joins it."""
    paths = [*ROOT.glob("*.py"), *(ROOT / name for name in PINS)]
    paths += [path for pattern in PROGRAM for path in ROOT.glob(f"{pattern}.py")]
    return store.source_text(
        {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}
    )


def commit(root: Path = ROOT) -> tuple[str, bool | None]:
    """The commit of the checkout at `root`, and whether the program is unchanged since.

    Empty and None: unknown. A copy that lies inside another repository has no commit, and git tells
    nothing of a checkout that belongs to another user. Unchanged: no tracked file differs, but for
    results and charts, and no file is added that Python could import. It is not known where git was
    told not to look at a file that is there.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return "", None
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    # -z: names as they are. Options in place of settings, which each user has in another way.
    found = _git(
        root, "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all",
        "--ignore-submodules=none", "--", ".", *(f":(exclude){name}" for name in OUTPUT),
    )  # fmt: skip
    if not head:
        return "", None
    tags = (_git(root, "ls-files", "-v", "-z") or "").split("\0")  # "h a.py": assumed unchanged
    unseen = (tag[2:] for tag in tags if tag[:1].islower() or tag[:1] == "S")  # S: skipped
    if found is None or any((root / name).exists() for name in unseen):
        return head, None
    importable = (*all_suffixes(), "/")  # "/": another repository, whose files git does not list
    changes = found.split("\0")
    return head, all(
        line.startswith("?? ") and not line.endswith(importable) for line in changes if line
    )


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints in `root`, without its last line end; None if it fails.

    Neither git's environment variables, which may name another repository, nor a file system
    monitor have a say. Git writes nothing, so it disturbs no other command.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    settings = ("-c", "core.fsmonitor=false", "-c", "core.fileMode=false")
    command = ["git", "--no-optional-locks", *settings, *arguments]
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout).removesuffix("\n")


def facts(
    device: torch.device, dtype: torch.dtype, attention: str, at: tuple[str, bool | None]
) -> dict[str, Any]:
    """The columns of tracking.schema.Provenance that follow from machine and program, as now.

    dtype: of matrix products. attention: "fused" or "plain". at: `commit`, from when the program
    was loaded, because a checkout may move on while a race runs.
    """
    head, clean = at
    return dict(
        device=machine.device_name(device),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        attention=attention,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=head,
        clean=clean,
    )
