"""What a report says of a race."""

import re
from dataclasses import replace

import pytest

from analysis import report, table
from analysis.price import NO_TURNS
from optim import recipes
from tests.rows import entrant, make_run, three_races
from tracking import store
from tracking.schema import Run
from tracking.spelling import DISPLAY_NAMES


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
    assert row.steps.sd is None  # a run that missed has no known cost
    assert table.summarise(runs[:2])[0].steps.sd == pytest.approx(50**0.5)
    assert row.tokens.expected.value == pytest.approx((4096 * 130 + 409600 + 81920) / 2)
    assert row.seconds.expected.value == pytest.approx((12 + 14 + 20 + 4) / 2)
    assert row.step_ms == pytest.approx(1000 * 64 / 320)
    assert row.optimizer_ms == pytest.approx(1000 * 3.2 / 320)
    assert row.state_bytes == 6_000_000
    assert row.final_loss == pytest.approx(3.0)  # without the loss of the diverged run
    assert row.final_loss_sd == pytest.approx(0)
    assert row.target == 3.5


def test_every_recipe_has_a_name_in_prose():
    assert sorted(recipes()) == sorted(DISPLAY_NAMES)


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
    assert report.sentences([], NO_TURNS) == []


def test_a_run_without_a_step_has_a_row():
    run = make_run(
        status="diverged", steps=0, tokens=0, train_seconds=0.0, final_loss=None, mfu=0.0
    )
    (row,) = table.summarise([run])
    assert (row.steps, row.step_ms, row.optimizer_ms, row.final_loss) == (None, None, None, None)
    assert "0/0/1" in table.text([row])


RACES: dict[str, list[Run]] = {
    "a win": entrant("adamw", [70.0, 70.0], 0.1) + entrant("muon", [50.0, 50.0], 0.1 * 1.4 / 1.3),
    "a win in steps that is a loss in time": [
        *entrant("adamw", [70.0, 70.0], 0.1), *entrant("soap", [50.0, 50.0], 0.2)
    ],
    "a loss": entrant("adamw", [50.0, 50.0]) + entrant("lion", [70.0, 70.0]),
    "no significant difference": entrant("adamw", [40.0, 72.0]) + entrant("muon", [40.0, 70.0]),
    "single runs": entrant("adamw", [70.0]) + entrant("muon", [50.0]),
    "a slower baseline that missed": [
        *entrant("adamw", [80.0, 90.0, None]), *entrant("muon", [50.0, 50.0, 50.0])
    ],
    "a slower challenger that missed": [
        *entrant("adamw", [50.0, 51.0]), *entrant("muon", [80.0, None])
    ],
    "a baseline that never reached": entrant("adamw", [None] * 2) + entrant("muon", [50.0, 50.0]),
    "a challenger that never reached": entrant("adamw", [50.0, 50.0]) + entrant("muon", [None] * 2),
    "a bound that may be chance": entrant("adamw", [None] * 2) + entrant("muon", [85.0, 95.0]),
    "neither reached": entrant("adamw", [None]) + entrant("muon", [None]),
}  # fmt: skip


def test_the_sentences_read_as_reviewed(golden):
    parts = [f"{name}:\n{report.sentence(race, NO_TURNS, challenger=race[-1].label)}\n"
             for name, race in RACES.items()]  # fmt: skip
    golden("sentences", "\n".join(parts))


@pytest.mark.parametrize(
    ("race", "numbers"),
    [
        ("a win", ["28.6% fewer", "1.40x", "23.1% less", "1.30x", "1.08x", "2 of 2"]),
        ("a win in steps that is a loss in time", ["28.6% fewer", "42.9% more", "1.43x", "2.00x"]),
        ("a loss", ["40.0% more;", "1.40x more steps", "1.40x more time"]),
        ("a slower baseline that missed", [  # 50 of (80 + 90 + 100) / 3
            "over 44.4% fewer", "over 1.80x", "2 of 3"
        ]),
        ("a slower challenger that missed", ["over 78.2% more", "over 1.78x more"]),
        ("a baseline that never reached", ["over 2.00x in steps", "0 of 2", "2 of 2"]),
        ("a challenger that never reached", ["under 0.50x in steps", "0 of 2", "2 of 2"]),
        ("a bound that may be chance", ["over 1.11x in steps", "0 of 2", "2 of 2"]),
    ],
)  # fmt: skip
def test_the_numbers_of_the_sentence(race, numbers):
    (sentence,) = report.sentences(RACES[race], NO_TURNS)
    assert [number for number in numbers if number not in sentence] == []


@pytest.mark.parametrize(
    ("race", "times"),
    [("no significant difference", 2), ("a bound that may be chance", 2), ("a win", 0)],
)
def test_the_sentence_says_where_the_seeds_show_no_difference(race, times):
    assert report.sentences(RACES[race], NO_TURNS)[0].count("not distinguishable") == times


def test_a_sentence_for_every_challenger():
    runs = entrant("adamw", [70.0, 70.0]) + entrant("muon:lr=0.1", [50.0, 50.0])
    runs += entrant("muon", [60.0, 60.0]) + entrant("mine", [55.0, 55.0])
    starts = [sentence.split(" reached")[0] for sentence in report.sentences(runs, NO_TURNS)]
    assert starts == ["Muon (lr=0.1)", "Muon", "mine"]
    assert report.sentence(runs, NO_TURNS, challenger="mine").startswith("mine reached")
    assert report.sentence(runs, NO_TURNS).startswith("Muon reached")  # the exact label comes first


def test_no_sentence_without_a_baseline():
    runs = entrant("muon", [50.0, 50.0]) + entrant("lion", [60.0, 60.0])
    assert report.sentences(runs, NO_TURNS) == [] and report.sentence(runs, NO_TURNS) == ""
    assert report.sentences(entrant("adamw", [50.0]), NO_TURNS) == []
    assert report.sentences(entrant("adamw:lr=0.1", [50.0]) + runs, NO_TURNS) != []


def ended(label: str, losses: list[float | None], track: str = "gpt2") -> list[Run]:
    """Runs to 3.28 by their final losses; None is a run that diverged."""
    runs = entrant(label, [None] * len(losses))
    return [
        replace(
            run, track=track, target=3.28, final_loss=loss, status="missed" if loss else "diverged"
        )
        for run, loss in zip(runs, losses, strict=True)
    ]


def test_a_race_in_the_setting_of_track_3_is_judged_by_its_rule(golden):
    runs = ended("muon", [3.277, 3.279, 3.276, 3.28]) + ended("lion", [3.279] * 9)
    runs += ended("soap", [3.2, None]) + ended("sgd", [3.27])
    rulings = report.rulings(runs)
    golden("track3", "\n".join(rulings) + "\n")
    numbers = ["= 0.00400 (z = 3.08)", "= 0.00300 (z = 2.31)", "1 of n = 2", "= 0.01000 (z = 7.69)"]
    assert all(number in ruling for number, ruling in zip(numbers, rulings, strict=True))
    counted = ["do not count" not in ruling for ruling in rulings]
    assert counted == [True, False, False, True]
    assert report.sentences(runs, NO_TURNS) == rulings  # there is no baseline to compare them with
    runs += ended("adamw", [3.3])
    sentences = report.sentences(runs, NO_TURNS)
    assert [each.split(" reached")[0] for each in sentences[:4]] == ["Muon", "Lion", "SOAP", "SGD"]
    assert sentences[4:8] == rulings and sentences[8].startswith(
        "AdamW: n = 1, mean final loss 3.3"
    )
    assert report.sentence(runs, NO_TURNS) == sentences[0]


@pytest.mark.parametrize("track", ["tiny", "gpt2-2024", "medium", "custom"])
def test_no_other_track_is_judged_by_the_rule_of_track_3(track):
    runs = ended("muon", [3.27] * 3, track) + ended("adamw", [3.27] * 3, track)
    (sentence,) = report.sentences(runs, NO_TURNS)
    assert sentence.startswith("Muon reached") and "track 3" not in sentence


# ---- The command -------------------------------------------------------------------------------


def test_the_report_command(tmp_path, capsys):
    root = tmp_path / "results"
    options = ["--root", str(root)]
    assert report.main(options) == 2
    assert (
        capsys.readouterr().err
        == "analysis.report: runs.csv has no race to report; run: make speedrun\n"
    )
    for run in three_races():
        store.append(root / "runs.csv", run)
    assert report.main(options) == 0
    assert "4 runs of race c on track custom" in capsys.readouterr().out  # the newest
    assert report.main([*options, "--race", "tiny-1"]) == 0
    printed = capsys.readouterr().out
    assert "adamw" in printed and "Muon reached" in printed and "race tiny-1" in printed
    assert report.main([*options, "--race", "tiny-9"]) == 2
    error = capsys.readouterr().err
    assert "no race 'tiny-9' in runs.csv; its races: tiny-0, c, tiny-1; name one, as c" in error


def test_a_race_of_several_layouts_says_that_its_seconds_cannot_be_compared() -> None:
    runs = entrant("adamw", [50.0, 51.0]) + entrant("muon", [40.0, 41.0])
    one = len(report.sentences(runs, NO_TURNS))
    moved = [*runs[:-1], replace(runs[-1], engine="ddp@2+single@1")]
    first, *others = report.sentences(moved, NO_TURNS)
    assert "ddp@2+single@1 (1), " in first and "their seconds cannot" in first
    assert len(others) == one
    assert "fewer steps" in others[0] and "time" not in others[0]
    assert report.sentence(moved, NO_TURNS) == others[0]


def test_where_the_seconds_count_for_nothing_the_steps_alone_are_compared(golden) -> None:
    said = {name: report.sentences(race, None) for name, race in RACES.items()}
    seconds = r"\b(in|less|more) time\b|\bone \w+ step\b"
    assert not any(re.search(seconds, part, re.I) for parts in said.values() for part in parts)
    golden("steps", "\n".join(f"{name}:\n{' '.join(parts)}\n" for name, parts in said.items()))
