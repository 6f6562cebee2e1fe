"""Muon: momentum whose update is orthogonalised by Newton-Schulz. Needs torch alone: copy it.

    from muon import Muon
    optimizer = Muon(hidden_matrices, lr=0.02)

For the hidden 2-D weights of a network; embeddings, the output head, gains and biases belong to
another optimizer, such as AdamW. One step on a matrix W (out, in) with the gradient G:

    M <- momentum M + (1 - momentum) G             U <- (1 - momentum) G + momentum M   (Nesterov)
    X <- U / |U|, then five times                  X <- a X + b (X X^T) X + c (X X^T)^2 X
    W <- (1 - lr weight_decay) W - lr scale X      X has nearly the singular vectors of U and
                                                   singular values near 1

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon. NorMuon, AdaMuon, Muon^2, MuonH and
Muon Split are options of the class, off by default; each names its paper there.

Claim: on two cores of an AMD EPYC, a step on the hidden matrices of the track `tiny` takes 20.5 ms,
1.6 times as fast as one matrix after another (`python -m bench.optimizer_step`). Matrices of one
shape are one batch, over all parameters and groups; wide ones are iterated through their Gram
matrix. On a GPU the fastest of BACKENDS is measured for each shape at its first step.

CUDA graphs: after an eager first step, `newton_schulz` neither waits for the device nor changes
from step to step. A captured `Muon.step` keeps the lr, decay and momentum of its capture.
"""

import inspect
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf, isfinite, prod
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]
# Of K matrices X (K m n) with norms of at most 1; m <= n are their smaller and larger side.
Iteration = Callable[[Tensor, Coefficients], Tensor]


def _of(s: float, table: Coefficients) -> Coefficients:
    """The coefficients whose step on X equals a step of `table` on X / s."""
    return tuple((a / s, b / s**3, c / s**5) for a, b, c in table)


# Amsel et al. 2505.16932: each step is the best polynomial for the singular values that the step
# before leaves, for inputs with singular values from 1e-3 up.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# The same method with a cushion of 2 and a safety of 2%, for five steps: modded-nanogpt, nanochat.
_CUSHIONED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# (a, b, c) of each step X <- a X + b (X X^T) X + c (X X^T)^2 X; the last step repeats. Polar
# Express divides X by more than its norm; here its first step does that.
COEFFICIENTS: dict[str, Coefficients] = {
    # Jordan et al. 2024: the steepest slope at 0 whose five steps end in about [0.7, 1.2].
    "jordan": ((3.4445, -4.7750, 2.0315),),
    # Converges to 1 exactly, slowly: 12 steps in the fixed setting of the optimization track.
    "stable": ((2.0, -1.5, 0.5),),
    "polar-express": (*_of(1.02, _CUSHIONED[:1]), *_CUSHIONED[1:]),
    # As in the paper, with a safety of 1% in all steps but the last; for five steps or eight.
    "polar-express-1.01": (
        *_of(1.01, _of(1.01, _POLAR_EXPRESS[:1])), *_of(1.01, _POLAR_EXPRESS[1:]),
        (1.875, -1.25, 0.375),
    ),
    # The tables below are for as many steps as they have. You Jiacheng's, from modded-nanogpt.
    "you": (
        (4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012),
    ),
    # Grishina et al. 2506.10935 (CANS): by Chebyshev's alternation theorem.
    "cans": (
        (8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074), (2.2737, -1.6447, 0.4162),
    ),
    # NVIDIA Emerging-Optimizers: a polynomial without the fifth power.
    "cubic5": (
        (3.3656576, -3.3420992, 0.0), (2.5744352, -1.4957376, 0.0), (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0), (2.2230472, -0.9630650, 0.0),
    ),
    # DeepSeek-V4: eight steep steps and two that converge.
    "deepseek-v4": ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2,
}  # fmt: skip


def table_of(coefficients: str | Sequence[Any], steps: int) -> Coefficients:
    """The (a, b, c) of each step, of which the last repeats. Raises ValueError.

    coefficients: a name, one (a, b, c) as torch.optim.Muon has it, or several; also as lists.
    """
    table: Any = COEFFICIENTS.get(coefficients) if isinstance(coefficients, str) else coefficients
    try:
        table = [tuple(abc) for abc in ([table] if isinstance(table[0], Real) else table)]
        right = all(len(abc) == 3 and all(isfinite(x) for x in abc) for abc in table)
    except (TypeError, LookupError):
        right = False
    if not right:
        must = f"one of {', '.join(COEFFICIENTS)}, or three numbers (a, b, c), or three a step"
        raise ValueError(f"ns_coefficients={coefficients!r}: must be {must}")
    return tuple(table[min(i, len(table) - 1)] for i in range(steps))


def newton_schulz(
    X: Tensor, coefficients: str | Sequence[Any] = "jordan", steps: int = 5,
    eps: float = 1e-15, backend: str = "auto",
) -> Tensor:  # fmt: skip
    """Approximate polar factor of each matrix: U V^T of its singular value decomposition.

    X: (K, m, n), any m and n, in the dtype to compute in. Returns a new tensor like X. Its singular
    values are near 1, not equal to 1: with five steps of "jordan" they are within [0.68, 1.13] if
    the singular values of the input were at least 0.01 of its Frobenius norm (Jordan et al. 2024).
    Zero gives zero. `eps` bounds the norm from below; it is small, so that the scale of the input
    does not matter. `backend`: see `choose`.
    """
    abc = table_of(coefficients, steps)
    transposed = X.size(-2) > X.size(-1)
    if transposed:
        X = X.mT
    wide = torch.promote_types(X.dtype, torch.float32)  # eps underflows in half precision
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=wide)
    X = (X / norm.clamp(min=eps)).to(X.dtype)
    X = BACKENDS[choose(X.shape, X.dtype, X.device, abc, backend)].iterate(X, abc)
    return X.mT if transposed else X


def _iteration(X: Tensor, abc: Coefficients) -> Tensor:
    """The iteration as published, 2nm^2 + 2m^3 + 2nm^2 FLOPs a step."""
    for a, b, c in abc:
        A = X @ X.mT  # (K, m, m)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X


def _gram_iteration(X: Tensor, abc: Coefficients) -> Tensor:
    """The same polynomial, iterated on the Gram matrix R = X X^T: only two products see n.

    With P = aI + bR + cR^2, a step is Z <- P Z, R <- P R P, and the result is Z X. All of these
    are polynomials in the first R, so they commute.
    """
    R = X @ X.mT  # (K, m, m)
    Z = torch.eye(R.size(-1), dtype=R.dtype, device=R.device).expand_as(R)
    for i, (a, b, c) in enumerate(abc):
        B = torch.baddbmm(R, R, R, beta=b, alpha=c)  # P - aI
        Z = a * Z + B if i == 0 else torch.baddbmm(Z, B, Z, beta=a)
        if i < len(abc) - 1:
            W = torch.baddbmm(R, B, R, beta=a)
            R = torch.baddbmm(W, B, W, beta=a)
    return Z @ X


def _gram_is_accurate(device: torch.device, dtype: torch.dtype, abc: Coefficients) -> bool:
    """Whether it is off by less than 1e-3: rounding errors in R grow by the slope at 0 squared."""
    return prod([a for a, _, _ in abc]) ** 2 * torch.finfo(dtype).eps < 0.15


class Backend(NamedTuple):
    """A way to iterate, and whether it is available and accurate on a device."""

    iterate: Iteration
    applies: Callable[[torch.device, torch.dtype, Coefficients], bool]


# Put others in here. Results may differ by rounding. One called "name-variant" is one of "name".
BACKENDS = {
    "plain": Backend(_iteration, lambda *_: True),
    "gram": Backend(_gram_iteration, _gram_is_accurate),
}
# The fastest name by (backend, shape, dtype, coefficients), as measured on this process's GPU.
Choices = dict[tuple[Any, ...], str]
_chosen: Choices = {}
ROUNDS = 20  # of the measurement: other work on the GPU disturbs some, hardly all of them
MARGIN = 0.95  # a candidate must take less than this part of the time of each one before it


def chosen_backends() -> Choices:
    """A copy of what this process has measured to be fastest, for `adopt_backends` in another."""
    return dict(_chosen)


def adopt_backends(choices: Choices) -> None:
    """Use another process's choices. Processes that hold the same weights must round alike."""
    _chosen.update(choices)


def choose(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, abc: Coefficients,
    backend: str = "auto",
) -> str:  # fmt: skip
    """The name in BACKENDS to iterate with on X of `shape` (K, m, n).

    "auto" takes the fastest. On a CPU, that is the one with fewer FLOPs. On a GPU, each process
    measures once for each shape, but cannot while a step is compiled or captured, and then takes
    "plain", the published form. Any other name is taken as it is, or its fastest variant if it has
    several. Raises ValueError if none applies.
    """
    if backend == "auto" and device.type != "cuda":
        (m, n), steps = shape[-2:], len(abc)
        cheaper = 4 * n * m**2 + (8 * steps - 6) * m**3 < steps * (4 * n * m**2 + 2 * m**3)
        return "gram" if cheaper and _gram_is_accurate(device, dtype, abc) else "plain"
    if backend == "auto" and torch.compiler.is_compiling():
        return "plain"
    names = candidates(dtype, device, abc, backend)
    if len(names) == 1 or device.type != "cuda":
        return names[0]
    key = (backend, *shape, dtype, abc)
    if key not in _chosen:
        if torch.cuda.is_current_stream_capturing():
            return names[0]
        _chosen[key] = _fastest(names, shape, dtype, device, abc)
    return _chosen[key]


def candidates(
    dtype: torch.dtype, device: torch.device, abc: Coefficients, backend: str
) -> list[str]:
    """The names in BACKENDS that `backend` stands for and that apply. Raises ValueError if none."""
    names = [name for name in BACKENDS if backend in ("auto", name, name.partition("-")[0])]
    if not names:
        known = dict.fromkeys(["auto", *(name.partition("-")[0] for name in BACKENDS)])
        raise ValueError(f"ns_backend={backend!r}: must be one of {', '.join(known)}")
    fit = [name for name in names if BACKENDS[name].applies(device, dtype, abc)]
    if not fit:
        where = f"{dtype} on {device.type} with these coefficients; must be auto or plain"
        raise ValueError(f"ns_backend={backend!r}: not for {where}")
    return fit


def _fastest(
    names: Sequence[str], shape: Sequence[int], dtype: torch.dtype, device: torch.device,
    abc: Coefficients,
) -> str:  # fmt: skip
    """The name whose iteration is fastest on a random X: the best of ROUNDS, taken in turns.

    Of those that tie, the first. The first round compiles, so it is never the best. A backend that
    fails is left out with a warning: Triton may lack a C compiler. The first may not fail.
    """
    generator = torch.Generator(device).manual_seed(0)  # leaves the global one as it is
    X = torch.randn(*shape, generator=generator, dtype=torch.float32, device=device)
    X = (X / torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True)).to(dtype)
    times = dict.fromkeys(names, float("inf"))
    for _ in range(ROUNDS):
        for name in list(times):
            try:
                times[name] = min(times[name], _milliseconds(BACKENDS[name].iterate, X, abc))
            except Exception as error:
                if name == names[0] or isinstance(error, torch.OutOfMemoryError):
                    raise
                warnings.warn(f"ns_backend={name!r} fails here: {error}", stacklevel=2)
                del times[name]
    return next(name for name in times if min(times.values()) >= MARGIN * times[name])


def _milliseconds(iterate: Iteration, X: Tensor, abc: Coefficients) -> float:
    """The time of one iteration on a GPU, launches included."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    iterate(X, abc)
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended)


def lr_scale(rows: int, cols: int, adjust_lr_fn: str | None) -> float:
    """The factor on the learning rate of a matrix (rows, cols). Raises ValueError.

    "original" or None: sqrt(max(1, rows / cols)), Jordan's and torch.optim.Muon's.
    "match_rms_adamw": 0.2 sqrt(max(rows, cols)), with which the update's root mean square is about
        AdamW's (Liu et al. 2502.16982, section 2.2).
    "exact_rms": 0.2 sqrt(rows cols) on an update that is divided by its Frobenius norm; its root
        mean square is 0.2 even if it is not orthogonal (Si et al. 2507.11005).
    "hyperball": 1, on an update that is divided by its Frobenius norm; see Muon.
    """
    jordan = max(1.0, rows / cols) ** 0.5
    scales = {None: jordan, "original": jordan, "match_rms_adamw": 0.2 * max(rows, cols) ** 0.5}
    scales |= {"exact_rms": 0.2 * (rows * cols) ** 0.5, "hyperball": 1.0}
    if adjust_lr_fn not in [*scales]:  # a list has no hash
        known = ", ".join(filter(None, scales))
        raise ValueError(f"adjust_lr_fn={adjust_lr_fn!r}: must be {known}")
    return scales[adjust_lr_fn]


UNIT = ("exact_rms", "hyperball")  # values of adjust_lr_fn that divide the update by its norm
# Numbers among the options: at least the first, below the second; whole where the first is an int.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("lr", "weight_decay", "eps"), (0.0, inf)),
    **dict.fromkeys(("momentum", "momentum_start", "betas", "beta2"), (0.0, 1.0)),
    **dict.fromkeys(("momentum_warmup", "momentum_cooldown", "momentum_horizon"), (0, inf)),
    "ns_steps": (1, 100),
}
REAL = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
WORDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("nesterov", "sign", "cautious"), (True, False)),
    "second_moment": ("none", "gradient", "row", "entry"),
    "ns_dtype": (None, *REAL),
}
Group = dict[str, Any]  # parameters and their options, as in torch's optimizers


def check_numbers(options: Group, ranges: dict[str, tuple[float, float]] = RANGES) -> None:
    """Raise ValueError for a number that is none, or out of its range; `betas` are two."""
    for name in (name for name in options if name in ranges):
        value, (low, high) = options[name], ranges[name]
        numbers = list(value) if name == "betas" and isinstance(value, tuple | list) else [value]
        if name == "lr" and isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"lr={value}: Tensor lr must be 1-element")
            numbers = [value.item()]
        kind: Any = Integral if isinstance(low, int) else Real
        fit = (isinstance(x, kind) and not isinstance(x, bool) and low <= x < high for x in numbers)
        if not all(fit) or len(numbers) != 1 + (name == "betas"):
            must = f"at least {low} and {'finite' if high == inf else f'below {high}'}"
            what = "whole" if kind is Integral else "two numbers" if name == "betas" else "a number"
            raise ValueError(f"{name}={value!r}: must be {must}, {what}")


def check_params(group: Group, name: str, half: bool = True, matrices: bool = True) -> None:
    """Raise ValueError for what a rule cannot take. half: it takes float16. matrices: 2-D alone."""
    splits, kinds = group.get("splits"), REAL if half else REAL[1:]
    rows = splits if isinstance(splits, Sequence) else () if splits is None else (0,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in rows)
    for p in group["params"]:
        trained = p.requires_grad or p.grad is not None
        if trained and (p.layout != torch.strided or p.dtype not in kinds):
            raise ValueError(f"{p.dtype}, {p.layout}: {name} takes dense parameters in {kinds}")
        if matrices and not (p.ndim == 2 and whole and sum(rows or p.shape[:1]) == p.size(0)):
            must = "2-D parameters whose splits add up to their rows"
            raise ValueError(f"shape {tuple(p.shape)}, splits {splits}: {name} takes {must}")


def with_gradients(group: Group, name: str) -> list[Tensor]:
    """The parameters of a group that a step changes. Raises RuntimeError for other gradients."""
    found = [p for p in group["params"] if p.grad is not None and p.numel()]
    kinds = {(p.grad.layout, p.grad.dtype == p.dtype, p.is_complex()) for p in found}
    if kinds - {(torch.strided, True, False)}:
        raise RuntimeError(f"{name} does not support complex, sparse or mixed-dtype gradients")
    return found


def set_state(rule: torch.optim.Optimizer, state: Group) -> None:
    """An optimizer's `__setstate__`. Options that were not saved are what they are here."""
    before = rule.__dict__.get("param_groups", [])
    torch.optim.Optimizer.__setstate__(rule, state)  # which adds a default, "differentiable"
    arguments = inspect.signature(type(rule)).parameters.values()
    own = {p.name: p.default for p in arguments if p.default is not p.empty}
    rule.defaults = own | {k: v for k, v in rule.defaults.items() if k != "differentiable"}
    for i, group in enumerate(rule.param_groups):
        here = rule.defaults | (before[i] if before else {})
        group.update({name: here[name] for name in rule.defaults if name not in group})


class Block(NamedTuple):
    """One matrix during a step, transposed if needed so that m <= n."""

    U: Tensor  # (m n), to be orthogonalised
    W: Tensor  # (m n), the weights, a view of the parameter
    moment: Tensor | None  # (m n), (m 1) or (1 n): second moment, a view of the state, if there is
    step_size: float  # lr times scale
    decay: float  # lr times weight decay if that is cautious, else 0
    radius: float  # hyperball: the norm that a matrix of zeros gets; else 0

    def move(self, X: Tensor, eps: float) -> None:
        """Apply X, the orthogonalised U, to the weights."""
        W = self.W
        if self.decay:
            W.sub_(W * (X * W > 0), alpha=self.decay)
        if not self.radius:
            W.add_(X, alpha=-self.step_size)
            return
        norm = torch.linalg.vector_norm(W)
        norm = torch.where(norm > 0, norm, self.radius)
        W.sub_(self.step_size * norm * X)
        W.mul_(norm / _norm(W, eps))


def _norm(X: Tensor, eps: float) -> Tensor:
    """Frobenius norm of each matrix (... m n), as (... 1 1), and at least eps."""
    return torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True).clamp(min=eps)


def _equalise(X: Tensor, batch: Sequence[Block], beta2: float, eps: float) -> Tensor:
    """Update the second moments of X (K m n), divide X by their root, and restore its norms."""
    moments = [block.moment for block in batch if block.moment is not None]
    V = torch.stack(moments)  # (K m n), or m or n is 1
    V.lerp_(X.square().sum_to_size(V.shape) * (V.numel() / X.numel()), 1 - beta2)
    torch._foreach_copy_(moments, V.unbind())
    equal = X / (V.sqrt() + eps)
    return equal * (_norm(X, eps) / _norm(equal, eps))


def _check(group: Group, rule: type) -> None:
    """Raise ValueError for options or parameters that Muon cannot take."""
    check_numbers(group)
    check_params(group, rule.__name__, half=group["second_moment"] == "none")
    for key, known in WORDS.items():
        if group[key] not in known:
            raise ValueError(f"{key}={group[key]!r}: must be one of {', '.join(map(str, known))}")
    if group["momentum_cooldown"] > group["momentum_horizon"]:
        must = f"at most momentum_horizon={group['momentum_horizon']}; give the steps of the run"
        raise ValueError(f"momentum_cooldown={group['momentum_cooldown']}: must be {must}")
    lr_scale(1, 1, group["adjust_lr_fn"])
    if group["adjust_lr_fn"] == "hyperball" and group["weight_decay"]:
        must = "0 with adjust_lr_fn='hyperball', which keeps the norm of each matrix"
        raise ValueError(f"weight_decay={group['weight_decay']}: must be {must}")
    abc = table_of(group["ns_coefficients"], group["ns_steps"])
    for p in group["params"] if group["ns_backend"] != "auto" else ():
        candidates(group["ns_dtype"] or p.dtype, p.device, abc, group["ns_backend"])


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters, as at the top of this file; without `nesterov`, U is M.

    State: one `momentum_buffer` a parameter; `second_moment` and `step` if an option needs them.
    Gradients are not modified. The options are in the parameter groups, where schedulers find them:

    lr: learning rate, a number or a tensor of one, which `lr_scale` multiplies.
    weight_decay: decoupled, multiplied by lr without the scale.
    splits: row counts of the matrices stacked in each parameter, such as (C, C, C) for a fused
        query-key-value projection, or the rows of each head (Muon Split, GLM-5, 2602.15763). Each
        matrix is orthogonalised and scaled on its own. None: the parameter is one matrix.
    ns_coefficients: a name in COEFFICIENTS, (a, b, c), or the (a, b, c) of each step.
    ns_dtype: dtype of the iteration. None: the gradient's. ns_backend: see `choose`.
    momentum_warmup: steps in which momentum rises linearly from `momentum_start`.
    momentum_cooldown: last steps of the first `momentum_horizon` in which momentum falls back.
    sign: orthogonalise the sign of U (Si et al. 2507.11005).
    second_moment: which tensor is divided by the root of its averaged squares, with `beta2`.
        "gradient": U, by the average of G^2 (Muon^2, Liu et al. 2604.09967).
        "row": O = newton_schulz(U), by one average for each row (NorMuon, Li et al. 2510.05491).
        "entry": O, by one for each entry (AdaMuon, with sign and exact_rms). O keeps its norm.
    cautious: decay only weights that the update makes smaller, too (Chen et al. 2510.12402).
    adjust_lr_fn: see `lr_scale`. "hyperball" keeps the norm R of each matrix (MuonH, Wen et al.
        2606.16899): W <- W - lr R O / |O|, then W <- R W / |W|. Zeros get torch's initial norm.
    """

    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 0.02, weight_decay: float = 0.0,
        momentum: float = 0.95, nesterov: bool = True,
        ns_coefficients: str | Sequence[Any] = "jordan", ns_steps: int = 5, eps: float = 1e-15,
        adjust_lr_fn: str | None = "original", splits: Sequence[int] | None = None,
        ns_dtype: torch.dtype | None = None, ns_backend: str = "auto",
        momentum_start: float = 0.85, momentum_warmup: int = 0, momentum_cooldown: int = 0,
        momentum_horizon: int = 0, sign: bool = False, second_moment: str = "none",
        beta2: float = 0.95, cautious: bool = False,
    ) -> None:  # fmt: skip
        options = {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")}
        check_numbers(options)
        super().__init__(params, options)

    def add_param_group(self, param_group: Group) -> None:
        super().add_param_group(param_group)
        try:
            _check(self.param_groups[-1], type(self))
        except BaseException:
            del self.param_groups[-1]
            raise

    def __setstate__(self, state: Group) -> None:
        set_state(self, state)  # so that the state of torch.optim.Muon loads, too

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns the result of `closure`."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        # Matrices with one shape, type and iteration form one batch, from all parameter groups.
        batches: defaultdict[tuple[Any, ...], list[Block]] = defaultdict(list)
        for group in self.param_groups:
            params = with_gradients(group, type(self).__name__)
            if not params:
                continue
            directions = self._directions(params, group)
            if group["weight_decay"] and not group["cautious"]:
                torch._foreach_mul_(params, 1 - float(group["lr"]) * group["weight_decay"])
            abc = table_of(group["ns_coefficients"], group["ns_steps"])
            shared = (abc, *(group[name] for name in ("eps", "ns_backend", "beta2")))
            unit = group["adjust_lr_fn"] in UNIT
            for p, U in zip(params, directions, strict=True):
                for block in self._blocks(p, U, group):
                    W, moment = block.W, block.moment
                    kinds = (W.device, W.dtype, W.shape, None if moment is None else moment.shape)
                    batches[*kinds, unit, group["ns_dtype"] or U.dtype, *shared].append(block)
        for (*_, unit, dtype, abc, eps, backend, beta2), batch in batches.items():
            X = torch.stack([block.U for block in batch]).to(dtype)
            X = newton_schulz(X, abc, len(abc), eps, backend)
            if batch[0].moment is not None:
                X = _equalise(X.to(batch[0].W.dtype), batch, beta2, eps)
            if unit:
                X = X.to(batch[0].W.dtype)
                X = X / _norm(X, eps)
            for block, update in zip(batch, X, strict=True):
                block.move(update, eps)
        return loss

    def _buffers(self, params: list[Tensor], name: str, cols: int | None = None) -> list[Tensor]:
        """State called `name`, one tensor a parameter, zeros at first; `cols`: its columns."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p[:, :cols])
        return [self.state[p][name] for p in params]

    def _directions(self, params: list[Tensor], group: Group) -> list[Tensor]:
        """Update the momentum, and return U, which is to be orthogonalised, for each parameter."""
        grads = [p.grad for p in params if p.grad is not None]
        momenta = [self._momentum(p, group) for p in params]
        U = buffers = self._buffers(params, "momentum_buffer")
        torch._foreach_lerp_(buffers, grads, [1 - mu for mu in momenta])
        if group["nesterov"]:
            U = list(torch._foreach_lerp(grads, buffers, momenta))
        if group["sign"]:
            U = list(torch._foreach_sign(U))
        if group["second_moment"] == "gradient":
            V = self._buffers(params, "second_moment")
            torch._foreach_mul_(V, group["beta2"])
            torch._foreach_addcmul_(V, grads, grads, value=1 - group["beta2"])
            roots = torch._foreach_add(torch._foreach_sqrt(V), group["eps"])
            U = list(torch._foreach_div(U, roots))
        return U

    def _momentum(self, p: Tensor, group: Group) -> float:
        """The momentum of a parameter's next step. Counts steps if the momentum changes."""
        warmup, cooldown = group["momentum_warmup"], group["momentum_cooldown"]
        full: float = group["momentum"]
        if not (warmup or cooldown):
            return full
        done = self.state[p].get("step", 0)
        self.state[p]["step"] = done + 1
        up = 1 - done / warmup if warmup else 0.0
        down = 1 - (group["momentum_horizon"] - 1 - done) / cooldown if cooldown else 0.0
        away = min(max(up, down, 0.0), 1.0)
        return full + away * (group["momentum_start"] - full)

    def _blocks(self, p: Tensor, U: Tensor, group: Group) -> Iterator[Block]:
        """The matrices stacked in a parameter."""
        splits = list(group["splits"] or (p.size(0),))
        lr, kind = float(group["lr"]), group["second_moment"]
        decay = lr * group["weight_decay"] if group["cautious"] else 0.0
        moments: Sequence[Tensor | None] = [None] * len(splits)
        if kind in ("row", "entry"):
            (V,) = self._buffers([p], "second_moment", cols=1 if kind == "row" else None)
            moments = V.split(splits)
        parts = zip(U.split(splits), p.split(splits), moments, strict=True)
        for part, W, moment in parts:
            rows, cols = W.shape
            step_size = lr * lr_scale(rows, cols, group["adjust_lr_fn"])
            radius = (rows / 3) ** 0.5 if group["adjust_lr_fn"] == "hyperball" else 0.0
            if rows > cols:
                part, W, moment = part.mT, W.mT, None if moment is None else moment.mT
            yield Block(part, W, moment, step_size, decay, radius)
