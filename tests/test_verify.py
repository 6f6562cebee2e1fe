"""The verifier finds every kind of tampering, and nothing in what the trainer writes."""

import io
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest

from analysis import report
from errors import UserError
from leaderboard import rows, seal, verify
from tests.rows import SOURCE, make_points, make_run, make_trial, make_turns, on_the_clock
from tracking import store, tuned
from tracking.schema import Run, Trial, Turn

SOURCE_NAME = f"sources/{store.source_hash(SOURCE)}.txt"
CHOSEN = "steps = 150\ntrials = [1]\n"
TUNED = '[tiny.muon]\nlr = 0.002\nb = "x"\n' + CHOSEN
NO_CROSSING = dict(steps_to_target=None, tokens_to_target=None, seconds_to_target=None)


def fill(root: Path) -> None:
    """A race of two entrants and two seeds, a run that diverged and one that missed; a tuning."""
    fill_runs(root)
    fill_trials(root)


def fill_runs(root: Path) -> None:
    for seed in range(2):
        for label, floor in (("adamw", 3.2), ("muon", 3.0)):
            points = make_points(floor=floor + 0.01 * seed)
            run = make_run(
                points, label=label, entrant=label, seed=seed, run=f"{label}-{seed}",
                heat=f"tiny-1-s{seed}", turn_steps=3,
            )  # fmt: skip
            turns = on_the_clock(make_turns(run), points)
            store.record(root, run, points, SOURCE, turns=turns)
    points = make_points(steps=40)
    lost = make_run(points, label="lion", entrant="lion", run="lion-0", status="diverged")
    lost = replace(lost, steps=50, tokens=4096 * 50, train_seconds=5.0)
    lost = replace(lost, mfu=lost.flops_per_step * 50 / 5.0 / lost.matmul_peak_flops)
    store.record(root, lost, points, SOURCE)
    points = make_points(floor=4.0)
    store.record(root, make_run(points, entrant="sgd", label="sgd", run="sgd-0"), points, SOURCE)


def fill_trials(root: Path) -> None:
    for recipe in ("adamw", "muon"):
        for trial in range(2):
            row = make_trial(recipe=recipe, trial=trial, entrant=f"{recipe}:lr={trial + 1}e-3,b=x")
            store.record_trial(root, row, SOURCE)
            row = replace(row, stage="horizon", steps=150, target=3.5, status="reached", seed=9)
            store.record_trial(root, row, SOURCE)


def fill_records(results: Path) -> None:
    """Two records, a race and a search, whose sources are in one pool; then tuned.toml."""
    fill_runs(results / "records" / "race")
    fill_trials(results / "records" / "search")
    (results / "tuned.toml").write_text(TUNED)
    for name in ("race", "search"):
        seal_evidence(results / "records" / name)


def seal_evidence(folder: Path) -> None:
    (folder / "README.md").write_text("# A record\n\nQuestion: does it hold?\n")
    seal.seal(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows and a results folder with records, of which each test takes a copy."""
    home = tmp_path_factory.mktemp("made")
    fill(home / "rows")
    fill_records(home / "results")
    return home


def test_verify_accepts_what_the_trainer_writes(tmp_path, capsys):
    root = tmp_path / "results"
    fill(root)
    assert rows.problems(root) == []
    assert verify.main([str(root)]) == 0
    assert capsys.readouterr().out.endswith("\n6 runs and 8 tuning trials verified\n")


# ---- Records -----------------------------------------------------------------------------------


def test_records_are_verified_with_what_they_share(tmp_path, capsys):
    fill_records(tmp_path)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == [
        "race", "search", "sources",
    ]  # fmt: skip
    sections = verify.everything(tmp_path, tmp_path / "tuned.toml")
    assert [str(section.rows) for section in sections if section.kind == "evidence"] == [
        "6 runs and 0 tuning trials",
        "0 runs and 8 tuning trials",
    ]
    assert verify.report(sections) == 0
    assert capsys.readouterr().out.endswith("\n6 runs and 8 tuning trials verified\n")
    assert verify.main([str(tmp_path / "records" / "race")]) == 0


def in_record(name: str, tamper):
    return lambda results: tamper(results / "records" / name)


def copy_run(results: Path) -> None:
    """The first run of a record in a second record, with its curve."""
    race = results / "records" / "race"
    run = store.read_runs(race)[0]
    curve, turns = store.read_curve(race, run.run), store.read_turns(race, run.run)
    store.record(results / "records" / "again", run, curve, SOURCE, turns=turns)


def add_run(**changes):
    """A run of another record, which disagrees with the runs of its track."""

    def tamper(results: Path) -> None:
        points = make_points()
        run = make_run(points, race="other", run="other-0", **changes)
        store.record(results / "records" / "other", run, points, SOURCE)

    return tamper


def write_tuned(text: str):
    return lambda results: (results / "tuned.toml").write_text(text)


def search_more(results: Path) -> None:
    """One more trial of muon's search, in another record."""
    row = make_trial(recipe="muon", trial=2, entrant="muon:lr=7e-3,b=x")
    store.record_trial(results / "records" / "more", row, SOURCE)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (
            in_record("race", lambda root: change_run("muon-0", final_loss=2.9)(root)),
            "run muon-0: final_loss 2.9, but its curve gives 3",
        ),
        (
            in_record("race", lambda root: remove("curves/muon-0.csv")(root)),
            "run muon-0: .* is missing",
        ),
        (
            in_record("race", lambda root: drop_run("muon-0")(root)),
            ".*curves/muon-0.csv: no row in runs.csv",
        ),
        (copy_run, "run adamw-0: 2 rows have this id"),
        (copy_run, "race tiny-1: 2 runs of adamw with seed 0"),
        (add_run(param_count=9), "track 1f2e: its runs differ in param_count: 9, 1000000"),
        (add_run(final_bits_per_byte=0.9), "its runs differ in final_bits_per_byte over final_los"),
        (
            lambda results: (results / "records" / SOURCE_NAME).unlink(),
            f".*{SOURCE_NAME}: missing, although rows name it",
        ),
        (
            lambda results: (results / "records" / "sources" / "ffff.txt").write_text("text"),
            "sources/ffff.txt: no row names this source",
        ),
        (
            lambda results: (results / "records" / "sources" / "run.py").write_text("text"),
            "sources/run.py: no row names this source",
        ),
        (search_more, "recipes differ in their number of search trials: muon 3, adamw 2"),
        (write_tuned("[tiny.muon]\nlr = 0.003\n" + CHOSEN), "settings differ from trial 1"),
        (write_tuned("[tiny.muon]\nc = 1\n" + CHOSEN), "settings differ from trial 1"),
        (write_tuned("[tiny.muon]\nb = 1\n" + CHOSEN), "settings differ from trial 1"),
        (
            write_tuned("[tiny.muon]\nsteps = 150\ntrials = []\n"),
            "tiny.muon.: names neither a trial nor a source",
        ),
        (write_tuned("[tiny.muon]\nsteps = 150\ntrials = [7]\n"), "no tuning.csv has its trial 7"),
        (
            in_record("search", lambda root: change_trial("muon", 1, "horizon", steps=140)(root)),
            "tiny.muon.: trial 1 did not reach the target in 150 steps",
        ),
        (
            in_record(
                "search",
                lambda root: change_trial("muon", 1, "horizon", status="missed", final_loss=3.6)(
                    root
                ),
            ),
            "tiny.muon.: trial 1 did not reach the target in 150 steps",
        ),
        (
            write_tuned(TUNED.replace("steps", "missed = true\nsteps")),
            "tiny.muon.: no run of trial 1 missed the target in 150 steps",
        ),
    ],
)
def test_verify_finds_in_records(tmp_path, made, tamper, message):
    shutil.copytree(made / "results", tmp_path, dirs_exist_ok=True)
    tamper(tmp_path)
    assert re.search(message, said(tmp_path))


def said(results: Path) -> str:
    """What the command prints of a results folder with its records, where something fails."""
    with redirect_stdout(io.StringIO()) as out:
        assert verify.report(verify.everything(results, results / "tuned.toml")) == 1
    return out.getvalue()


def test_an_entrant_that_misses_the_target_says_so(tmp_path):
    fill_records(tmp_path)
    search = tmp_path / "records" / "search"
    change_trial("muon", 1, "horizon", status="missed", final_loss=3.6)(search)
    seal.seal(search)
    write_tuned(TUNED.replace("steps", "missed = true\nsteps"))(tmp_path)
    assert verify.report(verify.everything(tmp_path, tmp_path / "tuned.toml")) == 0


def test_your_own_results_are_verified_beside_the_records(tmp_path):
    fill_records(tmp_path)
    row = make_trial(recipe="muon", trial=5, entrant="muon:lr=5e-3,b=x", stage="horizon")
    row = replace(row, steps=150, target=3.5, status="reached", seed=9)
    store.record_trial(tmp_path, row, SOURCE)
    own = TUNED.replace("0.002", "0.005").replace("[1]", "[5]")
    write_tuned(own)(tmp_path)  # settings from a search of the user's
    sections = {s.name: s for s in verify.everything(tmp_path, tmp_path / "tuned.toml")}
    assert not any(section.failures for section in sections.values())
    assert str(sections["your results"].rows) == "0 runs and 1 tuning trials"
    (tmp_path / "curves").mkdir()
    (tmp_path / "curves" / "lost.csv").write_text("")
    assert said(tmp_path).count("failed: rows:") == 1 and "lost.csv: no row in" in said(tmp_path)


def test_checks_of_a_gpu_are_verified_too(tmp_path):
    fill_records(tmp_path)
    root = tmp_path / "gpu" / "20260101-card"
    (root / "curves").mkdir(parents=True)
    (root / "curves" / "lost.csv").write_text("")
    store.append(root / "runs.csv", make_run())
    section = verify.everything(tmp_path, tmp_path / "tuned.toml")[-1]
    assert (section.name, str(section.rows)) == ("gpu/20260101-card", "1 runs and 0 tuning trials")
    assert any("lost.csv" in each.text for each in section.failures)


def test_a_folder_of_ones_own_has_its_own_settings_and_not_the_projects(tmp_path, capsys):
    own = tmp_path / "results" / "mine"
    fill(own)
    (tmp_path / "results" / "tuned.toml").write_text(TUNED.replace("0.002", "0.003"))  # others'
    assert verify.main([str(own)]) == 0
    (own / "tuned.toml").write_text(TUNED)
    assert verify.main([str(own)]) == 0
    (own / "tuned.toml").write_text(TUNED.replace("0.002", "0.003"))
    capsys.readouterr()
    assert verify.main([str(own)]) == 1
    assert "tuned.toml [tiny.muon]: its settings differ from trial 1" in capsys.readouterr().out
    assert tuned.of(own) == own / "tuned.toml"
    assert tuned.of(Path(rows.__file__).parents[1] / "results" / "records" / "..") == tuned.TUNED


@pytest.mark.parametrize("where", [".", "../race", "../../records/race/"])
def test_a_record_is_one_from_wherever_it_is_named(where, tmp_path, monkeypatch, capsys):
    fill_records(tmp_path)
    monkeypatch.chdir(tmp_path / "records" / "race")
    assert verify.main([where]) == 0, capsys.readouterr().out


def test_without_rows_there_is_nothing_to_verify(tmp_path):
    with pytest.raises(UserError, match="nothing to verify"):
        verify.everything(tmp_path, tmp_path / "tuned.toml")


# ---- One folder --------------------------------------------------------------------------------


def test_a_search_that_is_not_over_may_have_fewer_trials(tmp_path):
    root = tmp_path / "results"
    fill(root)
    begun = make_trial(recipe="lion", trial=0, entrant="lion:lr=1e-3")
    store.record_trial(root, begun, SOURCE)
    assert rows.problems(root) == []
    store.record_trial(
        root, replace(begun, stage="refine", trial=1, entrant="lion:lr=2e-3"), SOURCE
    )
    assert rows.problems(root) == [
        "track 1f2e: recipes differ in their number of search trials: adamw 2, muon 2, lion 1"
    ]


def change_run(name: str, **changes):
    """Changes cells of one row of runs.csv."""
    return change_rows("runs.csv", Run, lambda row: row.run == name, changes)


def change_trial(of: str, index: int, at: str = "search", **changes):
    """Changes cells of one row of tuning.csv."""
    wanted = (of, index, at)
    return change_rows(
        "tuning.csv", Trial, lambda row: (row.recipe, row.trial, row.stage) == wanted, changes
    )


def change_rows(name: str, cls: type, chosen, changes: dict):
    def tamper(root: Path) -> None:
        rows = store.read(root / name, cls)
        (root / name).unlink()
        assert any(map(chosen, rows))
        for row in rows:
            store.append(root / name, replace(row, **changes) if chosen(row) else row)

    return tamper


def drop_run(name: str):
    def tamper(root: Path) -> None:
        path = root / "runs.csv"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(line for line in lines if f",{name}," not in line))

    return tamper


def change_point(name: str, index: int, **changes):
    """Changes cells of one row of a curve; a negative index counts from the end."""

    def tamper(root: Path) -> None:
        points = store.read_curve(root, name)
        points[index] = replace(points[index], **changes)
        store.curve_path(root, name).unlink()
        for point in points:
            store.append(store.curve_path(root, name), point)

    return tamper


def drop_point(name: str, index: int):
    def tamper(root: Path) -> None:
        path = store.curve_path(root, name)
        lines = path.read_text().splitlines(keepends=True)
        del lines[index]
        path.write_text("".join(lines))

    return tamper


def change_turns(name: str, change):
    """Writes the turns of a run as `change` returns them."""

    def tamper(root: Path) -> None:
        turns = change(store.read_turns(root, name))
        store.turns_path(root, name).unlink(missing_ok=True)
        for turn in turns:
            store.append(store.turns_path(root, name), turn)

    return tamper


def change_turn(index: int, **changes):
    """Changes cells of one turn of muon-0."""

    def change(turns: list[Turn]) -> list[Turn]:
        turns[index] = replace(turns[index], **changes)
        return turns

    return change_turns("muon-0", change)


def write(name: str, text: str):
    return lambda root: (root / name).write_text(text)


def remove(name: str):
    return lambda root: (root / name).unlink()


def repeat_line(name: str):
    """Writes the last row of a file twice."""

    def tamper(root: Path) -> None:
        lines = (root / name).read_text().splitlines(keepends=True)
        (root / name).write_text("".join([*lines, lines[-1]]))

    return tamper


def test_two_races_that_began_in_one_second_have_heats_of_one_name(tmp_path: Path) -> None:
    for race in ("tiny-1", "tiny-2"):
        points = make_points(floor=3.0)
        run = make_run(points, race=race, run=f"{race}-muon-0", heat="s0", turn_steps=3)
        turns = on_the_clock(make_turns(run), points)
        store.record(tmp_path, run, points, SOURCE, turns=turns)
    assert not rows.problems(tmp_path)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (remove("curves/muon-1.csv"), "run muon-1: .*muon-1.csv is missing"),
        (write("curves/muon-1.csv", "a,b\n"), "run muon-1: .*line 1: unknown column 'a'"),
        (drop_run("adamw-1"), "curves/adamw-1.csv: no row in runs.csv"),
        (drop_run("adamw-1"), "turns/adamw-1.csv: no row in runs.csv"),
        (remove("turns/muon-0.csv"), "muon-0: its turns of 3 steps are missing"),
        (
            change_turns("sgd-0", lambda _: [Turn(0, 100, 10.0)]),
            "sgd-0: 1 turns, but its row has none",
        ),
        (change_run("muon-0", turn_steps=0), "muon-0: heat 'tiny-1-s0' with turns of 0 steps; a"),
        (change_run("muon-0", turn_steps=0), "heat tiny-1-s0: its runs differ in turn_steps: 3, 0"),
        (change_run("muon-0", heat=""), "muon-0: heat '' with turns of 3 steps; a run has both or"),
        (change_run("muon-0", heat="tiny-1-s1"), "heat tiny-1-s1: its runs differ in seed: 0, 1"),
        (
            change_turns("muon-0", lambda turns: turns[1:]),
            "muon-0: its turns are not of the rounds",
        ),
        (change_turn(4, round=5), "muon-0: its turns are not of the rounds 0, 1, 2"),
        (change_turn(4, steps=2), "muon-0: its turn in round 4 has 2, not 3 steps"),
        (change_turn(4, steps=4), "muon-0: its turn in round 4 has 4, not 3 steps"),
        (change_turn(-1, steps=4), "muon-0: its turn in round 33 has 4, not 3 steps"),
        (change_turn(-1, steps=0), "muon-0: its turn in round 33 has 0, not 3 steps"),
        (change_turn(-1, steps=2), "muon-0: 100 steps, but its turns have 101"),
        (change_turn(4, train_seconds=3.0), "muon-0: train_seconds 10, but its turns give 1"),
        (change_turn(4, train_seconds=-1.0), "muon-0: train_seconds 10, but its turns give"),
        (
            write("turns/muon-0.csv", "round\n0\n"),
            "run muon-0: .*csv line 1: column 'steps'",
        ),
        (
            change_run("muon-0", steps_to_target=70.0),
            "muon-0: steps_to_target 70, .*curve gives 75",
        ),
        (change_run("muon-0", tokens_to_target=1.0), "muon-0: tokens_to_target 1, .* gives 307200"),
        (change_run("muon-0", seconds_to_target=7.0), "muon-0: seconds_to_target 7, .* gives 7.5"),
        (change_run("muon-0", target=3.4), "muon-0: steps_to_target 75, but its curve gives 80"),
        (change_run("muon-0", target=3.4), "race tiny-1: its runs differ in target: 3.5, 3.4"),
        (change_run("sgd-0", status="reached"), "sgd-0: status reached, but its curve missed"),
        (
            change_run("muon-0", status="missed", **NO_CROSSING),
            "muon-0: status missed, but .*reached",
        ),
        (
            change_run("muon-0", status="diverged", **NO_CROSSING),
            "status diverged, but its curve ends",
        ),
        (change_run("lion-0", steps_to_target=30.0), "lion-0: steps_to_target 30, .* gives empty"),
        (change_run("muon-0", final_loss=2.9), "muon-0: final_loss 2.9, but its curve gives 3"),
        (change_run("muon-0", final_loss=None), "muon-0: final_loss empty, but its curve gives 3"),
        (change_run("muon-0", steps_planned=120), "muon-0: reached after 100 of 120 steps"),
        (change_run("muon-0", steps=90, steps_planned=90), "no validation at its last step 90"),
        (change_run("muon-0", tokens=4000), "muon-0: 81920 tokens at step 20, but 4000 at 100"),
        (change_run("lion-0", steps=0), "lion-0: 204800 tokens in no step"),
        (change_run("lion-0", steps=51), "track 1f2e: its runs differ in tokens per step"),
        (
            change_run("lion-0", steps=30),
            "lion-0: its curve goes on to step 40, 4 s, after its end",
        ),
        (change_run("muon-0", train_seconds=9.0), "train_seconds 9, but its curve 10"),
        (change_run("muon-0", optimizer_seconds=2.0), "muon-0: its parts take 11.1 s, more than"),
        (
            change_run("muon-0", optimizer_seconds=0.001),
            "muon-0: optimizer_seconds 0.001, but its curve's optimizer_ms give 0.5",
        ),
        (
            change_point("muon-0", 2, step_ms=50.0),
            "muon-0: 2 s on its clock before step 40, but 20 steps of step_ms 50 take 1",
        ),
        (change_run("muon-0", state_bytes=1), "tiny-1: muon: its runs differ in state_bytes: 1, 5"),
        (change_run("muon-0", flops_per_step=1e9, mfu=0.025), "muon: .* in flops_per_step: 1e"),
        (change_run("muon-0", param_count=9), "track 1f2e: .* in param_count: 1000000, 9"),
        (
            change_run("muon-0", final_bits_per_byte=0.9),
            "track 1f2e: .* final_bits_per_byte over final_loss: 0.4, 0.3",
        ),
        (change_run("muon-0", mfu=0.6), "muon-0: mfu 0.6, but its FLOPs, time and peak give 0.5"),
        (change_run("muon-0", seed=1), "race tiny-1: 2 runs of muon with seed 1"),
        (change_run("muon-0", run="muon-1"), "run muon-1: 2 rows have this id"),
        (repeat_line("runs.csv"), "run sgd-0: 2 rows have this id"),
        (
            change_run("muon-0", entrant="muon:lr=1"),
            "label muon stands for several entrants: muon:lr=1, muon",
        ),
        (change_run("muon-0", track_hash="ffff"), "differ in track_hash: 1f2e, ffff"),
        (change_run("muon-0", data_hash="ffff"), "differ in data_hash: abcd, ffff"),
        (change_run("muon-0", device="faster"), "differ in device: A processor, 2 cores, faster"),
        (change_run("muon-0", dtype="float32"), "differ in dtype: bfloat16, float32"),
        (change_run("muon-0", threads=4), "differ in threads: 2, 4"),
        (change_run("muon-0", compiled=False), "differ in compiled: True, False"),
        (change_run("muon-0", source_hash="ffff"), "differ in source_hash: "),
        (change_run("muon-0", source_hash="ffff"), "sources/ffff.txt: missing, although"),
        (write(SOURCE_NAME, SOURCE + " "), f"{SOURCE_NAME}: not the text that it is named after"),
        (change_point("muon-0", 2, step=20), "muon-0: its curve goes from step 20 to 20"),
        (
            change_point("muon-0", 2, train_seconds=1.0),
            "muon-0: its clock runs backwards at step 40",
        ),
        (change_point("muon-0", 2, tokens=5), "muon-0: 5 tokens at step 40, but 409600 at 100"),
        (
            change_point("muon-0", 3, val_loss=3.4),
            "muon-0: steps_to_target 75, but its curve gives 5",
        ),
        (change_point("muon-0", -1, val_loss=2.9), "muon-0: final_loss 3, but its curve gives 2.9"),
        (drop_point("muon-0", -1), "muon-0: its curve has no validation at its last step 100"),
        (
            change_trial("muon", 1, stage="look"),
            "stage 'look' is not one of search, refine, confirm, horizon",
        ),
        (
            change_trial("muon", 1, status="missed"),
            "status 'missed' is not one of finished, diverged",
        ),
        (change_trial("muon", 1, status="diverged"), "muon 1 .*: diverged with final_loss 3.4"),
        (change_trial("muon", 1, final_loss=None), "muon 1 .*: finished with final_loss empty"),
        (change_trial("muon", 1, target=3.0), "target 3, which only the horizon stage has"),
        (change_trial("muon", 1, "horizon", status="missed"), "muon 1 .*: missed 3.5 with 3.4"),
        (change_trial("muon", 1, "horizon", final_loss=3.6), "muon 1 .*: reached 3.5 with 3.6"),
        (repeat_line("tuning.csv"), "trial muon:lr=2e-3,b=x .horizon.: 2 rows with seed 9"),
        (change_trial("muon", 1, recipe="adamw"), "number of search trials: adamw 2, muon 1"),
        (write("sources/ffff.txt", "text"), "sources/ffff.txt: no row names this source"),
    ],
)
def test_verify_finds(tmp_path, made, capsys, tamper, message):
    root = shutil.copytree(made / "rows", tmp_path / "results")
    tamper(root)
    assert verify.main([str(root)]) == 1
    assert re.search(message, capsys.readouterr().out)


def test_a_file_that_cannot_be_read_is_one_line_on_stderr(tmp_path, capsys):
    root = tmp_path / "results"
    fill(root)
    (root / "runs.csv").write_text("a,b\n1,2\n")
    for main, arguments in ((verify.main, [str(root)]), (report.main, ["--root", str(root)])):
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(r".*runs.csv line 1: unknown column 'a'; .*\n", printed.err)
        assert printed.out == ""


def test_verify_refuses_an_empty_folder(tmp_path, capsys):
    assert verify.main([str(tmp_path)]) == 2
    assert (
        capsys.readouterr().err
        == f"leaderboard verify: nothing to verify in {tmp_path}; run: make speedrun\n"
    )
