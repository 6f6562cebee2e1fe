"""How much a search varies: the outcomes of an optimizer that was searched twice."""

import math
from dataclasses import replace

import pytest

from analysis import repeats
from tests.rows import make_trial
from tracking.schema import Trial

NOISE = (0.01, -0.01, 0.02, -0.02, 0.0)  # of the five seeds, the same for every setting


def runs(
    lr: int, loss: float, number: int = 7, steps: int = 70, stage: str = "confirm"
) -> list[Trial]:
    return [
        make_trial(
            recipe="adamw", entrant=f"adamw:lr={lr},steps={steps},warmup=0.0", stage=stage,
            trial=number, steps=steps, seed=1001 + k, final_loss=loss + NOISE[k],
        )
        for k in range(5)
    ]  # fmt: skip


def found(lr: int, number: int = 7) -> Trial:
    return replace(runs(lr, 3.6, number, stage="refine")[0], seed=1000)


FIRST = [found(1), *runs(1, 3.63)]
SECOND = [found(2), *runs(2, 3.60)]  # its trial has the same number, so it alone counts


def test_two_outcomes_of_one_search_are_paired_by_seed() -> None:
    (repeat,) = repeats.repeats([*FIRST, *SECOND])
    assert repeat.counts.mean == pytest.approx(3.60) and repeat.other.mean == pytest.approx(3.63)
    assert repeat.difference.value == pytest.approx(0.03)
    assert repeat.difference.high == pytest.approx(0.03)  # the noise of a seed is in both
    text = repeats.markdown([*FIRST, *SECOND])
    assert text.startswith("- AdamW was searched again, and that search ended at 3.6300 in place ")
    assert "of 3.6000: 0.0300 nats higher [0.0300, 0.0300]." in text and "steps" not in text
    back = repeats.markdown([*SECOND, *FIRST])
    assert "3.6000 in place of 3.6300: 0.0300 nats lower" in back


def test_a_search_that_was_not_repeated_has_no_second_outcome() -> None:
    both = [found(1, 3), *runs(1, 3.63, 3), *SECOND]  # two finalists of one search
    others = [
        [*FIRST[:4], *SECOND],  # it was given up before all seeds
        [*(replace(row, dtype="float32") for row in FIRST), *SECOND],  # it had another precision
        both,
        SECOND,
        [],
    ]
    for rows in others:
        assert repeats.repeats(rows) == []
        assert repeats.markdown(rows) == "No optimizer was searched again."


def test_a_difference_is_worth_the_steps_that_the_horizons_tell() -> None:
    """A loss that falls by 0.5 if the horizon is e times as long; seeds miss some horizons."""
    longer = [
        *runs(2, 3.60 - 0.5 * math.log(80 / 70), steps=80, stage="horizon"),
        *runs(2, 3.60 - 0.5 * math.log(60 / 70), steps=60, stage="horizon")[:1],
        *runs(1, 9.0, steps=80, stage="horizon"),  # the same number, but another setting
    ]
    (repeat,) = repeats.repeats([*FIRST, *SECOND, *longer])
    assert repeat.fall == pytest.approx(0.5)
    worth = f"so much is worth {math.expm1(0.03 / 0.5):.0%} of the steps."
    assert repeats.markdown([*FIRST, *SECOND, *longer]).endswith(worth)
