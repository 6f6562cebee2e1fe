"""The tuner: the same number of trials for every recipe, and every one of them kept.

    python speedrun.py tune adamw muon --track tiny --trials 32

Three stages, each a set of rows in results/tuning.csv. search: points of a Sobol sequence over the
recipe's ranges and the schedule's, one seed, all at the track's common horizon. confirm: the best
few again, with fresh seeds. horizon: for those, the shortest horizon at which every fresh seed
meets the track's target. The outcome goes to optim/tuned.toml, which names the trial it came from.

A trial that has its row is not run again, so an interrupted search goes on with the same command.
Trials are compared by loss alone: they may share the machine, one `--shard` to a core.
"""

import argparse
import math
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.quasirandom import SobolEngine

from errors import UserError
from optim import Option
from results.schema import REACHED, Trial

STAGES = ("search", "confirm", "horizon")
SEARCH_SEED = 1000
FRESH_SEEDS = (1001, 1002, 1003)  # races count from 0, so no race repeats a trial
FEW = 3  # settings that are confirmed and shortened
GRID = 5  # steps between horizons that are tried
EDGE = 0.05  # of a range: a best value nearer to its end draws a warning

Settings = dict[str, Any]


class Job(NamedTuple):
    """A trial to run."""

    stage: str
    trial: int  # index of the point
    settings: Settings  # the point, and its horizon as `steps`
    seed: int


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of the work, counted from 1."""

    index: int = 1
    count: int = 1

    def has(self, item: int) -> bool:
        return item % self.count == self.index - 1


class Incomplete(Exception):
    """Other shards have work to do before the next stage."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The tuner's options."""
    group = parser.add_argument_group("tune")
    group.add_argument("--trials", type=int, default=32, help="of each recipe (default 32)")
    group.add_argument("--shard", default="1/1", metavar="I/N", help="part I of N of the trials")
    group.add_argument(
        "--stage", default="horizon", help="last stage: search, confirm or horizon (default)"
    )


def read_shard(text: str) -> Shard:
    """Parse "I/N". Raises UserError."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: must be I/N with 1 <= I <= N; run with --shard 1/2")
    return Shard(int(index), int(count))


def points(options: Mapping[str, Option], trials: int) -> list[Settings]:
    """The first `trials` points of the Sobol sequence over the options that have a range.

    Point i is the same for any number of trials. Values have three significant digits.
    """
    ranges = {name: option.range for name, option in options.items() if option.range}
    unit = SobolEngine(len(ranges), scramble=True, seed=0).draw(trials).tolist()
    return [
        {
            name: float(f"{bounds.at(u):.3g}")
            for (name, bounds), u in zip(ranges.items(), row, strict=True)
        }
        for row in unit
    ]


class Study:
    """The trials of one recipe on one track."""

    def __init__(
        self,
        options: Mapping[str, Option],
        trials: int,
        steps: int,
        shard: Shard,
        find: Callable[[Job], Trial | None],
        run: Callable[[Job], Trial],
    ) -> None:
        """steps: the common horizon. find: the row of a job, if any process has run it."""
        if trials < 1:
            raise UserError(f"--trials {trials}: must be at least 1; run with --trials 32")
        self.options, self.steps, self.shard = options, steps, shard
        self.points = points(options, trials)
        self._find, self._run = find, run

    def _once(self, job: Job) -> Trial:
        return self._find(job) or self._run(job)

    def _all(self, jobs: Sequence[Job]) -> list[Trial]:
        """Do this shard's part of the jobs; the rows of all. Raises Incomplete."""
        for number, job in enumerate(jobs):
            if self.shard.has(number):
                self._once(job)
        rows = [self._find(job) for job in jobs]
        if None in rows:
            raise Incomplete(f"{rows.count(None)} {jobs[0].stage} trials are left to other shards")
        return [row for row in rows if row]

    def search(self) -> list[int]:
        """Every point at the common horizon; the indices of the best few, best first."""
        jobs = [
            Job("search", index, point | {"steps": self.steps}, SEARCH_SEED)
            for index, point in enumerate(self.points)
        ]
        ranked = sorted(self._all(jobs), key=loss_of)
        return [trial.trial for trial in ranked[:FEW] if trial.final_loss is not None]

    def confirm(self, few: Sequence[int]) -> list[tuple[float, int]]:
        """Fresh seeds for the best few: (mean loss, index), best first."""
        jobs = [
            Job("confirm", index, self.points[index] | {"steps": self.steps}, seed)
            for index in few
            for seed in FRESH_SEEDS
        ]
        rows = self._all(jobs)
        return sorted(
            (statistics.fmean(loss_of(row) for row in rows if row.trial == index), index)
            for index in few
        )

    def shorten(self, candidates: Sequence[int]) -> tuple[int, int] | None:
        """(horizon, index) of the shortest horizon whose fresh seeds all meet the target.

        Bisection over multiples of GRID up to one and a half times the common horizon; a later
        candidate must beat the ones before it. None: nobody meets the target.
        """
        best: tuple[int, int] | None = None
        for index in candidates:
            fails = 0  # in units of GRID: fails here, and meets, or need not be tried, at `meets`
            meets = best[0] // GRID if best else self.steps * 3 // 2 // GRID + 1
            probe = meets - 1 if best else self.steps // GRID
            while meets - fails > 1:
                if self._meets(index, probe * GRID):
                    meets, best = probe, (probe * GRID, index)
                elif best and best[1] != index:
                    break  # no better than an earlier candidate
                else:
                    fails = probe
                probe = (fails + meets) // 2
        return best

    def _meets(self, index: int, steps: int) -> bool:
        settings = self.points[index] | {"steps": steps}
        jobs = [Job("horizon", index, settings, seed) for seed in FRESH_SEEDS]
        return all(self._once(job).status == REACHED for job in jobs)

    def at_edge(self, index: int) -> list[str]:
        """Warnings for the values of a point that lie at an end of their range."""
        warnings = []
        for name, value in self.points[index].items():
            bounds = self.options[name].range
            assert bounds is not None
            if value <= bounds.at(EDGE) or value >= bounds.at(1 - EDGE):
                warnings.append(
                    f"{name}={value} is at the edge of its range {bounds.low} to {bounds.high}"
                )
        return warnings


def loss_of(trial: Trial) -> float:
    """Final loss; infinite when diverged."""
    return math.inf if trial.final_loss is None else trial.final_loss


def target_from(mean_loss: float) -> float:
    """The target of a track: the confirmed loss of its tuned AdamW, rounded up to 0.01."""
    return math.ceil(mean_loss * 100) / 100


HEADER = """\
# Settings that the tuner chose: a section per track and recipe, `trials` being the rows of
# results/tuning.csv they came from. Written by: python speedrun.py tune
"""


def write_settings(path: Path, track: str, recipe: str, settings: Settings, trial: int) -> None:
    """Put the chosen settings, their horizon among them, into tuned.toml."""
    document = tomllib.loads(path.read_text()) if path.exists() else {}
    document.setdefault(track, {})[recipe] = settings | {"trials": [trial]}
    lines = [HEADER]
    for track_name, recipes in sorted(document.items()):
        for recipe_name, section in sorted(recipes.items()):
            lines.append(f"[{track_name}.{recipe_name}]")
            lines += [f"{key} = {value}" for key, value in section.items()]
            lines.append("")
    path.write_text("\n".join(lines))


def conduct(study: Study, recipe: str, track: str, stage: str, tuned: Path) -> None:
    """Go through the stages as far as `stage`; write the outcome of the last to `tuned`."""
    if stage not in STAGES:
        raise UserError(f"--stage {stage}: must be one of {', '.join(STAGES)}")
    few = study.search()
    for index in few:
        for warning in study.at_edge(index):
            print(f"{recipe}: trial {index}: {warning}")
    if stage == "search":
        return
    confirmed = study.confirm(few)
    for loss, index in confirmed:
        print(f"{recipe}: trial {index}: {loss:.4f} over {len(FRESH_SEEDS)} fresh seeds")
    print(f"{recipe} reaches {target_from(confirmed[0][0])} at the common horizon")
    if stage == "confirm":
        return
    shortest = study.shorten([index for _, index in confirmed])
    if shortest is None:
        print(f"{recipe}: no horizon tried meets the target; {tuned.name} stays as it is")
        return
    steps, index = shortest
    write_settings(tuned, track, recipe, study.points[index] | {"steps": steps}, index)
    print(f"{recipe}: {steps} steps with trial {index}, written to {tuned.name}")
