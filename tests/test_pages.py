"""The generated parts of pages, and the command that writes them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from errors import UserError
from leaderboard import pages
from leaderboard.__main__ import COMMANDS, main
from tests.rows import three_races
from tracking import store, tuned

REPOSITORY = Path(__file__).parents[1]
LINK = re.compile(r"""(?:\]\(|src="|href=")([^)"#\s]+)""")  # Markdown or HTML, without #section


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
    result = pages.rewrite(PAGE, repository)
    golden("page", result)
    assert "old words" not in result and "text <!-- a comment -->" in result
    lines = result.splitlines()
    assert lines[2].startswith("Muon reached a validation loss of 3.5 in 1.40x fewer steps")
    assert "| adamw | 2 | 2/0/0 |" in result
    assert any(line.startswith("4 runs of race tiny-0 on track tiny: ") for line in lines)
    assert "| tiny | muon | lr=0.02 | 220 | our trial 3, 8 |" in lines
    assert pages.rewrite(result, repository) == result


def test_every_page_is_rewritten(repository, capsys, monkeypatch):
    monkeypatch.setattr(pages, "REPOSITORY", repository)
    for name in ("docs/rules.md", "results/records/duel/README.md"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("<!-- begin:machine duel -->\n<!-- end:machine -->\n")
    (repository / "docs" / "plain.md").write_text("No generated part.\n")
    names = ["README.md", "docs/rules.md", "results/records/duel/README.md"]
    before = (repository / "README.md").read_text()
    changed = pages.update_pages(repository, write=False)
    assert [str(path.relative_to(repository)) for path in changed] == names
    assert (repository / "README.md").read_text() == before
    assert pages.update_pages(repository) == changed and not pages.update_pages(repository)
    (repository / "docs" / "rules.md").write_text("<!-- begin:machine x -->\n<!-- end:machine -->")
    with pytest.raises(
        UserError, match="docs/rules.md: no record 'x' in results/records; known rec"
    ):
        pages.update_pages(repository)


def test_a_csv_on_a_page_names_below_it_what_its_rows_share(tmp_path):
    path = tmp_path / "step.csv"
    machine = '"A processor, 2 cores",2'
    path.write_text(f"step,ms,note,device,threads\nMuon,20.5,,{machine}\nAdamW,0.8,,{machine}\n")
    assert pages.csv_table(path).splitlines() == [
        "| step | ms | note |",
        "| :-- | --: | --: |",
        "| Muon | 20.5 |  |",  # a column that is empty in all rows stays
        "| AdamW | 0.8 |  |",
        "",
        "In each row: device A processor, 2 cores; threads 2.",
    ]
    path.write_text("step,ms,device\nMuon,20.5,one\nAdamW,0.8,another\n")
    assert pages.csv_table(path).endswith("| AdamW | 0.8 | another |")
    path.write_text("step,ms\nMuon,20.5\n")  # a single row shares nothing
    assert pages.csv_table(path).endswith("| Muon | 20.5 |")
    path.write_text("step,ms\nMuon,20.5\nAdamW\n")
    with pytest.raises(UserError, match=r"step.csv line 3: 1 cells for 2 columns; restore"):
        pages.csv_table(path)
    path.write_text("")
    assert "| " in pages.csv_table(path)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            "<!-- begin:winner -->\n<!-- end:winner -->",
            "marker 'winner' must be one of headline, steps, board, claims, r",
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
        ("<!-- begin:moved duel -->\n<!-- end:moved -->", "moved duel: name two records of sea"),
        ("<!-- begin:csv none.csv -->\n<!-- end:csv -->", "cannot show .*none.csv: No such file"),
    ],
)
def test_a_page_that_cannot_be_made(repository, page, message):
    with pytest.raises(UserError, match=message):
        pages.rewrite(page, repository)


# ---- The command -------------------------------------------------------------------------------


def test_the_docs_command(repository, capsys, monkeypatch):
    monkeypatch.setattr(pages, "REPOSITORY", repository)
    page = repository / "README.md"
    assert main(["docs", "--check"]) == 1 and page.read_text() == PAGE
    assert capsys.readouterr().out == "out of date: README.md; run: make docs\n"
    assert main(["docs"]) == 0 and "28.6% fewer" in page.read_text()
    assert main(["docs", "--check"]) == 0
    page.write_text(page.read_text().replace("28.6%", "35.0%"))
    assert main(["docs", "--check"]) == 1


def test_a_part_of_another_module_is_a_line_in_the_table(repository, monkeypatch):
    monkeypatch.setitem(pages.MARKERS, "greet", lambda who, folder: f"{who} in {folder.name}")
    filled = pages.rewrite("<!-- begin:greet me -->\n<!-- end:greet -->", repository)
    assert filled.splitlines()[1] == f"me in {repository.name}"


@pytest.mark.parametrize("words", [[], ["verfy"], ["--root", "x"], [""]])
def test_an_unknown_subcommand_is_answered_with_the_list(words, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("leaderboard: ")
    assert all(f"\n    {name} " in printed.err for name in COMMANDS)
    assert (repr(words[0]) if words and words[0] else "is missing") in printed.err
    assert main(["-h"]) == 0 and "verify" in capsys.readouterr().out


def test_every_relative_link_points_to_a_file():
    every = [
        *pages.pages(),
        *REPOSITORY.glob("results/**/README.md"),
        *REPOSITORY.glob("plots/*.md"),
    ]
    broken = [
        f"{page.relative_to(REPOSITORY)}: {link}"
        for page in dict.fromkeys(every)
        for link in LINK.findall(page.read_text(encoding="utf-8"))
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert broken == []


@pytest.mark.slow
def test_the_tools_need_neither_torch_nor_rich():
    code = (
        "import sys, analysis.report, leaderboard.pages, leaderboard.verify; "
        "print({'torch', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"set()\n"
