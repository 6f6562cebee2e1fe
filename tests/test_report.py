"""What a report says of a race, and what it makes of a README."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import report, table
from errors import UserError
from optim import recipes
from tests.rows import entrant, make_run
from tracking import store
from tracking import tuned as settings
from tracking.schema import Run

REPOSITORY = Path(__file__).parents[1]


def test_summary_of_an_entrant():
    runs = entrant("muon", [60.0, 70.0, None], step_seconds=0.2)
    runs += [
        make_run(
            status="diverged",
            steps=20,
            tokens=81920,
            final_loss=9.0,
            train_seconds=4.0,
            optimizer_seconds=0.2,
            steps_to_target=None,
            state_bytes=6_000_000,
            mfu=0.3,
        )
    ]
    (row,) = table.summarise(runs)
    assert (row.label, row.n, row.reached, row.missed, row.diverged) == ("muon", 4, 2, 1, 1)
    assert row.steps.expected.value == pytest.approx((60 + 70 + 100 + 20) / 2)
    assert row.steps.sd is None  # of runs that missed nobody knows where they would have reached
    assert table.summarise(runs[:2])[0].steps.sd == pytest.approx(50**0.5)
    assert row.tokens.expected.value == pytest.approx((4096 * 130 + 409600 + 81920) / 2)
    assert row.seconds.expected.value == pytest.approx((12 + 14 + 20 + 4) / 2)
    assert row.step_ms == pytest.approx(1000 * 64 / 320)
    assert row.optimizer_ms == pytest.approx(1000 * 3.2 / 320)
    assert row.state_bytes == 6_000_000
    assert row.final_loss == pytest.approx(3.0)  # that of the diverged run is left out
    assert row.final_loss_sd == pytest.approx(0)
    assert row.target == 3.5


def test_every_recipe_is_spelled_as_prose_writes_it():
    assert sorted(recipes()) == sorted(table.SPELLED)


def test_entrants_keep_the_order_in_which_they_first_ran():
    a, b = entrant("b", [50.0, 50.0]), entrant("a", [50.0, 50.0])
    assert [row.label for row in table.summarise([a[0], b[0], b[1], a[1]])] == ["b", "a"]


def test_the_table_is_the_same_in_every_form():
    rows = table.summarise(entrant("muon", [60.0, 70.0]) + entrant("adamw", [None, None]))
    lines = table.text(rows).splitlines()
    assert len(lines) == 4 and len({len(line) for line in lines}) == 1
    cells = [cell.strip() for cell in table.markdown(rows).splitlines()[2].strip("|").split("|")]
    assert cells == [
        *["muon", "2", "2/0/0", "65 ± 7", "0.27 ± 0.03", "6.5 ± 0.7", "100.0", "5.00"],
        *["800 MB", "5.00 MB", "50.0%", "3.0000 ± 0.0000"],
    ]
    assert lines[2].split("  ")[0] == "muon" and "65 ± 7" in lines[2]
    assert lines[3].split()[:6] == ["adamw", "2", "0/2/0", "-", "-", "-"]


def test_a_race_without_a_finished_run_has_a_table():
    assert len(table.text(table.summarise([])).splitlines()) == 2
    assert report.sentences([]) == []


def test_a_run_without_a_step_has_a_row():
    run = make_run(
        status="diverged", steps=0, tokens=0, train_seconds=0.0, final_loss=None, mfu=0.0
    )
    (row,) = table.summarise([run])
    assert (row.steps, row.step_ms, row.optimizer_ms, row.final_loss) == (None, None, None, None)
    assert "0/0/1" in table.text([row])


def test_the_sentence_of_a_win():
    runs = entrant("adamw", [70.0, 70.0], 0.1) + entrant("muon", [50.0, 50.0], 0.1 * 1.4 / 1.3)
    assert report.sentence(runs) == (
        "Muon reached a validation loss of 3.5 in 28.6% fewer steps than AdamW (AdamW takes 1.40x "
        "as many; 95% interval 1.40 to 1.40) and in 23.1% less time (1.30x as fast; 95% interval "
        "1.30 to 1.30), so one Muon step costs 1.08x one AdamW step; 2 of 2 Muon runs and 2 of 2 "
        "AdamW runs reached the target."
    )


def test_the_sentence_of_a_win_in_steps_that_is_a_loss_in_time():
    runs = entrant("adamw", [70.0, 70.0], 0.1) + entrant("soap", [50.0, 50.0], 0.2)
    (sentence,) = report.sentences(runs)
    assert "in 28.6% fewer steps than AdamW (AdamW takes 1.40x as many;" in sentence
    assert "and in 42.9% more time (slower: 0.70x as fast;" in sentence
    assert "so one SOAP step costs 2.00x one AdamW step" in sentence


def test_the_sentence_of_a_loss():
    (sentence,) = report.sentences(entrant("adamw", [50.0, 50.0]) + entrant("lion", [70.0, 70.0]))
    assert "in 40.0% more steps than AdamW (AdamW takes 0.71x as many;" in sentence
    assert "in 40.0% more time (slower: 0.71x as fast;" in sentence


def test_the_sentence_of_a_difference_that_the_seeds_cannot_carry():
    (sentence,) = report.sentences(entrant("adamw", [40.0, 72.0]) + entrant("muon", [40.0, 70.0]))
    assert (
        len(re.findall(r"95% interval 0\.\d\d to \d+\.\d\d: not distinguishable\)", sentence)) == 2
    )


def test_the_sentence_of_single_runs():
    (sentence,) = report.sentences(entrant("adamw", [70.0]) + entrant("muon", [50.0]))
    assert sentence.count("no interval from a single run") == 2
    assert "95%" not in sentence and "1.40x" in sentence


def test_the_sentence_counts_runs_that_missed():
    runs = entrant("adamw", [80.0, 90.0, None]) + entrant("muon", [50.0, 50.0, 50.0])
    (sentence,) = report.sentences(runs)
    assert "in over 44.4% fewer steps" in sentence  # 50 of (80 + 90 + 100) / 3
    assert "AdamW takes over 1.80x as many; 95% interval of the bound 1." in sentence
    assert sentence.endswith(
        "3 of 3 Muon runs and 2 of 3 AdamW runs reached the target, "
        "and what the others spent is counted."
    )
    (slower,) = report.sentences(entrant("adamw", [50.0, 51.0]) + entrant("muon", [80.0, None]))
    assert "in over 78.2% more steps than AdamW (AdamW takes under 0.56x as many" in slower


@pytest.mark.parametrize(
    ("adamw", "muon", "tallies", "bounds"),
    [
        (
            [None] * 2,
            [50.0, 50.0],
            ("2 of 2", "0 of 2"),
            "over 2.00x in steps and over 2.00x in time",
        ),
        (
            [50.0, 50.0],
            [None] * 2,
            ("0 of 2", "2 of 2"),
            "under 0.50x in steps and under 0.50x in time",
        ),
        (
            [None] * 2,
            [85.0, 95.0],
            ("2 of 2", "0 of 2"),
            "over 1.11x in steps, not distinguishable and over 1.11x in time, not distinguishable",
        ),
        ([None], [None], ("0 of 1", "0 of 1"), None),
    ],
)
def test_the_sentence_where_one_never_reached(adamw, muon, tallies, bounds):
    (sentence,) = report.sentences(entrant("adamw", adamw) + entrant("muon", muon))
    assert sentence == (
        f"Muon reached a validation loss of 3.5 in {tallies[0]} runs and AdamW in {tallies[1]}"
        + (
            f": what they spent bounds AdamW's cost over Muon's, {bounds}."
            if bounds
            else ", so there is no ratio between them."
        )
    )


def test_a_sentence_for_every_challenger():
    runs = entrant("adamw", [70.0, 70.0]) + entrant("muon:lr=0.1", [50.0, 50.0])
    runs += entrant("muon", [60.0, 60.0]) + entrant("mine", [55.0, 55.0])
    starts = [sentence.split(" reached")[0] for sentence in report.sentences(runs)]
    assert starts == ["Muon (lr=0.1)", "Muon", "mine"]
    assert report.sentence(runs, challenger="mine").startswith("mine reached")
    assert report.sentence(runs).startswith("Muon reached")  # the exact label comes first


def test_no_sentence_without_a_baseline():
    runs = entrant("muon", [50.0, 50.0]) + entrant("lion", [60.0, 60.0])
    assert report.sentences(runs) == [] and report.sentence(runs) == ""
    assert report.sentences(entrant("adamw", [50.0])) == []
    assert report.sentences(entrant("adamw:lr=0.1", [50.0]) + runs) != []


def ended(label: str, losses: list[float | None], track: str = "gpt2") -> list[Run]:
    """Runs to 3.28 by their final losses; None is a run that diverged."""
    runs = entrant(label, [None] * len(losses))
    return [
        replace(
            run, track=track, target=3.28, final_loss=loss, status="missed" if loss else "diverged"
        )
        for run, loss in zip(runs, losses, strict=True)
    ]


def test_a_race_in_the_setting_of_track_3_is_judged_by_its_rule():
    runs = ended("muon", [3.277, 3.279, 3.276, 3.28]) + ended("lion", [3.279] * 9)
    runs += ended("soap", [3.2, None]) + ended("sgd", [3.27])
    rule = "under the rule of the speedruns' track 3."
    rulings = [
        "Muon: n = 4, mean final loss 3.27800, (3.28 - mean) √n = 0.00400 (z = 3.08), at least "
        f"0.004: its runs count {rule}",
        "Lion: n = 9, mean final loss 3.27900, (3.28 - mean) √n = 0.00300 (z = 2.31), below 0.004: "
        f"its runs do not count {rule}",
        f"SOAP: 1 of n = 2 runs diverged: its runs do not count {rule}",
        "SGD: n = 1, mean final loss 3.27000, (3.28 - mean) √n = 0.01000 (z = 7.69), at least "
        f"0.004: its runs count {rule}",
    ]
    assert report.sentences(runs) == rulings  # there is no baseline to compare them with
    runs += ended("adamw", [3.3])
    sentences = report.sentences(runs)
    assert [each.split(" reached")[0] for each in sentences[:4]] == ["Muon", "Lion", "SOAP", "SGD"]
    assert sentences[4:8] == rulings and sentences[8].startswith(
        "AdamW: n = 1, mean final loss 3.3"
    )
    assert report.sentence(runs) == sentences[0]
    readme = "<!-- begin:headline -->\n<!-- end:headline -->\n"
    assert "\n\n".join(rulings) in report.rewrite(readme, runs, [], race=None)


@pytest.mark.parametrize("track", ["tiny", "gpt2-2024", "medium", "custom"])
def test_no_other_track_is_judged_by_the_rule_of_track_3(track):
    runs = ended("muon", [3.27] * 3, track) + ended("adamw", [3.27] * 3, track)
    (sentence,) = report.sentences(runs)
    assert sentence.startswith("Muon reached") and "track 3" not in sentence


README = """# Race
<!-- begin:headline -->
old words
<!-- end:headline -->
text <!-- a comment -->
<!-- begin:race -->
<!-- end:race -->
<!-- begin:machine tiny-0 -->
<!-- end:machine -->
<!-- begin:tuned -->
<!-- end:tuned -->
"""


def three_races() -> list[Run]:
    race = entrant("adamw", [70.0, 70.0]) + entrant("muon", [50.0, 50.0])
    older = [replace(run, race="tiny-0", started="2026-07-01T12:00:00+00:00") for run in race]
    newer = [
        replace(run, race="c", track="custom", started="2026-09-01T12:00:00+00:00") for run in race
    ]
    older = [replace(run, compiled=False, compile_note="no g++") for run in older]
    return older + newer + race


def test_the_readme_is_made_from_the_csvs():
    tuned = [settings.Tuned("tiny", "muon", {"lr": 0.02}, 220, (3, 8))]
    result = report.rewrite(README, three_races(), tuned, race=None)
    assert "old words" not in result and "text <!-- a comment -->" in result
    lines = result.splitlines()
    assert lines[2].startswith("Muon reached a validation loss of 3.5 in 28.6% fewer steps")
    assert "| adamw | 2 | 2/0/0 |" in result and "race c " not in result
    assert (
        "4 runs of race tiny-0 on track tiny: A processor, 2 cores, processes: 1, threads: 2, "
        "bfloat16, not compiled (no g++), torch 2.9.0, commit 0123456789ab." in lines
    )
    assert "| tiny | muon | lr=0.02 | 220 | our trial 3, 8 |" in lines
    assert report.rewrite(result, three_races(), tuned, race=None) == result


def test_the_readme_before_anything_is_tuned():
    assert "Nothing is tuned yet." in report.rewrite(README, three_races(), [], race=None)


def test_a_csv_in_the_readme_names_what_its_rows_share_below(tmp_path):
    path = tmp_path / "step.csv"
    readme = f"<!-- begin:csv {path} -->\n<!-- end:csv -->\n"
    machine = '"A processor, 2 cores",2'
    path.write_text(f"step,ms,note,device,threads\nMuon,20.5,,{machine}\nAdamW,0.8,,{machine}\n")
    assert report.rewrite(readme, [], [], None).splitlines()[1:-1] == [
        "| step | ms | note |",
        "| :-- | --: | --: |",
        "| Muon | 20.5 |  |",  # what is empty in all rows is not said to be shared
        "| AdamW | 0.8 |  |",
        "",
        "All rows: device A processor, 2 cores; threads 2.",
    ]
    path.write_text("step,ms,device\nMuon,20.5,one\nAdamW,0.8,another\n")
    assert "| AdamW | 0.8 | another |\n<!-- end" in report.rewrite(readme, [], [], None)
    path.write_text("step,ms\nMuon,20.5\n")  # a single row shares nothing
    assert "| Muon | 20.5 |\n<!-- end" in report.rewrite(readme, [], [], None)
    path.write_text("step,ms\nMuon,20.5\nAdamW\n")
    with pytest.raises(UserError, match=r"step.csv, line 3: 1 cells, its header has 2; .*: make b"):
        report.rewrite(readme, [], [], None)
    path.write_text("")
    assert "| " in report.rewrite(readme, [], [], None)


@pytest.mark.parametrize(
    ("readme", "message"),
    [
        ("<!-- begin:winner -->\n<!-- end:winner -->", "marker 'winner' must be headline, race"),
        ("<!-- begin:race -->\n", "needs pairs"),
        (README + "<!-- end:race -->\n", "needs pairs"),
        ("no markers", "needs pairs"),
        (
            "<!-- begin:race tiny-9 -->\n<!-- end:race -->",
            "no race 'tiny-9' in runs.csv; its races",
        ),
    ],
)
def test_a_readme_that_cannot_be_made(readme, message):
    with pytest.raises(UserError, match=message):
        report.rewrite(readme, three_races(), [], race=None)


def test_only_custom_races_are_no_headline():
    custom = [replace(run, track="custom") for run in three_races()]
    with pytest.raises(UserError, match="no race to report; run: make speedrun"):
        report.select(custom, None, official=True)
    assert {run.race for run in report.select(custom, None)} == {"c"}


def test_the_report_command(tmp_path, capsys):
    root, readme = tmp_path / "results", tmp_path / "README.md"
    readme.write_text(README)
    options = ["--root", str(root)]
    assert report.main(options) == 2
    assert capsys.readouterr().err == "runs.csv has no race to report; run: make speedrun\n"
    for run in three_races():
        store.append(root / "runs.csv", run)
    assert report.main(options) == 0
    assert "4 runs of race c on track custom" in capsys.readouterr().out  # the newest
    assert report.main([*options, "--race", "tiny-1"]) == 0
    printed = capsys.readouterr().out
    assert "adamw" in printed and "Muon reached" in printed and "race tiny-1" in printed
    assert report.main([*options, "--race", "tiny-9"]) == 2
    options += ["--readme", str(readme)]
    assert report.main([*options, "--check"]) == 1 and readme.read_text() == README
    assert "run: python -m analysis.report --readme" in capsys.readouterr().out
    assert report.main(options) == 0 and "28.6% fewer steps" in readme.read_text()
    assert report.main([*options, "--check"]) == 0
    readme.write_text(readme.read_text().replace("28.6%", "35.0%"))
    assert report.main([*options, "--check"]) == 1


def test_the_tools_need_neither_torch_nor_rich():
    code = (
        "import sys, analysis.report, leaderboard.verify; "
        "print({'torch', 'rich', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"set()\n"
