"""What an engine holds in one process and what it sends, by formula.

Arithmetic on numbers and bytes: nothing here is measured. `studies.engines` puts these figures
beside what its runs measured, and `leaderboard.verify` checks that the two agree. `held` is for any
model, any precision and any number of processes; `footprint.py` asks it. `traffic` is what the runs
of this project send, in float32.

The costs are those of the process that has most of a kind, or the mean over all. Whole matrices are
dealt to owners as `host/owners.py` says. FSDP2 cuts rows, and its first process has the most. What
else does not divide evenly is taken to divide evenly, but for DeepSpeed's flat partitions and for
the rounds in which its stage 3 sends matrices.
"""

import functools
import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from errors import UserError
from host import owners

# The engines of this project as their rows name them, and ZeRO's stages as published.
ENGINES = (
    "single", "ddp", "sharded", "zero1", "zero2", "zero3", "fsdp2",
    "deepspeed-zero0", "deepspeed-zero1", "deepspeed-zero2", "deepspeed-zero3",
)  # fmt: skip


UNDIVIDED = ("single", "ddp", "deepspeed-zero0")  # each process has all


def check(engine: str) -> None:
    """Raise UserError for an engine without a formula."""
    if engine not in ENGINES:
        raise UserError(
            f"--engine {engine}: must be one of {', '.join(ENGINES)}; run with --engine sharded"
        )


# ---- Memory of any model -----------------------------------------------------------------------


@dataclass(frozen=True)
class Tensors:
    """Equal parameters that share a rule, as a process has them before it divides them."""

    shape: tuple[int, ...]
    count: float  # a pipeline stage may have a part of one, on average over the stages
    whole: bool  # the rule needs whole parameters
    state: float  # numbers of optimizer state of one
    processes: int  # over which they are divided
    row: int = 0  # which of DeepSpeed's flat rows: one for each rule with its options
    splits: tuple[int, ...] | None = None  # rows of the matrices in one, if the rule splits it

    @property
    def size(self) -> int:
        """Numbers of one."""
        return math.prod(self.shape)

    @property
    def numbers(self) -> float:
        """Of all."""
        return self.count * self.size

    @property
    def states(self) -> float:
        """Numbers of state of all."""
        return self.count * self.state

    @property
    def shard(self) -> float:
        """The share of one that FSDP2's first process has."""
        return -(-self.shape[0] // self.processes) / self.shape[0]


@dataclass(frozen=True)
class NumberBytes:
    """Bytes of a number of each kind."""

    param: int = 4
    master: int = 0  # 0: parameters are updated themselves
    grad: int = 4
    state: int = 4


@dataclass(frozen=True)
class Held:
    """What a process holds between steps, in bytes."""

    params: float
    master: float
    grads: float
    whole_state: float  # of rules that need whole parameters
    other_state: float

    @property
    def state(self) -> float:
        return self.whole_state + self.other_state


@dataclass(frozen=True)
class Owned:
    """Numbers that an owner of whole parameters has."""

    params: float
    state: float


def held(engine: str, tensors: Sequence[Tensors], of: NumberBytes, mean: bool = False) -> Held:
    """What an engine holds in a process. mean: over all processes; else in the one with most.

    ZeRO's stages keep state with the owner of a matrix, as `sharded` does, which is the first of
    them. From the second on, a process keeps the gradients of what it updates. The third keeps
    equal shards of parameters and gradients; fsdp2 has in addition whole copies of what it owns,
    which count as parameters. Where there is a master copy, fsdp2's shards are that copy. DeepSpeed
    always updates float32 copies, and its stages 1 and 2 keep Muon's momentum in the type of the
    gradients. Raises UserError for an engine without a formula.
    """
    check(engine)
    numbers, states = _total(tensors, "numbers"), _total(tensors, "states")
    rest = [t for t in tensors if not t.whole]
    whole_states = states - _total(rest, "states")
    param, grad, state = of.param, of.grad, of.state
    if engine in UNDIVIDED:
        return Held(
            numbers * param, numbers * of.master, numbers * grad,
            whole_states * state, (states - whole_states) * state,
        )  # fmt: skip
    if engine in ("deepspeed-zero1", "deepspeed-zero2"):
        part = sum(t.numbers / t.processes for t in tensors)
        overlap = overlapping(tuple(tensors), mean)
        grads = overlap.params if engine == "deepspeed-zero2" else numbers
        moments = sum(t.states / t.processes for t in rest) * state
        return Held(numbers * param, part * 4, grads * grad, overlap.state * grad, moments)
    if engine == "deepspeed-zero3":
        part = sum(t.numbers / t.processes for t in tensors)
        whole = sum(t.states / t.processes for t in tensors if t.whole)
        moments = sum(t.states / t.processes for t in rest)
        return Held(part * param, part * 4, part * grad, whole * state, moments * state)
    own = owned(tuple(t for t in tensors if t.whole), engine != "fsdp2", mean)
    if engine == "fsdp2":
        shards = sum(t.numbers * (1 / t.processes if mean else t.shard) for t in tensors)
        moments = sum(t.states * (1 / t.processes if mean else t.shard) for t in rest)
        kept = of.master or param
        return Held(
            (shards + own.params) * kept, 0, shards * grad, own.state * state, moments * state
        )
    even = sum(t.numbers / t.processes for t in rest)  # of what may be cut anywhere
    moments = sum(t.states / t.processes for t in rest) * state
    updated, whole = even + own.params, own.state * state
    if engine == "zero3":
        part = sum(t.numbers / t.processes for t in tensors)
        return Held(part * param, updated * of.master, part * grad, whole, moments)
    grads = updated if engine == "zero2" else numbers
    return Held(numbers * param, updated * of.master, grads * grad, whole, moments)


def _total(tensors: Iterable[Tensors], what: str) -> float:
    return sum(getattr(each, what) for each in tensors)


def owned(whole: tuple[Tensors, ...], stacked: bool, mean: bool = False) -> Owned:
    """What the owner that has most, or an owner on average, has of parameters that stay whole.

    stacked: parameters of one shape are dealt together, as `sharded` does; else each by its cost.
    Groups of different numbers of processes are dealt apart, and their most is added up.
    """
    if mean:
        params = sum(t.numbers / t.processes for t in whole)
        return Owned(params, sum(t.states / t.processes for t in whole))
    params = state = 0.0
    for n in {t.processes for t in whole}:
        mine = [t for t in whole if t.processes == n]
        rows = tuple((t.shape, t.splits, math.ceil(t.count)) for t in mine)
        numbers, states = [0.0] * n, [0.0] * n
        for each, counts in zip(mine, _dealt(rows, n, stacked), strict=True):
            for rank, count in counts.items():
                numbers[rank] += count * each.size
                states[rank] += count * each.state
        params, state = params + max(numbers), state + max(states)
    return Owned(params, state)


@functools.lru_cache(maxsize=64)
def _dealt(
    rows: tuple[tuple[tuple[int, ...], tuple[int, ...] | None, int], ...], n: int, stacked: bool
) -> list[Counter[int]]:
    """How many parameters of each row, (shape, splits, count), each of n owners has."""
    stacks: dict[object, list[float]] = {}
    places = []  # of each row in the stacks
    for number, (shape, splits, count) in enumerate(rows):
        cost = owners.orthogonal_cost(shape, splits)
        if stacked:
            stack = stacks.setdefault(shape, [])
            places.append([(shape, len(stack) + i) for i in range(count)])
            stack += [cost] * count
        else:
            places.append([((number, i), 0) for i in range(count)])
            stacks |= {(number, i): [cost] for i in range(count)}
    found = dict(zip(stacks, owners.owners([*stacks.values()], n), strict=True))
    return [Counter(found[key][place] for key, place in row) for row in places]


@functools.lru_cache(maxsize=64)
def overlapping(tensors: tuple[Tensors, ...], mean: bool = False) -> Owned:
    """The gradients and the momenta that DeepSpeed's stages 1 and 2 keep in a process, in numbers.

    Each flat row is cut evenly; a parameter across a cut is kept whole by both sides. Rows that
    Muon has are sorted by size, the largest first.
    """
    rows: dict[tuple[int, int], list[Tensors]] = {}
    for each in tensors:
        rows.setdefault((each.processes, each.row), []).append(each)
    grads: dict[int, list[float]] = {}
    momenta: dict[int, list[float]] = {}
    for (n, _), row in rows.items():
        grads.setdefault(n, [0.0] * n)
        momenta.setdefault(n, [0.0] * n)
        if row[0].whole:
            row = sorted(row, key=lambda each: -each.size)
        # Where a stage has a part of a parameter on average, its parameters are that much smaller.
        counts = [max(1, math.ceil(t.count)) for t in row]
        sizes = [max(1, round(t.numbers / count)) for t, count in zip(row, counts, strict=True)]
        for rank, kept in enumerate(_kept([*zip(sizes, counts, strict=True)], n)):
            grads[n][rank] += kept
            momenta[n][rank] += kept * row[0].whole
    if mean:
        return Owned(*(sum(sum(x) / n for n, x in kind.items()) for kind in (grads, momenta)))
    return Owned(*(sum(map(max, kind.values())) for kind in (grads, momenta)))


def _kept(row: Sequence[tuple[int, int]], n: int) -> list[int]:
    """Numbers of the whole parameters of a row that overlap with each of n equal parts of it.

    row: (size, count) of equal parameters that follow each other.
    """
    begins = [0]
    for size, count in row:
        begins.append(begins[-1] + size * count)
    total = begins[-1]

    def around(position: int) -> tuple[int, int]:
        """Begin and end of the parameter that has this number."""
        run = bisect_right(begins, position) - 1
        begin = position - (position - begins[run]) % row[run][0]
        return begin, begin + row[run][0]

    if not total:
        return [0] * n
    firsts = (around(rank * total // n)[0] for rank in range(n))
    ends = (around(-(-(rank + 1) * total // n) - 1)[1] for rank in range(n))
    return [end - first for first, end in zip(firsts, ends, strict=True)]


# ---- What is sent in float32 -------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """What decides the traffic of a layout, in bytes of parameters."""

    params: int
    blocks: int = 0  # of them, in the blocks of the model
    last: int = 0  # in the last module, the head
    whole: tuple[tuple[int, ...], ...] = ()  # each parameter of a rule that needs it whole, by rows


@dataclass(frozen=True)
class Traffic:
    """Bytes that a process sends, the mean over the processes."""

    step: float  # in every step
    first: float = 0.0  # more, in the first step
    anew: float = 0.0  # more, in the first step after a validation


def traffic(engine: str, sizes: Sizes, n: int, passes: int = 1) -> Traffic:
    """What an engine, as its rows name it, sends on n processes, in float32.

    passes: microbatches of a step, for fsdp2. Raises KeyError for an engine that has no rows.
    """
    p, w, b, ring = sizes.params, sum(map(sum, sizes.whole)), sizes.blocks, (n - 1) / n
    # A reduce-scatter or an all-gather of p bytes sends p (n - 1) / n, an all-reduce twice that
    # (`engines/_traffic.py`). A pass of fsdp2 gathers the parameters, those of the blocks again for
    # the backward pass, and scatters the gradients; the exchange takes 1 / n of w there and back.
    # DeepSpeed averages gradients by an all-reduce, and then gathers the parameters. Stage 3 keeps
    # what it gathers for the forward pass until the backward pass has used it, but not in the first
    # step, in which it learns the order of the modules, nor for the last module in the first step
    # after a validation. It gathers gradients and momenta of the matrices, and sends updates and
    # momenta in rounds.
    step = {
        "single": 0.0,
        "ddp": 2 * p * ring,
        "sharded": 2 * p * ring,
        "fsdp2": (2 * p + b) * passes * ring + 2 * w / n * ring,
        "deepspeed-zero0": 2 * p * ring,
        "deepspeed-zero1": 3 * p * ring,
        "deepspeed-zero2": 3 * p * ring,
        "deepspeed-zero3": (3 * p + 2 * w + 2 * _in_rounds(sizes.whole, n)) * ring,
    }[engine]
    if engine == "deepspeed-zero3":
        return Traffic(step, p * ring, sizes.last * ring)
    return Traffic(step)


def _in_rounds(whole: Iterable[Sequence[int]], n: int) -> float:
    """Bytes that n processes gather where ZeRO 3 gathers the matrices of Muon.

    A round takes a matrix of each process, and all are filled up to the largest of the round. Those
    of a row lie in the order of their sizes, the largest first.
    """
    return float(n * sum(sum(sorted(row, reverse=True)[::n]) for row in whole))
