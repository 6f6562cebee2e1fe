"""The tuner's sweeps of lr: what a search left to be found by the learning rate alone.

    markdown(trials, league)      # docs/comparison.md shows it

A sweep has the tuned settings with SWEEP times their lr, all with one seed. So a gain is compared
with the spread between seeds: the deviation of the final loss at one horizon, pooled over the
entrants of a league.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from analysis.pairs import detectable_differences
from analysis.table import by_label, markdown_grid
from errors import UserError
from tracking.schema import SWEEP, Run, Trial
from tracking.spelling import display_name, options_of

ALLOWED = 2.0  # deviations between seeds that a search may leave to be found


class Swept(NamedTuple):
    """An optimizer's sweep. Losses are in nats per token, and infinite where a trial diverged."""

    recipe: str
    lr: float  # tuned: the middle one
    loss: float
    best_lr: float
    best: float

    @property
    def gain(self) -> float:
        """How far the best trial ends below the tuned one."""
        return self.loss - self.best if math.isfinite(self.best) else 0.0


def learning_rate(trial: Trial) -> float | None:
    """The option `lr` of a trial's entrant; None if it has none."""
    value = options_of(trial.entrant).get("lr")
    return None if value is None else float(value)


def newest_sweeps(trials: Sequence[Trial], track_hash: str) -> list[Trial]:
    """The sweeps of lr on one track: for each recipe the sweep with its newest row's settings.

    A sweep that was stopped is left out until it is complete.
    """
    of_track = [t for t in trials if t.track_hash == track_hash and t.stage == "sweep"]
    sweeps = sorted(of_track, key=lambda trial: trial.started)
    newest = {trial.recipe: _settings_but_lr(trial) for trial in sweeps}
    kept = [trial for trial in sweeps if _settings_but_lr(trial) == newest[trial.recipe]]
    counts = Counter(trial.recipe for trial in kept)
    return [trial for trial in kept if counts[trial.recipe] == len(SWEEP)]


def swept(sweeps: Sequence[Trial]) -> list[Swept]:
    """What each of the sweeps of `newest_sweeps` found, the largest gain first."""
    found = []
    for recipe in dict.fromkeys(trial.recipe for trial in sweeps):
        points = sorted(_point(trial) for trial in sweeps if trial.recipe == recipe)
        (lr, loss), best = points[len(points) // 2], min(points, key=lambda point: point[1])
        found.append(Swept(recipe, lr, loss, *best))
    return sorted(found, key=lambda each: (-each.gain, each.recipe))


def deviation(league: Sequence[Run]) -> float:
    """Of the final loss between seeds, nats per token. Raises UserError for single runs."""
    for each in detectable_differences(by_label(league)):
        if each.quantity == "loss":
            return each.deviation
    raise UserError(
        f"race {league[0].race} has single runs, which show no spread between seeds; name a race "
        "of several seeds"
    )


def markdown(trials: Sequence[Trial], league: Sequence[Run]) -> str:
    """What the sweeps of the newest trial's track found, beside the spread between seeds."""
    rows = [trial for trial in trials if trial.stage == "sweep"]
    found = swept(newest_sweeps(rows, rows[-1].track_hash)) if rows else []
    if not found:
        raise UserError("no complete sweep of an lr; name a record of `make sweep`")
    spread = deviation(league)
    headings = ["optimizer", "tuned lr", "final loss", "best lr", "its loss", "gain", "in spreads"]
    cells = [
        [
            each.recipe, f"{each.lr:g}", f"{each.loss:.4f}", f"{each.best_lr:g}",
            f"{each.best:.4f}", f"{each.gain:.4f}", f"{each.gain / spread:.1f}",
        ]
        for each in found
    ]  # fmt: skip
    beyond = [display_name(each.recipe) for each in found if each.gain > ALLOWED * spread]
    return (
        f"{markdown_grid(headings, cells)}\n\nA spread is {spread:.4f} nats: the standard "
        "deviation of the final loss between seeds at one horizon, pooled over the entrants of "
        f"race {league[0].race}. More than {ALLOWED:g} spreads below its tuned point: "
        f"{', '.join(beyond) or 'none'}."
    )


def _point(trial: Trial) -> tuple[float, float]:
    """Learning rate and loss of a trial."""
    return learning_rate(trial) or 0.0, math.inf if trial.final_loss is None else trial.final_loss


def _settings_but_lr(trial: Trial) -> dict[str, str]:
    return {key: value for key, value in options_of(trial.entrant).items() if key != "lr"}
