"""Which precision and which way to compute attention a run takes, by measurement.

    python -m pytest tests/test_fastest.py

Claims: the least time counts that the thread itself spent, of turns in blocks, and several blocks
must agree; bfloat16 is taken where units are made for it, plain attention where it fits the memory
and is clearly faster; the row says which.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import speedrun
from errors import UserError
from layers.attention import WAYS
from layers.config import preset
from runtime import fastest, machine

CPU = torch.device("cpu")


def blocks(monkeypatch: pytest.MonkeyPatch, ratios: Iterable[float]) -> list[float]:
    """Let the blocks of a measurement find these ratios of times; the list of those found."""
    found, left = list[float](), iter(ratios)

    def least_seconds(challenger: Any, first: Any, device: torch.device) -> tuple[float, float]:
        challenger(), first()
        found.append(next(left))
        return found[-1], 1.0

    monkeypatch.setattr(fastest, "_least_seconds", least_seconds)
    return found


def test_matrix_units_decide_without_a_measurement_and_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = blocks(monkeypatch, [0.6] * 4 + [0.7] * 4)
    for units in (["avx512_bf16", "amx_bf16"], ["tensor cores"]):
        monkeypatch.setattr(machine, "bfloat16_units", lambda device, units=units: units)
        assert speedrun.choose_dtype("auto", CPU, 32) == torch.bfloat16
        assert speedrun.choose_dtype("float32", CPU, 32) == torch.float32
    monkeypatch.setattr(machine, "bfloat16_units", lambda device: [])
    assert speedrun.choose_dtype("auto", CPU, 128) == torch.float32 and found == []
    monkeypatch.setattr(machine, "bfloat16_units", lambda device: ["avx512_bf16"])
    assert speedrun.choose_dtype("auto", CPU, 128) == torch.bfloat16
    assert speedrun.choose_dtype("auto", CPU, 128) == torch.float32  # not 1.5 times as fast
    with pytest.raises(UserError, match="--dtype fp8: must be auto, float32 or bfloat16"):
        speedrun.choose_dtype("fp8", CPU, 128)


def test_a_disturbed_block_does_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = [lambda: None, lambda: None]
    for ratios, faster, count in (
        ([0.6] * 4, True, 4),
        ([2.0] * 4, False, 4),
        ([1.3, 0.6, 0.6, 1.1, 0.6, 0.6, 0.6, 0.6], True, 8),
        ([0.8, 2.0, 0.1, 2.0, 2.0, 2.0, 2.0], False, 7),
        ([0.89, 0.91] * 20, False, fastest.BLOCKS),  # no answer: the first way
    ):
        found = blocks(monkeypatch, ratios)
        assert fastest.clearly_faster(*nothing, 0.9, CPU) == faster
        assert len(found) == count


def test_the_least_time_of_the_thread_itself_counts_in_turns_on_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, order, threads = [0.0], list[str](), set[int]()
    costs = {"slow": iter([9.0] * 4 + [2.0] + [9.0] * 50), "quick": iter([1.0] * 99)}
    monkeypatch.setattr(fastest.time, "thread_time", lambda: now[0])
    monkeypatch.delattr(fastest.time, "perf_counter")  # would count what other processes do
    torch.set_num_threads(2)

    def call(name: str) -> None:
        order.append(name)
        threads.add(torch.get_num_threads())
        now[0] += next(costs[name])

    quick, slow = partial(call, "quick"), partial(call, "slow")
    assert fastest._least_seconds(quick, slow, CPU) == (1.0, 2.0)
    assert order == ["quick", "slow"] * fastest.ROUNDS
    threads.clear()
    assert fastest.clearly_faster(quick, slow, 0.9, CPU)
    assert threads == {1} and torch.get_num_threads() == 2


def test_the_faster_way_is_taken_and_fused_where_they_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("tiny", 1024, 128)
    found = blocks(monkeypatch, [0.95] * 4 + [0.8] * 8)
    for way in ("fused", "plain"):
        assert fastest.attention(config, (48, 128), torch.float32, CPU) == way
    gqa = preset("tiny-gqa", 1024, 128)
    assert fastest.attention(gqa, (48, 128), torch.bfloat16, CPU) == "plain"
    assert len(found) == 12
    # 64 sequences, 6 heads, 1024 x 1024 logits; 2 bytes in each of 12 layers and 16 more: 15 GiB.
    monkeypatch.setattr(machine, "total_memory", lambda device: 100 << 30)
    gpt2 = preset("gpt2", 50257, 1024)
    assert fastest.attention(gpt2, (64, 1024), torch.bfloat16, CPU) == "fused"
    assert len(found) == 12


def test_the_way_is_an_option_and_stands_in_the_row(
    micro_track: speedrun.Track, micro_options: speedrun.Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in WAYS:
        monkeypatch.setattr(fastest, "attention", lambda *_, way=way: way)
        for asked in ("auto", way):
            trainer = speedrun.Trainer(micro_track, replace(micro_options, attention=asked))
            assert {each.way for each in trainer.gpt.attentions} == {way}
            assert trainer.conditions()["attention"] == way
    with pytest.raises(UserError, match="--attention flash: must be auto, fused or plain"):
        speedrun.Trainer(micro_track, replace(micro_options, attention="flash"))
