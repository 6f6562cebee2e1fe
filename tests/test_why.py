"""The verdicts on what is claimed of Muon's updates: their words follow from the rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis import why
from analysis.stats import Estimate
from errors import UserError
from leaderboard import pages
from tests.rows import SOURCE, make_points, make_run
from tests.test_spectra_plots import FIELD, means, write
from tracking.store import read_runs, record


def lines(text: str, *words: str) -> list[str]:
    """The list items that contain all of these words."""
    return [x for x in text.splitlines() if x.startswith("- ") and all(w in x for w in words)]


def race(root: Path, **changes: dict[str, float]) -> why.Race:
    write(root, FIELD | changes)
    return why.race_of(root, read_runs(root))


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.02, 0.08, "holds"),
        (0.12, 0.2, "does not hold"),
        (0.08, 0.12, "undecided"),
        (None, None, "holds"),
    ],
)
def test_a_claim_holds_if_the_whole_interval_meets_its_criterion(
    low: float | None, high: float | None, word: str
) -> None:
    value = 0.05 if low is None or high is None else (low + high) / 2
    assert why.verdict(Estimate(value, low, high, 2), 0, 0.1) == word


def test_few_directions_are_told_from_many(tmp_path: Path) -> None:
    race_of_few = race(tmp_path / "few", sgd={"momentum": 0.05})
    found = why.directions(race_of_few)
    gradient, momentum = lines(found, "largest over median above 10")
    assert gradient == momentum
    assert gradient == (
        "- largest over median above 10: **holds** for AdamW, Muon, SOAP; "
        "**does not hold** for SGD."
    )  # fmt: skip
    assert "| sgd | 1" in found  # of 16, as a decay of 0.05 is nearly orthogonal


def test_the_updates_of_the_optimizers_are_compared(tmp_path: Path) -> None:
    """AdamW's i-th singular value is 1 / i, so that the first has two thirds of the squares."""
    runs = write(tmp_path, FIELD)
    found = why.updates(why.race_of(tmp_path, [run for run, _ in runs]))
    muon = [pair for pair in runs if pair[0].label == "muon"]
    update, momentum = (
        means(muon, "stable_rank", role="matrix", tensor=tensor)
        for tensor in ("update", "momentum")
    )
    assert f"Muon's update has a stable rank of {update:.3g} [" in found
    assert f"its momentum {momentum:.3g} [" in found
    (low,), (flat,) = lines(found, "AdamW's update is of"), lines(found, "Muon's update is not")
    assert low.endswith("**holds**.") and flat.endswith("**holds**.")
    (soap,), (sgd,) = lines(found, "SOAP's update is between"), lines(found, "SGD's")
    assert soap.endswith("**holds**.") and sgd.endswith("**does not hold**.")


def test_a_race_without_muon_compares_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, {name: FIELD[name] for name in ("adamw", "sgd")})
    alone = why.race_of(tmp_path, read_runs(tmp_path))
    assert not lines(why.updates(alone), "between") and "| sgd |" in why.updates(alone)
    assert not lines(why.balance(alone), "factor") and "| query |" in why.balance(alone)


def test_the_change_over_training_has_a_direction(tmp_path: Path) -> None:
    runs = write(tmp_path, {"muon": {}, "adamw": {}})
    for run, rows in runs:
        grows = 2.0 if run.label == "muon" else 0.5
        changed = [
            replace(row, stable_rank=grows * row.stable_rank)
            if row.stable_rank and (row.step, row.tensor) == (100, "update")
            else row
            for row in rows
        ]
        record(tmp_path / "changed", run, make_points(), SOURCE, spectra=changed)
    found = why.training(why.race_of(tmp_path / "changed", [run for run, _ in runs]))
    assert "| muon, update |" in found and "| 2x [2x, 2x] | rises |" in found
    assert lines(found, "It rises") == ["- It rises: Muon's update."]
    assert lines(found, "It falls", "AdamW's gradient") and lines(found, "falls", "AdamW's update")


def test_queries_are_compared_with_the_other_kinds(tmp_path: Path) -> None:
    """The decay of queries is steeper in the rows, so their rank is lower."""
    found = why.kinds(race(tmp_path))
    assert "| query, of 16 |" in found and "| mlp.fc, of 16 |" in found
    for tensor in ("momentum", "update"):
        (line,) = lines(found, f"the {tensor} of queries and keys")
        assert line.count("**") == 2 and "**holds** for AdamW (0.9" in line


def test_the_balance_is_compared_with_adamws(tmp_path: Path) -> None:
    """A vector's update is its size; a matrix's has a size and a decay, as its weight has."""
    found = why.balance(race(tmp_path))
    (embed,), (vector,) = lines(found, "the embedding"), lines(found, "the vectors")
    assert embed.endswith("**holds**.") and "within a factor of 2" in embed
    assert vector.endswith("**does not hold**.")
    assert lines(found, "largest singular value", "larger with Muon")[0].endswith(
        "(1x [1x, 1x]): **does not hold**."
    )
    assert "| vector | 0.1% | 0.4% | 0.2% | 0.1% |" in found
    assert "| vector, norm | 4 (1x) |" in found and "| vector, largest" not in found


def test_a_single_seed_has_no_interval(tmp_path: Path) -> None:
    write(tmp_path, FIELD, seeds=1)
    alone = why.race_of(tmp_path, read_runs(tmp_path))
    text = "\n".join(part(alone) for part in why.PARTS.values())
    assert "4 runs of race why, each measured at 3 steps. There is one seed" in text
    assert "Mean final losses: AdamW 3.0000 after 100 steps, Muon 3.0000 after" in text
    assert "[" not in text and "**holds**" in text


def test_the_command_prints_every_part_of_the_newest_race(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = race(tmp_path)
    assert why.main(["--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert all(part(made) in said for part in why.PARTS.values())


def test_a_race_without_spectra_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = make_points()
    run = make_run(points)
    record(tmp_path, run, points, SOURCE)
    with pytest.raises(UserError, match="race tiny-1 measured no spectra; run: make why"):
        why.race_of(tmp_path, [run])
    assert why.main(["--root", str(tmp_path)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_page_shows_every_part_of_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "records" / "why"
    made = race(folder)
    for name, part in why.PARTS.items():
        marked = f"<!-- begin:why_{name} why -->\n", f"<!-- end:why_{name} -->"
        assert pages.rewrite("".join(marked), tmp_path) == f"{part(made)}\n".join(marked)
