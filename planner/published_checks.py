"""Numbers that others published, or that were found by hand, beside what the presets give.

    from planner import published_checks
    published_checks.time_checks()

Each row has the number as it was printed, ours from the weights of the preset, and half a unit of
the last digit that was printed. Its source says whether somebody published it. A row that does not
agree needs a note that says why.
"""

from dataclasses import replace
from typing import NamedTuple

from planner import plans, verdict
from planner.cluster.setting import Setting
from planner.memory import update_rules
from planner.memory.footprint import footprint
from planner.models import Model, find
from planner.time.newton_schulz import Iteration, bound
from planner.time.optimizer_time import product_flops

BLOG = "Jordan et al. 2024, kellerjordan.github.io/posts/muon, runtime analysis"
BY_HAND = "found by hand from the model's published shapes"
MIB, GIB = 2**20, 2**30
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


def memory_checks() -> list[Check]:
    """Bytes of optimizer state."""
    gpt2, qwen = find("gpt2-124m"), find("qwen2.5-3b")

    def state(model: Model, rule: str, engine: str, ranks: int, setting: Setting) -> float:
        found = footprint(model, update_rules.find(rule), engine, setting, ranks, mean=True)
        return found.state_bytes

    whole = Setting(dtype="float32")
    adamw, muon = (state(gpt2, rule, "single", 1, whole) / MIB for rule in ("adamw", "muon"))
    # DeepSpeed's stage 2 in bfloat16 has momenta of that type.
    low = Setting(batch_tokens=32 * 8 * qwen.seq_len, grad_dtype="bfloat16")
    before, after = (state(qwen, rule, "deepspeed-zero2", 8, low) for rule in ("adamw", "muon"))
    most = qwen.hidden_params * 8 / 8 / GIB
    note = (
        "the peak fell by more than optimizer state can: both moments of all hidden matrices are "
        f"{most:.2f} GiB on each of eight GPUs; the rest is buffers and the allocator's"
    )
    name = "GPT-2 124M, optimizer state"
    return [
        Check(f"{name} of AdamW", 949, adamw, 0.5, "MiB", BY_HAND),
        Check(f"{name} with Muon", 625, muon, 0.5, "MiB", BY_HAND),
        Check(
            "Qwen2.5-3B on 8 A100, ZeRO 2: 34.5 to 31.4 GiB", 34.5 - 31.4,
            (before - after) / GIB, 0.05, "GiB", "DeepSpeed's announcement of Muon", note,
        ),
    ]  # fmt: skip


# model: GPU hours of its pre-training with AdamW, half a unit of the last digit, source.
HOURS = {
    "deepseek-v3": (2.664e6, 0.5e3, "2412.19437, table 1"),
    "llama-405b": (30.84e6, 5e3, "Llama 3.1's model card"),
}


def hours_checks() -> list[Check]:
    """GPU hours of whole trainings, from the simulated step."""
    found = []
    for name, (published, rounding, source) in HOURS.items():
        plan = plans.make(find(name), {"draws": 1})
        hours = verdict.judge(plan).adamw_hours * plan.cluster.ranks
        flops = plan.model.flops_per_token * plan.train_tokens
        implied = flops / (published * 3600 * plan.cluster.kind.peak_flops)
        note = (
            f"{plan.cluster.mfu:.0%} of the peak is assumed, and failures come on top; the "
            f"published hours are {implied:.1%} of the peak with all that they contain"
        )
        title = f"{plan.model.title}, pre-training"
        found.append(Check(title, published, hours, rounding, "GPU hours", source, note))
    return found


# model: tokens of a step, ms of AdamW's step and of Muon's on eight H100.
STEPS = {"gpt2-124m": (524_288, 138.6, 142.0), "gpt2-xl": (491_520, 1702.7, 1718.3)}


def step_checks() -> list[Check]:
    """Milliseconds of a step on eight H100, and the price of Muon's, as in the logs of 2024."""
    source, found = "modded-nanogpt's logs of October 2024", []
    for name, (tokens, adamw, muon) in STEPS.items():
        given = {"draws": 1, "batch_tokens": tokens, "strategy": "round-robin"}
        judged = verdict.judge(plans.make(find(name), given))
        title = f"{judged.plan.model.title} on 8 H100"
        alike = f"{judged.plan.cluster.mfu:.0%} of the peak is assumed"
        apart = "their Newton-Schulz takes one matrix after another; equal ones are a batch here"
        ours = (1e3 * judged.adamw.seconds, 1e3 * judged.muon.seconds)
        found += [
            Check(f"{title}, AdamW's step", adamw, ours[0], 0.05, "ms", source, alike),
            Check(f"{title}, Muon's step", muon, ours[1], 0.05, "ms", source, alike),
            Check(
                f"{title}, price of Muon's step", 100 * (muon / adamw - 1),
                100 * (judged.price - 1), 0.05, "%", source, apart,
            ),
        ]  # fmt: skip
    return found


def all_checks() -> list[Check]:
    """Every number."""
    return [*time_checks(), *memory_checks(), *step_checks(), *hours_checks()]


def _flops(model: Model, iteration: Iteration) -> float:
    return sum(iteration.weight_flops(weight) for weight in model.weights if weight.hidden)


def _of_body(model: Model, iteration: Iteration, tokens: float, head: bool = False) -> float:
    """Percent of the FLOPs of the hidden matrices' products, and of the head's."""
    roles = ("attention", "mlp", "experts", "router", *(["head"] if head else []))
    return 100 * _flops(model, iteration) / product_flops(model.of_roles(roles), tokens)


def _gpt2() -> list[Check]:
    apart = find("gpt2-124m")
    fused = replace(apart, weights=tuple(replace(each, splits=()) for each in apart.weights))
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
