"""The GPT-2 tracks: parameters counted without memory, and the published equations in float64.

python -m pytest tests/test_tracks.py
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import speedrun
from layers.config import GPTConfig, preset
from model import GPT

GPT2_VOCABULARY = 50257
# name: layers, channels, rows of the tables
SIZES = {
    "gpt2": (12, 768, 50304),
    "gpt2-2024": (12, 768, 50257),
    "medium": (24, 1024, 50304),
    "xl": (52, 1536, 50257),
}


@pytest.mark.parametrize("name", SIZES)
def test_counts_on_the_meta_device_are_those_worked_out_by_hand(name: str) -> None:
    with torch.device("meta"):
        gpt = GPT(speedrun.TRACKS[name].config(GPT2_VOCABULARY))
    layers, C, rows = SIZES[name]
    matrices = layers * 12 * C * C
    if name in ("gpt2", "medium"):  # untied, with biases and gains
        vectors = layers * (2 * C + 3 * C + C + 4 * C + C) + 2 * C + rows
        total = 2 * rows * C + matrices + vectors
    else:
        total = rows * C + matrices
    found = {role: 0 for role in ("embed", "head", "matrix", "vector")}
    for row in gpt.roles():
        found[row.role] += row.param.numel()
    assert found["matrix"] == matrices
    assert sum(found.values()) == sum(p.numel() for p in gpt.parameters()) == total
    if name == "gpt2":
        assert (total, matrices) == (162_354_816, 84_934_656)  # published


def test_the_frozen_values_of_the_published_tracks() -> None:
    gpt2, xl = speedrun.TRACKS["gpt2"], speedrun.TRACKS["xl"]
    assert (gpt2.batch_tokens, gpt2.seq_len, gpt2.val_tokens) == (524_288, 1024, 10_485_760)
    assert (gpt2.target, speedrun.TRACKS["gpt2-2024"].target) == (3.28, 3.28)
    assert (speedrun.TRACKS["medium"].target, xl.target) == (2.92, 2.7737)
    assert xl.batch_tokens == 491_520
    due = [step for step in range(1, 3251) if gpt2.validates(step, 3250)]
    assert due[:2] == [125, 250] and due[-3:] == [3200, 3225, 3250]


def test_new_knobs_have_not_renamed_the_results_of_old_tracks() -> None:
    hashes = {
        "tiny": "f5f68dac77bcfe3e",
        "gpt2": "93c83a0d55caa07c",
        "gpt2-2024": "ae1481b1274ac86f",
        "medium": "4d71d716b3b23e88",
        "xl": "478cabff8fbda389",
    }
    assert {name: speedrun.TRACKS[name].hash() for name in hashes} == hashes
    every = [track.hash() for track in speedrun.TRACKS.values()]
    assert len(set(every)) == len(every)
    assert all(track.name == name for name, track in speedrun.TRACKS.items())


def test_the_variants_of_tiny_differ_from_it_in_the_model_and_its_target_alone() -> None:
    tiny = speedrun.TRACKS["tiny"]
    for name in ("tiny-gqa", "tiny-mla", "tiny-classic"):
        variant = replace(speedrun.TRACKS[name], name="tiny", model="tiny", target=tiny.target)
        assert variant == tiny


def toy(name: str, chunk: int = 0) -> tuple[GPT, Tensor, Tensor]:
    """The track's model at toy size in float64, no weight left at zero, and a batch."""
    config: GPTConfig = preset(name, vocab_size=61, block_size=12)
    heads = 4 if config.n_kv_head else 2
    config = replace(
        config, n_layer=2, n_head=heads, n_embd=config.n_embd // config.n_head * heads,
        embed_dtype="float32",
    )  # fmt: skip
    gpt = GPT(config, chunk)
    gpt.init_weights(0)
    gpt.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in gpt.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    tokens = torch.randint(61, (3, 13), generator=generator)
    return gpt, tokens[:, :-1], tokens[:, 1:]


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).rsqrt()


def rotated(x: Tensor, frequencies: list[float]) -> Tensor:
    """x (B H T D): the pair (j, j + D/2) turns by position * frequency j."""
    D = x.size(-1)
    out = x.clone()
    for t in range(x.size(2)):
        for j, frequency in enumerate(frequencies):
            # The tables of the model are float32, as in the published code.
            angle = torch.tensor(t, dtype=torch.float32) * torch.tensor(frequency)
            c, s = angle.cos().double(), angle.sin().double()
            a, b = x[:, :, t, j], x[:, :, t, j + D // 2]
            out[:, :, t, j], out[:, :, t, j + D // 2] = a * c + b * s, b * c - a * s
    return out


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax over the positions not later than one's own; all (B H T D)."""
    T = q.size(2)
    logits = scale * torch.einsum("bhtd,bhsd->bhts", q, k)
    later = torch.arange(T)[:, None] < torch.arange(T)[None, :]
    return torch.einsum("bhts,bhsd->bhtd", logits.masked_fill(later, -math.inf).softmax(-1), v)


def track_3(P: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """The fixed setting of track 3: QK-norm, scale .12, half RoPE, ReLU^2, soft cap 15."""
    heads, D = 2, 128
    frequencies = [1024.0 ** (-j / 31) for j in range(32)] + [0.0] * 32
    x = rms(P["embed.weight"][inputs]) * P["norm_embed.weight"]
    B, T, C = x.shape
    for layer in range(2):
        p = {n.split(".", 2)[2]: w for n, w in P.items() if n.startswith(f"blocks.{layer}.")}
        y = rms(x) * p["norm1.weight"]
        y = y @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]
        q, k, v = (z.reshape(B, T, heads, D).transpose(1, 2) for z in y.split(C, dim=-1))
        q, k = rotated(rms(q), frequencies), rotated(rms(k), frequencies)
        y = attention(q, k, v, 0.12).transpose(1, 2).reshape(B, T, C)
        x = x + y @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        y = rms(x) * p["norm2.weight"]
        y = (y @ p["mlp.fc.weight"].T + p["mlp.fc.bias"]).clamp(min=0) ** 2
        x = x + y @ p["mlp.proj.weight"].T + p["mlp.proj.bias"]
    z = rms(x) * P["norm_final.weight"] @ P["head.weight"].T + P["head.bias"]
    return cross_entropy(15 * z * (z * z + 225).rsqrt(), targets)


def october_2024(P: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """The setting of October 2024: tied head, GELU, full RoPE, no biases, gains, norms or caps."""
    heads, D = 2, 64
    frequencies = [10000.0 ** (-2 * j / D) for j in range(D // 2)]
    x = P["embed.weight"][inputs]
    B, T, C = x.shape
    for layer in range(2):
        p = {n.split(".", 2)[2]: w for n, w in P.items() if n.startswith(f"blocks.{layer}.")}
        y = rms(x) @ p["attn.qkv.weight"].T
        q, k, v = (z.reshape(B, T, heads, D).transpose(1, 2) for z in y.split(C, dim=-1))
        q, k = rotated(q, frequencies), rotated(k, frequencies)
        y = attention(q, k, v, D**-0.5).transpose(1, 2).reshape(B, T, C)
        x = x + y @ p["attn.proj.weight"].T
        y = rms(x) @ p["mlp.fc.weight"].T
        x = x + (y * (1 + torch.erf(y / 2**0.5)) / 2) @ p["mlp.proj.weight"].T
    return cross_entropy(rms(x) @ P["embed.weight"].T, targets)


def tiny_block(p: dict[str, Tensor], x: Tensor, attended: Tensor) -> Tensor:
    """What follows the attention in a layer of tiny, tiny-gqa and tiny-mla."""
    x = x + attended
    y = rms(x) * p["norm2.weight"]
    y = (y @ p["mlp.fc.weight"].T + p["mlp.fc.bias"]).clamp(min=0) ** 2
    return x + y @ p["mlp.proj.weight"].T + p["mlp.proj.bias"]


def tiny_loss(P: dict[str, Tensor], x: Tensor, targets: Tensor) -> Tensor:
    z = rms(x) * P["norm_final.weight"] @ P["head.weight"].T + P["head.bias"]
    return cross_entropy(15 * z * (z * z + 225).rsqrt(), targets)


def grouped_query(P: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """tiny-gqa: 4 heads of queries, of which 0 and 1, and 2 and 3, share keys and values."""
    D, shared_by = 32, {0: (0, 1), 1: (2, 3)}
    frequencies = [1024.0 ** (-j / 7) for j in range(8)] + [0.0] * 8
    x = rms(P["embed.weight"][inputs]) * P["norm_embed.weight"]
    for layer in range(2):
        p = {n.split(".", 2)[2]: w for n, w in P.items() if n.startswith(f"blocks.{layer}.")}
        y = rms(x) * p["norm1.weight"]
        y = y @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]
        blocks = y.split(D, dim=-1)  # 4 of queries, 2 of keys, 2 of values
        outputs = {}
        for group, heads in shared_by.items():
            k, v = rotated(blocks[4 + group][:, None], frequencies), blocks[6 + group][:, None]
            for head in heads:
                q = rotated(blocks[head][:, None], frequencies)
                outputs[head] = attention(q, k, v, D**-0.5)[:, 0]
        y = torch.cat([outputs[head] for head in range(4)], dim=-1)
        x = tiny_block(p, x, y @ p["attn.proj.weight"].T + p["attn.proj.bias"])
    return tiny_loss(P, x, targets)


def latent(P: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """tiny-mla: equations 9 to 19 of DeepSeek-V2, with a norm after each compression.

    Two heads of 16 channels without and 16 with positions; values of 32.
    """
    heads, d_nope, d_rope, d_v = 2, 16, 16, 32
    frequencies = [1024.0 ** (-2 * j / d_rope) for j in range(d_rope // 2)]
    x = rms(P["embed.weight"][inputs]) * P["norm_embed.weight"]
    for layer in range(2):
        p = {n.split(".", 2)[2]: w for n, w in P.items() if n.startswith(f"blocks.{layer}.")}
        h = rms(x) * p["norm1.weight"]
        c_q = rms(h @ p["attn.q_down.weight"].T) * p["attn.q_norm.weight"]
        c_kv = rms(h @ p["attn.kv_down.weight"].T) * p["attn.kv_norm.weight"]
        k_r = rotated((h @ p["attn.k_rope.weight"].T)[:, None], frequencies)
        outputs = []
        for i in range(heads):
            nope, rope = (slice(i * d, (i + 1) * d) for d in (d_nope, d_rope))
            q_c = c_q @ p["attn.q_up.weight"][nope].T
            q_r = rotated((c_q @ p["attn.q_rope.weight"][rope].T)[:, None], frequencies)
            k_c = c_kv @ p["attn.k_up.weight"][nope].T
            v_c = c_kv @ p["attn.v_up.weight"][i * d_v : (i + 1) * d_v].T
            q, k = torch.cat([q_c[:, None], q_r], -1), torch.cat([k_c[:, None], k_r], -1)
            outputs.append(attention(q, k, v_c[:, None], (d_nope + d_rope) ** -0.5)[:, 0])
        x = tiny_block(p, x, torch.cat(outputs, -1) @ p["attn.proj.weight"].T)
    return tiny_loss(P, x, targets)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * gain + bias


def classic_gpt2(P: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """GPT-2 of 2019: learned positions, LayerNorm, GELU by tanh, biases, tied head without one."""
    heads, D = 2, 32
    x = P["embed.weight"][inputs] + P["positions.weight"][: inputs.size(1)]
    B, T, C = x.shape
    for layer in range(2):
        p = {n.split(".", 2)[2]: w for n, w in P.items() if n.startswith(f"blocks.{layer}.")}
        y = layer_norm(x, p["norm1.weight"], p["norm1.bias"])
        y = y @ p["attn.qkv.weight"].T + p["attn.qkv.bias"]
        q, k, v = (z.reshape(B, T, heads, D).transpose(1, 2) for z in y.split(C, dim=-1))
        y = attention(q, k, v, D**-0.5).transpose(1, 2).reshape(B, T, C)
        x = x + y @ p["attn.proj.weight"].T + p["attn.proj.bias"]
        y = layer_norm(x, p["norm2.weight"], p["norm2.bias"])
        y = y @ p["mlp.fc.weight"].T + p["mlp.fc.bias"]
        y = y / 2 * (1 + torch.tanh((2 / math.pi) ** 0.5 * (y + 0.044715 * y**3)))
        x = x + y @ p["mlp.proj.weight"].T + p["mlp.proj.bias"]
    x = layer_norm(x, P["norm_final.weight"], P["norm_final.bias"])
    return cross_entropy(x @ P["embed.weight"].T, targets)


EQUATIONS = {
    "gpt2": track_3,
    "gpt2-2024": october_2024,
    "tiny-gqa": grouped_query,
    "tiny-mla": latent,
    "tiny-classic": classic_gpt2,
}


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    picked = logits.gather(-1, targets[..., None])[..., 0]
    return (logits.exp().sum(-1).log() - picked).sum()


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize(("name", "equations"), EQUATIONS.items())
def test_the_model_is_that_of_the_published_equations(
    name: str, equations: Callable[[dict[str, Tensor], Tensor, Tensor], Tensor], chunk: int
) -> None:
    gpt, inputs, targets = toy(name, chunk)
    ours = gpt(inputs, targets)
    ours.backward()
    P = {n: p.detach().clone().requires_grad_() for n, p in gpt.named_parameters()}
    theirs = equations(P, inputs, targets)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-7)
    for n, p in gpt.named_parameters():
        assert p.grad is not None and P[n].grad is not None
        torch.testing.assert_close(p.grad, P[n].grad, rtol=1e-5, atol=1e-6, msg=n)
