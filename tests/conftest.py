"""What several tests share: the prepared corpus and a race small enough for a test.

Tests run on the CPU, also where there is a GPU: the default track would be another one there. Those
that have something to say of a GPU are run by name with CUDA_VISIBLE_DEVICES=0 in front:
tests/test_symmetric.py, tests/test_graphs.py and tests/test_feed.py.
"""

import gc
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # before torch looks

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import speedrun
from data import corpus
from runtime import machine

# Triton reads this when it is imported, which neither torch nor the trainer does by themselves.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The overrides of the tiny track that make it a matter of milliseconds a step.
MICRO = {
    "width": 32,
    "seq_len": 32,
    "batch_tokens": 256,
    "val_tokens": 512,
    "val_every": 4,
    "val_every_late": 2,
    "target": 6.9,
}
PEAK = 1e11  # FLOP/s of a matrix product, as this process believes


class Noisy(torch.optim.SGD):
    """A rule that draws random numbers."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.grad += 1e-2 * torch.randn_like(p)
        return super().step(closure)


# Files that take longest go first, so that no process is left alone with one of them at the end.
LONGEST = (
    "test_engines", "test_deepspeed", "test_race", "test_model", "test_ddp", "test_bench",
    "test_fsdp2", "test_gpu_check", "test_plots", "test_observed", "test_lockstep",
    "test_rehearsal", "test_checkpoints", "test_environment", "test_kernels", "test_architecture",
    "test_data", "test_plots_many", "test_page", "test_symmetric", "test_engine", "test_rules",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden", action="store_true",
        help="write the texts of tests/golden anew; review them as a diff",
    )  # fmt: skip
    parser.addoption(
        "--fuzz-seconds", type=float, default=0.0,
        help="seconds of other examples each time, for tests/test_fuzz.py (default: a few, fixed)",
    )  # fmt: skip


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Checks a text against its file in tests/golden, or writes it with --rewrite-golden."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / f"{name}.txt"
        if request.config.getoption("--rewrite-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"no {path}; run this test with --rewrite-golden"
        assert text == path.read_text(encoding="utf-8"), "run with --rewrite-golden to accept it"

    return check


@pytest.fixture(scope="session", autouse=True)
def prepared_corpus() -> None:
    corpus.prepare()


@pytest.fixture(scope="module", autouse=True)
def frozen_past() -> None:
    """Each run looks for garbage: not in what libraries and the tests of other files have left."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def known_peak() -> Iterator[None]:
    """To measure the peak of a matrix product takes longer than a test's race."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "matmul_flops", lambda *_, **__: PEAK)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Matrices this small are slower on two threads, which spin when another test has a core."""
    torch.set_num_threads(1)


@pytest.fixture
def micro_track() -> speedrun.Track:
    return replace(speedrun.TRACKS["tiny"], name="custom", **MICRO)


@pytest.fixture
def micro_options(tmp_path: Path) -> speedrun.Options:
    return speedrun.Options(dtype="float32", threads=1, compile=False, results=tmp_path / "results")


@pytest.fixture
def micro_flags(tmp_path: Path) -> list[str]:
    """The command line of the micro race, after the entrants."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in MICRO.items()]
    fast = ["--dtype=float32", "--threads=1", "--no-compile"]
    return [*flags, *fast, f"--results={tmp_path / 'results'}"]
