"""The tuner: the same number of trials for every recipe, and every one of them kept.

    python -m studies.tune adamw muon --track tiny --trials 32
    python -m studies.tune adamw muon --stage sweep
    python -m studies.tune soap:precondition_frequency=1    # given options are not searched

Four stages, each a set of rows in results/tuning.csv:

search    points of a Sobol sequence over the ranges of the recipe and of the schedule, with one
          seed, all at the track's common horizon
refine    a quarter as many points close to the best one, beyond the ranges if it lies at an edge
confirm   the best FINALISTS again, with fresh seeds; a finalist that is worse than the leader on
          the same seeds (one-sided paired t-test, p < 0.05) gets no further seed
horizon   for the remaining finalists, the shortest horizon at which every fresh seed meets the
          track's target and Student's t-test says that their mean does (one-sided, p < 0.01),
          because a race has other seeds

The outcome goes to optim/tuned.toml, which names the trial that it came from, and whose settings
races take. With --results FOLDER it goes to FOLDER/tuned.toml, beside its trials, and nowhere else.

The stage `sweep` is not part of that search: the tuned settings with their lr times SWEEP, over two
decades, at the common horizon. It shows how much a wrong lr costs.

A trial that has its row is not run again, so an interrupted search goes on with the same command.
Trials are compared by loss alone, so they may share the machine: run one `--shard` on each core.
"""

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from analysis import stats
from errors import UserError
from host import entry
from optim import Option
from optim.entrants import Entrant, assigned, entrant_options
from runtime import command_line, machine
from speedrun import Options, Outcome, Schedule, Track, Trainer, chosen_track, enter, make_parser
from studies.points import Settings, points, proposed
from tracking import resume, spelling, store, tuned
from tracking.files import check_writable
from tracking.schema import DIVERGED, FINISHED, REACHED, SWEEP, Provenance, Trial

STAGES = ("search", "refine", "confirm", "horizon")
SEARCH_SEED = 1000
FRESH_SEEDS = (1001, 1002, 1003, 1004, 1005)  # races count from 0: none repeats a trial
SPREAD = 16  # trials that are spread evenly before the guide proposes others
ROUND = 4  # trials that are proposed together, so that shards can share them
PATIENCE = 3  # times the longest trial of a round: how long a shard waits for the others
POLL = 2.0  # seconds
FINALISTS = 4  # settings that are confirmed and shortened
HORIZON_STEP = 2  # steps between horizons that are tried
LOSS_PER_E_FOLD = 0.5  # nats that the loss falls by when the horizon is e times as long: a guess
MARGIN = 0.02  # nats below the target at which all seeds are expected to meet it
EDGE = 0.05  # of a range: a best value nearer to its end draws a warning


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
            raise UserError(f"--trials {self.trials}: must be at least 1; run with --trials 32")
        if self.stage not in (*STAGES, "sweep"):
            known = ", ".join((*STAGES, "sweep"))
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
        self.fixed = assigned(entrant, self.options)
        self.points: dict[int, Settings] = {}  # by the number of the trial
        self._root = trainer.options.results
        if "steps" in self.fixed:
            raise UserError(f"{entrant}: the tuner sets the steps; leave them out")
        if budget.stage == "sweep" and self.fixed:
            raise UserError(f"{entrant}: a sweep is around tuned settings; leave the options out")

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

    def _past(self) -> dict[int, Trial]:
        """The trials of earlier rounds by number, in order; of a number, the newest."""
        settings = self._entrant(Job("search", 0, self.fixed, SEARCH_SEED)).settings
        same = {n: v for n, v in settings.items() if n not in self.free and n != "steps"}
        key = (self.trainer.track.hash(), self.recipe, SEARCH_SEED, self.steps)
        found = {}
        for row in store.read_trials(self._root):
            if (row.track_hash, row.recipe, row.seed, row.steps) != key:
                continue
            values = self._settings(row.entrant) if row.stage in ("search", "refine") else None
            if values and same.items() <= values.items():
                found[row.trial] = row
        return dict(sorted(found.items()))

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
            out = self.trainer.run(entrant, job.seed, only_last=True)
            trial = self._row(job, out)
            store.record_trial(self._root, trial, self.trainer.source)
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

    def _all(self, jobs: Sequence[Job]) -> list[Trial]:
        """Do this shard's part of the jobs; the rows of all. Raises Incomplete."""
        for number, job in enumerate(jobs):
            if self.budget.shard.has(number):
                self._once(job)
        rows = [self._find(job) for job in jobs]
        patience = PATIENCE * max((row.train_seconds for row in rows if row), default=0.0)
        while None in rows and patience > 0 and self.budget.shard.count > 1:
            time.sleep(POLL)  # another shard has them
            patience -= POLL
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
            if stage == "refine":
                begin = 1 + max(n for n, row in past.items() if row.stage == "search")
                best = min((n for n in past if n < begin), key=lambda n: loss_of(past[n]))
                around = self._point_of(best, past[best])
            first = next(n for n in itertools.count(begin) if n not in past)
            done = sum(past[n].stage == stage for n in past if begin <= n < first)
            if done >= count:
                break
            self._round(stage, first, count - done, past, around)
        for number, row in past.items():
            self._point_of(number, row)
        return sorted(past.values(), key=loss_of)

    def _round(
        self,
        stage: str,
        first: int,
        left: int,
        past: Mapping[int, Trial],
        around: Settings | None,
    ) -> None:
        """Run the trials of the round in which trial `first` is; at most `left`.

        Its points depend on the trials of the rounds before alone, so all shards find the same.
        """
        begin = first - first % ROUND if first >= SPREAD else 0
        end = begin + ROUND if begin else SPREAD
        before = {n: row for n, row in past.items() if n < begin}
        if before and self.free:
            known = [(self._point_of(n, row), loss_of(row)) for n, row in before.items()]
            found = proposed(self.free, known, end - begin, begin, around)
        else:
            found = points(self.free, end, around)
        numbers = range(first, min(end, first + left))
        for number in numbers:
            self.points[number] = self.fixed | found[number - begin]
            if number in past:
                self._point_of(number, past[number])
        self.at_horizon(stage, {number: self.points[number] for number in numbers})

    def _point_of(self, number: int, row: Trial) -> Settings:
        """The point of a row, which stands even if the ranges have changed since."""
        values = self._settings(row.entrant) or {}
        self.points[number] = self.fixed | {name: values[name] for name in self.free}
        return self.points[number]

    def confirm(self, finalists: Sequence[int]) -> list[tuple[float, int]]:
        """Fresh seeds for the finalists: (mean loss, index) of those that stay, best first."""
        left = list(finalists)
        losses: dict[int, list[float]] = {index: [] for index in finalists}
        for seed in FRESH_SEEDS:
            settings = {index: self.points[index] | {"steps": self.steps} for index in left}
            for row in self._all([Job("confirm", *point, seed) for point in settings.items()]):
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

    def _meets(self, index: int, steps: int) -> tuple[float, bool]:
        """Mean loss, and whether all fresh seeds meet the target, by more than chance.

        Stops at the first seed that misses; the mean includes it.
        """
        settings, losses = self.points[index] | {"steps": steps}, []
        for seed in FRESH_SEEDS:
            row = self._once(Job("horizon", index, settings, seed))
            losses.append(loss_of(row))
            if row.status != REACHED:
                return statistics.fmean(losses), False
        return statistics.fmean(losses), stats.mean_below_target(losses, self.target)

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


def target_from(mean_loss: float) -> float:
    """The target of a track: the confirmed loss of its tuned AdamW, rounded up to 0.01."""
    return math.ceil(mean_loss * 100) / 100


def tune_recipe(study: Study, path: Path = tuned.TUNED) -> None:
    """Go through the stages that the budget allows; write the outcome of the last one to `path`.

    Raises Incomplete where it must wait for other shards.
    """
    recipe, track = study.recipe, study.trainer.track.name
    if study.budget.stage == "sweep":
        found = tuned.find(track, recipe, path) or tuned.find(track, recipe)
        study.sweep(found.options if found else {})
        return
    searched = study.search()
    if searched[0].final_loss is None:
        raise UserError(f"{recipe}: every trial diverged; narrow its ranges in optim/")
    if study.budget.stage == "search":
        return
    finalists = study.refine()
    if study.budget.stage == "refine":
        return
    confirmed = study.confirm(finalists)
    for loss, index in confirmed:
        print(f"{recipe}: trial {index}: {loss:.4f} over {len(FRESH_SEEDS)} fresh seeds")
    for warning in study.at_edge(confirmed[0][1]):
        print(f"{recipe}: warning: {warning}; widen it in optim/ and tune again")
    print(f"{recipe} reaches {target_from(confirmed[0][0])} at {study.steps} steps")
    if study.budget.stage == "confirm":
        return
    if study.budget.shard.count > 1:  # each horizon depends on the one before
        raise Incomplete("the horizon stage is for one process")
    shortest = study.shorten(confirmed)
    steps, index = shortest or (study.longest, confirmed[0][1])  # an entrant that misses races too
    if shortest is None:
        print(f"{recipe}: no horizon up to {steps} steps meets the target")
    settings = study.points[index]
    if track == "custom":
        best = spelling.spell(recipe, settings | {"steps": steps})
        print(f"{recipe}: best on this custom track: {best}")
        return
    missed = shortest is None
    tuned.write(tuned.Tuned(track, recipe, settings, steps, (index,), missed=missed), path)
    print(f"{recipe}: {steps} steps with trial {index}, written to {path}")
    if path != tuned.TUNED:
        best = spelling.spell(recipe, settings | {"steps": steps})
        print(f"{recipe}: a race takes them as {best}")


def settled(track: Track, options: Options) -> Options:
    """The options, with what earlier rows of this track on this device say in place of "auto"."""
    root, here = options.results, machine.device_name(machine.local_device())
    rows: list[Provenance] = [*store.read_trials(root), *store.read_runs(root)]
    alike = [
        row
        for row in rows
        if (row.track_hash, row.device) == (track.hash(), here)
        and options.dtype in ("auto", row.dtype)  # what is fastest depends on it
    ]
    return resume.settled(options, alike)


def run(arguments: argparse.Namespace) -> None:
    """Tune each recipe, as far as --stage and the other shards allow. Raises UserError."""
    words = arguments.entrants or ["adamw", "muon"]
    budget = Budget(arguments.trials, read_shard(arguments.shard), arguments.stage)
    recipes = [spelling.recipe_of(word) for word in words]
    if len(set(recipes)) < len(recipes):
        raise UserError(f"{' '.join(words)}: a recipe is named twice; name each once")
    options = Options(**command_line.given(arguments, Options))
    track = chosen_track(arguments)
    store.ready(options.results)
    check_writable(tuned.TUNED.parent)  # where the outcome goes
    for word, recipe in zip(words, recipes, strict=True):
        assigned(word, entrant_options(recipe, Schedule))  # refuse a mistake before any trial
    trainer = Trainer(track, settled(track, options))
    if trainer.engine.world_size > 1:
        raise UserError("the tuner runs in one process; share the trials with --shard instead")
    flops = trainer.gpt.flops_per_token(track.seq_len) * track.batch_tokens
    flops *= track.search_steps * budget.trials * len(words)  # of the search alone
    if note := machine.patience_note(trainer.device, flops, trainer.matmul_peak):
        print(note)
    try:
        for word in words:
            path = tuned.of(options.results)
            tune_recipe(Study(trainer, arguments.track, word, budget), path)
    except Incomplete as left:
        print(f"{left}; run the command again without --shard when they are done")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = make_parser(__doc__, "studies.tune", race=False)
    parser.add_argument(
        "--trials",
        type=int,
        default=32,
        metavar="INT",
        help="search trials of each recipe (default: 32)",
    )
    parser.add_argument(
        "--shard", default="1/1", metavar="I/N", help="part I of N of the trials (default: 1/1)"
    )
    parser.add_argument(
        "--stage",
        default="horizon",
        metavar="STAGE",
        help=f"last stage to run: {', '.join(STAGES)}; or sweep (default: horizon)",
    )
    stopped = "finished trials are recorded: the same command goes on"
    return entry.run(parser, argv, run, stopped)


if __name__ == "__main__":
    sys.exit(main())
