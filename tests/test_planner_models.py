"""Models of the planner: presets against published counts, config.json, own files and tracks."""

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import speedrun
from errors import UserError
from planner import models
from planner.__main__ import main
from planner.models import Model, Weight, huggingface, own_models, preset_file

ROOT = Path(__file__).parents[1]

# The numbers of the public config.json of each checkpoint, without those that set no shape.
_MOE_7168 = dict(
    hidden_size=7168, num_hidden_layers=61, intermediate_size=18432, moe_intermediate_size=2048,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, q_lora_rank=1536, kv_lora_rank=512,
    n_shared_experts=1, num_experts_per_tok=8, moe_layer_freq=1, tie_word_embeddings=False,
)  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2-124m": dict(
        model_type="gpt2", n_embd=768, n_layer=12, n_head=12, n_positions=1024, vocab_size=50257
    ),
    "gpt2-350m": dict(
        model_type="gpt2", n_embd=1024, n_layer=24, n_head=16, n_positions=1024, vocab_size=50257
    ),
    "gpt2-xl": dict(
        model_type="gpt2", n_embd=1600, n_layer=48, n_head=25, n_positions=1024, vocab_size=50257
    ),
    "qwen2.5-3b": dict(
        model_type="qwen2", hidden_size=2048, intermediate_size=11008, num_hidden_layers=36,
        num_attention_heads=16, num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
        max_position_embeddings=32768, use_sliding_window=False, sliding_window=32768,
    ),
    "llama-405b": dict(
        model_type="llama", hidden_size=16384, intermediate_size=53248, num_hidden_layers=126,
        num_attention_heads=128, num_key_value_heads=8, vocab_size=128256, attention_bias=False,
        mlp_bias=False, tie_word_embeddings=False, max_position_embeddings=131072,
    ),
    "deepseek-v3": dict(
        model_type="deepseek_v3", num_attention_heads=128, vocab_size=129280, n_routed_experts=256,
        first_k_dense_replace=3, num_nextn_predict_layers=1, **_MOE_7168,
    ),
    "kimi-k2": dict(
        model_type="kimi_k2", num_attention_heads=64, vocab_size=163840, n_routed_experts=384,
        first_k_dense_replace=1, num_nextn_predict_layers=0, **_MOE_7168,
    ),
    "glm-5": dict(
        model_type="glm_moe_dsa", hidden_size=6144, num_hidden_layers=78, num_attention_heads=64,
        intermediate_size=12288, moe_intermediate_size=2048, qk_nope_head_dim=192,
        qk_rope_head_dim=64, v_head_dim=256, q_lora_rank=2048, kv_lora_rank=512, index_n_heads=32,
        index_head_dim=128, n_routed_experts=256, n_shared_experts=1, num_experts_per_tok=8,
        first_k_dense_replace=3, vocab_size=154880, num_nextn_predict_layers=1,
    ),
}  # fmt: skip

# Parameters counted in the tensors of the released checkpoints, and those of them that are routing
# biases: a layer's experts each have one, which no gradient moves.
IN_CHECKPOINT = {
    "gpt2-124m": (124_439_808, 0),
    "gpt2-350m": (354_823_168, 0),
    "gpt2-xl": (1_557_611_200, 0),
    "qwen2.5-3b": (3_085_938_688, 0),
    "llama-405b": (405_853_388_800, 0),
    "deepseek-v3": (671_026_419_200, 58 * 256),
    "kimi-k2": (1_026_408_232_448, 60 * 384),
}


def shapes(weights: Sequence[Weight]) -> Counter[tuple[str, int, int, int, int, float]]:
    return Counter((w.role, w.rows, w.cols, w.count, w.parts, w.token_share) for w in weights)


def written(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


# ---- Presets -----------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_plan() -> None:
    assert {*CONFIGS, "nanochat-d20", "nanochat-d32", "deepseek-v4"} == set(models.presets())


def test_sums_are_within_a_percent_of_the_published_or_an_assumption_names_the_number() -> None:
    named = {("kimi-k2", "1.04T"), ("glm-5", "40B active"), ("deepseek-v4", "1.6T")}
    off = set()
    for model in models.presets().values():
        for published, summed in (
            (model.published_params, model.params),
            (model.published_active_params, model.active_params),
        ):
            if published and abs(summed / published - 1) > 0.01:
                [number] = [number for name, number in named if name == model.name]
                assert any(each.startswith(number) for each in model.assumed)
                off.add((model.name, number))
        assert model.published_params or any("No total is published" in a for a in model.assumed)
    assert off == named, "the list of exceptions names those that are off, and no others"


@pytest.mark.parametrize("name", IN_CHECKPOINT)
def test_a_preset_has_as_many_parameters_as_its_checkpoint(name: str) -> None:
    total, routing_biases = IN_CHECKPOINT[name]
    assert models.find(name).params == total - routing_biases


def test_every_number_has_a_source() -> None:
    for model in models.presets().values():
        assert model.source and model.assumed
        assert all(weight.source for weight in model.weights), model.name


def test_deepseek_v4_has_the_shapes_of_its_code() -> None:
    model = models.find("deepseek-v4")
    layers = Counter[str]()
    for weight in model.weights:
        layers[weight.name.partition(".")[0]] = max(
            weight.count, layers[weight.name.partition(".")[0]]
        )
    assert (layers["csa"], layers["hca"], layers["indexer"]) == (30, 31, 30)
    assert layers["experts"] == 61 * 384
    by_name = {weight.name: weight for weight in model.weights}
    # Of 128 heads of 512, in 16 groups: DeepseekV4GroupedLinear, and the map after it.
    assert (by_name["attention.o_down"].rows, by_name["attention.o_down"].cols) == (16384, 4096)
    assert (by_name["attention.o_up"].rows, by_name["attention.o_up"].cols) == (7168, 16384)
    # The config's compress_ratios: two of 128, then 4 and 128 in turn, and the last is 4.
    ratios = [128, 128] + [4 if i % 2 == 0 else 128 for i in range(59)]
    assert (ratios.count(4), ratios.count(128)) == (30, 31)


def deepseek_v4_params(
    d: int,
    heads: int,
    q_rank: int,
    groups: int,
    experts: int,
    width: int,
    csa: int,
    hca: int,
    n: int,
) -> tuple[int, int]:
    """Parameters in matrices, by DeepseekV4ForCausalLM: without and with the layer of the MTP."""
    D, low, streams = 512, 1024, 4
    attention = q_rank * d + heads * D * q_rank + D * d  # q_a_proj, q_b_proj, kv_proj
    attention += groups * low * (heads * D // groups) + d * groups * low  # o_a_proj, o_b_proj
    indexer = 64 * 128 * q_rank + 64 * d + 2 * 2 * 128 * d  # q_b_proj, weights_proj, its compressor
    moe = (experts + 1) * 3 * d * width + experts * d
    maps = 2 * (2 + streams) * streams * streams * d
    layer = attention + moe + maps
    compressors = csa * (2 * 2 * D * d + indexer) + hca * 2 * D * d
    main_model = n * layer + compressors + 2 * 129280 * d
    return main_model, main_model + layer + 2 * d * d  # e_proj and h_proj


def test_deepseek_v4_counts_as_its_smaller_sister_does() -> None:
    pro, with_mtp = deepseek_v4_params(7168, 128, 1536, 16, 384, 3072, csa=30, hca=31, n=61)
    model = models.find("deepseek-v4")
    vectors = sum(w.params for w in model.of_roles(("vector",)))
    assert model.params - vectors == pro
    assert (with_mtp - pro) / 1e9 == pytest.approx(25.8, abs=0.05)
    flash, flash_with_mtp = deepseek_v4_params(4096, 64, 1024, 8, 256, 2048, csa=21, hca=20, n=43)
    assert abs(flash / 284e9 - 1) < 0.002 < 0.02 < abs(flash_with_mtp / 284e9 - 1)


def test_the_keys_that_a_sparse_query_sees_are_counted_one_by_one() -> None:
    model, seq_len = models.find("deepseek-v4"), 65536
    assert model.seq_len == seq_len
    csa = sum(min(t, 128) + min(t // 4, 1024) for t in range(seq_len)) / seq_len
    hca = sum(min(t, 128) + t // 128 for t in range(seq_len)) / seq_len
    compressed = sum(t // 4 for t in range(seq_len)) / seq_len
    indexer = 30 * 64 * 128 * compressed / (61 * 128 * (512 + 512))
    assert model.attended == pytest.approx((30 * csa + 31 * hca) / 61 + indexer, rel=0.005)
    windows = [512] * 15 + [2048] * 5  # nanochat at depth 20: three short ones, then a long one
    seen = [sum(min(t + 1, w) for t in range(2048)) / 2048 for w in windows]
    nanochat = models.find("nanochat-d20")
    assert nanochat.attended == pytest.approx(sum(seen) / 20, rel=0.005)


def test_nanochat_follows_its_depth_rule() -> None:
    for depth in (20, 32):
        model, d = models.find(f"nanochat-d{depth}"), 64 * depth
        gates = depth // 2 * (d // 128) * 12
        assert model.hidden_params == depth * 12 * d**2 + gates
        tables = sum(w.params for w in model.of_roles(("embed", "head")))
        assert tables == 32768 * d * (2 + depth // 2)


# ---- config.json -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_the_weights_of_its_preset(name: str, tmp_path: Path) -> None:
    read = huggingface.read(written(tmp_path / "config.json", CONFIGS[name]))
    preset = models.find(name)
    assert shapes(read.weights) == shapes(preset.weights)
    for field in ("n_layer", "n_embd", "n_head", "qk_size", "v_size"):
        assert getattr(read, field) == getattr(preset, field)
    assert read.assumed


def test_a_folder_and_a_path_name_a_config(tmp_path: Path) -> None:
    folder = tmp_path / "my-llama"
    folder.mkdir()
    path = written(folder / "config.json", CONFIGS["llama-405b"])
    assert models.find(str(folder)) == models.find(str(path))
    assert models.find(str(folder)).name == "my-llama"


def test_variants_of_the_families_are_counted(tmp_path: Path) -> None:
    def params(**changes: Any) -> int:
        base = dict(
            model_type="llama", hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=100,
        )  # fmt: skip
        return huggingface.read(written(tmp_path / "c.json", base | changes)).params

    attention = 64 * 64 + 2 * 32 * 64 + 64 * 64
    plain = 2 * (attention + 3 * 128 * 64) + 2 * 100 * 64 + 5 * 64
    assert params() == params(model_type="mistral") == plain
    assert params(tie_word_embeddings=True) == plain - 100 * 64
    assert params(attention_bias=True) == plain + 2 * (64 + 32 + 32 + 64)
    assert params(mlp_bias=True) == plain + 2 * (128 + 128 + 64)
    assert params(model_type="qwen2") == plain + 2 * (64 + 32 + 32)
    assert params(model_type="qwen3") == plain + 2 * (16 + 16)
    wide = 2 * (2 * 64 * 128 + 2 * 64 * 64 + 3 * 128 * 64) + 2 * 100 * 64 + 5 * 64
    assert params(head_dim=32) == wide
    moe = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16)
    experts = 8 * 64 + 8 * 3 * 16 * 64
    qwen3 = plain + 2 * (16 + 16)
    assert params(model_type="qwen3_moe", **moe) == qwen3 + 2 * (experts - 3 * 128 * 64)
    one_dense = params(model_type="qwen3_moe", mlp_only_layers=[0], **moe)
    assert one_dense == qwen3 + experts - 3 * 128 * 64


def test_a_sliding_window_bounds_what_a_query_sees(tmp_path: Path) -> None:
    config = CONFIGS["llama-405b"] | dict(model_type="mistral", sliding_window=1024)
    model = huggingface.read(written(tmp_path / "config.json", config))
    seen = sum(min(t + 1, 1024) for t in range(4096)) / 4096
    assert model.attended == pytest.approx(seen, rel=1e-3)


def without(key: str, name: str) -> dict[str, Any]:
    return {each: value for each, value in CONFIGS[name].items() if each != key}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (without("model_type", "llama-405b"), "model_type is missing"),
        (CONFIGS["llama-405b"] | dict(model_type="bert"), "'bert': must be one of gpt2, llama"),
        (without("intermediate_size", "llama-405b"), "intermediate_size is missing"),
        (without("kv_lora_rank", "deepseek-v3"), "kv_lora_rank is missing"),
        (without("index_n_heads", "glm-5"), "index_n_heads is missing"),
        (CONFIGS["llama-405b"] | dict(hidden_size=-1), "hidden_size=-1: must be a whole number"),
        (CONFIGS["llama-405b"] | dict(hidden_size="1"), "hidden_size='1': must be a whole number"),
        (CONFIGS["glm-5"] | dict(num_hidden_layers=10**14), "must be at most 10000"),
        (CONFIGS["llama-405b"] | dict(num_attention_heads=3), "must divide hidden_size=16384"),
        (CONFIGS["llama-405b"] | dict(mlp_bias=3), "mlp_bias=3: must be true or false"),
        (CONFIGS["gpt2-xl"] | dict(n_head=7), "n_head=7: must divide n_embd=1600"),
        (CONFIGS["kimi-k2"] | dict(num_experts_per_tok=999), "must be at most n_routed_experts"),
        (CONFIGS["glm-5"] | dict(mlp_layer_types=["dense"]), "a word for each of 78 layers"),
        (CONFIGS["glm-5"] | dict(mlp_layer_types=3), "a word for each of 78 layers"),
        ([1], "model_type is missing"),
    ],
)
def test_a_config_that_lacks_something_is_refused_by_its_key(
    values: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        huggingface.read(written(tmp_path / "config.json", values))


def test_files_that_are_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff{")
    (tmp_path / "b.json").write_text("[" * 100_000)
    for name in ("a.json", "b.json"):
        with pytest.raises(UserError, match="is no JSON file"):
            models.find(str(tmp_path / name))
    with pytest.raises(UserError, match="No such file or directory"):
        models.find(str(tmp_path))  # a folder without config.json


# ---- Your own file -----------------------------------------------------------------------------

OWN = """
[mine]
title = "Mine"
n_layer = 2
n_embd = 8
seq_len = 16
n_head = 2
qk_size = 4
v_size = 4
attended = 8
batch_tokens = 64
train_tokens = 0
weights = [
    { name = "a", role = "mlp", rows = 8, cols = 4, count = 2, parts = 2, tokens = "1/4" },
    { name = "b", role = "vector", rows = 8 },
]
"""


def own(tmp_path: Path, text: str) -> Model:
    path = tmp_path / "own.toml"
    path.write_text(text)
    return models.find(str(path))


def test_your_own_file_has_the_form_of_the_presets(tmp_path: Path) -> None:
    model = own(tmp_path, OWN)
    assert model.weights == (Weight("a", "mlp", 8, 4, 2, 2, 0.25), Weight("b", "vector", 8))
    assert (model.params, model.active_params, model.hidden_params) == (72, 24, 64)


def test_the_example_in_the_help_is_a_model(tmp_path: Path) -> None:
    lines = (preset_file.__doc__ or "").split("\n")
    first = lines.index("    [my-model]")
    end = lines.index("    ]", first)
    model = own(tmp_path, "\n".join(lines[first : end + 1]))
    assert model.params == 50257 * 768 + 12 * 2304 * 768


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('role = "mlp"', 'role = "expert"', "role='expert': must be one of attention, mlp"),
        ('role = "mlp"', "role = 3", "role=3: must be one of"),
        ("rows = 8, cols", "rows = -8, cols", "rows=-8: must be a whole number, 1 or more"),
        ("rows = 8, cols", "rows = 8.0, cols", "rows=8.0: must be a whole number"),
        ("rows = 8, cols", "rows = true, cols", "rows=True: must be a whole number"),
        ("rows = 8, cols = 4", "cols = 4", "weight a: rows is missing"),
        ("count = 2", "count = 0", "count=0: must be a whole number"),
        ("count = 2", "count = 10000000000000000000", "at most 10\\^15"),
        ("parts = 2", "parts = 3", "parts=3: must divide rows=8"),
        ('tokens = "1/4"', 'tokens = "5/4"', "tokens='5/4': must be a fraction"),
        ('tokens = "1/4"', 'tokens = "1/0"', "must be a fraction"),
        ('tokens = "1/4"', "tokens = nan", "must be a fraction"),
        ('tokens = "1/4"', "tokens = 0", "must be a fraction"),
        ('tokens = "1/4"', "tokens = [1]", "must be a fraction"),
        ('tokens = "1/4"', 'token = "1/4"', "weight a: token: must be one of .*mean tokens"),
        ('name = "b"', 'name = "a"', "weight a: is there twice"),
        ('name = "b", ', "", "weight 2: name is missing"),
        ("{ name", "3, { name", "weight 1: must be a table in braces"),
        ("n_layer = 2", "", "n_layer is missing"),
        ("n_layer = 2", "n_layer = 2.5", "n_layer=2.5: must be a whole number"),
        ("n_layer = 2", "n_layers = 2", "n_layers: must be one of .*did you mean n_layer"),
        ("attended = 8", "attended = 17", "attended=17: must be at most seq_len=16"),
        ("attended = 8", "attended = 0", "attended=0: must be a number, above 0"),
        ("batch_tokens = 64", "batch_tokens = 8", "at least one sequence of seq_len=16"),
        ("train_tokens = 0", "train_tokens = inf", "train_tokens=inf: must be a number"),
        ('title = "Mine"', "title = 3", "title=3: must be text"),
        ('title = "Mine"', 'title = "Mine"\nassumed = "x"', "must be a list of sentences"),
        ("[mine]", "a = 3\n[mine]", "a must stand in a table"),
        ("[mine]", "[yours]\n[mine]", "\\[yours\\] title is missing"),
        ("[mine]", "[mine", "is no TOML file"),
    ],
)
def test_a_mistake_in_your_own_file_is_named(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    assert before in OWN
    with pytest.raises(UserError, match=message):
        own(tmp_path, OWN.replace(before, after, 1))


def test_your_own_file_has_one_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 models; keep one"):
        own(tmp_path, OWN + OWN.replace("[mine]", "[yours]"))
    with pytest.raises(UserError, match="has no model"):
        own(tmp_path, "")
    with pytest.raises(UserError, match="weights: must be a list"):
        own(tmp_path, OWN[: OWN.index("weights")] + "weights = []")
    (tmp_path / "own.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="is no TOML file"):
        models.find(str(tmp_path / "own.toml"))


# ---- Tracks of this project --------------------------------------------------------------------


@pytest.mark.parametrize("name", speedrun.TRACKS)
def test_the_model_of_a_track_has_the_parameters_of_the_real_one(name: str) -> None:
    track = speedrun.TRACKS[name]
    gpt = own_models.on_meta(track)
    model = own_models.of_gpt(track, gpt)
    real, listed = Counter[str](), Counter[str]()
    for row in gpt.roles():
        real[row.role] += row.param.numel()
    for weight in model.weights:
        listed["matrix" if weight.hidden else weight.role] += weight.params
    assert listed == real
    assert sum(weight.count for weight in model.weights) == len(gpt.roles())
    assert model.flops_per_token == pytest.approx(gpt.flops_per_token(track.seq_len), rel=1e-12)


def test_the_heads_of_a_track_are_the_parts_of_its_weights() -> None:
    by_name = {weight.name: weight for weight in own_models.from_track("tiny-gqa").weights}
    assert by_name["attn.qkv.weight"].parts == 4 + 2 + 2
    assert by_name["attn.proj.weight"].parts == 1
    latent = {weight.name: weight for weight in own_models.from_track("tiny-mla").weights}
    assert latent["attn.k_up.weight"].parts == 4 and latent["attn.k_rope.weight"].parts == 1


# ---- The command line --------------------------------------------------------------------------


def test_a_name_that_is_no_model_is_answered_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="'depseek-v4': must be one of .*did you mean deepseek-v4"):
        models.find("depseek-v4")
    with pytest.raises(UserError, match="run with deepseek-v4"):
        models.find("???")
    with pytest.raises(UserError, match="is no path"):
        models.find("")
    with pytest.raises(UserError, match="must be one of tiny, .*did you mean tiny-mla"):
        own_models.from_track("tiny_mla")


def test_flags_change_the_training_of_a_model() -> None:
    llama = models.find("llama-405b")
    longer = models.Training(seq_len=16384, train_tokens=1e12).applied(llama)
    assert (longer.seq_len, longer.attended, longer.train_tokens) == (16384, 8192, 1e12)
    assert models.Training().applied(llama) == llama
    v4 = models.find("deepseek-v4")
    with pytest.raises(UserError, match="--attended must be given too"):
        models.Training(seq_len=4096).applied(v4)
    assert models.Training(seq_len=4096, attended=2048).applied(v4).attended == 2048
    with pytest.raises(UserError, match="--attended 9000: must be at most the 8192 tokens"):
        models.Training(attended=9000).applied(llama)
    for wrong in (dict(seq_len=-1), dict(attended=float("nan")), dict(train_tokens=float("inf"))):
        with pytest.raises(UserError, match="must be 0 or more and finite"):
            models.Training(**wrong)  # type: ignore[arg-type]


def test_the_command_shows_weights_sums_sources_and_assumptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", "kimi-k2", f"--csv={tmp_path / 'k2.csv'}"]) == 0
    shown = capsys.readouterr().out
    assert "1.040T  1.026T      -1.31%" in shown
    assert "- experts.gate: n_routed_experts, moe_intermediate_size, hidden_size" in shown
    assert "- 1.04T is not reached" in shown
    with (tmp_path / "k2.csv").open(newline="") as file:
        lines = [*csv.DictReader(file)]
    assert sum(int(line["parameters"]) for line in lines) == models.find("kimi-k2").params
    assert main(["model", "--from-model", "tiny"]) == 0
    assert "the model of track tiny" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "MODEL is missing"),
        (["gpt2-xl", "--from-model", "tiny"], "MODEL and --from-model are both given"),
        (["gpt2"], "did you mean gpt2-xl|did you mean gpt2-"),
        (["gpt2-xl", "--seq-len", "-5"], "--seq-len -5: must be 0 or more"),
        (["gpt2-xl", "--csv", "/nowhere/x.csv"], "--csv /nowhere/x.csv: No such file"),
    ],
)
def test_mistakes_on_the_command_line_end_with_one_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["model", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert any(each in error for each in message.split("|"))


@pytest.mark.slow
def test_models_are_read_without_torch() -> None:
    imports = "import sys, planner.models.describe, planner.models.shares"
    program = f"{imports}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)
