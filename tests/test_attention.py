"""The variants of attention, and QK-Clip.

    python -m pytest tests/test_attention.py

Claims: MHA and GQA are their equations in float64; GQA with a key for each head is MHA to the bit,
and torch's; the tables of roles divide into heads; what is measured is the largest causal logit of
the batch; after a clip no head exceeds tau, and heads below it are left alone; a race logs what it
clips. Both ways to compute attention are equal. The equations of each model are in
test_tracks.py.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import speedrun
from errors import UserError
from layers import attention, mha, mla, norms
from layers.attention import WAYS, max_logits
from layers.config import GPTConfig, preset
from leaderboard import verify
from model import GPT
from tests.conftest import MICRO
from tracking import store

VARIANTS = ("tiny-classic", "tiny-gqa", "tiny-mla")


def rough(config: GPTConfig, scale: float = 0.3) -> GPT:
    """A model whose parameters are all noise."""
    model, generator = GPT(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model


def batch(B: int = 3, T: int = 12) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(37, (B, T + 1), generator=torch.Generator().manual_seed(1))
    return tokens[:, :-1], tokens[:, 1:]


def small(name: str, n_layer: int = 2) -> GPTConfig:
    return replace(preset(name, vocab_size=37, block_size=20), n_layer=n_layer)


# ---- Variants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("qk_norm", [False, True])
def test_gqa_with_a_key_for_each_head_is_mha_to_the_bit(qk_norm: bool) -> None:
    mha = rough(replace(small("tiny"), qk_norm=qk_norm))
    gqa = GPT(replace(small("tiny-gqa"), qk_norm=qk_norm, n_kv_head=4))
    gqa.load_state_dict(mha.state_dict())
    losses = [model(*batch()) for model in (mha, gqa)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(mha.named_parameters(), gqa.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert torch.equal(p.grad, q.grad), name


def test_gqa_with_a_key_for_each_head_is_the_mha_of_torch() -> None:
    changes = dict(n_kv_head=4, qk_norm=False, positions="learned")
    config = replace(small("tiny-gqa", n_layer=1), **changes)
    ours = rough(config, scale=0.1).double().attentions[0]
    theirs = torch.nn.MultiheadAttention(128, 4, batch_first=True).double()
    names = {"qkv.": "in_proj_", "proj.": "out_proj."}
    weights = {names[k[: k.index(".") + 1]] + k.rpartition(".")[2]: w
               for k, w in ours.state_dict().items()}  # fmt: skip
    theirs.load_state_dict(weights)
    x = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(2)).double()
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    expected, _ = theirs(x, x, x, attn_mask=later, need_weights=False)
    torch.testing.assert_close(ours(x), expected, rtol=1e-12, atol=1e-12)


def turned(x: Tensor, half: bool) -> Tensor:
    """x (T D) after RoPE: the complex numbers of channels j and j + D/2, times e^(-i t w_j)."""
    T, D = x.shape
    if half:
        n = D // 4
        w = [1024 ** (-j / (n - 1)) for j in range(n)] + [0.0] * n
    else:
        w = [1024 ** (-2 * j / D) for j in range(D // 2)]
    z = torch.complex(x[:, : D // 2], x[:, D // 2 :])
    angle = torch.outer(torch.arange(T).double(), torch.tensor(w).double())
    z = z * torch.exp(-1j * angle)
    return torch.cat([z.real, z.imag], dim=1)


def transcription(config: GPTConfig, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Attention of one sequence x (T C), head by head."""
    D, H, H_kv = config.n_embd // config.n_head, config.n_head, config.n_kv_head or config.n_head
    fused = x @ weights["qkv.weight"].T + weights["qkv.bias"]
    q, k, v = (z.view(len(x), -1, D) for z in fused.split([H * D, H_kv * D, H_kv * D], dim=1))
    k, v = (z.repeat_interleave(H // H_kv, dim=1) for z in (k, v))
    scale = 1 / math.sqrt(D)
    if config.qk_norm:
        q, k = (z / z.square().mean(-1, keepdim=True).sqrt() for z in (q, k))
        scale = 0.12 * math.sqrt(128 / D)
    heads = []
    for h in range(H):
        query, key = q[:, h], k[:, h]
        if config.positions == "rope":
            query, key = turned(query, config.rope_half), turned(key, config.rope_half)
        e = torch.exp(scale * query @ key.T).tril()
        heads.append(e / e.sum(1, keepdim=True) @ v[:, h])
    return torch.cat(heads, dim=1) @ weights["proj.weight"].T + weights["proj.bias"]


@pytest.mark.parametrize("n_kv_head", [0, 4, 2, 1])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("positions", ["half", "all", "learned"])
def test_mha_and_gqa_are_their_equations(n_kv_head: int, qk_norm: bool, positions: str) -> None:
    changes = dict(n_kv_head=n_kv_head, qk_norm=qk_norm, rope_half=positions == "half")
    changes |= dict(positions="learned") if positions == "learned" else {}
    config = replace(small("tiny", n_layer=1), **changes)
    attention = rough(config, scale=0.1).double().attentions[0]
    x = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(2)).double()
    expected = torch.stack([transcription(config, attention.state_dict(), row) for row in x])
    # To the rounding of the model's angles, which are float32.
    torch.testing.assert_close(attention(x).detach(), expected, rtol=1e-5, atol=1e-5)


def test_gqa_is_mha_whose_heads_repeat_their_keys_and_values() -> None:
    gqa = rough(small("tiny-gqa"))
    mha = GPT(replace(small("tiny-gqa"), n_kv_head=0))
    weights = gqa.state_dict()
    for name in [name for name in weights if ".qkv." in name]:
        q, k, v = weights[name].split((128, 64, 64))
        spread = [z.unflatten(0, (2, 32)).repeat_interleave(2, 0).flatten(0, 1) for z in (k, v)]
        weights[name] = torch.cat([q, *spread])
    mha.load_state_dict(weights)
    torch.testing.assert_close(gqa(*batch()), mha(*batch()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_initial_weights_are_drawn_and_no_position_sees_a_later_one(name: str) -> None:
    model = GPT(small(name))
    model.init_weights(0)
    zero = {n for n, p in model.named_parameters() if not p.count_nonzero()}
    biases = {n for n, _ in model.named_parameters() if n.endswith("bias")}
    proj = {n for n, _ in model.named_parameters() if n.endswith("proj.weight")}
    assert zero == (biases if name == "tiny-classic" else biases | proj)
    if name == "tiny-classic":
        assert model.positions is not None
        assert model.positions.weight.std().item() == pytest.approx(0.02, rel=0.1)
    model, (inputs, _) = rough(small(name)), batch()
    seen: list[Tensor] = []
    model.norm_final.register_forward_hook(lambda _, __, x: seen.append(x.detach()))
    for changed in (False, True):
        if changed:
            inputs = inputs.clone()
            inputs[:, 5] = (inputs[:, 5] + 1) % 37
        model(inputs, inputs)
    torch.testing.assert_close(seen[0][:, :5], seen[1][:, :5], rtol=1e-6, atol=1e-6)
    assert ((seen[0] - seen[1])[:, 5:].abs().amax(dim=(0, 2)) > 1e-4).all()


def test_the_rows_of_a_matrix_divide_into_its_heads() -> None:
    rows = {
        name: {r.name.removeprefix("blocks.0."): r for r in GPT(small(name)).roles()}
        for name in VARIANTS
    }
    qkv = rows["tiny-gqa"]["attn.qkv.weight"]
    assert (qkv.role, qkv.splits, qkv.head_rows) == ("matrix", (128, 64, 64), 32)
    heads = {
        name.removeprefix("attn."): (row.splits, row.head_rows)
        for name, row in rows["tiny-mla"].items()
        if name.startswith("attn.") and row.role == "matrix"
    }
    assert heads == {
        "q_down.weight": ((64,), 0),
        "q_up.weight": ((4 * 16,), 16),
        "q_rope.weight": ((4 * 16,), 16),
        "kv_down.weight": ((32,), 0),
        "k_up.weight": ((4 * 16,), 16),
        "k_rope.weight": ((16,), 0),
        "v_up.weight": ((4 * 32,), 32),
        "proj.weight": ((128,), 0),
    }
    for table in rows.values():
        for row in table.values():
            if row.role == "matrix":
                assert sum(row.splits) == row.param.size(0)
                assert not row.head_rows or all(n % row.head_rows == 0 for n in row.splits)
    classic = rows["tiny-classic"]
    roles = {name: row.role for name, row in classic.items() if "blocks" not in name}
    assert roles["embed.weight"] == "head" and roles["positions.weight"] == "vector"
    assert "head.bias" not in roles and "embed" not in roles.values()


def test_parameters_and_flops_are_those_worked_out_by_hand() -> None:
    mlp, tables, products = 8 * 128**2, 2 * 1024 * 128, 6 * 4 * 128 * 128
    matrices = {
        "tiny-gqa": 128 * 256 + 128**2 + mlp,
        "tiny-mla": 128 * (64 + 32 + 16) + 64 * (64 + 64) + 32 * (64 + 128) + 128**2 + mlp,
        "tiny-classic": 4 * 128**2 + mlp,
    }
    for name, weights in matrices.items():
        model = GPT(preset(name, vocab_size=1024, block_size=128))
        found = sum(row.param.numel() for row in model.roles() if row.role == "matrix")
        assert found == 4 * weights
        # Of the head alone: an embedding is looked up.
        assert model.flops_per_token(128) == 6 * (4 * weights + tables / 2) + products
    vectors = 4 * (4 * 128 + 3 * 128 + 128 + 512 + 128) + 2 * 128 + 128 * 128
    assert sum(p.numel() for p in model.parameters()) == 4 * weights + tables // 2 + vectors


def test_another_width_keeps_heads_groups_and_the_share_of_the_ranks() -> None:
    gqa, mla = (preset(name, 37, 20, width=64) for name in ("tiny-gqa", "tiny-mla"))
    assert (gqa.n_head, gqa.n_kv_head, gqa.head_size) == (2, 1, 32)
    assert (mla.n_head, mla.q_rank, mla.kv_rank, mla.rope_size) == (2, 32, 16, 16)
    with pytest.raises(UserError, match="width 96: must be .* 32 times the 2 heads .* --width 128"):
        preset("tiny-gqa", 37, 20, width=96)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_kv_head": 3}, "n_kv_head=3: must divide n_head=4"),
        ({"attention": "mla", "qk_norm": False}, "mla needs all three"),
        ({"attention": "mla", "q_rank": 8, "kv_rank": 8, "rope_size": 32}, "below 32"),
        ({"attention": "mla", "q_rank": 8, "kv_rank": 8, "rope_size": 8}, "no qk_norm"),
    ],
)
def test_sizes_that_make_no_attention_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPT(replace(small("tiny"), **changes))


def test_a_new_attention_is_a_file_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="attention 'norms': must be one of mha, mla; a new one is"):
        GPT(replace(small("tiny"), attention="norms"))

    class SelfAttention(mha.SelfAttention):
        """Multi-head attention under another name."""

    monkeypatch.setattr(norms, "SelfAttention", SelfAttention, raising=False)
    model = GPT(replace(small("tiny"), attention="norms"))
    assert {type(attention) for attention in model.attentions} == {SelfAttention}


# ---- Two ways to compute it --------------------------------------------------------------------


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("name", [*VARIANTS, "tiny"])
def test_plain_and_fused_attention_are_equal(name: str, measure: bool) -> None:
    model, (inputs, targets) = rough(small(name)).double(), batch()
    found = []
    for way in WAYS:
        model.use_attention(way)
        model.zero_grad()
        with model.measuring(measure):
            loss = model(inputs, targets)
        loss.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append([loss.detach(), model.pop_max_logits(), *grads])
    assert found[0][1].isfinite().all() == measure
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_attention_takes_the_way_that_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rough(small("tiny"))
    monkeypatch.delattr(attention, "PlainAttention")
    model(*batch())  # fused
    model.use_attention("plain")
    with pytest.raises(NameError):
        model(*batch())


# ---- QK-Clip -----------------------------------------------------------------------------------


def naive_logits(model: GPT, inputs: Tensor) -> Tensor:
    """The largest causal logit of each head of a model of one layer, entry by entry."""
    attention = model.attentions[0]
    seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(inputs, inputs)
    handle.remove()
    q, k, _ = attention.project(seen[0])
    largest = torch.full((attention.n_head,), -math.inf)
    shared = q.size(2) // k.size(2)
    for b in range(q.size(0)):
        for t in range(q.size(1)):
            for h in range(q.size(2)):
                logits = attention.scale * k[b, : t + 1, h // shared] @ q[b, t, h]
                largest[h] = torch.maximum(largest[h], logits.detach().max())
    return largest


def measured(model: GPT, inputs: Tensor) -> Tensor:
    with model.measuring(), torch.no_grad():
        model(inputs, inputs)
    return model.pop_max_logits()[0]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_measured_is_the_largest_causal_logit(name: str) -> None:
    model, (inputs, _) = rough(small(name, n_layer=1)), batch()
    expected = naive_logits(model, inputs)
    torch.testing.assert_close(measured(model, inputs), expected, rtol=1e-5, atol=1e-5)
    with model.measuring():  # in parts, as microbatches are
        for part in inputs.split(1):
            model(part, part)
    model(inputs.flip(1), inputs)  # not measured
    torch.testing.assert_close(model.pop_max_logits()[0], expected, rtol=1e-5, atol=1e-5)
    assert (model.pop_max_logits() == -math.inf).all()


@pytest.mark.parametrize("chunk", [1, 5, 12, 128])
def test_measuring_by_chunks_sees_every_causal_pair_and_no_other(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 12, 8, generator=generator) for heads in (4, 2))
    k[:, :, -1] = q[:, ::2, 0] + q[:, 1::2, 0]  # the last key suits the first queries best
    logits = 0.5 * q @ k.repeat_interleave(2, 1).mT
    later = torch.ones(12, 12, dtype=torch.bool).triu(1)
    expected = logits.masked_fill(later, -math.inf).amax((0, 2, 3))
    assert (expected < logits.amax((0, 2, 3))).any()
    torch.testing.assert_close(max_logits(q, k, 0.5, chunk), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_after_a_clip_no_logit_exceeds_tau(name: str) -> None:
    model, (inputs, _) = rough(small(name, n_layer=1)), batch()
    before = measured(model, inputs)
    tau = before.sort().values[1:3].mean().item()  # two heads exceed it, two do not
    weights = {n: p.clone() for n, p in model.named_parameters()}
    model.clip_qk(before[None], tau)
    after = measured(model, inputs)
    assert (after <= tau * (1 + 1e-3)).all()
    over = before > tau
    assert over.sum() == 2
    torch.testing.assert_close(after[over], torch.full((2,), tau), rtol=1e-4, atol=0)
    if name == "tiny-gqa":  # heads that share keys are scaled by what the larger needs
        gamma = (tau / before.view(2, 2).amax(1)).clamp(max=1).repeat_interleave(2)
        torch.testing.assert_close(after, before * gamma, rtol=1e-4, atol=0)
    else:
        torch.testing.assert_close(after[~over], before[~over], rtol=0, atol=0)
    clipped = {n for n, p in model.named_parameters() if not torch.equal(p, weights[n])}
    parts = ("q_up.weight", "k_up.weight", "q_rope.weight")
    attention = model.attentions[0]
    if isinstance(attention, mla.SelfAttention):
        assert clipped == {f"blocks.0.attn.{part}" for part in parts}
    else:
        assert clipped == {"blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias"}
        values = attention.qkv.splits[-1]  # type: ignore[attr-defined]
        for n in clipped:
            assert torch.equal(model.get_parameter(n)[-values:], weights[n][-values:])
    model.clip_qk(after[None] - 1e-3 * tau, tau)
    assert torch.equal(measured(model, inputs), after)  # nothing left to clip


@pytest.mark.parametrize("name", VARIANTS)
def test_scaled_weights_scale_every_logit_of_a_head(name: str) -> None:
    """Not the largest alone: for inputs that were not measured, too."""
    model = rough(small(name, n_layer=1))
    x = torch.randn(2, 9, 128, generator=torch.Generator().manual_seed(2))
    attention = model.attentions[0]

    def logits() -> Tensor:
        q, k, _ = attention.project(x)
        k = k.repeat_interleave(q.size(2) // k.size(2), 2)
        return torch.einsum("bthd,bshd->hbts", q, k).detach()

    gamma = torch.tensor([0.5, 0.5, 1.0, 0.1] if name != "tiny-gqa" else [0.5, 0.5, 0.1, 0.1])
    before = logits()
    with torch.no_grad():
        attention.scale_logits(gamma)
    torch.testing.assert_close(logits(), gamma[:, None, None, None] * before, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_measuring_is_compiled_and_changes_no_loss_or_gradient() -> None:
    model, (inputs, targets) = rough(small("tiny-mla", n_layer=1)), batch()
    call = torch.compile(model, dynamic=False, backend="aot_eager")
    plain = call(inputs, targets)
    plain.backward()
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with model.measuring():
        loss = call(inputs, targets)
    loss.backward()
    assert torch.equal(loss, plain)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    compiled = model.pop_max_logits()[0]
    torch.testing.assert_close(compiled, measured(model, inputs), rtol=1e-6, atol=1e-6)


# ---- In a race ---------------------------------------------------------------------------------


@pytest.fixture
def no_norm_track() -> speedrun.Track:
    return replace(speedrun.TRACKS["tiny-mla"], name="custom", **MICRO)


def run(
    track: speedrun.Track, options: speedrun.Options, entrant: str, steps: int = 10
) -> speedrun.Outcome:
    return speedrun.Trainer(track, options).run(speedrun.enter(entrant, "tiny-mla", steps), seed=0)


def losses(out: speedrun.Outcome) -> list[float]:
    return [point.val_loss for point in out.points]


@pytest.mark.slow
def test_muonclip_is_muon_until_a_logit_exceeds_tau(
    no_norm_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    # All that muon has in tuned.toml, which muonclip has not.
    rest = "momentum=0.95,embed_lr=0.3,head_lr=0.01,vector_lr=0.01,warmup=0.0,cooldown=0.7"
    fast = f"lr=0.2,weight_decay=0.1,{rest}"
    free = run(
        no_norm_track,
        replace(micro_options, log_logits=True),
        f"muon:{fast},adjust_lr_fn=match_rms_adamw",
    )
    loose = run(no_norm_track, micro_options, f"muonclip:{fast},tau=1e9")
    assert losses(free) == losses(loose)
    assert [step for step, _ in free.logits] == [point.step for point in free.points]
    assert [step for step, _ in loose.logits] == list(range(1, 11))
    grown = dict(loose.logits)
    for step, largest in free.logits:
        torch.testing.assert_close(largest, grown[step], rtol=1e-5, atol=1e-6)
    tau = 0.5 * grown[10].max().item()
    held = run(no_norm_track, micro_options, f"muonclip:{fast},tau={tau}")
    assert losses(held) != losses(free)
    # A step may exceed tau by what its update adds, and no more.
    assert max(largest.max().item() for _, largest in held.logits) < 1.5 * tau
    assert held.logits[-1][1].max() < 0.75 * grown[10].max()


def test_a_clip_follows_the_update(
    no_norm_track: speedrun.Track,
    micro_options: speedrun.Options,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, order = speedrun.Trainer(no_norm_track, micro_options), list[str]()
    step, clip = trainer.engine.step, trainer.gpt.clip_qk

    def stepped() -> None:
        order.append("step")
        step()

    def clipped(largest: Tensor, tau: float) -> None:
        order.append("clip")
        clip(largest, tau)

    monkeypatch.setattr(trainer.engine, "step", stepped)
    monkeypatch.setattr(trainer.gpt, "clip_qk", clipped)
    trainer.run(speedrun.enter("muonclip:tau=0.1", "tiny-mla", 3), seed=0)
    # Two pairs are of the warm-up, the second of which measures memory.
    assert order == ["step", "clip"] * (2 + 3)


def test_logging_logits_is_off_the_clock_and_changes_no_loss(
    no_norm_track: speedrun.Track, micro_options: speedrun.Options
) -> None:
    plain = run(no_norm_track, micro_options, "muon")
    seconds = [0.0]
    trainer = speedrun.Trainer(
        no_norm_track, replace(micro_options, log_logits=True), lambda: seconds[0]
    )
    model = trainer.program.model

    def slow(inputs: Tensor, targets: Tensor) -> Tensor:
        seconds[0] += 1 if torch.is_grad_enabled() else 1000
        return model(inputs, targets)

    trainer.program.model = slow
    out = trainer.run(speedrun.enter("muon", "tiny-mla", 10), seed=0)
    assert out.clock.seconds == 10
    assert losses(out) == losses(plain) and plain.logits == []


@pytest.mark.slow
def test_a_race_writes_its_logits_and_the_verifier_reads_them(
    micro_flags: list[str], tmp_path: Path
) -> None:
    race = ["muonclip:tau=0.05", "muon", "--track=tiny-mla", "--seeds=1", "--steps=6"]
    assert speedrun.main([*race, "--log-logits", *micro_flags]) == 0
    root = tmp_path / "results"
    clip, plain = store.read_runs(root)
    rows = store.read_logits(root, clip.run)
    assert [(r.step, r.layer, r.head) for r in rows] == [
        (step, layer, 0) for step in range(1, 7) for layer in range(4)
    ]
    steps = [point.step for point in store.read_curve(root, plain.run)]
    assert sorted({r.step for r in store.read_logits(root, plain.run)}) == steps
    assert verify.problems(root) == []
    path = store.logits_path(root, clip.run)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for damaged, complaint in (
        ("".join(lines[:-4]), "clips logits in 6 steps, but has logits of 5"),
        ("".join(lines[:-1]), "logits at step 6 are not one for each head"),
        ("".join([lines[0], *lines[5:], *lines[1:5]]), "not of steps 1 to 6 in order"),
        (whole.replace("\n6,", "\n7,"), "not of steps 1 to 6 in order"),
        (whole + "1,x,0,1.0\n", "layer 'x' is not int"),
    ):
        path.write_text(damaged)
        assert any(complaint in problem for problem in verify.problems(root)), complaint
    path.write_text(whole)
    path.rename(path.with_stem("stranger"))
    found = "\n".join(verify.problems(root))
    assert "stranger.csv: no row in runs.csv" in found
    assert "clips logits in 6 steps, but has logits of 0" in found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["muonclip", "--track=tiny"], "muonclip: QK-Clip .* bounded already.*--track tiny-mla"),
        (["muonclip:tau=0", "--track=tiny-mla"], "muonclip:tau=0: tau=0.0: must be above 0"),
    ],
)
def test_a_clip_that_makes_no_sense_is_refused(
    arguments: list[str],
    message: str,
    micro_flags: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert speedrun.main([*arguments, *micro_flags[-4:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error), error
