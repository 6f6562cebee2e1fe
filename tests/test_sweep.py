"""What a search left to be found by the learning rate alone, beside the spread between seeds."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis import sweep
from errors import UserError
from leaderboard import pages
from tests.rows import entrant, make_trial
from tracking.schema import SWEEP, Trial
from tracking.store import append

# Three entrants of one horizon: each has losses 0.01 apart, so the pooled deviation is 0.01.
LEAGUE = [
    replace(run, final_loss=loss + 0.01 * (k - 1))
    for recipe, loss in (("adamw", 3.6), ("muon", 3.5))
    for k, run in enumerate(entrant(recipe, [60.0, 61.0, 62.0]))
]


def trials(recipe: str, losses: list[float | None], lr: float = 0.1) -> list[Trial]:
    return [
        make_trial(
            recipe=recipe, entrant=f"{recipe}:lr={lr * factor:.3g},steps=70", stage="sweep",
            trial=k, steps=70, seed=1000, final_loss=loss,
        )
        for k, (factor, loss) in enumerate(zip(SWEEP, losses, strict=True))
    ]  # fmt: skip


GOOD = trials("muon", [4.0, 3.8, 3.6, 3.5, 3.49, 3.8, None])
WRONG = trials("adamw", [4.0, 3.8, 3.7, 3.65, 3.66, 3.629, 3.9])


def test_a_gain_is_the_tuned_loss_above_the_best_one() -> None:
    adamw, muon = sweep.swept([*GOOD, *WRONG])
    assert (adamw.recipe, adamw.lr, adamw.best_lr) == ("adamw", 0.1, pytest.approx(0.464))
    assert adamw.gain == pytest.approx(0.021) and muon.gain == pytest.approx(0.01)
    best = sweep.swept(trials("sgd", [4.0, 3.9, 3.8, 3.7, 3.8, 3.9, None]))[0]
    assert best.gain == 0 and best.best_lr == best.lr
    lost = sweep.swept(trials("lion", [None] * 7))[0]
    assert lost.gain == 0  # nothing is better than nothing


def test_the_newest_sweep_counts_wherever_its_rows_stand() -> None:
    old = [replace(t, started="2026-11-26T00:00:00+00:00") for t in trials("muon", [3.7] * 7)]
    new = [
        replace(t, entrant=f"{t.entrant},momentum=0.7", started="2026-11-27T00:00:00+00:00")
        for t in trials("muon", [3.6] * 7)
    ]
    found = sweep.newest_sweeps([*new, *old], new[0].track_hash)
    assert [each.final_loss for each in found] == [3.6] * 7


def test_the_table_names_whoever_gains_more_than_two_spreads() -> None:
    text = sweep.markdown([*GOOD, *WRONG], LEAGUE)
    assert "| adamw | 0.1 | 3.6500 | 0.464 | 3.6290 | 0.0210 | 2.1 |" in text
    assert "| muon | 0.1 | 3.5000 | 0.215 | 3.4900 | 0.0100 | 1.0 |" in text
    assert "A spread is 0.0100 nats" in text
    assert text.endswith("More than 2 spreads below its tuned point: AdamW.")
    assert sweep.markdown(GOOD, LEAGUE).endswith("below its tuned point: none.")


def test_a_sweep_without_rows_or_without_a_spread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no complete sweep of an lr; name a record"):
        sweep.markdown(GOOD[:6], LEAGUE)
    with pytest.raises(UserError, match="single runs, which show no spread"):
        sweep.markdown(GOOD, LEAGUE[:1])
    for row in GOOD:
        append(tmp_path / "results" / "records" / "one" / "tuning.csv", row)
    page = "<!-- begin:sweep one -->\n<!-- end:sweep -->\n"
    with pytest.raises(UserError, match="sweep one: name a record of a sweep, and a race behind"):
        pages.rewrite(page, tmp_path)
