"""How far our update rules are from those of the libraries that pip has, and why.

    make agreement    # a quarter of a minute on one CPU core; nothing is timed, any machine will do

Each pair of optimizers starts from equal weights (tall, wide and square matrices) and gets equal
gradients for ten steps. The difference is that of a step's update, relative to the peer's, in the
Frobenius norm: the largest of all steps and matrices. Where it is larger than rounding, there is a
reason, and the column "without it" is the difference of the same pair once that cause is taken
away: options with the same meaning, a peer that iterates in full precision, or another precision
for both. So a reason is tested, not believed. tests/test_agreement.py fails where a difference has
no reason, and where a reason is not, or no longer, the cause.

There is no library on PyPI with Dion's rule; docs/optimizers.md says what it was compared with.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import Parameter

from bench import Row, run, write
from muon import Muon
from optim.lion import Lion
from optim.shampoo import Shampoo
from optim.signum import Signum
from optim.soap import SOAP

LIBRARIES = ("torch", "pytorch_optimizer", "heavyball", "schedulefree")
SHAPES = ((48, 24), (24, 48), (32, 32))
SQUARE = ((32, 32),)
STEPS = 10
# The largest differences that are rounding: of ten steps, of which each has up to 25 products.
ROUNDING = {"float32": 3e-4, "float64": 1e-11}
Make = Callable[..., Any]  # from parameters and options to an optimizer
Updates = list[list[Tensor]]  # of each step, of each matrix


@dataclass(frozen=True)
class Way:
    """How a pair is run."""

    ours: Mapping[str, Any]  # options
    theirs: Mapping[str, Any]
    changed: Callable[[], AbstractContextManager[Any]] = nullcontext  # a library, during the steps
    shapes: Sequence[tuple[int, int]] = SHAPES
    steps: int = STEPS
    dtype: str = ""  # of both; empty: the row's
    direction: bool = False  # compare updates that are divided by their norms

    def but(self, **changes: Any) -> "Way":
        """This way with other fields; options are added to the ones that there are."""
        for side in ("ours", "theirs"):
            changes[side] = {**getattr(self, side), **changes.get(side, {})}
        return replace(self, **changes)


@dataclass(frozen=True)
class Reason:
    """Why the updates of a pair differ, in some precisions, and the way in which they do not."""

    text: str
    without: Way
    dtypes: Sequence[str] = tuple(ROUNDING)


@dataclass(frozen=True)
class Pair:
    """One of our rules, and a class of a library that says it is the same."""

    ours: str  # name, as in the table
    rule: Make
    peer: str  # dotted path
    way: Way
    note: str = ""  # options that the name of the peer has in the table
    reasons: Sequence[Reason] = field(default=())

    def reason(self, dtype: str) -> Reason | None:
        return next((reason for reason in self.reasons if dtype in reason.dtypes), None)


# ---- Changes of a library ----------------------------------------------------------------------


def torch_in_full() -> AbstractContextManager[Any]:
    """torch.optim.Muon iterates in the precision of the gradient."""
    return mock.patch.object(Tensor, "bfloat16", Tensor.clone)


@contextmanager
def pytorch_optimizer_in_full() -> Iterator[None]:
    """So do pytorch_optimizer's classes of Muon's family."""
    name = "zero_power_via_newton_schulz_5"
    with ExitStack() as stack:
        for file in ("base", "adamuon", "normuon"):
            module = import_module(f"pytorch_optimizer.optimizer.muon.{file}")
            iterate = getattr(module, name)

            def full(g: Tensor, iterate: Any = iterate, **options: Any) -> Any:
                return iterate(g, **options | {"dtype": g.dtype})

            stack.enter_context(mock.patch.object(module, name, full))
        yield


def heavyball_in_full() -> AbstractContextManager[Any]:
    """heavyball's Muon iterates in float32."""
    utils = import_module("heavyball.utils")
    return mock.patch.object(utils, "stochastic_round_", lambda x, *_: x)


@contextmanager
def one_eps() -> Iterator[None]:
    """pytorch_optimizer adds nothing below the root of the second moment."""
    base = import_module("pytorch_optimizer.base.optimizer").BaseOptimizer
    with ExitStack() as stack:
        for name in ("apply_ams_bound", "apply_ams_bound_foreach"):
            bound = getattr(base, name)

            def without(*args: Any, bound: Any = bound, **options: Any) -> Any:
                return bound(*args, **options | {"exp_avg_sq_eps": 0.0})

            stack.enter_context(mock.patch.object(base, name, staticmethod(without)))
        yield


# ---- The pairs ---------------------------------------------------------------------------------

BFLOAT16 = "The peer iterates in bfloat16, whatever the weights are."
FLOAT32 = "The peer keeps its state and steps in float32, whatever the weights are."
NULL_SPACE = (
    "A gradient that is not square leaves a null space, in which any basis is an eigenbasis: "
    "rounding decides."
)


def grouped(peer: Make) -> Make:
    """A class that wants to hear for each group that Muon is for it."""
    return lambda params, **options: peer([{"params": params, "use_muon": True}], **options)


def adamw(params: Iterable[Parameter], **options: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, fused=True, **options)


def schedule_free(params: Iterable[Parameter], **options: Any) -> Any:
    return import_module("pytorch_optimizer").ScheduleFreeAdamW(params, **options)


_decayed = {"lr": 0.02, "weight_decay": 0.1}
_jordan = Way(_decayed, _decayed)
_matched = _jordan.but(ours={"adjust_lr_fn": "match_rms_adamw"})
_po = _jordan.but(theirs={"use_adjusted_lr": False})
_po_matched = _matched.but(theirs={"use_adjusted_lr": True})
_normuon = _jordan.but(ours={"second_moment": "row"})
_adamuon = Way(
    {"lr": 0.02, "nesterov": False, "sign": True, "second_moment": "entry"},
    {"lr": 0.02, "weight_decay": 0.0, "betas": (0.95, 0.95)},
    direction=True,
)
_you = Way({"lr": 0.02, "ns_coefficients": "you"}, {"lr": 0.02, "betas": (0.95, 0.95)})
_plain = _you.but(ours={"nesterov": False}, theirs={"nesterov": False})
_lion = Way({"lr": 1e-3, "weight_decay": 0.1}, {"lr": 1e-3, "weight_decay": 0.1})
_soap = Way({"lr": 3e-3}, {"lr": 3e-3, "betas": (0.95, 0.95), "weight_decay": 0.0})
_hb_soap = _soap.but(
    theirs={
        "shampoo_beta": 0.95, "precondition_frequency": 10, "use_precond_schedule": False,
    }
)  # fmt: skip
_shampoo = Way({"lr": 3e-3, "betas": (0.0, 0.0), "eps": 1e-14}, {"lr": 3e-3, "matrix_eps": 1e-14})
_adam = Way({"lr": 3e-3, "weight_decay": 0.1}, {"lr": 3e-3, "weight_decay": 0.1})
_hb_adam = _adam.but(theirs={"betas": (0.9, 0.999)})

PAIRS = (
    Pair(
        "Muon", Muon, "torch.optim.Muon", _jordan,
        reasons=[Reason(BFLOAT16, _jordan.but(changed=torch_in_full))],
    ),
    Pair(
        "Muon, AdamW's scale", Muon, "torch.optim.Muon",
        _matched.but(theirs={"adjust_lr_fn": "match_rms_adamw"}), "match_rms_adamw",
        [
            Reason(
                BFLOAT16,
                _matched.but(theirs={"adjust_lr_fn": "match_rms_adamw"}, changed=torch_in_full),
            )
        ],
    ),
    Pair(
        "Muon", Muon, "pytorch_optimizer.Muon", _po,
        reasons=[Reason(BFLOAT16, _po.but(changed=pytorch_optimizer_in_full))],
    ),
    Pair(
        "Muon, AdamW's scale", Muon, "pytorch_optimizer.Muon", _po_matched, "use_adjusted_lr",
        [Reason(BFLOAT16, _po_matched.but(changed=pytorch_optimizer_in_full))],
    ),
    Pair(
        "Muon without Nesterov", Muon, "heavyball.Muon", _plain, "nesterov=False",
        [
            Reason(BFLOAT16, _plain.but(changed=heavyball_in_full), ["float32"]),
            Reason(
                FLOAT32, _plain.but(changed=heavyball_in_full, dtype="float32"), ["float64"]
            ),
        ],
    ),
    Pair(
        "Muon", Muon, "heavyball.Muon", _you,
        reasons=[
            Reason(
                "Its Nesterov adds the whole gradient to an average of gradients; Jordan's, which "
                "it has as heavyball_momentum, weighs both alike. It keeps its state in float32 "
                "and iterates in bfloat16.",
                _you.but(
                    theirs={"heavyball_momentum": True}, changed=heavyball_in_full, dtype="float32"
                ),
            )
        ],
    ),
    Pair(
        "NorMuon", Muon, "pytorch_optimizer.NorMuon", _normuon,
        reasons=[
            Reason(
                "The peer iterates in bfloat16, and its eps is 1e-8 where ours is 1e-15.",
                _normuon.but(theirs={"eps": 1e-15}, changed=pytorch_optimizer_in_full),
            )
        ],
    ),
    Pair(
        "AdaMuon, its direction", Muon, "pytorch_optimizer.AdaMuon", _adamuon,
        reasons=[
            Reason(
                "It leaves out the sign of the momentum, which the paper's second version takes. "
                "It iterates in bfloat16, and its eps is 1e-8 where ours is 1e-15.",
                _adamuon.but(
                    ours={"sign": False}, theirs={"eps": 1e-15}, changed=pytorch_optimizer_in_full
                ),
            )
        ],
    ),
    Pair("Lion", Lion, "pytorch_optimizer.Lion", _lion),
    Pair("Signum", Signum, "pytorch_optimizer.SignSGD", _lion),
    Pair(
        "SOAP", SOAP, "pytorch_optimizer.SOAP", _soap,
        reasons=[
            Reason(
                f"{NULL_SPACE} It adds eps before it corrects the second moment for its start "
                "from zero.",
                _soap.but(ours={"eps": 1e-30}, theirs={"eps": 1e-30}, shapes=SQUARE),
            )
        ],
    ),
    Pair(
        "SOAP with weight decay", SOAP, "pytorch_optimizer.SOAP",
        _soap.but(
            ours={"eps": 1e-30, "weight_decay": 0.1}, theirs={"eps": 1e-30, "weight_decay": 0.1}
        ),
        reasons=[
            Reason(
                f"It decays after the step, so that it decays the update too. {NULL_SPACE}",
                _soap.but(ours={"eps": 1e-30}, theirs={"eps": 1e-30}, shapes=SQUARE),
            )
        ],
    ),
    Pair(
        "SOAP", SOAP, "heavyball.SOAP", _hb_soap,
        reasons=[
            Reason(
                f"{NULL_SPACE} {FLOAT32}",
                _hb_soap.but(shapes=SQUARE, dtype="float32"),
            )
        ],
    ),
    Pair(
        "Shampoo", Shampoo, "pytorch_optimizer.Shampoo", _shampoo,
        reasons=[
            Reason(
                "It adds up the covariances of the gradients, as in the paper; ours averages them. "
                "A single step is equal, where the roots exist.",
                _shampoo.but(steps=1, shapes=SQUARE),
            )
        ],
    ),
    Pair(
        "AdamW", adamw, "heavyball.AdamW", _hb_adam,
        reasons=[Reason(FLOAT32, _hb_adam.but(dtype="float32"), ["float64"])],
    ),
    Pair(
        "Schedule-free AdamW, pytorch_optimizer's", schedule_free,
        "schedulefree.AdamWScheduleFree", _adam,
        reasons=[
            Reason(
                "pytorch_optimizer adds 1e-15 below the root of the second moment.",
                _adam.but(changed=one_eps),
                ["float64"],
            )
        ],
    ),
)  # fmt: skip


# ---- The comparison ----------------------------------------------------------------------------


def peer_of(pair: Pair) -> Make:
    module, _, name = pair.peer.rpartition(".")
    found: Make = getattr(import_module(module), name)
    if module == "heavyball":
        # It compiles each function, which takes minutes on a CPU.
        import_module("heavyball.utils").compile_mode = None  # type: ignore[attr-defined]
    muon_of = module == "pytorch_optimizer" and "Muon" in name
    return grouped(found) if muon_of else found


def drawn(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def updates(make: Make, options: Mapping[str, Any], way: Way, dtype: torch.dtype) -> Updates:
    """What each step adds to each matrix."""
    params = [Parameter((0.1 * drawn(s, i)).to(dtype)) for i, s in enumerate(way.shapes)]
    optimizer = make(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()  # schedule-free
    found = []
    for step in range(way.steps):
        before = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = drawn(tuple(p.shape), 1000 * (step + 1) + i).to(dtype)
        optimizer.step()
        found.append([(p.detach() - q).double() for p, q in zip(params, before, strict=True)])
    return found


def difference(pair: Pair, way: Way, dtype: str) -> float:
    """The largest relative difference of an update."""
    kind = getattr(torch, way.dtype or dtype)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        peer = peer_of(pair)
        with way.changed():
            ours = updates(pair.rule, way.ours, way, kind)
            theirs = updates(peer, way.theirs, way, kind)
    largest = 0.0
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        sizes = [
            X.norm() if way.direction and X.any() else torch.tensor(1.0) for X in (mine, other)
        ]
        off = (mine / sizes[0] - other / sizes[1]).norm()
        norm = (other / sizes[1]).norm()
        largest = max(largest, float(off / norm if norm else off))
    return largest


def row_of(pair: Pair, dtype: str) -> Row:
    reason = pair.reason(dtype)
    return {
        "ours": pair.ours,
        "peer": pair.peer + (f" ({pair.note})" if pair.note else ""),
        "precision": dtype,
        "difference": f"{difference(pair, pair.way, dtype):.1e}",
        "reason": reason.text if reason else "",
        "without it": f"{difference(pair, reason.without, dtype):.1e}" if reason else "",
    }


def fault(pair: Pair, row: Row) -> str:
    """What is wrong with a row: a difference without its reason, or a reason that is none."""
    dtype, reason = str(row["precision"]), pair.reason(str(row["precision"]))
    if float(row["difference"]) <= ROUNDING[dtype]:
        return "the reason is not needed" if reason else ""
    if not reason:
        return "the difference is larger than rounding, and has no reason"
    left = float(row["without it"])
    return "" if left <= ROUNDING[reason.without.dtype or dtype] else "the reason is not the cause"


def installed() -> list[Pair]:
    """The pairs whose libraries are there."""
    return [
        pair
        for pair in PAIRS
        if find_spec(pair.peer.partition(".")[0])
        and (pair.rule is not schedule_free or find_spec("pytorch_optimizer"))
    ]


def compare_all() -> None:
    """Compare all pairs, and write the rows."""
    torch.set_num_threads(1)
    found = [(pair, row_of(pair, dtype)) for pair in installed() for dtype in ROUNDING]
    versions: Row = {name: version(name) for name in LIBRARIES if find_spec(name)}
    write("agreement", [row for _, row in found], versions)
    for pair, row in found:
        if fault(pair, row):
            print(f"{row['ours']} and {row['peer']} in {row['precision']}: {fault(pair, row)}")


def main() -> int:
    """Run the command; its exit code."""
    return run("agreement", __doc__, compare_all)


if __name__ == "__main__":
    sys.exit(main())
