"""What is known of a race while it runs: the runs of the current heat, and the time left.

The lanes are of the runs of one seed. They share the machine: they take turns of a few steps, as a
heat, or run one after the other. Each run reports to its lane. `tracking.live` shows the lanes.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tracking.crossing import first_met
from tracking.schema import DIVERGED, Run, Validation


@dataclass(frozen=True)
class Progress:
    """What a run reports, off the clock, whenever its losses are read."""

    step: int  # done
    steps: int  # of its schedule
    seconds: float  # on its training clock
    train_loss: float  # nats per token
    val_loss: float | None  # nats per token, where it was validated


OnProgress = Callable[[Progress], None]


class Lane:
    """One run of the current heat, from its warm-up on."""

    def __init__(self, board: "Scoreboard", label: str, seed: int, steps: int) -> None:
        self.label, self.seed, self.steps = label, seed, steps
        self.step, self.seconds = 0, 0.0  # steps done; seconds on the training clock
        self.train_loss: float | None = None  # the newest, nats per token
        self.validations: list[tuple[int, float]] = []  # steps and losses
        self.run: Run | None = None  # when finished
        self._board = board

    def watch(self, progress: Progress) -> None:
        """Take a report of the run."""
        # The first report comes after a warm-up: it says nothing of the pace of the race.
        self._board.tick(progress.seconds - self.seconds if self.step else None)
        self.step, self.seconds = progress.step, progress.seconds
        self.train_loss = progress.train_loss
        if progress.val_loss is not None:
            self.validations.append((progress.step, progress.val_loss))
        self._board.show(self, progress)

    def go_on(self, points: Sequence[Validation], seconds: float) -> None:
        """Take the validations of a run that goes on from a checkpoint, and its training clock."""
        if points:
            self.step, self.seconds = points[-1].step, seconds
            self.train_loss = points[-1].train_loss
            self.validations = [(point.step, point.val_loss) for point in points]

    def finish(self, run: Run) -> None:
        """Take the row of the run: the run is finished and recorded."""
        self._board.tick(None)
        self.end(run)
        self._board.runs.append(run)
        self._board.show(self, run)

    def end(self, run: Run) -> None:
        """Show the row of a finished run.

        Of a run that ended before the race was resumed, only the last validation is known.
        """
        self.step, self.seconds, self.run = run.steps, run.train_seconds, run
        if not self.validations and run.final_loss is not None:
            self.validations.append((run.steps, run.final_loss))

    @property
    def distance(self) -> float | None:
        """The last validation loss minus the target; None before the first validation."""
        return self.validations[-1][1] - self._board.target if self.validations else None

    @property
    def met_at(self) -> float | None:
        """The step at which the run met the target, interpolated as in its row."""
        if self.run:
            return self.run.steps_to_target
        met = first_met([loss for _, loss in self.validations], self._board.target)
        if met is None:
            return None
        index, fraction = met
        before, after = self.validations[max(index - 1, 0)][0], self.validations[index][0]
        return before + fraction * (after - before)

    def standing(self, short: bool = False) -> str:
        """The outcome of the run, or how far the run is from the target; in 10 characters if short.

        Empty before the first validation.
        """
        if self.run and self.run.status == DIVERGED:
            return "diverged" if short else f"diverged at step {self.step}"
        if self.met_at is not None:
            return f"{'at' if short else 'reached at step'} {self.met_at:.1f}"
        if self.distance is None:
            return ""
        if self.run and not short:
            return f"missed by {self.distance:.4f}"
        return f"{self.distance:+.3f}"


class Scoreboard:
    """A race of `total` runs, with the lanes of its current heat. `show` is told what is new.

    `show` gets a lane and what came in: a report, the row of a finished run, or None for a run
    that begins.
    """

    def __init__(
        self,
        target: float,
        total: int,
        done: Sequence[Run],
        horizons: dict[str, int],
        show: Callable[[Lane, Progress | Run | None], None],
    ) -> None:
        self.target, self.total, self.show = target, total, show
        self.runs = list(done)  # finished
        self.seed: int | None = None  # of the current heat
        self.horizons = dict(horizons)  # steps of each entrant, by its label
        self.lanes: dict[str, Lane] = {}  # of the current heat
        # Wall-clock seconds between reports, and what the runs' clocks advanced meanwhile.
        self._wall, self._clocks, self._ticked = 0.0, 0.0, 0.0

    def enter(self, label: str, seed: int, steps: int) -> Lane:
        """A run joins the heat of its seed, and warms up. Another seed begins a new heat."""
        if seed != self.seed:
            self.seed, self.lanes = seed, {}
            for run in self.runs:  # of the same heat, if the race was stopped in its midst
                if run.seed == seed:
                    self.lanes[run.label] = Lane(self, run.label, seed, run.steps_planned)
                    self.lanes[run.label].end(run)
        self.horizons[label] = steps
        lane = self.lanes[label] = Lane(self, label, seed, steps)
        self.tick(None)
        self.show(lane, None)
        return lane

    def tick(self, seconds: float | None) -> None:
        """Note that a run's clock advanced by some seconds since its last report.

        None: the time since the last tick was not spent on steps and validations.
        """
        now = time.monotonic()
        if seconds is not None:
            self._wall += now - self._ticked
            self._clocks += seconds
        self._ticked = now

    def finished(self, label: str) -> list[Run]:
        """The finished runs of an entrant."""
        return [run for run in self.runs if run.label == label]

    @property
    def running(self) -> list[Lane]:
        """The lanes whose runs are not finished."""
        return [lane for lane in self.lanes.values() if not lane.run]

    def seconds_left(self, lane: Lane) -> float | None:
        """Wall-clock seconds until a run of this heat ends; None if that is not known.

        Until then, every run of the heat makes as many steps, or ends.
        """
        paces = self._paces()
        if not paces or lane.run:
            return None
        usual = statistics.fmean(paces.values())  # of runs without a report
        most = lane.steps - lane.step
        return sum(
            paces.get(each.label, usual) * min(most, each.steps - each.step)
            for each in self.running
        )

    def race_seconds_left(self) -> float | None:
        """Wall-clock seconds until the race ends; None if that is not known. Heats are alike."""
        costs, paces = [], self._paces()
        for label, steps in self.horizons.items():
            if runs := self.finished(label):
                costs.append(statistics.fmean(run.train_seconds + run.val_seconds for run in runs))
            elif label in paces:
                costs.append(paces[label] * steps)
        if not costs:
            return None
        # The first run compiles; the warm-up of a later run is like the shortest so far.
        warm_up = min((run.compile_seconds for run in self.runs), default=0.0)
        to_come = self.total - len(self.runs) - len(self.running)
        heat = max((self.seconds_left(lane) or 0.0 for lane in self.running), default=0.0)
        return heat + to_come * (statistics.fmean(costs) + warm_up)

    def _paces(self) -> dict[str, float]:
        """Wall-clock seconds of a step, validations included, of each run that has reported."""
        slowdown = max(1.0, self._wall / self._clocks) if self._clocks else 1.0
        return {
            lane.label: slowdown * lane.seconds / lane.step for lane in self.running if lane.step
        }


def duration(seconds: float) -> str:
    """A time left, rounded as estimates are: 20 s, 12 min, 2.5 h."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"
