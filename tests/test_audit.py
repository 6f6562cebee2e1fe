"""The audit of somebody's own trainer: what it says of each mistake, and of none.

    python -m pytest tests/test_audit.py

DeepSpeed's engines are audited in tests/test_deepspeed.py, on two processes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from bench.gpu_check.graphs_and_engines import one_process
from layers.config import preset
from model import GPT
from muon import Muon
from studies import audit
from studies.audit import verdict


class Small(nn.Module):
    """A language model of somebody's own: two tables, a matrix, a vector, a head."""

    def __init__(self, tied: bool = False, head: str = "out") -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(48, 16), nn.Embedding(8, 16)
        self.layer = nn.Linear(16, 16)
        setattr(self, head, nn.Linear(16, 48, bias=False))
        if tied:
            self.out.weight = self.tokens.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.out(self.layer(self.tokens(x))).flatten(0, 1), x.flatten())


def split(model: nn.Module, *muons: str) -> list[torch.optim.Optimizer]:
    """Muon on the parameters of these names, AdamW on the rest."""
    named = dict(model.named_parameters())
    mine = [named.pop(name) for name in muons]
    adam = torch.optim.AdamW(named.values(), lr=0.003)
    return [adam, *([torch.optim.Muon(mine, lr=0.02)] if mine else [])]


def test_each_parameter_has_its_kind_its_rule_and_its_lr() -> None:
    model = Small()
    rows = audit.audit(model, split(model, "layer.weight"))
    assert [(row.name, row.shape, row.kind, row.rule, row.lr) for row in rows] == [
        ("tokens.weight", (48, 16), "embedding", "AdamW", 0.003),
        ("places.weight", (8, 16), "embedding", "AdamW", 0.003),
        ("layer.weight", (16, 16), "matrix", "Muon", 0.02),
        ("layer.bias", (16,), "vector", "AdamW", 0.003),
        ("out.weight", (48, 16), "head", "AdamW", 0.003),
    ]
    assert verdict(rows) == ""
    assert "layer.weight   16 x 16  matrix     Muon   0.02" in audit.show(rows)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tokens.weight", "an embedding"), ("places.weight", "an embedding"),
        ("out.weight", "a head"), ("layer.bias", "a vector"),
    ],
)  # fmt: skip
def test_muon_must_not_have(name: str, what: str) -> None:
    model = Small()
    # torch's Muon refuses a vector itself; one with a group for Adam does not.
    named = dict(model.named_parameters())
    optimizer = torch.optim.SGD([named.pop(name)], lr=0.1)
    kind = type("MuonWithAdam", (torch.optim.SGD,), {})
    optimizer.__class__ = kind
    optimizer.add_param_group({"params": list(named.values()), "use_muon": False})
    found = verdict(audit.audit(model, optimizer))
    assert found == f"Muon owns {name}, which is {what}; give it to another rule"


def test_muon_must_have_something() -> None:
    model = Small()
    assert "Muon owns no parameter" in verdict(audit.audit(model, split(model)))
    another = Small()  # made anew after the optimizer, as by a wrapping
    optimizers = split(model, "layer.weight")
    rows = audit.audit(another, optimizers)
    assert "make the optimizer after the model is wrapped" in verdict(rows)
    assert {row.rule for row in rows} == {"none"}


def test_a_tied_table_is_an_embedding_and_a_name_may_say_that_it_is_a_head() -> None:
    tied, named = Small(tied=True), Small(head="lm_head")
    kinds = {row.name: row.kind for row in audit.audit(tied, split(tied))}
    assert kinds["tokens.weight"] == "embedding" and "out.weight" not in kinds
    wide = nn.ModuleDict({"tokens": nn.Embedding(16, 16), "a": nn.Linear(16, 16), "model": named})
    kinds = {row.name: row.kind for row in audit.audit(wide, split(wide))}
    assert kinds["a.weight"] == "matrix" and kinds["model.lm_head.weight"] == "head"


def test_groups_may_say_which_rule_they_are_for() -> None:
    model = Small()
    optimizer = Muon([model.layer.weight])
    optimizer.param_groups.append({"params": [model.out.weight], "algorithm": "adamw", "lr": 0.1})
    rules = {row.name: row.rule for row in audit.audit(model, optimizer)}
    assert rules["layer.weight"] == "Muon" and rules["out.weight"] == "adamw"


def test_the_models_of_this_project_are_told_apart_as_their_own_table_does() -> None:
    for name in ("tiny", "tiny-gqa", "tiny-mla", "tiny-classic"):
        gpt = GPT(preset(name, 1024, 32, None))
        kinds = {row.name: row.kind for row in audit.audit(gpt, split(gpt))}
        for row in gpt.roles():
            known = {"embed": "embedding"}.get(row.role, row.role)
            if (row.role == "head" and gpt.config.tied) or row.name == "positions.weight":
                known = "embedding"  # a table that is both; a table of positions
            assert kinds[row.name] == known, (name, row.name)


# ---- What FSDP makes of parameters --------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[None]:
    with one_process():
        torch.distributed.init_process_group("gloo")
        yield
        torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP is switching")
def test_fsdp_2_keeps_matrices_and_fsdp_1_makes_one_vector_of_all(group: None) -> None:
    """On two processes, see tests/test_deepspeed.py."""
    model = Small()
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    rows = audit.audit(model, split(model, "layer.weight"))
    assert verdict(rows) == ""
    assert {row.name: row.shape for row in rows}["layer.weight"] == (16, 16)

    flat = FullyShardedDataParallel(Small(), device_id=torch.device("cpu"))
    (row,) = audit.audit(flat, type("MuonLike", (torch.optim.SGD,), {})(flat.parameters(), lr=0.1))
    assert (row.kind, row.rule) == ("shard", "Muon")
    assert "which is a flattened shard" in verdict([row])


# ---- The command --------------------------------------------------------------------------------

TRAINER = """
import torch
from torch import nn

def {name}():
    model = nn.Sequential(nn.Embedding(48, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 48))
    {body}

def right():
    model = nn.Sequential(nn.Embedding(48, 16), nn.Linear(16, 16, bias=False))
    muon = torch.optim.Muon([model[1].weight], lr=0.02)
    return model, [muon, torch.optim.AdamW(model[0].parameters(), lr=0.003)]
"""
WRONG = "return model, torch.optim.Muon([model[1].weight, model[2].weight])"


def trainer(tmp_path: Path, body: str = WRONG, name: str = "make") -> str:
    path = tmp_path / "theirs.py"
    path.write_text(TRAINER.format(name=name, body=body))
    return str(path)


def test_the_command_prints_the_table_and_ends_with_1_for_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = trainer(tmp_path)
    assert audit.main([f"{file}:make"]) == 1
    said = capsys.readouterr()
    assert said.err == "Muon owns 2.weight, which is a head; give it to another rule\n"
    assert "2.bias     48       vector     none" in said.out
    assert audit.main([f"{file}:right"]) == 0
    assert capsys.readouterr().err == ""


def test_a_module_is_named_with_dots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert audit.main(["theirs:right"]) == 0
    assert "1.weight" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("body", "spelled", "message"),
    [
        (WRONG, "{file}", "must be FILE.py:FUNCTION"),
        (WRONG, "{file}:other", "has no function other"),
        (WRONG, "{file}x.py:make", "there is no file"),
        (WRONG, "no.such.module:make", "importing it fails: ModuleNotFoundError"),
        ("raise OSError('no data')", "{file}:make", "calling it fails: OSError: no data"),
        ("return model", "{file}:make", "returned Sequential; it must return (model, optimizer)"),
        ("return model, 3", "{file}:make", "int: is neither an optimizer nor DeepSpeed's engine"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, spelled: str, message: str
) -> None:
    assert audit.main([spelled.format(file=trainer(tmp_path, body))]) == 2
    said: Any = capsys.readouterr().err
    assert message in said and "Traceback" not in said
