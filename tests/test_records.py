"""A good record passes, and each way to tamper with one is found, by its rule and its value.

A careful cheat seals the record again and computes anew what its rows give (`record_maker.cover`),
so that not only a hash tells. What no arithmetic can find is listed, too: only a rerun can.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from errors import UserError
from leaderboard import judge, verify
from leaderboard import rules as rulebook
from leaderboard.claims import PASSED, UNCHECKED
from tests.record_maker import (
    FIRST,
    RUN,
    SECOND,
    SOURCE_NAME,
    Tamper,
    cover,
    edit_curve,
    edit_form,
    edit_runs,
    edit_turns,
    failures,
    findings,
    follow,
    forge,
    make_records,
    remove_run,
    small_rules,
)
from tests.rows import SOURCE, make_points
from tracking import store
from tracking.schema import Run, Validation


@pytest.fixture(scope="module", autouse=True)
def tracks() -> Iterator[None]:
    with small_rules():
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
    "the same end of all runs": (
        lambda root: [
            forge(root, f"one-muon-{n}", [replace(p, val_loss=p.val_loss + n / 10 * (p.step < 100))
                                          for p in make_points()])
            for n in range(4)
        ],
        "curves: muon: all 4 runs end at the loss 3",
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
    "track": (('track = "tiny"', 'track = "custom"'), "'custom' has no board in version . of the"),
    "rules": (
        (f"rules = {rulebook.VERSION}", "rules = 9"),
        "track: 'tiny' has no board in version 9 .* no track",
    ),
    "questions": (('race = "one"', 'race = "one"\nquestions = "x"'), "form: .*questions: names"),
    "claim of another": (('label = "muon"', 'label = "sgd"'), "claim: sgd: no such entrant in the"),
    "claim twice": (('label = "adamw"', 'label = "muon"'), "claim: muon: is claimed 2 times"),
    "claims": (('race = "one"', "claims = []"), "form: .*'claims' is unknown"),
    "claim of no table": (("[environment]", "claim = 1\n[environment]"), "form: .*TOML|form: .*"),
    "readout": (("n = 4", 'readout = "averaged"\nn = 4'), "adamw: declared 'averaged', but it is"),
    "a word more": (("n = 4", "n = 4\nm = 4"), "form: .*'m' is unknown; it has label"),
    "no value": (("n = 4", "n ="), "form: .*Invalid value"),
    "another torch": (('torch = "2.9.0"', 'torch = "9"'), "environment: torch 9, but its rows"),
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
