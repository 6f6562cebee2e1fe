"""Our optimizer classes outside this project: they keep torch's contract for optimizers.

    python -m pytest tests/test_rule_contract.py

`muon.py` is made to be copied, and the rules in optim/ are ordinary optimizers. Each must take a
closure, go through `torch.distributed.checkpoint`, refuse in words what it cannot take, and load
what earlier versions and `torch.optim.Muon` saved. tests/test_torch_checks.py has the checks that
torch has for its own optimizers.
"""

import inspect
import json
import pickle
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from muon import COEFFICIENTS, Muon, newton_schulz
from optim.dion import Dion
from optim.lion import Lion
from optim.rule import Rule
from optim.shampoo import Shampoo
from optim.signum import Signum
from optim.soap import SOAP
from tests.matrices import BF16, F16, F32, F64, JORDAN, Options, distance, draw, gradient, train

Class = Callable[..., torch.optim.Optimizer]
OURS: dict[str, type[torch.optim.Optimizer]] = {
    rule.__name__: rule for rule in (Muon, Lion, Signum, SOAP, Shampoo, Dion)
}
MATRICES = ["Muon", "SOAP", "Shampoo", "Dion"]  # take 2-D parameters alone, and `splits`
every = pytest.mark.parametrize("name", OURS)
HERE = ["constructor", "group"]


def made(name: str, params: Any, **options: Any) -> torch.optim.Optimizer:
    return OURS[name](params, **options)  # type: ignore[call-arg]


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = F32) -> list[nn.Parameter]:
    return [nn.Parameter(0.1 * draw(*s, seed=100 + i).to(dtype)) for i, s in enumerate(shapes)]


def refusal(name: str, params: Sequence[Any], where: str, **options: Any) -> str:
    """The message with which a class refuses options, as arguments or in a later group."""
    error = (ValueError, TypeError)
    if where == "constructor":
        with pytest.raises(error) as caught:
            made(name, params, **options)
        return str(caught.value)
    optimizer = made(name, drawn((4, 6)))
    groups = len(optimizer.param_groups)
    with pytest.raises(error) as caught:
        optimizer.add_param_group({"params": params, **options})
    assert len(optimizer.param_groups) == groups, "a refused group was added"
    return str(caught.value)


# ---------------------------------------------------------------------------------------------
# Closures and checkpoints.


@every
def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned(name: str) -> None:
    (p,) = params = drawn((6, 4))
    optimizer = made(name, params, lr=0.01)

    def closure() -> Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure) for _ in range(4)]  # type: ignore[arg-type,func-returns-value]
    assert losses[3] < losses[0]  # type: ignore[operator]
    assert optimizer.step(closure=None) is None  # type: ignore[func-returns-value]


def model(dtype: torch.dtype = F32) -> nn.Module:
    layers = [nn.Linear(6, 4, bias=False), nn.Linear(4, 8, bias=False)]
    for i, layer in enumerate(layers):
        layer.weight = nn.Parameter(draw(*layer.weight.shape, seed=i).to(dtype))  # type: ignore
    return nn.Sequential(*layers)


CHECKPOINTED: list[tuple[str, Options]] = [
    *((name, {}) for name in OURS),
    ("Muon", {"second_moment": "row", "momentum_warmup": 3, "momentum_start": 0.5}),
    ("SOAP", {"max_precond_dim": 5}),
    ("SOAP", {"max_precond_dim": 0}),
]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("name", "options"), CHECKPOINTED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_state_goes_through_a_distributed_checkpoint(
    name: str, options: Options, flat: bool, tmp_path: Path
) -> None:
    how = StateDictOptions(flatten_optimizer_state_dict=flat)
    first, second = model(), model()
    optimizer = made(name, first.parameters(), **options)
    train(list(first.parameters()), optimizer, 3)
    dcp.save({"o": get_optimizer_state_dict(first, optimizer, options=how)}, checkpoint_id=tmp_path)

    second.load_state_dict(first.state_dict())
    fresh = made(name, second.parameters(), **options)
    state = get_optimizer_state_dict(second, fresh, options=how)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)  # its first step, with an lr of 0, moves nothing
    dcp.load({"o": state}, checkpoint_id=tmp_path)
    set_optimizer_state_dict(second, fresh, state, options=how)
    for each, rule in ((first, optimizer), (second, fresh)):
        train(list(each.parameters()), rule, 3, first=3)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)


# ---------------------------------------------------------------------------------------------
# What is in the groups and in the state.


@every
def test_the_groups_hold_the_options_of_the_constructor_and_nothing_else(name: str) -> None:
    known = set(inspect.signature(OURS[name]).parameters) - {"params"}
    optimizer = made(name, drawn((6, 4)))
    assert set(optimizer.defaults) == known
    assert set(optimizer.state_dict()["param_groups"][0]) - {"params"} == known


@every
def test_a_state_that_was_touched_before_the_first_step_is_begun_all_the_same(name: str) -> None:
    params, others = drawn((6, 4), (4, 6)), drawn((6, 4), (4, 6))
    optimizer, touched = made(name, params), made(name, others)
    assert touched.state[others[0]] == {}  # makes an entry
    touched.state[others[1]]["mine"] = 3
    train(params, optimizer, 3)
    train(others, touched, 3)
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


@every
def test_weights_of_several_dtypes_in_one_group_are_as_if_each_had_its_own(name: str) -> None:
    dtypes = [F32, F64, BF16, F32] + ([F16] if name not in ("SOAP", "Shampoo") else [])

    def weights() -> list[nn.Parameter]:
        return [nn.Parameter(0.1 * draw(8, 6, seed=i).to(d)) for i, d in enumerate(dtypes)]

    together, apart = weights(), weights()
    optimizer = made(name, together, lr=0.01)
    train(together, optimizer, 3)
    for i, (p, q) in enumerate(zip(together, apart, strict=True)):
        train([q], made(name, [q], lr=0.01), 3, of=lambda p, t, _, i=i: gradient(p, t, i))
        assert p.dtype == dtypes[i] and p.isfinite().all()
        tolerance = {F32: 1e-6, F64: 1e-13}.get(p.dtype, 1e-2)
        assert distance(p, q) < tolerance
        tensors = [v for v in optimizer.state[p].values() if isinstance(v, Tensor)]
        assert {v.dtype for v in tensors} == {p.dtype}  # load_state_dict would cast them to it


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, d) for n in OURS for d in (BF16, F16) if d == BF16 or n not in ("SOAP", "Shampoo")],
)
def test_half_precision_follows_float32_and_its_state_is_saved_to_the_bit(
    name: str, dtype: torch.dtype
) -> None:
    half, full = drawn((12, 8), dtype=dtype), drawn((12, 8))
    start = full[0].detach().clone()
    options = {"precondition_frequency": 2} if name in ("SOAP", "Shampoo") else {}
    optimizer, reference = (
        made(name, half, lr=0.02, **options),
        made(name, full, lr=0.02, **options),
    )
    train(half, optimizer, 5)
    train(full, reference, 5)
    moved, expected = half[0].detach().float() - start, full[0].detach() - start
    cosine = (moved * expected).sum() / moved.norm() / expected.norm()
    assert cosine > {"Lion": 0.8, "Signum": 0.8, "SOAP": 0.9}.get(name, 0.97)

    other = deepcopy(half)
    resumed = made(name, other, lr=0.02, **options)
    resumed.load_state_dict(deepcopy(optimizer.state_dict()))
    for each, rule in ((half, optimizer), (other, resumed)):
        train(each, rule, 3, first=5)
    assert torch.equal(half[0], other[0])


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
@pytest.mark.parametrize("where", HERE)
def test_float16_that_cannot_hold_squares_is_refused(name: str, where: str) -> None:
    assert name in refusal(name, drawn((4, 6), dtype=F16), where)
    if name == "SOAP":
        message = refusal("Muon", drawn((4, 6), dtype=F16), where, second_moment="gradient")
        assert "torch.float16" in message


@every
def test_an_empty_matrix_and_an_empty_group_are_passed_over(name: str) -> None:
    params = drawn((0, 4), (4, 0), (4, 4))
    optimizer = made(name, params)
    optimizer.add_param_group({"params": []})
    start = params[2].detach().clone()
    train(params, optimizer, 3)
    assert not torch.equal(params[2], start)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="empty parameter list"):
        made(name, [])


@every
def test_a_parameter_listed_twice_is_torchs_to_judge(name: str) -> None:
    (p,) = drawn((4, 6))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = made(name, [p, p])
    p.grad = gradient(p, 0)
    optimizer.step()
    assert p.isfinite().all()
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


# ---------------------------------------------------------------------------------------------
# Learning rates in tensors.


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@every
def test_a_rate_in_a_tensor_is_its_number_and_schedulers_change_it(
    name: str, shape: tuple[int, ...]
) -> None:
    params, others = drawn((8, 6), (6, 8)), drawn((8, 6), (6, 8))
    lr = torch.full(shape, 0.25)
    numbers, tensors = made(name, params, lr=0.25), made(name, others, lr=lr)
    schedulers = [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (numbers, tensors)]
    for step in range(4):
        for each, optimizer in ((params, numbers), (others, tensors)):
            train(each, optimizer, 1, first=step)
        for scheduler in schedulers:
            scheduler.step()
    held = tensors.param_groups[0]["lr"]
    assert isinstance(held, Tensor) and held.shape == shape and held.item() == 0.25 / 16
    for p, q in zip(params, others, strict=True):
        assert torch.equal(p, q)


@every
def test_momentum_that_a_scheduler_cycles_is_taken(name: str) -> None:
    params = drawn((8, 6))
    optimizer = made(name, params)
    cycle = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    assert cycle
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
    for step in range(4):
        train(params, optimizer, 1, first=step)
        scheduler.step()
    assert params[0].isfinite().all()


# ---------------------------------------------------------------------------------------------
# Refusals.

NUMBERS = {
    "lr", "weight_decay", "momentum", "eps", "betas", "beta2", "momentum_start", "momentum_warmup",
    "momentum_cooldown", "momentum_horizon", "ns_steps", "power", "precondition_frequency",
    "max_precond_dim", "rank_fraction",
}  # fmt: skip
BELOW_ONE = {"momentum", "momentum_start", "beta2"}
WHOLE = {
    "momentum_warmup", "momentum_cooldown", "momentum_horizon", "ns_steps",
    "precondition_frequency", "max_precond_dim",
}  # fmt: skip
NONE_OF_THEM: list[Any] = [float("nan"), float("inf"), -float("inf"), "0.1", True, None, 1j, [0.1]]


def wrong_values(option: str, default: Any) -> list[Any]:
    """Values that an option must refuse."""
    if isinstance(default, bool):
        return ["false", None, 2, "yes"]
    if option == "betas":
        pairs = [(0.9, x) for x in (*NONE_OF_THEM, 1.0, -0.1, 7)]
        return [*pairs, *((b, a) for a, b in pairs), 0.9, (0.9,), (0.9, 0.9, 0.9), "ab", None]
    values = [*NONE_OF_THEM, -2.0, torch.tensor([0.1, 0.2])]
    values += [1.0, 1.5] if option in BELOW_ONE else []
    values += [2.5, torch.tensor(2)] if option in WHOLE else []
    values += [0] if option in ("precondition_frequency", "ns_steps", "rank_fraction") else []
    values += [1.0001] if option == "rank_fraction" else []
    return values + ([100] if option == "ns_steps" else [])


@pytest.mark.parametrize("where", HERE)
@every
def test_every_option_is_checked(name: str, where: str) -> None:
    defaults = made(name, drawn((4, 6))).defaults
    numeric = {k for k, v in defaults.items() if isinstance(v, int | float | tuple)}
    switches = {k for k, v in defaults.items() if isinstance(v, bool)}
    assert numeric - switches <= NUMBERS, "give the new option values that must be refused"
    for option in numeric:
        for value in wrong_values(option, defaults[option]):
            message = refusal(name, drawn((4, 6)), where, **{option: value})
            assert option in message and "must be" in message
            assert f"{option}={value!r}" in message or option == "lr"


@every
def test_options_of_the_constructor_are_checked_though_every_group_has_its_own(name: str) -> None:
    with pytest.raises(ValueError, match=r"lr=-1.0: must be at least 0.0 and finite"):
        made(name, [{"params": drawn((4, 6)), "lr": 0.1}], lr=-1.0)


@every
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    for kind in (numpy.float32, numpy.float64):
        params = drawn((4, 6))
        train(params, made(name, params, lr=kind(0.25), weight_decay=kind(0.5)), 2)
        others = drawn((4, 6))
        train(others, made(name, others, lr=0.25, weight_decay=0.5), 2)
        assert torch.equal(params[0], others[0])


@pytest.mark.parametrize("where", HERE)
@every
def test_complex_sparse_and_tiny_floats_are_refused_in_words(name: str, where: str) -> None:
    strange = [
        nn.Parameter(torch.zeros(4, 6, dtype=torch.complex64)),
        nn.Parameter(torch.eye(4).to_sparse()),
        nn.Parameter(torch.zeros(4, 6).to(torch.float8_e4m3fn)),
    ]
    for p in strange:
        message = refusal(name, [p], where)
        assert name in message and "dense" in message and str(p.dtype) in message


@every
def test_frozen_weights_of_other_kinds_are_passed_over(name: str) -> None:
    frozen = nn.Parameter(torch.ones(4, 6, dtype=torch.int8), requires_grad=False)
    params = drawn((4, 6))
    train(params, made(name, [*params, frozen]), 2)
    assert frozen.eq(1).all()


@every
def test_gradients_of_another_kind_are_refused_in_words(name: str) -> None:
    (p,) = drawn((4, 6))
    optimizer = made(name, [p])
    p.grad = torch.ones(4, 6).to_sparse()
    with pytest.raises(RuntimeError, match=f"{name} does not support complex, sparse"):
        optimizer.step()
    q = nn.Parameter(torch.zeros(4, 6, dtype=torch.complex64), requires_grad=False)
    optimizer = made(name, [q])
    q.grad = torch.ones_like(q)
    with pytest.raises(RuntimeError, match=f"{name} does not support complex"):
        optimizer.step()


@pytest.mark.parametrize("shape", [(), (32,), (4, 8, 2), (8, 4, 3, 3)])
@pytest.mark.parametrize("where", HERE)
@pytest.mark.parametrize("name", MATRICES)
def test_what_is_no_matrix_is_refused(name: str, where: str, shape: tuple[int, ...]) -> None:
    message = refusal(name, [nn.Parameter(torch.zeros(shape))], where)
    assert f"shape {shape}" in message and f"{name} takes 2-D" in message


@pytest.mark.parametrize(
    "splits", [(8, 8), (16,), (12, -0), (16, -4), (6.0, 6.0), (4, "8"), (0, 12), (True, 11), 12]
)
@pytest.mark.parametrize("where", HERE)
@pytest.mark.parametrize("name", MATRICES)
def test_splits_that_do_not_add_up_are_refused(
    name: str, where: str, splits: tuple[int, ...]
) -> None:
    message = refusal(name, drawn((12, 6)), where, splits=splits)
    assert f"splits {splits}" in message and "add up" in message


@pytest.mark.parametrize(
    "value", ["jordon", (1, 2), (), (1, 2, "3"), [[1, 2]], ((1, 2, float("nan")),), 3.0, None, {}]
)
@pytest.mark.parametrize("where", HERE)
def test_coefficients_that_are_none_are_refused(value: Any, where: str) -> None:
    message = refusal("Muon", drawn((12, 6)), where, ns_coefficients=value)
    assert f"ns_coefficients={value!r}" in message and "jordan" in message


@pytest.mark.parametrize("option", ["second_moment", "ns_dtype", "adjust_lr_fn", "ns_backend"])
@pytest.mark.parametrize("value", ["other", 3, torch.int8, ["none"]])
@pytest.mark.parametrize("where", HERE)
def test_words_are_checked(option: str, value: Any, where: str) -> None:
    assert f"{option}={value!r}" in refusal("Muon", drawn((12, 6)), where, **{option: value})


# ---------------------------------------------------------------------------------------------
# Muon's coefficients, and what others saved.


@pytest.mark.parametrize(
    "given",
    [JORDAN[0], list(JORDAN[0]), JORDAN, [list(JORDAN[0])], json.loads(json.dumps(JORDAN))],
    ids=str,
)
def test_coefficients_may_be_flat_or_lists(given: Any) -> None:
    named, params = drawn((8, 6)), drawn((8, 6))
    train(named, Muon(named, ns_coefficients="jordan"), 3)
    train(params, Muon(params, ns_coefficients=given), 3)
    assert torch.equal(named[0], params[0])
    X = draw(1, 8, 6)
    assert torch.equal(newton_schulz(X, given), newton_schulz(X, COEFFICIENTS["jordan"]))


def test_a_group_goes_through_json() -> None:
    table = COEFFICIENTS["you"]
    first = drawn((8, 6))
    optimizer = Muon(first, ns_coefficients=table, splits=(4, 4))
    train(first, optimizer, 2)
    saved = optimizer.state_dict()
    saved["param_groups"] = json.loads(json.dumps(saved["param_groups"]))
    second = deepcopy(first)
    other = Muon(second)
    other.load_state_dict(deepcopy(saved))
    for each, rule in ((first, optimizer), (second, other)):
        train(each, rule, 2, first=2)
    assert torch.equal(first[0], second[0])


def test_the_state_of_torchs_muon_goes_on_in_ours() -> None:
    theirs = drawn((16, 24), (24, 16))
    reference = torch.optim.Muon(theirs, lr=0.05, weight_decay=0.2)
    train(theirs, reference, 3)
    ours = deepcopy(theirs)
    optimizer = Muon([{"params": ours, "splits": None}], ns_dtype=BF16)
    optimizer.load_state_dict(deepcopy(reference.state_dict()))
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], group["adjust_lr_fn"]) == (0.05, 0.2, None)
    assert group["ns_dtype"] == BF16  # it saved none, so it is as constructed
    start = deepcopy(ours)
    train(theirs, reference, 3, first=3)
    train(ours, optimizer, 3, first=3)
    for p, q, before in zip(ours, theirs, start, strict=True):
        assert torch.equal(
            optimizer.state[p]["momentum_buffer"], reference.state[q]["momentum_buffer"]
        )
        assert distance(p - before, q - before) < 0.03  # the noise of bfloat16


@every
def test_a_state_saved_before_an_option_existed_loads_with_it_as_it_is_here(name: str) -> None:
    for option in made(name, drawn((8, 6))).defaults:
        params = drawn((8, 6))
        optimizer = made(name, params)
        train(params, optimizer, 2)
        saved = deepcopy(optimizer.state_dict())
        del saved["param_groups"][0][option]
        others = deepcopy(params)
        other = made(name, others)
        other.load_state_dict(saved)
        for each, rule in ((params, optimizer), (others, other)):
            train(each, rule, 2, first=2)
        assert torch.equal(params[0], others[0])
        assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
        # A whole optimizer of then, pickled.
        del optimizer.defaults[option], optimizer.param_groups[0][option]
        loaded = pickle.loads(pickle.dumps(optimizer))
        assert loaded.param_groups[0][option] == other.param_groups[0][option]
        assert option in loaded.defaults


def test_splits_of_a_group_stay_where_the_saved_state_has_none() -> None:
    params = drawn((12, 6), (8, 6))
    optimizer = Muon([{"params": params[:1], "splits": (6, 6)}, {"params": params[1:]}])
    saved = deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        del group["splits"]
    optimizer.load_state_dict(saved)
    assert [group["splits"] for group in optimizer.param_groups] == [(6, 6), None]


@pytest.mark.parametrize("name", ["SOAP", "Shampoo"])
def test_the_lists_that_earlier_versions_kept_load(name: str) -> None:
    options: Options = {"splits": (4, 8)}
    options |= {"max_precond_dim": 7} if name == "SOAP" else {}
    params = drawn((12, 6))
    optimizer = made(name, params, **options)
    train(params, optimizer, 3)
    saved = deepcopy(optimizer.state_dict())
    for key in ("factors", "bases" if name == "SOAP" else "roots"):
        held = saved["state"][0][key]
        saved["state"][0][key] = [[held.get(f"{s}{i}") for s in ("left", "right")] for i in (0, 1)]
    others = deepcopy(params)
    other = made(name, others, **options)
    other.load_state_dict(saved)
    for each, rule in ((params, optimizer), (others, other)):
        train(each, rule, 12, first=3)
    assert torch.equal(params[0], others[0])


@every
def test_a_copy_and_a_pickle_go_on_as_the_original(name: str) -> None:
    params = drawn((8, 6))
    optimizer = made(name, params, weight_decay=0.1)
    train(params, optimizer, 3)
    copies = [deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))]
    train(params, optimizer, 2, first=3)
    for other in copies:
        own = other.param_groups[0]["params"]
        train(own, other, 2, first=3)
        assert torch.equal(own[0], params[0])
        other.add_param_group({"params": drawn((4, 4))})  # which may need the defaults
        assert set(other.param_groups[1]) == set(other.param_groups[0])


# ---------------------------------------------------------------------------------------------
# The base.


def test_a_newcomers_rule_has_the_contract_from_its_base() -> None:
    class Descent(Rule):
        def __init__(self, params: Any, lr: float = 0.01) -> None:
            super().__init__(params, dict(lr=lr))

        def update(self, params: list[Tensor], group: dict[str, Any]) -> None:
            for p in params:
                assert p.grad is not None
                p.sub_(p.grad, alpha=float(group["lr"]))

    params = drawn((8,), (3, 4), (2, 2, 2))
    optimizer = Descent(params, lr=0.5)
    for p in params:
        p.grad = torch.ones_like(p)
    start = deepcopy(params)
    assert optimizer.step(lambda: 7.0) == 7.0
    for p, q in zip(params, start, strict=True):
        assert torch.equal(p, q - 0.5)
    with pytest.raises(ValueError, match="lr=-1: must be at least 0.0 and finite"):
        Descent(params, lr=-1)


def test_all_rules_of_this_project_are_tested_here() -> None:
    found = {
        r
        for r in Rule.__subclasses__()
        for r in (r, *r.__subclasses__())
        if "optim." in r.__module__
    }
    public = {rule for rule in found if "update" in vars(rule) or "update_all" in vars(rule)}
    assert public == set(OURS.values()) - {Muon}
