"""Checks of the model on the device: what tests/test_model.py claims on a CPU.

Each kind of model has a small width, and no weight is 0 or 1, which could hide a mistake. The
reference is the same model in float64 on the CPU, which the tests compare with the equations.
"""

from dataclasses import replace

import torch
from torch import Tensor

from bench.gpu_check.config import Config
from bench.gpu_check.runner import Recorder
from layers.config import GPTConfig, preset
from model import GPT

KINDS = ("gpt2", "gpt2-2024")
VOCABULARY = 500
Found = tuple[float, dict[str, Tensor]]  # the loss, and the gradients in float64 on the CPU


def small_config(kind: str, config: Config) -> GPTConfig:
    """Two layers and two heads of the full head size, so that a GPU uses the same kernels."""
    given = preset(kind, VOCABULARY, 32 if config.size == "toy" else 256)
    width = given.n_embd // given.n_head * 2
    return replace(given, n_layer=2, n_head=2, n_embd=width, embed_dtype="float32")


def model(sizes: GPTConfig, device: torch.device, loss_chunk: int = 0) -> GPT:
    """A model that has the same weights on every device."""
    gpt = GPT(sizes, loss_chunk)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gpt.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.2 * noise if p.ndim == 1 else noise * (0.5 / p.size(1)) ** 0.5)
    return gpt.to(device)


def batch(sizes: GPTConfig, device: torch.device, sequences: int = 3) -> tuple[Tensor, Tensor]:
    """Random inputs and targets, (sequences T) each."""
    generator = torch.Generator().manual_seed(1)
    shape = (sequences, sizes.block_size + 1)
    tokens = torch.randint(VOCABULARY, shape, generator=generator).to(device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def measured(gpt: GPT, low: bool = False) -> Found:
    """Loss per token and gradients. low: matrix products in bfloat16, not in float32."""
    device = gpt.embed.weight.device
    inputs, targets = batch(gpt.config, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=low):
        loss = gpt(inputs, targets) / targets.numel()
    loss.backward()
    grads = {name: p.grad for name, p in gpt.named_parameters()}
    return loss.item(), {name: g.double().cpu() for name, g in grads.items() if g is not None}


def compare(
    recorder: Recorder, what: str, found: Found, exact: Found, loss: float, grad: float
) -> None:
    """Check the relative deviations of the loss and of the worst gradient against limits."""
    off = {name: float((found[1][name] - g).norm() / g.norm()) for name, g in exact[1].items()}
    worst = max(off, key=off.__getitem__)
    recorder.check(f"{what}: loss", abs(found[0] / exact[0] - 1), most=loss)
    recorder.check(f"{what}: gradients", off[worst], most=grad, note=f"the worst is {worst}")


def run(config: Config, recorder: Recorder, seconds: float) -> None:
    """The part `model`."""
    device, cpu = config.device, torch.device("cpu")
    for kind in KINDS:
        sizes = small_config(kind, config)
        chunk = sizes.block_size + 7  # no divisor of the tokens
        with recorder.attempt(f"{kind} against float64 on the CPU"):
            exact = measured(model(sizes, cpu).double())
            here = measured(model(sizes, device))
            compare(recorder, f"{kind}: float32 off float64 on the CPU", here, exact, 1e-5, 1e-3)
            chunked = measured(model(sizes, device, chunk))
            compare(recorder, f"{kind}: loss by chunks off all at once", chunked, here, 1e-5, 1e-3)
            for what, size in (("bfloat16", 0), ("chunks in bfloat16", chunk)):
                low = measured(model(sizes, device, size), low=True)
                compare(recorder, f"{kind}: {what} off float32", low, here, 0.005, 0.05)
        for low_precision in (False, True):
            with recorder.attempt(f"{kind}: causality"):
                causality(recorder, model(sizes, device), kind, low_precision)
    with recorder.attempt("initial weights"):
        initial_weights(recorder, device)


@torch.no_grad()
def causality(recorder: Recorder, gpt: GPT, kind: str, low: bool) -> None:
    """A token changes the logits from its position on, and none before.

    In bfloat16 a change after the position may be lost in rounding, so only the position counts.
    """
    inputs, _ = batch(gpt.config, gpt.embed.weight.device)
    seen: list[Tensor] = []
    gpt.head.register_forward_hook(lambda _, __, z: seen.append(z.detach().float()))

    def logits(tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, dtype=torch.bfloat16, enabled=low):
            gpt(tokens, tokens)
        return seen.pop().view(*tokens.shape, -1)

    t = inputs.size(1) // 2
    changed = inputs.clone()
    changed[:, t] = (changed[:, t] + 1) % VOCABULARY
    moved = (logits(changed) - logits(inputs)).abs().amax(dim=(0, 2))  # T
    what = f"{kind}, {'bfloat16' if low else 'float32'}: a token moves logits"
    recorder.check(f"{what} before it by", float(moved[:t].max()), most=1e-5)
    after = moved[t : t + 1] if low else moved[t:]
    recorder.check(f"{what} from it on by", float(after.min()), least=1e-5)


def initial_weights(recorder: Recorder, device: torch.device) -> None:
    """A seed gives the same bits on every device, and does not move the global generator."""
    sizes = replace(preset("gpt2", VOCABULARY, 32), n_layer=2, n_head=1, n_embd=128)
    there, here = GPT(sizes), GPT(sizes).to(device)
    state = torch.get_rng_state()
    there.init_weights(3)
    here.init_weights(3)
    kept = torch.equal(torch.get_rng_state(), state)
    pairs = zip(there.parameters(), here.parameters(), strict=True)
    differ = sum(int((p != q.cpu()).sum()) for p, q in pairs)
    recorder.check("initial weights that differ from the CPU's", differ, most=0)
    recorder.check("the global generator moved", 0 if kept else 1, most=0)
