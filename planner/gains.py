"""How many times fewer steps Muon needs than AdamW, at about the size of a model.

The gains are those of results/published/speedups.csv, each with its source, and those that the
record of `make scale` shows. A plan takes a range of them and never one number. It counts a gain in
steps, tokens or FLOPs, for which both optimizers were tuned. A gain in seconds already holds the
price of a step, so it is shown and not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import scale
from host.paths import RESULTS
from planner.models import Model
from planner.tables import short

REACH = 3  # a gain counts for models of up to as many times its parameters
LARGEST = 1_000_000_000  # beyond all of them: those that were shown with at least so many
IN_STEPS = ("steps", "tokens", "FLOPs")
MEASURED = RESULTS / "records" / "tiny-scale"


@dataclass(frozen=True)
class Gain:
    """Steps of AdamW over steps of Muon for equal loss, as one source has it."""

    source: str
    basis: str  # steps, tokens, FLOPs or seconds
    params_low: int
    params_high: int
    low: float
    high: float
    tuned: bool

    @property
    def counts(self) -> bool:
        """Whether a plan may use it."""
        return self.tuned and self.basis in IN_STEPS


@dataclass(frozen=True)
class Range:
    """The gains that a plan for one model uses."""

    gains: Sequence[Gain]
    extrapolated: bool  # the model is more than REACH times as large as all of them

    @property
    def low(self) -> float:
        return min(gain.low for gain in self.gains)

    @property
    def high(self) -> float:
        return max(gain.high for gain in self.gains)


def known(measured: Path = MEASURED) -> list[Gain]:
    """All gains, by rising size. Raises UserError for a file that cannot be read."""
    published = [
        Gain(
            f"{row.source}, {short(row.params_high)}",
            row.basis,
            row.params_low,
            row.params_high,
            row.speedup_low,
            row.speedup_high,
            row.tuned,
        )
        for row in scale.published()
    ]
    points = [point for point in scale.measured(measured) if not point.bound]
    own = [
        Gain(
            f"this project, {short(point.params)}, batch {point.batch_tokens:,}",
            "steps",
            point.params,
            point.params,
            point.speedup.low or point.speedup.value,
            point.speedup.high or point.speedup.value,
            True,
        )
        for point in points
    ]
    return sorted([*own, *published], key=lambda gain: (gain.params_high, gain.params_low))


def for_model(model: Model, gains: Sequence[Gain]) -> Range:
    """The gains that count at the size of a model, by the parameters that a token meets.

    They reach within a factor of REACH. If fewer than two do, all that were shown with LARGEST
    parameters or more.
    """
    size = model.active_params
    counted = [gain for gain in gains if gain.counts]
    near = [g for g in counted if g.params_low / REACH <= size <= g.params_high * REACH]
    if len(near) > 1:
        return Range(near, extrapolated=False)
    return Range([gain for gain in counted if gain.params_high >= LARGEST], extrapolated=True)
