"""Recomputes what runs.csv and tuning.csv claim, from the curves, the sources and each other.

    python -m leaderboard.verify
    python -m leaderboard.verify --root results

Prints a line for every claim that does not follow and exits 1, or says how many runs and trials
hold and exits 0. It needs neither torch nor the machine of the race.
"""

import argparse
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from analysis import scale
from errors import UserError
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
    Validation,
)
from tracking.store import (
    read_curve,
    read_logits,
    read_runs,
    read_trials,
    source_hash,
    source_path,
)

TIME_PARTS = (
    "data_seconds",
    "forward_backward_seconds",
    "optimizer_seconds",
    "communication_seconds",
)
TIME_TOLERANCE = 0.01  # timers of parts overlap a little where they start and stop
OUTCOMES = {  # statuses that a trial can have, by its stage
    "search": (FINISHED, DIVERGED),
    "refine": (FINISHED, DIVERGED),
    "confirm": (FINISHED, DIVERGED),
    "horizon": (REACHED, MISSED, DIVERGED),
    "sweep": (FINISHED, DIVERGED),
    "transfer": (FINISHED, DIVERGED),
}
AFTER_SEARCH = ("refine", "confirm", "horizon")  # stages that begin when a search is over


def problems(root: Path) -> list[str]:
    """A line for each claim in the result files that does not follow from the others.

    Raises UserError when runs.csv, tuning.csv or tuned.toml cannot be read at all.
    """
    runs, trials = read_runs(root), read_trials(root)
    found = [f"run {run.run}: {problem}" for run in runs for problem in _check_run(root, run)]
    found += _check_unique(runs)
    found += _check_races(runs)
    found += _check_tokens(runs)
    found += _check_constants(runs)
    found += _check_curves(root, runs)
    found += _check_sources(root, [*runs, *trials])
    found += _check_trials(trials)
    for section in tuned.read(root.resolve().parent / "optim" / "tuned.toml"):
        found += _check_tuned(section, trials)
    found += scale.problems(root)
    if (root / scale.SCALE).is_dir():
        found += [f"{scale.SCALE}: {problem}" for problem in problems(root / scale.SCALE)]
    return found


# ---- Runs --------------------------------------------------------------------------------------


def _check_run(root: Path, run: Run) -> Iterator[str]:
    """What a row says against its own curve and against itself."""
    try:
        points = read_curve(root, run.run)
    except UserError as error:
        yield str(error)
        return
    yield from _check_curve(run, points)
    try:
        yield from _check_logits(run, read_logits(root, run.run))
    except UserError as error:
        yield str(error)
    yield from _check_outcome(run, points)
    if run.status != DIVERGED and run.steps != run.steps_planned:
        yield f"{run.status} after {run.steps} of {run.steps_planned} steps"
    parts = sum(getattr(run, part) for part in TIME_PARTS)
    if parts > run.train_seconds * (1 + TIME_TOLERANCE):
        yield f"its parts take {parts:g} s, more than train_seconds {run.train_seconds:g}"
    if run.train_seconds and run.matmul_peak_flops:
        peak = run.matmul_peak_flops * run.world_size
        mfu = run.flops_per_step * run.steps / run.train_seconds / peak
        if not math.isclose(run.mfu, mfu, rel_tol=1e-3):
            yield f"mfu {run.mfu:g}, but its FLOPs, time and peak give {mfu:g}"


def _check_curve(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Whether a curve can be that of its run."""
    for before, after in pairwise(points):
        if after.step <= before.step:
            yield f"its curve goes from step {before.step} to {after.step}"
        if after.train_seconds < before.train_seconds:
            yield f"its clock runs backwards at step {after.step}"
    for point in points:
        if point.tokens * run.steps != run.tokens * point.step:
            yield f"{point.tokens} tokens at step {point.step}, but {run.tokens} at {run.steps}"
    last = points[-1] if points else None
    if last and last.step == run.steps:
        if not _equal(last.train_seconds, run.train_seconds):
            yield f"train_seconds {run.train_seconds:g}, but its curve {last.train_seconds:g}"
        yield from _check_laps(run, points)
    elif run.status != DIVERGED:
        yield f"its curve has no validation at its last step {run.steps}"
    elif last and (last.step > run.steps or last.train_seconds > run.train_seconds):
        yield f"its curve goes on to step {last.step}, {last.train_seconds:g} s, after its end"


def _check_laps(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Whether the times a step between the validations of a whole curve add up to the run's."""
    for column, claimed in (("step_ms", "train_seconds"), ("optimizer_ms", "optimizer_seconds")):
        before, seconds = 0, 0.0
        for point in points:
            seconds += (getattr(point, column) or 0.0) * (point.step - before) / 1000
            before = point.step
        if not math.isclose(getattr(run, claimed), seconds, rel_tol=1e-4, abs_tol=1e-6):
            yield f"{claimed} {getattr(run, claimed):g}, but its curve's {column} give {seconds:g}"


def _check_logits(run: Run, logits: Sequence[Logit]) -> Iterator[str]:
    """Whether attention logits can be those of their run: each head of each layer at each step."""
    heads: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for row in logits:
        heads[row.step].append((row.layer, row.head))
    if list(heads) != sorted(heads) or any(not 1 <= step <= run.steps for step in heads):
        yield f"its logits are not of steps 1 to {run.steps} in order"
    layers = max((row.layer for row in logits), default=-1) + 1
    width = max((row.head for row in logits), default=-1) + 1
    for step, found in heads.items():
        if found != [(layer, head) for layer in range(layers) for head in range(width)]:
            yield f"its logits at step {step} are not one for each head of each layer"
    if run.entrant.startswith("muonclip:") and run.status != DIVERGED and len(heads) != run.steps:
        yield f"it clips logits in {run.steps} steps, but has those of {len(heads)}"


def _check_outcome(run: Run, points: Sequence[Validation]) -> Iterator[str]:
    """Status, final loss and the way to the target, from the curve and the target alone."""
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


def _check_unique(runs: Sequence[Run]) -> Iterator[str]:
    for name, times in Counter(run.run for run in runs).items():
        if times > 1:
            yield f"run {name}: {times} rows have this id"
    for (race, entrant, seed), times in Counter((r.race, r.entrant, r.seed) for r in runs).items():
        if times > 1:
            yield f"race {race}: {times} runs of {entrant} with seed {seed}"


def _check_races(runs: Sequence[Run]) -> Iterator[str]:
    races = defaultdict(list)
    for run in runs:
        races[run.race].append(run)
    for race, group in races.items():
        for label in dict.fromkeys(run.label for run in group):
            entrants = dict.fromkeys(run.entrant for run in group if run.label == label)
            if len(entrants) > 1:
                yield f"race {race}: label {label} stands for {' and '.join(entrants)}"
        for name in COMMON:
            values = dict.fromkeys(str(getattr(run, name)) for run in group)
            if len(values) > 1:
                yield f"race {race}: its runs differ in {name}: {', '.join(values)}"


def _check_tokens(runs: Sequence[Run]) -> Iterator[str]:
    """A track freezes its batch, so all of its runs take the same tokens a step."""
    tracks: dict[str, set[float]] = defaultdict(set)
    for run in runs:
        if run.steps:
            tracks[run.track_hash].add(run.tokens / run.steps)
        elif run.tokens:
            yield f"run {run.run}: {run.tokens} tokens in no step"
    for track, rates in tracks.items():
        if len(rates) > 1:
            shown = ", ".join(f"{rate:g}" for rate in sorted(rates))
            yield f"track {track}: its runs differ in tokens per step: {shown}"


def _check_constants(runs: Sequence[Run]) -> Iterator[str]:
    """What one model, one rule and one text have in common, whatever the seed."""
    ended = [run for run in runs if run.status != DIVERGED]
    kinds: dict[tuple[str, str], set[float]] = defaultdict(set)
    for run in ended:
        kinds[f"track {run.track_hash}", "param_count"].add(run.param_count)
        kinds[f"race {run.race}: {run.label}", "state_bytes"].add(run.state_bytes)
        kinds[f"race {run.race}: {run.label}", "flops_per_step"].add(run.flops_per_step)
        if run.final_loss and run.final_bits_per_byte:
            rate = float(f"{run.final_bits_per_byte / run.final_loss:.6g}")
            kinds[f"track {run.track_hash}", "final_bits_per_byte over final_loss"].add(rate)
    for (name, what), values in kinds.items():
        if len(values) > 1:
            shown = ", ".join(f"{value:g}" for value in sorted(values))
            yield f"{name}: its runs differ in {what}: {shown}"


def _check_curves(root: Path, runs: Sequence[Run]) -> Iterator[str]:
    """A curve without a row is what is left when an unwelcome run is struck out."""
    names = {run.run for run in runs}
    for path in sorted([*(root / "curves").glob("*.csv"), *(root / "logits").glob("*.csv")]):
        if path.stem not in names:
            yield (
                f"{path}: no row in runs.csv; its row was removed, or the race was killed "
                "in between: go on with --resume, or remove the file"
            )


def _check_sources(root: Path, rows: Sequence[Run | Trial]) -> Iterator[str]:
    for digest in dict.fromkeys(row.source_hash for row in rows):
        path = source_path(root, digest)
        if not path.is_file():
            yield f"{path}: missing, although rows name it"
        elif source_hash(path.read_bytes().decode(errors="replace")) != digest:
            yield f"{path}: not the text that it is named after"


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
        elif _meets(trial) != (trial.status == REACHED):
            yield f"{name}: {trial.status} {_shown(trial.target)} with {_shown(trial.final_loss)}"
    keys = Counter((t.track_hash, t.stage, t.entrant, t.seed, t.target) for t in trials)
    for (_, stage, entrant, seed, _), times in keys.items():
        if times > 1:
            yield f"trial {entrant} ({stage}): {times} rows with seed {seed}"
    # Of a search that is not over nothing is claimed yet.
    over = {(t.track_hash, t.recipe) for t in trials if t.stage in AFTER_SEARCH}
    # One that was begun anew, with another value of what is not searched, counts once.
    budgets: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for searched in (t for t in trials if t.stage == "search"):
        if (searched.track_hash, searched.recipe) in over:
            budgets[searched.track_hash][searched.recipe].add(searched.trial)
    for track, budget in budgets.items():
        if len({len(indices) for indices in budget.values()}) > 1:
            shown = ", ".join(f"{recipe} {len(indices)}" for recipe, indices in budget.items())
            yield f"track {track}: recipes differ in their number of search trials: {shown}"


def _meets(trial: Trial) -> bool:
    """Whether a trial's last loss is as good as its target; never without either."""
    loss, target = trial.final_loss, trial.target
    return loss is not None and target is not None and loss <= target


def _check_tuned(section: tuned.Tuned, trials: Sequence[Trial]) -> Iterator[str]:
    """Whether tuned settings are those of the trials that they are said to come from."""
    name = f"tuned.toml [{section.track}.{section.recipe}]"
    if not section.trials and not section.source:  # what is published is not ours to check
        yield f"{name}: names neither a trial nor a source"
    for index in section.trials:
        key = (section.track, section.recipe, index)
        rows = [t for t in trials if (t.track, t.recipe, t.trial) == key]
        if not rows:
            yield f"{name}: tuning.csv has no trial {index}"
            continue
        rows = [t for t in rows if _agree(section.settings, _options(t.entrant))]
        if not rows:
            yield f"{name}: its settings are not those of trial {index}"
            continue
        rows = [t for t in rows if t.stage == "horizon" and t.steps == section.steps]
        # Of several targets the last counts: the ones before it were given up.
        met = [t.status == REACHED for t in rows if t.target == rows[-1].target]
        if not section.missed and not (met and all(met)):
            yield f"{name}: trial {index} did not reach the target in {section.steps} steps"
        if section.missed and (not met or all(met)):
            yield f"{name}: no run of trial {index} missed the target in {section.steps} steps"


def _options(entrant: str) -> dict[str, str]:
    """The options of an entrant, name:key=value,...; a value may have commas of its own."""
    _, _, options = entrant.partition(":")
    return dict(re.findall(r"(\w+)=(.*?)(?:,(?=\w+=)|$)", options))


def _agree(settings: dict[str, Any], options: dict[str, str]) -> bool:
    """Whether options that an entrant spells out are those of a section of TOML."""

    def same(value: Any, option: str) -> bool:
        try:
            return float(option) == float(value)
        except (TypeError, ValueError):
            return option.lower() == str(value).lower()

    return all(key in options and same(value, options[key]) for key, value in settings.items())


# ---- The command -------------------------------------------------------------------------------


def _equal(a: float | None, b: float | None) -> bool:
    if a is None or b is None:
        return a is b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6)


def _shown(value: float | None) -> str:
    return "empty" if value is None else f"{value:.9g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command. Returns its exit code: 0, 1 (something does not hold) or 2 (UserError)."""
    parser = argparse.ArgumentParser(prog="python -m leaderboard.verify")
    parser.add_argument("--root", type=Path, default=Path("results"), help="where runs.csv is")
    root = parser.parse_args(arguments).root
    try:
        runs, trials = read_runs(root), read_trials(root)
        if not runs and not trials:
            raise UserError(f"nothing to verify in {root}; run: make speedrun")
        found = problems(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if found:
        print(*found, sep="\n")
        return 1
    print(f"{len(runs)} runs and {len(trials)} tuning trials verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
