"""What a report says of a race, and the pages that it writes."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import report, table
from errors import UserError
from optim import recipes
from tests.rows import ALONE, entrant, make_run
from tracking import store, tuned
from tracking.schema import Run
from tracking.spelling import DISPLAY_NAMES

REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"""(?:\]\(|src="|href=")([^)"#\s]+)""")  # Markdown or HTML, without #section


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
    assert report.sentences([], ALONE) == []


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
    parts = [f"{name}:\n{report.sentence(race, ALONE, challenger=race[-1].label)}\n"
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
    (sentence,) = report.sentences(RACES[race], ALONE)
    assert [number for number in numbers if number not in sentence] == []


@pytest.mark.parametrize(
    ("race", "times"),
    [("no significant difference", 2), ("a bound that may be chance", 2), ("a win", 0)],
)
def test_the_sentence_says_where_the_seeds_show_no_difference(race, times):
    assert report.sentences(RACES[race], ALONE)[0].count("not distinguishable") == times


def test_a_sentence_for_every_challenger():
    runs = entrant("adamw", [70.0, 70.0]) + entrant("muon:lr=0.1", [50.0, 50.0])
    runs += entrant("muon", [60.0, 60.0]) + entrant("mine", [55.0, 55.0])
    starts = [sentence.split(" reached")[0] for sentence in report.sentences(runs, ALONE)]
    assert starts == ["Muon (lr=0.1)", "Muon", "mine"]
    assert report.sentence(runs, ALONE, challenger="mine").startswith("mine reached")
    assert report.sentence(runs, ALONE).startswith("Muon reached")  # the exact label comes first


def test_no_sentence_without_a_baseline():
    runs = entrant("muon", [50.0, 50.0]) + entrant("lion", [60.0, 60.0])
    assert report.sentences(runs, ALONE) == [] and report.sentence(runs, ALONE) == ""
    assert report.sentences(entrant("adamw", [50.0]), ALONE) == []
    assert report.sentences(entrant("adamw:lr=0.1", [50.0]) + runs, ALONE) != []


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
    assert report.sentences(runs, ALONE) == rulings  # there is no baseline to compare them with
    runs += ended("adamw", [3.3])
    sentences = report.sentences(runs, ALONE)
    assert [each.split(" reached")[0] for each in sentences[:4]] == ["Muon", "Lion", "SOAP", "SGD"]
    assert sentences[4:8] == rulings and sentences[8].startswith(
        "AdamW: n = 1, mean final loss 3.3"
    )
    assert report.sentence(runs, ALONE) == sentences[0]


@pytest.mark.parametrize("track", ["tiny", "gpt2-2024", "medium", "custom"])
def test_no_other_track_is_judged_by_the_rule_of_track_3(track):
    runs = ended("muon", [3.27] * 3, track) + ended("adamw", [3.27] * 3, track)
    (sentence,) = report.sentences(runs, ALONE)
    assert sentence.startswith("Muon reached") and "track 3" not in sentence


# ---- Pages -------------------------------------------------------------------------------------

PAGE = """# Race
<!-- begin:headline duel -->
old words
<!-- end:headline -->
text <!-- a comment -->
<!-- begin:race duel -->
<!-- end:race -->
<!-- begin:machine several/tiny-0 -->
<!-- end:machine -->
<!-- begin:league several/c -->
<!-- end:league -->
<!-- begin:detectable duel -->
<!-- end:detectable -->
<!-- begin:finals duel,several/c -->
<!-- end:finals -->
<!-- begin:tuned -->
<!-- end:tuned -->
<!-- begin:csv step.csv -->
<!-- end:csv -->
<!-- begin:file program.py -->
<!-- end:file -->
"""


def three_races() -> list[Run]:
    race = entrant("adamw", [70.0, 70.0]) + entrant("muon", [50.0, 50.0])
    older = [replace(run, race="tiny-0", started="2026-07-01T12:00:00+00:00") for run in race]
    newer = [
        replace(run, race="c", track="custom", started="2026-09-01T12:00:00+00:00") for run in race
    ]
    older = [replace(run, compiled=False, compile_note="no g++") for run in older]
    return older + newer + race


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of two records and a page."""
    records = tmp_path / "results" / "records"
    for run in three_races():
        store.append(records / ("duel" if run.race == "tiny-1" else "several") / "runs.csv", run)
    tuned.write(
        tuned.Tuned("tiny", "muon", {"lr": 0.02}, 220, (3, 8)), tmp_path / "optim" / "tuned.toml"
    )
    machine = '"A processor, 2 cores",2'
    (tmp_path / "step.csv").write_text(
        f"step,ms,note,device,threads\nMuon,20.5,,{machine}\nAdamW,0.8,,{machine}\n"
    )
    (tmp_path / "program.py").write_text("print('fast')\n")
    (tmp_path / "README.md").write_text(PAGE)
    return tmp_path


def test_a_page_is_made_from_the_records(repository, golden):
    result = report.rewrite(PAGE, repository)
    golden("page", result)
    assert "old words" not in result and "text <!-- a comment -->" in result
    lines = result.splitlines()
    assert lines[2].startswith("Muon reached a validation loss of 3.5 in 1.40x fewer steps")
    assert "| adamw | 2 | 2/0/0 |" in result
    assert any(line.startswith("4 runs of race tiny-0 on track tiny: ") for line in lines)
    assert "| tiny | muon | lr=0.02 | 220 | our trial 3, 8 |" in lines
    assert report.rewrite(result, repository) == result


def test_every_page_is_rewritten(repository, capsys, monkeypatch):
    monkeypatch.setattr(report, "REPOSITORY", repository)
    for name in ("docs/rules.md", "results/records/duel/README.md"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("<!-- begin:machine duel -->\n<!-- end:machine -->\n")
    (repository / "docs" / "plain.md").write_text("No generated part.\n")
    names = ["README.md", "docs/rules.md", "results/records/duel/README.md"]
    before = (repository / "README.md").read_text()
    changed = report.update_pages(repository, write=False)
    assert [str(path.relative_to(repository)) for path in changed] == names
    assert (repository / "README.md").read_text() == before
    assert report.update_pages(repository) == changed and not report.update_pages(repository)
    (repository / "docs" / "rules.md").write_text("<!-- begin:machine x -->\n<!-- end:machine -->")
    with pytest.raises(
        UserError, match="docs/rules.md: no record 'x' in results/records; known rec"
    ):
        report.update_pages(repository)


def test_a_csv_on_a_page_names_below_it_what_its_rows_share(tmp_path):
    path = tmp_path / "step.csv"
    machine = '"A processor, 2 cores",2'
    path.write_text(f"step,ms,note,device,threads\nMuon,20.5,,{machine}\nAdamW,0.8,,{machine}\n")
    assert report.csv_table(path).splitlines() == [
        "| step | ms | note |",
        "| :-- | --: | --: |",
        "| Muon | 20.5 |  |",  # a column that is empty in all rows stays
        "| AdamW | 0.8 |  |",
        "",
        "All rows: device A processor, 2 cores; threads 2.",
    ]
    path.write_text("step,ms,device\nMuon,20.5,one\nAdamW,0.8,another\n")
    assert report.csv_table(path).endswith("| AdamW | 0.8 | another |")
    path.write_text("step,ms\nMuon,20.5\n")  # a single row shares nothing
    assert report.csv_table(path).endswith("| Muon | 20.5 |")
    path.write_text("step,ms\nMuon,20.5\nAdamW\n")
    with pytest.raises(UserError, match=r"step.csv line 3: 1 cells for 2 columns; restore"):
        report.csv_table(path)
    path.write_text("")
    assert "| " in report.csv_table(path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            "<!-- begin:winner -->\n<!-- end:winner -->",
            "marker 'winner' must be one of headline, r",
        ),
        ("<!-- begin:race duel -->\n", "0 pairs of lines"),
        (PAGE + "<!-- end:race -->\n", "9 pairs of lines .* others do not"),
        ("<!-- begin:race -->\n<!-- end:race -->", "begin:race --> needs a record or a file"),
        ("<!-- begin:tuned duel -->\n<!-- end:tuned -->", "takes no argument"),
        (
            "<!-- begin:race trio -->\n<!-- end:race -->",
            "no record 'trio' in results/records; known records: duel, several",
        ),
        (
            "<!-- begin:race several -->\n<!-- end:race -->",
            "record several has 2 races; choose one of: several/tiny-0, several/c",
        ),
        (
            "<!-- begin:race duel/tiny-9 -->\n<!-- end:race -->",
            "record duel has no race 'tiny-9'; choose one of: duel/tiny-1",
        ),
        ("<!-- begin:scale duel -->\n<!-- end:scale -->", "record duel has no points.csv"),
        ("<!-- begin:csv none.csv -->\n<!-- end:csv -->", "cannot show .*none.csv: No such file"),
    ],
)
def test_a_page_that_cannot_be_made(repository, page, message):
    with pytest.raises(UserError, match=message):
        report.rewrite(page, repository)


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
    assert "no race 'tiny-9' in runs.csv; its races: tiny-0, c, tiny-1; run with --race c" in error


def test_the_docs_command(repository, capsys, monkeypatch):
    monkeypatch.setattr(report, "REPOSITORY", repository)
    page = repository / "README.md"
    assert report.main(["--docs", "--check"]) == 1 and page.read_text() == PAGE
    assert capsys.readouterr().out == "out of date: README.md; run: make docs\n"
    assert report.main(["--docs"]) == 0 and "28.6% fewer" in page.read_text()
    assert report.main(["--docs", "--check"]) == 0
    page.write_text(page.read_text().replace("28.6%", "35.0%"))
    assert report.main(["--docs", "--check"]) == 1
    capsys.readouterr()
    assert report.main(["--check"]) == 2
    assert (
        capsys.readouterr().err
        == "analysis.report: --check: is for the pages; run with --docs --check\n"
    )


def test_every_relative_link_points_to_a_file():
    pages = [
        *report.pages(),
        *REPOSITORY.glob("results/**/README.md"),
        *REPOSITORY.glob("plots/*.md"),
    ]
    broken = [
        f"{page.relative_to(REPOSITORY)}: {link}"
        for page in dict.fromkeys(pages)
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


@pytest.mark.slow
def test_the_tools_need_neither_torch_nor_rich():
    code = (
        "import sys, analysis.report, leaderboard.verify; "
        "print({'torch', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"set()\n"


def test_a_race_of_several_layouts_says_that_its_seconds_cannot_be_compared() -> None:
    runs = entrant("adamw", [50.0, 51.0]) + entrant("muon", [40.0, 41.0])
    one = len(report.sentences(runs, ALONE))
    moved = [*runs[:-1], replace(runs[-1], engine="ddp@2+single@1")]
    first, *others = report.sentences(moved, ALONE)
    assert "ddp@2+single@1 (1), " in first and "their seconds cannot" in first
    assert len(others) == one
