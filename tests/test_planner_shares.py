"""What Muon may take: published figures from the presets, and the designs of a model."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from planner import models
from planner.__main__ import main
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.models import Model, design, shares
from planner.models.shares import ALL, HIDDEN_SUM, Question
from planner.time.newton_schulz import Iteration


def ask(optimizer: str = "muon", iteration: Iteration | None = None, **setting: int) -> Question:
    rule = update_rules.find(optimizer)
    return Question(rule, Setting(**setting), iteration or Iteration())  # type: ignore[arg-type]


def by_words(model: Model, question: Question) -> dict[str, shares.Design]:
    return {each.words: each for each in shares.designs(model, question)}


# ---- Published figures -------------------------------------------------------------------------


def test_llama_405b_needs_the_published_flops_of_orthogonalisation() -> None:
    # Below 1% at 16M tokens: Jordan's article on Muon.
    row = by_words(models.find("llama-405b"), ask())["as it is"]
    assert f"{row.ns_flops:.1e}" == "1.6e+17"
    assert row.ns_share < 0.01
    model = models.find("llama-405b")
    of_matrices = row.ns_flops / (6 * model.hidden_params * model.batch_tokens)
    assert of_matrices == pytest.approx(0.0039, abs=5e-5)
    bound = 5 * model.n_embd / model.batch_tokens  # T m / B, as m is at most the width
    assert of_matrices < bound < 0.0052


def test_deepseek_v4_needs_the_published_flops_of_orthogonalisation() -> None:
    model = models.find("deepseek-v4")
    question = ask(iteration=Iteration(ns_coefficients="deepseek-v4"))
    row = by_words(model, question)["as it is"]
    experts = model.of_roles(("experts",))
    flops = question.ns_flops(experts)
    assert f"{flops:.1e}" == "2.3e+17"  # which is the experts alone: all matrices need 2% more
    assert row.ns_flops / flops == pytest.approx(1.019, abs=0.001)
    tokens = 94.4e6
    routed = 6 * tokens * sum(w.params * w.token_share for w in experts)
    shared = 6 * tokens * sum(w.params for w in model.weights if w.name.startswith("shared."))
    assert 10 * 3072 / (tokens * 6 / 384) == pytest.approx(
        0.021, abs=0.0005
    )  # T m / B of an expert
    assert flops / (routed + shared) == pytest.approx(
        0.0145, abs=5e-5
    )  # as if the shared expert were one of them
    assert row.experts_ns_share == pytest.approx(0.0169, abs=5e-5)  # of the routed experts alone
    assert flops / (6 * 49e9 * tokens) == pytest.approx(0.0083, abs=5e-5)


def test_gpt2_keeps_the_published_state() -> None:
    *_, row = shares.rows(models.find("gpt2-124m"), ask())
    assert row.role == ALL
    assert (row.adamw_state_bytes / 2**20, row.state_bytes / 2**20) == (
        pytest.approx(949, abs=0.5),
        pytest.approx(625, abs=0.5),
    )
    assert row.saved == pytest.approx(0.34, abs=0.005)
    untied = by_words(models.find("gpt2-124m"), ask())["a table each for embedding and head"]
    assert untied.state_bytes_per_param == pytest.approx(5.91, abs=0.01)
    assert untied.hidden_share == pytest.approx(0.52, abs=0.005)


@pytest.mark.parametrize(
    ("words", "iteration", "share"),
    [
        ("as it is", Iteration(), 0.0061),
        ("as it is", Iteration(ns_coefficients="stable"), 0.0146),
        ("q, k and v as one matrix", Iteration(), 0.0057),
        ("each head a matrix (Muon Split)", Iteration(), 0.0044),
    ],
)
def test_gpt2_spends_the_published_share_of_its_matrices_flops(
    words: str, iteration: Iteration, share: float
) -> None:
    model = models.find("gpt2-124m")
    row = by_words(model, ask(iteration=iteration))[words]
    found = row.ns_flops / (6 * model.hidden_params * model.batch_tokens)
    assert found == pytest.approx(share, abs=5e-5)


# ---- By role -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2-xl", "deepseek-v3", "nanochat-d20"])
@pytest.mark.parametrize("optimizer", ["muon", "soap", "adamw", "lion"])
def test_the_roles_add_up_to_the_model(name: str, optimizer: str) -> None:
    found = shares.rows(models.find(name), ask(optimizer))
    roles = [each for each in found if each.role not in (HIDDEN_SUM, ALL)]
    hidden = [each for each in roles if each.role in models.HIDDEN]
    for field in ("params", "grad_bytes", "state_bytes", "adamw_state_bytes", "state_share"):
        whole = sum(getattr(each, field) for each in roles)
        assert getattr(found[-1], field) == pytest.approx(whole)
        part = sum(getattr(each, field) for each in hidden)
        assert getattr(found[-2], field) == pytest.approx(part)
    assert found[-1].adamw_state_bytes == 8 * models.find(name).params


def test_types_change_bytes_and_no_share() -> None:
    model = models.find("deepseek-v3")
    wide = shares.rows(model, ask())
    narrow = shares.rows(model, replace(ask(), setting=Setting(state_dtype="bfloat16")))
    assert [each.state_bytes for each in wide] == [2 * each.state_bytes for each in narrow]
    assert [each.state_share for each in wide] == [each.state_share for each in narrow]


# ---- Designs -----------------------------------------------------------------------------------


def test_experts_in_place_of_a_dense_mlp_have_as_many_active_parameters() -> None:
    model = models.find("llama-405b")
    changed = design.sparse(model)
    assert changed is not None
    routers = sum(w.params for w in changed.of_roles(("router",)))
    assert changed.active_params - routers == pytest.approx(model.active_params, rel=1e-12)
    dense_mlp = sum(w.params for w in model.of_roles(("mlp",)))
    experts = sum(w.params for w in changed.of_roles(("experts",)))
    assert experts == dense_mlp * design.EXPERTS // design.CHOSEN
    back = design.dense(changed)
    assert back is not None
    assert (back.params, back.active_params) == (model.params, model.active_params)
    found = by_words(model, ask())
    share = found[f"{design.EXPERTS} experts, {design.CHOSEN} a token"].experts_ns_share
    # T (4 n m + 2 m^2) / (6 n B') of one expert, whose smaller side is an eighth of 53,248.
    m, n, tokens = 6656, 16384, model.batch_tokens / 8
    assert share == pytest.approx(5 * (4 * n * m + 2 * m * m) / (6 * n * tokens), rel=1e-12)


def test_latent_and_grouped_attention_replace_each_other() -> None:
    llama, v3 = models.find("llama-405b"), models.find("deepseek-v3")
    latent, grouped = design.latent(llama), design.grouped(v3)
    assert latent is not None and grouped is not None
    heads, d = 128, 16384
    q_rank, kv_rank = 3520, 1184  # of DeepSeek-V3, 16384 / 7168 as large, in multiples of 32
    each = (
        q_rank * d + heads * 192 * q_rank  # queries
        + (kv_rank + 64) * d + heads * (128 + 128) * kv_rank  # keys and values
        + d * heads * 128
    )  # fmt: skip
    assert sum(w.params for w in latent.of_roles(("attention",))) == 126 * each
    assert (latent.qk_size, latent.v_size) == (192, 128)
    assert sum(w.params for w in grouped.of_roles(("attention",))) == 61 * (
        2 * 7168 * 128 * 128 + 2 * 7168 * 8 * 128
    )
    vectors = {w.name for w in grouped.of_roles(("vector",))}
    assert vectors == {"norms"}, "the norms of the latent layers go with them"
    assert design.latent(v3) is None and design.grouped(llama) is None
    indexed = design.grouped(models.find("glm-5"))
    assert indexed is not None and not any(w.name.startswith("indexer") for w in indexed.weights)


def test_tables_are_tied_and_cut() -> None:
    llama = models.find("llama-405b")
    tied, cut = design.tied(llama), design.small_vocabulary(llama)
    assert tied is not None and cut is not None
    assert llama.params - tied.params == 128256 * 16384
    assert design.untied(tied) is not None and design.tied(tied) is None
    assert llama.params - cut.params == 2 * (128256 - 32064) * 16384
    assert tied.hidden_params == cut.hidden_params == llama.hidden_params
    nanochat = models.find("nanochat-d20")
    small = design.small_vocabulary(nanochat)
    assert small is not None  # the ten tables of value embeddings are cut too
    assert nanochat.params - small.params == 12 * (32768 - 8192) * 1280


def test_a_fused_query_key_and_value_may_be_one_matrix() -> None:
    model = models.find("gpt2-xl")
    joined = design.joined(model)
    assert joined is not None and joined.params == model.params
    split = ask(iteration=Iteration(split=True))
    assert split.ns_flops(joined.weights) == split.ns_flops(model.weights)
    assert ask().ns_flops(joined.weights) < ask().ns_flops(model.weights)
    assert design.joined(models.find("llama-405b")) is None


@pytest.mark.parametrize("name", models.presets())
def test_every_design_of_a_preset_can_be_counted(name: str) -> None:
    model = models.find(name)
    for words, changed in design.variants(model).items():
        names = [weight.name for weight in changed.weights]
        assert len(names) == len(set(names)), words
        assert all(w.rows % w.parts == 0 for w in changed.weights)
    for row in shares.designs(model, ask()):
        assert 0 < row.hidden_share < 1 and 0 < row.ns_share < 0.1
        assert 4 < row.state_bytes_per_param < row.adamw_state_bytes_per_param == 8


# ---- The command -------------------------------------------------------------------------------


def test_the_csv_holds_what_the_tables_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shares.csv"
    assert main(["shares", "gpt2-124m", "kimi-k2", f"--csv={path}"]) == 0
    shown = capsys.readouterr().out
    with path.open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert {line["model"] for line in lines} == {"gpt2-124m", "kimi-k2"}
    [whole] = [
        line
        for line in lines
        if (line["model"], line["design"], line["role"]) == ("kimi-k2", "as it is", ALL)
    ]
    share = float(whole["ns_flops"]) / float(whole["model_flops"])
    assert f"{share:.2%}" in shown
    assert f"{int(whole['parameters']):,}" in shown
    tables = shares.markdown(models.find("kimi-k2"), ask())
    assert "| grouped queries |" in tables and "| experts | " in tables


def test_an_optimizer_without_orthogonalisation_spends_none() -> None:
    rows = shares.designs(models.find("deepseek-v3"), ask("lion"))
    assert {row.ns_flops for row in rows} == {0.0}
    assert rows[0].state_bytes_per_param == pytest.approx(4.01, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deepseek-v5"], "did you mean deepseek-v"),
        (["gpt2-xl", "--optimizer", "mun"], "--optimizer mun: must be one of"),
        (["gpt2-xl", "--state-dtype", "int8"], "--state-dtype int8: must be"),
        (["gpt2-xl", "--batch-tokens", "-1"], "--batch-tokens -1: must be 0 or more"),
    ],
)
def test_mistakes_end_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["shares", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
