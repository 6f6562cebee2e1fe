"""What a race writes down of its machine: only facts, as short texts, whatever the machine is."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from host import cores, environment
from leaderboard import form
from leaderboard.form import EVIDENCE, Record
from leaderboard.intake import listing
from tracking import resume, store


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_it_holds_the_packages_and_the_processor_as_texts() -> None:
    found = environment.describe()
    assert found["numpy"] == np.__version__ and found["torch"] == metadata.version("torch")
    assert found["python"] == platform.python_version() == sys.version.split()[0]
    assert found["cores"] == str(cores.cores()) and found["cpu"] and found["system"]
    assert all(isinstance(value, str) and 0 < len(value) <= 200 for value in found.values())


def test_what_is_not_there_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setattr(environment, "PACKAGES", ("numpy", "no-such-package"))
    found = environment.describe()
    assert "numpy" in found and not {"no-such-package", "gpu", "driver"} & set(found)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'NVIDIA H100 80GB HBM3, 570.1'; echo 'NVIDIA H100 80GB HBM3, 570.1'",
         {"gpu": "2x NVIDIA H100 80GB HBM3", "driver": "570.1"}),
        ("echo 'No devices were found'; exit 6", {}),
        ("true", {}),
    ],
)  # fmt: skip
def test_the_gpus_and_their_driver_are_those_that_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: dict[str, str]
) -> None:
    program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = environment.describe()
    assert {key: found[key] for key in ("gpu", "driver") if key in found} == expected


def test_settings_that_change_a_step_are_kept_and_no_other_variable_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/home/a-name/cache")
    monkeypatch.setenv("TORCH_LOGS", "x" * 999)
    monkeypatch.setenv("NCCL_DEBUG", "")
    monkeypatch.setenv("MY_TOKEN", "a secret")
    monkeypatch.setenv("AWS_OMP_KEY", "a secret")
    found = environment.describe()
    assert (found["OMP_NUM_THREADS"], found["ONEDNN_MAX_CPU_ISA"]) == ("1", "AVX2")
    assert len(found["TORCH_LOGS"]) == 200 and "NCCL_DEBUG" not in found
    assert not any("a secret" in value or "a-name" in value for value in found.values())


def test_a_race_keeps_it_when_it_is_opened(tmp_path: Path) -> None:
    options = dict.fromkeys(resume.UNRECORDED, "")
    race, _ = resume.open_race(tmp_path, ["adamw"], None, {"track": "tiny"}, options)
    assert store.read_setup(tmp_path, race)["environment"] == environment.describe()


def test_a_record_keeps_it_word_for_word(tmp_path: Path) -> None:
    facts = environment.describe() | {"odd key": 'a "quoted" \\ value'}
    record = Record(EVIDENCE, "2026-11-27", "x", ("A. Name",), "Does it hold?", environment=facts)
    form.write(tmp_path, record)
    assert form.read(tmp_path, listing(tmp_path)).environment == facts
