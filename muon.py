"""Muon: momentum, orthogonalised by a Newton-Schulz iteration. Needs torch alone: copy it anywhere.

    from muon import Muon
    optimizer = Muon(hidden_matrices, lr=0.02)

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is for the hidden 2-D weights of a
network; embeddings, the output head, gains and biases belong to another optimizer such as AdamW.
NorMuon, AdaMuon, Muon^2, MuonH and Muon Split are options of the class, off by default.
Matrices of one shape are orthogonalised as one batch, over all parameters and parameter groups,
and wide ones through their Gram matrix, which makes a step on a CPU several times cheaper than
one matrix after another (`bench/optimizer_step.py`). On a GPU each shape gets the fastest way to
iterate, measured at its first step; `optim/kernels` adds one that uses the symmetry of X X^T.

A step waits for the device only where it measures. After an eager first step nothing in
`newton_schulz` waits or changes from step to step, as a CUDA graph and torch.compile require. In
`Muon.step` the learning rate, weight decay and momentum are Python numbers: a captured graph would
keep those of its capture, so it has to be captured anew when they change.

Shapes: W is (out, in); K matrices in a batch, m <= n their smaller and larger side.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]
Iteration = Callable[[Tensor, Coefficients], Tensor]  # of X (K m n), m <= n, norms at most 1


def _of(s: float, table: Coefficients) -> Coefficients:
    """The coefficients that do to X what `table` does to X / s."""
    return tuple((a / s, b / s**3, c / s**5) for a, b, c in table)


# Amsel et al. 2505.16932: the best polynomial at each step for the singular values left by the one
# before, from 1e-3 up.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
# The same with a cushion of 2 and a safety of 2%, for five steps: modded-nanogpt's and nanochat's.
_CUSHIONED = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
# (a, b, c) of each step X <- a X + b (X X^T) X + c (X X^T)^2 X; the last one repeats. Polar Express
# divides X by more than its norm, for which the first step accounts here.
COEFFICIENTS: dict[str, Coefficients] = {
    # Jordan et al. 2024: the steepest slope at 0 that lands in about [0.7, 1.2] after five steps.
    "jordan": ((3.4445, -4.7750, 2.0315),),
    # Converges to 1 exactly, slowly: 12 steps in the fixed setting of the optimization track.
    "stable": ((2.0, -1.5, 0.5),),
    "polar-express": (*_of(1.02, _CUSHIONED[:1]), *_CUSHIONED[1:]),
    # As in the paper, with its safety of 1% in all steps but the last: for five steps or eight.
    "polar-express-1.01": (
        *_of(1.01, _of(1.01, _POLAR_EXPRESS[:1])),
        *_of(1.01, _POLAR_EXPRESS[1:]),
        (1.875, -1.25, 0.375),
    ),
    # The others are for as many steps as they have. Found by You Jiacheng for modded-nanogpt.
    "you": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
    # Grishina et al. 2506.10935: by Chebyshev's alternation.
    "cans": (
        (8.4703, -25.1081, 18.6293),
        (4.1828, -3.1087, 0.5806),
        (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074),
        (2.2737, -1.6447, 0.4162),
    ),
    # Emerging-Optimizers': without the fifth power.
    "cubic5": (
        (3.3656576, -3.3420992, 0.0),
        (2.5744352, -1.4957376, 0.0),
        (2.5368962, -1.4312570, 0.0),
        (2.4418906, -1.2764040, 0.0),
        (2.2230472, -0.9630650, 0.0),
    ),
    # Eight steps that are steep and two that converge.
    "deepseek-v4": ((3.4445, -4.7750, 2.0315),) * 8 + ((2.0, -1.5, 0.5),) * 2,
}


def newton_schulz(
    X: Tensor,
    coefficients: Coefficients = COEFFICIENTS["jordan"],
    steps: int = 5,
    eps: float = 1e-15,
    backend: str = "auto",
) -> Tensor:
    """Approximate polar factor of each matrix: U V^T of its singular value decomposition.

    X: (K, m, n), any m and n, in the dtype to compute in. Returns a new tensor like X. Its
    singular values are near 1, not 1: with five steps of "jordan", within [0.68, 1.13] where the
    input's were at least 0.01 of its Frobenius norm (Jordan et al. 2024). Zero gives zero. `eps`
    bounds the norm from below; a small one keeps the result independent of the input's scale.
    `backend`: see `choose`.
    """
    abc = _each(coefficients, steps)
    transposed = X.size(-2) > X.size(-1)
    if transposed:
        X = X.mT
    wide = torch.promote_types(X.dtype, torch.float32)  # eps underflows in half precision
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=wide)
    X = (X / norm.clamp(min=eps)).to(X.dtype)
    X = BACKENDS[choose(X.shape, X.dtype, X.device, abc, backend)].iterate(X, abc)
    return X.mT if transposed else X


def _each(coefficients: Coefficients, steps: int) -> Coefficients:
    """The coefficients of each step: the last ones repeat."""
    return tuple(coefficients[min(i, len(coefficients) - 1)] for i in range(steps))


def _iteration(X: Tensor, abc: Coefficients) -> Tensor:
    """The iteration as published, 2nm^2 + 2m^3 + 2nm^2 FLOPs a step."""
    for a, b, c in abc:
        A = X @ X.mT  # (K, m, m)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X


def _gram_iteration(X: Tensor, abc: Coefficients) -> Tensor:
    """The same polynomial, iterated on the Gram matrix R = X X^T: only two products see n.

    With P = aI + bR + cR^2, a step is Z <- P Z, R <- P R P, and the result is Z X. All of them
    are polynomials in R and commute.
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
    """A rounding error in R, relative to its largest eigenvalue, grows by the square of the slope
    at 0, so half precision and steep coefficients must take the published form. At the bound, the
    result is off by less than 1e-3."""
    return prod([a for a, _, _ in abc]) ** 2 * torch.finfo(dtype).eps < 0.15


def _gram_is_cheaper(m: int, n: int, steps: int) -> bool:
    """Whether the Gram iteration has fewer FLOPs than the published one."""
    return 4 * n * m**2 + (8 * steps - 6) * m**3 < steps * (4 * n * m**2 + 2 * m**3)


class Backend(NamedTuple):
    """A way to iterate, and where it is available and accurate."""

    iterate: Iteration
    applies: Callable[[torch.device, torch.dtype, Coefficients], bool]


# All equal but for rounding. A file that adds "name-variant" offers it as a variant of "name".
BACKENDS = {
    "plain": Backend(_iteration, lambda *_: True),
    "gram": Backend(_gram_iteration, _gram_is_accurate),
}

# What was found fastest, by (backend, shape, dtype, coefficients), for the GPU of this process.
# Processes that hold the same weights must also round alike: give all of them the first one's.
CHOSEN: dict[tuple[Any, ...], str] = {}
ROUNDS = 5  # of the measurement
MARGIN = 0.97  # of the first candidate's time, which another one must stay below


def choose(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    abc: Coefficients,
    backend: str = "auto",
) -> str:
    """The name in BACKENDS to iterate with on X (K, m, n).

    "auto" takes the fastest: by its FLOPs on a CPU, by measurement, once a process for each shape
    (`CHOSEN`), on a GPU, unless the step is being compiled or captured, when the published form is
    taken. "plain" is the published form; any other name is taken as it is, its fastest variant if
    it has several. The choice moves results by rounding alone. Raises ValueError where nothing of
    that name applies.
    """
    if backend == "auto" and device.type != "cuda":
        cheaper = _gram_is_cheaper(shape[-2], shape[-1], len(abc))
        return "gram" if cheaper and _gram_is_accurate(device, dtype, abc) else "plain"
    names = candidates(dtype, device, abc, backend)
    if len(names) == 1 or device.type != "cuda":
        return names[0]
    key = (backend, *shape, dtype, abc)
    if key not in CHOSEN:
        if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
            return names[0]
        CHOSEN[key] = _fastest(names, shape, dtype, device, abc)
    return CHOSEN[key]


def candidates(
    dtype: torch.dtype, device: torch.device, abc: Coefficients, backend: str
) -> list[str]:
    """The names in BACKENDS that `backend` stands for and that apply. Raises ValueError."""
    names = [name for name in BACKENDS if backend in ("auto", name, name.partition("-")[0])]
    if not names:
        known = dict.fromkeys(["auto", *(name.partition("-")[0] for name in BACKENDS)])
        raise ValueError(f"ns_backend={backend!r}: must be one of {', '.join(known)}")
    fit = [name for name in names if BACKENDS[name].applies(device, dtype, abc)]
    if not fit:
        raise ValueError(
            f"ns_backend={backend!r}: not for {dtype} on {device.type} with these coefficients; "
            "must be auto or plain"
        )
    return fit


def _fastest(
    names: Sequence[str],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    abc: Coefficients,
) -> str:
    """The name whose iteration is fastest on a random X, by the best of ROUNDS taken in turns.

    The first round compiles and so is nobody's best. What fails is out, with a warning: Triton is
    also installed where it finds no C compiler. The first name may not fail.
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
    best = min(times, key=times.__getitem__)
    return best if times[best] < MARGIN * times[names[0]] else names[0]


def _milliseconds(iterate: Iteration, X: Tensor, abc: Coefficients) -> float:
    """One iteration on a GPU, launches included."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    iterate(X, abc)
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended)


def lr_scale(rows: int, cols: int, adjust_lr_fn: str) -> float:
    """Factor on the learning rate of a matrix; the first two names are torch.optim.Muon's.

    "original": sqrt(max(1, rows / cols)), Jordan's. "match_rms_adamw": 0.2 sqrt(max(rows, cols)),
    which gives the update AdamW's root mean square (Liu et al. 2502.16982, section 2.2). Those in
    UNIT are of an update divided by its Frobenius norm. "exact_rms": 0.2 sqrt(rows cols), whose
    root mean square is 0.2 also where it is not orthogonal. "hyperball": 1; see Muon.
    """
    if adjust_lr_fn == "original":
        return max(1.0, rows / cols) ** 0.5
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * max(rows, cols) ** 0.5
    if adjust_lr_fn in UNIT:
        return 0.2 * (rows * cols) ** 0.5 if adjust_lr_fn == "exact_rms" else 1.0
    known = f"original, match_rms_adamw, {' or '.join(UNIT)}"
    raise ValueError(f"adjust_lr_fn={adjust_lr_fn!r}: must be {known}")


UNIT = ("exact_rms", "hyperball")
SECOND_MOMENTS = ("none", "gradient", "row", "entry")


def _check(group: dict[str, Any]) -> None:
    """Raise ValueError for options or parameters that Muon cannot take."""
    name = group["ns_coefficients"]
    for key, names in (("ns_coefficients", COEFFICIENTS), ("second_moment", SECOND_MOMENTS)):
        if isinstance(group[key], str) and group[key] not in names:
            raise ValueError(f"{key}={group[key]!r}: must be one of {', '.join(names)}")
    for key, low, high in (
        ("lr", 0.0, float("inf")),
        ("weight_decay", 0.0, float("inf")),
        ("momentum", 0.0, 1.0),
        ("momentum_start", 0.0, 1.0),
        ("momentum_warmup", 0, float("inf")),
        ("momentum_cooldown", 0, float("inf")),
        ("beta2", 0.0, 1.0),
        ("ns_steps", 1, 100),
    ):
        if not low <= group[key] < high:
            raise ValueError(f"{key}={group[key]}: must be at least {low} and below {high}")
    if group["momentum_cooldown"] > group["momentum_horizon"]:
        raise ValueError(
            f"momentum_cooldown={group['momentum_cooldown']}: must be the last steps of a run of "
            f"momentum_horizon={group['momentum_horizon']}; give its number of steps"
        )
    lr_scale(1, 1, group["adjust_lr_fn"])
    if group["adjust_lr_fn"] == "hyperball" and group["weight_decay"]:
        raise ValueError(
            f"weight_decay={group['weight_decay']}: must be 0 with adjust_lr_fn='hyperball', "
            "which keeps the norm of each matrix"
        )
    abc = _each(COEFFICIENTS[name] if isinstance(name, str) else name, group["ns_steps"])
    for p in group["params"]:
        if group["ns_backend"] != "auto":
            candidates(group["ns_dtype"] or p.dtype, p.device, abc, group["ns_backend"])
        rows = sum(group["splits"] or p.shape[:1])
        if p.ndim != 2 or rows != p.size(0):
            raise ValueError(
                f"shape {tuple(p.shape)}, splits {group['splits']}: Muon takes 2-D parameters "
                "whose splits add up to their rows"
            )


class Block(NamedTuple):
    """A matrix on its way through a step. It and its views are turned so that rows <= columns."""

    U: Tensor  # to be orthogonalised
    W: Tensor  # the weights, a view of the parameter
    moment: Tensor | None  # of its row or entries, a view of the state, where there is one
    step_size: float
    decay: float  # cautious, relative
    radius: float  # that weights of zero get, where norms are kept, else 0

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
    """X (K m n) over the root of its blocks' moments, which advance; its norms stay the same."""
    moments = [block.moment for block in batch if block.moment is not None]
    V = torch.stack(moments)  # (K m n), or m or n is 1
    V.lerp_(X.square().sum_to_size(V.shape) * (V.numel() / X.numel()), 1 - beta2)
    torch._foreach_copy_(moments, V.unbind())
    equal = X / (V.sqrt() + eps)
    return equal * (_norm(X, eps) / _norm(equal, eps))


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters.

        M <- momentum M + (1 - momentum) G                  (an average, as in torch.optim.Muon)
        U <- (1 - momentum) G + momentum M if nesterov else M
        W <- (1 - lr weight_decay) W - lr scale newton_schulz(U)

    State: one `momentum_buffer` a parameter, and what options add. Gradients are not modified; a
    parameter without one is left alone. All hyperparameters live in the parameter groups, so
    schedulers see them:

    lr: of the update, before `lr_scale`.
    weight_decay: decoupled, multiplied by the unscaled lr.
    splits: row counts of the matrices stacked in each parameter, such as (C, C, C) for a fused
        query-key-value projection, or the rows of each head (Muon Split, GLM-5, 2602.15763); each
        is orthogonalised and scaled on its own. None: one matrix.
    ns_coefficients: a name in COEFFICIENTS or the (a, b, c) of each step.
    ns_dtype: of the iteration; None: of the gradient.
    ns_backend: how it is computed, "auto" or the name of a backend; see `choose`.
    momentum_warmup: steps in which momentum rises from `momentum_start`, linearly.
    momentum_cooldown: steps at the end of the first `momentum_horizon` in which it falls back.
    sign: orthogonalise the sign of U (Si et al. 2507.11005).
    second_moment: what has an average of squares, with `beta2`, and is divided by its root.
        "gradient": U, by that of G (Muon^2, Liu et al. 2604.09967). With O = newton_schulz(U),
        whose norm is then restored, "row": O, by that of its rows (NorMuon, Li et al. 2510.05491);
        "entry": O, entry by entry (AdaMuon, with sign and exact_rms, Si et al. 2507.11005).
    cautious: decay only weights that the update shrinks too (Chen et al. 2510.12402).
    adjust_lr_fn: see `lr_scale`. "hyperball" keeps the norm R of each matrix (MuonH, Wen et al.
        2606.16899): W <- W - lr R O / |O|, then W <- R W / |W|. A matrix of zeros has none to
        keep: its first update gives it that of entries of variance 1 / (3 columns), torch's own.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: str | Coefficients = "jordan",
        ns_steps: int = 5,
        eps: float = 1e-15,
        adjust_lr_fn: str = "original",
        splits: Sequence[int] | None = None,
        ns_dtype: torch.dtype | None = None,
        ns_backend: str = "auto",
        momentum_start: float = 0.85,
        momentum_warmup: int = 0,
        momentum_cooldown: int = 0,
        momentum_horizon: int = 0,
        sign: bool = False,
        second_moment: str = "none",
        beta2: float = 0.95,
        cautious: bool = False,
    ) -> None:
        not_options = ("self", "params", "__class__")
        super().__init__(params, {k: v for k, v in locals().items() if k not in not_options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Raises ValueError for options or parameters that Muon cannot take."""
        super().add_param_group(param_group)
        _check(self.param_groups[-1])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient. Returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Matrices that share a shape and an iteration, wherever they live, form one batch.
        batches: defaultdict[tuple[Any, ...], list[Block]] = defaultdict(list)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            directions = self._directions(params, group)
            if group["weight_decay"] and not group["cautious"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            options = ("ns_coefficients", "ns_steps", "eps", "ns_backend", "beta2")
            shared = (group["ns_dtype"] or directions[0].dtype, *(group[name] for name in options))
            unit = group["adjust_lr_fn"] in UNIT
            for p, U in zip(params, directions, strict=True):
                for block in self._blocks(p, U, group):
                    W, moment = block.W, block.moment
                    shapes = (W.shape, None if moment is None else moment.shape)
                    batches[W.device, shapes, unit, *shared].append(block)
        for (_, _, unit, dtype, name, steps, eps, backend, beta2), batch in batches.items():
            coefficients = COEFFICIENTS[name] if isinstance(name, str) else name
            X = torch.stack([block.U for block in batch]).to(dtype)
            X = newton_schulz(X, coefficients, steps, eps, backend)
            if batch[0].moment is not None:
                X = _equalise(X.to(batch[0].W.dtype), batch, beta2, eps)
            if unit:
                X = X.to(batch[0].W.dtype)
                X = X / _norm(X, eps)
            for block, update in zip(batch, X, strict=True):
                block.move(update, eps)
        return loss

    def _buffers(self, params: list[Tensor], name: str, cols: int | None = None) -> list[Tensor]:
        """A tensor of state for each parameter, zeros at first; `cols`: only as many columns."""
        for p in params:
            if name not in self.state[p]:
                self.state[p][name] = torch.zeros_like(p[:, :cols])
        return [self.state[p][name] for p in params]

    def _directions(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Advance the momentum; what is to be orthogonalised, one a parameter."""
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

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> float:
        """The momentum of a parameter's next step; counts the step where it depends on it."""
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

    def _blocks(self, p: Tensor, U: Tensor, group: dict[str, Any]) -> Iterator[Block]:
        """The matrices stacked in a parameter."""
        splits = list(group["splits"] or (p.size(0),))
        lr, kind = group["lr"], group["second_moment"]
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
