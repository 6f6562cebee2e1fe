"""The search's guide: where the next trials of an optimizer promise most, from the trials so far.

A Gaussian process is fitted to the losses, and trials are proposed where the expected improvement
over the best one is largest, by the formula of Jones et al. 1998, "Efficient Global Optimization",
equation 15. Theirs is for losses without noise. Here the deviation is of one more trial, its noise
included, and the best one is the lowest loss that was seen. So the guide stays near a lucky trial
for longer than theirs would. The process is scikit-learn's: a Matern kernel with a length for each
option, and noise. Losses enter as log(loss - best + SOFTEN), so that a trial far from the best one
does not hide small differences near it; a trial that diverged counts as the worst.

The same trials always give the same proposals, on one kind of processor.
"""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, qmc

from errors import UserError

SOFTEN = 0.05  # nats: losses this close to the best one are told apart about linearly
CANDIDATES = 2048  # points of a Sobol sequence over the box; a power of two
NEAR = 128  # candidates around each of the LEADERS best trials
LEADERS = 4
SCATTER = 0.1  # of the box: standard deviation of these

Array = NDArray[np.float64]
Box = Sequence[tuple[float, float]]  # from where to where, for each coordinate


def check() -> None:
    """Raise UserError if scikit-learn is not installed."""
    if find_spec("sklearn") is None:
        raise UserError(
            "scikit-learn, which guides the search, is not installed; "
            "run: python -m pip install -r requirements-optimizers.txt"
        )


def _targets(losses: Sequence[float]) -> Array:
    """What the process is fitted to."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    worst = max(finite, default=1.0)
    values = np.array([min(loss, worst) for loss in losses])
    return np.log(values - values.min() + SOFTEN)


def _fitted(places: Array, targets: Array, seed: int) -> Any:
    """A GaussianProcessRegressor of the targets (n) at the places (n D)."""
    # Imported here: the package is optional, and only a search needs it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    matern = Matern(np.ones(places.shape[1]), (0.05, 20.0), nu=2.5)
    kernel = ConstantKernel(1.0, (0.05, 20.0)) * matern + WhiteKernel(0.05, (1e-4, 1.0))
    process = GaussianProcessRegressor(
        kernel, normalize_y=True, n_restarts_optimizer=1, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound is no fault
        return process.fit(places, targets)


def _expected_improvement(process: Any, places: Array, best: float) -> Array:
    """How far below the best target each place (n D) is expected to get, (n)."""
    mean, deviation = process.predict(places, return_std=True)
    z = (best - mean) / np.maximum(deviation, 1e-12)
    return deviation * (z * norm.cdf(z) + norm.pdf(z))


def _candidates(places: Array, targets: Array, low: Array, high: Array, seed: int) -> Array:
    """Points of the box: spread evenly, and close to the best trials."""
    spread = qmc.Sobol(len(low), seed=seed).random(CANDIDATES)
    leaders = places[np.argsort(targets, kind="stable")[:LEADERS]]
    noise = np.random.default_rng(seed).normal(0, SCATTER, (len(leaders), NEAR, len(low)))
    near = (leaders[:, None] + noise * (high - low)).reshape(-1, len(low))
    return np.vstack([low + spread * (high - low), np.clip(near, low, high)])


def propose(
    places: Sequence[Sequence[float]],
    losses: Sequence[float],
    boxes: Sequence[Box],
    seed: int,
) -> list[list[float]]:
    """The next places to try, one within each of the boxes.

    places: (n D) coordinates of the trials so far, in which each option's range is from 0 to 1;
    losses: (n) their losses, infinite where a trial diverged. A later proposal takes the earlier
    ones as trials that ended as the process expects.
    """
    known, targets = np.array(places, dtype=np.float64), _targets(losses)
    process, best = _fitted(known, targets, seed), targets.min()
    found: list[list[float]] = []
    for number, box in enumerate(boxes):
        low, high = np.array(box).T
        candidates = _candidates(known, targets, low, high, seed=seed + number)
        gains = _expected_improvement(process, candidates, best)
        chosen = candidates[int(gains.argmax())]
        found.append(chosen.tolist())
        expected = process.predict(chosen[None])
        known, targets = np.vstack([known, chosen]), np.append(targets, expected)
        process.set_params(kernel=process.kernel_, optimizer=None).fit(known, targets)
    return found


def most_promising(
    places: Sequence[Sequence[float]], losses: Sequence[float], pool: Sequence[Sequence[float]]
) -> int:
    """The index of the place in a pool (m D) that the guide would try next."""
    known, targets = np.array(places, dtype=np.float64), _targets(losses)
    process = _fitted(known, targets, seed=0)
    return int(_expected_improvement(process, np.array(pool), targets.min()).argmax())
