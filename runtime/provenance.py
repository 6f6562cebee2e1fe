"""What is needed to repeat a run: the machine, the versions, the commit, the program's own text."""

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from runtime import machine
from tracking import store

ROOT = Path(__file__).parents[1]

# The program that a row's hash names: every file of these folders and of the root. Left out are the
# folders that read results, plan, measure speed or test. (The tuner takes two tests of significance
# from analysis/stats.py, which is left out too.)
PROGRAM = ("data", "engines", "host", "layers", "optim", "runtime", "studies", "tracking")
PINS = "requirements-optimizers.txt"  # versions of the rules that come from libraries


def now() -> str:
    """This moment, UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def program_text() -> str:
    """The source text of the program, as `tracking.store.source_text` joins it."""
    paths = [*ROOT.glob("*.py"), ROOT / PINS]
    paths += [path for folder in PROGRAM for path in (ROOT / folder).rglob("*.py")]
    return store.source_text(
        {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}
    )


def commit() -> tuple[str, bool]:
    """The commit of this checkout, empty if unknown, and whether nothing was changed since."""
    found = machine.git(ROOT, "rev-parse", "HEAD")
    return found, bool(found) and not machine.git(ROOT, "status", "--porcelain")


def facts(
    device: torch.device, dtype: torch.dtype, attention: str, eager_reason: str
) -> dict[str, Any]:
    """The columns of tracking.schema.Provenance that follow from machine and program.

    dtype: of matrix products. attention: "fused" or "plain". eager_reason: why the model runs
    uncompiled; empty if compiled.
    """
    head, clean = commit()
    return dict(
        device=machine.device_name(device),
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        attention=attention,
        compiled=not eager_reason,
        compile_note=eager_reason,
        torch=torch.__version__,
        python=platform.python_version(),
        commit=head,
        clean=clean,
    )
