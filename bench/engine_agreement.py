"""Every recipe on every engine of ours, on one to four processes, against one process alone.

    python -m bench.engine_agreement       # a table, into results/bench/engine_agreement.csv

Nothing is timed. `tests/test_engines.py` has the bounds that every case must keep.

One gloo world of four processes, in which groups of one, two, three and four train a small model
for a few steps, and one process alone trains it as the reference. Groups that do not overlap work
at the same time. The numbers of layers, tokens and rows divide by none of two, three and four.
Weights are in float64 and Newton-Schulz is in float32: Adam's first updates are nearly signs, so in
float32 they show in which order an average is summed. A difference is relative to the largest
change of its parameter.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import astuple, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import engines
import optim
from bench import Row, run, write
from bench._forked import ONE_THREAD, work_in_world
from layers.config import GPTConfig
from model import GPT
from optim import library_recipes
from runtime.spectra import Spectra
from tracking.schema import Spectrum

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json, sys
from pathlib import Path
from bench.engine_agreement import world

Path(sys.argv[1]).write_text(json.dumps(world(sample=sys.argv[2] == "True")))
"""
CPU = torch.device("cpu")
PROCESSES, STEPS, SEQUENCES = 4, 3, 12
LAYOUTS = ("ddp", "sharded", "fsdp2")  # those of ours that are compared with one process
MODELS = {
    "untied": GPTConfig(37, block_size=8, n_layer=3, n_head=2, n_embd=24),
    "tied": GPTConfig(
        29, block_size=8, n_layer=5, n_head=2, n_kv_head=1, n_embd=8, tied=True, bias=False,
        qk_norm=False,
    ),
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {  # what would else not happen within so few steps
    "soap": {"precondition_frequency": 1, "max_precond_dim": 24},
    "shampoo": {"precondition_frequency": 1},
    "muonclip": {"tau": 0.05},
}
DTYPES = {"kron": torch.float32}  # heavyball's mixes types otherwise


def same_draw(like: Tensor, **options: Any) -> Tensor:
    """In place of torch.randn_like: the same numbers for every matrix (... m n) of a shape.

    Kron draws random matrices, a stack of them for parameters of one shape, and would draw others
    where it has only some of the parameters.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(like.shape[-2:], dtype=like.dtype, generator=generator)
    return drawn.expand_as(like).clone()


def train(engine: engines.Engine, recipe: str, model: str) -> dict[str, Any]:
    """A few steps on this process's share of each batch, in two microbatches."""
    torch.manual_seed(0)
    config = MODELS[model]
    tokens = torch.randint(config.vocab_size, (STEPS, SEQUENCES, config.block_size + 1))
    gpt = GPT(config).to(DTYPES.get(recipe, torch.float64))
    wrapped = engine.wrap(gpt)
    with engine.weights():
        gpt.init_weights(0)
    groups = optim.plan(engine.roles(), recipe, SETTINGS.get(recipe, {}), torch.float32)
    tau = optim.qk_clip(groups) if not config.qk_norm else None
    engine.build(groups)
    spectra = Spectra(engine, gpt, groups, [STEPS - 1])
    seen: dict[str, Any] = {"losses": [], "norms": [], "sent": 0}
    for step, batch in enumerate(tokens):
        engine.set_lr(1 - step / STEPS)
        sent = engine.sent_bytes
        mine = batch.chunk(engine.world_size)[engine.rank]
        parts, loss = mine.split(-(-len(mine) // 2)), torch.zeros(())
        with gpt.measuring(tau is not None):
            for number, part in enumerate(parts, start=1):
                mean = wrapped(part[:, :-1], part[:, 1:]) / mine[:, 1:].numel()
                engine.backward(mean, last=number == len(parts))
                loss += mean.detach()
        seen["sent"] += engine.sent_bytes - sent
        seen["norms"].append(engine.grad_norm())
        seen["losses"].append(engine.all_reduce_mean(loss))
        if step == STEPS - 1:
            seen["bytes"] = engine.state_bytes()
        spectra.before(step)
        sent = engine.sent_bytes
        engine.step()
        seen["sent"] += engine.sent_bytes - sent
        if tau is not None:
            largest = engine.all_reduce_max(gpt.pop_max_logits())
            with engine.weights():
                gpt.clip_qk(largest, tau)
        seen["spectra"] = list(map(astuple, spectra.after(step)))
    seen["weights"] = weights(engine, gpt)
    with engine.evaluation():
        seen["evaluated"] = weights(engine, gpt)
    seen["after"] = weights(engine, gpt)
    return seen


def weights(engine: engines.Engine, gpt: GPT) -> Tensor:
    """A copy of all parameters, one after the other."""
    with engine.weights():
        return torch.cat([p.detach().flatten() for p in gpt.parameters()])


@cache
def start(model: str) -> tuple[Tensor, list[int]]:
    """The initial parameters, and the size of each."""
    gpt = GPT(MODELS[model]).double()
    gpt.init_weights(0)
    return weights(engines.make("single", CPU), gpt), [p.numel() for p in gpt.parameters()]


def error(ours: Tensor, theirs: Tensor, model: str) -> float:
    """The largest difference of an entry, relative to the largest change of its parameter."""
    begun, sizes = start(model)
    begun = begun.to(ours)
    parts = (x.split(sizes) for x in (ours, theirs, begun))
    return max(
        float((a - b).abs().max() / (b - c).abs().max()) for a, b, c in zip(*parts, strict=True)
    )


def spectra_error(ours: list[tuple[Any, ...]], theirs: list[tuple[Any, ...]]) -> float:
    """The largest relative difference of a figure; infinite if the rows are of other tensors."""
    names = [field.name for field in fields(Spectrum)]
    first = names.index("rms")
    if [row[:first] for row in ours] != [row[:first] for row in theirs]:
        return math.inf
    # The others are of small singular values, which the order of sums decides.
    places = [names.index(name) for name in ("rms", "largest", "stable_rank", "effective_rank")]
    pairs = [(a[n], b[n]) for a, b in zip(ours, theirs, strict=True) for n in places if b[n]]
    return max(abs(a - b) / b for a, b in pairs)


def off(ours: list[float], theirs: list[float]) -> float:
    """The largest relative difference."""
    return max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))


def cases() -> list[tuple[str, str]]:
    return [(recipe, model) for recipe in sorted(optim.recipes()) for model in MODELS]


def meet(recipe: str, model: str, size: int, sample: bool = False) -> bool:
    """Whether so many processes train this recipe on this model, one of both for most sizes.

    SOAP leaves a small model out: where gradients have a low rank, its bases are arbitrary. sample:
    AdamW and Muon meet every size, every other recipe an even one and an odd one.
    """
    always = recipe in ("adamw", "muon")
    if sample and not always and size not in ((2, 3), (1, 4))[zlib.crc32(recipe.encode()) % 2]:
        return False
    if recipe == "soap":
        return model == "untied"
    return always or model == [*MODELS][size % 2]


def compare(engine: Any, size: int, recipe: str, model: str, one: dict[str, Any]) -> dict[str, Any]:
    """The row of a case; every process of the group calls it."""
    ours = train(engine, recipe, model)
    both = torch.cat([ours["weights"], ours["evaluated"]])
    same = torch.equal(engine.broadcast(both), both)
    mine = torch.tensor([float(not same), float(not torch.equal(ours["weights"], ours["after"]))])
    differ, moved = engine.all_reduce_max(mine).tolist()
    held: list[Any] = [None] * size
    dist.all_gather_object(held, ours["bytes"], group=engine.group)
    return {
        "engine": engine.name, "processes": size, "recipe": recipe, "model": model,
        "weights_error": error(ours["weights"], one["weights"], model),
        "evaluated_error": error(ours["evaluated"], one["evaluated"], model),
        "loss_error": off(ours["losses"], one["losses"]),
        "norm_error": off(ours["norms"], one["norms"]),
        "spectra_error": spectra_error(ours["spectra"], one["spectra"]),
        "spectra_rows": len(ours["spectra"]),
        "averages": not torch.equal(ours["weights"], ours["evaluated"]),
        "replicas_equal": not differ, "restored": not moved,
        "bytes": held, "bytes_of_one": one["bytes"], "sent": ours["sent"],
    }  # fmt: skip


@cache
def one(folder: Path, number: int) -> dict[str, Any]:
    """What one process alone has found in a case."""
    found: dict[str, Any] = torch.load(folder / f"{number}.pt")
    return found


def work(
    rank: int, folder: Path, layouts: list[str], todo: list[tuple[str, str]], sample: bool
) -> Iterator[dict[str, Any]]:
    """All rows of which this process is the first of the group."""
    torch.randn_like = same_draw  # type: ignore[assignment]
    for number, case in enumerate(todo):
        if number % PROCESSES == rank:
            torch.save(train(engines.make("single", CPU), *case), folder / f"{number}.pt")
    # All processes make all groups, in the same order. Those of one line work at the same time.
    lines = [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[0, 1, 2]], [[0, 1, 2, 3]]]
    groups = [[(ranks, dist.new_group(ranks)) for ranks in line] for line in lines]
    dist.barrier()
    for line in groups:
        for place, (ranks, group) in enumerate(line):
            if rank not in ranks:
                continue
            for layout in layouts:
                first = engines.make(layout, CPU, timeout=60, group=group)
                here = [n for n, case in enumerate(todo) if meet(*case, len(ranks), sample)]
                for index, number in enumerate(here):
                    if index % len(line) == place:
                        case = todo[number]
                        row = compare(first.another(), len(ranks), *case, one(folder, number))
                        if rank == ranks[0]:
                            yield row
                first._watch.close()  # type: ignore[attr-defined]
    dist.barrier()


def world(sample: bool = False) -> list[Row]:
    """The rows of all cases: one for each engine, number of processes, recipe and model.

    sample: as in `meet`. It is called in a process with one thread.
    """
    layouts = [name for name in LAYOUTS if name in engines.names()]
    library_recipes.rule = cache(library_recipes.rule)  # looks through what is installed
    roles = GPT(MODELS["tied"]).roles()
    for recipe in optim.recipes():
        optim.plan(roles, recipe, {}, torch.float32)  # imports its library
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write_rows(rank: int) -> None:
            rows = list(work(rank, folder, layouts, cases(), sample))
            (folder / f"rows{rank}.json").write_text(json.dumps(rows), encoding="utf-8")

        work_in_world(PROCESSES, write_rows)
        parts = [folder / f"rows{rank}.json" for rank in range(PROCESSES)]
        return [row for part in parts for row in json.loads(part.read_text("utf-8"))]


def rows_of_world(sample: bool = False) -> list[Row]:
    """What `world` finds in a process of its own. Raises RuntimeError if a process of it fails."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(out), str(sample)],
            cwd=ROOT, env=os.environ | ONE_THREAD, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        rows: list[Row] = json.loads(out.read_text("utf-8"))
        return rows


def summary(rows: list[Any]) -> list[Row]:
    """A row for each engine and number of processes: the largest differences of all recipes.

    kron has columns of its own: heavyball keeps float32 whatever the weights are.
    """
    found: list[Row] = []
    for engine, count in dict.fromkeys((row["engine"], row["processes"]) for row in rows):
        mine = [row for row in rows if (row["engine"], row["processes"]) == (engine, count)]
        double = [row for row in mine if row["recipe"] not in DTYPES]
        worst = max(double, key=lambda row: row["weights_error"])
        low = [row["weights_error"] for row in mine if row["recipe"] in DTYPES]
        found.append(
            {
                "engine": engine,
                "processes": count,
                "recipes": len({row["recipe"] for row in mine}),
                "weights": f"{worst['weights_error']:.1e}",
                "of recipe": worst["recipe"],
                "weights, float32 alone": f"{max(low, default=0.0):.1e}",
                "losses": f"{max(row['loss_error'] for row in mine):.1e}",
                "gradient norms": f"{max(row['norm_error'] for row in double):.1e}",
                "replicas equal": "yes" if all(row["replicas_equal"] for row in mine) else "no",
            }
        )
    return found


def compare_all() -> None:
    """Train all cases, and write the table."""
    write("engine_agreement", summary(rows_of_world()), {"torch": torch.__version__})


def main() -> int:
    """Run the command; its exit code."""
    return run("engine_agreement", __doc__, compare_all)


if __name__ == "__main__":
    sys.exit(main())
