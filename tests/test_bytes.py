"""The bytes that states really hold.

    python -m pytest tests/test_bytes.py

Claims: tensors that are made of others count what those hold; memory that is shared counts once;
parameters and gradients that a rule keeps are no state; nothing is missed, however it is nested.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from engines._bytes import held_bytes
from engines.single import Engine
from layers.config import GPTConfig
from model import GPT
from optim import Group
from planner.race.dry_run import rule_costs

CONFIG = GPTConfig(vocab_size=37, block_size=8, n_layer=1, n_head=2, n_embd=16)


class EightBit(Tensor):
    """A float32 tensor in codes of a byte, a scale for each block and a table for all."""

    codes: Tensor
    scale: Tensor
    table: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, table: Tensor) -> "EightBit":
        made: EightBit = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, codes.shape, dtype=torch.float32, device=codes.device
        )
        made.codes, made.scale, made.table = codes, scale, table
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale", "table"], None

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any, kwargs: Any = None) -> Any:
        raise NotImplementedError(function)


class Shell(EightBit):
    """The same, for which torch.compile has no name of its parts."""

    __tensor_flatten__ = None  # type: ignore[assignment]


@dataclass
class Box:
    inside: Tensor


TABLE = torch.zeros(256)
SPARSE = torch.eye(4).to_sparse()
BASE = torch.zeros(100)


def csr() -> Tensor:
    return torch.sparse_csr_tensor([0, 1, 2], [0, 1], [1.0, 1.0])


def eight_bit(kind: type = EightBit, n: int = 64) -> Any:
    return kind(torch.zeros(n, dtype=torch.uint8), torch.zeros(n // 16), TABLE)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("held", "size"),
    [
        (torch.zeros(3), 12),
        ({"a": [torch.zeros(3), (torch.zeros(2, dtype=torch.bfloat16),)], "b": 1.0}, 16),
        (deque([torch.zeros(3), {torch.zeros(1)}]), 16),
        (Box(torch.zeros(5)), 20),
        ([BASE, BASE[:10], BASE.view(10, 10).T], 400),
        ([BASE[:10]], 400),  # a view keeps all of it
        (torch.zeros(1).expand(1000), 4),
        (torch.zeros(5, device="meta"), 20),
        ([torch.zeros(5, device="meta"), torch.zeros(5, device="meta")], 40),
        (eight_bit(), 64 + 16 + 1024),
        ([eight_bit(), eight_bit()], 2 * (64 + 16) + 1024),
        (eight_bit(Shell), 64 + 16 + 1024),
        (SPARSE, 4 * 4 + 2 * 4 * 8),
        (csr, 3 * 8 + 2 * 8 + 2 * 4),
        (None, 0),
    ],
)
def test_bytes_are_those_of_the_memory_behind(held: Any, size: int) -> None:
    assert held_bytes(held() if callable(held) else held) == size


class Keeps(torch.optim.SGD):
    """Keeps all sorts of things."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.everywhere = torch.zeros(7)
        self.inner = torch.optim.Adam(self.param_groups, lr=lr)

    def step(self, closure: Any = None) -> Any:
        for p in (p for group in self.param_groups for p in group["params"]):
            self.state[p] = {
                "itself": p, "view": p.detach().view(-1), "gradient": p.grad, "moment": eight_bit(),
            }  # fmt: skip
        self.state["all"] = {"numbers": torch.zeros(3)}  # type: ignore[index]
        self.inner.step()


def test_a_state_holds_what_is_neither_parameter_nor_gradient() -> None:
    engine, model = Engine(torch.device("cpu"), 0), GPT(CONFIG)
    engine.wrap(model)
    engine.build([Group(Keeps, model.roles(), lr=0.1)])
    engine.keep_grads = True
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    engine.step()
    total = sum(p.nbytes for p in model.parameters())
    count = len(list(model.parameters()))
    adam = 2 * total + 4 * count
    own = count * (64 + 16) + 1024 + 7 * 4 + 3 * 4
    assert engine.state_bytes() == {"params": total, "grads": total, "state": adam + own}


def test_the_planner_counts_the_same() -> None:
    rows = GPT(CONFIG).roles()
    first, *others = rule_costs(Group(Keeps, rows, lr=0.1), "keeps")
    moments = [2 * row.param.nbytes + 4 + 64 + 16 for row in rows]
    assert [cost.state_bytes for cost in others] == moments[1:]
    assert first.state_bytes == moments[0] + 1024 + 7 * 4 + 3 * 4
