"""Where a curve first meets a target loss: the one rule, of the trainer and of `verify`."""

from collections.abc import Sequence
from dataclasses import dataclass

from tracking.schema import Validation


@dataclass(frozen=True)
class Crossing:
    """Where a curve first meets a target."""

    step: float
    tokens: float
    seconds: float  # on the training clock


def crossing(points: Sequence[Validation], target: float) -> Crossing | None:
    """Where a curve first meets a target loss (nats per token); None if it never does.

    That is between the first validation at or below the target and the one before, by linear
    interpolation in the loss; steps, tokens and seconds share the fraction of the way. A curve
    that starts at or below the target meets it at its first validation.
    """
    met = next((i for i, point in enumerate(points) if point.val_loss <= target), None)
    if met is None:
        return None
    after, before = points[met], points[max(met - 1, 0)]
    drop = before.val_loss - after.val_loss
    fraction = (before.val_loss - target) / drop if met else 0.0

    def between(low: float, high: float) -> float:
        return low + fraction * (high - low)

    return Crossing(
        step=between(before.step, after.step),
        tokens=between(before.tokens, after.tokens),
        seconds=between(before.train_seconds, after.train_seconds),
    )
