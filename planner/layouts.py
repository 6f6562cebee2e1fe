"""What an engine holds in one process and what it sends, by formula.

Arithmetic on bytes: nothing here is measured. `studies.engines` puts these numbers beside what its
runs measured, and `leaderboard.verify` checks that the two agree.

P parameters, of which W belong to rules that need whole matrices and B to the blocks of the model;
S optimizer state of one process; N processes; all in bytes, in float32. A reduce-scatter or an
all-gather of P bytes sends P (N - 1) / N per process, an all-reduce twice that
(`engines/_traffic.py`). What does not divide evenly is taken to divide evenly, but for DeepSpeed's
flat partitions and for the rounds in which its stage 3 sends matrices.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Parameters that share a rule and its options."""

    whole: bool  # the rule needs whole matrices, and has a momentum; else two moments
    sizes: tuple[int, ...]  # bytes of each parameter


@dataclass(frozen=True)
class Model:
    """What decides the costs of a layout, in bytes."""

    groups: tuple[Group, ...]
    blocks: int  # B
    state: int  # S
    last: int = 0  # of the last module, the head

    @property
    def params(self) -> int:
        """P"""
        return sum(sum(group.sizes) for group in self.groups)

    @property
    def whole(self) -> int:
        """W"""
        return sum(sum(group.sizes) for group in self.groups if group.whole)


@dataclass(frozen=True)
class Layout:
    """The costs of the process that holds most, in bytes."""

    params: float
    grads: float
    state: float
    sent: float  # in a step
    sent_first: float = 0.0  # more, in the first step
    sent_anew: float = 0.0  # more, in the first step after a validation


def layout(engine: str, model: Model, n: int, passes: int = 1) -> Layout:
    """The costs of an engine, as its rows name it, on n processes.

    passes: microbatches of a step, for fsdp2. Raises KeyError for an engine without a formula.
    """
    p, w, b, s, ring = model.params, model.whole, model.blocks, model.state, (n - 1) / n
    if engine == "fsdp2":
        # Owners keep their matrices whole beside the shards. A pass gathers the parameters, those
        # of the blocks again for the backward pass, and scatters the gradients. The exchange takes
        # 1 / N of W there and back.
        sent = (2 * p + b) * passes * ring + 2 * w / n * ring
        return Layout((p + w) / n, p / n, s / n, sent)
    # DeepSpeed updates copies of its part of the parameters, which count as state. It averages
    # gradients by an all-reduce, and then gathers the parameters.
    moments = 2 * (p - w) / n
    grads, momenta = _overlapping(model.groups, n)
    return {
        "single": Layout(p, p, s, 0),
        "ddp": Layout(p, p, s, 2 * p * ring),
        "sharded": Layout(p, p, s / n, 2 * p * ring),
        "deepspeed-zero0": Layout(p, p, s, 2 * p * ring),
        "deepspeed-zero1": Layout(p, p, p / n + moments + momenta, 3 * p * ring),
        "deepspeed-zero2": Layout(p, grads, p / n + moments + momenta, 3 * p * ring),
        # Stage 3 keeps what it gathers for the forward pass until the backward pass has used it,
        # but not in the first step, in which it learns the order of the modules, nor for the last
        # module in the first step after a validation. It gathers gradients and momenta of the
        # matrices, and sends updates and momenta in rounds.
        "deepspeed-zero3": Layout(
            p / n, p / n, (p + s) / n, (3 * p + 2 * w + 2 * _in_rounds(model.groups, n)) * ring,
            sent_first=p * ring, sent_anew=model.last * ring,
        ),
    }[engine]  # fmt: skip


def _in_rounds(groups: Sequence[Group], n: int) -> float:
    """Bytes that n processes gather where ZeRO 3 gathers the matrices of Muon.

    A round takes a matrix of each process, and all are filled up to the largest of the round. Those
    of a group lie in the order of their sizes, the largest first.
    """
    sizes = [sorted(group.sizes, reverse=True) for group in groups if group.whole]
    return float(n * sum(sum(each[::n]) for each in sizes))


def _overlapping(groups: Sequence[Group], n: int) -> tuple[float, float]:
    """Bytes of the gradients and of the momenta that ZeRO 2 keeps in the process that has most.

    Each group is one row of numbers, cut evenly; a parameter across a cut is kept by both sides.
    Those that Muon has lie in the order of their sizes, the largest first.
    """
    grads, momenta = [0.0] * n, [0.0] * n
    for group in groups:
        sizes = sorted(group.sizes, reverse=True) if group.whole else group.sizes
        share, begin = sum(sizes) / n, 0
        for size in sizes:
            for rank in range(n):
                if begin < (rank + 1) * share and begin + size > rank * share:
                    grads[rank] += size
                    momenta[rank] += size * group.whole
            begin += size
    return max(grads), max(momenta)
