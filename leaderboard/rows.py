"""Whether the rows of a folder follow from its curves, its turns, its sources and each other.

    found = problems(Path("results"))

`leaderboard verify` prints what is found. The rows of a race or of the tuner are checked, whoever
made them and whatever they are for; `leaderboard.judge` checks what a record claims with them.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pandas as pd

from analysis import engines, planned, scale
from analysis.table import frame
from errors import UserError
from leaderboard import intake, spectra
from tracking import tuned
from tracking.crossing import crossing
from tracking.schema import (
    COMMON,
    DIVERGED,
    FINISHED,
    MISSED,
    REACHED,
    Logit,
    Run,
    Trial,
    Turn,
    Validation,
)
from tracking.spelling import options_of, recipe_of
from tracking.store import (
    RECORDS,
    is_record,
    read_curve,
    read_logits,
    read_runs,
    read_spectra,
    read_trials,
    read_turns,
    source_hash,
    source_path,
)

TIME_PARTS = (
    "data_seconds",
    "forward_backward_seconds",
    "optimizer_seconds",
    "communication_seconds",
)
NEVER_NEGATIVE = (
    *TIME_PARTS, "seed", "steps", "train_seconds", "communication_bytes", "compile_seconds",
    "val_seconds", "param_count", "param_bytes", "grad_bytes", "state_bytes", "peak_memory_bytes",
    "flops_per_step", "matmul_peak_flops",
)  # fmt: skip
TIME_TOLERANCE = 0.01  # the timers of the parts overlap a little where they start and stop
OUTCOMES = {  # possible statuses of a trial, by its stage
    "search": (FINISHED, DIVERGED),
    "refine": (FINISHED, DIVERGED),
    "confirm": (FINISHED, DIVERGED),
    "horizon": (REACHED, MISSED, DIVERGED),
    "sweep": (FINISHED, DIVERGED),
    "standing": (FINISHED, DIVERGED),
    "transfer": (FINISHED, DIVERGED),
}
# Folders of results/ with rows of their own.
STUDIES = (scale.SCALE, engines.ENGINES, planned.PLANNED)
AFTER_SEARCH = ("refine", "confirm", "horizon")  # stages that begin after the search


@dataclass(frozen=True)
class Rows:
    """The rows of one folder, or of several together."""

    runs: list[Run]
    trials: list[Trial]

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(self.runs + other.runs, self.trials + other.trials)

    def __bool__(self) -> bool:
        return bool(self.runs or self.trials)

    def __str__(self) -> str:
        return f"{len(self.runs)} runs and {len(self.trials)} tuning trials"


def read_rows(root: Path) -> Rows:
    """The rows of a folder. Raises UserError if they cannot be read."""
    return Rows(read_runs(root), read_trials(root))


def problems(root: Path) -> list[str]:
    """A line for each claim in the files of one folder that does not follow from the others.

    Raises UserError if runs.csv or tuning.csv cannot be read at all.
    """
    rows = read_rows(root)
    found = [*_check_folder(root, rows), *_check_rows(rows)]
    if not is_record(root):  # the records share their sources
        found += _check_pool(root, rows)
    for name in STUDIES:
        if (root / name).is_dir():
            found += [f"{name}: {problem}" for problem in problems(root / name)]
    return found


def problems_between(results: Path, tuned_path: Path, folders: Sequence[Path]) -> list[str]:
    """A line for each claim that is wrong where the records of a results folder meet.

    A run has one row. Runs of a track have one model and one batch, and recipes of a track had the
    same number of search trials. A row names each shared program text. The settings in tuned.toml
    come from trials of the records, or of the results folder itself. Raises UserError if a file
    cannot be read at all.
    """
    everything = sum(map(read_rows, folders), Rows([], []))
    found = [*_check_rows(everything), *_check_pool(results / RECORDS, everything)]
    trials = [*everything.trials, *read_trials(results)]
    return found + problems_of_tuned(tuned_path, trials)


def problems_of_tuned(path: Path, trials: Sequence[Trial]) -> list[str]:
    """A line for each setting of tuned.toml that does not come from the trials that it names."""
    return [line for section in tuned.read(path) for line in _check_tuned(section, trials)]


def _check_folder(root: Path, rows: Rows) -> Iterator[str]:
    """Whether the files of one folder agree with its rows."""
    for run in rows.runs:
        yield from (f"run {run.run}: {problem}" for problem in _check_run(root, run))
    yield from _check_files(root, rows.runs)
    yield from _check_sources(root, [*rows.runs, *rows.trials])
    yield from scale.problems(root)
    yield from engines.problems(root)
    yield from planned.problems(root)


def _check_rows(rows: Rows) -> Iterator[str]:
    """Whether the rows of one folder, or of all records together, agree with each other."""
    runs = frame(rows.runs, Run)
    yield from _check_unique(runs)
    yield from _check_races(runs)
    yield from _check_constants(runs)
    yield from _check_trials(rows.trials)
    yield from _check_budgets(frame(rows.trials, Trial))


# ---- Runs --------------------------------------------------------------------------------------


def _check_run(root: Path, run: Run) -> Iterator[str]:
    """Whether a row agrees with its curve, logits, spectra and turns, and with itself."""
    try:
        points = read_curve(root, run.run)
    except UserError as error:
        yield str(error)
        return
    yield from _check_curve(run, points)
    try:
        yield from _check_logits(run, read_logits(root, run.run))
        yield from spectra.problems(run, points, read_spectra(root, run.run))
        yield from _check_turns(run, read_turns(root, run.run), points)
    except UserError as error:
        yield str(error)
    yield from _check_outcome(run, points)
    if run.status != DIVERGED and run.steps != run.steps_planned:
        yield f"{run.status} after {run.steps} of {run.steps_planned} steps"
    parts = sum(getattr(run, part) for part in TIME_PARTS)
    if run.world_size < 1 or run.threads < 1:
        yield f"{run.world_size} processes of {run.threads} threads"
    for name in NEVER_NEGATIVE:
        if getattr(run, name) < 0:
            yield f"{name} {getattr(run, name):g}, which is never negative"
    if parts > run.train_seconds * (1 + TIME_TOLERANCE):
        yield f"its parts take {parts:g} s, more than train_seconds {run.train_seconds:g}"
    if run.train_seconds and run.matmul_peak_flops:
        peak = run.matmul_peak_flops * max(run.world_size, 1)
        mfu = run.flops_per_step * run.steps / run.train_seconds / peak
        if not math.isclose(run.mfu, mfu, rel_tol=1e-3):
            yield f"mfu {run.mfu:g}, but its FLOPs, time and peak give {mfu:g}"


def _check_curve(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Whether a curve can belong to its run."""
    for before, after in pairwise(points):
        if after.step <= before.step:
            yield f"its curve goes from step {before.step} to {after.step}"
        if after.train_seconds < before.train_seconds:
            yield f"its clock runs backwards at step {after.step}"
    if points and (points[0].step < 0 or points[0].train_seconds < 0):
        yield f"its curve begins at step {points[0].step}, {points[0].train_seconds:g} s"
    for point in points:
        if point.tokens * run.steps != run.tokens * point.step:
            yield f"{point.tokens} tokens at step {point.step}, but {run.tokens} at {run.steps}"
    last = points[-1] if points else None
    if last and last.step == run.steps:
        if not _equal(last.train_seconds, run.train_seconds):
            yield f"train_seconds {run.train_seconds:g}, but its curve {last.train_seconds:g}"
        yield from _check_intervals(run, points)
    elif run.status != DIVERGED:
        yield f"its curve has no validation at its last step {run.steps}"
    elif last and (last.step > run.steps or last.train_seconds > run.train_seconds):
        yield f"its curve goes on to step {last.step}, {last.train_seconds:g} s, after its end"


def _check_intervals(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Whether the step times of a complete curve are those of its clock, and of its run."""
    step, clock, optimizer = 0, 0.0, 0.0
    for point in points:
        steps = point.step - step
        seconds = (point.step_ms or 0.0) * steps / 1000
        if not math.isclose(point.train_seconds - clock, seconds, rel_tol=1e-4, abs_tol=1e-5):
            yield (
                f"{point.train_seconds - clock:g} s on its clock before step {point.step}, but "
                f"{steps} steps of step_ms {point.step_ms or 0.0:g} take {seconds:g}"
            )
        part, whole = point.optimizer_ms or 0.0, point.step_ms or 0.0
        if part > max(whole, 0.0) * (1 + TIME_TOLERANCE):
            yield f"optimizer_ms {part:g} at step {point.step}, more than its step_ms {whole:g}"
        optimizer += (point.optimizer_ms or 0.0) * steps / 1000
        step, clock = point.step, point.train_seconds
    if not math.isclose(run.optimizer_seconds, optimizer, rel_tol=1e-4, abs_tol=1e-6):
        claimed = f"optimizer_seconds {run.optimizer_seconds:g}"
        yield f"{claimed}, but its curve's optimizer_ms give {optimizer:g}"


def _check_logits(run: Run, logits: Sequence[Logit]) -> Iterator[str]:
    """Whether attention logits are complete: each head of each layer at each measured step."""
    heads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in logits:
        heads[row.step].append((row.layer, row.head))
    if list(heads) != sorted(heads) or any(not 1 <= step <= run.steps for step in heads):
        yield f"its logits are not of steps 1 to {run.steps} in order"
    layers = max((row.layer for row in logits), default=-1) + 1
    width = max((row.head for row in logits), default=-1) + 1
    for step, found in heads.items():
        # The number comes first: a row may name the head 10^18.
        if len(found) != layers * width or found != list(product(range(layers), range(width))):
            yield f"its logits at step {step} are not one for each head of each layer"
    if recipe_of(run.entrant) == "muonclip" and run.status != DIVERGED and len(heads) != run.steps:
        yield f"it clips logits in {run.steps} steps, but has logits of {len(heads)}"


def _check_turns(run: Run, turns: Sequence[Turn], points: Sequence[Validation]) -> Iterator[str]:
    """Whether turns are complete: they follow each other, and add up to their run and its curve."""
    if (run.turn_steps > 0) != bool(run.heat):
        yield f"heat {run.heat!r} with turns of {run.turn_steps} steps; a run has both or neither"
    if not run.turn_steps or not run.steps:
        if turns:
            yield f"{len(turns)} turns, but its row has none"
        return
    if not turns:
        yield f"its turns of {run.turn_steps} steps are missing"
        return
    if [turn.round for turn in turns] != list(range(len(turns))):
        yield "its turns are not of the rounds 0, 1, 2, ..."
    *whole, last = turns
    if not 0 < last.steps <= run.turn_steps:
        whole.append(last)  # the last turn may be shorter
    for turn in whole:
        if turn.steps != run.turn_steps:
            yield f"its turn in round {turn.round} has {turn.steps}, not {run.turn_steps} steps"
    steps, seconds, clock = 0, 0.0, {0: 0.0}
    for turn in turns:
        steps, seconds = steps + turn.steps, seconds + turn.train_seconds
        clock[steps] = seconds
    for point in points:  # validated within a turn, it has no clock to compare with
        if not _equal(clock.get(point.step, point.train_seconds), point.train_seconds):
            took = f"{clock[point.step]:g} s in its turns"
            yield f"{took} to step {point.step}, but {point.train_seconds:g} in its curve"
    if steps != run.steps:
        yield f"{run.steps} steps, but its turns have {steps}"
    if any(turn.train_seconds < 0 for turn in turns) or not _equal(seconds, run.train_seconds):
        yield f"train_seconds {run.train_seconds:.9g}, but its turns give {seconds:.9g}"


def _check_outcome(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Whether status, final loss and cost of the target follow from the curve and the target."""
    met = None
    if run.status == DIVERGED:
        if points and points[-1].step == run.steps_planned:
            yield f"status diverged, but its curve ends at the planned step {run.steps_planned}"
    else:
        met = crossing(points, run.target)
        status = MISSED if met is None else REACHED
        if run.status != status:
            yield f"status {run.status}, but its curve {status} the target {run.target:g}"
    expected = {
        "final_loss": points[-1].val_loss if points else None,
        "steps_to_target": met.step if met else None,
        "tokens_to_target": met.tokens if met else None,
        "seconds_to_target": met.seconds if met else None,
    }
    for name, value in expected.items():
        if not _equal(getattr(run, name), value):
            yield f"{name} {_shown(getattr(run, name))}, but its curve gives {_shown(value)}"


def _repeated(rows: pd.DataFrame, by: str | list[str]) -> Iterator[tuple[Any, int]]:
    """The values of one or more columns that several rows share, and how many rows do."""
    for values, times in Counter(_cells(rows, by)).items():
        if times > 1:
            yield values, times


def _differing(rows: pd.DataFrame, by: str | list[str], column: str) -> Iterator[tuple[Any, str]]:
    """The groups of rows whose values of a column differ, and the values."""
    groups: dict[Any, dict[Any, None]] = {}
    for name, value in zip(_cells(rows, by), _cells(rows, column), strict=True):
        groups.setdefault(name, {})[value] = None
    for name, values in groups.items():
        if len(values) > 1:
            yield name, ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _cells(rows: pd.DataFrame, by: str | list[str]) -> list[Any]:
    """The values of a column, or tuples of those of several; None where there is none.

    Most folders have few rows, of which pandas would make groups more slowly than a loop does.
    """
    if isinstance(by, list):
        return list(zip(*(_cells(rows, name) for name in by), strict=True))
    return [None if value != value else value for value in rows[by]]


def _check_unique(runs: pd.DataFrame) -> Iterator[str]:
    for name, times in _repeated(runs, "run"):
        yield f"run {name}: {times} rows have this id"
    for (race, entrant, seed), times in _repeated(runs, ["race", "entrant", "seed"]):
        yield f"race {race}: {times} runs of {entrant} with seed {seed}"


def _check_races(runs: pd.DataFrame) -> Iterator[str]:
    for (race, label), entrants in _differing(runs, ["race", "label"], "entrant"):
        yield f"race {race}: label {label} stands for several entrants: {entrants}"
    for name in COMMON:
        for race, values in _differing(runs, "race", name):
            yield f"race {race}: its runs differ in {name}: {values}"
    heats = runs[runs.heat != ""]  # named after seed and second: other races may have such a name
    for name in ("seed", "turn_steps"):
        for (race, heat), values in _differing(heats, ["race", "heat"], name):
            yield f"race {race}: heat {heat}: its runs differ in {name}: {values}"


def _check_constants(runs: pd.DataFrame) -> Iterator[str]:
    """What one track, and one entrant of a race, have in common, whatever the seed."""
    for _, run in runs[(runs.steps == 0) & (runs.tokens > 0)].iterrows():
        yield f"run {run.run}: {run.tokens} tokens in no step"
    stepped = runs[runs.steps > 0]
    stepped = stepped.assign(rate=stepped.tokens / stepped.steps)
    for track, rates in _differing(stepped, "track_hash", "rate"):
        yield f"track {track}: its runs differ in tokens per step: {rates}"
    ended = runs[runs.status != DIVERGED]
    bits = (ended.final_bits_per_byte / ended.final_loss).map("{:.6g}".format)
    ended = ended.assign(bits=bits)
    measured = ended[ended.final_bits_per_byte.notna() & (ended.final_loss > 0)]
    for track, counts in _differing(ended, "track_hash", "param_count"):
        yield f"track {track}: its runs differ in param_count: {counts}"
    bytes_known = ended.assign(known=ended.final_bits_per_byte.notna())
    for track, _ in _differing(bytes_known[ended.final_loss.notna()], "track_hash", "known"):
        yield f"track {track}: some of its runs have a final_bits_per_byte, others have none"
    for track, ratios in _differing(measured, "track_hash", "bits"):
        yield f"track {track}: its runs differ in final_bits_per_byte over final_loss: {ratios}"
    for column in ("state_bytes", "flops_per_step"):
        for (race, label), values in _differing(ended, ["race", "label"], column):
            yield f"race {race}: {label}: its runs differ in {column}: {values}"


def _check_files(root: Path, runs: Sequence[Run]) -> Iterator[str]:
    """Whether every file of a run has a row: a removed row leaves its files behind."""
    names = {run.run for run in runs}
    folders = ("curves", "logits", "spectra", "turns")
    for path in sorted(path for name in folders for path in (root / name).glob("*.csv")):
        if path.stem not in names:
            yield (
                f"{path}: no row in runs.csv; its row was removed, or the race was killed "
                "in between: go on with --resume, or remove the file"
            )


def _check_sources(root: Path, rows: Sequence[Run | Trial]) -> Iterator[str]:
    for digest in dict.fromkeys(row.source_hash for row in rows):
        try:
            path = source_path(root, digest)
            if not path.exists():
                yield f"{path}: missing, although rows name it"
            elif source_hash(intake.read(path).decode()) != digest:
                yield f"{path}: not the text that it is named after"
        except UserError as error:
            yield str(error)


def _check_pool(root: Path, rows: Rows) -> Iterator[str]:
    """Whether a row names each program text in root/sources."""
    named = {row.source_hash for row in (*rows.runs, *rows.trials)}
    for path in sorted((root / "sources").glob("[!.]*")):  # a hidden one is being written
        if path.stem not in named or path.suffix != ".txt":
            yield (
                f"{path}: no row names this source; its row was removed, or the race was killed "
                "in between: go on with --resume, or remove the file"
            )


# ---- Tuning ------------------------------------------------------------------------------------


def _check_trials(trials: Sequence[Trial]) -> Iterator[str]:
    for trial in trials:
        name = f"trial {trial.recipe} {trial.trial} ({trial.stage}, {trial.steps} steps)"
        outcomes = OUTCOMES.get(trial.stage)
        if outcomes is None:
            yield f"{name}: stage {trial.stage!r} is not one of {', '.join(OUTCOMES)}"
        elif trial.status not in outcomes:
            yield f"{name}: status {trial.status!r} is not one of {', '.join(outcomes)}"
        elif (trial.final_loss is None) != (trial.status == DIVERGED):
            yield f"{name}: {trial.status} with final_loss {_shown(trial.final_loss)}"
        elif (trial.target is None) != (trial.stage != "horizon"):
            yield f"{name}: target {_shown(trial.target)}, which only the horizon stage has"
        elif _is_at_target(trial) != (trial.status == REACHED):
            yield f"{name}: {trial.status} {_shown(trial.target)} with {_shown(trial.final_loss)}"


def _check_budgets(trials: pd.DataFrame) -> Iterator[str]:
    """Whether no trial is doubled, and the recipes of a track had the same number of searches."""
    # Two trials of one search may have the same settings: a guide may ask for a corner again. A
    # search that is begun anew on another device begins with the same points.
    key = ["track_hash", "stage", "trial", "entrant", "seed", "target", "device"]
    for (_, stage, _, entrant, seed, *_), times in _repeated(trials, key):
        yield f"trial {entrant} ({stage}): {times} rows with seed {seed}"
    # A search that is not over claims nothing yet.
    over = set(trials[trials.stage.isin(AFTER_SEARCH)].groupby(["track_hash", "recipe"]).groups)
    # A trial that was run anew counts once: numbers go on from a search to a longer one.
    searched = trials[trials.stage == "search"].drop_duplicates(["track_hash", "recipe", "trial"])
    for track, rows in searched.groupby("track_hash", sort=False):
        rows = rows[[(track, recipe) in over for recipe in rows.recipe]]
        budget = rows.groupby("recipe", sort=False).size()
        if budget.nunique() > 1:
            shown = ", ".join(f"{recipe} {number}" for recipe, number in budget.items())
            yield f"track {track}: recipes differ in their number of search trials: {shown}"


def _is_at_target(trial: Trial) -> bool:
    """Whether a trial has a final loss and a target, and the loss is at or below the target."""
    loss, target = trial.final_loss, trial.target
    return loss is not None and target is not None and loss <= target


def _check_tuned(section: tuned.Tuned, trials: Sequence[Trial]) -> Iterator[str]:
    """Whether the settings of a section are the settings of the trials that it names."""
    name = f"tuned.toml [{section.track}.{section.recipe}]"
    if not section.trials and not section.source:  # a published source cannot be checked here
        yield f"{name}: names neither a trial nor a source"
    for index in section.trials:
        key = (section.track, section.recipe, index)
        rows = [t for t in trials if (t.track, t.recipe, t.trial) == key]
        if not rows:
            yield f"{name}: no tuning.csv has its trial {index}"
            continue
        rows = [t for t in rows if _agree(section.settings, options_of(t.entrant))]
        if not rows:
            yield f"{name}: its settings differ from trial {index}"
            continue
        rows = [t for t in rows if t.stage == "horizon" and t.steps == section.steps]
        # If there were several targets, the last is the one that counts.
        met = [t.status == REACHED for t in rows if t.target == rows[-1].target]
        if not section.missed and not (met and all(met)):
            yield f"{name}: trial {index} did not reach the target in {section.steps} steps"
        if section.missed and (not met or all(met)):
            yield f"{name}: no run of trial {index} missed the target in {section.steps} steps"


def _agree(settings: dict[str, Any], options: dict[str, str]) -> bool:
    """Whether the options of an entrant have the values of a section of tuned.toml."""

    def same(value: Any, option: str) -> bool:
        try:
            return float(option) == float(value)
        except (TypeError, ValueError):
            return option.lower() == str(value).lower()

    return all(key in options and same(value, options[key]) for key, value in settings.items())


def _equal(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)


def _shown(value: float | None) -> str:
    return "empty" if value is None else f"{value:.9g}"
