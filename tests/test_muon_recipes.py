"""The recipes of Muon's family: their names, what they tune, how they cut the parameters.

python -m pytest tests/test_muon_recipes.py
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import optim
from errors import UserError
from layers.config import GPTConfig, preset
from model import GPT
from muon import Muon
from optim import Beta, Log, options
from optim.entrants import parse
from tests.matrices import NAMES, Options, distance, gradient, train
from tracking import tuned

MODEL = GPTConfig(vocab_size=37, block_size=8, n_layer=2, n_head=2, n_embd=32)


def plan_of(name: str, model: GPT | None = None, **settings: Any) -> list[optim.Group]:
    roles = (model or GPT(MODEL)).roles()
    return optim.plan(roles, name, settings, torch.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_registered_under_its_usual_name(name: str) -> None:
    groups = plan_of(name)
    assert {row.role for group in groups for row in group.params} == {
        "embed", "head", "matrix", "vector"
    }  # fmt: skip
    known = options(optim.recipes()[name])
    tuned = {key: option for key, option in known.items() if option.range}
    expected = {"lr", "weight_decay", "momentum", "embed_lr", "head_lr", "vector_lr"}
    expected |= {"beta2"} if name in ("normuon", "adamuon", "muon2") else set()
    expected -= {"muonh": {"weight_decay"}, "moonlight": {"embed_lr", "head_lr", "vector_lr"}}.get(
        name, set()
    )
    assert set(tuned) == expected
    for option in tuned.values():
        assert isinstance(option.range, Log | Beta)
        assert option.range.low < option.default < option.range.high


def test_a_variant_is_muon_with_other_defaults() -> None:
    muon, split = optim.recipes()["muon"], options(optim.recipes()["muon-split"])
    assert split == options(muon) | {"blocks": split["blocks"]}
    assert (options(muon)["blocks"].default, split["blocks"].default) == ("qkv", "heads")
    normuon = options(optim.recipes()["normuon"])
    assert normuon["second_moment"].default == "row"
    adamuon = options(optim.recipes()["adamuon"])
    assert adamuon["lr"].range != options(muon)["lr"].range
    assert options(optim.recipes()["muonh"])["weight_decay"].default == 0.0
    typed = plan_of("normuon", beta2=0.8, ns_coefficients="cans", cautious=True)[0].options
    assert (typed["second_moment"], typed["beta2"], typed["cautious"]) == ("row", 0.8, True)
    assert typed["ns_coefficients"] == "cans"


def test_the_options_of_muon_that_had_been_there_stay_first_and_as_they_were() -> None:
    known = options(optim.recipes()["muon"])
    old = dict(
        lr=0.03, weight_decay=0.05, momentum=0.95, nesterov=True, ns_coefficients="jordan",
        ns_steps=5, adjust_lr_fn="original", embed_lr=0.3, head_lr=0.01, vector_lr=0.01,
        aux_beta1=0.8, aux_beta2=0.95, aux_eps=1e-10, aux_weight_decay=0.0,
    )  # fmt: skip
    assert {key: option.default for key, option in list(known.items())[: len(old)]} == old
    model = GPT(MODEL)
    model.init_weights(0)
    for group in plan_of("muon", model)[:2]:
        params = [row.param for row in group.params]
        train(params, optimizer := group.rule(params, **group.options), 1)
        assert all(state.keys() == {"momentum_buffer"} for state in optimizer.state.values())


def test_muon_split_orthogonalises_each_head() -> None:
    model = GPT(MODEL)
    model.init_weights(0)
    groups = plan_of("muon-split", model, lr=0.1, weight_decay=0.0)
    splits = {row.name: g.options.get("splits") for g in groups for row in g.params}
    assert splits["blocks.1.attn.qkv.weight"] == (16,) * 6
    assert splits["blocks.1.attn.proj.weight"] == (32,)
    assert splits["blocks.1.mlp.fc.weight"] == (128,)

    qkv = model.get_parameter("blocks.0.attn.qkv.weight")
    (group,) = (g for g in groups if any(row.param is qkv for row in g.params))
    start = qkv.detach().clone()
    heads = [nn.Parameter(head.clone()) for head in start.split(16)]
    part = lambda _, step, i: gradient(qkv, step).split(16)[i]  # noqa: E731
    optimizer, apart = group.rule([qkv], **group.options), Muon(heads, lr=0.1)
    train([qkv], optimizer, 1)
    train(heads, apart, 1, of=part)
    for head in (start - qkv.detach()).split(16):  # each has its own full rank
        values = torch.linalg.svdvals(head / 0.1)
        assert values.min() > 0.65 and values.max() < 1.15
    train([qkv], optimizer, 3, first=1)
    train(heads, apart, 3, first=1, of=part)
    assert distance(qkv - start, torch.cat(heads) - start) < 1e-6


# Rows of each matrix that is orthogonalised, of a layer with four heads of 32 channels.
HEADS = {
    "tiny": {"attn.qkv": (32,) * 12},
    "tiny-gqa": {"attn.qkv": (32,) * (4 + 2 + 2)},  # two heads of keys, two of values
    "tiny-mla": {
        "attn.q_down": (64,),
        "attn.q_up": (16,) * 4,
        "attn.q_rope": (16,) * 4,
        "attn.kv_down": (32,),
        "attn.k_up": (16,) * 4,
        "attn.k_rope": (16,),  # all heads share it
        "attn.v_up": (32,) * 4,
    },
}
REST = {"attn.proj": (128,), "mlp.fc": (512,), "mlp.proj": (128,)}


@pytest.mark.parametrize("name", HEADS)
def test_muon_split_is_muon_on_the_heads_of_each_attention_and_on_all_else_whole(
    name: str,
) -> None:
    model = GPT(replace(preset(name, vocab_size=37, block_size=8), n_layer=1))
    model.init_weights(0)
    settings = dict(lr=0.1, weight_decay=0.2)
    groups = plan_of("muon-split", model, **settings)
    groups = [group for group in groups if group.rule is Muon]
    cut = {
        row.name.removeprefix("blocks.0.").removesuffix(".weight"): (row.param, g.options["splits"])
        for g in groups
        for row in g.params
    }
    assert {key: splits for key, (_, splits) in cut.items()} == HEADS[name] | REST

    params = [p for p, _ in cut.values()]
    starts = [p.detach().clone() for p in params]
    split = Muon([{"params": [r.param for r in g.params], **g.options} for g in groups])
    train(params, split, 3)
    for i, (key, W) in enumerate(zip(cut, starts, strict=True)):
        rows = (HEADS[name] | REST)[key]
        parts = [nn.Parameter(part.clone()) for part in W.split(rows)]
        part = lambda _, t, j, W=W, i=i, rows=rows: gradient(W, t, i).split(rows)[j]  # noqa: E731
        train(parts, Muon(parts, **settings), 3, of=part)
        assert distance(params[i] - W, torch.cat(parts) - W) < 1e-6


@pytest.mark.parametrize(
    ("blocks", "splits"), [("fused", (96,)), ("qkv", (32,) * 3), ("heads", (16,) * 6)]
)
@pytest.mark.parametrize("name", ["muon", "dion"])
def test_blocks_say_how_query_key_and_value_are_cut(
    name: str, blocks: str, splits: tuple[int, ...]
) -> None:
    found = {
        row.name: group.options["splits"]
        for group in plan_of(name, blocks=blocks)
        for row in group.params
        if row.role == "matrix"
    }
    assert found["blocks.0.attn.qkv.weight"] == splits


def test_moonlight_has_one_lr_and_weight_decay_for_all() -> None:
    groups = plan_of("moonlight", lr=0.02, weight_decay=0.3)
    assert {(g.options["lr"], g.options["weight_decay"]) for g in groups} == {(0.02, 0.3)}
    assert groups[-1].options["betas"] == (0.9, 0.95)
    assert groups[0].options["adjust_lr_fn"] == "match_rms_adamw"


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("muon", {"blocks": "head"}, "blocks='head': must be fused, qkv or heads"),
        ("muon", {"second_moment": "rows"}, "second_moment='rows'.*gradient, row, entry"),
        ("muon", {"beta2": 1.0}, "beta2=1.0"),
        ("muon", {"momentum_start": 1.0}, "momentum_start=1.0"),
        ("muon", {"momentum_warmup": -1}, "momentum_warmup=-1"),
        ("normuon", {"adjust_lr_fn": "exact"}, "exact.*exact_rms, hyperball"),
        ("dion", {"rank_fraction": 0.0}, "rank_fraction=0.0"),
        ("dion", {"momentum": 1.5}, "momentum=1.5"),
    ],
)
def test_impossible_options_are_refused(name: str, settings: Options, message: str) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        for group in plan_of(name, **settings):
            group.rule([row.param for row in group.params], **group.options)


def schedule(steps: int = 1) -> None:
    """What every entrant has beside its recipe's options."""


@pytest.mark.parametrize("name", ["polar-express", "muon-split"])
def test_names_with_hyphens_are_entrants_and_sections(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned.toml"
    tuned.write(tuned.Tuned("tiny", name, {"lr": 0.04}, steps=65, trials=(6,)), path)
    found = tuned.find("tiny", name, path)
    assert found is not None and found.options == {"lr": 0.04, "steps": 65}
    entrant = parse(f"{name}:beta2=0.5", "tiny", schedule, {}, {}, None)
    assert (entrant.recipe, entrant.settings["beta2"]) == (name, 0.5)
    again = parse(entrant.canonical, "tiny", schedule, {}, {}, None)
    assert again.settings == entrant.settings
