"""AdamW against Muon at other batch sizes and widths: speed-ups from the races of studies.scale.

    make scale        # runs the races into results/scale

Each point is a race in which every run goes to the end of its own schedule. Muon has one horizon,
AdamW has several around it. Claims: the speed-up in steps is the horizon at which AdamW ends at
Muon's mean final loss, divided by Muon's horizon. AdamW's horizon is interpolated between two
horizons that were run. So only ends of curves are compared, and the sizes need no common target.
Nothing is extrapolated: if Muon's loss is outside of the losses of AdamW's horizons, the point is a
bound. Only losses count, so the runs may share a machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.stats import Estimate, iso_loss, losses, mean
from analysis.table import BASELINE, CHALLENGER, markdown_grid
from tracking.schema import Published, Run, ScalePoint
from tracking.spelling import recipe_of
from tracking.store import read, read_runs, read_trials

SCALE = "scale"  # the folder of `make scale` in results/
TRIALS = 4  # trials that must have re-checked each entrant's settings at a point, at least
PUBLISHED = Path(__file__).parents[1] / "results" / "published" / "speedups.csv"


@dataclass(frozen=True)
class Measured:
    """One point: AdamW's steps over Muon's steps, for equal loss."""

    width: int
    batch_tokens: int
    params: int
    speedup: Estimate  # in steps, for equal loss; without an interval if it is a bound
    bound: str  # "over" or "under" if AdamW's horizons do not enclose Muon's loss, else ""


def measured(root: Path) -> list[Measured]:
    """The points in a folder of studies.scale: the newest of each width and batch size."""
    newest = {(point.width, point.batch_tokens): point for point in _points(root)}
    runs = read_runs(root)
    found = [_measure(p, [run for run in runs if run.race == p.race]) for p in newest.values()]
    return sorted(filter(None, found), key=lambda m: (m.width, m.batch_tokens))


def published() -> list[Published]:
    """The speed-ups of Muon over AdamW that others report."""
    return read(PUBLISHED, Published)


def _points(root: Path) -> list[ScalePoint]:
    return read(root / "points.csv", ScalePoint)


def _measure(point: ScalePoint, runs: Sequence[Run]) -> Measured | None:
    """The point from its runs; None if Muon diverged or AdamW did at every horizon."""
    muon = [run for run in runs if recipe_of(run.entrant) == CHALLENGER]
    horizons: dict[int, list[Run]] = {}
    for run in runs:
        if recipe_of(run.entrant) == BASELINE:
            horizons.setdefault(run.steps_planned, []).append(run)
    ends = {steps: found for steps, group in horizons.items() if (found := losses(group))}
    reference = losses(muon)
    if not ends or not reference or len(reference) < len(muon):
        return None
    steps, bound = iso_loss(ends, reference), ""
    if steps is None:
        better = mean(reference).value < min(mean(values).value for values in ends.values())
        bound = "over" if better else "under"
        edge = max(ends) if better else min(ends)
        steps = Estimate(float(edge), None, None, len(reference))
    speedup = _times(steps, 1 / point.steps)
    return Measured(point.width, point.batch_tokens, runs[0].param_count, speedup, bound)


def _times(estimate: Estimate, factor: float) -> Estimate:
    low, high = (None if x is None else x * factor for x in (estimate.low, estimate.high))
    return Estimate(estimate.value * factor, low, high, estimate.n)


def markdown(points: Sequence[Measured]) -> str:
    """The points as a table."""
    rows = [
        [
            str(m.width),
            f"{m.batch_tokens:,}",
            f"{m.params / 1e6:.2f} M",
            _cell(m.speedup, m.bound),
        ]
        for m in points
    ]
    return markdown_grid(["width", "tokens a step", "parameters", "speed-up in steps"], rows)


def _cell(ratio: Estimate, bound: str) -> str:
    value = f"{bound} {ratio.value:.2f}x".strip()
    if ratio.low is None or ratio.high is None:
        return value
    unclear = ", not distinguishable from 1" if ratio.low <= 1 <= ratio.high else ""
    return f"{value} [{ratio.low:.2f}, {ratio.high:.2f}]{unclear}"


def problems(root: Path) -> Iterator[str]:
    """The claims of a folder's points that its runs and trials do not show."""
    runs, trials, sizes = read_runs(root), read_trials(root), dict[int, int]()
    for point in _points(root):
        name, mine = f"point {point.race}", [run for run in runs if run.race == point.race]
        if not mine:
            yield f"{name}: no run of this race"
            continue
        if any(run.tokens != run.steps * point.batch_tokens for run in mine):
            yield f"{name}: its runs do not take {point.batch_tokens} tokens a step"
        if sizes.setdefault(point.width, mine[0].param_count) != mine[0].param_count:
            yield f"{name}: width {point.width} has models of different sizes"
        horizons = {run.steps_planned for run in mine if recipe_of(run.entrant) == CHALLENGER}
        if horizons != {point.steps}:
            yield f"{name}: {CHALLENGER} ran to {sorted(horizons)}, not to {point.steps} steps"
        if len({run.steps_planned for run in mine if recipe_of(run.entrant) == BASELINE}) < 2:
            yield f"{name}: {BASELINE} has fewer than two horizons"
        if len({frozenset(r.seed for r in mine if r.entrant == e) for e in _entrants(mine)}) > 1:
            yield f"{name}: its entrants have different seeds"
        for entrant in (BASELINE, CHALLENGER):
            checked = [
                t for t in trials
                if (t.track_hash, t.recipe, t.stage) == (mine[0].track_hash, entrant, "transfer")
            ]  # fmt: skip
            if len(checked) < TRIALS:
                yield f"{name}: {len(checked)} trials re-checked {entrant}, not {TRIALS}"
    if len(set(sizes.values())) < len(sizes):
        yield "points: models of different widths have one size"


def _entrants(runs: Sequence[Run]) -> set[str]:
    return {run.entrant for run in runs}
