"""Whether the spectra of a run are complete, and agree with themselves and with its curve.

Figures have six digits, so what follows from two of them is off by about 1e-5.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise

from tracking.schema import DIVERGED, Run, Spectrum, Validation
from tracking.spectra import MOST, TENSORS, spread

OFF = 1e-4  # relative
QUANTILES = ("largest", "q90", "q75", "median", "q25", "q10", "smallest")
RATIOS = ("over_median", "over_smallest", "stable_rank", "effective_rank", "top_tenth")
Place = tuple[str, int, str]  # parameter, part, tensor


def problems(run: Run, points: Sequence[Validation], spectra: Sequence[Spectrum]) -> Iterator[str]:
    """A line for each thing that is wrong with the spectra of a run; none if it has none."""
    if not spectra:
        return
    by_step: dict[int, list[Spectrum]] = defaultdict(list)
    for row in spectra:
        by_step[row.step].append(row)
    yield from _check_steps(run, [point.step for point in points if point.step], [*by_step])
    about = {_place(row): _about(row) for row in next(iter(by_step.values()))}
    for step, rows in by_step.items():
        places = [_place(row) for row in rows]
        if len(set(places)) < len(places):
            yield f"its spectra at step {step} have a tensor of a part twice"
        elif {_place(row): _about(row) for row in rows} != about:
            yield f"its spectra at step {step} are of other parts than those of its first step"
    yield from _check_parts(next(iter(by_step.values())))
    for row in spectra:
        name = f"{row.tensor} of {row.parameter}, part {row.part}, at step {row.step}"
        yield from (f"its {name}: {problem}" for problem in _check_row(row))


def _place(row: Spectrum) -> Place:
    return row.parameter, row.part, row.tensor


def _about(row: Spectrum) -> tuple[str, str, int, int]:
    return row.role, row.kind, row.rows, row.columns


def _check_steps(run: Run, validated: list[int], steps: list[int]) -> Iterator[str]:
    """Whether the steps are the ones that are measured; a run that diverged may lack some."""
    if run.status == DIVERGED:
        if steps != sorted(steps) or any(not 1 <= step <= run.steps for step in steps):
            yield f"its spectra are not of steps 1 to {run.steps} in order"
    elif steps != spread(validated):
        yield f"its spectra are of steps {_list(steps)}, not {_list(spread(validated))}"


def _list(steps: Sequence[int]) -> str:
    """The first of them, of which a damaged file may have many."""
    return ", ".join(map(str, steps[:MOST])) + ", ..." * (len(steps) > MOST)


def _check_parts(rows: Sequence[Spectrum]) -> Iterator[str]:
    """Whether each part has its tensors, and each parameter parts from 0 on of as many columns."""
    tensors: dict[tuple[str, int], set[str]] = defaultdict(set)
    parts: dict[str, dict[int, int]] = defaultdict(dict)
    for row in rows:
        tensors[row.parameter, row.part].add(row.tensor)
        parts[row.parameter][row.part] = row.columns
    for (name, part), found in tensors.items():
        missing = {*TENSORS} - found - {"momentum"}  # which not every rule keeps
        if missing or found - {*TENSORS}:
            yield f"its spectra of {name}, part {part}, are of {', '.join(sorted(found))}"
    for name, columns in parts.items():
        if sorted(columns) != list(range(len(columns))) or len(set(columns.values())) > 1:
            yield f"its spectra of {name} are not of parts 0, 1, ... with as many columns"


def _check_row(row: Spectrum) -> Iterator[str]:
    """Whether the figures of a row can be those of one tensor."""
    values = [getattr(row, name) for name in (*QUANTILES, *RATIOS)]
    if row.rows < 1 or row.columns < 1 or row.rms < 0:
        yield f"{row.rows} x {row.columns} entries, of rms {row.rms:g}"
    elif row.columns == 1:
        if any(value is not None for value in values):
            yield "singular values of a vector"
    elif any(getattr(row, name) is None for name in QUANTILES):
        yield "a quantile of its singular values is missing"
    else:
        yield from _check_quantiles(row)
        yield from _check_ratios(row)


def _check_quantiles(row: Spectrum) -> Iterator[str]:
    values = [getattr(row, name) for name in QUANTILES]
    if any(after > before for before, after in pairwise(values)) or values[-1] < 0:
        yield "its quantiles do not fall from largest to smallest"
    largest, n = values[0], min(row.rows, row.columns)
    norm = row.rms * math.sqrt(row.rows * row.columns)  # of Frobenius
    if not largest * (1 - OFF) <= norm <= math.sqrt(n) * largest * (1 + OFF):
        yield f"rms {row.rms:g} cannot have a largest singular value of {values[0]:g}"


def _check_ratios(row: Spectrum) -> Iterator[str]:
    """Ratios that follow from other columns, and the bounds of the others."""
    largest, n = row.largest or 0.0, min(row.rows, row.columns)
    norms = row.rms / largest * math.sqrt(row.rows * row.columns) if largest else 0.0
    follow = {
        "over_median": largest / row.median if row.median else None,
        "over_smallest": largest / row.smallest if row.smallest else None,
        "stable_rank": norms * norms if largest else None,
    }
    for name, value in follow.items():
        found = getattr(row, name)
        same = found is value is None or (
            found is not None and value is not None and math.isclose(found, value, rel_tol=OFF)
        )
        if not same:
            yield f"{name} {_shown(found)}, but its other columns give {_shown(value)}"
    bounds = {"stable_rank": (1, n), "effective_rank": (1, n), "top_tenth": (1 / n, 1)}
    for name, (least, most) in bounds.items():
        found = getattr(row, name)
        if found is None:
            if largest:
                yield f"{name} is missing"
        elif not largest or not least * (1 - OFF) <= found <= most * (1 + OFF):
            yield f"{name} {found:g}, which is from {least:g} to {most:g}"


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:g}"
