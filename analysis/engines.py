"""One race on several engines: losses, memory and traffic beside formulas, and the price of a step.

    make engines      # runs the races into results/engines

Each engine runs AdamW and Muon with one seed on the same batches. Claims: every loss agrees with
the loss of the engine `single`, one process, up to rounding; memory and traffic are those of
`planner/memory/layouts.py`, within TOLERANCE. Engines of several processes take turns, so the
seconds of a step are compared by the ratios of neighbouring turns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.price import Duel, price
from analysis.stats import Estimate
from analysis.table import markdown_grid
from tracking.schema import Planned, Run, Validation
from tracking.spelling import display_name, recipe_of
from tracking.store import read, read_curve, read_runs, read_turns

ENGINES = "engines"  # the folder of `make engines` in results/
REFERENCE, USUAL = "single", "ddp"  # of the losses; of the seconds
TOLERANCE = 0.02  # of a formula, relative to what was measured
KINDS = ("param_bytes", "grad_bytes", "state_bytes", "communication_bytes")


@dataclass(frozen=True)
class Measured:
    """One optimizer on one engine."""

    run: Run
    planned: Planned
    curve: Sequence[Validation]
    gap: float  # the largest difference of a validation loss from the reference's; 0 for itself
    price: Estimate | None  # seconds of a step over the usual engine's; None: no turns with it

    @property
    def recipe(self) -> str:
        return recipe_of(self.run.entrant)

    @property
    def name(self) -> str:
        return display_name(self.recipe)

    def step_ms(self, part: str = "train") -> float:
        """Milliseconds a step; `part` names a `*_seconds` column of Run."""
        return float(1000 * getattr(self.run, f"{part}_seconds") / self.run.steps)


def planned_runs(root: Path) -> list[tuple[Run, Planned]]:
    """The runs of a folder that formulas speak of, in the order of planned.csv."""
    known = {run.run: run for run in read_runs(root)}
    plans = read(root / "planned.csv", Planned)
    return [(known[plan.run], plan) for plan in plans if plan.run in known]


def measured(root: Path) -> list[Measured]:
    """What a folder of studies.engines holds, in the order of planned.csv."""
    plans = {plan.run: plan for _, plan in planned_runs(root)}
    runs = [run for run, _ in planned_runs(root)]
    curves = {run.run: read_curve(root, run.run) for run in runs}
    found = []
    for run in runs:
        gap, own = 0.0, curves[run.run]
        for other in runs:
            if (other.engine, other.entrant) == (REFERENCE, run.entrant):
                pairs = zip(own, curves[other.run], strict=True)
                gap = max(abs(a.val_loss - b.val_loss) for a, b in pairs)
        found.append(Measured(run, plans[run.run], own, gap, _price(root, run, runs)))
    return found


def _price(root: Path, run: Run, runs: Sequence[Run]) -> Estimate | None:
    alike = (USUAL, run.entrant, run.world_size)
    usual = [each for each in runs if (each.engine, each.entrant, each.world_size) == alike]
    if not run.heat or run in usual:
        return None
    turns = read_turns(root, run.run)
    return price([Duel(run.turn_steps, read_turns(root, each.run), turns) for each in usual])


def markdown(points: Sequence[Measured]) -> str:
    """The runs as a table."""
    return markdown_grid(
        [
            "engine", "optimizer", "processes", "largest difference of a loss", "parameters",
            "gradients", "optimizer state", "sent in a step", "formula's error", "ms a step",
            "of it communication", f"step, over {USUAL}'s",
        ],
        [_row(point) for point in points],
    )  # fmt: skip


def _row(point: Measured) -> list[str]:
    run = point.run
    return [
        run.engine,
        point.name,
        str(run.world_size),
        "-" if run.engine == REFERENCE else f"{point.gap:.1e}",
        *(f"{getattr(run, kind) / 1e6:.3f} MB" for kind in KINDS[:3]),
        f"{run.communication_bytes / run.steps / 1e6:.3f} MB",
        f"{max(map(abs, errors(run, point.planned).values())):.2%}",
        f"{point.step_ms():.0f}",
        f"{point.step_ms('communication'):.0f}",
        _times(point.price),
    ]


def _times(ratio: Estimate | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}x"
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"


def errors(run: Run, plan: Planned) -> dict[str, float]:
    """How far each formula is from what was measured, relative to it."""
    found = {}
    for kind in KINDS:
        planned, held = getattr(plan, kind), getattr(run, kind)
        found[kind] = planned / held - 1 if held else float(planned > 0)
    return found


def problems(root: Path) -> Iterator[str]:
    """The claims of a folder that its runs do not show."""
    plans, runs = read(root / "planned.csv", Planned), {run.run for run in read_runs(root)}
    yield from (f"planned.csv: no run {plan.run}" for plan in plans if plan.run not in runs)
    for run, plan in planned_runs(root):
        for kind, error in errors(run, plan).items():
            if abs(error) > TOLERANCE:
                yield f"run {run.run}: {kind} is {error:+.1%} off its formula"
