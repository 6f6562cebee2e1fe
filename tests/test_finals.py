"""The table of final losses and attention logits: its means, its tests, and what it refuses."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import finals
from errors import UserError
from tests.rows import SOURCE, make_logits, make_points, make_run
from tracking.schema import Run
from tracking.store import read_runs, record

LOSSES = {"muon": (3.60, 3.61, 3.62), "muon-split": (3.50, 3.51, 3.52)}


def write(root: Path) -> None:
    points = make_points()
    for label, losses in LOSSES.items():
        for seed, loss in enumerate(losses):
            run = make_run(label=label, entrant=label, seed=seed, final_loss=loss, race=label)
            run = replace(run, run=f"{label}-{seed}")
            record(root, run, points, SOURCE, make_logits(points) if label == "muon" else [])


def races(root: Path, *names: str, runs: list[Run] | None = None) -> list[tuple[Path, list[Run]]]:
    """The named races of a folder, with its runs or with others in their place."""
    known = read_runs(root) if runs is None else runs
    return [(root, [run for run in known if run.race == name]) for name in names]


def test_losses_and_logits_are_means_over_runs_and_pairs_are_tested(
    tmp_path: Path, golden: Callable[[str, str], None]
) -> None:
    write(tmp_path)
    lines = finals.markdown(races(tmp_path, "muon", "muon-split")).splitlines()
    largest = f"{4 * 2.0**10:.1f}"
    assert lines[2] == (
        f"| 1 | tiny | muon | 3 | 3.6100 [3.5852, 3.6348] | {largest} [{largest}, {largest}] |"
    )
    assert lines[3] == "| 2 | tiny | muon-split | 3 | 3.5100 [3.4852, 3.5348] | - |"
    golden("finals", "\n".join(lines) + "\n")
    same = {"a": [3.60, 3.61, 3.62], "b": [3.601, 3.611, 3.622]}
    assert finals.told_apart(same).endswith("for 1 pair): none.")
    assert finals.told_apart({"a": [3.6], "b": [3.5, 3.4]}).endswith("for 0 pairs): none.")


def test_an_entrant_with_a_run_that_diverged_is_not_tested(tmp_path: Path) -> None:
    write(tmp_path)
    runs = read_runs(tmp_path)
    runs[0] = replace(runs[0], status="diverged", final_loss=None)
    lines = finals.markdown(races(tmp_path, "muon", "muon-split", runs=runs)).splitlines()
    assert lines[2].startswith("| 1 | tiny | muon | 3, 1 diverged | 3.6150 [")
    assert lines[-1].endswith("for 0 pairs): none. Not tested, because runs diverged: 1.")


def test_the_difference_that_would_be_seen_is_that_of_tables_of_power() -> None:
    """Of five values each 2.02 deviations by Student's test (Cohen 1988), by Welch's a bit more."""
    values = [3.5 + x * 0.1 / (2.5**0.5) for x in (-2, -1, 0, 1, 2)]
    found = re.search(r"a difference of ([\d.]+) with", finals.detectable_note([values, values]))
    assert found and 0.202 < float(found[1]) < 0.21
    assert finals.detectable_note([values]) == finals.detectable_note([[3.5], [3.6]]) == ""


def test_several_horizons_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    runs = read_runs(tmp_path)
    runs[0] = replace(runs[0], steps_planned=90)
    with pytest.raises(UserError, match=r"horizons \[90, 100\] do not compare"):
        finals.markdown(races(tmp_path, "muon", runs=runs))


def test_logits_are_compared_at_the_steps_that_all_were_measured_at(tmp_path: Path) -> None:
    points = make_points()
    rows = make_logits(points)
    early = [replace(row, step=10, max_logit=1e6) for row in rows if row.step == 20]
    for label, found in (("muon", rows), ("muonclip", early + rows)):
        run = make_run(label=label, entrant=label, race="race", run=label)
        record(tmp_path, run, points, SOURCE, found)
    lines = finals.markdown(races(tmp_path, "race")).splitlines()
    assert all(line.endswith(f" {4 * 2.0**10:.1f} |") for line in lines[2:4])
    assert "Logits are the largest at steps 20, 40, 60, 80, 100." in lines[-1]
    assert finals.listed([1, 2, 3]) == "1 to 3"
    assert finals.common_steps([{}, {1: 0.0}]) == [1]


def test_options_that_differ_are_named_typed_or_default(tmp_path: Path) -> None:
    typed = {"muon:lr=0.1,cooldown=0.3": "muon:lr=0.1", "muon:lr=0.1,cooldown=0.7": "muon:lr=0.10"}
    runs = [make_run(label=label, entrant=entrant) for entrant, label in typed.items()]
    assert finals.differences(runs) == "The entrants differ in cooldown."
    assert finals.differences(runs[:1]) == ""
    clip = make_run(label="muonclip", entrant="muonclip:lr=0.1,cooldown=0.3,tau=10")
    assert finals.differences([runs[0], clip]) == "The entrants differ in recipe, tau."
