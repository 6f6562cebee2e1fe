"""A good record passes, and each way to tamper with one is found, by its rule and its value.

A careful cheat seals the record again and computes anew what its rows give (`record_maker.cover`),
so that not only a hash tells. What no arithmetic can find is listed, too: only a rerun can.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from leaderboard import intake, judge, seal, verify
from leaderboard import rules as rulebook
from leaderboard.claims import FAILED, PASSED, UNCHECKED
from tests.record_maker import (
    FIRST,
    SECOND,
    SMALL,
    cover,
    edit_curve,
    edit_form,
    edit_runs,
    edit_turns,
    findings,
    follow,
    forge,
    make_records,
    remove_run,
)
from tests.rows import SOURCE, make_points
from tracking import store
from tracking.schema import Run, Validation

RUN = "one-muon-1"
SOURCE_NAME = f"{store.source_hash(SOURCE)}.txt"
Tamper = Callable[[Path], Any]


@pytest.fixture(scope="module", autouse=True)
def small_rules() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rulebook, "RULES", {1: {"tiny": SMALL}})
        yield


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_records(tmp_path_factory.mktemp("good"))


@pytest.fixture
def results(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def folder(results: Path) -> Path:
    return results / "records" / FIRST


def test_a_good_record_passes(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, sets in ((FIRST, "adamw"), (SECOND, "muon")):
        assert verify.main([str(good / "records" / name)]) == 0
        said = capsys.readouterr().out
        assert f"{name} (record): passed; 8 runs" in said
        assert re.search(rf"  {sets}: .*; sets the record of steps and seconds\n", said)
    assert verify.main([str(good / "records" / name) for name in (FIRST, SECOND)]) == 0


# ---- Careful cheats ----------------------------------------------------------------------------


def change(name: str = RUN, **values: Any) -> Tamper:
    """Other cells of one row, or of all ("")."""
    return lambda root: edit_runs(
        root, lambda run: replace(run, **values) if name in ("", run.run) else run
    )


def move(index: int, name: str = RUN, **values: Any) -> Tamper:
    """Other cells of one validation."""

    def edit(points: list[Validation]) -> list[Validation]:
        points[index] = replace(points[index], **values)
        return points

    return lambda root: edit_curve(root, name, edit)


def several(*tampers: Tamper) -> Tamper:
    return lambda root: [each(root) for each in tampers]


def each_run(edit: Callable[[Path, Run], None]) -> Tamper:
    return lambda root: [edit(root, run) for run in store.read_runs(root)]


def shift(name: str, floor: float) -> Tamper:
    return lambda root: forge(root, name, make_points(floor=floor))


def copy_seed(step: float = 0.0) -> Tamper:
    """Seed 3 is a copy of seed 1 with its clock and losses moved a little."""

    def tamper(root: Path) -> None:
        points = store.read_curve(root, RUN)
        points = [replace(p, val_loss=p.val_loss + step * (p.step > 0)) for p in points]
        forge(root, "one-muon-3", points)

    return tamper


def validations(every: int) -> Tamper:
    """Validated every so many steps."""

    def tamper(root: Path) -> None:
        points = store.read_curve(root, RUN)
        last = points[-1]
        made = [
            replace(
                last, step=step, tokens=4096 * step, train_seconds=0.1 * step,
                val_loss=5 - 0.02 * step,
            )
            for step in range(every, 101, every)
        ]  # fmt: skip
        forge(root, RUN, made)

    return tamper


def double_tokens(root: Path, run: Run) -> None:
    edit_curve(root, run.run, lambda points: [replace(p, tokens=2 * p.tokens) for p in points])
    points = store.read_curve(root, run.run)
    edit_runs(root, lambda each: follow(each, points) if each.run == run.run else each)


def share_source(text: str) -> Tamper:
    """The program text is where all records have theirs, and says something else."""

    def tamper(root: Path) -> None:
        (root / "sources").rename(root.parent / "sources")
        (root.parent / "sources" / SOURCE_NAME).write_text(text)

    return tamper


def rename_source(root: Path) -> None:
    """An edited program under its own hash, which one row names."""
    text = SOURCE.replace("fast", "slow")
    (root / "sources").mkdir(exist_ok=True)
    (root / "sources" / f"{store.source_hash(text)}.txt").write_text(text)


def diverged(root: Path) -> None:
    edit_curve(root, RUN, lambda points: points[:3])
    edit_turns(root, RUN, lambda turns: turns[:20])
    last = store.read_curve(root, RUN)[-1]
    change(
        status="diverged", steps=60, tokens=last.tokens, train_seconds=last.train_seconds,
        final_loss=last.val_loss, final_bits_per_byte=0.4 * last.val_loss, steps_to_target=None,
        tokens_to_target=None, seconds_to_target=None, optimizer_seconds=0.2,
    )(root)  # fmt: skip


def earlier(root: Path) -> None:
    """The clock of a run and of its curve is a second ahead at the end."""
    several(move(-1, train_seconds=9.0), change(train_seconds=9.0, mfu=2e12 / 9 / 4e11))(root)


def both(*names: str) -> Tamper:
    return lambda root: [remove_run(root, name) for name in names]


CAREFUL: dict[str, tuple[Tamper, str]] = {
    "a loss in the curve": (move(2, val_loss=3.4), f"run {RUN}: steps_to_target 75.*, but its cu"),
    "the last loss": (move(-1, val_loss=2.5), f"run {RUN}: final_loss 3.01, but its curve gives 2"),
    "a loss in the row": (change(final_loss=2.5), f"run {RUN}: final_loss 2.5, .* curve gives 3.0"),
    "no final loss": (change(final_loss=None), "target: muon: a run has no final loss"),
    "the last loss in both": (
        several(move(-1, val_loss=2.5), change(final_loss=2.5)),
        "track 1f2e: its runs differ in final_bits_per_byte over final_loss",
    ),
    "a step in the curve": (move(1, step=41), f"validation: run {RUN}: step 40 is not validated"),
    "a validation more": (validations(10), f"validation: run {RUN}: step 10 is validated, but"),
    "a validation less": (validations(50), f"validation: run {RUN}: step 20 is not validated, bu"),
    "more steps": (change(steps=101), "its curve has no validation at its last step 101"),
    "more planned": (change(steps_planned=120), "rows: run .*: reached after 100 of 120 steps"),
    "absurdly many steps": (
        change(steps=2**62, steps_planned=2**62),
        "step 100 is validated|no validation at its last step 4611686018427387904",
    ),
    "tokens": (change(tokens=1), f"track: run {RUN}: 1 tokens in 100 steps, but a step has 4096"),
    "all tokens": (
        each_run(double_tokens),
        f"track: run {RUN}: 819200 tokens in 100 steps, but a step has 4096",
    ),
    "a dropped run": (
        lambda root: remove_run(root, RUN),
        "dropped run: muon: seed 1 is missing of the seeds 0 to 3",
    ),
    "the last run of one entrant": (
        lambda root: remove_run(root, "one-muon-3"),
        "dropped run: muon: seed 3 is missing of the seeds 0 to 3",
    ),
    "a dropped seed": (
        both(RUN, "one-adamw-1"),
        "seeds: muon: seed 3, but the 3 runs have 0 to 2",
    ),
    "too few runs": (
        both(*(f"one-{label}-{seed}" for label in ("adamw", "muon") for seed in (2, 3))),
        "number of runs: muon: 2, but tiny needs 3",
    ),
    "a copied seed": (copy_seed(), f"curves: run one-muon-3: has the losses of run {RUN}"),
    "a copied seed, another digit": (
        copy_seed(1e-5),
        f"curves: muon: the losses of runs {RUN} and one-muon-3 differ by 0.0001 at most",
    ),
    "a seed twice": (change(seed=2), "seeds: muon: seed 2 has 2 runs, but may have one"),
    "a negative seed": (change(seed=-1), "seeds: muon: seed -1, but the 4 runs have 0 to 3"),
    "an edited source": (
        lambda root: (root / "sources" / SOURCE_NAME).write_text(SOURCE + "x"),
        f"program: {SOURCE_NAME[:-4]}: not the text that it is named after",
    ),
    "an edited source that others share": (
        share_source(SOURCE.replace("fast", "slow")),
        f"program: {SOURCE_NAME[:-4]}: not the text that it is named after",
    ),
    "a source that no row names": (
        rename_source,
        "program: sources/.*: no row names this source",
    ),
    "an edited source of one row": (
        several(
            rename_source,
            change(source_hash=store.source_hash(SOURCE.replace("fast", "slow"))),
        ),
        "race one: its runs differ in source_hash: 19df",
    ),
    "a clock that runs backwards": (
        move(1, train_seconds=0.5),
        f"run {RUN}: its clock runs backwards at step 40",
    ),
    "a faster end in the row": (change(train_seconds=9.0), "train_seconds 9, but its curve 10"),
    "a faster end": (earlier, "1 s on its clock before step 100, but 20 steps of step_ms 100 take"),
    "a faster end, with its steps": (
        several(earlier, move(-1, step_ms=50.0)),
        "train_seconds 9, but its turns give 10",
    ),
    "a faster middle": (
        several(move(2, train_seconds=5.5, step_ms=75.0), move(3, step_ms=125.0)),
        f"run {RUN}: 6 s in its turns to step 60, but 5.5 in its curve",
    ),
    "a negative clock": (
        several(
            move(0, train_seconds=-1.0, step_ms=-50.0),
            move(1, step_ms=250.0),
        ),
        f"run {RUN}: its curve begins at step 20, -1 s",
    ),
    "a part of the time": (change(data_seconds=-1.0), "data_seconds -1, which is never negative"),
    "no process": (change("", world_size=0), "rows: run .*: 0 processes of 2 threads"),
    "a curve that ends early": (
        lambda root: edit_curve(root, RUN, lambda points: points[:-1]),
        f"run {RUN}: its curve has no validation at its last step 100",
    ),
    "an empty curve": (
        lambda root: edit_curve(root, RUN, lambda _: []),
        f"validation: run {RUN}: step 20 is not validated",
    ),
    "turns in another order": (
        lambda root: edit_turns(root, RUN, lambda turns: turns[::-1]),
        "its turns are not of the rounds 0, 1, 2",
    ),
    "no turns": (lambda root: edit_turns(root, RUN, lambda _: []), "its turns of 3 steps are miss"),
    "another target": (
        lambda root: edit_runs(root, lambda r: follow(r, store.read_curve(root, r.run), 3.6)),
        "track: target 3.6, but the rules have 3.5",
    ),
    "another track": (change("", track="custom"), "track: track custom, but the rules have tiny"),
    "another track_hash": (change("", track_hash="ff"), "track: track_hash ff, but the rules have"),
    "other data": (change("", data_hash="ff"), "data: data_hash ff, but the rules have abcd"),
    "another stopping step": (
        lambda root: forge(root, RUN, make_points(80, floor=2.7)),
        "stopping step: muon: its runs stop at 80, 100, not at one step",
    ),
    "a run that diverged": (diverged, "target: muon: 1 of 4 runs diverged, none may"),
    "a run that diverged, as missed": (
        several(diverged, change(status="missed")),
        f"rows: run {RUN}: missed after 60 of 100 steps",
    ),
    "not below the target": (
        several(*(shift(f"one-muon-{n}", 3.3 + n / 10) for n in (1, 3))),
        r"target: muon: mean loss 3.* of 4 runs against 3.5: p = 0\.\d+, not below 0.01",
    ),
    "another layout": (change("", engine="ddp@2+single@1"), "clock: muon: went on on another layo"),
    "a start of no time": (change(started="yesterday"), f"date: run {RUN}: started 'yesterday', "),
    "a start without a zone": (change(started="2026-08-01T12:00:00"), "date: .*, not as 2026"),
    "an average not declared": (
        change("", entrant="schedule-free:lr=1"),
        "read-out: .*: declared 'weights', but it is 'averaged'",
    ),
    "state bytes of one run": (change(state_bytes=1), "muon: its runs differ in state_bytes: 50"),
    "a run of another race": (change(race="other"), "claim: race one, but its rows have one, oth"),
    "a path as its id": (change(run="../../x"), "run id '../../x': must be a file name"),
    "a path as its source": (change(source_hash="../x"), "source_hash '../x'"),
    "numbers at the end": (
        several(change(flops_per_step=1e308, mfu=1e308, train_seconds=1e-308)),
        "train_seconds 1e-308, but its",
    ),
    "losses at the end": (
        lambda root: [
            forge(root, f"one-muon-{n}", [replace(p, val_loss=-1.7e308 + n) for p in make_points()])
            for n in range(4)
        ],
        "curves: run one-muon-1: has the losses|cannot be computed|claim: muon",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("name", CAREFUL)
def test_a_careful_cheat_is_found(name: str, folder: Path) -> None:
    tamper, message = CAREFUL[name]
    tamper(folder)
    with suppress(UserError, ArithmeticError):  # what cannot be sealed is left as it is
        cover(folder)
    assert any(re.search(message, line) for line in failures(folder)), findings(folder)


def failures(folder: Path) -> list[str]:
    return [line for line in findings(folder) if line.startswith(FAILED)]


def test_a_careless_cheat_is_found_by_the_hash_alone(folder: Path) -> None:
    for name in ("runs.csv", f"curves/{RUN}.csv", f"turns/{RUN}.csv"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content.replace(b"0", b"00", 1))
        message = f"failed: files: {name}: sha256 .{{16}}, {len(content) + 1} bytes, but manifest"
        assert any(re.match(message, line) for line in findings(folder))
        (folder / name).write_bytes(content)
    assert findings(folder) == []


# What is consistent cannot be told from the truth: RULES.md says that only a rerun finds it.
def invented(root: Path) -> None:
    for seed in range(4):
        forge(root, f"one-muon-{seed}", make_points(floor=2.5 + 0.011 * seed))


def faster(root: Path) -> None:
    for run in store.read_runs(root):
        points = make_points(step_seconds=0.05, floor=2 * run.final_loss / 2)
        forge(
            root, run.run, points, data_seconds=0.05, forward_backward_seconds=4.0,
        )  # fmt: skip


UNDETECTED: dict[str, Tamper] = {
    "the last seed of all entrants is dropped": both("one-muon-3", "one-adamw-3"),
    "invented curves": invented,
    "all clocks run at half their speed": faster,
    "another device": change("", device="Another processor, 2 cores"),
    "an earlier day": lambda root: edit_runs(
        root,
        lambda run: replace(run, started=run.started.replace("T12", "T11")),
    ),
}


@pytest.mark.parametrize("name", UNDETECTED)
def test_what_only_a_rerun_can_find(name: str, folder: Path) -> None:
    UNDETECTED[name](folder)
    cover(folder)
    assert findings(folder) == []


# ---- record.toml -------------------------------------------------------------------------------

FORMS: dict[str, tuple[tuple[str, str], str]] = {
    "mean": (("mean_loss = 3.0", "mean_loss = 2.0"), "muon: mean_loss 2.015, but its rows give 3"),
    "n": (("n = 4", "n = 5"), "claim: adamw: n 5, but its rows give 4"),
    "n of text": (("n = 4", 'n = "4"'), "form: .*n = '4' is not int"),
    "n that is true": (("n = 4", "n = true"), "form: .*n = 'True' is not int"),
    "n that is huge": (("n = 4", f"n = {'9' * 400}"), "form: .*is not int"),
    "n that is longer": (("n = 4", f"n = {'9' * 5000}"), "form: .*limit"),
    "n of hex digits": (("n = 4", f"n = 0x{'f' * 4400}"), "form: .*is not int"),
    "p": (("p = 1", "p = 11"), "claim: adamw: p 0.000112"),
    "steps": (("steps = 100", "steps = 90"), "claim: adamw: steps 90, but its rows give 100"),
    "seconds": (("seconds = 10.0", "seconds = 9.0"), "claim: adamw: seconds 9, .* give 10"),
    "seconds that are no number": (
        ("seconds = 10.0", "seconds = nan"),
        "seconds = 'nan' is not fl",
    ),
    "endless seconds": (("seconds = 10.0", "seconds = -inf"), "seconds = '-inf' is not float"),
    "overflowing seconds": (("seconds = 10.0", "seconds = 1e999"), "seconds = 'inf' is not float"),
    "huge seconds": (("seconds = 10.0", f"seconds = {'9' * 400}"), "form: .*is not float"),
    "no seconds": (("seconds = 10.0\n", ""), "form: .*'seconds' is missing"),
    "sd": (("loss_sd = 0", "loss_sd = 1"), "claim: adamw: loss_sd 1.0"),
    "state": (("state_bytes = 5", "state_bytes = 4"), "adamw: state_bytes 4000000, but"),
    "peak": (("peak_memory_bytes = 8", "peak_memory_bytes = 7"), "adamw: peak_memory_bytes 7"),
    "entrant": (("muon:lr=0.02", "muon:lr=0.03"), "muon: entrant muon:lr=0.03, but its rows give"),
    "hardware": (
        ("A processor", "A GPU"),
        "hardware A GPU, 2 cores, but its rows have A processor",
    ),
    "date": (("2026-08-01", "2026-08-02"), "folder 2026-08-01_tiny_first, but .* give 2026-08-02"),
    "date of no day": (("2026-08-01", "2026-02-30"), "form: .*date '2026-02-30' must be as 2026"),
    "date of TOML": (('"2026-08-01"', "2026-08-01"), "form: .*date = '2026-08-01' is not str"),
    "name": (('"first"', '"last"'), "form: folder .*_first, but .* give 2026-08-01_tiny_last"),
    "name of a path": (('"first"', '"../x"'), "form: .*name '../x' must be of a-z"),
    "authors": (('["A. Name"]', "[]"), "form: .*authors: name at least one"),
    "an author of numbers": (('"A. Name"', "1"), "form: .*authors = '0x1' is not str"),
    "an author of control": (("A. Name", r"\u001b[31m"), "form: .*authors = .*in one line"),
    "authors of nests": (('["A. Name"]', "[" * 3000 + "]" * 3000), "form: .*record.toml: "),
    "a key of dots": (('race = "one"', "a" + ".a" * 4000 + " = 1"), "form: .*'a' is unknown"),
    "a key of more dots": (('race = "one"', "a" + ".a" * 9000 + " = 1"), "files: .*more than 8192"),
    "kind": (('"record"', '"evidence"'), "form: .*evidence claims nothing of a target"),
    "another kind": (('"record"', '"skeptical"'), "form: .*skeptical claims nothing"),
    "no kind": (('"record"', '"proof"'), "form: .*kind 'proof' must be one of record, evidence"),
    "race": (('race = "one"', 'race = "two"'), "claim: race two, but its rows have one"),
    "source": (('source_hash = "', 'source_hash = "0'), "claim: source_hash 019df.*rows have 19df"),
    "data": (('data_hash = "abcd"', 'data_hash = "ab"'), "claim: data_hash ab, .* have abcd"),
    "track": (('track = "tiny"', 'track = "custom"'), "'custom' has no board in version 1 of the"),
    "rules": (("rules = 1", "rules = 2"), "track: 'tiny' has no board in version 2 .* no track"),
    "questions": (('race = "one"', 'race = "one"\nquestions = "x"'), "form: .*questions: names"),
    "claim of another": (('label = "muon"', 'label = "sgd"'), "claim: sgd: no such entrant in the"),
    "claim twice": (('label = "adamw"', 'label = "muon"'), "claim: muon: is claimed 2 times"),
    "claims": (('race = "one"', "claims = []"), "form: .*'claims' is unknown"),
    "claim of no table": (("[environment]", "claim = 1\n[environment]"), "form: .*TOML|form: .*"),
    "readout": (("n = 4", 'readout = "averaged"\nn = 4'), "adamw: declared 'averaged', but it is"),
    "a word more": (("n = 4", "n = 4\nm = 4"), "form: .*'m' is unknown; it has label"),
    "no value": (("n = 4", "n ="), "form: .*Invalid value"),
    "a NUL": (("A. Name", "\0"), "files: .*has a NUL character"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_says_something_else_is_found(name: str, folder: Path) -> None:
    pair, message = FORMS[name]
    edit_form(folder, pair)
    assert any(re.search(message, line) for line in failures(folder)), findings(folder)


def test_a_race_without_its_environment_passes_and_says_so(folder: Path) -> None:
    text = (folder / "record.toml").read_text("utf-8")
    (folder / "record.toml").write_text(re.sub(r"\[environment\].*?\n\n", "", text, flags=re.S))
    (line,) = findings(folder)
    assert line.startswith(f"{UNCHECKED}: environment: ")
    assert judge.examine(folder).state == PASSED


def test_evidence_that_hides_a_race_is_found(folder: Path) -> None:
    text = (folder / "record.toml").read_text("utf-8").partition("[[claim]]")[0]
    text = text.replace('"record"', '"evidence"')
    (folder / "record.toml").write_text(text)
    assert "evidence has no track, rules and race" in failures(folder)[0]


# ---- Files -------------------------------------------------------------------------------------


def write(name: str, content: bytes | str = b"x") -> Tamper:
    def tamper(root: Path) -> None:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return tamper


def encode(name: str, encoding: str) -> Tamper:
    def tamper(root: Path) -> None:
        text = (root / name).read_text("utf-8").replace("A. Name", "Ä. Name")
        (root / name).write_bytes(text.encode(encoding))

    return tamper


def link(name: str, to: str) -> Tamper:
    def tamper(root: Path) -> None:
        if (root / name).is_dir():
            shutil.move(root / name, root.parent / "moved")
        (root / name).unlink(missing_ok=True)
        (root / name).symlink_to(to)

    return tamper


def sparse(name: str) -> Tamper:
    def tamper(root: Path) -> None:
        with open(root / name, "wb") as file:
            file.truncate(1 << 40)

    return tamper


def deep(root: Path) -> None:
    for _ in range(60):
        root = root / "d"
    root.mkdir(parents=True)
    (root / "x.csv").write_text("a\n")


def many(root: Path) -> None:
    for number in range(32):
        (root / "curves" / f"a{number}.csv").touch()


def manifest(edit: Callable[[list[str]], list[str]]) -> Tamper:
    def tamper(root: Path) -> None:
        path = root / "manifest.csv"
        path.write_text("".join(edit(path.read_text().splitlines(keepends=True))))

    return tamper


FILES: dict[str, tuple[Tamper, str]] = {
    "a program": (write("train.py"), "files: .*train.py: a file that no record has"),
    "a pickle": (write("curves/x.pkl"), "files: .*x.pkl: a file that no record has"),
    "another form": (write("more.toml"), "files: .*more.toml: a file that no record has"),
    "a hidden file": (write(".hidden.csv"), "files: .*hidden.csv: a file that no record has"),
    "a table": (write("more.csv", "a\n1\n"), "files: more.csv: not in manifest.csv"),
    "a curve": (write("curves/x.csv"), "files: curves/x.csv: not in manifest.csv"),
    "a link to a file": (link("README.md", "/etc/passwd"), "files: .*README.md: a link"),
    "a link to a table": (link("runs.csv", "/etc/passwd"), "files: .*runs.csv: a link"),
    "a dangling link": (link("more.csv", "nowhere"), "files: .*more.csv: a link"),
    "a link to a folder": (link("curves", "../moved"), "files: .*curves: a link that no record"),
    "a link to itself": (link("logits", "."), "files: .*logits: a link that no record has"),
    "a pipe": (lambda root: os.mkfifo(root / "more.csv"), "files: .*more.csv: not a regular file"),
    "a pipe as rows": (
        lambda root: [(root / "runs.csv").unlink(), os.mkfifo(root / "runs.csv")],
        "files: .*runs.csv: not a regular file",
    ),
    "a folder as rows": (
        lambda root: [(root / "runs.csv").unlink(), (root / "runs.csv").mkdir()],
        "files: .*runs.csv: not a regular file",
    ),
    "a folder": (lambda root: (root / "new").mkdir(), "files: .*new: a folder that no record has"),
    "a study's folder": (write("scale/runs.csv"), "files: .*scale: a folder that no record has"),
    "deep folders": (deep, "files: .*/d: a folder that no record has"),
    "dots": (write("curves/..x.csv"), r"files: .*\.\.x.csv: a file that no record has"),
    "a line in a name": (write("a\nb.csv"), "^failed: files: .*a b.csv: a file that no record"),
    "a name of another alphabet": (write("curves/é.csv"), "files: .*: a file that no record has"),
    "a name of bytes": (
        lambda root: Path(os.fsdecode(os.fsencode(root) + b"/\xff.csv")).touch(),
        r"files: .*\\udcff.csv: a file that no record has",
    ),
    "a huge file": (sparse("more.csv"), "files: .*more.csv: 1099511627776 bytes, more than"),
    "a huge page": (sparse("README.md"), "files: .*README.md: 1099511627776 bytes, more than"),
    "a huge form": (write("record.toml", b"# " + b"x" * 70_000), "files: .*70002 bytes, more than"),
    "many files": (many, "files: .*: more than 40 files, which no record needs"),
    "many lines": (write("a.csv", b"\n" * 200_001), "files: .*a.csv: more than 200000 lines"),
    "a long line": (write("a.csv", b"a" * 70_000), "files: .*one of more than 65536 bytes"),
    "a NUL": (write("a.csv", b"a\n\0\n"), "files: .*a.csv: has a NUL character"),
    "latin-1": (encode("record.toml", "latin-1"), "files: .*record.toml: not UTF-8 at byte"),
    "UTF-16": (encode("runs.csv", "utf-16"), "files: .*runs.csv: not UTF-8 at byte 0"),
    "UTF-16 without its mark": (encode("runs.csv", "utf-16-le"), "runs.csv: has a NUL character"),
    "no form": (lambda root: (root / "record.toml").unlink(), "form: .*record.toml is missing"),
    "an empty form": (write("record.toml", b""), "form: .*' is missing"),
    "empty rows": (write("runs.csv", b""), "rows: runs.csv has no run"),
    "no rows": (lambda root: (root / "runs.csv").unlink(), "files: runs.csv: in manifest.csv, but"),
    "other columns": (write("runs.csv", "a,b\n1,2\n"), "rows: .*line 1: unknown column 'a'"),
    "a curve of other columns": (write(f"curves/{RUN}.csv", "a\n"), "rows: .*unknown column 'a'"),
    "no curve": (lambda root: (root / f"curves/{RUN}.csv").unlink(), f"rows: .*{RUN}.csv is missi"),
    "no source": (
        lambda root: (root / "sources" / SOURCE_NAME).unlink(),
        "program: .*No such file",
    ),
    "a source that is a link": (
        link(f"sources/{SOURCE_NAME}", "/etc/passwd"),
        f"files: .*{SOURCE_NAME}: a link",
    ),
    "a manifest without a row": (
        manifest(lambda lines: lines[:2] + lines[3:]),
        "files: curves/.*: not in manifest.csv",
    ),
    "a manifest with a row more": (
        manifest(lambda lines: [*lines, ",x.csv,1,ab\n"]),
        "files: x.csv: in manifest.csv, but not there",
    ),
    "a manifest with a row twice": (
        manifest(lambda lines: [*lines, lines[1]]),
        "files: curves/.*: 2 rows of manifest.csv",
    ),
    "a manifest without the program": (
        manifest(lambda lines: lines[:-1]),
        "program: 19df.*speedrun.py: not in manifest.csv",
    ),
    "an empty manifest": (write("manifest.csv", b""), "files: .*: not in manifest.csv"),
    "a manifest of other columns": (write("manifest.csv", b"a\n"), "files: .*unknown column 'a'"),
    "no manifest": (lambda root: (root / "manifest.csv").unlink(), "files: .*csv is missing; run"),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_no_file_of_a_record_is_found(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(intake, "FILES", 40)
    tamper, message = FILES[name]
    tamper(folder)
    found = failures(folder)
    assert any(re.search(message, line) for line in found), found
    if name.startswith("a pipe") or " name" in name:  # the command says so, too
        assert verify.main([str(folder)]) == 1
        assert capsys.readouterr().out.count("\n") < 60


BAD = ("nan", "inf", "-inf", "1e999", "1_0", "0x1", " 1", "", "9" * 400, "9" * 5000)


@pytest.mark.parametrize("column", ["seed", "train_seconds", "target"])
def test_a_number_that_is_none_is_refused(column: str, folder: Path) -> None:
    path = folder / "runs.csv"
    header, _, *rest = path.read_text().splitlines()
    names = header.split(",")
    for value in BAD:
        if column != "seed" and value == BAD[-2]:
            continue  # a float may have many digits; it is infinite, and refused as such
        cells = ["x"] * len(names)
        cells[names.index(column)] = value
        path.write_text("\n".join([header, ",".join(cells), *rest, ""]))
        (line,) = [x for x in failures(folder) if "failed: rows: " in x]
        assert re.search(r"runs.csv line 2: .*; restore the file", line)


def test_a_link_in_the_place_of_a_record_is_refused(results: Path) -> None:
    folder = results / "records" / FIRST
    folder.rename(results / "elsewhere")
    folder.symlink_to(results / "elsewhere")
    (section,) = [s for s in verify.everything(results, results / "x") if s.name == "elsewhere"]
    assert "a link" in str(section.failures[0])


def test_a_record_in_another_folder_is_found(results: Path) -> None:
    folder = results / "records" / FIRST
    folder.rename(results / "records" / "2026-08-01_tiny_best")
    assert (
        "folder 2026-08-01_tiny_best, but"
        in failures(results / "records" / "2026-08-01_tiny_best")[0]
    )


@pytest.mark.parametrize("where", [".", f"../{FIRST}/", f"./../../records/{FIRST}"])
def test_a_record_is_found_by_a_relative_path(
    where: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert verify.main([where]) == 0


def test_many_findings_are_cut(folder: Path) -> None:
    edit_runs(folder, lambda run: replace(run, started="x" * 3000))
    edit_runs(folder, lambda run: replace(run, label=f"{run.label}-{run.run}"))
    found = findings(folder)
    assert len(found) < 100 and max(map(len, found)) < 2000


# ---- A record among others ---------------------------------------------------------------------


def compared(results: Path, name: str) -> list[str]:
    reports = judge.examine_all(verify.folders(results))
    (report,) = [each for each in reports if each.name == name]
    return list(map(str, report.findings))


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ("[]", "muon: sets the record of none, but the boards give steps, seconds"),
        ('["steps"]', "muon: sets the record of steps, but the boards give steps, seconds"),
        ('["tokens"]', "muon: sets the record of tokens, but the boards give steps, seconds"),
    ],
)
def test_a_record_says_what_it_sets(claimed: str, message: str, results: Path) -> None:
    edit_form(results / "records" / SECOND, ('["steps", "seconds"]', claimed))
    assert compared(results, SECOND) == [f"failed: standing record: {message}"]


def test_a_record_that_does_not_beat_the_standing_one_sets_none(results: Path) -> None:
    folder = results / "records" / SECOND
    for seed, floor in enumerate((2.715, 2.815, 3.015, 3.115)):  # as many steps, and no less time
        forge(folder, f"two-muon-{seed}", make_points(floor=floor))
        forge(folder, f"two-adamw-{seed}", make_points(floor=floor + 0.1075))
    cover(folder)
    message = "muon: sets the record of steps, seconds, but the boards give none"
    assert compared(results, SECOND) == [f"failed: standing record: {message}"]


def test_a_run_of_another_record_is_found(results: Path) -> None:
    first, second = results / "records" / FIRST, results / "records" / SECOND
    for seed in range(4):
        forge(second, f"two-muon-{seed}", store.read_curve(first, f"one-muon-{seed}"))
        forge(second, f"two-adamw-{seed}", make_points(floor=3.3 + seed / 100, step_seconds=0.11))
    cover(second)
    (line, *_) = [x for x in compared(results, SECOND) if ": curves: " in x]
    assert line.endswith(
        f"run two-muon-0: has the losses and the clock of run one-muon-0 of {FIRST}"
    )


def test_evidence_is_sealed_without_a_race(tmp_path: Path) -> None:
    folder = tmp_path / "records" / "what"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# What\n\nQuestion: is it so?\n\nYes.\n")
    (folder / "table.csv").write_text("a\n1\n")
    assert seal.seal(folder).kind == "evidence"
    assert findings(folder) == []
