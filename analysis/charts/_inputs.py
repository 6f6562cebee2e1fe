"""What the charts are drawn from: one race of runs.csv with its curves, and tuning.csv.

Claims: every number comes from the CSVs through `tracking.store`, `analysis.stats` and
`analysis.table`, so a chart, the printed table and the README never disagree.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.charts._style import Look, looks, short_names
from analysis.pairs import Pairs
from analysis.report import select
from analysis.scale import SCALE, Measured, measured
from analysis.stats import Costs, Estimate, Ratio, costs, expected_cost, speedup
from analysis.table import BASELINE, by_label, standing
from errors import UserError
from tracking.schema import DIVERGED, SWEEP, Logit, Run, Trial, Validation
from tracking.spelling import display_name
from tracking.store import read_curve, read_logits, read_runs, read_trials

LONGEST_NAME = 44  # characters; a longer one with all its options would run off the title's line


class MissingDataError(Exception):
    """A chart that cannot be drawn from these CSVs. Says what is missing and the next command."""


@dataclass(frozen=True)
class Entrant:
    """The runs of one label in a race, in the order of their seeds, and their validations."""

    label: str
    name: str  # the label as prose writes it
    runs: Sequence[Run]
    curves: Sequence[Sequence[Validation]]  # one for each run
    logits: Sequence[Sequence[Logit]]  # one for each run, empty where they were not measured
    look: Look

    @property
    def track(self) -> str:
        """The track of its race."""
        return self.runs[0].track

    def finished(self) -> list[Sequence[Validation]]:
        """The curves of the runs that did not diverge."""
        return [c for r, c in zip(self.runs, self.curves, strict=True) if r.status != DIVERGED]

    def cost(self, unit: str) -> Estimate | None:
        """Expected cost of the target in "steps", "tokens" or "seconds"; None if never reached."""
        return expected_cost(costs(self.runs, unit))

    def final_loss(self) -> float | None:
        """Mean last validation loss of the runs that did not diverge; None if there are none."""
        losses = [curve[-1].val_loss for curve in self.finished() if curve]
        return sum(losses) / len(losses) if losses else None

    def step_ms(self, part: str = "train") -> float:
        """Milliseconds a step of all runs together; `part` names a `*_seconds` column of Run."""
        steps = sum(run.steps for run in self.runs)
        seconds = sum(getattr(run, f"{part}_seconds") for run in self.runs)
        return float(1000 * seconds / steps) if steps else 0.0


@dataclass(frozen=True)
class Inputs:
    """All that the charts show."""

    entrants: Sequence[Entrant]  # in the order in which they first ran; none without a race
    trials: Sequence[Trial]  # searched and refined, at the newest horizon, on the race's track
    recipe_looks: dict[str, Look]  # of the recipes in `trials`, in the order of their first trial
    sweeps: Sequence[Trial] = ()  # of lr alone: the newest of each recipe, on the race's track
    scale: Sequence[Measured] = ()  # AdamW against Muon at other batch sizes and widths
    others: Sequence[Entrant] = ()  # of further races that are compared with this one

    @property
    def runs(self) -> list[Run]:
        """All runs of the race."""
        return [run for entrant in self.entrants for run in entrant.runs]

    def pairs(self, unit: str) -> Pairs:
        """Who differs from whom, in "steps" or "seconds"."""
        return Pairs({entrant.label: entrant.runs for entrant in self.entrants}, unit)

    @property
    def target(self) -> float:
        """Validation loss that the race is run to, nats per token."""
        return self.entrants[0].runs[0].target

    @property
    def baseline(self) -> Entrant | None:
        """The entrant that others are compared with: AdamW's first label; None if it is not in."""
        named = [e for e in self.entrants if e.label.partition(":")[0] == BASELINE]
        exact = [e for e in named if e.label == BASELINE]
        return next(iter(exact + named), None)

    @property
    def subject(self) -> Entrant:
        """Whom a title is about: who got to the target in the least time, but the baseline."""
        others = [e for e in self.ranking("seconds") if e is not self.baseline]
        return others[0] if others else self.entrants[0]

    def ranking(self, unit: str) -> list[Entrant]:
        """The entrants from the cheapest to the target; then those that never met it, by loss."""
        return sorted(self.entrants, key=lambda entrant: standing(entrant.runs, unit))


@dataclass(frozen=True)
class Split:
    """A speed-up over the baseline, and the two factors that it is the product of.

    Each is baseline over challenger, above 1 where the challenger is ahead.
    """

    samples: Ratio  # of steps to the target
    step: Estimate  # of seconds a step
    clock: Ratio  # of seconds to the target; a bound where `samples` is one


def split(baseline: Entrant, challenger: Entrant) -> Split | None:
    """The speed-up of one entrant over another; None if either never reached the target.

    None too where runs that missed make a bound of one of the two ratios alone.
    """
    a_steps, a_seconds = (costs(baseline.runs, unit) for unit in ("steps", "seconds"))
    b_steps, b_seconds = (costs(challenger.runs, unit) for unit in ("steps", "seconds"))
    samples, clock = speedup(a_steps, b_steps), speedup(a_seconds, b_seconds)
    if not any(a_steps.reached) or not any(b_steps.reached) or samples is None or clock is None:
        return None
    if (samples.at_least, samples.at_most) != (clock.at_least, clock.at_most):
        return None
    step = speedup(_per_step(a_seconds, a_steps), _per_step(b_seconds, b_steps))
    assert step is not None  # runs that spent steps and seconds have seconds a step
    # The mean over runs weighs each alike; the quotient is what makes the product exact.
    exact = clock.estimate.value / samples.estimate.value
    return Split(samples, replace(step.estimate, value=exact), clock)


def _per_step(seconds: Costs, steps: Costs) -> Costs:
    values = [s / n for s, n in zip(seconds.spent, steps.spent, strict=True) if n]
    return Costs(values, [True] * len(values))


def load(root: Path, races: Sequence[str] = ()) -> Inputs:
    """Reads the CSVs under `root`: the first of the named races, or else the newest.

    Raises UserError when there are neither runs nor trials, when a named race is not in
    runs.csv, and for a file that is not as the schema says.
    """
    runs, trials, scale = read_runs(root), read_trials(root), measured(root / SCALE)
    if not runs and not trials and not scale:
        raise UserError(f"no runs in {root / 'runs.csv'}; run: make speedrun")
    chosen = select(runs, races[0] if races else None) if runs or races else []
    newest = [*trials[-1:], *chosen[:1]]
    track_hash = newest[-1].track_hash if newest else ""
    search, sweeps = _search(trials, track_hash), newest_sweeps(trials, track_hash)
    named = [(run.started, run.label) for run in runs] + [(t.started, t.recipe) for t in trials]
    history = [name for _, name in sorted(named, key=lambda pair: pair[0])]
    recipes = list(dict.fromkeys(trial.recipe for trial in [*search, *sweeps]))
    entrants, styles = _entrants(root, chosen, history), looks(history, recipes)
    others = [e for race in races[1:] for e in _entrants(root, select(runs, race), history)]
    return Inputs(entrants, search, styles, sweeps, scale, others)


def _entrants(root: Path, runs: Iterable[Run], history: Sequence[str]) -> list[Entrant]:
    groups = by_label(list(runs))
    styles, short = looks(history, groups), short_names(list(groups))
    entrants = []
    for label, group in groups.items():
        ordered = sorted(group, key=lambda run: run.seed)
        curves = [read_curve(root, run.run) for run in ordered]
        logits = [read_logits(root, run.run) for run in ordered]
        name = display_name(label)
        name = name if len(name) <= LONGEST_NAME else short[label]
        entrants.append(Entrant(label, name, ordered, curves, logits, styles[label]))
    return entrants


def _search(trials: Sequence[Trial], track_hash: str) -> list[Trial]:
    """The trials that can be compared: one track, to the last frozen value; one horizon.

    Of a search that was begun anew, with another value of what is not searched, the newer trials.
    """
    search = [t for t in trials if t.track_hash == track_hash and t.stage in ("search", "refine")]
    newest = {(t.recipe, t.trial): t for t in search if t.steps == search[-1].steps}
    return list(newest.values())


def newest_sweeps(trials: Sequence[Trial], track_hash: str) -> list[Trial]:
    """The sweeps of lr on one track: of each recipe those with the settings of its newest row.

    A sweep that was stopped is left out until it is complete.
    """
    sweeps = [t for t in trials if t.track_hash == track_hash and t.stage == "sweep"]
    newest = {trial.recipe: _but_lr(trial) for trial in sweeps}
    kept = [trial for trial in sweeps if _but_lr(trial) == newest[trial.recipe]]
    counts = Counter(trial.recipe for trial in kept)
    return [trial for trial in kept if counts[trial.recipe] == len(SWEEP)]


def _but_lr(trial: Trial) -> str:
    """An entrant without its option `lr`."""
    return re.sub(r"(?<=[:,])lr=[^,]*", "", trial.entrant)
