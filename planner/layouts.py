"""What an engine holds in one process and what it sends, by formula.

Arithmetic on bytes: nothing here is measured. `studies.engines` puts these numbers beside what its
runs measured, and `leaderboard.verify` checks that the two agree.

P parameters, of which W belong to rules that need whole matrices and B to the blocks of the model;
S optimizer state of one process; N processes; all in bytes, in float32. A reduce-scatter or an
all-gather of P bytes sends P (N - 1) / N per process, an all-reduce twice that
(`engines/_traffic.py`). What does not divide evenly is taken to divide evenly.
"""

from dataclasses import dataclass

ENGINES = (
    "single", "ddp", "sharded", "fsdp2",
    "deepspeed-zero0", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """What decides the costs of a layout, in bytes."""

    params: int  # P
    whole: int  # W
    blocks: int  # B
    state: int  # S


@dataclass(frozen=True)
class Layout:
    """The costs of one process, in bytes."""

    params: float
    grads: float
    state: float
    sent: float  # in a step


def layout(engine: str, model: Model, n: int, passes: int = 1) -> Layout:
    """The costs of an engine of ENGINES on n processes. passes: microbatches of a step."""
    p, w, b, s, ring = model.params, model.whole, model.blocks, model.state, (n - 1) / n
    if engine in ("single", "ddp"):
        return Layout(p, p, s, 2 * p * ring)
    if engine == "sharded":
        return Layout(p, p, s / n, 2 * p * ring)
    if engine == "fsdp2":
        # Owners keep their matrices whole beside the shards. A pass gathers the parameters, those
        # of the blocks again for the backward pass, and scatters the gradients. The exchange takes
        # 1 / N of W there and back.
        sent = (2 * p + b) * passes * ring + 2 * w / n * ring
        return Layout((p + w) / n, p / n, s / n, sent)
    raise NotImplementedError(engine)
