"""What the engine `sharded` does to the tensors of one process; tests/test_engines.py has several.

python -m pytest tests/test_sharded.py
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import engines
import optim
from bench.engine_agreement import CPU, MODELS
from bench.gpu_check.graphs_and_engines import one_process
from model import GPT

CONFIG = MODELS["untied"]


@pytest.fixture(scope="module")
def first() -> Iterator[engines.Engine]:
    with one_process():
        engine = engines.make("sharded", CPU, timeout=60)
        yield engine
        engine.close()


@pytest.fixture
def placed(first: engines.Engine) -> tuple[Any, GPT]:
    """An engine with a model of its own."""
    engine, gpt = first.another(), GPT(CONFIG)
    engine.wrap(gpt)
    gpt.init_weights(0)
    return engine, gpt


def build(engine: engines.Engine, recipe: str = "muon") -> None:
    engine.build(optim.plan(engine.roles(), recipe, {}, torch.float32))


def step(engine: engines.Engine, gpt: GPT, last: bool = True) -> None:
    tokens = torch.arange(18).view(2, 9)
    engine.backward(gpt(tokens[:, :-1], tokens[:, 1:]) / 16, last=last)
    engine.step()


def values(gpt: GPT) -> list[Tensor]:
    return [p.detach().clone() for p in gpt.parameters()]


def pieces_of_memory(gpt: GPT) -> int:
    return len({p.untyped_storage().data_ptr() for p in gpt.parameters()})


def test_a_plan_moves_the_parameters_together_and_the_empty_plan_apart(placed: Any) -> None:
    engine, gpt = placed
    before = values(gpt)
    build(engine)
    assert pieces_of_memory(gpt) == 5  # stacks of four shapes, and the row of AdamW
    assert all(map(torch.equal, before, values(gpt)))
    engine.build(())
    assert pieces_of_memory(gpt) == len(before)
    assert all(map(torch.equal, before, values(gpt)))
    assert all(p.grad is None for p in gpt.parameters())


def test_gradients_are_zeroed_in_place(placed: Any) -> None:
    engine, gpt = placed
    build(engine)
    at = [p.grad.data_ptr() for p in gpt.parameters()]
    step(engine, gpt)
    assert [p.grad.data_ptr() for p in gpt.parameters()] == at
    assert not any(p.grad.any() for p in gpt.parameters())


def test_what_is_restored_goes_on_as_before(placed: Any) -> None:
    engine, gpt = placed
    build(engine)
    step(engine, gpt)
    saved = engine.save()
    step(engine, gpt)
    after = values(gpt)
    engine.load(saved)
    assert not all(map(torch.equal, after, values(gpt)))
    step(engine, gpt)
    assert all(map(torch.equal, after, values(gpt)))


def test_runs_that_take_turns_keep_their_own_weights(first: engines.Engine, placed: Any) -> None:
    engine, gpt = placed
    build(engine)
    other, theirs = first.another(), GPT(CONFIG)
    other.wrap(theirs)
    theirs.init_weights(1)
    build(other, "adamw")
    before = values(gpt)
    step(other, theirs)
    assert all(map(torch.equal, before, values(gpt)))
    step(engine, gpt)
    other.build(())
    assert pieces_of_memory(gpt) == 5


def test_every_entry_of_the_model_has_one_owner(placed: Any) -> None:
    engine, gpt = placed
    for recipe in ("muon", "adamw"):
        build(engine, recipe)
        owned = {row.name: (row.start, row.stop) for row in engine.owned}
        assert owned == {name: (0, p.numel()) for name, p in gpt.named_parameters()}
        for row in engine.owned:
            assert any(
                row.param is p
                for group in engine.optimizers[row.optimizer].param_groups
                for p in group["params"]
            )


class Replacing(torch.optim.Optimizer):
    """A rule that puts its updates into new tensors, and drops the gradients."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, dict(lr=lr))

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.data = p.data - group["lr"] * p.grad
                p.grad = None


def test_a_rule_may_replace_what_it_is_given(placed: Any) -> None:
    engine, gpt = placed
    table = engine.roles()
    engine.build([optim.Group(Replacing, table, lr=0.1)])
    shared = pieces_of_memory(gpt)
    before = values(gpt)
    tokens = torch.arange(18).view(2, 9)
    engine.backward(gpt(tokens[:, :-1], tokens[:, 1:]) / 16, last=True)
    grads = [p.grad.clone() for p in gpt.parameters()]
    engine.step()
    for p, old, grad in zip(gpt.parameters(), before, grads, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * grad)
        assert p.grad is not None and not p.grad.any()
    assert pieces_of_memory(gpt) == shared < len(before)


def test_waiting_is_noted_for_the_clock(placed: Any) -> None:
    engine, gpt = placed
    build(engine)
    moments = iter(range(1000))
    engine.mark = lambda: next(moments)
    step(engine, gpt)
    spans = engine.exposed_communication
    # A wait for the gradients of each buffer, and one for all parameters at the end.
    assert len(spans) == 6 and all(end == begin + 1 for begin, end in spans)
    spans.clear()
    step(engine, gpt, last=False)  # a step that averages nothing waits for nobody
    assert spans == []


def test_a_step_in_a_context_of_its_own_sends_nothing(placed: Any) -> None:
    engine, gpt = placed
    build(engine)
    engine.mark = lambda: 0
    with engine.alone(gpt):
        step(engine, gpt)
    assert engine.exposed_communication == []
