"""The checks that torch puts its own optimizers through, on ours.

    python -m pytest tests/test_torch_checks.py

torch ships what drives its suite (`torch.testing._internal.common_optimizers`): the table of
optimizers with their inputs, the inputs that all must refuse, the schedulers, and a tracker of
tensors. The checks themselves are in torch's repository (test/test_optim.py, class
TestOptimRenewed), which is not installed; those that apply are here under torch's names, without
its `test_`. Left out are the ones for foreach, fused, capturable and differentiable forms, for
complex and sparse weights, which ours refuse, and for several GPUs. torch.optim.Muon, with torch's
own inputs, stands beside ours: a check that it fails would be no check.
"""

import importlib
import io
import sys
import tempfile
import unittest
import warnings
from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from muon import Muon
from optim.dion import Dion
from optim.lion import Lion
from optim.shampoo import Shampoo
from optim.signum import Signum
from optim.soap import SOAP

MATRICES = {"Muon", "SOAP", "Shampoo", "Dion", "torch.optim.Muon"}  # take 2-D weights alone
NO_FLOAT16 = {"SOAP", "Shampoo"}

# Options to run each check with, beside the defaults, a rate, a rate in a tensor, and weight decay.
INPUTS: dict[type[torch.optim.Optimizer], list[dict[str, Any]]] = {
    Muon: [
        {"momentum": 0.8},
        {"nesterov": False},
        {"ns_steps": 6},
        {"ns_coefficients": (3.4, -4.7, 2.0)},
        {"adjust_lr_fn": "match_rms_adamw"},
        {"adjust_lr_fn": "hyperball"},
        {"second_moment": "row"},
        {"second_moment": "gradient"},
        {"second_moment": "entry", "sign": True, "adjust_lr_fn": "exact_rms"},
        {"momentum_warmup": 3},
        {"cautious": True, "weight_decay": 0.2},
    ],
    Lion: [{"betas": (0.8, 0.9)}],
    Signum: [{"momentum": 0.5}],
    SOAP: [{"precondition_frequency": 2}, {"max_precond_dim": 0}, {"betas": (0.8, 0.9)}],
    Shampoo: [{"precondition_frequency": 2}, {"power": -0.5}, {"betas": (0.0, 0.0)}],
    Dion: [{"rank_fraction": 1.0}, {"momentum": 0.5}],
}
# Rates with which a few steps on the checks' little problems go down.
RATES = {"Muon": 0.02, "Lion": 0.02, "Signum": 0.02, "SOAP": 0.02, "Shampoo": 0.02, "Dion": 0.02}


@cache
def shipped() -> Any:
    """torch's module, imported without what the import does to the whole process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        patch.setitem(sys.modules, "hypothesis", None)  # it would load a profile of its own
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("torch.testing._internal.common_optimizers")


def errors_of(rule: type[torch.optim.Optimizer], device: str, dtype: torch.dtype) -> list[Any]:
    """Inputs that a rule must refuse: those of all optimizers, and negative numbers."""
    common = shipped()
    found: list[Any] = common.get_error_inputs_for_all_optims(device, dtype)
    for key in ("lr", "weight_decay", "momentum", "eps"):
        if key in rule([Parameter(torch.zeros(1, 1))]).defaults:  # type: ignore[call-arg]
            found.append(
                common.ErrorOptimizerInput(
                    common.OptimizerInput(params=None, kwargs={key: -0.5}, desc=f"negative {key}"),
                    error_type=ValueError,
                    error_regex=f"{key}=-0.5: must be at least 0",
                )
            )
    return found


def of_torch(rule: type[torch.optim.Optimizer]) -> Any:
    return next(each for each in shipped().optim_db if each.optim_cls is rule)


def info_of(rule: type[torch.optim.Optimizer], more: list[dict[str, Any]]) -> Any:
    common = shipped()
    rate = RATES[rule.__name__]
    each = [{}, {"lr": rate}, {"lr": torch.tensor(rate)}, {"lr": rate, "weight_decay": 0.1}, *more]
    added = ("sign", "cautious", "second_moment", "momentum_warmup", "splits")
    return common.OptimizerInfo(
        rule,
        optim_inputs_func=lambda device, dtype=None: [
            common.OptimizerInput(params=None, kwargs=kwargs, desc=str(kwargs)) for kwargs in each
        ],
        optim_error_inputs_func=lambda device, dtype: errors_of(rule, device, dtype),
        scheduler_inputs=of_torch(torch.optim.SGD).scheduler_inputs,  # torch's longest list
        supported_impls=(),
        not_og_supported_flags=added if rule is Muon else ("weight_decay",),
        supports_complex=False,
    )


@cache
def info(name: str) -> Any:
    if name == "torch.optim.Muon":
        return of_torch(torch.optim.Muon)
    return next(info_of(rule, more) for rule, more in INPUTS.items() if rule.__name__ == name)


def inputs(name: str) -> list[dict[str, Any]]:
    found = shipped()._get_optim_inputs_including_global_cliquey_kwargs(
        "cpu", torch.float32, info(name)
    )
    return [deepcopy(each.kwargs) for each in found]


NAMES = [*(rule.__name__ for rule in INPUTS), "torch.optim.Muon"]
every = pytest.mark.parametrize("name", NAMES)


def made(name: str, params: Any, **kwargs: Any) -> Any:
    return info(name).optim_cls(params, **kwargs)


def layer(name: str) -> tuple[list[Parameter], Callable[[], Tensor]]:
    """Weights, and a closure that sets their gradients and returns their loss."""
    torch.manual_seed(0)
    weight = Parameter(torch.randn(10, 5))
    bias = Parameter(torch.randn(10, 1) if name in MATRICES else torch.randn(10))
    x = torch.randn(5)

    def closure() -> Tensor:
        weight.grad = bias.grad = None
        loss = (weight.mv(x) + bias.flatten()).pow(2).sum()
        loss.backward()
        return loss

    return [weight, bias], closure


def stepped(name: str, kwargs: dict[str, Any], steps: int = 2) -> tuple[Any, list[Parameter], Any]:
    params, closure = layer(name)
    optimizer = made(name, params, **kwargs)
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer, params, closure


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def comparable(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A state dict without what `assert_close` does not know."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [kept(each) for each in value]
        return value if isinstance(value, Tensor | int | float) else hash(value)

    found: dict[str, Any] = kept(state_dict)
    return found


# ---------------------------------------------------------------------------------------------


@every
def test_errors(name: str) -> None:
    for each in info(name).optim_error_inputs_func("cpu", torch.float32):
        given, kwargs = each.optimizer_error_input, each.optimizer_error_input.kwargs
        params = [Parameter(torch.ones(2, 2))] if given.params is None else given.params
        if each.error_on is shipped().OptimizerErrorEnum.STEP_ERROR:
            with pytest.raises(each.error_type, match=each.error_regex):
                made(name, params, **kwargs).step()
        elif issubclass(each.error_type, Warning):
            with pytest.warns(each.error_type, match=each.error_regex):
                made(name, params, **kwargs)
        else:
            with pytest.raises(each.error_type, match=each.error_regex):
                made(name, params, **kwargs)


@every
def test_forloop_goes_right_direction(name: str) -> None:
    """Also `param_group_with_lrscheduler_goes_right_direction`: with and without schedulers."""
    plans: Iterable[Any] = [[], *info(name).scheduler_inputs]
    for plan in plans:
        for groups in (False, True):
            params, closure = layer(name)
            given: Any = params
            if groups:
                given = [{"params": params[:1]}, {"params": params[1:], "lr": 0.01}]
            optimizer = made(name, given, lr=RATES.get(name, 0.01))
            schedulers = [make(optimizer) for make in plan]
            losses = []
            for _ in range(20):
                losses.append(optimizer.step(closure).item())
                for scheduler in schedulers:
                    is_plateau = type(scheduler).__name__ == "ReduceLROnPlateau"
                    scheduler.step(*([losses[-1]] if is_plateau else []))
            assert closure().item() < losses[0]


@every
def test_tensor_lr(name: str) -> None:
    rate = 2.0**-6  # the same in float32
    for kwargs in inputs(name):
        ends = []
        for lr in (rate, torch.tensor(rate), torch.tensor([rate])):
            _, params, _ = stepped(name, kwargs | {"lr": lr}, 5)
            ends.append([p.detach() for p in params])
        same(ends[1], ends[0])
        same(ends[2], ends[0])


@every
def test_step_is_noop_when_params_have_no_grad(name: str) -> None:
    for kwargs in inputs(name):
        params, _ = layer(name)
        before = deepcopy(params)
        optimizer = made(name, params, **kwargs)
        for _ in range(3):
            optimizer.step()
        same(params, before)


@every
def test_step_is_noop_for_zero_grads(name: str) -> None:
    for kwargs in inputs(name):
        params, _ = layer(name)
        before = deepcopy(params)
        optimizer = made(name, params, **(kwargs | {"weight_decay": 0}))
        for p in params:
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            optimizer.step()
        if kwargs.get("adjust_lr_fn") == "hyperball":  # divides by the norm, and multiplies
            torch.testing.assert_close(params, before)
        else:
            same(params, before)


@every
def test_optimizer_can_be_printed(name: str) -> None:
    for kwargs in inputs(name):
        optimizer, _, _ = stepped(name, kwargs)
        text = repr(optimizer)
        assert text.startswith(type(optimizer).__name__) and "Parameter Group 0" in text


@pytest.mark.parametrize("is_named", [False, True])
@every
def test_state_dict_deterministic(name: str, is_named: bool) -> None:
    def given(params: list[Parameter]) -> Any:
        return [("w", params[0]), ("b", params[1])] if is_named else params

    for kwargs in inputs(name):
        params, closure = layer(name)
        optimizer = made(name, given(params), **kwargs)
        for _ in range(3):
            optimizer.step(closure)
        others = deepcopy(params)
        other = made(name, given(others), **kwargs)
        saved = deepcopy(optimizer.state_dict())
        other.load_state_dict(saved)
        same(comparable(other.state_dict()), comparable(saved))
        for _ in range(3):
            for own, rule in ((params, optimizer), (others, other)):
                for p, q in zip(own, params, strict=True):
                    p.grad = torch.ones_like(q)
                rule.step()
        same(params, others)
        same(comparable(optimizer.state_dict()), comparable(other.state_dict()))


@every
def test_can_load_from_to_named_state_dict(name: str) -> None:
    for names in ((True, False), (False, True), (True, True)):
        params, closure = layer(name)
        made_by = [
            made(name, [(f"{i}", p) for p, i in zip(own, "wb", strict=True)] if named else own)
            for own, named in zip((params, deepcopy(params)), names, strict=True)
        ]
        made_by[0].step(closure)
        made_by[1].load_state_dict(deepcopy(made_by[0].state_dict()))
        assert ("param_names" in made_by[1].param_groups[0]) == any(names)


@every
def test_can_load_older_state_dict(name: str) -> None:
    for kwargs in inputs(name):
        optimizer, _, closure = stepped(name, kwargs)
        old = deepcopy(optimizer.state_dict())
        for flag in info(name).not_og_supported_flags:
            for group in old["param_groups"]:
                group.pop(flag, None)
        optimizer.load_state_dict(old)
        optimizer.step(closure)


@every
def test_save_load_equality_with_weights_only(name: str) -> None:
    for kwargs in inputs(name):
        optimizer, _, _ = stepped(name, kwargs, 3)
        saved = optimizer.state_dict()
        with tempfile.TemporaryFile() as file:
            torch.save(saved, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=True)
        same(comparable(loaded), comparable(saved))


@every
def test_load_nontensor_step(name: str) -> None:
    for kwargs in inputs(name):
        optimizer, _, closure = stepped(name, kwargs)
        saved = deepcopy(optimizer.state_dict())
        for state in saved["state"].values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].item()
        optimizer.load_state_dict(saved)
        optimizer.step(closure)


@every
def test_param_groups_lr_and_weight_decay(name: str) -> None:
    for kwargs in inputs(name):
        if kwargs.get("adjust_lr_fn") == "hyperball":
            continue  # takes no decay
        params, closure = layer(name)
        groups = [{"params": params[:1], "weight_decay": 0.0, "lr": 1e-3}, {"params": params[1:]}]
        optimizer = made(name, groups, **(kwargs | {"weight_decay": 0.5, "lr": 1e-2}))
        first = closure()
        for _ in range(20):
            optimizer.step(closure)
        assert closure() < first
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == [0.0, 0.5]
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-2]


@every
def test_mixed_device_dtype(name: str) -> None:
    halves = [] if name in NO_FLOAT16 else [torch.float16]
    for kwargs in inputs(name):
        if kwargs.get("second_moment"):  # takes no float16
            continue
        torch.manual_seed(0)
        params = [
            Parameter(torch.randn(3, 2).to(dtype))
            for dtype in (torch.float32, torch.float64, torch.bfloat16, *halves)
        ]
        before = deepcopy(params)
        together, apart = made(name, params, **kwargs), deepcopy(params)
        for p, q in zip(params, apart, strict=True):
            alone = made(name, [q], **kwargs)
            for _ in range(3):
                p.grad = q.grad = torch.ones_like(p)
                alone.step()
        for _ in range(3):
            together.step()
        torch.testing.assert_close(params, apart)
        assert all(p.isfinite().all() for p in params)
        assert not any(torch.equal(p, q) for p, q in zip(params[:2], before, strict=False))


@every
def test_deepcopy_copies_all_public_attrs(name: str) -> None:
    def public(optimizer: Any) -> set[str]:
        return {key for key in vars(optimizer) if not key.startswith("_")}

    for kwargs in inputs(name):
        optimizer, _, _ = stepped(name, kwargs)
        assert public(optimizer) == public(deepcopy(optimizer))


@every
def test_non_empty_state(name: str) -> None:
    """A state that was loaded for another parameter, under a key of its own, stays."""
    for kwargs in inputs(name):
        params, closure = layer(name)
        optimizer = made(name, params, **kwargs)
        optimizer.state[params[0]]["hello"] = "world"
        optimizer.step(closure)
        assert optimizer.state[params[0]]["hello"] == "world"
        assert len(optimizer.state[params[0]]) > 1


@every
def test_step_and_state_dict_hooks(name: str) -> None:
    """`step_post_hook`, `step_pre_hook`, `state_dict_*_hook`, `load_state_dict_*_hook` in one."""
    params, closure = layer(name)
    optimizer, seen = made(name, params), []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.register_state_dict_pre_hook(lambda _: seen.append("saving"))
    optimizer.register_state_dict_post_hook(lambda _, state: state | {"mine": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, state: {k: v for k, v in state.items() if k != "mine"}
    )
    optimizer.register_load_state_dict_post_hook(lambda _: seen.append("loaded"))
    optimizer.step(closure)
    saved = optimizer.state_dict()
    assert saved["mine"] == 1
    optimizer.load_state_dict(deepcopy(saved))
    assert seen == ["pre", "post", "saving", "loaded"]
    with io.BytesIO() as file:
        torch.save(optimizer.state_dict(), file)  # hooks are no part of it


@every
def test_grads_are_never_inplaced_into(name: str) -> None:
    for kwargs in inputs(name):
        params, closure = layer(name)
        optimizer = made(name, params, **kwargs)
        closure()
        grads = [p.grad for p in params]
        kept, versions = deepcopy(grads), [g._version for g in grads if g is not None]
        optimizer.step()
        same(grads, kept)
        assert [g._version for g in grads if g is not None] == versions


@every
def test_the_same_steps_give_the_same_weights(name: str) -> None:
    """With torch's tracker of tensors, as its suite compares two ways of stepping."""

    case = unittest.TestCase()
    case.assertEqual = same  # type: ignore[method-assign,assignment]
    for kwargs in inputs(name):
        tracker = shipped().TensorTracker()
        for again in (False, True):
            params, closure = layer(name)
            optimizer = made(name, params, **deepcopy(kwargs))
            for _ in range(3):
                optimizer.step(closure)
                for p in params:
                    if again:
                        tracker.pop_check_set(p, case)
                    else:
                        tracker.add(p)
        assert tracker.all_popped()
