"""The model, against a transcription of its equations in float64, one head at a time.

    python -m pytest tests/test_model.py

Claims: loss and gradients equal the architecture's as described; no position sees a later
one; the initialisation depends on the seed alone; the table of roles is complete; parameters and
FLOPs of the `tiny` preset equal the numbers worked out by hand.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from layers.config import GPTConfig, preset
from model import GPT, ChunkedLoss, soft_cap
from runtime import machine

CPU = torch.device("cpu")
MICRO = GPTConfig(vocab_size=37, block_size=20, n_layer=2, n_head=2, n_embd=32)


def rough_model(seed: int = 0) -> GPT:
    """A model none of whose parameters has a value that hides a mistake, such as 0 or 1."""
    model = GPT(MICRO)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if "norm" in name:
                p.copy_(1 + 0.3 * noise)
            elif name == "head.weight":
                p.copy_(1.5 * noise)  # logits that reach the soft cap
            else:
                p.copy_(0.3 * noise)
    return model


def batch(B: int = 3, T: int = 12, vocab_size: int = 37, seed: int = 0) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocab_size, (B, T + 1), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


def rms_norm(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


def rotate(x: Tensor) -> Tensor:
    """x (T D): channels j and j + D/2 are one complex number, turned back by an angle t w_j.

    w_j falls from 1 to 1/1024 over the first half of the pairs, and is 0 for the other half.
    """
    T, D = x.shape
    w = torch.zeros(D // 2, dtype=torch.float64)
    for j in range(D // 4):
        w[j] = 1024.0 ** -(j / (D // 4 - 1))
    z = torch.complex(x[:, : D // 2], x[:, D // 2 :])
    z = z * torch.exp(-1j * torch.arange(T)[:, None] * w)
    return torch.cat([z.real, z.imag], dim=-1)


def described_loss(p: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of a sequence (T), in the parameters' dtype."""
    T, C = len(inputs), MICRO.n_embd
    D = C // MICRO.n_head
    x = rms_norm(p["embed.weight"][inputs]) * p["norm_embed.weight"]
    for i in range(MICRO.n_layer):
        w = {k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if f"blocks.{i}." in k}
        h = rms_norm(x) * w["norm1.weight"]
        q, k, v = (h @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).split(C, dim=-1)
        heads = []
        for j in range(0, C, D):
            qj, kj = (rotate(rms_norm(m[:, j : j + D])) for m in (q, k))
            y = torch.zeros(T, D, dtype=x.dtype)
            for t in range(T):
                weight = torch.softmax(0.12 * (128 / D) ** 0.5 * kj[: t + 1] @ qj[t], dim=0)
                y[t] = weight @ v[: t + 1, j : j + D]
            heads.append(y)
        x = x + torch.cat(heads, dim=-1) @ w["attn.proj.weight"].T + w["attn.proj.bias"]
        h = (rms_norm(x) * w["norm2.weight"]) @ w["mlp.fc.weight"].T + w["mlp.fc.bias"]
        x = x + (h.clamp(min=0) ** 2) @ w["mlp.proj.weight"].T + w["mlp.proj.bias"]
    z = (rms_norm(x) * p["norm_final.weight"]) @ p["head.weight"].T + p["head.bias"]
    z = 15 * z / (z**2 + 225).sqrt()
    return -torch.log_softmax(z, dim=-1)[torch.arange(T), targets].sum()


def head_outputs(model: GPT, inputs: Tensor) -> Tensor:
    """(B T V) before the soft cap."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    with torch.no_grad():
        model(inputs, torch.zeros_like(inputs))
    handle.remove()
    return seen[0].view(*inputs.shape, -1)


def test_loss_and_gradients_are_those_described() -> None:
    model, (inputs, targets) = rough_model(), batch()
    loss = model(inputs, targets)
    loss.backward()
    p = {n: v.detach().double().requires_grad_() for n, v in model.named_parameters()}
    expected = torch.stack(
        [described_loss(p, *pair) for pair in zip(inputs, targets, strict=True)]
    ).sum()
    expected.backward()
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, param in model.named_parameters():
        assert param.grad is not None and p[name].grad is not None
        error = (param.grad - p[name].grad).norm() / p[name].grad.norm()
        assert error < 1e-4, name


def test_no_position_sees_a_later_one() -> None:
    model, (inputs, _) = rough_model(), batch()
    before = head_outputs(model, inputs)
    for t in (0, 5, 11):
        changed = inputs.clone()
        changed[:, t] = (changed[:, t] + 1) % MICRO.vocab_size
        after = head_outputs(model, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-6, atol=1e-6)
        assert ((after - before)[:, t:].abs().amax(dim=(0, 2)) > 1e-3).all()


def test_a_prefix_and_a_sequence_on_its_own_are_read_alike() -> None:
    model, (inputs, targets) = rough_model(), batch()
    whole = head_outputs(model, inputs)
    near = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(head_outputs(model, inputs[:, :7]), whole[:, :7], **near)
    torch.testing.assert_close(head_outputs(model, inputs[1:2]), whole[1:2], **near)
    parts = sum(model(inputs[i : i + 1], targets[i : i + 1]) for i in range(3))
    torch.testing.assert_close(model(inputs, targets), parts, **near)


def test_the_logits_are_capped_and_float32() -> None:
    model = rough_model()
    far = model.logits(1e4 * torch.randn(2, 3, 32))
    assert far.shape == (2, 3, 37) and 14.99 < far.abs().max() < 15.00001
    assert model.bfloat16().logits(torch.randn(2, 3, 32).bfloat16()).dtype == torch.float32


def test_bfloat16_autocast_changes_the_loss_by_rounding_only() -> None:
    model, (inputs, targets) = rough_model(), batch()
    exact = model(inputs, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(inputs, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.03)


def test_the_same_seed_gives_the_same_weights_whatever_came_before() -> None:
    fresh, used, other = GPT(MICRO), rough_model(), GPT(MICRO)
    state = torch.get_rng_state()
    fresh.init_weights(3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(7)
    used.init_weights(3)
    other.init_weights(4)
    for (name, p), q, r in zip(
        fresh.named_parameters(), used.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        drawn = p.ndim == 2 and "proj" not in name
        assert torch.equal(p, r) != drawn, name


def test_the_initial_weights_have_the_documented_statistics() -> None:
    model = GPT(preset("tiny", vocab_size=1024, block_size=128))
    model.init_weights(0)
    for name, p in model.named_parameters():
        if name.endswith("proj.weight") or name.endswith("bias"):
            assert not p.count_nonzero(), name
        elif "norm" in name:
            assert torch.equal(p, torch.ones_like(p)), name
        else:
            std = 1.0 if name == "embed.weight" else math.sqrt(0.33 / p.size(1))
            assert p.std().item() == pytest.approx(std, rel=0.025), name
            assert abs(p.mean().item()) < 4 * std / math.sqrt(p.numel()), name
    first, second = model.blocks[0], model.blocks[1]
    assert not torch.equal(first.attn.qkv.weight, second.attn.qkv.weight)


def test_the_initial_loss_is_close_to_that_of_a_uniform_guess() -> None:
    model = GPT(preset("tiny", vocab_size=1024, block_size=128))
    model.init_weights(0)
    inputs, targets = batch(4, 128, vocab_size=1024)
    with torch.no_grad():
        loss = model(inputs, targets).item() / targets.numel()
    # Logits of variance .33 add half of that to ln V, give or take .03 on 512 tokens.
    assert loss == pytest.approx(math.log(1024) + 0.165, abs=0.13)


def test_the_tiny_preset_has_the_parameters_worked_out_by_hand() -> None:
    model = GPT(preset("tiny", vocab_size=1024, block_size=128))
    counts = dict.fromkeys(("embed", "head", "matrix", "vector"), 0)
    for row in model.roles():
        counts[row.role] += row.param.numel()
    vectors = 1024 + 2 * 128 + 4 * (2 * 128 + 384 + 128 + 512 + 128)
    assert counts == {"embed": 131_072, "head": 131_072, "matrix": 786_432, "vector": vectors}
    assert sum(p.numel() for p in model.parameters()) == 1_055_488


def test_roles_name_every_parameter_once() -> None:
    model = GPT(MICRO)
    rows = model.roles()
    assert [(row.name, id(row.param)) for row in rows] == [
        (name, id(p)) for name, p in model.named_parameters()
    ]
    table = {row.name: row for row in rows}
    assert [n for n, row in table.items() if row.role == "embed"] == ["embed.weight"]
    assert [n for n, row in table.items() if row.role == "head"] == ["head.weight"]
    assert {n for n, row in table.items() if row.role == "matrix"} == {
        f"blocks.{i}.{n}.weight"
        for i in range(2)
        for n in ("attn.qkv", "attn.proj", "mlp.fc", "mlp.proj")
    }
    for row in rows:
        qkv = row.name.endswith("qkv.weight")
        assert row.head_rows == (16 if qkv else 0)
        if row.role == "matrix":
            assert row.splits == ((32, 32, 32) if qkv else (row.param.size(0),))
        else:
            assert row.splits == ()


def test_tiny_is_what_it_was_before_there_were_other_models() -> None:
    """Its committed races stand only as long as weights, order of parameters and loss do."""
    model = GPT(preset("tiny", vocab_size=1024, block_size=128))
    model.init_weights(0)
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        digest.update(name.encode())
        digest.update(p.detach().numpy().tobytes())
    assert digest.hexdigest()[:16] == "9899669629c6c400"
    tokens = torch.randint(1024, (4, 129), generator=torch.Generator().manual_seed(0))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    generator, near = torch.Generator().manual_seed(1), {"rel": 1e-6}  # another processor's sums
    assert model(inputs, targets).item() == pytest.approx(3673.628662109375, **near)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    assert model(inputs, targets).item() == pytest.approx(4012.163330078125, **near)


# Of each kind, at toy sizes.
KINDS = {
    name: replace(preset(name, 200, 32), n_layer=2, n_head=2, n_embd=64)
    for name in ("tiny", "gpt2", "gpt2-2024")
}


def cross_entropy(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """The loss by torch's own function of all logits, and its gradients by autograd."""
    seen: list[Tensor] = []
    handle = model.norm_final.register_forward_hook(lambda _, __, x: seen.append(x))
    model(inputs, targets)
    handle.remove()
    logits = model.logits(seen[0])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def one_step(
    config: GPTConfig, loss_chunk: int | None, autocast: bool = False, compiled: bool = False
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Training loss, the same without gradients, and the gradients of a third of it.

    loss_chunk: None: the loss is torch's.
    """
    model = GPT(config, loss_chunk or 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.2 * noise + (1 if p.ndim == 1 else 0))
    inputs, targets = batch(3, 32, vocab_size=200)
    call = torch.compile(model, dynamic=False, backend="aot_eager") if compiled else model
    if loss_chunk is None:
        call = partial(cross_entropy, model)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = call(inputs, targets)
        with torch.no_grad():
            val_loss = call(inputs, targets)
    (loss / 3).backward()
    return loss.detach(), val_loss, {n: p.grad for n, p in model.named_parameters()}  # type: ignore


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("loss_chunk", [0, 95, 40, 7])
def test_the_loss_is_the_one_of_torch_by_any_chunk(name: str, loss_chunk: int) -> None:
    config = replace(KINDS[name], embed_dtype="float32")  # else its gradients are rounded
    plain, _, grads = one_step(config, None)
    loss, val_loss, chunked = one_step(config, loss_chunk)
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(val_loss, plain, rtol=1e-6, atol=0)
    for key, grad in chunked.items():
        assert grad.dtype == grads[key].dtype
        assert (grad - grads[key]).norm() < 1e-5 * grads[key].norm(), key


@pytest.mark.parametrize(
    ("name", "compiled"),
    [
        ("tiny", False),
        pytest.param("gpt2", True, marks=pytest.mark.slow),
        ("gpt2-2024", False),
    ],
)
def test_chunks_in_bfloat16_and_compiled_differ_by_rounding_only(name: str, compiled: bool) -> None:
    plain, _, grads = one_step(KINDS[name], None, autocast=True)
    loss, val_loss, chunked = one_step(KINDS[name], 40, autocast=True, compiled=compiled)
    assert loss.dtype == val_loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=1e-4)
    assert val_loss.item() == pytest.approx(plain.item(), rel=1e-4)
    for key, grad in chunked.items():
        assert (grad - grads[key]).norm() < 0.03 * grads[key].norm(), key


@pytest.mark.parametrize("cap", [0.0, 15.0, 30.0, 1000.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 1e3])
def test_the_loss_holds_for_any_cap_and_size_of_logits(cap: float, size: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 8, generator=generator)
    weight, bias = size * torch.randn(50, 8, generator=generator), torch.full((50,), -size)
    targets = torch.arange(20)
    inputs = [z.requires_grad_() for z in (x, weight, bias)]
    loss = ChunkedLoss.apply(*inputs, targets, cap, 7)
    grads = torch.autograd.grad(loss, inputs)
    exact = [z.detach().double().requires_grad_() for z in inputs]
    logits = soft_cap(F.linear(*exact), cap)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for grad, right in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        assert (grad - right).norm() <= 1e-4 * right.norm()


class TallestLogits(TorchDispatchMode):
    """Notes how many tokens had their logits, or the like, in one tensor."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config, self.tokens = config, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.ndim > 1 and out.size(-1) == self.config.table_rows:
            rows = out.numel() // out.size(-1)
            if rows != self.config.n_embd:  # the head's table itself, on its side
                self.tokens = max(self.tokens, rows)
        return out


@pytest.mark.parametrize(("loss_chunk", "expected"), [(0, 96), (16, 16), (40, 40), (96, 96)])
def test_no_more_logits_than_a_chunk_are_in_memory(loss_chunk: int, expected: int) -> None:
    config = replace(KINDS["gpt2"], vocab_size=300)
    model = GPT(config, loss_chunk)
    with TallestLogits(config) as tallest:
        model(*batch(3, 32)).backward()
    assert tallest.tokens == expected
    with torch.no_grad(), TallestLogits(config) as tallest:
        model(*batch(3, 32))
    assert tallest.tokens == expected


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch held on the CPU for a call, beside those it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    held = most = 0
    assert found.profiler is not None and found.profiler.kineto_results is not None
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.slow
def test_a_compiled_pass_takes_one_chunk_of_logits_after_another() -> None:
    config = replace(KINDS["gpt2"], vocab_size=8000, n_layer=0)
    model = torch.compile(GPT(config, loss_chunk=256))
    tokens = batch(32, 32)
    model(*tokens)  # compiles
    chunk_bytes = 256 * config.table_rows * 4
    sums_bytes = 3 * config.table_rows * config.n_embd * 4  # of the gradients of the table
    assert peak_bytes(lambda: model(*tokens)) < 3 * chunk_bytes + sums_bytes


@pytest.mark.parametrize(("autocast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_activations_have_the_precision_of_the_run(autocast: bool, expected: torch.dtype) -> None:
    model, streams = GPT(KINDS["gpt2"]), []
    for part in (model.norm_embed, *model.blocks, model.norm_final):
        part.register_forward_hook(lambda _, __, x: streams.append(x.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = model(*batch(2, 16, vocab_size=200))
    assert set(streams) == {expected} and len(streams) == 4
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in model.parameters())


def test_a_tied_table_is_one_parameter_with_the_role_of_the_head() -> None:
    model = GPT(KINDS["gpt2-2024"])
    model.init_weights(0)
    rows = model.roles()
    assert [row.name for row in rows] == [name for name, _ in model.named_parameters()]
    assert rows[0].role == "head" and rows[0].param is model.embed.weight
    assert model.head.weight is model.embed.weight
    assert {row.role for row in rows[1:]} == {"matrix"}
    assert rows[0].param.std().item() == pytest.approx(0.02, rel=0.05)
    for row in rows:
        if row.name.endswith("proj.weight"):
            assert row.param.std().item() == pytest.approx(0.02 / math.sqrt(4), rel=0.05)


def test_padding_is_of_the_tables_alone() -> None:
    config = KINDS["gpt2"]
    assert (config.vocab_size, config.table_rows) == (200, 256)
    assert GPT(config).embed.weight.shape == GPT(config).head.weight.shape == (256, 64)
    assert preset("gpt2", 50257, 1024).table_rows == 50304
    assert preset("gpt2-2024", 50257, 1024).table_rows == 50257


def test_flops_are_those_worked_out_by_hand() -> None:
    model = GPT(preset("tiny", vocab_size=1024, block_size=128))
    # 917,504 weights in products, and scores and values over 128 tokens in 4 layers, halved.
    assert model.flops_per_token(128) == 6 * 917_504 + 4 * 12 * 128 * 128 / 2 == 5_898_240
    assert model.flops_per_token(64) == 6 * 917_504 + 4 * 12 * 128 * 64 / 2


@pytest.mark.parametrize(("n_head", "n_embd"), [(3, 32), (16, 32), (2, 12)])
def test_heads_that_do_not_fit_are_refused(n_head: int, n_embd: int) -> None:
    with pytest.raises(ValueError, match=f"n_embd={n_embd} with n_head={n_head}"):
        GPTConfig(vocab_size=37, block_size=8, n_layer=1, n_head=n_head, n_embd=n_embd)


@pytest.mark.slow
@pytest.mark.skipif(bool(machine.compiler_missing(CPU)), reason="no C++ compiler")
def test_compiled_steps_have_the_same_bits_every_time() -> None:
    """On two threads, which once added up the embedding's gradient in any order."""
    torch.set_num_threads(2)
    model = GPT(replace(preset("tiny", 1024, 128), n_layer=1), loss_chunk=8192)
    model.use_attention("fused")
    call = torch.compile(model, dynamic=False)
    inputs, targets = batch(32, 128)  # few words, so that many gradients meet in a row

    def steps(forward: Callable[..., Tensor]) -> list[Tensor]:
        model.init_weights(0)
        for _ in range(3):
            model.zero_grad()
            loss = forward(inputs, targets)
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 1e-5 * p.grad
        return [loss.detach(), *(p.detach().clone() for p in model.parameters())]

    first = steps(call)
    torch.testing.assert_close(first[0], steps(model)[0], rtol=1e-5, atol=0)
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, steps(call), strict=True))
