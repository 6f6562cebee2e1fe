"""Every recipe on every engine of ours, on one to four processes, against one process alone.

    python -m pytest tests/test_engines.py

The processes are real, talk over gloo and are started once; bench/engine_agreement.py is what they
do. Differences must be below 1e-5 of the parameter's largest change.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import engines
import optim
from bench.engine_agreement import (
    DTYPES,
    LAYOUTS,
    MODELS,
    PROCESSES,
    SETTINGS,
    STEPS,
    meet,
    rows_of_world,
)  # fmt: skip
from engines import _coupled, _rules
from engines._buffers import Buffer, lay_out
from errors import UserError
from host import owners
from model import GPT
from muon import Muon
from optim import library_recipes
from optim.lion import Lion
from optim.signum import Signum

PRESENT = [name for name in LAYOUTS if name in engines.names()]
RECIPES = sorted(optim.recipes())
ROOT = Path(__file__).parents[1]
BOUND = 1e-5  # of the largest change of a parameter
# heavyball keeps float32, so the average's rounding is seen there.
BOUNDS = dict.fromkeys(DTYPES, 1e-3)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """What the processes have found in a sample of all cases."""
    return rows_of_world(sample=True)


def of(rows: list[Row], **wanted: Any) -> list[Row]:
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert found, wanted
    return found


def say(row: Row) -> str:
    return f"{row['recipe']}, {row['model']}, {row['processes']} processes"


@pytest.mark.slow
@pytest.mark.parametrize("engine", PRESENT)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_as_on_one_process(rows: list[Row], engine: str, recipe: str) -> None:
    mine = of(rows, engine=engine, recipe=recipe)
    assert {(row["processes"], row["model"]) for row in mine} == {
        (n, m) for n in range(1, PROCESSES + 1) for m in MODELS if meet(recipe, m, n, sample=True)
    }
    bound = BOUNDS.get(recipe, BOUND)
    for row in mine:
        for what in ("weights_error", "evaluated_error", "norm_error"):
            assert row[what] < bound, (say(row), what, row[what])
        assert row["loss_error"] < max(bound, 2e-6), say(row)  # float32 sums of the losses


@pytest.mark.slow
@pytest.mark.parametrize("engine", PRESENT)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_spectra_are_those_of_one_process(rows: list[Row], engine: str, recipe: str) -> None:
    for row in of(rows, engine=engine, recipe=recipe):
        # Figures have six digits.
        assert row["spectra_rows"] and row["spectra_error"] < max(BOUNDS.get(recipe, 0), 5e-5), (
            say(row),
            row["spectra_error"],
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine", PRESENT)
def test_all_processes_hold_the_same_weights_to_the_bit(rows: list[Row], engine: str) -> None:
    assert [say(row) for row in of(rows, engine=engine) if not row["replicas_equal"]] == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", PRESENT)
def test_a_validation_leaves_the_weights_as_they_were(rows: list[Row], engine: str) -> None:
    assert [say(row) for row in of(rows, engine=engine) if not row["restored"]] == []


@pytest.mark.slow
def test_schedule_free_validates_other_weights_than_it_trains(rows: list[Row]) -> None:
    for row in of(rows, recipe="schedule-free"):
        assert row["averages"], say(row)
    assert not any(row["averages"] for row in of(rows, recipe="muon"))


def layout(row: Row, rank: int) -> list[Buffer]:
    """What a process of a case lays out, found without any other process."""
    table = GPT(MODELS[row["model"]]).to(DTYPES.get(row["recipe"], torch.float64)).roles()
    settings = SETTINGS.get(row["recipe"], {})
    plan = optim.plan(table, row["recipe"], settings, torch.float32)
    return lay_out(plan, rank, row["processes"], None)


@pytest.mark.slow
def test_divided_optimizers_send_no_more_than_averaged_gradients(
    rows: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the numbers that make a flat row divide: at most N - 1 for a rule and type."""
    # To find a class looks through all that is installed.
    monkeypatch.setattr(library_recipes, "rule", cache(library_recipes.rule))
    for row in of(rows, engine="sharded"):
        (other,) = of(rows, engine="ddp", **{k: row[k] for k in ("recipe", "model", "processes")})
        n, buffers = row["processes"], layout(row, 0)
        size = sum(buffer.values.nbytes for buffer in buffers)
        assert row["sent"] == pytest.approx(STEPS * 2 * size * (n - 1) / n, abs=4), say(row)
        flat = sum(not buffer.singles for buffer in buffers)
        assert -2 <= row["sent"] - other["sent"] <= STEPS * 2 * 8 * (n - 1) * flat, say(row)


@pytest.mark.slow
def test_each_process_holds_its_part_of_the_state(rows: list[Row]) -> None:
    for row in of(rows, engine="sharded"):
        n, whole = row["processes"], row["bytes_of_one"]
        parts = [held["state"] for held in row["bytes"]]
        assert 0 <= sum(parts) - whole["state"] < 40 * n, say(row)  # counters of steps
        # The left-over matrices of so few layers are balanced by work, and less so by size.
        assert max(parts) < whole["state"] / n * (1.4 if n == 4 else 1.1), (say(row), parts)
        for held in row["bytes"]:
            for kind in ("params", "grads"):
                assert 0 <= held[kind] - whole[kind] <= 2 * 8 * (n - 1), say(row)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["adamw", "muon"])
def test_the_state_of_each_process_follows_from_the_layout(rows: list[Row], recipe: str) -> None:
    for row in of(rows, engine="sharded", recipe=recipe):
        for rank, held in enumerate(row["bytes"]):
            pieces = [each for buffer in layout(row, rank) for each in buffer.pieces]
            adam = [p.param.numel() for p in pieces if p.group.rule is torch.optim.AdamW]
            muon = [p.param.numel() for p in pieces if p.group.rule is Muon]
            # Two moments and a float32 step; one momentum.
            assert held["state"] == 8 * (2 * sum(adam) + sum(muon)) + 4 * len(adam), say(row)
            assert (recipe == "muon") == bool(muon) or row["processes"] == 4


def owners_of(counts: Sequence[int], costs: Sequence[float], n: int) -> list[tuple[int, ...]]:
    stacks = [[cost] * count for count, cost in zip(counts, costs, strict=True)]
    return owners.owners(stacks, n)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 40])
def test_every_parameter_of_a_stack_has_one_owner(n: int) -> None:
    counts = [12, 5, 1, 24]
    for found, count in zip(owners_of(counts, [4.0, 1.0, 9.0, 2.0], n), counts, strict=True):
        even = owners.even_count(count, n) * n
        assert len(found) == count and set(found) <= set(range(n))
        assert list(found[:even]) == sorted(found[:even])
        assert all(found[:even].count(rank) == count // n for rank in range(n))


def test_left_over_parameters_are_balanced_by_cost_over_all_stacks() -> None:
    # Two large and four small left over on five processes: no process has two large ones.
    large, small = owners_of([2, 4], [10.0, 1.0], 5)
    assert large == (0, 1)
    assert sorted(small) == [2, 2, 3, 4]
    load = [0.0] * 5
    for found, cost in ((large, 10.0), (small, 1.0)):
        for rank in found:
            load[rank] += cost
    assert max(load) == 10.0


def test_processes_without_a_matrix_own_none() -> None:
    (found,) = owners_of([3], [1.0], 8)
    assert found == (0, 1, 2)


def test_work_is_that_of_the_blocks() -> None:
    assert owners.orthogonal_cost((96, 32)) == 96 * 32**2
    assert owners.orthogonal_cost((96, 32), (32, 32, 32)) == 3 * 32**3
    assert owners.orthogonal_cost((96, 32), (8,) * 12) == 12 * 32 * 8**2
    assert owners.orthogonal_cost((7,)) == 7


@pytest.mark.parametrize("n", [1, 2, 3, 4, 50])
def test_a_flat_row_is_cut_evenly(n: int) -> None:
    sizes = [5, 1, 30, 2]
    owned = [part for rank in range(n) for part in owners.parts(sizes, n, rank)]
    entries = [(place, entry) for place, a, b in owned for entry in range(a, b)]
    assert entries == [(place, entry) for place, size in enumerate(sizes) for entry in range(size)]
    share = owners.padded(sum(sizes), n) // n
    for rank in range(n):
        parts = owners.parts(sizes, n, rank)
        assert sum(b - a for _, a, b in parts) == min(max(38 - rank * share, 0), share)


class Trusting(torch.optim.SGD):
    """A rule that divides by the norm of all gradients together."""

    def step(self, closure: Any = None) -> Any:
        params = [p for group in self.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        return super().step(closure)


def test_rules_that_couple_their_parameters_are_found() -> None:
    assert _coupled.coupled(Trusting, {"lr": 0.1})
    for recipe in RECIPES:
        for group in optim.plan(roles(), recipe, {}, torch.float32):
            options = {k: v for k, v in group.options.items() if k != "splits"}
            assert not _coupled.coupled(group.rule, options), (recipe, group.rule)


def roles() -> Any:
    return GPT(MODELS["tied"]).roles()


@pytest.mark.parametrize("path", ["torch.optim.LBFGS", "prodigyopt.Prodigy"])
def test_known_coupled_rules_are_refused_with_the_reason(path: str) -> None:
    module, _, name = path.rpartition(".")
    rule = getattr(pytest.importorskip(module), name)
    group = optim.Group(rule, roles(), lr=1.0)
    with pytest.raises(UserError, match=f"{name} cannot be divided.* from all|all parameters.*ddp"):
        _coupled.refuse([group], "sharded")


def test_only_rules_that_say_so_are_cut_by_entries() -> None:
    class Mine(Lion):
        pass

    elementwise = [torch.optim.AdamW, torch.optim.SGD, Lion, Signum]
    assert all(map(_rules.is_elementwise, elementwise))
    assert not any(map(_rules.is_elementwise, [Mine, Trusting, torch.optim.Adafactor]))


@pytest.mark.parametrize("name", _rules.ELEMENTWISE)
def test_an_elementwise_rule_does_the_same_to_a_part(name: str) -> None:
    rule: Any = getattr(torch.optim, name)
    generator = torch.Generator().manual_seed(0)
    start, grads = torch.randn(4, 6, generator=generator), torch.randn(3, 4, 6, generator=generator)

    def stepped(p: torch.Tensor, grads: torch.Tensor) -> torch.Tensor:
        param = torch.nn.Parameter(p.clone())
        optimizer = rule([param], lr=0.1, weight_decay=0.1) if name != "Rprop" else rule([param])
        for grad in grads:
            param.grad = grad.clone()
            optimizer.step()
        return param.detach()

    whole = stepped(start, grads).flatten()[5:17]
    part = stepped(start.flatten()[5:17], grads.flatten(1)[:, 5:17])
    torch.testing.assert_close(part, whole, rtol=1e-6, atol=1e-7)


def test_no_optimizer_knows_of_processes() -> None:
    for path in [*(ROOT / "optim").glob("*.py"), ROOT / "muon.py"]:
        assert not re.search(r"torch\.distributed|all_reduce|world_size", path.read_text()), path
