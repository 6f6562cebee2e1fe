"""Recipes, plans and entrants: which parameter gets which rule, and what the command line may say.

    python -m pytest tests/test_optim.py

Claims: a plan gives every parameter one rule, and Muon hidden matrices only; an entrant is read
from the recipe's signature, layered over `tuned.toml`; every mistake is answered by a message
that names it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch.optim import AdamW

import optim
from errors import UserError
from layers.config import GPTConfig
from model import GPT, RoleRow
from muon import Muon
from optim import Beta, Group, Linear, Log, Option, Roles, options, pick, plan
from optim.dion import Dion
from optim.entrants import Entrant, entrant_options, parse

ROLES = GPT(GPTConfig(vocab_size=37, block_size=8, n_layer=2, n_head=2, n_embd=32)).roles()


@dataclass(frozen=True)
class Schedule:
    """What every entrant has beside its recipe's options."""

    steps: int = 0
    cooldown: Annotated[float, Linear(0.3, 1.0)] = 0.7


# ---------------------------------------------------------------------------------------------
# Plans.


def plan_of(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., list[Group]], roles: Roles = ROLES
) -> list[Group]:
    monkeypatch.setitem(optim.recipes(), "mine", function)
    return plan(roles, "mine", {}, torch.float32)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_recipe_gives_every_parameter_one_rule(name: str) -> None:
    rows = [row.name for group in plan(ROLES, name, {}, torch.float32) for row in group.params]
    assert sorted(rows) == sorted(row.name for row in ROLES)


def test_muon_gets_the_hidden_matrices_and_adamw_the_rest() -> None:
    settings = dict(lr=0.04, weight_decay=0.3, momentum=0.9, nesterov=False, ns_steps=7)
    settings |= dict(embed_lr=0.1, head_lr=0.2, vector_lr=0.3)
    settings |= dict(ns_coefficients="stable", adjust_lr_fn="match_rms_adamw")
    groups = plan(ROLES, "muon", settings, torch.bfloat16, "plain")
    rates = {"embed": 0.1, "head": 0.2, "vector": 0.3}
    for group in groups:
        for row in group.params:
            assert group.rule is (Muon if row.role == "matrix" else AdamW)
            if group.rule is AdamW:
                assert group.options["lr"] == rates[row.role]
                assert group.options["weight_decay"] == 0
            else:
                assert group.options["splits"] == row.splits
                assert group.options["ns_dtype"] == torch.bfloat16
                assert group.options["ns_backend"] == "plain"
                for key, value in settings.items():
                    assert key.endswith("_lr") or group.options[key] == value


def test_adamw_decays_the_hidden_matrices_alone() -> None:
    settings = dict(lr=0.04, weight_decay=0.3, beta1=0.7, beta2=0.8, eps=1e-5)
    settings |= dict(embed_lr=0.1, head_lr=0.2, vector_lr=0.3)
    expected = {
        "matrix": (0.04, (0.7, 0.8), 1e-5, 0.3),
        "embed": (0.1, (0.8, 0.95), 1e-10, 0.0),
        "head": (0.2, (0.8, 0.95), 1e-10, 0.0),
        "vector": (0.3, (0.8, 0.95), 1e-10, 0.0),
    }
    for group in plan(ROLES, "adamw", settings, torch.float32):
        found = tuple(group.options[key] for key in ("lr", "betas", "eps", "weight_decay"))
        assert {expected[row.role] for row in group.params} == {found}
        assert "ns_dtype" not in group.options


def test_a_recipe_may_choose_the_precision_of_its_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mine(roles: Roles) -> list[Group]:
        return [
            Group(Muon, pick(roles, "matrix"), lr=0.1, ns_dtype=torch.float64),
            Group(AdamW, pick(roles, "embed", "head", "vector"), lr=0.1),
            Group(AdamW, [], lr=0.1),
        ]

    groups = plan_of(monkeypatch, mine)
    assert [group.rule for group in groups] == [Muon, AdamW]  # the empty one is gone
    assert groups[0].options["ns_dtype"] == torch.float64


def test_a_parameter_without_a_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(roles: Roles) -> list[Group]:
        return [Group(AdamW, [row for row in roles if row.name != "head.bias"], lr=0.1)]

    with pytest.raises(UserError, match=r"mine: head\.bias has 0 rules \(none\)"):
        plan_of(monkeypatch, mine)


def test_a_parameter_with_two_rules_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(roles: Roles) -> list[Group]:
        twice = [row for row in roles if row.name == "blocks.1.mlp.fc.weight"]
        return [Group(AdamW, roles, lr=0.1), Group(Muon, twice, lr=0.1)]

    message = r"mine: blocks\.1\.mlp\.fc\.weight has 2 rules \(AdamW, Muon\)"
    with pytest.raises(UserError, match=message):
        plan_of(monkeypatch, mine)


class Variant(Muon):
    """A rule made from Muon."""


class MuonLaProp(torch.optim.SGD):
    """A library's, that is none of ours."""


@pytest.mark.parametrize("rule", [Muon, Variant, torch.optim.Muon, Dion, MuonLaProp])
@pytest.mark.parametrize("name", ["embed.weight", "head.weight", "norm_final.weight"])
def test_muon_is_refused_what_is_no_hidden_matrix(
    name: str, rule: type[torch.optim.Optimizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def mine(roles: Roles) -> list[Group]:
        taken = [row for row in roles if row.name == name]
        rest = [row for row in roles if row.name != name]
        return [Group(rule, taken, lr=0.1), Group(AdamW, rest, lr=0.1)]

    with pytest.raises(UserError, match=f"mine: {name} .*{rule.__name__}"):
        plan_of(monkeypatch, mine)


def test_a_group_without_an_lr_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def mine(roles: Roles) -> list[Group]:
        return [Group(AdamW, roles)]

    with pytest.raises(UserError, match="mine: its group of AdamW has no lr"):
        plan_of(monkeypatch, mine)


def test_muon_is_refused_a_flattened_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.nn.Parameter(torch.zeros(512))

    def mine(roles: Roles) -> list[Group]:
        return [Group(Muon, roles, lr=0.1)]

    with pytest.raises(UserError, match=r"mine: shard \(matrix, 1-D\)"):
        plan_of(monkeypatch, mine, [RoleRow("shard", flat, "matrix", (32,))])


# ---------------------------------------------------------------------------------------------
# Options.


def test_options_are_read_from_the_signature() -> None:
    def mine(
        roles: Roles,
        lr: Annotated[float, Log(0.01, 1.0)] = 0.1,
        momentum: Annotated[float, Linear(0.8, 0.9)] = 0.9,
        ns_steps: int = 5,
        nesterov: bool = True,
        name: str = "x",
    ) -> list[Group]:
        return []

    assert options(mine) == {
        "lr": Option(float, 0.1, Log(0.01, 1.0)),
        "momentum": Option(float, 0.9, Linear(0.8, 0.9)),
        "ns_steps": Option(int, 5, None),
        "nesterov": Option(bool, True, None),
        "name": Option(str, "x", None),
    }
    assert options(Schedule)["cooldown"] == Option(float, 0.7, Linear(0.3, 1.0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_tuner_may_search_the_same_knobs_of_every_recipe(name: str) -> None:
    known = entrant_options(name, Schedule)
    assert {"steps", "cooldown"} <= set(known)
    tuned = {key: option for key, option in known.items() if option.range is not None}
    expected = {"lr", "weight_decay", "embed_lr", "head_lr", "vector_lr", "cooldown"}
    expected |= {"adamw": {"beta1", "beta2"}, "muon": {"momentum"}}[name]
    assert set(tuned) == expected
    for key, option in tuned.items():
        assert option.range is not None and option.type is float
        assert option.range.low < option.default < option.range.high, key


def test_a_range_is_sampled_evenly_or_evenly_in_the_logarithm() -> None:
    assert [Linear(2, 6).at(u) for u in (0, 0.25, 1)] == [2, 3, 6]
    assert [Log(0.01, 100).at(u) for u in (0, 0.25, 0.5, 1)] == pytest.approx([0.01, 0.1, 1, 100])
    for bounds in (Linear(2, 6), Log(0.01, 100)):
        assert bounds.where(bounds.at(0.3)) == pytest.approx(0.3)
    beta = Beta(0.2, 0.992)  # 1 - beta from 0.8 to 0.008, with 0.08 in the middle
    assert [beta.at(u) for u in (0, 0.5, 1, 1.5)] == pytest.approx([0.2, 0.92, 0.992, 0.9992])
    assert (beta.at(-1.0), beta.where(beta.at(0.3))) == (0.0, pytest.approx(0.3))
    # A fraction cannot leave its range; a scale can.
    assert (Linear(2, 6).at(-0.5), Linear(2, 6).at(1.5)) == (2, 6)
    assert (Log(0.01, 100).at(-0.5), Log(0.01, 100).at(1.5)) == pytest.approx((1e-4, 1e4))


# ---------------------------------------------------------------------------------------------
# Entrants.


def enter(text: str, tuned: Path | None = None, **fixed: Any) -> Entrant:
    return parse(text, "tiny", Schedule, {"steps": 40}, fixed, tuned)


def refusal(text: str, tuned: Path | None = None) -> str:
    with pytest.raises(UserError) as caught:
        enter(text, tuned)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tuned(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        """Sections come from trial 3, and have 40 steps unless they say another number."""

        def complete(section: re.Match[str]) -> str:
            steps = "" if "\nsteps" in section[0] else "steps = 40\n"
            return f"{section[0]}{steps}trials = [3]\n"

        path = tmp_path / "tuned.toml"
        path.write_text(re.sub(r"^\[.+\]\n(?:[^\[].*\n)*", complete, text, flags=re.MULTILINE))
        return path

    return write


def test_a_name_alone_has_the_defaults_of_recipe_and_schedule() -> None:
    entrant = enter("muon")
    assert (entrant.label, entrant.recipe) == ("muon", "muon")
    defaults = {key: o.default for key, o in entrant_options("muon", Schedule).items()}
    assert entrant.settings == defaults | {"steps": 40}  # the track's, in place of Schedule's
    assert "defaults" in entrant.origin and "tiny" in entrant.origin


def test_what_is_typed_replaces_the_defaults_with_its_type() -> None:
    text = "muon:lr=3e-2,nesterov=false,ns_steps=7,ns_coefficients=stable,steps=90,cooldown=1"
    entrant = enter(text)
    assert entrant.label == text
    expected = dict(
        lr=0.03, nesterov=False, ns_steps=7, ns_coefficients="stable", steps=90, cooldown=1.0
    )
    assert entrant.settings == enter("muon").settings | expected
    for key, value in expected.items():
        assert type(entrant.settings[key]) is type(value)
    assert "nesterov=false" in entrant.origin


@pytest.mark.parametrize(("word", "value"), [("true", True), ("False", False), ("TRUE", True)])
def test_a_switch_is_spelled_true_or_false(word: str, value: bool) -> None:
    assert enter(f"muon:nesterov={word}").settings["nesterov"] is value


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("muno", ["unknown entrant 'muno'", "did you mean muon", "adamw"]),
        ("adamv", ["unknown entrant 'adamv'", "did you mean adam"]),
        ("", ["unknown entrant ''", "adamw", "muon"]),
        ("muon:momentun=0.9", ["unknown option 'momentun'", "did you mean momentum", "ns_steps"]),
        ("adamw:ns_steps=3", ["unknown option 'ns_steps'", "beta1"]),
        ("muon:lr", ["lr has no value", "write lr=0.03"]),
        ("muon:lr=fast", ["lr=fast", "must be float"]),
        ("muon:lr=", ["lr=", "must be float"]),
        ("muon:ns_steps=5.5", ["ns_steps=5.5", "must be int"]),
        ("muon:nesterov=1", ["nesterov=1", "must be true or false"]),
        ("muon:lr=nan", ["lr=nan", "must be finite"]),
        ("adamw:cooldown=inf", ["cooldown=inf", "must be finite"]),
        ("lib:torch.optim.NAdam:betas=0.9/nan", ["betas=0.9/nan", "must be finite"]),
        ("muon:lr=0.1,lr=0.2", ["lr is given twice"]),
        ("lion:lr=-0.1", ["lr=-0.1", "must be at least 0"]),
        ("shampoo:embed_lr=-1", ["embed_lr=-1", "must be at least 0"]),
        ("dion:weight_decay=-1", ["weight_decay=-1", "must be at least 0"]),
        ("soap:eps=-1", ["eps=-1", "must be at least 0"]),
        ("signum:momentum=2", ["momentum=2", "at least 0 and below 1"]),
        ("shampoo:beta2=1", ["beta2=1", "at least 0 and below 1"]),
    ],
)
def test_a_mistake_is_answered_with_what_is_valid(text: str, parts: list[str]) -> None:
    message = refusal(text)
    assert [part for part in parts if part not in message] == []


def test_tuned_settings_lie_between_the_defaults_and_what_is_typed(
    tuned: Callable[[str], Path],
) -> None:
    path = tuned(
        "[tiny.muon]\nlr = 0.07\nmomentum = 0.8\nsteps = 55\n"
        "[tiny.adamw]\nlr = 0.5\n[gpt2.muon]\nlr = 0.6\n"
    )
    entrant = enter("muon:momentum=0.7", path)
    assert entrant.settings == enter("muon").settings | dict(lr=0.07, momentum=0.7, steps=55)
    assert entrant.origin == "tuned for tiny, with momentum=0.7"
    assert enter("muon", path).origin == "tuned for tiny"
    assert enter("muon:steps=60", path, steps=9).settings["steps"] == 9  # the same for all entrants
    assert parse("muon", "medium", Schedule, {}, {}, path).settings["lr"] == 0.03


def test_its_other_models_fall_back_on_the_settings_of_tiny(
    tuned: Callable[[str], Path],
) -> None:
    path = tuned("[tiny.muon]\nlr = 0.07\n[tiny.lion]\n[tiny-mla.muon]\nlr = 0.06\n")
    gqa = parse("muon", "tiny-gqa", Schedule, {}, {}, path)
    assert (gqa.settings["lr"], gqa.origin) == (0.07, "tuned for tiny")
    mla = parse("muon", "tiny-mla", Schedule, {}, {}, path)
    assert (mla.settings["lr"], mla.origin) == (0.06, "tuned for tiny-mla")


def test_without_the_file_nothing_is_tuned(tmp_path: Path) -> None:
    assert enter("muon", tmp_path / "none.toml") == enter("muon")


def test_tuned_values_have_the_types_of_typed_ones(tuned: Callable[[str], Path]) -> None:
    entrant = enter("muon", tuned("[tiny.muon]\nlr = 1\nnesterov = false\n"))
    assert entrant.canonical == enter("muon:lr=1,nesterov=false").canonical


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[tiny.muon]\nlr = = 3\n", ["Invalid value"]),
        ("[tiny.muon]\nlearning_rate = 0.1\n", ["tiny.muon", "unknown option 'learning_rate'"]),
        ('[tiny.muon]\nlr = "fast"\n', ["lr", "fast", "float"]),
        ("[tiny.muon]\nnesterov = 3\n", ["nesterov", "true or false"]),
        ("[tiny.muon]\nns_steps = 5.5\n", ["ns_steps", "5.5", "int"]),
        ("[tiny.muon]\nlr = nan\n", ["tiny.muon", "lr=nan", "finite"]),
        ("tiny = 3\n", ["must have sections"]),
        ("[tiny]\nmuon = 3\n", ["must have sections"]),
    ],
)
def test_a_mistake_in_the_file_is_answered_with_its_name(
    text: str, parts: list[str], tuned: Callable[[str], Path]
) -> None:
    message = refusal("muon", tuned(text))
    assert [part for part in ["tuned.toml", *parts] if part not in message] == []


@pytest.mark.parametrize(
    "text", ["adamw", "muon", "muon:lr=0.1234567890123,nesterov=False,ns_steps=3,cooldown=1e-7"]
)
def test_what_is_spelled_out_reads_back_as_itself(text: str, tuned: Callable[[str], Path]) -> None:
    entrant = enter(text, tuned("[tiny.muon]\nlr = 0.07\n[tiny.adamw]\nbeta1 = 0.75\n"))
    again = parse(entrant.canonical, "elsewhere", Schedule, {"steps": 3}, {}, None)
    assert (again.recipe, again.settings) == (entrant.recipe, entrant.settings)
    assert again.canonical == entrant.canonical
