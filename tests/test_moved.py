"""What a wider search changed: gains paired by seed, the gap that was tuning, the new order."""

from dataclasses import replace

import pytest

from analysis import moved
from analysis.price import NO_TURNS
from errors import UserError
from tests.rows import entrant, make_trial
from tracking.schema import Trial

NOISE = (0.01, -0.01, 0.02, -0.02, 0.0)  # of the five seeds, the same for every setting


def confirm(recipe: str, setting: str, loss: float, seeds: int = 5) -> list[Trial]:
    return [
        make_trial(
            recipe=recipe, entrant=f"{recipe}:{setting}", stage="confirm", seed=1001 + k,
            final_loss=loss + NOISE[k],
        )
        for k in range(seeds)
    ]  # fmt: skip


EARLIER = [
    *confirm("adamw", "lr=1", 3.70), *confirm("adamw", "lr=2", 3.72),
    *confirm("muon", "lr=1", 3.60), *confirm("muon", "lr=9", 3.50, seeds=2),
]  # fmt: skip
LATER = [*confirm("adamw", "lr=3", 3.64), *confirm("muon", "lr=2", 3.61)]


def test_the_best_setting_is_the_one_of_all_seeds_with_the_lowest_mean() -> None:
    found = moved.confirmed(EARLIER)
    assert sum(found["adamw"].values()) / 5 == pytest.approx(3.70)
    assert sum(found["muon"].values()) / 5 == pytest.approx(3.60)  # two seeds confirm nothing


def test_gains_are_paired_by_seed_and_a_search_that_found_nothing_better_gains_nothing() -> None:
    adamw, muon = moved.gains(EARLIER, LATER)
    assert (adamw.recipe, muon.recipe) == ("adamw", "muon")
    assert adamw.difference.value == pytest.approx(0.06)
    # The noise of a seed is the same in both settings, so the interval is narrow.
    assert adamw.difference.low == pytest.approx(0.06)
    assert (muon.before, muon.after) == (pytest.approx(3.60), pytest.approx(3.60))
    assert muon.difference.value == 0


def test_an_optimizer_that_was_not_searched_again_has_no_row() -> None:
    begun = confirm("muon", "lr=5", 3.4, seeds=2)
    assert [gain.recipe for gain in moved.gains(EARLIER, [*LATER[:5], *begun])] == ["adamw"]


def test_the_part_of_the_lead_that_was_tuning_is_of_the_common_horizon() -> None:
    leagues = [
        moved.League(entrant("adamw", [80.0, 84.0, 82.0]) + entrant("muon", mine), NO_TURNS)
        for mine in ([60.0, 62.0, 61.0], [90.0, 92.0, 91.0])
    ]
    text = moved.markdown(EARLIER, LATER, leagues)
    assert "ended 0.100 nats below AdamW with the earlier settings, and ends 0.040 below" in text
    assert "60% of the earlier lead was tuning" in text
    assert "Muon from 1 to 2" in text and "AdamW from 2 to 1" in text
    assert "above 0 for: AdamW 0.060" in text and "No gain is shown for: Muon." in text
    last = next(line for line in text.splitlines() if line.startswith("| muon |"))
    assert last.endswith("| 1 | 2 |") and "1.34x" in last and "0.90x" in last


def test_a_lead_that_grew_was_no_tuning() -> None:
    runs = entrant("adamw", [80.0, 84.0]) + entrant("muon", [60.0, 62.0])
    leagues = [moved.League(runs, NO_TURNS)]
    later = [*confirm("adamw", "lr=3", 3.69), *confirm("muon", "lr=2", 3.50)]
    text = moved.markdown(EARLIER, later, leagues * 2)
    assert "ends 0.190 below it now. The lead grew by 0.09" in text and "was tuning" not in text
    assert "The order in seconds did not change." in text


@pytest.mark.parametrize(
    ("adamw", "muon", "words"),
    [
        (3.64, 3.60, "ends 0.040 below it now: 60% of the earlier lead was tuning. The lead fell"),
        (3.40, 3.45, "ends 0.050 above it now: all of the earlier lead was tuning. The lead fell"),
    ],
)
def test_a_loss_of_the_lead_that_seeds_do_not_explain_is_never_called_chance(
    adamw: float, muon: float, words: str
) -> None:
    text = moved.markdown(EARLIER, [*confirm("adamw", "lr=3", adamw), *confirm("muon", "x", muon)])
    assert words in text and "chance" not in text


def test_a_lead_that_changed_less_than_the_seeds_explain_is_not_called_tuning() -> None:
    later = [*confirm("adamw", "lr=3", 3.69), *confirm("muon", "lr=2", 3.595)]
    later[0] = replace(later[0], final_loss=3.75)
    later[1] = replace(later[1], final_loss=3.62)
    text = moved.markdown(EARLIER, later)
    assert "the difference may be chance" in text and "was tuning" not in text


@pytest.mark.parametrize(
    ("name", "value"),
    [("dtype", "float32"), ("attention", "plain"), ("torch", "2.11.0"), ("steps", 71),
     ("track_hash", "another")],
)  # fmt: skip
def test_settings_are_not_compared_over_other_conditions(name: str, value: object) -> None:
    """Else a gain would be of the precision, say, and of the settings together."""
    other = [replace(row, **{name: value}) for row in LATER]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=f"rows with {name} .* and .* run the earlier settings"):
        moved.gains(EARLIER, other)


def test_rows_of_a_longer_search_under_other_conditions_are_left_out() -> None:
    """A search goes on in the folder of the first one, whose rows may have another precision."""
    first = [replace(row, dtype="float32") for row in confirm("adamw", "lr=1", 3.1)]
    assert moved.gains(EARLIER, [*first, *LATER]) == moved.gains(EARLIER, LATER)


def test_without_leagues_the_losses_stand_alone() -> None:
    text = moved.markdown(EARLIER, LATER)
    assert text.startswith("| optimizer | loss, earlier settings | loss, wider search | gain |\n")
    assert "60% of the earlier lead was tuning" in text and "in seconds" not in text
