"""What the processes of test_engines do: every recipe on every engine, on one to four processes.

    python tests/engine_world.py OUT [ENGINE ...]

One gloo world of four processes, in which groups of one, two, three and four train a small model
for a few steps, and one process alone trains it as the reference. Groups that do not overlap work
at the same time. OUT gets a JSON list: a row for each engine, size of group, recipe and model. The
numbers of heads, layers, tokens and rows divide by none of two, three and four.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import engines  # noqa: E402
import optim  # noqa: E402
from layers.config import GPTConfig  # noqa: E402
from model import GPT  # noqa: E402

PROCESSES, STEPS, SEQUENCES = 4, 4, 12
LAYOUTS = ("ddp", "sharded", "fsdp2")  # those of ours that are compared with one process
MODELS = {
    "untied": GPTConfig(37, block_size=8, n_layer=3, n_head=2, n_embd=24),
    "tied": GPTConfig(
        29, block_size=8, n_layer=5, n_head=2, n_kv_head=1, n_embd=8, tied=True, bias=False,
        qk_norm=False, init="gpt2",
    ),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # what would else not happen within so few steps
    "soap": {"precondition_frequency": 2},
    "shampoo": {"precondition_frequency": 2},
    "muonclip": {"tau": 0.05},
}


def train(engine: engines.Engine, recipe: str, model: str) -> dict[str, Any]:
    """A few steps on this process's share of each batch, in two microbatches."""
    torch.manual_seed(0)
    config = MODELS[model]
    tokens = torch.randint(config.vocab_size, (STEPS, SEQUENCES, config.block_size + 1))
    gpt = GPT(config)
    wrapped = engine.wrap(gpt)
    gpt.init_weights(0)
    plan = optim.plan(engine.roles(), recipe, SETTINGS.get(recipe, {}), torch.float32)
    tau = optim.qk_clip(plan) if not config.qk_norm else None
    engine.build(plan)
    seen: dict[str, Any] = {"losses": [], "norms": []}
    for step, batch in enumerate(tokens):
        engine.set_lr(1 - step / STEPS)
        mine = batch.chunk(engine.world_size)[engine.rank]
        parts, loss = mine.split(-(-len(mine) // 2)), torch.zeros(())
        with gpt.measuring(tau is not None):
            for number, part in enumerate(parts, start=1):
                mean = wrapped(part[:, :-1], part[:, 1:]) / mine[:, 1:].numel()
                engine.backward(mean, last=number == len(parts))
                loss += mean.detach()
        seen["norms"].append(engine.grad_norm())
        seen["losses"].append(engine.all_reduce_mean(loss))
        if step == STEPS - 1:
            seen["bytes"] = engine.state_bytes()
        engine.step()
        if tau is not None:
            gpt.clip_qk(engine.all_reduce_max(gpt.pop_max_logits()), tau)
    seen["weights"] = _weights(engine)
    with engine.evaluation():
        seen["evaluated"] = _weights(engine)
    seen["after"] = _weights(engine)
    return seen


def _weights(engine: Any) -> list[Tensor]:
    return [p.detach().clone() for p in engine.model.parameters()]


def initial(model: str) -> list[Tensor]:
    gpt = GPT(MODELS[model])
    gpt.init_weights(0)
    return [p.detach().clone() for p in gpt.parameters()]


def error(ours: list[Tensor], theirs: list[Tensor], start: list[Tensor]) -> float:
    """The largest difference of an entry, relative to the largest change of its parameter."""
    found = []
    for a, b, s in zip(ours, theirs, start, strict=True):
        found.append(float((a - b).abs().max() / (b - s).abs().max().clamp(min=1e-30)))
    return max(found)


def off(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def cases() -> list[tuple[str, str]]:
    return [(recipe, model) for recipe in sorted(optim.recipes()) for model in MODELS]


def compare(engine: Any, size: int, recipe: str, model: str, one: dict[str, Any]) -> dict[str, Any]:
    """The row of a case; every process of the group calls it."""
    ours = train(engine, recipe, model)
    first = engine.broadcast(ours["weights"] + ours["evaluated"])
    same = all(map(torch.equal, first, ours["weights"] + ours["evaluated"]))
    kept = all(map(torch.equal, ours["weights"], ours["after"]))
    mine = torch.tensor([float(not same), float(not kept)])
    differ, moved = engine.all_reduce_max(mine).tolist()
    held: list[Any] = [None] * size
    dist.all_gather_object(held, ours["bytes"], group=engine.group)
    start = initial(model)
    return {
        "engine": engine.name, "processes": size, "recipe": recipe, "model": model,
        "weights_error": error(ours["weights"], one["weights"], start),
        "evaluated_error": error(ours["evaluated"], one["evaluated"], start),
        "loss_error": off(ours["losses"], one["losses"]),
        "norm_error": off(ours["norms"], one["norms"]),
        "replicas_equal": not differ, "restored": not moved,
        "bytes": held, "bytes_of_one": one["bytes"], "sent": getattr(engine, "sent_bytes", 0),
    }  # fmt: skip


def work(rank: int, folder: Path, layouts: list[str]) -> Iterator[dict[str, Any]]:
    """All rows of which this process is the first of the group."""
    device, todo = torch.device("cpu"), cases()
    for number, case in enumerate(todo):
        if number % PROCESSES == rank:
            torch.save(train(engines.make("single", device), *case), folder / f"{number}.pt")
    # All processes make all groups, in the same order. Those of one line work at the same time.
    lines = [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2]], [[0, 1, 2, 3]]]
    groups = [[(ranks, dist.new_group(ranks)) for ranks in line] for line in lines]
    dist.barrier()
    for line in groups:
        for place, (ranks, group) in enumerate(line):
            if rank not in ranks:
                continue
            for layout in layouts:
                first = engines.make(layout, device, timeout=60, group=group)
                for number, case in enumerate(todo):
                    if number % len(line) == place:
                        one = torch.load(folder / f"{number}.pt")
                        row = compare(first.another(), len(ranks), *case, one)
                        if rank == ranks[0]:
                            yield row
                first._watch.close()  # type: ignore[attr-defined]
    dist.barrier()


def process(rank: int, port: int, folder: Path, layouts: list[str]) -> int:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ |= {"RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    store = dist.PrefixStore("group", dist.TCPStore("127.0.0.1", port))
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    try:
        rows = list(work(rank, folder, layouts))
        (folder / f"rows{rank}.json").write_text(json.dumps(rows))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(out: str, *layouts: str) -> int:
    """Fork the processes: what is imported is imported once, and no thread runs yet."""
    chosen = [*layouts] or [each for each in LAYOUTS if each in engines.names()]
    optim.recipes()
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with tempfile.TemporaryDirectory() as name:
        folder, children = Path(name), []
        for rank in range(PROCESSES):
            child = os.fork()
            if child == 0:
                code = process(rank, server.port, folder, chosen)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            return 1
        parts = [folder / f"rows{rank}.json" for rank in range(PROCESSES)]
        rows = [row for part in parts for row in json.loads(part.read_text())]
    Path(out).write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
