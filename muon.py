"""Muon: momentum, orthogonalised by a Newton-Schulz iteration. Needs torch alone: copy it anywhere.

    from muon import Muon
    optimizer = Muon(hidden_matrices, lr=0.02)

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is for the hidden 2-D weights of a
network; embeddings, the output head, gains and biases belong to another optimizer such as AdamW.
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
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]
Iteration = Callable[[Tensor, Coefficients], Tensor]  # of X (K m n), m <= n, norms at most 1

# (a, b, c) of each step X <- a X + b (X X^T) X + c (X X^T)^2 X; the last one repeats.
COEFFICIENTS: dict[str, Coefficients] = {
    # Jordan et al. 2024: the steepest slope at 0 that lands in about [0.7, 1.2] after five steps.
    "jordan": ((3.4445, -4.7750, 2.0315),),
    # Converges to 1 exactly, slowly: 12 steps in the fixed setting of the optimization track.
    "stable": ((2.0, -1.5, 0.5),),
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
    at 0, so half precision and steep coefficients must take the published form."""
    return prod([a for a, _, _ in abc]) ** 2 * torch.finfo(dtype).eps < 0.1


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
    """Factor on the learning rate of a matrix, in torch.optim.Muon's spelling.

    "original": sqrt(max(1, rows / cols)), Jordan's. "match_rms_adamw": 0.2 sqrt(max(rows, cols)),
    which gives the update AdamW's root mean square (Liu et al. 2502.16982, section 2.2).
    """
    if adjust_lr_fn == "original":
        return max(1.0, rows / cols) ** 0.5
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * max(rows, cols) ** 0.5
    raise ValueError(f"adjust_lr_fn={adjust_lr_fn!r}: must be original or match_rms_adamw")


def _check(group: dict[str, Any]) -> None:
    """Raise ValueError for options or parameters that Muon cannot take."""
    name = group["ns_coefficients"]
    if isinstance(name, str) and name not in COEFFICIENTS:
        raise ValueError(f"ns_coefficients={name!r}: must be one of {', '.join(COEFFICIENTS)}")
    for key, low, high in (
        ("lr", 0.0, float("inf")),
        ("weight_decay", 0.0, float("inf")),
        ("momentum", 0.0, 1.0),
        ("ns_steps", 1, 100),
    ):
        if not low <= group[key] < high:
            raise ValueError(f"{key}={group[key]}: must be at least {low} and below {high}")
    lr_scale(1, 1, group["adjust_lr_fn"])
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


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters.

        M <- momentum M + (1 - momentum) G                  (an average, as in torch.optim.Muon)
        U <- (1 - momentum) G + momentum M if nesterov else M
        W <- (1 - lr weight_decay) W - lr scale newton_schulz(U)

    State: one `momentum_buffer` a parameter. Gradients are not modified; a parameter without one
    is left alone. All hyperparameters live in the parameter groups, so schedulers see them:

    lr: of the update, before `lr_scale`.
    weight_decay: decoupled, multiplied by the unscaled lr.
    splits: row counts of the matrices stacked in each parameter, such as (C, C, C) for a fused
        query-key-value projection; each is orthogonalised and scaled on its own. None: one matrix.
    ns_coefficients: a name in COEFFICIENTS or the (a, b, c) of each step.
    ns_dtype: of the iteration; None: of the gradient.
    ns_backend: how it is computed, "auto" or the name of a backend; see `choose`.
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
    ) -> None:
        defaults = dict(
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            ns_steps=ns_steps,
            eps=eps,
            adjust_lr_fn=adjust_lr_fn,
            splits=splits,
            ns_dtype=ns_dtype,
            ns_backend=ns_backend,
        )
        super().__init__(params, defaults)

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
        batches: defaultdict[tuple[Any, ...], list[tuple[Tensor, Tensor, float]]]
        batches = defaultdict(list)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = self._momentum(params, group)
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            dtype = group["ns_dtype"] or updates[0].dtype
            options = ("ns_coefficients", "ns_steps", "eps", "ns_backend")
            iteration = (dtype, *(group[name] for name in options))
            for p, update in zip(params, updates, strict=True):
                splits = list(group["splits"] or (p.size(0),))
                for block, W in zip(update.split(splits), p.split(splits), strict=True):
                    step_size = group["lr"] * lr_scale(W.size(0), W.size(1), group["adjust_lr_fn"])
                    if W.size(0) > W.size(1):
                        block, W = block.mT, W.mT
                    batches[W.shape, W.device, *iteration].append((block, W, step_size))
        for (_, _, dtype, name, *rest), batch in batches.items():
            coefficients = COEFFICIENTS[name] if isinstance(name, str) else name
            X = torch.stack([block for block, _, _ in batch]).to(dtype)
            for O, (_, W, step_size) in zip(  # noqa: E741
                newton_schulz(X, coefficients, *rest), batch, strict=True
            ):
                W.add_(O, alpha=-step_size)
        return loss

    def _momentum(self, params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Advance the momentum buffers; the directions to orthogonalise, one a parameter."""
        buffers, mu = [], group["momentum"]
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers.append(self.state[p]["momentum_buffer"])
        grads = [p.grad for p in params if p.grad is not None]
        torch._foreach_lerp_(buffers, grads, 1 - mu)
        return list(torch._foreach_lerp(grads, buffers, mu)) if group["nesterov"] else buffers
