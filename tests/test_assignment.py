"""The assignment that is shown is the one that a run has, to the byte."""

import re
from pathlib import Path

import pytest
import torch

import optim
import speedrun
from errors import UserError
from model import GPT
from optim import Group, Roles
from planner.__main__ import main
from planner.race import assignment

ROW = re.compile(r"\S+ +(embed|head|matrix|vector) .* [\d,]+$")


def test_it_needs_neither_data_nor_results_and_shows_every_parameter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["assignment", "muon", "--track=gpt2"]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if ROW.match(line)]
    with torch.device("meta"):
        gpt = GPT(speedrun.TRACKS["gpt2"].config(50257))
    assert [line.split()[0] for line in lines] == [name for name, _ in gpt.named_parameters()]
    qkv = next(line for line in lines if line.startswith("blocks.0.attn.qkv.weight"))
    cells = re.split(r"  +", qkv)
    assert cells[1:] == [
        "matrix", "2304 x 768", "3 x 768", "Muon", "0.025", "0.05", f"{4 * 2304 * 768:,}"
    ]  # fmt: skip
    head = next(line for line in lines if line.startswith("head.weight"))
    assert re.split(r"  +", head)[1:] == [
        "head", "50304 x 768", "AdamW", "0.004", "0.001", f"{8 * 50304 * 768 + 4:,}"
    ]  # fmt: skip
    assert not list(tmp_path.iterdir())
    totals = re.search(r"^Muon +48 +([\d,]+) +([\d,]+) +4\.00$", shown, re.MULTILINE)
    assert totals and totals.groups() == ("84,934,656", "339,738,624")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(optim.recipes()))
def test_the_bytes_shown_are_those_of_a_run(
    name: str, micro_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    entrant = speedrun.enter(name, "tiny", 1)
    with torch.device("meta"):
        gpt = GPT(micro_track.config(1024))
    try:
        rows = assignment.rows(gpt, entrant)
    except UserError as error:
        pytest.skip(str(error))
    trainer = speedrun.Trainer(micro_track, micro_options)
    trainer.run(entrant, seed=0)
    assert sum(row.state_bytes for row in rows) == trainer.engine.state_bytes()["state"]
    assert [row.name for row in rows] == [row.name for row in trainer.engine.roles()]


def test_a_rule_that_needs_numbers_is_stepped_with_some(
    micro_track: speedrun.Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for p in self.param_groups[0]["params"]:
                if p.grad.sum().item() != 0:
                    self.state[p]["rows"] = [torch.zeros(p.shape[0])]

    def picky(roles: Roles) -> list[Group]:
        return [Group(Picky, roles, lr=0.1)]

    monkeypatch.setitem(optim.recipes(), "picky", picky)
    with torch.device("meta"):
        gpt = GPT(micro_track.config(1024))
    rows = assignment.rows(gpt, speedrun.enter("picky", "tiny", 1))
    assert [row.state_bytes for row in rows] == [4 * row.shape[0] for row in rows]


def test_a_mistake_gets_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for word in ("moun", "lib:torch.optim.Muon:scope=all"):
        assert main(["assignment", word, "--track=tiny"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_options_with_which_a_rule_cannot_be_built_are_one_line(
    micro_flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Inverse(torch.optim.SGD):
        def __init__(self, params: list[torch.Tensor], lr: float) -> None:
            super().__init__(params, 1 / lr)

    def inverse(roles: Roles, lr: float = 1.0) -> list[Group]:
        return [Group(Inverse, roles, lr=lr)]

    monkeypatch.setitem(optim.recipes(), "inverse", inverse)
    assert speedrun.main(["inverse:lr=0", *micro_flags]) == 2
    error = capsys.readouterr().err
    assert "inverse:lr=0: float division by zero; change the options given" in error
    assert error.count("\n") == 1
