"""What the charts are drawn from: one race of runs.csv with its curves, and tuning.csv.

Claims: every number comes from the CSVs through `tracking.store`, `analysis.stats` and
`analysis.table`, so a chart, the printed table and the README never disagree.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import engines, planned
from analysis.charts._style import Look, looks, short_names
from analysis.pairs import Pairs
from analysis.price import Prices, read_prices
from analysis.report import select
from analysis.scale import SCALE, Measured, measured
from analysis.stats import Estimate, costs, expected_cost, losses, mean
from analysis.sweep import newest_sweeps
from analysis.table import BASELINE, by_label, find, standing
from errors import UserError
from tracking.schema import DIVERGED, SEARCHED, Logit, Run, Spectrum, Trial, Validation
from tracking.spelling import display_name
from tracking.store import read_curve, read_logits, read_runs, read_spectra, read_trials

LONGEST_NAME = 44  # characters; a longer one with all its options would run off the title's line
FAR = 1.5  # times the longest run: a greater expected cost would squeeze the axis of the others


class MissingDataError(Exception):
    """A chart that cannot be drawn from these CSVs. Says what is missing and the next command."""


@dataclass(frozen=True)
class Series:
    """What a chart shows of one entrant: its runs in a race, by seed, and their validations."""

    label: str
    name: str  # the label as prose writes it
    runs: Sequence[Run]
    curves: Sequence[Sequence[Validation]]  # one for each run
    logits: Sequence[Sequence[Logit]]  # one for each run, empty where they were not measured
    spectra: Sequence[Sequence[Spectrum]]  # likewise
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
        found = losses(self.runs)
        return mean(found).value if found else None

    def step_ms(self, part: str = "train") -> float:
        """Milliseconds a step of all runs together; `part` names a `*_seconds` column of Run."""
        steps = sum(run.steps for run in self.runs)
        seconds = sum(getattr(run, f"{part}_seconds") for run in self.runs)
        return float(1000 * seconds / steps) if steps else 0.0


@dataclass(frozen=True)
class Inputs:
    """All that the charts show."""

    entrants: Sequence[Series]  # in the order in which they first ran; none without a race
    trials: Sequence[Trial]  # searched and refined, at the newest horizon, on the race's track
    recipe_looks: dict[str, Look]  # of the recipes in `trials` and `sweeps`
    prices: Prices  # of a step, in the race
    sweeps: Sequence[Trial] = ()  # of lr alone: the newest of each recipe, on the race's track
    scale: Sequence[Measured] = ()  # AdamW against Muon at other batch sizes and widths
    others: Sequence[Series] = ()  # of further races that are compared with this one
    on_engines: Sequence[engines.Measured] = ()  # one race on several engines
    predictions: planned.Predicted = planned.NOTHING  # of the planner, with their runs

    @property
    def runs(self) -> list[Run]:
        """All runs of the race."""
        return [run for entrant in self.entrants for run in entrant.runs]

    def pairs(self, unit: str) -> Pairs:
        """The test of every pair of entrants, in "steps" or "seconds"."""
        groups = {entrant.label: entrant.runs for entrant in self.entrants}
        return Pairs(groups, unit, self.prices)

    @property
    def target(self) -> float:
        """Validation loss that the race is run to, nats per token."""
        return self.entrants[0].runs[0].target

    @property
    def baseline(self) -> Series | None:
        """The entrant that others are compared with: AdamW's first label; None without one."""
        by_name = {entrant.label: entrant for entrant in self.entrants}
        label = find(by_name, BASELINE)
        return None if label is None else by_name[label]

    @property
    def subject(self) -> Series:
        """The entrant that a title is about: the fastest to the target that is not a
        baseline.
        """
        others = [e for e in self.ranking("seconds") if e is not self.baseline]
        return others[0] if others else self.entrants[0]

    def ranking(self, unit: str) -> list[Series]:
        """The entrants from the cheapest to the target; then the entrants that never met it, by
        loss.
        """
        return sorted(self.entrants, key=lambda entrant: standing(entrant.runs, unit))

    def largest_on_axis(self, unit: str) -> float:
        """The largest expected cost that an axis shows.

        The cost of an entrant that nearly always failed is far above every run's, and is written
        as a number instead.
        """
        return FAR * max(spent for e in self.entrants for spent in costs(e.runs, unit).spent)


def load(root: Path, races: Sequence[str] = ()) -> Inputs:
    """Reads the CSVs under `root`: the first of the named races, or else the newest.

    Raises UserError when there are neither runs nor trials, when a named race is not in
    runs.csv, and for a file that is not as the schema says.
    """
    runs, trials = read_runs(root), read_trials(root)
    scale = measured(root) or measured(root / SCALE)  # a record's, or a user's own
    on_engines = engines.measured(root) or engines.measured(root / engines.ENGINES)
    predictions = planned.predicted(root) or planned.predicted(root / planned.PLANNED)
    if not (runs or trials or scale or on_engines or predictions):
        raise UserError(f"no runs in {root / 'runs.csv'}; run: make speedrun")
    chosen = select(runs, races[0] if races else None) if runs or races else []
    newest = [*trials[-1:], *chosen[:1]]
    track_hash = newest[-1].track_hash if newest else ""
    search, sweeps = _search(trials, track_hash), newest_sweeps(trials, track_hash)
    styles = looks(trial.recipe for trial in [*search, *sweeps])
    others = [e for race in races[1:] for e in _entrants(root, select(runs, race))]
    prices = read_prices(root, chosen)
    entrants = _entrants(root, chosen)
    studies = scale, others, on_engines, predictions
    return Inputs(entrants, search, styles, prices, sweeps, *studies)


def _entrants(root: Path, runs: Iterable[Run]) -> list[Series]:
    groups = by_label(list(runs))
    styles, short = looks(groups), short_names(list(groups))
    entrants = []
    for label, group in groups.items():
        ordered = sorted(group, key=lambda run: run.seed)
        curves = [read_curve(root, run.run) for run in ordered]
        logits = [read_logits(root, run.run) for run in ordered]
        spectra = [read_spectra(root, run.run) for run in ordered]
        name = display_name(label)
        name = name if len(name) <= LONGEST_NAME else short[label]
        entrants.append(Series(label, name, ordered, curves, logits, spectra, styles[label]))
    return entrants


def _search(trials: Sequence[Trial], track_hash: str) -> list[Trial]:
    """The trials of searches that can be compared: on one track, at the newest horizon.

    Where a search was restarted with other frozen settings, its newer trials count.
    """
    search = [t for t in trials if t.track_hash == track_hash and t.stage in SEARCHED]
    newest = {(t.recipe, t.trial): t for t in search if t.steps == search[-1].steps}
    return list(newest.values())
