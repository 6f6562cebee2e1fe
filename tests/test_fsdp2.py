"""What is special to FSDP2: shards, owners of whole parameters, and what travels between.

    python -m pytest tests/test_fsdp2.py

That every recipe agrees with one process is tested for all engines alike in test_engines. The
processes of fsdp2_world are started once.
"""

import os
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
import torch

import engines
from bench._forked import ONE_THREAD
from engines._shards import exchange_bytes, pass_bytes, rows_of
from errors import UserError
from model import GPT
from tests.fsdp2_world import (
    AGREE,
    EVEN,
    MICROBATCHES,
    ODD,
    RESUMED,
    ROOT,
    STEPS,
    TABLE,
    changed,
    train,
)

pytestmark = pytest.mark.slow  # starts processes
SIZES = (2, 3)  # processes


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """What every process of a group saw, by the name of the case and the size of the group."""
    folder = tmp_path_factory.mktemp("fsdp2")
    command = [sys.executable, str(ROOT / "tests" / "fsdp2_world.py"), str(folder)]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("[0-9].pt")):
        for name, size, seen in torch.load(path, weights_only=False):
            found.setdefault((name, size), []).append(seen)
    return found


@cache
def alone(recipe: str) -> dict[str, Any]:
    """The reference: one process."""
    engine = engines.make("single", torch.device("cpu"))
    if recipe == "table":
        return train(engine, "adamw", {}, TABLE, kind=None)
    if recipe in ("float32", "bfloat16"):
        return train(engine, "muon", {}, EVEN, kind=None)
    settings, config = AGREE[recipe]
    return train(engine, recipe, settings, config)


def change_error(ours: dict[str, Any], one: dict[str, Any]) -> float:
    """The largest difference of a weight, relative to the largest change of its parameter."""
    return max(
        float((ours["weights"][name] - p).abs().max() / (p - one["start"][name]).abs().max())
        for name, p in one["weights"].items()
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", AGREE)
def test_losses_norms_and_weights_are_those_of_one_process(
    world: Any, recipe: str, size: int
) -> None:
    one = alone(recipe)
    assert len(world[recipe, size]) == size
    for ours in world[recipe, size]:
        for kind in ("losses", "norms", "validated"):
            assert ours[kind] == pytest.approx(one[kind], rel=1e-6), kind
        assert change_error(ours, one) < 1e-5


@pytest.mark.parametrize("size", SIZES)
def test_processes_see_the_same_whole_weights_to_the_bit(world: Any, size: int) -> None:
    for name in (*AGREE, "float32", "bfloat16", "table"):
        first, *others = (seen["weights"] for seen in world[name, size])
        for each in others:
            assert all(torch.equal(each[key], p) for key, p in first.items()), name


@pytest.mark.parametrize("size", SIZES)
def test_a_table_of_another_type_is_sharded_apart(world: Any, size: int) -> None:
    one = alone("table")
    for ours in world["table", size]:
        assert ours["losses"] == pytest.approx(one["losses"], rel=1e-3)  # its gradient is rounded
        assert ours["weights"]["embed.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("size", SIZES)
def test_low_precision_on_the_way_changes_results_by_its_rounding_alone(
    world: Any, size: int
) -> None:
    one = alone("float32")
    for ours, low in zip(world["float32", size], world["bfloat16", size], strict=True):
        assert ours["losses"] == pytest.approx(one["losses"], rel=1e-6)
        assert low["losses"] != pytest.approx(one["losses"], rel=1e-6)
        assert low["losses"] == pytest.approx(one["losses"], rel=2**-8)  # a digit of bfloat16
        assert low["norms"] == pytest.approx(one["norms"], rel=2**-6)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_updated_is_never_rounded(world: Any, size: int) -> None:
    for seen in world["layout bfloat16", size]:
        for name, whole in seen["whole"].items():
            assert not torch.equal(whole, whole.bfloat16().float()) or whole.ndim == 1, name
            shard = seen["shards"][name]
            if seen["owners"][name] is not None:  # what came back is what passes take anyway
                assert torch.equal(shard, shard.bfloat16().float()), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_measured_spectra_change_no_weight(world: Any, name: str, size: int) -> None:
    for seen in world[f"measured {name}", size]:
        for recipe in ("muon", "adamw"):
            (none, plain), (some, spied) = seen[f"{recipe} 0"], seen[f"{recipe} {STEPS}"]
            assert none == 0 < some
            assert all(torch.equal(spied[key], p) for key, p in plain.items()), recipe


def model_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of EVEN, by name."""
    return {name: tuple(p.shape) for name, p in GPT(EVEN).named_parameters()}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "wire"), [("float32", 4), ("bfloat16", 2)])
def test_the_bytes_that_are_sent_are_those_of_the_formulas(
    world: Any, name: str, wire: int, size: int
) -> None:
    all_shapes = model_shapes()
    blocks = [shape for key, shape in all_shapes.items() if key.startswith("blocks.")]
    others = [shape for key, shape in all_shapes.items() if not key.startswith("blocks.")]
    of_passes = MICROBATCHES * pass_bytes(blocks, others, size, wire, 4, wire)
    exchanged = []
    for rank, seen in enumerate(world[name, size]):
        owned = {key: owner for key, owner in seen["owners"].items() if owner is not None}
        owned_shapes = [all_shapes[key] for key in owned]
        expected = exchange_bytes(owned_shapes, [*owned.values()], size, rank, wire)
        assert [sent for _, sent in seen["sent"]] == [expected] * STEPS
        assert [sent for sent, _ in seen["sent"]] == pytest.approx([of_passes] * STEPS, abs=1)
        exchanged.append(expected)
    numel = sum(rows * columns for rows, columns in owned_shapes)
    assert sum(exchanged) / size == pytest.approx(wire * 2 * numel * (size - 1) / size**2)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", ["muon", "adamw"])
def test_each_process_holds_its_part_of_parameters_gradients_and_state(
    world: Any, recipe: str, size: int
) -> None:
    one, held = alone(recipe)["bytes"], [seen["bytes"] for seen in world[recipe, size]]
    wholes = sum(p.nbytes for name, p in alone(recipe)["weights"].items() if is_owned(recipe, name))
    padding = 0.35 if AGREE[recipe][1] is ODD else 0.02  # of shards filled up to equal sizes
    for kind, copies in (("params", wholes), ("grads", 0), ("state", 0)):
        total = sum(each[kind] for each in held) - copies
        assert total == pytest.approx(one[kind], rel=padding), kind
        most = max(each[kind] for each in held)
        assert most < (one[kind] + copies) / size * (1.5 if AGREE[recipe][1] is ODD else 1.1), kind


def is_owned(recipe: str, name: str) -> bool:
    return (
        recipe == "muon"
        and name.startswith("blocks.")
        and "norm" not in name
        and "bias" not in name
    )


@pytest.mark.parametrize("size", SIZES)
def test_every_element_is_updated_by_one_process(world: Any, size: int) -> None:
    seen = world["layout float32", size]
    assert all(each["plain"] and each["right"] for each in seen)
    ranges: dict[str, list[tuple[int, int]]] = {}
    for each in seen:
        for name, start, stop in each["owned"]:
            ranges.setdefault(name, []).append((start, stop))
    for name, whole in seen[0]["whole"].items():
        ends = [0]
        for start, stop in sorted(ranges.pop(name)):
            assert start == ends[-1] < stop, name
            ends.append(stop)
        assert ends[-1] == whole.numel(), name
    assert not ranges


@pytest.mark.parametrize("size", SIZES)
def test_owners_share_the_cost_of_newton_schulz(world: Any, size: int) -> None:
    seen = world["layout float32", size][0]
    load = [0] * size
    for name, matrices in seen["costs"].items():
        load[seen["owners"][name]] += sum(max(mn) * min(mn) ** 2 for mn in matrices)
    assert max(load) < 1.1 * sum(load) / size


@pytest.mark.parametrize("size", SIZES)
def test_whole_weights_can_be_changed_by_all_processes(world: Any, size: int) -> None:
    engine = engines.make("single", torch.device("cpu"))
    one = changed(engine)
    for seen in world["changed", size]:
        assert seen["types"] == {torch.nn.Parameter} and seen["tied"]
        assert seen["shapes"] == {name: tuple(p.shape) for name, p in one["weights"].items()}
        assert seen["loss"] == pytest.approx(one["loss"], rel=1e-6)  # of the changed weights
        for name, p in one["weights"].items():
            assert torch.equal(seen["weights"][name], p), name
            assert torch.equal(seen["rebuilt"][name], p), name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_step_that_is_undone_leaves_nothing(world: Any, name: str, size: int) -> None:
    for seen in world[f"restored {name}", size]:
        (first, before), (second, after) = seen["losses"]
        assert first == second
        assert all(torch.equal(after[key], p) for key, p in before.items())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_after_a_pass_that_failed_in_all_processes_gradients_are_right(
    world: Any, where: str, size: int
) -> None:
    """A microbatch that is too large fails so. FSDP2 by itself would lose or keep gradients."""
    assert world[where, size] == world["nowhere", size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", RESUMED)
def test_a_checkpoint_of_two_processes_goes_on_with_two_or_three(
    world: Any, recipe: str, size: int
) -> None:
    for seen in world[f"{recipe} gone on", size]:
        for name, p in seen["unbroken"].items():
            if size == 2:
                assert torch.equal(seen["resumed"][name], p), name
            torch.testing.assert_close(seen["resumed"][name], p, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", SIZES)
def test_communication_of_a_step_is_on_the_clock_and_that_of_a_validation_is_not(
    world: Any, size: int
) -> None:
    for seen in world["clocked", size]:
        passes, validation, step = seen["counts"]
        gathers = 2 * ODD.n_layer + 1  # a block for each pass, the rest once
        scatters = ODD.n_layer + 1
        assert passes == [1] * MICROBATCHES * (gathers + scatters)
        assert validation == []
        assert step == [1] * 2  # to the owners of matrices and back


def test_shards_have_all_rows_and_the_first_ones_most() -> None:
    assert rows_of(7, 3) == [3, 3, 1]
    assert rows_of(4, 3) == [2, 2, 0]
    assert rows_of(2, 4) == [1, 1, 0, 0]


def test_other_engines_say_that_they_send_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="take --engine fsdp2"):
        engines.make("single", torch.device("cpu"), comm_dtype="bfloat16")
    with pytest.raises(UserError, match="must be float32 or bfloat16"):
        engines.make("fsdp2", torch.device("cpu"), comm_dtype="float16")
