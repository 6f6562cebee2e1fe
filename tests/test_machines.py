"""Whether two machines end alike."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from analysis import machines
from errors import UserError
from tests.rows import make_trial
from tracking.schema import Trial


def confirmed(device: str, losses: Mapping[int, float | None], lr: float = 0.1) -> list[Trial]:
    """Fresh trials of Muon by seed; None is one that diverged."""
    return [
        make_trial(
            stage="confirm", entrant=f"muon:lr={lr}", device=device, seed=seed, final_loss=loss
        )
        for seed, loss in losses.items()
    ]


OURS = confirmed("a CPU", {1: 3.50, 2: 3.60, 3: 3.58, 4: None, 5: 3.9})


def test_differences_are_paired_by_seed_and_setting() -> None:
    theirs = confirmed("a GPU", {3: 3.60, 1: 3.51, 2: 3.63, 4: 3.1})  # in any order
    theirs += [*confirmed("a GPU", {1: 3.0}, lr=0.2), make_trial(device="another", seed=1)]
    heading, _, row, *_ = machines.markdown(OURS, theirs).splitlines()
    assert heading.endswith(" | loss, a CPU | loss, a GPU | difference |")
    # 0.01, 0.03 and 0.02: t of 2 degrees of freedom is 4.3027, the standard error 0.01 / sqrt(3)
    assert row == "| Muon | 3 | 3.5600 | 3.5800 | 0.0200 [-0.0048, 0.0448] |"


@pytest.mark.parametrize(
    "theirs",
    [
        [],
        confirmed("a GPU", {1: 3.5}, lr=0.2),
        confirmed("a GPU", {6: 3.5}),
        [replace(row, stage="search") for row in OURS],
        confirmed("a GPU", {1: 3.5}) + confirmed("another", {2: 3.6}),
    ],
)
def test_what_is_not_of_two_machines_is_refused(theirs: list[Trial]) -> None:
    with pytest.raises(UserError, match="all of one machine on each side; make some with: python"):
        machines.markdown(OURS, theirs)
