"""A recipe's search for settings: its trials in rounds, its stages, and its shards.

The rows are the truth. A search goes on from the newest row of each number, whichever process,
earlier command or record wrote it, and a point is what its row says, even if a range has changed
since. Trial numbers count on from stage to stage: after 32 trials of the search and 8 of its
refinement, a longer search goes on at 40, and its refinement follows.

`studies.tune` is the command, `studies.points` makes the points.
"""

import itertools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis import stats
from errors import UserError
from optim import Option
from optim.entrants import Entrant, assigned, entrant_options
from speedrun import Outcome, Schedule, Trainer, enter
from studies.points import Settings, end_of, points, proposed, reason
from tracking import spelling, store, tuned
from tracking.schema import DIVERGED, FINISHED, REACHED, SEARCHED, SWEEP, Trial

STAGES = (*SEARCHED, "confirm", "horizon")
OF_TUNED = ("sweep", "standing")  # stages of the settings that are tuned already
SEARCH_SEED = 1000
FRESH_SEEDS = (1001, 1002, 1003, 1004, 1005)  # races count from 0: none repeats a trial
SPREAD = 16  # trials that are spread evenly before the guide proposes others
ROUND = 4  # trials that are proposed together, so that shards can share them
PATIENCE = 3  # times the longest trial so far: how long a shard waits for the others
POLL = 2.0  # seconds
FINALISTS = 4  # settings that are confirmed and shortened
HORIZON_STEP = 2  # steps between horizons that are tried
LOSS_PER_E_FOLD = 0.5  # nats that the loss falls by when the horizon is e times as long: a guess
MARGIN = 0.02  # nats below the target at which all seeds are expected to meet it


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
class Budget:
    """How much is to be done of a study."""

    trials: int
    shard: Shard
    stage: str  # the last one

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UserError(f"--trials {self.trials}: must be at least 1; run with --trials 64")
        if self.stage not in (*STAGES, *OF_TUNED):
            known = ", ".join((*STAGES, *OF_TUNED))
            raise UserError(
                f"--stage {self.stage}: must be one of {known}; leave it out for horizon"
            )


class Incomplete(Exception):  # noqa: N818
    """Other shards must finish their trials before the next stage."""


def read_shard(text: str) -> Shard:
    """Parse "I/N". Raises UserError."""
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise UserError(f"--shard {text}: must be I/N with 1 <= I <= N; run with --shard 1/2")
    return Shard(int(index), int(count))


class Study:
    """The trials of one recipe on the track of a trainer."""

    def __init__(self, trainer: Trainer, base: str, entrant: str, budget: Budget) -> None:
        """base: the track of TRACKS whose tuned settings fill in what a trial leaves out.

        entrant: the recipe, and options that are not searched, with their value in every trial.
        Raises UserError.
        """
        self.trainer, self.base, self.budget = trainer, base, budget
        self.recipe = spelling.recipe_of(entrant)
        self.options = entrant_options(self.recipe, Schedule)
        typed = assigned(entrant, self.options)
        self.fixed = self._lent() | typed
        self.points: dict[int, Settings] = {}  # by the number of the trial
        if "steps" in typed:
            raise UserError(f"{entrant}: the tuner sets the steps; leave them out")
        if budget.stage in OF_TUNED and typed:
            raise UserError(
                f"{entrant}: the stage {budget.stage} is of tuned settings; leave the options out"
            )

    def _lent(self) -> Settings:
        """The tuned values of options that have no range, with which trials run.

        They are part of the outcome: its section of tuned.toml takes the place of theirs.
        """
        section = tuned.find(self.base, self.recipe)
        values = section.settings if section else {}
        return {n: v for n, v in values.items() if n in self.options and not self.options[n].range}

    @property
    def steps(self) -> int:
        """The common horizon."""
        return self.trainer.track.search_steps

    @property
    def target(self) -> float:
        """Of the track, nats."""
        return self.trainer.track.target

    @property
    def free(self) -> dict[str, Option]:
        """The options that are searched."""
        return {
            name: option
            for name, option in self.options.items()
            if option.range and name not in self.fixed
        }

    def _rows(self) -> list[Trial]:
        """The trials of this recipe on this track, in the order in which they were written."""
        key = (self.trainer.track.hash(), self.recipe)
        rows = store.read_trials(self.trainer.options.results)
        return [row for row in rows if (row.track_hash, row.recipe) == key]

    def _past(self) -> dict[int, Trial]:
        """The trials of the search and of its refinement by number; of a number, the newest.

        Left out are rows at another horizon, and rows in which an option that is not searched has
        another value than in this study: they are of another search.
        """
        settings = self._entrant(Job("search", 0, self.fixed, SEARCH_SEED)).settings
        same = {n: v for n, v in settings.items() if n not in self.free and n != "steps"}
        found = {}
        for row in self._rows():
            if row.stage not in SEARCHED or (row.seed, row.steps) != (SEARCH_SEED, self.steps):
                continue
            values = self._settings(row.entrant)
            if values and same.items() <= values.items():
                found[row.trial] = row
        return dict(sorted(found.items()))

    def _find(self, job: Job) -> Trial | None:
        """The job's row, whichever process wrote it."""
        key, settings = (job.stage, job.trial, job.seed), self._entrant(job).settings
        for row in self._rows():
            if (row.stage, row.trial, row.seed) == key and (
                row.target in (None, self.target) and self._settings(row.entrant) == settings
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
            out = self.trainer.run(entrant, job.seed, only_last=True)
            trial = self._row(job, out)
            store.record_trial(self.trainer.options.results, trial, self.trainer.source)
            loss = trial.status if trial.final_loss is None else f"{trial.final_loss:.4f}"
            print(
                f"{self.recipe} {job.stage} {job.trial} seed {job.seed} {trial.steps}: {loss}",
                flush=True,
            )
        return trial

    def _row(self, job: Job, out: Outcome) -> Trial:
        """The row of tuning.csv; only the horizon stage has a target."""
        aims, diverged = job.stage == "horizon", out.status == DIVERGED
        return Trial(
            **self.trainer.facts(out),
            recipe=self.recipe,
            stage=job.stage,
            trial=job.trial,
            steps=job.settings["steps"],
            status=out.status if aims or diverged else FINISHED,
            target=self.target if aims else None,
            final_loss=out.points[-1].val_loss if out.points and not diverged else None,
            train_seconds=out.clock.seconds,
        )

    def _entrant(self, job: Job) -> Entrant:
        return enter(spelling.spell(self.recipe, job.settings), self.base)

    def _all(self, jobs: Mapping[int, Job]) -> list[Trial]:
        """Do this shard's part of the jobs; the rows of all. Raises Incomplete.

        jobs: by the number that says whose they are. It is the same for all shards, whatever each
        of them has found done already.
        """
        for number, job in jobs.items():
            if self.budget.shard.has(number):
                self._once(job)
        rows = [self._find(job) for job in jobs.values()]
        if None in rows and self.budget.shard.count > 1:  # other shards have them
            patience = PATIENCE * max((row.train_seconds for row in self._rows()), default=0.0)
            while None in rows and patience > 0:
                time.sleep(POLL)
                patience -= POLL
                rows = [self._find(job) for job in jobs.values()]
        if None in rows:
            stage = next(iter(jobs.values())).stage
            raise Incomplete(f"{rows.count(None)} {stage} trials of {self.recipe} are left")
        return [row for row in rows if row]

    def at_horizon(self, stage: str, points: Mapping[int, Settings]) -> list[Trial]:
        """Points by their index, at the common horizon, with the seed of the search."""
        return self._all(
            {
                index: Job(stage, index, point | {"steps": self.steps}, SEARCH_SEED)
                for index, point in points.items()
            }
        )

    def search(self) -> list[Trial]:
        """Trials anywhere in the ranges; the rows of all, best first."""
        return self._grow("search", self.budget.trials)

    def refine(self) -> list[int]:
        """Trials close to the best one; the numbers of the finalists among all, best first."""
        ranked = self._grow("refine", self.budget.trials // 4)
        return [trial.trial for trial in ranked[:FINALISTS] if trial.final_loss is not None]

    def _grow(self, stage: str, count: int) -> list[Trial]:
        """Run trials until the stage has `count`; all trials of the search, best first.

        They go on from those that have their rows. A refinement is of the best of the trials before
        it, and its numbers follow theirs.
        """
        while True:
            past, begin, around = self._past(), 0, None
            for number, row in past.items():
                self.points[number] = self._point_of(row)
            if stage == "refine":
                begin = 1 + max(n for n, row in past.items() if row.stage == "search")
                best = min((n for n in past if n < begin), key=lambda n: loss_of(past[n]))
                around = self.points[best]
            first = next(n for n in itertools.count(begin) if n not in past)
            done = sum(past[n].stage == stage for n in past if begin <= n < first)
            if done >= count:
                return sorted(past.values(), key=loss_of)
            self._round(stage, range(first, first + count - done), past, around)

    def _round(
        self, stage: str, numbers: range, past: Mapping[int, Trial], around: Settings | None
    ) -> None:
        """Run those of the numbers that are in the round of the first one.

        Its points follow from the rows of the rounds before it alone, so they are the same in all
        shards, and for a round that was interrupted. The first SPREAD numbers are one round.
        """
        first = numbers[0]
        begin, end = 0, SPREAD
        if first >= SPREAD:
            begin = first - first % ROUND
            end = begin + ROUND
        known = [(self.points[n], loss_of(row)) for n, row in past.items() if n < begin]
        if known and self.free:
            found = proposed(self.free, known, end - begin, begin, around)
        else:
            found = points(self.free, end, around)[begin:]
        fresh = {n: self.fixed | found[n - begin] for n in numbers if n < end}
        self.points |= fresh | {n: self.points[n] for n in fresh if n in past}
        self.at_horizon(stage, {n: self.points[n] for n in fresh})

    def _point_of(self, row: Trial) -> Settings:
        """The point of a row of `_past`."""
        values = self._settings(row.entrant) or {}
        return self.fixed | {name: values[name] for name in self.free}

    def confirm(self, finalists: Sequence[int]) -> list[tuple[float, int]]:
        """Fresh seeds for the finalists: (mean loss, index) of those that stay, best first."""
        left = list(finalists)
        losses: dict[int, list[float]] = {index: [] for index in finalists}
        for seed in FRESH_SEEDS:
            settings = {index: self.points[index] | {"steps": self.steps} for index in left}
            jobs = [Job("confirm", *point, seed) for point in settings.items()]
            for row in self._all(dict(enumerate(jobs))):  # numbers of trials may all be even
                losses[row.trial].append(loss_of(row))
            leader = min(left, key=lambda index: statistics.fmean(losses[index]))
            left = [
                index for index in left if not stats.paired_worse(losses[index], losses[leader])
            ]
        return sorted((statistics.fmean(losses[index]), index) for index in left)

    @property
    def longest(self) -> int:
        """The longest horizon that is tried: one and a half times the common one."""
        return self.steps * 3 // 2 // HORIZON_STEP * HORIZON_STEP

    def shorten(self, confirmed: Sequence[tuple[float, int]]) -> tuple[int, int] | None:
        """(horizon, index) of the shortest horizon that meets the target.

        confirmed: (mean loss at the common horizon, index) of the finalists. Horizons are multiples
        of HORIZON_STEP up to `longest`; the one that is returned meets the target and the next
        shorter one fails. A later finalist must beat the ones before it. None: no finalist meets
        the target.
        """
        best: tuple[int, int] | None = None
        for loss, index in confirmed:
            # In units of HORIZON_STEP: the target is missed at `fails` and met at `meets`, which is
            # also where no search is needed any more.
            fails, meets = 0, (best[0] if best else self.longest + HORIZON_STEP) // HORIZON_STEP
            seen = [(self.steps, loss)]
            probe = meets - 1 if best else _guess(seen, self.target)
            while meets - fails > 1:
                probe = min(max(probe, fails + 1), meets - 1)
                loss, met = self._meets(index, probe * HORIZON_STEP)
                seen.append((probe * HORIZON_STEP, loss))
                if met:
                    meets, best = probe, (probe * HORIZON_STEP, index)
                elif best and best[1] != index:
                    break  # no better than an earlier finalist
                else:
                    fails = probe
                probe = _guess(seen, self.target)
        return best

    def sweep(self, settings: Settings) -> list[Trial]:
        """The settings with SWEEP times their lr. Raises UserError if they have none."""
        if "lr" not in settings:
            raise UserError(
                f"{self.recipe}: no tuned lr to sweep on this track; "
                f"run: python -m studies.tune {self.recipe}"
            )
        lrs = [float(f"{settings['lr'] * factor:.3g}") for factor in SWEEP]
        return self.at_horizon("sweep", {i: settings | {"lr": lr} for i, lr in enumerate(lrs)})

    def standing(self, settings: Settings) -> list[Trial]:
        """The tuned settings at the common horizon, with all fresh seeds.

        A wider search is compared with them under its own conditions: precision, attention, torch.
        Raises UserError if there are none.
        """
        if not settings:
            raise UserError(
                f"{self.recipe}: no tuned settings on this track; "
                f"run: python -m studies.tune {self.recipe}"
            )
        fixed = settings | {"steps": self.steps}
        jobs = [Job("standing", 0, fixed, seed) for seed in FRESH_SEEDS]
        return self._all(dict(enumerate(jobs)))

    def at_edge(self, index: int) -> list[str]:
        """Warnings for the values of a point that a wider range might move."""
        warnings = []
        for name, option in self.free.items():
            bounds, value = option.range, self.points[index][name]
            end = bounds and end_of(bounds, value)
            if bounds and end and not reason(name, bounds, value, self.steps):
                warnings.append(
                    f"{name}={value} is at the {end} end of its range {bounds.low} to {bounds.high}"
                )
        return warnings

    def _meets(self, index: int, steps: int) -> tuple[float, bool]:
        """Mean loss, and whether all fresh seeds meet the target, and so would a further one.

        Stops at the first seed that misses; the mean includes it.
        """
        settings, losses = self.points[index] | {"steps": steps}, []
        for seed in FRESH_SEEDS:
            row = self._once(Job("horizon", index, settings, seed))
            losses.append(loss_of(row))
            if row.status != REACHED:
                return statistics.fmean(losses), False
        return statistics.fmean(losses), stats.next_below_target(losses, self.target)


def loss_of(trial: Trial) -> float:
    """Final loss; infinite when diverged."""
    return math.inf if trial.final_loss is None else trial.final_loss


def _guess(seen: Sequence[tuple[int, float]], target: float) -> int:
    """The horizon, in units of HORIZON_STEP, that should meet the target.

    seen: (horizon, loss) so far. The last two tell how fast the loss falls with the horizon; if
    they do not, it falls by LOSS_PER_E_FOLD.
    """
    (steps, loss), fall = seen[-1], LOSS_PER_E_FOLD
    if len(seen) > 1 and seen[-2][0] != steps and math.isfinite(seen[-2][1] - loss):
        fall = (seen[-2][1] - loss) / math.log(steps / seen[-2][0])
        fall = min(
            max(fall, LOSS_PER_E_FOLD / 2), LOSS_PER_E_FOLD * 4
        )  # two horizons may differ by noise alone
    ahead = min((loss - target + MARGIN) / fall, 1.0)  # a loss after divergence says nothing
    return round(steps * math.exp(ahead) / HORIZON_STEP)
