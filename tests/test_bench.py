"""The measurements of speed: the CSVs that they write.

python -m pytest tests/test_bench.py
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bench
import data.gpt2
from bench import disturbed, kernels, newton_schulz, optimizer_step, step, turns
from runtime import machine

RECORD = Path(__file__).parents[1] / "results" / "records" / "bench-epyc"


def test_a_bench_writes_what_it_measured_and_on_which_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cpu = torch.device("cpu")
    measured: list[bench.Row] = [{"step": "Muon", "ms": 20.5}, {"step": "AdamW", "ms": 0.8}]
    bench.write("step", measured, bench.environment(cpu))
    with (tmp_path / "results" / "bench" / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["ms"]) for row in rows] == [("Muon", "20.5"), ("AdamW", "0.8")]
    for row in rows:
        assert row["device"] == machine.device_name(cpu)
        assert row["threads"] == str(torch.get_num_threads())
        assert row["torch"] == torch.__version__
    assert capsys.readouterr().out.count(machine.device_name(cpu)) == 1  # below the table


@pytest.mark.parametrize(
    "main",
    [
        data.gpt2.main,
        disturbed.main,
        kernels.main,
        machine.main,
        newton_schulz.main,
        optimizer_step.main,
        step.main,
        turns.main,
    ],
    ids=lambda main: main.__module__,
)
def test_help_is_printed_and_nothing_is_done(
    main: Callable[[], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert f"usage: python -m {main.__module__} [-h]" in capsys.readouterr().out


def test_every_committed_csv_names_its_machine() -> None:
    paths = sorted(RECORD.glob("*.csv"))
    assert len(paths) == 4
    for path in paths:
        with path.open(newline="") as file:
            assert all(row["device"] for row in csv.DictReader(file)), path.name
