"""The tuner: the same number of trials for every recipe, and every one of them kept.

    python speedrun.py tune adamw muon --track tiny --trials 32
    python speedrun.py tune adamw muon --stage sweep
    python speedrun.py tune soap:precondition_frequency=1    # what is given is not searched

Four stages, each a set of rows in results/tuning.csv. search: points of a Sobol sequence over the
recipe's ranges and the schedule's, one seed, all at the track's common horizon. refine: a quarter
as many points close to the best, beyond the ranges where it lies at their edge. confirm: the best
few again, with fresh seeds; one that is worse than the leader on the same seeds (one-sided paired
t-test, p < 0.05) gets no more of them. horizon: for those that are left, the shortest horizon at
which every fresh seed meets the track's target, and Student's t-test says that their mean does
(one-sided, p < 0.01): a race has other seeds. The outcome goes to optim/tuned.toml, which names the
trial it came from.

The stage sweep is no part of that search: the lr of the tuned settings times SWEEP, two decades of
it, with everything else as tuned, at the common horizon. It shows how much a wrong lr costs.

A trial that has its row is not run again, so an interrupted search goes on with the same command.
Trials are compared by loss alone: they may share the machine, one `--shard` to a core.
"""

import argparse
import json
import math
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch.quasirandom import SobolEngine

from analysis import stats
from errors import UserError
from optim import Option
from optim.entrants import Entrant, assigned, tuned_settings
from runtime import provenance
from tracking import store
from tracking.files import write_atomic
from tracking.schema import REACHED, SWEEP, Trial

STAGES = ("search", "refine", "confirm", "horizon")
SEARCH_SEED = 1000
FRESH_SEEDS = (1001, 1002, 1003, 1004, 1005)  # races count from 0: none repeats a trial
FEW = 4  # settings that are confirmed and shortened
GRID = 2  # steps between horizons that are tried
FALL = 0.5  # nats by which the loss falls when the horizon is e times as long: guesses start there
MARGIN = 0.02  # nats below the target at which all seeds are expected to meet it
CLOSE = 0.25  # of each range: the width of the box that is refined
EDGE = 0.05  # of a range: a best value nearer to its end draws a warning
REST = ("embed_lr", "head_lr", "vector_lr")  # of AdamW on the rest
SEQUENCE = ("lr", "weight_decay", *REST, "warmup", "cooldown")  # dimensions that recipes share

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


@dataclass(frozen=True)
class Plan:
    """How much is to be done of a study."""

    trials: int
    shard: Shard
    stage: str  # the last one

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1; run with --trials 32")
        if self.stage not in (*STAGES, "sweep"):
            raise UserError(f"--stage {self.stage}: must be one of {', '.join(STAGES)}, sweep")


class Incomplete(Exception):  # noqa: N818
    """Other shards have work to do before the next stage."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The tuner's options."""
    group = parser.add_argument_group("tune")
    group.add_argument("--trials", type=int, default=32, help="of each recipe (default 32)")
    group.add_argument("--shard", default="1/1", metavar="I/N", help="part I of N of the trials")
    group.add_argument(
        "--stage",
        default="horizon",
        help=f"the last of {', '.join(STAGES)} (default); or sweep, of the tuned lr",
    )


def read_shard(text: str) -> Shard:
    """Parse "I/N". Raises UserError."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: must be I/N with 1 <= I <= N; run with --shard 1/2")
    return Shard(int(index), int(count))


def points(
    options: Mapping[str, Option], count: int, around: Settings | None = None
) -> list[Settings]:
    """The first `count` points of a Sobol sequence over the options that have a range.

    With `around`, they fill a box of CLOSE times the ranges around that point. Point i is the same
    for any count. Values have three significant digits. Where no option has a range, all are empty.

    A recipe with AdamW on the rest goes along SEQUENCE, whether it has all of these options or not:
    so point i is the same for the rest in all of them, and none is luckier there than another.
    """
    ranges = {name: option.range for name, option in options.items() if option.range}
    if not ranges or not count:  # no sequence has no dimension, or no point
        return [{}] * count
    shared = SEQUENCE if ranges.keys() & set(REST) else ()
    own = tuple(name for name in ranges if name not in shared)
    unit: dict[str, list[float]] = {}
    for seed, names in enumerate(filter(None, (shared, own))):  # another count, other coordinates
        draws = SobolEngine(len(names), scramble=True, seed=seed).draw(count)
        unit |= dict(zip(names, draws.mT.tolist(), strict=True))
    found = []
    for i in range(count):
        point = {}
        for name, bounds in ranges.items():
            u = unit[name][i]
            place = u if around is None else bounds.where(around[name]) + CLOSE * (u - 0.5)
            point[name] = float(f"{bounds.at(place):.3g}")
        found.append(point)
    return found


class Study:
    """The trials of one recipe on the track of a `speedrun.Trainer`."""

    def __init__(
        self,
        trainer: Any,
        recipe: str,
        options: Mapping[str, Option],
        enter: Callable[[str], Entrant],
        plan: Plan,
        fixed: Settings,
    ) -> None:
        """options: all of an entrant's. enter: settles the options of a spelled entrant.

        fixed: options that are not searched, with their values in every trial.
        """
        self.trainer, self.recipe, self.options = trainer, recipe, options
        self.fixed, self._enter, self.plan = fixed, enter, plan
        self.points = self._points(plan.trials)
        self._root, self._source = Path(trainer.options.results), provenance.program()
        if "steps" in fixed:
            raise UserError(f"{recipe}:steps={fixed['steps']}: the tuner sets it; leave it out")
        if plan.stage == "sweep" and fixed:
            given = ",".join(f"{key}={value}" for key, value in fixed.items())
            raise UserError(f"{recipe}:{given}: a sweep is around tuned settings; leave it out")

    @property
    def steps(self) -> int:
        """The common horizon."""
        steps: int = self.trainer.track.search_steps
        return steps

    @property
    def target(self) -> float:
        """Of the track, nats."""
        target: float = self.trainer.track.target
        return target

    def _points(self, count: int, around: Settings | None = None) -> list[Settings]:
        """As many points of the search; each has the fixed options too."""
        free = {name: option for name, option in self.options.items() if name not in self.fixed}
        return [self.fixed | point for point in points(free, count, around)]

    def _find(self, job: Job) -> Trial | None:
        """The job's row, whichever process wrote it."""
        track, settings = self.trainer.track, self._entrant(job).settings
        key = (track.hash(), self.recipe, job.stage, job.trial, job.seed)
        for row in store.read_trials(self._root):
            if (row.track_hash, row.recipe, row.stage, row.trial, row.seed) == key and (
                row.target in (None, track.target) and self._settings(row.entrant) == settings
            ):
                return row
        return None

    def _settings(self, spelled: str) -> Settings | None:
        """All options of a row's entrant: one that is newer than the row has its default.

        None if the recipe has lost an option that the row names.
        """
        try:
            typed = assigned(spelled, self.options)
        except UserError:
            return None
        return {name: option.default for name, option in self.options.items()} | typed

    def _once(self, job: Job) -> Trial:
        """The job's row; runs it if there is none."""
        trial = self._find(job)
        if trial is None:
            entrant = self._entrant(job)
            facts = provenance.provenance(self.trainer, entrant, job.seed, self._source)
            out = self.trainer.run(entrant, job.seed, only_last=True)
            steps = job.settings["steps"]
            trial = provenance.trial_row(self.trainer, facts, job.stage, job.trial, steps, out)
            store.record_trial(self._root, trial, self._source)
            loss = trial.status if trial.final_loss is None else f"{trial.final_loss:.4f}"
            print(
                f"{self.recipe} {job.stage} {job.trial} seed {job.seed} {steps}: {loss}", flush=True
            )
        return trial

    def _entrant(self, job: Job) -> Entrant:
        values = ",".join(f"{key}={value}" for key, value in job.settings.items())
        return self._enter(f"{self.recipe}:{values}")

    def _all(self, jobs: Sequence[Job]) -> list[Trial]:
        """Do this shard's part of the jobs; the rows of all. Raises Incomplete."""
        for number, job in enumerate(jobs):
            if self.plan.shard.has(number):
                self._once(job)
        rows = [self._find(job) for job in jobs]
        if None in rows:
            raise Incomplete(f"{rows.count(None)} {jobs[0].stage} trials of {self.recipe} are left")
        return [row for row in rows if row]

    def at_horizon(self, stage: str, points: Mapping[int, Settings]) -> list[Trial]:
        """Points by their index, at the common horizon, with the seed of the search."""
        return self._all(
            [
                Job(stage, index, point | {"steps": self.steps}, SEARCH_SEED)
                for index, point in points.items()
            ]
        )

    def _first(self, stage: str, trials: range) -> list[Trial]:
        return self.at_horizon(stage, {index: self.points[index] for index in trials})

    def search(self) -> list[Trial]:
        """Every point of the sequence; the rows, best first."""
        return sorted(self._first("search", range(self.plan.trials)), key=loss_of)

    def refine(self, searched: Sequence[Trial]) -> list[int]:
        """Points close to the best; the indices of the best few of all, best first."""
        first, more = self.plan.trials, self.plan.trials // 4
        best = self.points[searched[0].trial]
        self.points[first:] = self._points(more, around=best)
        refined = self._first("refine", range(first, first + more))
        ranked = sorted([*searched, *refined], key=loss_of)
        return [trial.trial for trial in ranked[:FEW] if trial.final_loss is not None]

    def confirm(self, few: Sequence[int]) -> list[tuple[float, int]]:
        """Fresh seeds for the best few: (mean loss, index) of those that stay, best first."""
        left = list(few)
        losses: dict[int, list[float]] = {index: [] for index in few}
        for seed in FRESH_SEEDS:
            settings = {index: self.points[index] | {"steps": self.steps} for index in left}
            for row in self._all([Job("confirm", *point, seed) for point in settings.items()]):
                losses[row.trial].append(loss_of(row))
            leader = min(left, key=lambda index: statistics.fmean(losses[index]))
            left = [index for index in left if not stats.worse(losses[index], losses[leader])]
        return sorted((statistics.fmean(losses[index]), index) for index in left)

    @property
    def longest(self) -> int:
        """The longest horizon that is tried: one and a half times the common one."""
        return self.steps * 3 // 2 // GRID * GRID

    def shorten(self, confirmed: Sequence[tuple[float, int]]) -> tuple[int, int] | None:
        """(horizon, index) of the shortest horizon that meets the target.

        confirmed: (mean loss at the common horizon, index) of the candidates. Between multiples of
        GRID, of which one fails and a longer one meets the target, up to the longest; a later
        candidate must beat the ones before it. None: nobody meets the target.
        """
        best: tuple[int, int] | None = None
        for loss, index in confirmed:
            fails = 0  # in units of GRID: fails here, and meets, or need not be tried, at `meets`
            meets = best[0] // GRID if best else self.longest // GRID + 1
            seen = [(self.steps, loss)]
            probe = meets - 1 if best else _guess(seen, self.target)
            while meets - fails > 1:
                probe = min(max(probe, fails + 1), meets - 1)
                loss, met = self._meets(index, probe * GRID)
                seen.append((probe * GRID, loss))
                if met:
                    meets, best = probe, (probe * GRID, index)
                elif best and best[1] != index:
                    break  # no better than an earlier candidate
                else:
                    fails = probe
                probe = _guess(seen, self.target)
        return best

    def sweep(self, tuned: Settings) -> list[Trial]:
        """The settings with SWEEP times their lr. Raises UserError if they have none."""
        if "lr" not in tuned:
            raise UserError(
                f"{self.recipe}: no tuned lr to sweep on this track; "
                f"run: python speedrun.py tune {self.recipe}"
            )
        lrs = [float(f"{tuned['lr'] * factor:.3g}") for factor in SWEEP]
        return self.at_horizon("sweep", {i: tuned | {"lr": lr} for i, lr in enumerate(lrs)})

    def _meets(self, index: int, steps: int) -> tuple[float, bool]:
        """Mean loss, and whether all fresh seeds meet the target, by more than chance.

        The first miss decides, and is the last of the mean.
        """
        settings, losses = self.points[index] | {"steps": steps}, []
        for seed in FRESH_SEEDS:
            row = self._once(Job("horizon", index, settings, seed))
            losses.append(loss_of(row))
            if row.status != REACHED:
                return statistics.fmean(losses), False
        return statistics.fmean(losses), stats.meets(losses, self.target)

    def at_edge(self, index: int) -> list[str]:
        """Warnings for the values of a point that lie at an end of their range."""
        warnings = []
        for name, value in self.points[index].items():
            bounds = self.options[name].range
            if name in self.fixed or bounds is None:
                continue
            if value <= bounds.at(EDGE) or value >= bounds.at(1 - EDGE):
                warnings.append(
                    f"{name}={value} is at the edge of its range {bounds.low} to {bounds.high}"
                )
        return warnings


def loss_of(trial: Trial) -> float:
    """Final loss; infinite when diverged."""
    return math.inf if trial.final_loss is None else trial.final_loss


def _guess(seen: Sequence[tuple[int, float]], target: float) -> int:
    """The horizon, in units of GRID, that should meet the target.

    seen: (horizon, loss) so far. From the last two if they tell how fast the loss falls, by FALL
    from the last one otherwise.
    """
    (steps, loss), fall = seen[-1], FALL
    if len(seen) > 1 and seen[-2][0] != steps and math.isfinite(seen[-2][1] - loss):
        fall = (seen[-2][1] - loss) / math.log(steps / seen[-2][0])
        fall = min(max(fall, FALL / 2), FALL * 4)  # two horizons may be within the noise
    ahead = min((loss - target + MARGIN) / fall, 1.0)  # a run that diverged says nothing of it
    return round(steps * math.exp(ahead) / GRID)


def target_from(mean_loss: float) -> float:
    """The target of a track: the confirmed loss of its tuned AdamW, rounded up to 0.01."""
    return math.ceil(mean_loss * 100) / 100


HEADER = """\
# Settings by track and recipe. `trials` are the rows of results/tuning.csv from which the tuner
# (python speedrun.py tune, which writes this file) took them; `missed`: no horizon met the target,
# and `steps` is the longest that was tried; `source` is the public log or pull request that they
# were published in. Track 3 sums gradients over the 524,288 tokens of a batch, which are averaged
# here, so its eps of 1e-10 is divided by that number: the updates are the same.
"""


def write_settings(
    path: Path, track: str, recipe: str, settings: Settings, trial: int, missed: bool = False
) -> None:
    """Put the chosen settings, their horizon among them, into tuned.toml. Raises UserError."""
    document = tomllib.loads(path.read_text()) if path.exists() else {}
    about: Settings = {"trials": [trial]} | ({"missed": True} if missed else {})
    document.setdefault(track, {})[recipe] = settings | about
    lines = [HEADER]
    for track_name, recipes in sorted(document.items()):
        for recipe_name, section in sorted(recipes.items()):
            is_bare = recipe_name.replace("-", "").replace("_", "").isalnum()
            key = recipe_name if is_bare else json.dumps(recipe_name)  # lib:module.Class
            lines.append(f"[{track_name}.{key}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
            lines.append("")
    write_atomic(path, ["\n".join(lines).encode()])  # all other settings are in there too


def conduct(study: Study, tuned: Path) -> None:
    """Go through the stages of the plan; write the outcome of the last to `tuned`.

    Raises Incomplete where it must wait for other shards.
    """
    recipe = study.recipe
    if study.plan.stage == "sweep":
        study.sweep(tuned_settings(study.trainer.track.name, recipe, tuned))
        return
    searched = study.search()
    if searched[0].final_loss is None:
        raise UserError(f"{recipe}: every trial diverged; narrow its ranges in optim/")
    if study.plan.stage == "search":
        return
    few = study.refine(searched)
    if study.plan.stage == "refine":
        return
    confirmed = study.confirm(few)
    for loss, index in confirmed:
        print(f"{recipe}: trial {index}: {loss:.4f} over {len(FRESH_SEEDS)} fresh seeds")
    for warning in study.at_edge(confirmed[0][1]):
        print(f"{recipe}: warning: {warning}; widen it in optim/ and tune again")
    print(f"{recipe} reaches {target_from(confirmed[0][0])} at {study.steps} steps")
    if study.plan.stage == "confirm":
        return
    if study.plan.shard.count > 1:  # each horizon depends on the one before
        raise Incomplete("the horizon stage is for one process")
    shortest = study.shorten(confirmed)
    steps, index = shortest or (study.longest, confirmed[0][1])  # who misses races too
    if shortest is None:
        print(f"{recipe}: no horizon up to {steps} steps meets the target")
    settings = study.points[index] | {"steps": steps}
    track = study.trainer.track.name
    if track == "custom":
        values = ",".join(f"{key}={value}" for key, value in settings.items())
        print(f"{recipe}: best on this custom track: {recipe}:{values}")
        return
    write_settings(tuned, track, recipe, settings, index, missed=shortest is None)
    print(f"{recipe}: {steps} steps with trial {index}, written to {tuned.name}")
