"""Muon: momentum, orthogonalised by a Newton-Schulz iteration. Needs torch alone: copy it anywhere.

    from muon import Muon
    optimizer = Muon(hidden_matrices, lr=0.02)

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) is for the hidden 2-D weights of a
network; embeddings, the output head, gains and biases belong to another optimizer such as AdamW.
Matrices of one shape are orthogonalised as one batch, over all parameters and parameter groups,
and wide ones through their Gram matrix, which makes a step on a CPU several times cheaper than
one matrix after another (`bench/optimizer_step.py`).

Shapes: W is (out, in); K matrices in a batch, m <= n their smaller and larger side.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

Coefficients = tuple[tuple[float, float, float], ...]

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
) -> Tensor:
    """Approximate polar factor of each matrix: U V^T of its singular value decomposition.

    X: (K, m, n), any m and n, in the dtype to compute in. Returns a new tensor like X. Its
    singular values are near 1, not 1: with five steps of "jordan", within [0.68, 1.13] where the
    input's were at least 0.01 of its Frobenius norm (Jordan et al. 2024). Zero gives zero. `eps`
    bounds the norm from below; a small one keeps the result independent of the input's scale.
    """
    abc = [coefficients[min(i, len(coefficients) - 1)] for i in range(steps)]
    transposed = X.size(-2) > X.size(-1)
    if transposed:
        X = X.mT
    wide = torch.promote_types(X.dtype, torch.float32)  # eps underflows in half precision
    norm = torch.linalg.vector_norm(X, dim=(-2, -1), keepdim=True, dtype=wide)
    X = (X / norm.clamp(min=eps)).to(X.dtype)
    X = (_gram_iteration if _gram_pays(X, abc) else _iteration)(X, abc)
    return X.mT if transposed else X


def _iteration(X: Tensor, abc: list[tuple[float, float, float]]) -> Tensor:
    """The iteration as published, 2nm^2 + 2m^3 + 2nm^2 FLOPs a step."""
    for a, b, c in abc:
        A = X @ X.mT  # (K, m, m)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)
        X = torch.baddbmm(X, B, X, beta=a)
    return X


def _gram_iteration(X: Tensor, abc: list[tuple[float, float, float]]) -> Tensor:
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


def _gram_pays(X: Tensor, abc: list[tuple[float, float, float]]) -> bool:
    """Whether the Gram iteration is both cheaper and accurate enough.

    A rounding error in R, relative to its largest eigenvalue, grows by the square of the slope
    at 0, so half precision and steep coefficients must take the published form.
    """
    m, n = X.shape[-2:]
    direct = len(abc) * (4 * n * m**2 + 2 * m**3)
    gram = 4 * n * m**2 + (8 * len(abc) - 6) * m**3
    error = prod(a for a, _, _ in abc) ** 2 * torch.finfo(X.dtype).eps
    return gram < direct and error < 0.1


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
    for p in group["params"]:
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
            iteration = (dtype, group["ns_coefficients"], group["ns_steps"], group["eps"])
            for p, update in zip(params, updates, strict=True):
                splits = list(group["splits"] or (p.size(0),))
                for block, W in zip(update.split(splits), p.split(splits), strict=True):
                    step_size = group["lr"] * lr_scale(W.size(0), W.size(1), group["adjust_lr_fn"])
                    if W.size(0) > W.size(1):
                        block, W = block.mT, W.mT
                    batches[W.shape, W.device, *iteration].append((block, W, step_size))
        for (_, _, dtype, name, steps, eps), batch in batches.items():
            coefficients = COEFFICIENTS[name] if isinstance(name, str) else name
            X = torch.stack([block for block, _, _ in batch]).to(dtype)
            for O, (_, W, step_size) in zip(  # noqa: E741
                newton_schulz(X, coefficients, steps, eps), batch, strict=True
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
