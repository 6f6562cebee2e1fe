"""DeepSpeed as an engine: it learns what one process of ours learns, and refuses what it cannot.

    python -m pytest tests/test_deepspeed.py

All that needs two processes is done in one start of tests/zero_world.py, over gloo.
"""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch

import optim
import speedrun
from bench import zero
from engines import _deepspeed, deepspeed
from errors import UserError
from layers.config import GPTConfig
from model import GPT
from studies.audit import Row, verdict
from tests.zero_world import ROOT
from tracking import store

RECORD = ROOT / "results" / "records" / "deepspeed" / "zero.csv"
RACE = ["adamw", "muon", "--seeds=1", "--steps=6"]
STAGES = range(4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes leave: facts.json and a race."""
    folder = tmp_path_factory.mktemp("zero")
    flags = ["--width=32", "--seq-len=32", "--batch-tokens=256", "--val-tokens=512",
             "--val-every=4", "--dtype=float32", "--threads=1"]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr=127.0.0.1", "--nproc_per_node=2", "tests/zero_world.py", str(folder)]
    command += [
        *RACE,
        *flags,
        "--engine=deepspeed",
        "--zero-stage=2",
        f"--results={folder / 'two'}",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert speedrun.main([*RACE, *flags, "--no-compile", f"--results={folder / 'one'}"]) == 0
    return folder


@pytest.fixture
def facts(world: Path) -> Any:
    return json.loads((world / "facts.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_learn_what_one_does(facts: Any, stage: int, name: str) -> None:
    found = facts["stages"][stage][name]
    assert found["loss"] < 1e-5
    assert found["weights"] < (2e-5 if name == "muon" else 1e-6)
    assert found["norm"] < 1e-5
    assert found["shapes"], "the table of roles shows whole parameters"


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_can_be_saved_and_put_back_to_the_bit(facts: Any, stage: int) -> None:
    assert facts["stages"][stage]["again"]
    saved, here = f"{{'zero_stage': {stage}, 'processes': 4}}", 2 if stage else 1
    assert f"saved at {saved}, and this is" in facts["stages"][stage]["refusal"]
    assert f"'processes': {here}}}; ZeRO's parts go back" in facts["stages"][stage]["refusal"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_take_turns_as_if_each_were_alone(facts: Any, stage: int) -> None:
    assert facts["stages"][stage]["turns"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_what_changes_the_weights_between_steps_is_not_lost(facts: Any, stage: int) -> None:
    assert facts["stages"][stage]["clip"] < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_that_are_not_finite_end_a_run_and_are_not_skipped(
    facts: Any, stage: int
) -> None:
    assert facts["stages"][stage]["diverges"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_deepspeed_is_left_on_a_model_that_it_has_given_back(
    facts: Any, stage: int
) -> None:
    assert facts["stages"][stage]["left"] == 0 and facts["stages"][stage]["plain"]


@pytest.mark.slow
def test_each_stage_holds_and_sends_what_it_should(facts: Any) -> None:
    held = [facts["stages"][stage]["adamw"]["bytes"] for stage in STAGES]
    whole = held[0]["params"]
    for stage, parts in ((0, (1, 2)), (1, (1, 1.5)), (2, (1, 1.5)), (3, (0.5, 1.5))):
        # From stage 1 on there is a copy of the weights in the state: 3/2 of the weights.
        assert held[stage]["params"] == pytest.approx(parts[0] * whole, rel=1e-3)
        assert held[stage]["state"] == pytest.approx(parts[1] * whole, rel=1e-3)
    # Over the bytes of the weights: two microbatches; the first two stages send once a step.
    sent = [facts["stages"][stage]["adamw"]["sent"] for stage in STAGES]
    assert sent[:3] == pytest.approx([1, 1.5, 2.5], rel=1e-2) and sent[3] > sent[2]
    for stage in STAGES:  # a second run on the same model sends no more than the first
        found = facts["stages"][stage]
        assert found["sent again"] < 1.01 * found["muon"]["sent"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_the_audit_finds_muons_matrices_at_every_stage(facts: Any, stage: int) -> None:
    rows = [Row(**row) for row in facts["stages"][stage]["audit"]]
    assert facts["stages"][stage]["verdict"] == "" == verdict(rows)
    roles = {row.name: row for row in zero.fresh().roles()}
    for row in rows:
        role = roles[row.name].role
        assert row.rule == ("Muon" if role == "matrix" else "Adam"), row
        assert row.kind == {"embed": "embedding"}.get(role, role)
        assert row.shape == [*roles[row.name].param.shape]


@pytest.mark.slow
def test_the_audit_tells_of_each_trap(facts: Any) -> None:
    found = facts["audits"]
    assert "Muon owns head.weight, which is a head" in found["wte"][0]
    assert "steps it as plain SGD" in found["untagged"][0]
    assert found["clipping"][0] == "" and "gradient_clipping 1 clips" in found["clipping"][1]


@pytest.mark.slow
def test_the_audit_tells_matrices_in_parts_from_flattened_ones(facts: Any) -> None:
    assert facts["fsdp"]["2"] == ""
    assert "attn.qkv.weight, which is a flattened shard" in facts["fsdp"]["1"]


@pytest.mark.slow
def test_the_examples_learn(facts: Any) -> None:
    assert len(facts["examples"]) == 2
    for first, last in facts["examples"]:
        assert last < 0.5 * first


@pytest.mark.slow
def test_a_race_of_two_processes_has_the_losses_of_one(world: Path) -> None:
    ours, theirs = store.read_runs(world / "two"), store.read_runs(world / "one")
    assert {(run.engine, run.world_size, run.compiled) for run in ours} == {
        ("deepspeed-zero2", 2, False)
    }
    theirs = [next(b for b in theirs if b.entrant == a.entrant) for a in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert a.heat and a.final_loss == pytest.approx(b.final_loss, abs=1e-4)
        assert a.communication_seconds > 0 and a.communication_bytes > 0
    assert len(ours) == 2


@pytest.mark.slow
def test_the_table_of_agreement_is_true(facts: Any) -> None:
    assert {row["setting"] + str(row["stage"]): zero.fault(row) for row in facts["table"]} == {
        case.setting + str(case.stage): "" for case in zero.CASES
    }


def test_the_committed_table_has_every_case_and_its_reason() -> None:
    with RECORD.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [
        (r["setting"], r["stage"], r["precision"], r["must be"], r["issues"]) for r in rows
    ] == [(c.setting, str(c.stage), c.precision, c.must_be, c.issues) for c in zero.CASES], (
        "run make zero, and copy its CSV into the record"
    )
    for row, case in zip(rows, zero.CASES, strict=True):
        assert case.why in row["why"] and zero.fault(dict(row)) == ""


def test_a_row_that_is_not_as_it_must_be_is_a_fault() -> None:
    row: dict[str, Any] = {"muon": "2e-06", "adam": "1e-08", "must be": zero.ROUNDING, "why": ""}
    assert zero.fault(row) == ""
    assert "is not below" in zero.fault(row | {"adam": "2e-05"})
    assert "is not above" in zero.fault(row | {"must be": zero.WRONG})
    assert "was not refused" in zero.fault(row | {"must be": ""})


# ---- What it refuses ----------------------------------------------------------------------------


@pytest.fixture
def roles() -> Any:
    with torch.device("meta"):
        return GPT(GPTConfig(37, block_size=16, n_layer=1, n_head=3, n_embd=36)).roles()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lion", {}, "has no optim.lion.Lion; DeepSpeed has AdamW"),
        ("soap", {}, "has no optim.soap.SOAP"),
        ("normuon", {}, "second_moment=row cannot be had, it must be none; DeepSpeed has"),
        ("muon", {"nesterov": False}, "nesterov=False cannot be had, it must be True"),
        ("muon", {"ns_steps": 6}, "ns_steps=6 cannot be had, it must be 5"),
        ("muon", {"momentum_warmup": 9}, "momentum_warmup=9 cannot be had"),
        ("muon", {"sign": True}, "sign=True cannot be had"),
        ("muon", {"cautious": True}, "cautious=True cannot be had"),
        ("polar-express", {}, "ns_coefficients=polar-express cannot be had"),
        ("moonlight", {}, "adjust_lr_fn=match_rms_adamw cannot be had"),
    ],
)
def test_a_plan_that_it_cannot_express_is_refused(
    roles: Any, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=f"--engine deepspeed: {message}"):
        deepspeed.translated(optim.plan(roles, name, settings, torch.float32), stage=1)


def test_an_option_that_nobody_knows_is_refused(roles: Any) -> None:
    group = optim.Group(torch.optim.AdamW, roles, lr=0.1, amsgrad=True)
    with pytest.raises(UserError, match="amsgrad=True cannot be had, it must be False"):
        deepspeed.translated([group], stage=1)


def test_what_a_plan_leaves_out_is_the_rules_default_and_not_deepspeeds(roles: Any) -> None:
    (group,) = deepspeed.translated([optim.Group(torch.optim.AdamW, roles, lr=0.1)], stage=1)
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.01)


def test_a_choice_of_newton_schulz_is_refused(roles: Any) -> None:
    with pytest.raises(UserError, match="ns_backend=gram cannot be had, it must be auto"):
        deepspeed.translated(optim.plan(roles, "muon", {}, torch.float32, "gram"), stage=1)


def test_matrices_that_it_cannot_take_apart_are_refused_with_what_to_race() -> None:
    with torch.device("meta"):
        grouped = GPT(GPTConfig(37, 16, n_layer=1, n_head=4, n_kv_head=2, n_embd=32)).roles()
        alike = GPT(GPTConfig(37, 16, n_layer=1, n_head=4, n_embd=32)).roles()
    apart, fused = ({"blocks": blocks} for blocks in ("qkv", "fused"))
    for roles, stage in ((grouped, 1), (alike, 0)):
        with pytest.raises(UserError, match="is 3 matrices, of .* race muon:blocks=fused"):
            deepspeed.translated(optim.plan(roles, "muon", apart, torch.float32), stage)
        deepspeed.translated(optim.plan(roles, "muon", fused, torch.float32), stage)
    groups = deepspeed.translated(optim.plan(alike, "muon", apart, torch.float32), stage=1)
    assert {group["blocks"] for group in groups if group["use_muon"]} == {1, 3}


def test_what_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    cpu = torch.device("cpu")
    monkeypatch.setattr(_deepspeed, "version", missing)
    with pytest.raises(UserError, match="not installed; run: make setup EXTRAS=deepspeed"):
        _deepspeed.load(cpu)
    monkeypatch.setattr(_deepspeed, "version", lambda _: "0.19.6")
    with pytest.raises(UserError, match=r"DeepSpeed 0\.19\.6 is installed"):
        _deepspeed.load(cpu)


def test_one_process_and_wrong_stages_are_refused(
    micro_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert speedrun.main(["adamw", "--engine=deepspeed", *micro_flags]) == 2
    assert "--engine deepspeed: needs the processes that torchrun" in capsys.readouterr().err
    assert speedrun.main(["adamw", "--engine=deepspeed", "--zero-stage=4", *micro_flags]) == 2
    assert "--zero-stage 4: must be 0, 1, 2 or 3" in capsys.readouterr().err


def test_the_version_is_pinned_where_it_is_checked() -> None:
    assert f"deepspeed=={_deepspeed.VERSION}\n" in (ROOT / "requirements-deepspeed.txt").read_text()
