"""What the planner predicts beside what was measured: bytes and step time of every engine.

    make planned      # runs them into results/planned

Bytes are of the process that holds or sends most, for several optimizers on one to four processes.
Claims: each prediction of bytes is within engines.TOLERANCE of what was counted, each prediction of
a step's time within TIME_TOLERANCE of the median over the turns of the run. Parameters of the
predicted times were measured apart from the runs; `studies.planned` says how.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import engines
from analysis.table import markdown_grid
from tracking.schema import Planned, Run, StepTime
from tracking.spelling import display_name, recipe_of
from tracking.store import read, read_runs, read_turns

PLANNED = "planned"  # the folder of `make planned` in results/
TIMES = "times.csv"
TIME_TOLERANCE = 0.25  # of a predicted step, relative to what was measured
ROUNDED = 1e-3  # relative; rows are written with fewer digits than the turns


@dataclass(frozen=True)
class Predicted:
    """Predictions of a folder, and its runs."""

    runs: Sequence[tuple[Run, Planned]]
    times: Sequence[StepTime]  # none where only bytes were counted

    def __bool__(self) -> bool:
        return bool(self.runs)


NOTHING = Predicted((), ())


def predicted(root: Path) -> Predicted:
    """What a folder of studies.planned holds, or of studies.engines; empty where there is none."""
    return Predicted(engines.planned_runs(root), read(root / TIMES, StepTime))


def error(row: StepTime) -> float:
    """How far a predicted time is from the measured one, relative to it."""
    return row.predicted_ms / row.measured_ms - 1


def step_ms(root: Path, run: str) -> float:
    """Milliseconds of a step: the median over the turns of a run; nan without turns."""
    turns = [1e3 * turn.train_seconds / turn.steps for turn in read_turns(root, run)]
    return statistics.median(turns) if turns else float("nan")


def markdown(found: Predicted) -> str:
    """The bytes and, if there are any, the times as two tables, each with a sentence."""
    return "\n\n".join([_bytes(found.runs), *([_times(found.times)] if found.times else [])])


def _bytes(runs: Sequence[tuple[Run, Planned]]) -> str:
    places: dict[tuple[str, int], list[tuple[Run, Planned]]] = {}
    for pair in runs:
        places.setdefault((pair[0].engine, pair[0].world_size), []).append(pair)
    order = list(dict.fromkeys(run.engine for run, _ in runs))
    rows = []
    for engine, processes in sorted(places, key=lambda place: (order.index(place[0]), place[1])):
        pairs = places[engine, processes]
        recipes = dict.fromkeys(display_name(recipe_of(run.entrant)) for run, _ in pairs)
        worst = [
            max((engines.errors(run, plan)[kind] for run, plan in pairs), key=abs)
            for kind in engines.KINDS
        ]
        shown = [_percent(each) for each in worst]
        rows.append([engine, str(processes), ", ".join(recipes), *shown])
    largest = max((abs(e) for pair in runs for e in engines.errors(*pair).values()), default=0.0)
    grid = markdown_grid(
        ["engine", "processes", "optimizers", "parameters", "gradients", "state", "sent"], rows
    )
    return (
        f"{grid}\n\nBytes: the largest error of {len(runs)} runs, predicted over counted, of the "
        f"process that holds or sends most. The largest of all is {largest:.2%}."
    )


def _percent(value: float) -> str:
    return "0" if abs(value) < 5e-5 else f"{value:+.2%}"


def _times(times: Sequence[StepTime]) -> str:
    rows = [
        [
            row.engine,
            display_name(row.recipe),
            str(row.processes),
            f"{row.predicted_ms:.0f}",
            f"{row.measured_ms:.0f}",
            f"{error(row):+.0%}",
            f"{row.passes_ms:.0f}",
            f"{row.update_ms:.1f}",
            f"{row.exposed_ms:.1f}",
        ]
        for row in times
    ]
    largest = max((abs(error(row)) for row in times), default=0.0)
    grid = markdown_grid(
        [
            "engine", "optimizer", "processes", "predicted ms", "measured ms", "error",
            "passes", "update", "not hidden",
        ],
        rows,
    )  # fmt: skip
    return (
        f"{grid}\n\nMilliseconds of a step. The last three columns are parts of the prediction: "
        "computation of forward and backward, computation of the optimizer, communication and "
        f"waiting that no computation hides. The largest error is {largest:.0%}."
    )


def problems(root: Path) -> Iterator[str]:
    """The claims of a folder about times that its runs do not show; engines.problems has bytes."""
    known = {run.run: run for run in read_runs(root)}
    for row in read(root / TIMES, StepTime):
        run = known.get(row.run)
        if run is None:
            yield f"{TIMES}: no run {row.run}"
            continue
        own = (row.engine, row.recipe, row.processes)
        if own != (run.engine, recipe_of(run.entrant), run.world_size):
            yield f"{TIMES}: run {row.run} is {run.engine} on {run.world_size}"
        measured = step_ms(root, row.run)
        if not abs(row.measured_ms - measured) <= ROUNDED * measured:
            yield f"run {row.run}: its turns give {measured:.4g} ms, {TIMES} {row.measured_ms:.4g}"
        if not abs(error(row)) <= TIME_TOLERANCE:
            yield f"run {row.run}: its step was predicted {error(row):+.0%} off"
