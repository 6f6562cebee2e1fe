"""Numbers that others published, or that were found by hand, beside what the presets give.

    from planner import published_checks
    published_checks.time_checks()

Each row has the number as it was printed, ours from the weights of the preset, and half a unit of
the last digit that was printed. Its source says whether somebody published it. A row that does not
agree needs a note that says why.
"""

from dataclasses import replace
from typing import NamedTuple

from planner.models import Model, find
from planner.newton_schulz import Iteration, bound
from planner.optimizer_time import product_flops

BLOG = "Jordan et al. 2024, kellerjordan.github.io/posts/muon, runtime analysis"
BY_HAND = "found by hand from the model's published shapes"
GPT2_TOKENS, SMALL_TOKENS, LLAMA_TOKENS = 524_288, 65_536, 16e6


class Check(NamedTuple):
    """One published number and ours."""

    name: str
    published: float
    ours: float
    rounding: float  # half a unit of the last digit that was printed
    unit: str
    source: str
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether ours rounds to the published number."""
        return abs(self.ours - self.published) <= self.rounding * (1 + 1e-9)


def time_checks() -> list[Check]:
    """FLOPs, shares and seconds of orthogonalisation."""
    return [*_gpt2(), *_llama(), *_deepseek_v4()]


def _flops(model: Model, iteration: Iteration) -> float:
    return sum(iteration.weight_flops(weight) for weight in model.weights if weight.hidden)


def _of_body(model: Model, iteration: Iteration, tokens: float, head: bool = False) -> float:
    """Percent of the FLOPs of the hidden matrices' products, and of the head's."""
    roles = ("attention", "mlp", "experts", "router", *(["head"] if head else []))
    return 100 * _flops(model, iteration) / product_flops(model.of_roles(roles), tokens)


def _gpt2() -> list[Check]:
    fused = find("gpt2-124m")
    fused = replace(fused, weights=tuple(replace(each, splits=()) for each in fused.weights))
    apart = replace(
        fused,
        weights=tuple(
            replace(each, splits=(each.rows // 3,) * 3) if each.name == "attention.qkv" else each
            for each in fused.weights
        ),
    )
    five, twelve = Iteration(ns_steps=5), Iteration(ns_steps=12)
    heads = replace(five, split=True)
    B, small = GPT2_TOKENS, SMALL_TOKENS

    def check(name: str, published: float, ours: float, source: str = BY_HAND) -> Check:
        digits = len(f"{published:g}".partition(".")[2])
        return Check(f"GPT-2 124M, {name}", published, ours, 0.5 / 10**digits, "%", source)

    return [
        check("bound T m / B", 0.7, 100 * bound(5, fused.n_embd, B), BLOG),
        check("share of the body", 0.61, _of_body(apart, five, B)),
        check("share of body and head", 0.42, _of_body(apart, five, B, head=True)),
        check("share of the body, 12 steps", 1.46, _of_body(apart, twelve, B)),
        check("share of the body, fused q, k, v", 0.57, _of_body(fused, five, B)),
        check("share of the body, q, k, v by head", 0.44, _of_body(fused, heads, B)),
        check("bound at 65,536 tokens", 5.9, 100 * bound(5, fused.n_embd, small)),
        check("share of the body at 65,536", 4.9, _of_body(apart, five, small)),
    ]


def _llama() -> list[Check]:
    model, five = find("llama-405b"), Iteration(ns_steps=5)
    flops = _flops(model, five)
    share = _of_body(model, five, model.batch_tokens, head=True)
    wide = 100 * bound(5, model.n_embd, LLAMA_TOKENS)
    name, exact = "Llama 3 405B", "16M tokens are 2^24 here"
    return [
        Check(f"{name}, bound T m / B at 16M tokens", 0.5, wide, 0.05, "%", BLOG),
        Check(f"{name}, FLOPs of a step", 1.6e17, flops, 0.05e17, "FLOPs", BY_HAND),
        Check(f"{name}, share at 16M tokens", 0.39, share, 0.005, "%", BY_HAND, exact),
        Check(f"{name}, one rank at 600 TFLOP/s", 260, flops / 600e12, 5, "s", BY_HAND),
    ]


def _deepseek_v4() -> list[Check]:
    model, ten = find("deepseek-v4"), Iteration("deepseek-v4")
    tokens, experts = model.batch_tokens, model.of_roles(("experts",))
    # Every token meets the shared expert, too: its products count as those of experts here.
    shared = [weight for weight in model.weights if weight.name.startswith("shared")]
    flops = sum(map(ten.weight_flops, experts))
    with_shared = 100 * flops / product_flops([*experts, *shared], tokens)
    of_step = 100 * flops / (6 * model.published_active_params * tokens)
    seconds = flops / 400e12
    all_flops = _flops(model, ten)
    alone = f"of the experts alone; all hidden matrices take {all_flops:.3g} FLOPs"
    name = "DeepSeek-V4-Pro"
    return [
        Check(f"{name}, FLOPs of a step", 2.3e17, flops, 0.05e17, "FLOPs", BY_HAND, alone),
        Check(f"{name}, share of all experts", 1.45, with_shared, 0.005, "%", BY_HAND),
        Check(f"{name}, share of 6 x 49B x tokens", 0.83, of_step, 0.005, "%", BY_HAND, alone),
        Check(f"{name}, one rank at 400 TFLOP/s", 580, seconds, 5, "s", BY_HAND, alone),
        Check(f"{name}, 1,024 ranks", 0.6, seconds / 1024, 0.05, "s", BY_HAND, "in equal parts"),
    ]
