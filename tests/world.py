"""What the processes of test_ddp do: races of the micro track, with a rank that fails if asked.

    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2 tests/world.py SCENARIO ...

    python tests/world.py launch RESTARTS SCENARIO ...

`race` only races. `die`: rank 1 ends without a word in seed 1, in the first attempt alone. `hang`:
rank 1 can compile nothing, and sleeps in seed 1. `engine` trains for a comparison with
one process, races MuonClip for another, goes on with a race of one process, is stopped in another
race, and then races as told. `launch`: torchrun's agent in this process, whose ranks are forks, so
that each of them need not import the trainer again.
"""

import gc
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # each fork would import it
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import engines  # noqa: E402
import optim  # noqa: E402
import speedrun  # noqa: E402
from layers.config import GPTConfig  # noqa: E402
from model import GPT  # noqa: E402
from tests.conftest import MICRO  # noqa: E402
from tracking import store  # noqa: E402
from tracking.schema import Run  # noqa: E402

CONFIG = GPTConfig(vocab_size=37, block_size=16, n_layer=2, n_head=2, n_embd=32)
TAU = 0.2  # of MuonClip
PEAK = 1e11  # FLOP/s; to measure it takes longer than a race


def fail_in_second_heat(how: str) -> None:
    """Make rank 1 fail after the runs of seed 0 are over."""
    step_of = speedrun.Trainer.step

    def step(self: Any, feed: Any, factor: float, tau: Any, out: Any, *more: Any) -> Any:
        if out.seed == 1 and out.steps == 3 and os.environ["RANK"] == "1":
            if how == "hang":
                time.sleep(600)
            if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
                os._exit(7)
        return step_of(self, feed, factor, tau, out, *more)

    speedrun.Trainer.step = step  # type: ignore[method-assign]


def compile_on_first_rank() -> None:
    """Let torch.compile work on the first rank alone; what it makes there does not count passes."""
    rank = os.environ["RANK"]

    def compile(model: Any, dynamic: bool) -> Any:
        def call(*tokens: torch.Tensor) -> torch.Tensor:
            if rank != "0":
                raise RuntimeError(f"rank {rank} has no Python.h")
            loss: torch.Tensor = model(*tokens)
            model.module.eager_passes -= 1
            return loss

        return call

    torch.compile = compile  # type: ignore[assignment]


def train(engine: engines.Engine, micro: int) -> dict[str, Any]:
    """Three steps of Muon on this process's share of 8 sequences, in microbatches."""
    torch.manual_seed(0)
    tokens = torch.randint(37, (3, 8, 17))
    gpt = GPT(CONFIG)
    model = engine.wrap(gpt)
    gpt.init_weights(0)
    engine.build(optim.plan(engine.roles(), "muon", {}, torch.float32))
    seen: dict[str, Any] = {"loss": [], "norm": []}
    for batch in tokens:
        mine = batch.chunk(engine.world_size)[engine.rank]
        parts, total = mine.split(micro), torch.zeros(())
        for number, part in enumerate(parts, start=1):
            loss = model(part[:, :-1], part[:, 1:]) / mine[:, 1:].numel()
            engine.backward(loss, last=number == len(parts))
            total += loss.detach()
        seen["norm"].append(engine.grad_norm())
        seen["loss"].append(engine.all_reduce_mean(total))
        engine.step()
    seen["weights"] = [p.detach().clone() for p in gpt.parameters()]
    seen["max"] = engine.all_reduce_max(
        torch.tensor([float(engine.rank), -float(engine.rank)])
    ).tolist()
    seen["shared"] = engine.broadcast({"from": engine.rank})
    return seen


def clip(results: Path) -> engines.Engine:
    """A race of MuonClip, written down: 8 steps of MLA with two heads, whose logits exceed tau."""
    track = replace(speedrun.TRACKS["tiny-mla"], name="custom", **(MICRO | {"width": 64}))
    options = speedrun.Options(dtype="float32", threads=1, compile=False, results=results)
    trainer = speedrun.Trainer(track, options)
    trainer.matmul_peak = PEAK
    entrant = speedrun.enter(f"muonclip:lr=0.1,weight_decay=0.1,tau={TAU}", "tiny-mla", 8)
    speedrun.race(trainer, [entrant], seeds=1, race_id="clip", done=[])
    return trainer.engine


class StoppedError(Exception):
    """In place of a kill."""


def moving(results: Path, stop_at: int = 0) -> list[Run]:
    """Race, or go on with a race; stopped before the step of this number, counted from now."""
    step_of, taken = speedrun.Trainer.step, [0]

    def step(self: Any, *given: Any, **options: Any) -> Any:
        taken[0] += 1
        if taken[0] == stop_at:
            raise StoppedError
        return step_of(self, *given, **options)

    track = replace(speedrun.TRACKS["tiny"], name="custom", **MICRO)
    options = speedrun.Options(
        dtype="float32", threads=1, compile=False, attention="plain", save_every=2, results=results
    )
    entrants = [speedrun.enter(name, "tiny", 8) for name in ("adamw", "muon")]
    trainer = speedrun.Trainer(track, options)
    trainer.matmul_peak = PEAK
    speedrun.Trainer.step = step  # type: ignore[method-assign]
    try:
        return speedrun.race(trainer, entrants, 1, "moving", store.read_runs(results))
    except StoppedError:
        return []
    finally:
        speedrun.Trainer.step = step_of  # type: ignore[method-assign]
        if trainer.engine.world_size > 1:
            trainer.engine._watch.close()  # type: ignore[attr-defined]


def launch(restarts: str, *task: str) -> None:
    """Do a task in two ranks. Raises ChildFailedError if one fails more often than it may."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=int(restarts),
        monitor_interval=0.1, run_id="world", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1", start_method="fork",
    )  # fmt: skip
    gc.freeze()  # what is imported need not be searched again and again
    elastic_launch(config, rank_of)(*task)


def rank_of(*task: str) -> None:
    if code := main(*task):
        sys.exit(code)


def main(scenario: str, *arguments: str) -> int:
    if scenario == "launch":
        launch(*arguments)
        return 0
    torch.set_num_threads(1)
    speedrun.Trainer.matmul_peak = PEAK  # type: ignore[assignment]
    if scenario == "engine":
        rank, out = int(os.environ["RANK"]), Path(arguments[0])
        engine = engines.make("ddp", torch.device("cpu"), timeout=60)
        torch.save(train(engine, micro=2), out / f"engine{rank}.pt")
        engine._watch.close()  # type: ignore[attr-defined]  # the races that follow have their own
        clip(out / "clip")._watch.close()  # type: ignore[attr-defined]
        moving(out / "from-one")
        moving(out / "from-two", stop_at=10)
        return speedrun.main(arguments[1:])
    if scenario == "hang":
        compile_on_first_rank()
    if scenario != "race":
        fail_in_second_heat(scenario)
    return speedrun.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
