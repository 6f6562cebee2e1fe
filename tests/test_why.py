"""The verdicts on what is claimed of Muon's updates: their words follow from the rows."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import spectra, why
from analysis.stats import Estimate
from errors import UserError
from leaderboard import pages
from tests.rows import SOURCE, make_points, make_run, spectrum_columns
from tests.test_spectra_plots import FIELD, means, write
from tracking.schema import Run, Spectrum
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
    for words in (
        "AdamW's update is of low",
        "Muon's update is less",
        "of Muon's update are alike",
    ):
        (line,) = lines(found, words)
        assert line.endswith("**holds**.")
    (soap,), (sgd,) = lines(found, "SOAP's update is between"), lines(found, "SGD's")
    assert soap.endswith("**holds**.") and sgd.endswith("**does not hold**.")


def of_random_numbers(run: Run, shapes: Sequence[tuple[int, int]]) -> list[Spectrum]:
    """A matrix of each shape, drawn by the seed of the run, as every tensor at every moment."""
    generator = np.random.default_rng(run.seed)
    found = []
    for step, tensor in itertools.product((5, 40, 100), ("gradient", "momentum", "update")):
        for number, (rows, columns) in enumerate(shapes):
            values = np.linalg.svd(generator.normal(size=(rows, columns)), compute_uv=False)
            found.append(
                Spectrum(
                    step=step, parameter="w", role="matrix", kind="query" if number else "mlp.fc",
                    part=number, rows=rows, columns=columns, tensor=tensor,
                    **spectrum_columns(values, rows, columns),
                )
            )  # fmt: skip
    return found


def test_no_claim_holds_for_random_numbers(tmp_path: Path) -> None:
    """Else a criterion would be met by matrices in which no direction counts more."""
    for label, seed in itertools.product(("adamw", "muon"), range(3)):
        points = make_points()
        name = f"random-{label}-{seed}"
        run = make_run(points, label=label, entrant=label, seed=seed, run=name, race="random")
        measured = of_random_numbers(run, [(128, 128), (128, 512), (512, 128)])
        record(tmp_path, run, points, SOURCE, spectra=measured)
    found = why.race_of(tmp_path, read_runs(tmp_path))
    directions = lines(why.directions(found), "**")
    assert len(directions) == 2 * len(why.MEASURES)
    for line in [*directions, *lines(why.updates(found), "AdamW's update is of low rank")]:
        assert "**does not hold**" in line and "**holds**" not in line, line
    for line in lines(why.updates(found), "Muon's update"):
        assert "**holds**" not in line, line


def test_singular_matrices_are_counted_and_have_the_least_ratio(tmp_path: Path) -> None:
    """A ratio over 0 is no number to leave out: these are the worst of all conditions."""
    runs = write(tmp_path, {"muon": {}})
    for run, rows in runs:
        changed = [
            replace(row, smallest=0.0, over_smallest=None)
            if (row.tensor, row.kind) == ("gradient", "query")
            else row
            for row in rows
        ]
        record(tmp_path / "changed", run, make_points(), SOURCE, spectra=changed)
    found = why.race_of(tmp_path / "changed", [run for run, _ in runs])
    steps, kinds = 3, 3
    assert f"| {len(runs) * steps} of {len(runs) * steps * kinds} |" in why.directions(found)
    own = found.of("muon", "gradient")
    singular = own[own["kind"] == "query"]
    assert (singular["over_smallest"] == 2**23).all()
    assert spectra.profile(singular).values[-1] == pytest.approx(2**-23)


def test_an_entrant_with_one_run_left_has_no_verdict(tmp_path: Path) -> None:
    """Its figure has no interval, and must not decide among those that have one."""
    runs = write(tmp_path, FIELD)
    kept = [run for run, _ in runs if (run.label, run.seed) != ("sgd", 0)]
    found = why.race_of(tmp_path, kept)
    text = "\n".join(part(found) for part in why.PARTS.values())
    assert "Left out, because fewer than two of their runs were measured: SGD." in text
    assert text.count("SGD") == 1


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
    risen = ", ".join(f"Muon's update{block}" for block in ("", " of attention", " of MLP"))
    assert lines(found, "It rises") == [f"- It rises: {risen}."]
    assert lines(found, "It falls", "AdamW's gradient") and lines(found, "falls", "AdamW's update")


@pytest.mark.parametrize(("factor", "word"), [(0.9, "holds"), (1.0, "does not hold")])
def test_queries_and_keys_are_compared_with_the_lowest_other_kind(
    tmp_path: Path, factor: float, word: str
) -> None:
    """Queries have a steeper decay in the rows. That is not enough: keys must be lower, too."""
    for run, rows in write(tmp_path, {"muon": {}}):
        changed = [
            replace(row, stable_rank=factor * row.stable_rank)
            if row.kind == "key" and row.stable_rank
            else row
            for row in rows
        ]
        record(tmp_path / "changed", run, make_points(), SOURCE, spectra=changed)
    found = why.kinds(why.race_of(tmp_path / "changed", read_runs(tmp_path / "changed")))
    assert "| query, of 16 |" in found and "| mlp.fc, of 16 |" in found
    for tensor in ("momentum", "update"):
        (line,) = lines(found, f"queries and keys have the lowest stable ranks of the {tensor}")
        assert f"**{word}** for Muon (" in line


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
    assert "4 runs of race why, measured after step 5, 40 and 100. There is one seed" in text
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
