"""The page of the boards: what is written, and what a browser shows of it."""

import base64
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from entries import board, of_record, published
from scipy.stats import ttest_ind

from analysis.stats import holm
from errors import UserError
from leaderboard import page
from leaderboard import rules as rulebook
from leaderboard.board import FAILED, SECONDS, STEPS, YOURS, Entry
from leaderboard.board_table import href, markdown, plain
from leaderboard.matrix import RULE3, WELCH, matrix

STATIC = page.STATIC
HOSTILE = "</script><script>stolen=1</script><!--<img src=x onerror=stolen=1>&\u202egnp\u2028\ud800"
ALLOWED_ADDRESSES = {  # comments of the library, and the name of SVG's namespace
    "https://www.chartjs.org", "https://github.com/kurkle/color#readme", "http://www.w3.org/2000/svg",
}  # fmt: skip


def hostile() -> Entry:
    """A record whose every text tries to become a part of the page."""
    return replace(
        published(1, 3000, 3.27, 4, 2, True), origin=YOURS, label=HOSTILE, entrant=HOSTILE,
        record=HOSTILE, authors=[HOSTILE], new="{{script}}" + HOSTILE, hardware=HOSTILE,
        state=FAILED, why=[HOSTILE], doubts=[HOSTILE], against=HOSTILE, fewer_steps=1.2,
        seconds=math.nan, link="javascript:stolen=1",
    )  # fmt: skip


def embedded(html: str) -> dict[str, Any]:
    """The data in a page."""
    return json.loads(html.partition('id="data">')[2].partition("</script>")[0])


# ---- What is written ---------------------------------------------------------------------------


def test_texts_of_a_record_stay_texts() -> None:
    clean = page.html(page.data(board(), ".."))
    html = page.html(page.data([*board(), hostile()], ".."))
    for tag in ("<script", "</script", "<img", "<!--", "<style", "<link", "<meta"):
        assert html.count(tag) == clean.count(tag), tag
    entry = next(e for e in embedded(html)["tracks"][0]["entries"] if e["origin"] == YOURS)
    assert entry["label"].startswith("</script><script>stolen=1")
    assert entry["new"].startswith("{{script}}")
    assert not {"\u202e", "\u2028", "\ud800"} & set(entry["label"])
    assert entry["href"] == "" and entry["doubts"][0]["href"] == ""
    assert entry["seconds"] is None  # JSON has no nan


@pytest.mark.parametrize(
    "link",
    ["javascript:alert(1)", "//host/x", "/etc/passwd", "../secret", "records/../../x", "a\\b", "",
     "records//x", "records/./x", "http://host", "data:text/html,x", "records/\u202ex/"],
)  # fmt: skip
def test_a_link_that_leaves_the_results_is_no_link(link: str) -> None:
    assert href(link, "..") == ""


def test_a_link_is_relative_and_quoted() -> None:
    assert href("records/a/", "..") == "../records/a/"
    assert href('records/"><b>?x#y/', "..") == "../records/%22%3E%3Cb%3E%3Fx%23y/"


def test_a_text_is_shown_on_one_line_of_a_bounded_length() -> None:
    assert plain("a\n b\x00\t\u200bc") == "a b c"
    assert len(plain("x" * 10_000)) < 1000


def test_the_same_entries_give_the_same_bytes(tmp_path: Path) -> None:
    found = board()
    for out, entries in ((tmp_path / "a", found), (tmp_path / "b", found[::-1])):
        assert page.write(entries, out, tmp_path) == out / "index.html"
    for name in ("index.html", "board.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    shown = json.loads((tmp_path / "a" / "board.json").read_text())
    assert shown == embedded((tmp_path / "a" / "index.html").read_text())
    assert [track["name"] for track in shown["tracks"]] == ["gpt2", "minutes", "tiny"]
    links = {entry["href"] for entry in shown["tracks"][2]["entries"]}
    assert links == {"../records/2026-11-26_tiny_league/"}


def test_entries_with_one_label_are_told_apart_by_their_records() -> None:
    (entry,) = [e for e in board() if e.label == "muon"]
    records = ["2026-11-26_tiny_a", "2026-11-27_tiny_a", "2026-11-27_tiny_b", "c"]
    same = [replace(entry, record=record) for record in records]
    (track,) = page.data([*same, replace(entry, label="sgd")], "..")["tracks"]
    assert [shown["name"] for shown in track["entries"]] == [
        "muon · 2026-11-26_tiny_a", "sgd", "muon · 2026-11-27_tiny_a", "muon · b", "muon · c",
    ]  # fmt: skip
    assert len({shown["id"] for shown in track["entries"]}) == 5


def test_results_of_earlier_rules_have_a_board_of_their_own() -> None:
    (entry,) = [e for e in board() if e.label == "muon"]
    earlier = replace(entry, record="earlier", rules=1, steps=1, target=3.68)
    same = replace(entry, record="same", track="gpt2", rules=1)  # its rules did not change
    both = [entry, earlier, same, published(1, 3600, 3.2777, 1, 1, True)]
    shown = {each["name"]: each for each in page.data(both, "..")["tracks"]}
    assert {name: len(each["entries"]) for name, each in shown.items()} == {
        "gpt2": 2, "tiny": 1, "tiny, rules 1": 1,
    }  # fmt: skip
    assert shown["tiny, rules 1"]["target"] == 3.68
    lines = markdown(both, "tiny").splitlines()
    assert len(lines) == 3 and "earlier" not in lines[2]
    assert rulebook.board_of("tiny", 99) == "tiny, rules 99"  # of a record that nobody can judge


def test_a_page_without_entries_is_written(tmp_path: Path) -> None:
    page.write([], tmp_path, tmp_path)
    assert json.loads((tmp_path / "board.json").read_text()) == {"first": "", "tracks": []}


def test_a_folder_that_cannot_be_written_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="make leaderboard"):
        page.write([], tmp_path / "file" / "page", tmp_path)


def test_the_users_own_track_is_shown_first() -> None:
    entries = board()
    assert page.data(entries, "..")["first"] == "tiny"  # with most of ours
    mine = replace(entries[-2], origin=YOURS, date="2026-11-27")
    assert page.data([*entries, mine], "..")["first"] == "gpt2"


def test_the_page_asks_for_nothing() -> None:
    html = page.html(page.data(board(), ".."))
    assert set(re.findall(r"https?://[^\s\"'`)<]+", html)) == ALLOWED_ADDRESSES
    assert not re.search(r"<(script|img|iframe|link|source|audio|video)[^>]*\ssrc=", html)
    assert re.findall(r"<link[^>]*>", html) == ['<link rel="icon" href="data:,">']
    assert "sourceMappingURL" not in html and "@import" not in html and "url(" not in html
    own = "".join((STATIC / name).read_text() for name in page.SCRIPTS)
    for danger in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(",
                   "fetch(", "XMLHttp", "Function("):  # fmt: skip
        assert danger not in own


def test_the_policy_names_the_hash_of_every_script_and_style() -> None:
    html = page.html(page.data(board(), ".."))
    content = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert content
    policy = dict(part.split(" ", 1) for part in content[1].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert set(policy) - {"default-src", "base-uri", "form-action", "img-src"} == {
        "script-src", "style-src",
    }  # fmt: skip
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        texts = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in texts]
        assert policy[name].split() == [f"'sha256-{digest}'" for digest in digests]


def test_the_library_is_the_file_that_its_readme_names() -> None:
    file = STATIC / "vendor" / "chart.umd.min.js"
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (file.parent / "README.md").read_text()


def test_the_table_of_the_readme_has_the_best_of_a_track() -> None:
    entries = board()
    lines = markdown(entries, "tiny", 3).splitlines()
    assert len(lines) == 5 and all(line.count(" | ") == 8 for line in lines)
    claimed = [e for e in entries if e.track == "tiny" and e.claimed]
    names = {e.label for e in claimed}
    best = {name: min(e.steps for e in claimed if e.label == name) for name in names}
    assert [int(line.split(" | ")[1]) for line in lines[2:]] == sorted(best.values())[:3]
    assert len({line.split(" | ")[0] for line in lines[2:]}) == 3  # each optimizer once
    assert "](results/records/2026-11-26_tiny_league/)" in lines[2] and "✓ passed" in lines[2]
    odd = replace(entries[0], label="a|b <i> [x](y)\n# z", steps=1, claimed=True)
    row = markdown([odd], "tiny").splitlines()[2]
    assert row.startswith(r"| a\|b \<i\> \[x\]\(y\) \# z | 1 |")


# ---- The matrix of pairs -----------------------------------------------------------------------


def test_pairs_are_those_of_welch_and_holm() -> None:
    entries = [e for e in board() if e.label in ("muon", "adamw", "sgd", "kron")]
    found = matrix(entries, STEPS)
    assert found.test == WELCH and found.family == 6
    expected = []
    for a, b in combinations(entries, 2):
        x, y = ([run.steps_to_target or 0.0 for run in e.runs] for e in (a, b))
        # The delta method around each mean, as the statistics of a race have it.
        mean = [sum(v) / len(v) for v in (x, y)]
        logs = [
            [math.log(m) + v / m - 1 for v in each] for m, each in zip(mean, (x, y), strict=True)
        ]
        expected.append((mean[1] / mean[0], ttest_ind(*logs, equal_var=False).pvalue))
    adjusted = holm([p for _, p in expected])
    for cell, (ratio, _), p in zip(found.cells, expected, adjusted, strict=True):
        assert cell.ratio == pytest.approx(ratio) and cell.p == pytest.approx(p)
        assert cell.distinct == (p < 0.05)


def test_a_baseline_that_missed_makes_the_ratio_a_bound() -> None:
    entries = [e for e in board() if e.label in ("muon", "adafactor")]
    (cell,) = matrix(entries, STEPS).cells
    fast = entries[cell.first].label == "muon"
    assert (cell.at_least, cell.at_most) == (fast, not fast)


def test_pairs_on_gpt2_are_those_of_track_3() -> None:
    a, b = published(1, 3000, 3.2780, 10, 1, True), published(2, 3100, 3.2785, 40, 2, True)
    found = matrix([a, b, replace(b, steps=3000)], STEPS)
    assert found.test == RULE3
    statistic = (3.2785 - 3.2780 + 0.0045) / math.sqrt(1 / 10 + 1 / 40)
    assert found.cells[0].statistic == pytest.approx(statistic)
    assert found.cells[0].distinct and found.cells[0].ratio == pytest.approx(3100 / 3000)
    assert not found.cells[1].distinct  # 0.0005 at the same step
    assert matrix([a, replace(b, n=None)], STEPS).cells == []


def test_entries_without_runs_are_in_no_family() -> None:
    entries = of_record("2026-11-26_tiny_duel")
    found = matrix([*entries, replace(entries[0], runs=[])], STEPS)
    assert found.family == len(found.cells) == 1


def test_seconds_are_compared_within_a_class_of_hardware() -> None:
    entries = of_record("2026-11-26_tiny_duel")
    other = [replace(e, hardware="another", record="0") for e in entries]
    pairs = page.data([*entries, *other], "..")["tracks"][0]["pairs"]
    assert pairs[STEPS]["family"] == 6
    assert {name: each["family"] for name, each in pairs[SECONDS].items()} == {
        "another": 1, entries[0].hardware: 1,
    }  # fmt: skip
    assert {tuple(cell[:2]) for cell in pairs[SECONDS]["another"]["cells"]} == {(0, 1)}


# ---- In a browser ------------------------------------------------------------------------------

FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-quic",
)  # fmt: skip
NAMES = ("chromium", "chromium-browser", "google-chrome")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One browser for all tests of the page."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    paths = [os.environ.get("CHROMIUM"), *map(shutil.which, NAMES)]
    path = next((path for path in paths if path), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is here, and CHROMIUM names none")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield started
        started.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    return page.write([*board(), hostile()], folder / "leaderboard", folder)


@pytest.fixture(scope="module")
def tab(browser: Any) -> Any:
    """One tab for all tests of the page."""
    tab = browser.new_page()
    tab.set_default_timeout(5000)
    return tab


@pytest.fixture
def show(tab: Any, site: Path) -> Iterator[Open]:
    """Opens the page from its file; afterwards no error and no request may have been seen."""
    troubles: list[str] = []
    listeners = {
        "console": lambda said: troubles.append(said.text),
        "pageerror": lambda error: troubles.append(str(error)),
        "request": lambda asked: troubles.append(asked.url),
    }

    def show(state: str = "", width: int = 1280, scheme: str = "light") -> Any:
        tab.goto("about:blank")
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=scheme)
        for event, listener in listeners.items():
            tab.on(event, listener)
        tab.goto(site.as_uri() + state)
        return tab

    yield show
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    allowed = ("data:,", "file:")
    assert [text for text in troubles if not text.startswith(allowed)] == []


def labels(tab: Any, table: str = "#proven") -> list[str]:
    return [text.strip() for text in tab.locator(f"{table} .name").all_inner_texts()]


def column(tab: Any, name: str) -> list[str]:
    return tab.locator(f'#proven td[data-label="{name}"]').all_inner_texts()


def chosen(tab: Any) -> list[str]:
    return tab.locator("#legend li span").all_inner_texts()


TINY = "#track=tiny"


@pytest.mark.slow
def test_headers_sort_the_table(show: Open) -> None:
    tab = show(TINY)
    steps = [int(text) for text in column(tab, "Steps")]
    assert steps == sorted(steps) and len(steps) >= 8
    tab.get_by_role("button", name="Seconds", exact=True).first.click()
    seconds = [float(text) for text in column(tab, "Seconds")]
    assert seconds == sorted(seconds) and seconds != [float(s) for s in steps]
    header = tab.locator('#proven th:has([data-sort="seconds"])')
    assert header.get_attribute("aria-sort") == "ascending"
    tab.locator('#proven [data-sort="seconds"]').click()
    assert [float(text) for text in column(tab, "Seconds")] == seconds[::-1]
    assert header.get_attribute("aria-sort") == "descending"
    assert "by seconds, largest first" in tab.locator("#status").inner_text()


@pytest.mark.slow
def test_filters_leave_what_matches_and_say_how_many(show: Open) -> None:
    tab = show(TINY)
    tab.get_by_label("Optimizer contains").fill("muon-split")
    assert labels(tab) == ["muon-split"]
    assert tab.locator("#status").inner_text().startswith("1 of")
    tab.get_by_role("button", name="Clear filters").click()
    assert len(labels(tab)) > 5
    tab.locator('input[name="track"][value="gpt2"]').check()
    assert len(labels(tab)) == 6
    tab.get_by_role("checkbox", name="Published").uncheck()
    assert len(labels(tab)) == 1
    tab.get_by_role("checkbox", name="Published").check()
    tab.get_by_label("Only those that set a record").check()
    assert len(labels(tab)) == 5
    tab.get_by_role("checkbox", name="Yours").uncheck()
    tab.reload()  # the address keeps the view
    assert labels(tab) == ["result 5", "result 3", "result 2", "result 1"]
    assert "5 records" in tab.locator("#history-summary").inner_text()  # the history is whole


@pytest.mark.slow
def test_a_track_in_seconds_alone_opens_on_its_board_of_seconds(show: Open) -> None:
    tab = show("#track=minutes&board=steps")
    assert tab.get_by_role("radio", name="Seconds").first.is_checked()
    assert column(tab, "Seconds") == ["180"] and column(tab, "Steps") == ["–"]
    assert column(tab, "Rank") == ["1"]
    assert "1 record, 180" in tab.locator("#history-summary").inner_text()


@pytest.mark.slow
def test_what_is_not_proven_stands_apart_with_its_reason(show: Open) -> None:
    tab = show(TINY)
    assert "adafactor" in labels(tab, "#unproven") and "adafactor" not in labels(tab)
    row = tab.locator("#unproven tr", has_text="adafactor")
    assert "must be < 0.01" in row.inner_text()


@pytest.mark.slow
def test_two_records_are_chosen_drawn_and_compared(show: Open) -> None:
    tab = show(f"{TINY}&pick=")
    assert chosen(tab) == [] and tab.locator("#curves").is_hidden()
    for name in ("muon", "sgd"):
        tab.get_by_role("checkbox", name=f"Choose {name}", exact=True).check()
    assert chosen(tab) == ["muon", "sgd"]
    assert "2 records" in tab.locator("#curves-summary").inner_text()
    inked = """canvas => {
        const { width, height } = canvas;
        const bytes = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return new Set(new Uint32Array(bytes.buffer)).size;
    }"""
    assert tab.locator("#curves").evaluate(inked) > 50  # two colours and their edges
    cells = tab.locator("#pairs td").all_inner_texts()
    assert len(cells) == 4 and "▲ 1.61×" in cells[1] and "faster" in cells[1]
    assert tab.locator("#pairs td").nth(2).inner_text().startswith("▼ 0.62×")
    for axis in ("Tokens", "Seconds", "Logarithmic", "Whole"):
        tab.locator(".axes").get_by_role("radio", name=axis).check()
    assert "x=seconds&scale=log&loss=whole" in tab.url
    tab.get_by_role("button", name="Remove muon from the charts").click()
    assert chosen(tab) == ["sgd"]


@pytest.mark.slow
def test_a_ninth_record_is_refused_in_words(show: Open) -> None:
    tab = show(f"{TINY}&pick=&all=1")
    boxes = tab.locator("#proven input")
    assert boxes.count() >= 8
    every = tab.locator("[data-pick]")
    for i in range(9):
        every.nth(i).click()
    assert len(chosen(tab)) == 8 and not every.nth(8).is_checked()
    assert "holds 8 records" in tab.locator("#picking").inner_text()


@pytest.mark.slow
def test_a_row_that_is_sorted_and_chosen_by_keyboard_keeps_the_focus(show: Open) -> None:
    tab = show(f"{TINY}&pick=")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "skip"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "records"
    seen = "document.activeElement.dataset.sort || document.activeElement.dataset.pick || ''"
    for _ in range(8):
        tab.keyboard.press("Tab")
        if tab.evaluate(seen) == "loss":
            break
    assert tab.evaluate(seen) == "loss"
    tab.keyboard.press("Enter")
    assert tab.evaluate(seen) == "loss"
    losses = [text.split()[0] for text in column(tab, "Mean loss ± sd")]
    assert losses == sorted(losses)
    for _ in range(8):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.type") == "checkbox":
            break
    tab.keyboard.press("Space")
    assert chosen(tab) == [labels(tab)[0]]
    assert tab.evaluate("document.activeElement.checked")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) == "solid"


@pytest.mark.slow
def test_a_page_without_records_says_so(show: Open, tmp_path: Path) -> None:
    tab = show()
    tab.goto(page.write([], tmp_path, tmp_path).as_uri())
    assert tab.get_by_role("heading", name="No records yet").is_visible()
    assert tab.locator("canvas").first.is_hidden()


@pytest.mark.slow
def test_texts_of_a_record_run_nothing(show: Open) -> None:
    tab = show("#track=gpt2")
    assert any("</script>" in label for label in labels(tab))
    assert tab.evaluate("window.stolen === undefined && document.images.length === 0")
    row = tab.locator("#proven tr", has_text="stolen")
    assert row.locator("a").count() == 0
    assert "✗ failed" in row.inner_text() and "⚠ Questioned by" in row.inner_text()
    tab.goto(
        tab.url.partition("#")[0] + "#track=<b>&hardware=%00&pick=__proto__,x&sort=constructor"
    )
    assert len(labels(tab)) > 0


@pytest.mark.slow
def test_the_page_fits_its_screen_and_follows_the_colours(show: Open) -> None:
    tab = show(TINY)
    shots = set()
    for width in (1280, 390, 360):
        for scheme in ("light", "dark"):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.emulate_media(color_scheme=scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (int(re.findall(r"\d+", paper)[0]) > 128) == (scheme == "light")
            tab.locator("#curves").scroll_into_view_if_needed()
            shots.add(tab.screenshot(animations="disabled"))
    assert len(shots) == 6 and all(shot.startswith(b"\x89PNG") for shot in shots)
    tab.get_by_label("Sort by").select_option("seconds up")  # where headers are not shown
    seconds = [float(text.split()[-1]) for text in column(tab, "Seconds")]
    assert seconds == sorted(seconds)


@pytest.mark.slow
def test_every_control_and_chart_has_a_name(show: Open) -> None:
    tab = show(TINY)
    nameless = tab.evaluate("""() => [...document.querySelectorAll(
        'button, input, select, summary, canvas, table, [role=region], fieldset, a')]
        .filter((node) => node.checkVisibility()).filter((node) => {
            const by = node.getAttribute('aria-labelledby');
            const text = (by ? document.getElementById(by).textContent : '')
                + (node.getAttribute('aria-label') || '') + node.textContent
                + [...(node.labels || [])].map((label) => label.textContent).join('');
            return !text.trim();
        }).map((node) => node.outerHTML)""")
    assert nameless == []
    tree = tab.locator("body").aria_snapshot()
    assert not re.search(r"- (button|checkbox|radio|combobox|searchbox|img)( \[|:|$)", tree, re.M)
    for text in ("The curves as a table", "Time and optimizer state as a table"):
        tab.get_by_text(text).click()
    assert tab.locator("#curves-table tbody tr").count() == len(chosen(tab))
    assert tab.locator("#memory-table tbody tr").count() == 16
