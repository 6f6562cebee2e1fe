"""What the processes of test_deepspeed do, all in one start: facts about DeepSpeed's engine.

    torchrun --standalone --local-addr=127.0.0.1 --nproc_per_node=2 tests/zero_world.py FOLDER ...

Rank 0 writes the facts to FOLDER/facts.json: the table of bench.zero, what the engine does at each
stage, what the audit finds, and the losses of the examples. The other arguments are those of the
race that comes last.
"""

import importlib.util
import json
import sys
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import optim  # noqa: E402
import speedrun  # noqa: E402
from bench import zero  # noqa: E402
from engines import _deepspeed, _rules, deepspeed  # noqa: E402
from errors import UserError  # noqa: E402
from model import GPT  # noqa: E402
from studies import audit  # noqa: E402

EXAMPLE = ROOT / "examples" / "deepspeed" / "train.py"
TAU = 0.2  # of QK-Clip


def plan(roles: Any, stage: int, name: str = "muon") -> list[optim.Group]:
    """Query, key and value apart, where the stage can have that."""
    blocks = {"blocks": "qkv" if stage else "fused"} if name == "muon" else {}
    return optim.plan(roles, name, blocks, torch.float32)


def begin(engine: Any, stage: int, name: str = "muon") -> tuple[GPT, Any]:
    gpt = zero.fresh()
    model = engine.wrap(gpt)
    engine.build(plan(engine.roles(), stage, name))
    return gpt, model


def steps(engine: Any, model: Any, numbers: Any = range(3), clip: GPT | None = None) -> list[float]:
    """The losses of these steps, in microbatches of two sequences, with a falling lr."""
    losses = []
    for number in numbers:
        engine.set_lr(1 - number / 10)
        mine = zero.batches()[number].chunk(engine.world_size)[engine.rank]
        total, parts = torch.zeros(()), mine.split(2)
        for count, part in enumerate(parts, start=1):
            loss = model(part[:, :-1], part[:, 1:]) / mine[:, 1:].numel()
            engine.backward(loss, last=count == len(parts))
            total += loss.detach()
        losses.append(engine.all_reduce_mean(total))
        engine.step()
        if clip is not None:
            with engine.weights():
                clip.clip_qk(torch.ones(2, 3), TAU)
    return losses


def alone(stage: int, name: str, clip: bool = False) -> tuple[list[float], GPT]:
    """What one process does: its losses, and the model."""
    gpt, losses = zero.fresh(), []
    optimizers = _rules.build(plan(gpt.roles(), stage, name))
    for number in range(3):
        _rules.set_lr(optimizers, 1 - number / 10)
        loss = zero.mean_loss(gpt, zero.batches()[number])
        loss.backward()
        losses.append(loss.item())
        _rules.step(optimizers)
        gpt.zero_grad()
        if clip:
            gpt.clip_qk(torch.ones(2, 3), TAU)
    return losses, gpt


def off(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest relative difference of a tensor."""
    pairs = zip(ours, theirs, strict=True)
    return max(((a.detach() - b.detach()).norm() / b.detach().norm()).item() for a, b in pairs)


def whole(engine: Any, gpt: GPT) -> list[torch.Tensor]:
    with engine.weights():
        return [p.detach().clone() for p in gpt.parameters()]


def hooks(gpt: GPT) -> int:
    """The hooks on a model and its parameters, and what DeepSpeed has written on them."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
             "_post_accumulate_grad_hooks")  # fmt: skip
    held = [*gpt.modules(), *gpt.parameters()]
    written = [name for p in gpt.parameters() for name in vars(p)]
    for module, clean in zip(gpt.modules(), zero.fresh().modules(), strict=True):
        written += vars(module).keys() ^ vars(clean).keys()
    return sum(len(getattr(each, kind, None) or ()) for each in held for kind in kinds) + len(
        written
    )


def at(stage: int, engine: deepspeed.Engine) -> dict[str, Any]:
    """What the engine does at a stage."""
    engine.zero_stage = stage
    facts: dict[str, Any] = {}
    for name in ("adamw", "muon"):
        right, one = alone(stage, name)
        gpt, model = begin(engine, stage, name)
        shapes = [tuple(row.param.shape) for row in engine.roles()]
        sent = engine.sent_bytes
        losses = steps(engine, model)
        facts[name] = {
            "loss": max(abs(a - b) for a, b in zip(losses, right, strict=True)),
            "weights": off(whole(engine, gpt), list(one.parameters())),
            "sent": (engine.sent_bytes - sent) / 3 / sum(p.nbytes for p in one.parameters()),
            "bytes": engine.state_bytes(),
            "shapes": shapes == [tuple(p.shape) for p in one.parameters()],
        }
        saved = engine.save()
        engine.backward(zero.mean_loss(model, zero.batches()[0].chunk(2)[engine.rank]), last=True)
        zero.mean_loss(one, zero.batches()[0]).backward()
        right = torch.nn.utils.get_total_norm([p.grad for p in one.parameters()]).item()
        facts[name]["norm"] = abs(engine.grad_norm() / right - 1)
        engine.load(saved)  # clears the gradients

    after = steps(engine, model)
    engine.load(saved)
    facts["again"] = steps(engine, model) == after
    try:
        json.dumps(saved["structure"])
        elsewhere = saved["structure"] | {"layout": {"zero_stage": stage, "processes": 4}}
        engine.load(saved | {"structure": elsewhere})
    except UserError as error:
        facts["refusal"] = str(error)

    other = engine.another()
    gpt, model = begin(engine, stage, "adamw")
    _, model_beside = begin(other, stage)
    turns: tuple[list[float], list[float]] = ([], [])
    for number in range(3):
        turns[0].extend(steps(engine, model, [number]))
        turns[1].extend(steps(other, model_beside, [number]))
    other.build(())
    in_rows = [steps(engine, begin(engine, stage, name)[1]) for name in ("adamw", "muon")]
    facts["turns"] = in_rows == list(turns)

    gpt, model = begin(engine, stage)
    steps(engine, model)
    engine.build(plan(engine.roles(), stage))  # on the same model: nothing of the last run counts
    sent = engine.sent_bytes
    steps(engine, model)
    facts["sent again"] = (
        (engine.sent_bytes - sent) / 3 / sum(p.nbytes for p in zero.fresh().parameters())
    )
    engine.build(())
    gpt, model = begin(engine, stage)
    facts["clip"] = off(
        (steps(engine, model, clip=gpt), whole(engine, gpt))[1],
        list(alone(stage, "muon", clip=True)[1].parameters()),
    )
    facts["audit"] = [row._asdict() for row in audit.audit(gpt, engine.ds)]
    facts["verdict"] = audit.verdict(audit.audit(gpt, engine.ds))
    engine.backward(zero.mean_loss(model, zero.batches()[0].chunk(2)[engine.rank]) * nan, last=True)
    engine.step()
    facts["diverges"] = not any(p.isfinite().all() for p in whole(engine, gpt))
    engine.build(())
    facts["left"] = hooks(gpt)
    zero.mean_loss(gpt, zero.batches()[0]).backward()
    facts["plain"] = all(p.grad is not None and p.grad.shape == p.shape for p in gpt.parameters())
    return facts


def audits(engine: deepspeed.Engine) -> dict[str, Any]:
    """What the audit says of engines that a user has made wrong."""
    found = {}
    for name, config in (("wte", zero.FROM_CONFIG), ("untagged", {}), ("clipping", {})):
        gpt = zero.fresh()
        case = zero.Case(name, 2, "float32", "")
        config = zero.base_config(case) | config
        optimizer = None
        if name != "wte":
            matrices = [row.param for row in gpt.roles() if row.role == "matrix"]
            others = [row.param for row in gpt.roles() if row.role != "matrix"]
            for p in matrices:
                p.use_muon = name != "untagged"  # type: ignore[attr-defined]
            groups = [{"params": matrices, "use_muon": True}, {"params": others, "use_muon": False}]
            optimizer = _deepspeed.optimizer_class()(groups)
        if name == "clipping":
            del config["gradient_clipping"]
        ds, *_ = engine.module.initialize(model=gpt, optimizer=optimizer, config=config)
        rows = audit.audit(gpt, ds)
        found[name] = [audit.verdict(rows), *audit.notes(ds)]
        ds.destroy()
    return found


def audits_of_fsdp() -> dict[str, str]:
    """What the audit says of Muon on the matrices of a model that FSDP has wrapped."""
    found = {}
    for name in ("2", "1"):
        gpt: Any = zero.fresh()
        if name == "2":
            fully_shard(gpt, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
        else:
            gpt = FullyShardedDataParallel(gpt, use_orig_params=True, device_id=torch.device("cpu"))
        hidden = [p for n, p in gpt.named_parameters() if n.endswith(("qkv.weight", "proj.weight"))]
        muon = type("Muon", (torch.optim.SGD,), {})(hidden, lr=0.1)
        found[name] = audit.verdict(audit.audit(gpt, muon))
    return found


def examples() -> list[tuple[float, float]]:
    """The first and the last loss of the example, from its config and with a client optimizer."""
    spec = importlib.util.spec_from_file_location("train", EXAMPLE)
    assert spec and spec.loader
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    said: list[str] = []

    def say(*words: str, sep: str = "") -> None:
        said.extend(words)

    losses = [train.main(arguments, say=say) for arguments in ([], ["--client"])]
    assert said.count("Muon has its matrices") == 2, said
    return losses


def main(folder: str, *race: str) -> int:
    torch.set_num_threads(1)
    engine = deepspeed.Engine(torch.device("cpu"), timeout=120)
    facts = {
        "table": zero.table(engine),
        "stages": [at(stage, engine) for stage in range(4)],
        "audits": audits(engine),
        "fsdp": audits_of_fsdp(),
        "examples": examples(),
    }
    engine._watch.close()  # the race has its own
    if engine.rank == 0:
        (Path(folder) / "facts.json").write_text(json.dumps(facts))
    return speedrun.main(race)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
