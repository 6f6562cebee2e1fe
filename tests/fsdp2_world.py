"""What the processes of test_fsdp2 do: train small models in shards, and write down what they saw.

    OMP_NUM_THREADS=1 python tests/fsdp2_world.py FOLDER

One gloo world of three processes, with a group of two and a group of three in it. Each process
writes FOLDER/RANK.pt: a list of (name of the case, processes, what was seen).
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import engines  # noqa: E402
import optim  # noqa: E402
from bench._forked import work_in_world  # noqa: E402
from layers.config import GPTConfig  # noqa: E402
from model import GPT  # noqa: E402
from runtime.spectra import Spectra  # noqa: E402

PROCESSES, STEPS, SEQUENCES, MICROBATCHES = 3, 3, 12, 2
CPU = torch.device("cpu")
EVEN = GPTConfig(36, block_size=8, n_layer=2, n_head=3, n_embd=36, bias=False)
# Shards that are empty: of three processes, the last has none of 4 rows, nor of the 2 positions.
ODD = GPTConfig(
    19, block_size=2, n_layer=3, n_head=1, n_embd=4, tied=True, qk_norm=False, norm="layer",
    positions="learned", init="gpt2",
)  # fmt: skip
TABLE = replace(EVEN, embed_dtype="bfloat16")  # parameters of two types
# Of an entrant: its recipe, settings that show all it does in a few steps, and its model.
AGREE: dict[str, tuple[dict[str, Any], GPTConfig]] = {
    "muon": ({}, replace(EVEN, vocab_size=37, bias=True)),
    "muon-split": ({}, ODD),
    "adamw": ({}, ODD),
    # Of square matrices: the basis of a tall one is chosen by rounding where its gradient has none.
    "soap": ({"precondition_frequency": 2}, replace(EVEN, init="gpt2", mlp_ratio=1)),
    "muonclip": ({"tau": 1e-4}, ODD),
    "schedule-free": ({}, ODD),
}
RESUMED = ("muon", "adamw", "schedule-free")


def place(
    engine: engines.Engine, config: GPTConfig, kind: torch.dtype | None = None
) -> tuple[GPT, Any]:
    """A model in an engine. kind: the type of all parameters; None: as the model has them."""
    gpt = GPT(config).to(kind)
    wrapped = engine.wrap(gpt)
    with engine.weights():
        gpt.init_weights(0)
    return gpt, wrapped


def build(engine: engines.Engine, recipe: str, settings: dict[str, Any]) -> None:
    engine.build(optim.plan(engine.roles(), recipe, settings, torch.float32))


def batches(config: GPTConfig) -> Tensor:
    shape = STEPS, SEQUENCES, config.block_size + 1
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def passes(engine: engines.Engine, wrapped: Any, batch: Tensor) -> Tensor:
    """Forward and backward passes of this process's share of a batch; its mean loss."""
    mine, loss = batch.chunk(engine.world_size)[engine.rank], torch.zeros(())
    for number, part in enumerate(mine.chunk(MICROBATCHES), start=1):
        mean = wrapped(part[:, :-1], part[:, 1:]) / mine[:, 1:].numel()
        engine.backward(mean, last=number == MICROBATCHES)
        loss = loss + mean.detach()
    return loss


@torch.no_grad()
def validate(engine: engines.Engine, wrapped: Any, batch: Tensor) -> float:
    with engine.evaluation():
        return engine.all_reduce_mean(wrapped(batch[:, :-1], batch[:, 1:]))


def weights(engine: engines.Engine, gpt: GPT) -> dict[str, Tensor]:
    with engine.weights():
        return {name: p.detach().clone() for name, p in gpt.named_parameters()}


def train(
    engine: engines.Engine,
    recipe: str,
    settings: dict[str, Any],
    config: GPTConfig,
    kind: torch.dtype | None = torch.float64,
) -> dict[str, Any]:
    """A few steps, each validated; one process alone is the reference.

    kind: as in `place`. In float64 the order of sums makes no difference that Newton-Schulz, which
    is in float32, could enlarge.
    """
    gpt, wrapped = place(engine, config, kind)
    build(engine, recipe, settings)
    start = weights(engine, gpt)
    tau = settings.get("tau")
    seen: dict[str, Any] = {"losses": [], "norms": [], "validated": [], "sent": []}
    for step, batch in enumerate(batches(config)):
        engine.set_lr(1 - step / STEPS)
        sent = [engine.sent_bytes]
        with gpt.measuring(tau is not None):
            loss = passes(engine, wrapped, batch)
        sent += [engine.sent_bytes]
        seen["losses"].append(engine.all_reduce_mean(loss))
        seen["norms"].append(engine.grad_norm())
        seen["bytes"] = engine.state_bytes()
        sent += [engine.sent_bytes]
        engine.step()
        sent += [engine.sent_bytes]
        if tau is not None:
            largest = engine.all_reduce_max(gpt.pop_max_logits())
            with engine.weights():
                gpt.clip_qk(largest, tau)
        seen["validated"].append(validate(engine, wrapped, batch))
        seen["sent"].append((sent[1] - sent[0], sent[3] - sent[2]))
    seen["weights"], seen["start"] = weights(engine, gpt), start
    seen["owners"] = {name: cut.owner for name, cut in getattr(engine, "cuts", {}).items()}
    return seen


def layout(engine: Any) -> dict[str, Any]:
    """Who owns what, and what the owners' copies and the shards are."""
    gpt, wrapped = place(engine, AGREE["muon"][1])
    build(engine, "muon", {})
    passes(engine, wrapped, batches(gpt.config)[0])
    engine.step()
    whole = weights(engine, gpt)
    return {
        "owned": [(each.name, each.start, each.stop) for each in engine.owned],
        "plain": all(type(each.param) is torch.nn.Parameter for each in engine.owned),
        "right": all(
            torch.equal(each.param.flatten(), whole[each.name].flatten()[each.start : each.stop])
            for each in engine.owned
        ),
        "owners": {name: cut.owner for name, cut in engine.cuts.items()},
        "shards": {name: cut.local.clone() for name, cut in engine.cuts.items()},
        "whole": whole,
        "costs": {
            row.name: [(rows, row.param.size(1)) for rows in row.splits or (row.param.size(0),)]
            for row in engine.roles()
            if row.role == "matrix"
        },
    }  # fmt: skip


def changed(engine: Any) -> dict[str, Any]:
    """What is seen of a change of the whole weights: by passes, and by the owners."""
    gpt, wrapped = place(engine, ODD)
    build(engine, "muon", {})
    batch = batches(ODD)[0]
    validate(engine, wrapped, batch)
    with engine.weights(), torch.no_grad():
        types = {type(p) for p in gpt.parameters()}
        tied = gpt.head.weight is gpt.embed.weight
        shapes = {name: tuple(p.shape) for name, p in gpt.named_parameters()}
        for p in gpt.parameters():
            p.mul_(1.5)
    loss, kept = validate(engine, wrapped, batch), weights(engine, gpt)
    build(engine, "adamw", {})  # from the owners' copies to shards
    return {
        "types": types, "tied": tied, "shapes": shapes, "loss": loss, "weights": kept,
        "rebuilt": weights(engine, gpt),
    }  # fmt: skip


def restored(engine: Any) -> dict[str, Any]:
    """A step that is undone; then the same steps as without it."""
    gpt, wrapped = place(engine, ODD)
    build(engine, "muon", {})
    first, second, _ = batches(ODD)
    passes(engine, wrapped, first)
    engine.step()
    saved = engine.save()
    losses = []
    for _ in range(2):
        passes(engine, wrapped, second)
        engine.step()
        losses.append((validate(engine, wrapped, first), weights(engine, gpt)))
        engine.load(saved)
    return {"losses": losses}


def measured(engine: Any) -> dict[str, Any]:
    """The weights after steps with spectra and without, of rules on shards and on whole tensors."""
    found: dict[str, Any] = {}
    for recipe in ("muon", "adamw"):
        for steps in ((), range(STEPS)):
            own = engine.another()
            gpt, wrapped = place(own, ODD)
            plan = optim.plan(own.roles(), recipe, {}, torch.float32)
            own.build(plan)
            spectra = Spectra(own, gpt, plan, steps)
            rows = 0
            for step, batch in enumerate(batches(ODD)):
                passes(own, wrapped, batch)
                spectra.before(step)
                own.step()
                rows += len(spectra.after(step))
            found[f"{recipe} {len(steps)}"] = rows, weights(own, gpt)
    return found


class Failing(torch.autograd.Function):
    """x, whose gradient cannot be had."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise RuntimeError("out of memory")


def after_a_failure(engine: Any, where: str) -> dict[str, Any]:
    """Passes as if none had failed before in all processes; where: forward, backward or nowhere."""
    gpt, wrapped = place(engine, ODD)
    build(engine, "muon", {})
    saved, batch = engine.save(), batches(ODD)[0]

    def fail(module: Any, inputs: Any, output: Tensor) -> Tensor:
        if where == "forward":
            raise RuntimeError("out of memory")
        failing: Tensor = Failing.apply(output)
        return failing

    if where != "nowhere":
        hook = gpt.blocks[1].mlp.register_forward_hook(fail)
        try:
            passes(engine, wrapped, batch)
        except RuntimeError as error:
            assert str(error) == "out of memory"
        hook.remove()
        engine.load(saved)
    loss = engine.all_reduce_mean(passes(engine, wrapped, batch))
    return {"loss": loss, "norm": engine.grad_norm()}


def gone_on(engine: Any, recipe: str, folder: Path) -> dict[str, Any]:
    """The weights after steps without a pause, and after a checkpoint of two processes.

    The first group, of two processes, saves; every group goes on from there.
    """
    first, *rest = batches(ODD)
    found = {}
    for kind in ("unbroken", "resumed"):
        own = engine.another()
        gpt, wrapped = place(own, ODD, torch.float64)
        build(own, recipe, {})
        path = folder / f"{recipe}.pt"
        if kind == "unbroken":
            passes(own, wrapped, first)
            own.step()
            if own.world_size == 2:
                parts: list[Any] = [None] * 2
                dist.all_gather_object(parts, own.checkpoint(), group=own.group)
                if own.rank == 0:
                    tensors = {name: each for held, _ in parts for name, each in held.items()}
                    torch.save((tensors, [structure for _, structure in parts]), path)
                own.broadcast(None)  # it is there
        else:
            tensors, structures = torch.load(path)
            own.resume(tensors.__getitem__, structures)
        for batch in rest:
            passes(own, wrapped, batch)
            own.step()
        found[kind] = weights(own, gpt)
    return found


def clocked(engine: Any) -> dict[str, Any]:
    """How many marks each part of a step leaves, and validation between."""
    _, wrapped = place(engine, ODD)
    build(engine, "muon", {})
    batch, count, counts = batches(ODD)[0], iter(range(10**6)), []
    engine.mark = lambda: next(count)
    for work in (
        lambda: passes(engine, wrapped, batch),
        lambda: validate(engine, wrapped, batch),
        engine.step,
    ):
        work()
        counts.append([end - begin for begin, end in engine.exposed_communication])
        engine.exposed_communication.clear()
    return {"counts": counts}


def work(rank: int, folder: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for ranks in ([0, 1], [0, 1, 2]):  # one after the other
        group = dist.new_group(ranks)
        if rank not in ranks:
            continue
        made = {
            kind: engines.make("fsdp2", CPU, 60, group=group, comm_dtype=kind)
            for kind in ("float32", "bfloat16")
        }
        full, low = made["float32"], made["bfloat16"]
        for recipe, (settings, config) in AGREE.items():
            yield recipe, len(ranks), train(full.another(), recipe, settings, config)
        for name, engine in (("float32", full), ("bfloat16", low)):
            seen = train(engine.another(), "muon", {}, EVEN, kind=None)
            yield name, len(ranks), seen
            yield f"layout {name}", len(ranks), layout(engine.another())
            yield f"restored {name}", len(ranks), restored(engine.another())
            yield f"measured {name}", len(ranks), measured(engine)
        yield "table", len(ranks), train(full.another(), "adamw", {}, TABLE, kind=None)
        yield "changed", len(ranks), changed(full.another())
        for where in ("nowhere", "forward", "backward"):
            yield where, len(ranks), after_a_failure(full.another(), where)
        for recipe in RESUMED:
            yield f"{recipe} gone on", len(ranks), gone_on(full.another(), recipe, folder)
        yield "clocked", len(ranks), clocked(full.another())
        for engine in made.values():
            engine._watch.close()  # type: ignore[attr-defined]
    dist.barrier()


def main(out: str) -> None:
    folder = Path(out)
    optim.recipes()

    def write(rank: int) -> None:
        torch.save(list(work(rank, folder)), folder / f"{rank}.pt")

    work_in_world(PROCESSES, write, limit=200)


if __name__ == "__main__":
    main(*sys.argv[1:])
