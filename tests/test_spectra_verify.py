"""The verifier's checks of spectra: what a damaged row or a missing one is told.

python -m pytest tests/test_spectra_verify.py
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from leaderboard import spectra
from tests.rows import make_points, make_run, make_spectra
from tracking.schema import Spectrum

SPREAD = {"gradient": 1e4, "momentum": 1e3, "update": 2.0, "weight": 30.0}
POINTS = make_points()
GOOD = make_spectra(POINTS, SPREAD)
QUERY = next(n for n, row in enumerate(GOOD) if row.kind == "query")
VECTOR = next(n for n, row in enumerate(GOOD) if row.columns == 1)
STEP = len(GOOD) // 5  # rows of a step


def problems(rows: Sequence[Spectrum], **changes: Any) -> list[str]:
    return list(spectra.problems(make_run(**changes), POINTS, rows))


def test_spectra_that_are_right_have_no_problem() -> None:
    assert problems(GOOD) == [] == problems([])
    without = make_spectra(POINTS, {k: v for k, v in SPREAD.items() if k != "momentum"})
    assert problems(without) == []
    assert problems(GOOD[:STEP], status="diverged") == []


def test_the_figures_of_zeros_are_right() -> None:
    names = ("largest", "q90", "q75", "median", "q25", "q10", "smallest")
    ratios = ("over_median", "over_smallest", "stable_rank", "effective_rank", "top_tenth")
    zeros: dict[str, Any] = dict.fromkeys(names, 0.0) | dict.fromkeys(ratios)
    assert problems(changed(QUERY, rms=0.0, **zeros)) == []
    one = zeros | dict(largest=2.0, stable_rank=1.0, effective_rank=1.0, top_tenth=1.0)
    assert problems(changed(QUERY, rms=2.0 / 16, **one)) == []


def changed(place: int, **values: Any) -> list[Spectrum]:
    rows = list(GOOD)
    rows[place] = replace(rows[place], **values)
    return rows


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (dict(rms=-1.0), "rms -1"),
        (dict(rows=0), "0 x 16 entries"),
        (dict(rms=1.0), "rms 1 cannot have a largest singular value of 1"),
        (dict(rms=0.01), "cannot have a largest"),
        (dict(median=None), "a quantile of its singular values is missing"),
        (dict(q25=2.0), "do not fall from largest to smallest"),
        (dict(smallest=-1e-9, over_smallest=-1e9), "do not fall from largest to smallest"),
        (dict(over_median=3.0), "over_median 3, but its other columns give"),
        (dict(over_smallest=None), "over_smallest nothing, but its other columns give 10000"),
        (dict(stable_rank=1.5), "stable_rank 1.5, but its other"),
        (dict(effective_rank=17.0), "effective_rank 17, which is from 1 to 16"),
        (dict(effective_rank=None), "effective_rank is missing"),
        (dict(top_tenth=0.01), "top_tenth 0.01, which is from 0.0625 to 1"),
    ],
)
def test_a_row_must_be_of_one_matrix(values: dict[str, Any], complaint: str) -> None:
    assert any(complaint in line for line in problems(changed(QUERY, **values)))


def test_a_vector_has_no_singular_values() -> None:
    assert any("values of a vector" in line for line in problems(changed(VECTOR, largest=1.0)))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda rows: rows[:-1], "step 100 are of other parts than those of its first step"),
        (lambda rows: rows[:-STEP], "are of steps 20, 40, 60, 80, not 20, 40, 60, 80, 100"),
        (lambda rows: rows[STEP:] + rows[:STEP], "are of steps 40, 60, 80, 100, 20, not 20"),
        (lambda rows: [*rows, rows[-1]], "step 100 have a tensor of a part twice"),
        (lambda rows: [r for r in rows if r.tensor != "weight"], "gradient, momentum, update"),
        (lambda rows: [r for r in rows if r.kind != "key"], "not of parts 0, 1, ..."),
        (lambda rows: [replace(r, tensor="x") if r.tensor == "momentum" else r for r in rows],
         "are of gradient, update, weight, x"),
    ],
)  # fmt: skip
def test_spectra_must_be_complete(
    damage: Callable[[list[Spectrum]], list[Spectrum]], complaint: str
) -> None:
    assert any(complaint in line for line in problems(damage(GOOD))), problems(damage(GOOD))


def test_a_run_that_diverged_has_steps_of_its_own() -> None:
    assert any("not of steps 1 to 30" in p for p in problems(GOOD, status="diverged", steps=30))
