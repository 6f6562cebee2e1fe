"""Which precision and which way to compute attention a run takes, by measurement.

    python -m pytest tests/test_fastest.py

Claims: the least time counts, of turns on one thread; bfloat16 is taken where units are fast at it,
plain attention where it fits the memory and is clearly faster; the row says which.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

import speedrun
from errors import UserError
from layers.attention import WAYS
from layers.config import preset
from runtime import fastest, machine


def test_auto_takes_bfloat16_only_where_units_are_fast_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu, seconds = torch.device("cpu"), {"bfloat16": 1.0, "float32": 1.4}
    monkeypatch.setattr(fastest, "least_seconds", lambda candidates, device: seconds)
    monkeypatch.setattr(machine, "bfloat16_units", lambda device: ["amx_bf16"])
    assert speedrun.choose_dtype("auto", cpu, 128) == torch.float32
    seconds["float32"] = 4.0
    assert speedrun.choose_dtype("auto", cpu, 128) == torch.bfloat16
    assert speedrun.choose_dtype("float32", cpu, 128) == torch.float32
    monkeypatch.delattr(fastest, "least_seconds")  # emulated, a product would take minutes
    monkeypatch.setattr(machine, "bfloat16_units", lambda device: [])
    assert speedrun.choose_dtype("auto", cpu, 128) == torch.float32


def test_the_least_time_counts_of_turns_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order, threads = [0.0], list[str](), set[int]()
    costs = {"slow": iter([9.0] * 3 + [2.0] + [9.0] * 50), "quick": iter([1.0] * 54)}
    monkeypatch.setattr(fastest.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(fastest, "ENOUGH", 60.0)
    torch.set_num_threads(2)

    def call(name: str) -> None:
        order.append(name)
        threads.add(torch.get_num_threads())
        now[0] += next(costs[name])

    calls = {name: partial(call, name) for name in costs}
    assert fastest.least_seconds(calls, torch.device("cpu")) == {"slow": 2.0, "quick": 1.0}
    assert order == ["slow", "quick"] * 8  # the first two are not timed; 60 seconds are enough
    assert threads == {1} and torch.get_num_threads() == 2


def test_the_faster_way_is_taken_and_fused_where_they_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu, seconds = preset("tiny", 1024, 128), torch.device("cpu"), {"fused": 1.0}
    called = []

    def least_seconds(calls: dict[str, Callable[[], None]], device: torch.device) -> dict:
        called.append([call() for call in calls.values()])
        return seconds

    monkeypatch.setattr(fastest, "least_seconds", least_seconds)
    for plain, way in ((0.95, "fused"), (0.8, "plain")):
        seconds["plain"] = plain
        assert fastest.attention(config, (48, 128), torch.float32, cpu) == way
    gqa = preset("tiny-gqa", 1024, 128)
    assert fastest.attention(gqa, (48, 128), torch.bfloat16, cpu) == "plain"
    assert len(called) == 3
    # 64 sequences, 6 heads, 1024 x 1024 logits; 2 bytes in each of 12 layers and 16 more: 15 GiB.
    monkeypatch.setattr(machine, "total_memory", lambda device: 100 << 30)
    gpt2 = preset("gpt2", 50257, 1024)
    assert fastest.attention(gpt2, (64, 1024), torch.bfloat16, cpu) == "fused"
    assert len(called) == 3


def test_the_way_is_an_option_and_stands_in_the_row(
    micro_track: speedrun.Track, micro_options: speedrun.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    entrant = speedrun.enter("muon", "tiny", 3)
    for way in WAYS:
        monkeypatch.setattr(fastest, "attention", lambda *_, way=way: way)
        for asked in ("auto", way):
            trainer = speedrun.Trainer(micro_track, replace(micro_options, attention=asked))
            assert {each.way for each in trainer.gpt.attentions} == {way}
            assert trainer.facts(entrant, seed=0)["attention"] == way
    with pytest.raises(UserError, match="--attention flash: must be auto, fused or plain"):
        speedrun.Trainer(micro_track, replace(micro_options, attention="flash"))
