"""A record of any bytes has a report, or a refusal in one line, in bounded time and memory.

    python -m pytest tests/test_fuzz_records.py            # a few examples of each file
    make fuzz                                              # others each time, with --fuzz-seconds

Each example damages one file of a good record, or puts random bytes in its place; half of them seal
the record again, so that the rules see the damage and not only the manifest.
"""

import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from errors import UserError
from leaderboard import board, form, intake, judge, rerun, seal
from leaderboard.claims import FAILED
from leaderboard.submit import submit
from tests.fuzzing import VALUES, damage, damaged, fuzz, refused, told
from tests.record_maker import FIRST, make_race, small_rules
from tests.rows import make_logits, make_points, make_spectra
from tracking import store
from tracking.schema import Logit, Spectrum

READ_ALIKE = ("page", "form", "manifest")  # other bytes of these may say the same
MEBI = 1 << 20
SECONDS = 30.0  # of the worst file, on a machine that others use
MEMORY = 1500 * MEBI  # of it, more than before

Fuzz = Callable[..., None]


@pytest.fixture
def try_(request: pytest.FixtureRequest) -> Fuzz:
    return partial(fuzz, request)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A record, with logits and spectra, among whose files damage is done."""
    home = tmp_path_factory.mktemp("fuzz")
    with small_rules():
        make_race(home, seeds=3)
        logits = [row for row in make_logits(make_points()) if row.step in (20, 40)]
        store.write_rows(store.logits_path(home, "one-muon-1"), Logit, logits)
        spread_of = {"gradient": 1e4, "momentum": 1e3, "update": 2.0, "weight": 30.0}
        path = store.spectra_path(home, "one-muon-1")
        store.write_rows(path, Spectrum, make_spectra(make_points(), spread_of))
        submit(home, home / "results", "first", authors=["A. Name"])
        yield home / "results" / "records" / FIRST


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the record."""
    return Path(shutil.copytree(good, tmp_path / "results" / "records" / FIRST))


CHOSEN = {
    "form": "record.toml",
    "manifest": "manifest.csv",
    "runs": "runs.csv",
    "curve": "curves/one-muon-1.csv",
    "turns": "turns/one-muon-1.csv",
    "logits": "logits/one-muon-1.csv",
    "spectra": "spectra/one-muon-1.csv",
    "source": f"sources/{store.source_hash(store.source_text({}))}.txt",
    "page": "README.md",
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numbers at the ends of their range
@pytest.mark.parametrize("kind", CHOSEN)
def test_a_record_of_any_bytes_has_a_report(try_: Fuzz, kind: str, folder: Path) -> None:
    name = next((folder / "sources").iterdir()) if kind == "source" else folder / CHOSEN[kind]
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    digits = st.sampled_from([value for value in VALUES if value])

    def check(done: list[Any], other: bytes | None, sealed: bool) -> None:
        for path, content in whole.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
        name.write_bytes(damaged(whole[name], done) if other is None else other)
        if sealed:
            with suppress(UserError):
                seal.seal(folder)
        found = judge.compare([judge.examine(folder)])[0]
        for each in found.findings:
            told(str(each))
        if name.read_bytes() != whole[name] and not sealed and kind not in READ_ALIKE:
            assert found.state == FAILED
        board.entries(folder.parents[1])
        with suppress(UserError):
            form.read(folder, intake.listing(folder))

    words = st.builds(lambda a, b: f"{a},{b}\n".encode("utf-8", "replace") * 3, digits, digits)
    other = st.none() | st.none() | st.binary(max_size=200) | words
    try_(check, damage(1), other, st.booleans(), examples=5)


def test_a_program_of_any_bytes_is_read_or_refused(try_: Fuzz, good: Path) -> None:
    (path,) = (good / "sources").iterdir()
    valid = path.read_bytes()

    def check(done: list[Any]) -> None:
        text = damaged(valid, done).decode("utf-8", "replace")
        no, files = refused(lambda: store.source_files(text))
        assert no or store.source_files(store.source_text(files)) == files

    try_(check, damage(1))


NUMBERS = ["9" * 400, "-" + "9" * 400, "9" * 18, "9223372036854775807", "-9223372036854775808",
           "1e308", "-1e308", "5e-324", "0", "-1", ""]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["runs", "curve", "turns", "logits", "spectra"])
def test_numbers_at_the_ends_of_their_range(try_: Fuzz, kind: str, folder: Path) -> None:
    """They are of the right type, so the rules compute with them."""
    path = folder / CHOSEN[kind]
    lines = path.read_text().splitlines()
    width = len(lines[0].split(","))

    def check(row: int, cells: list[tuple[int, str]], every: bool) -> None:
        changed = list(lines)
        for index in range(1, len(lines)) if every else [1 + row % (len(lines) - 1)]:
            parts = changed[index].replace("A processor, 2", "A processor; 2").split(",")
            for place, value in cells:
                parts[-1 - place % width] = value
            changed[index] = ",".join(parts)
        path.write_text("".join(f"{line}\n" for line in changed))
        with suppress(UserError):
            seal.seal(folder)
        report = judge.compare([judge.examine(folder)])[0]
        for each in report.findings:
            told(str(each))
        board.entries(folder.parents[1])

    cells = st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from(NUMBERS)), min_size=1, max_size=4
    )
    try_(check, st.integers(0, 50), cells, st.booleans(), examples=6)


# ---- Bounds ------------------------------------------------------------------------------------

BIG = 16 * MEBI
ROW = "0,0,0,0,0,0,0,0,0,0\n"
HUGE = {
    "lines": ("more.csv", "\n" * BIG),
    "columns": ("runs.csv", "a," * (BIG // 2)),
    "columns in many lines": ("runs.csv", ("a," * 30_000 + "\n") * 260),
    "a key of dots": ("record.toml", "a" + ".a" * 3900 + " = 1\n"),
    "keys of dots": ("record.toml", ("a" + ".a" * 3900 + " = 1\n") * 4),
    "tables": ("record.toml", "".join(f"[a{n}.b]\n" for n in range(3000))),
    "nests": ("record.toml", "a = " + "[" * 8000),
    "dates": ("record.toml", "a = [\n" + "1979-05-27T07:32:00Z,\n" * 1400 + "]\n"),
    "digits": ("record.toml", "a = " + "9" * 8000),
    "a curve": ("curves/one-muon-1.csv", ROW * 30_000),
    "turns": ("turns/one-muon-1.csv", "0,0,0\n" * 30_000),
    "spectra": ("spectra/one-muon-1.csv", f"1,a,b,c,0,d,{'9' * 18},2,1{',9' * 12}\n" * 30_000),
    "heads": ("logits/one-muon-1.csv", "1,99999999,99999999,0\n" * 10),
    "files of a manifest": ("manifest.csv", ",x,1,y\n" * 30_000),
    "a page": ("README.md", "<!-- begin:race x -->\n" * 100_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_absurd_files_take_bounded_time_and_memory(name: str, folder: Path) -> None:
    path, content = HUGE[name]
    path = folder / path
    if content[0] in "01,":  # rows below the file's own header
        content = path.read_text().splitlines()[0] + "\n" + content
    path.write_text(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.process_time()
    found = judge.examine(folder).findings
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < MEMORY
    assert found or name == "a page"  # which people write, and no program reads
    for each in found:
        told(str(each))


def test_a_program_of_absurd_size_is_not_unpacked(tmp_path: Path) -> None:
    text = store.source_text({"speedrun.py": "x" * BIG})
    folder = tmp_path / "records" / "x"
    (folder / "sources").mkdir(parents=True)
    digest = store.source_hash(text)
    (folder / "sources" / f"{digest}.txt").write_text(text)
    made = form.Record("evidence", "2026-08-01", "x", ("A",), "y", source_hash=digest)
    with pytest.raises(UserError, match="more than the 16777216 of a record's file"):
        rerun.unpack(folder, made, "", tmp_path)
