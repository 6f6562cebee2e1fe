"""Where a curve first meets a target loss. The trainer and the verifier share this rule."""

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

    The crossing is interpolated linearly in the loss, between the first validation at or below the
    target and the validation before it. Steps, tokens and seconds are interpolated with the same
    fraction. A curve that starts at or below the target meets it at its first validation.
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
