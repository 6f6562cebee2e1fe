"""What others published: ratios and claims by hand, strict reading, page, charts and entries."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from analysis import claims, evidence, histories, published
from analysis.charts import _make
from analysis.published import Data
from errors import UserError
from host.paths import PROJECT, RESULTS
from leaderboard import published as command
from leaderboard.board import FAILED, PASSED, UNCHECKED
from leaderboard.pages import MARKED
from leaderboard.published_entries import published_entries
from tests.races import assert_legible

FILES = sorted(path.name for path in published.FOLDER.glob("*.csv") if path.name != "speedups.csv")


@pytest.fixture(scope="module")
def data() -> Data:
    return published.load()


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Makes a copy of the folder, with curves of two results, and one text replaced."""

    def change(name: str, old: str, new: str) -> Path:
        folder = tmp_path / "published"
        shutil.copytree(published.FOLDER, folder)
        header, *rows = (folder / "track3_curves.csv").read_text().splitlines(keepends=True)
        few = [row for row in rows if row.startswith(("1,", "35,"))]  # reading all takes longer
        (folder / "track3_curves.csv").write_text("".join([header, *few]))
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        return folder

    return change


def ratio(data: Data, group: str, what: str, basis: str) -> evidence.Amount:
    return evidence.find(evidence.ratios(data), group, what, basis).value


# ---- Ratios ------------------------------------------------------------------------------------

# The numbers are written down here from the CSVs, around the crossings.
JUNE_CROSSING = 9344 + 128 * (3.28527 - 3.28) / (3.28527 - 3.27796)
OCTOBER_CROSSING = 6125 + 75 * (3.28020 - 3.28) / (3.28020 - 3.27850)
PAIR_CROSSING = 4875 + 125 * (3.28750 - 3.28) / (3.28750 - 3.27950)
XL_CROSSING = 14750 + 125 * (2.77480 - 2.7737) / (2.77480 - 2.77200)
PRICE = 722.818 / 705.525


@pytest.mark.parametrize(
    ("group", "what", "basis", "by_hand"),
    [
        (evidence.GROUP_2024, "the announcement", "tokens", 5.0 / 3.7),
        (evidence.GROUP_2024, "planned steps, Muon's first", "steps", 9536 / 7000),
        (evidence.GROUP_2024, "planned steps, Muon of 10-10", "steps", 9536 / 6200),
        (evidence.GROUP_2024, "first to 3.28, 10-10", "steps", 9472 / 6200),
        (evidence.GROUP_2024, "interpolated to 3.28, 10-10", "steps", 
            JUNE_CROSSING / OCTOBER_CROSSING),
        (evidence.GROUP_2024, "first to 3.28, 10-29", "steps", 9472 / 5000),
        (evidence.GROUP_2024, "interpolated to 3.28, 10-29", "steps",
            JUNE_CROSSING / PAIR_CROSSING),
        (evidence.GROUP_2024, "records 2 and 3", "seconds", 31.4 / 24.9),
        (evidence.GROUP_2024, "records 2 and 4", "seconds", 31.4 / 22.3),
        (evidence.GROUP_PAIR, "price", "price", PRICE),
        (evidence.GROUP_PAIR, "to 3.28, which AdamW misses", "steps", 5100 / PAIR_CROSSING),
        (evidence.GROUP_XL, "first to", "seconds", 34640.332 / 25569.983),
        (evidence.GROUP_XL, "first to", "steps", 20344 / 14875),
        (evidence.GROUP_XL, "interpolated", "steps", 20344 / XL_CROSSING),
        (evidence.GROUP_XL, "whole runs", "steps", 20344 / 15258),
        (evidence.GROUP_XL, "whole runs", "seconds", 34640.332 / 26221.409),
        (evidence.GROUP_XL, "price", "price", 34957.570 / 34640.332),
        (evidence.GROUP_XL, "equal HellaSwag", "steps", 1.25),
        (evidence.GROUP_TODAY, "the first results", "steps", 5625 / 3600),
        (evidence.GROUP_TODAY, "both tuned", "steps", 4950 / 3250),
        (evidence.GROUP_TODAY, "AdamW and the best", "steps", 4950 / 2690),
    ],
)  # fmt: skip
def test_a_ratio_is_what_a_hand_computes(
    data: Data, group: str, what: str, basis: str, by_hand: float
) -> None:
    found = ratio(data, group, what, basis)
    assert found.low == found.high == pytest.approx(by_hand, rel=1e-9)


def test_crossings_are_those_that_the_logs_are_known_for(data: Data) -> None:
    assert round(JUNE_CROSSING) == 9436 and round(OCTOBER_CROSSING) == 6134
    assert round(PAIR_CROSSING) == 4992
    adam = data.curve(evidence.PAIR, "adam")
    assert adam.step_at(3.28) is None and adam.first_at(3.28) is None
    assert adam.step_at(16.0) == 0  # a curve that begins below a loss


def test_equal_loss_along_the_pair_is_a_range_with_known_ends(data: Data) -> None:
    steps, first, last = evidence.pair_range(data, from_middle=True)
    assert (first, last) == (1950, 3650)
    assert (round(steps.low, 2), round(steps.high, 2)) == (1.57, 1.65)
    # Adam's validation at 3500 is the lowest: its loss, and Muon's around it.
    adam, muon = data.curve(evidence.PAIR, "adam"), data.curve(evidence.PAIR, "muon")
    loss = next(p.val_loss for p in adam.points if p.step == 3500)
    before, after = (next(p for p in muon.points if p.step == s) for s in (2125, 2250))
    assert before.val_loss > loss > after.val_loss
    share = (before.val_loss - loss) / (before.val_loss - after.val_loss)
    assert steps.low == pytest.approx(3500 / (2125 + 125 * share))
    where = "equal loss while lr is constant, its second half"
    seconds = ratio(data, evidence.GROUP_PAIR, where, "seconds")
    assert seconds.low == pytest.approx(steps.low / PRICE)


def test_every_ratio_says_whether_it_is_matched_and_where_it_is_from(data: Data) -> None:
    found = evidence.ratios(data)
    assert len(found) == len({(r.group, r.what, r.basis) for r in found})
    for each in found:
        assert each.matched.startswith(("yes: ", "nearly: ", "no: ", "unknown: "))
        assert all((published.FOLDER / name).exists() for name in each.source.split(", "))
        assert (each.how == evidence.RECOMPUTED) == ("stated.csv" not in each.source)
    assert not evidence.find(found, evidence.GROUP_2024, "the announcement", "tokens").is_matched
    assert evidence.find(found, evidence.GROUP_TODAY, "both tuned", "steps").is_matched


def test_the_answer_has_both_meanings_in_three_sentences(data: Data) -> None:
    text = evidence.headline(data)
    for words in ("1.52x", "34.3% fewer", "1.57x to 1.65x", "2.45%", "1.355x", "26.2%", "25.0%"):
        assert words in text
    assert text.replace("**", "").count(". ") == 2 and text.endswith(".")


def test_a_changed_number_changes_the_answer(changed: Callable[[str, str, str], Path]) -> None:
    old = "muon,5100,5100,2673868800,3.27600,722.818"
    folder = changed("track1_curves.csv", old, old.replace("722.818", "740.801"))
    assert "a step of Muon costs 5.00% more" in evidence.headline(published.load(folder))


# ---- Claims ------------------------------------------------------------------------------------


def test_the_claims_come_out_as_known(data: Data) -> None:
    found = {v.claim.result: v for v in claims.verdicts(data)}
    assert claims.counts(list(found.values())) == {
        claims.PASSED: 34, claims.DIFFERS: 1, claims.UNCHECKED: 11,
    }  # fmt: skip
    assert [r for r, v in found.items() if v.state == claims.DIFFERS] == [8]
    assert [r for r, v in found.items() if not v.holds] == [1, 2, 3]
    assert "+0.00018" in found[8].why
    assert "val_ema_loss" in found[46].why and found[46].mean is None
    # Result 35 has two runs; a claim before the last step is of result 22.
    assert found[35].losses == [3.27656, 3.27675]
    assert found[35].mean == pytest.approx((3.27656 + 3.27675) / 2)
    assert found[35].statistic == pytest.approx((3.28 - 3.276655) * 2**0.5)
    assert found[22].state == claims.PASSED and "go on to step 8500" in found[22].why
    assert found[17].state == claims.PASSED  # its mean ends in a five: either rounding is right


@pytest.mark.parametrize(
    ("file", "old", "new", "state", "why"),
    [
        ("track3_claims.csv", "3375,3.2767,2,", "3375,3.2769,2,", "differs", "off the claimed"),
        ("track3_claims.csv", "3375,3.2767,2,", "3375,3.2767,3,", "differs", "claimed 3"),
        ("track3_claims.csv", "3375,3.2767,2,", "3374,3.2767,2,", "differs", "no validation at"),
        ("track3_curves.csv", "\n35,2,3375,3375,", "\n35,2,3376,3375,", "differs", "1 of 2 runs"),
        ("track3_curves.csv", "\n35,2,3375,", "\n35,3,3375,", "differs", "2 of 3 runs"),
    ],
)
def test_a_claim_that_its_curves_do_not_show_differs(
    changed: Callable[[str, str, str], Path], file: str, old: str, new: str, state: str, why: str
) -> None:
    verdict = claims.verdicts(published.load(changed(file, old, new)))[34]
    assert verdict.state == state and why in verdict.why


# ---- Reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        ("track1_curves.csv", "3.27596", "nan", "val_loss 'nan' is not a finite float"),
        ("track1_curves.csv", "adamw,128,", "adamw,0,", "from run and step (0, 0) to (0, 0)"),
        ("track1_curves.csv", "setting,", "where,", "unknown column 'where'"),
        ("track3_claims.csv", "\n2,2026-04-26", "\n1,2026-04-26", "one is twice"),
        ("track3_claims.csv", "3600,3.2777,1,1,0", "3600,3.2777,1,2,0", "a mark that is not 0, 1"),
        ("track3_claims.csv", "2026-04-26", "2026-13-26", "'2026-13-26' is no date"),
        ("track3_curves.csv", "1,1,125,", "1,1,0,", "result 1 goes from"),
        ("speedrun_records.csv", "1,2,31.4", "1,2,-31.4", "record 2 of track 1"),
        ("speedrun_records.csv", "1,2,31.4", "3,2,31.4", "record 2 of track 3"),
        ("stated.csv", ",tokens,", ",", "3 cells for 4 columns"),
    ],
)
def test_a_broken_file_is_refused_with_its_reason(
    changed: Callable[[str, str, str], Path], file: str, old: str, new: str, reason: str
) -> None:
    with pytest.raises(UserError) as refused:
        published.load(changed(file, old, new))
    assert reason in str(refused.value) and "restore" in str(refused.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "published"
    shutil.copytree(published.FOLDER, folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing or empty"):
        published.load(folder)


def test_a_missing_log_or_record_is_named(changed: Callable[[str, str, str], Path]) -> None:
    found = published.load(changed("speedrun_records.csv", "1,3,24.9,2024-10-04\n", ""))
    with pytest.raises(UserError, match="no record 3 of track 1"):
        evidence.ratios(found)
    with pytest.raises(UserError, match="no log of lion"):
        found.curve(evidence.PAIR, "lion")


# ---- What is shown -----------------------------------------------------------------------------


def test_a_staircase_only_goes_down(data: Data) -> None:
    one, two, three = histories.all_of(data)
    for history in (one, two, three):
        values = [record.value for record in history.staircase]
        assert values == sorted(values, reverse=True) and len(set(values)) == len(values)
        assert values[-1] == min(record.value for record in history.records)
    again = [r for r in one.records if r.name == "21"]
    assert [(r.value, r.is_best) for r in again] == [(2.933, True), (2.997, False), (3.014, False)]
    assert [r.name for r in three.records if not r.is_best] == ["#5"]  # dated after a better one


def test_the_page_shows_what_the_files_hold() -> None:
    page = (PROJECT / "docs" / "published.md").read_text()
    shown = {argument: content for _, name, argument, content, _ in MARKED.findall(page)}
    assert set(shown) == set(command.PARTS)
    fill = partial(command.part, repository=PROJECT)
    for argument, content in shown.items():
        assert content == f"{fill(argument)}\n", f"published {argument} is out of date"
    for name in _make.published_charts():
        assert f"../plots/published/{name}.png" in page
    with pytest.raises(UserError, match="must be one of headline"):
        fill("nonsense")


def test_the_command_prints_each_part_and_refuses_a_broken_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert command.main([]) == 0
    assert "34 pass, 1 differs (#8)" in capsys.readouterr().out
    assert command.main(["records"]) == 0
    assert "| track 1: 124M to 3.28 | 89 | 2026-07-17 | 1.23 minutes |" in capsys.readouterr().out
    assert command.main(["--root", str(tmp_path)]) == 2
    assert "is missing or empty" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", _make.published_charts())
def test_a_chart_of_published_figures_is_legible_and_repeats(
    data: Data, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _make.drawing():
        figure = _make.published_charts()[name](data)
        _make.freeze_layout(figure)
    assert_legible(figure, monkeypatch)
    _, svg = _make.save(figure, tmp_path / name)
    committed = _make.PLOTS / "published" / svg.name
    assert svg.read_text() == committed.read_text(), "run: make figures"


# ---- Entries -----------------------------------------------------------------------------------


def test_published_entries_have_what_the_files_say(data: Data) -> None:
    entries = published_entries(RESULTS)
    assert len(entries) == len(data.claims) + len(data.curves) + len(data.records)
    assert len({entry.record for entry in entries}) == len(entries)
    track3 = [entry for entry in entries if entry.track == "gpt2"]
    assert sum(entry.sets == ("steps",) for entry in track3) == 20
    assert [e.state for e in track3[:8]] == [
        FAILED, FAILED, FAILED, UNCHECKED, PASSED, UNCHECKED, UNCHECKED, FAILED,
    ]  # fmt: skip
    muon = track3[35]
    assert (muon.label, muon.steps, muon.n, muon.claimed) == ("#36 Muon", 3250, 10, True)
    assert muon.curve[-1].val_loss == pytest.approx(muon.mean_loss)
    assert muon.curve[-1].tokens == 3250 * 524288
    assert muon.p is not None and muon.p < 0.001
    late = track3[21]  # its runs go on after the claimed step
    assert late.curve[-1].step == late.steps == 8225


def test_logs_of_2024_and_records_in_minutes_are_entries(data: Data) -> None:
    entries = published_entries(RESULTS)
    logs = {e.label: e for e in entries if e.track == "gpt2-2024"}
    assert logs["adamw (2024-06-06)"].seconds is None  # its log has no clock
    assert logs["muon (2024-10-29)"].seconds == 722.818
    assert not any(entry.claimed for entry in logs.values())
    xl = [entry for entry in entries if entry.track == "xl"]
    assert [entry.runs[0].status for entry in xl] == ["reached"] * 3
    records = [entry for entry in entries if entry.track == "modded-nanogpt track 1"]
    assert (records[0].seconds, records[0].hardware) == (45 * 60, "8x NVIDIA H100")
    assert records[0].mean_loss is records[0].steps is records[0].n is None
    assert sum("seconds" in entry.sets for entry in records) == len(records) - 5
