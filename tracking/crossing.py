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
    met = first_met([point.val_loss for point in points], target)
    if met is None:
        return None
    index, fraction = met
    after, before = points[index], points[max(index - 1, 0)]

    def between(low: float, high: float) -> float:
        return low + fraction * (high - low)

    return Crossing(
        step=between(before.step, after.step),
        tokens=between(before.tokens, after.tokens),
        seconds=between(before.train_seconds, after.train_seconds),
    )


def first_met(losses: Sequence[float], target: float) -> tuple[int, float] | None:
    """Index of the first loss at or below a target; None if there is none.

    With it comes the fraction of the way from the loss before to this one, at which a straight line
    meets the target.
    """
    met = next((i for i, loss in enumerate(losses) if loss <= target), None)
    if met is None:
        return None
    after, before = losses[met], losses[max(met - 1, 0)]
    return met, (before - target) / (before - after) if met else 0.0
