"""The readers of files and spellings: a refusal in one line, or a result, never another exception.

    python -m pytest tests/test_fuzz.py            # a few examples of each reader
    make fuzz                                      # two minutes of other examples each time

Each test begins with what is valid, changes it a little, and gives it to one reader. Where a result
comes back, it is written again and must be the same.
"""

import gzip
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import strategies as st

import data
import optim
import speedrun
from analysis import report
from analysis.scale import ScalePoint
from data import adopt, bpe, loader, manifest, shards, text, token_files
from errors import UserError
from host import workers
from leaderboard import verify
from optim.entrants import Entrant, parse
from runtime import command_line
from tests.fuzzing import (
    VALUES,
    damage,
    damaged,
    flip,
    fuzz,
    json_values,
    ran,
    refused,
    told,
    words,
)
from tests.rows import make_logits, make_points, make_run, make_spectra, make_trial, make_turns
from tests.test_verify import fill, fill_records
from tracking import spelling, store, tuned
from tracking.schema import Logit, Run, Spectrum, Trial, Turn, Validation

RANKED = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the"]
VOCAB = len(RANKED) + 1
TOKENS = np.arange(400, dtype=np.uint16) % VOCAB
SHARD = b"".join(shards.shard_parts(TOKENS))
Fuzz = Callable[..., None]


@pytest.fixture
def try_(request: pytest.FixtureRequest) -> Fuzz:
    return partial(fuzz, request)


def fresh(folder: Path, files: dict[str, bytes]) -> Path:
    """The folder with these files alone."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- data -----------------------------------------------------------------------------------------

headers = st.builds(
    lambda magic, version, count, kind, tokens: (
        np.array([magic, version, count, *[0] * 253], kind).tobytes()
        + np.array(tokens, np.uint16).tobytes()
    ),
    st.sampled_from([20240520, 20240801, 20240520 + 2, 0, -1]),
    st.sampled_from([1, 0, 7, -1]),
    st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 8),
    st.sampled_from(["<i4", ">i4"]),
    st.lists(st.integers(0, (1 << 16) - 1), max_size=8),
)
shard_contents = headers | st.builds(damaged, st.just(SHARD), damage(1))


def test_a_shard(try_: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "train.bin"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        no, tokens = refused(lambda: shards.open_shard(path, VOCAB))
        if not no:
            assert b"".join(shards.shard_parts(tokens))[1024:] == content[1024:]
            made = dict(batch_tokens=8, seq_len=4, vocab_size=VOCAB)
            no, batches = refused(lambda: loader.Batches([path], **made))
            assert no or refused(lambda: batches.batch(0))

    try_(check, shard_contents)


def test_a_folder_that_is_adopted(
    try_: Fuzz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    val = b"".join(shards.shard_parts(TOKENS[:50]))
    names = st.sampled_from(
        ["a_train_1.bin", "train.bin", "x.bin", "val_2.bin", "m.BIN", "é\n.bin"]
    )
    options = st.lists(
        st.sampled_from(["--vocab=9", "--vocab=65536", "--val=*.bin", "--train=[", "--vocab=x"]),
        max_size=2,
    )

    def check(name: str, content: bytes, again: list[Any], more: list[str]) -> None:
        root = fresh(tmp_path / "own", {"a_val_0.bin": val, name: content})
        arguments = [str(root), f"--vocab={VOCAB}", *more]
        code = adopt.main(arguments)
        if not ran(code, capsys.readouterr().err):
            assert not (root / "manifest.json").exists()
            return
        found = data.open_dataset(f"shards:{root}")
        assert adopt.main([str(root)]) == 0
        assert data.open_dataset(f"shards:{root}") == found
        path = root / "manifest.json"
        path.write_bytes(damaged(path.read_bytes(), again))
        refused(lambda: data.open_dataset(f"shards:{root}"))
        capsys.readouterr()
        ran(adopt.main([str(root)]), capsys.readouterr().err)

    try_(check, names, st.just(SHARD) | shard_contents, damage(), options)


def test_tokens_without_a_header(
    try_: Fuzz, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = []
    for kind in ("<u2", "<i4", ">i8", "<f4"):
        stream = io.BytesIO()
        np.save(stream, TOKENS.astype(kind))
        arrays.append(stream.getvalue())
    raw = st.sampled_from([TOKENS.tobytes(), TOKENS.astype("<i4").tobytes(), SHARD, *arrays])

    def check(content: bytes, done: list[Any], suffix: str) -> None:
        files = {"val.bin": TOKENS.tobytes(), f"train{suffix}": damaged(content, done)}
        root, out = fresh(tmp_path / "raw", files), tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        code = adopt.main([str(root), "--convert", "--out", str(out), f"--vocab={VOCAB}"])
        said = capsys.readouterr().err
        assert ran(code, said) == out.exists() or "same content" in said

    try_(check, raw, damage(), st.sampled_from([".bin", ".npy"]))


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder as data.text makes it."""
    files = {"vocab.tiktoken": bpe.dump(RANKED), "own_train_0.bin": SHARD}
    files["own_val_0.bin"] = b"".join(shards.shard_parts(TOKENS[:50]))
    root = fresh(tmp_path / "prepared", files)
    sizes = {"vocab.tiktoken": VOCAB, "own_train_0.bin": 400, "own_val_0.bin": 50}
    listed = (manifest.File(n, c, manifest.sha256(root / n)) for n, c in sizes.items())
    manifest.write(root, manifest.Manifest(VOCAB, tuple(listed), 1.5))
    return root


def test_a_manifest(try_: Fuzz, prepared: Path) -> None:
    path = prepared / "manifest.json"
    valid = path.read_bytes()

    def check(content: bytes) -> None:
        path.write_bytes(content)
        no, found = refused(lambda: manifest.read(prepared, "the remedy"))
        refused(lambda: data.open_dataset(f"text:{prepared}", val_tokens=20))
        if not no:
            manifest.write(prepared, found)
            again = manifest.read(prepared, "")
            assert again == found and again.hash == found.hash

    of_values = st.builds(
        lambda key, value: json.dumps(json.loads(valid) | {key: value}).encode(),
        st.sampled_from([each.name for each in fields(manifest.Manifest)]) | st.text(max_size=4),
        json_values,
    )
    of_files = st.builds(
        lambda key, value: json.dumps(
            json.loads(valid) | {"files": [{**json.loads(valid)["files"][0], key: value}]}
        ).encode(),
        st.sampled_from(["name", "tokens", "sha256", "x"]),
        json_values,
    )
    any_json = st.builds(lambda value: json.dumps(value).encode(), json_values)
    broken = st.builds(damaged, st.just(valid), damage(1))
    try_(check, broken | of_values | of_files | any_json)


def test_a_vocabulary(try_: Fuzz, tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"

    def check(done: list[Any]) -> None:
        path.write_bytes(damaged(bpe.dump(RANKED), done))
        no, tokens = refused(lambda: bpe.read(path))
        if not no:
            path.write_bytes(bpe.dump(tokens))
            assert bpe.read(path) == tokens
            encoding = bpe.load(path)
            assert encoding.decode(encoding.encode_ordinary("the thing é")) == "the thing é"

    try_(check, damage(1))


def test_the_name_of_a_data_set(
    try_: Fuzz, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(prepared.parent)
    kinds = st.sampled_from([*data.DATASETS, "", "Text", "soto"])
    folders = st.sampled_from(["prepared", "./prepared/", "~", "prepared/vocab.tiktoken", "-"])

    def check(kind: str, folder: str, val_tokens: int | None) -> None:
        name = f"{kind}:{folder}"
        no, found = refused(lambda: data.open_dataset(name, val_tokens=val_tokens))
        if not no:
            assert found.train and found.val
        refused(lambda: data.settled(name))
        data.frozen(name)

    folders = folders | words | st.text(max_size=8)
    try_(check, kinds, folders, st.none() | st.integers(-1, 60))


@pytest.fixture
def text_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Gives files to the command data.text and checks what it makes of them."""
    here = lambda call, tasks, count: (call(task) for task in tasks)  # noqa: E731  starts no process
    monkeypatch.setattr(workers, "unordered", here)
    vocabulary = tmp_path / "own.tiktoken"
    vocabulary.write_bytes(bpe.dump(RANKED))

    def check(name: str, content: bytes, *options: str) -> None:
        root, out = fresh(tmp_path / "in", {name: content}), tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        arguments = [str(out), str(root / name), "--vocab", str(vocabulary), "--workers=1"]
        code = text.main([*arguments, "--val-fraction=0.3", *options])
        assert ran(code, capsys.readouterr().err) == out.exists()
        if out.exists():
            assert data.open_dataset(f"text:{out}").vocab_size == VOCAB
        assert not list(tmp_path.glob(".out*"))

    return check


ROWS = [{"text": f"The {n}th document, of the café.\n", "meta": [n, None]} for n in range(6)]
JSON_LINES = "".join(json.dumps(row, ensure_ascii=n % 2 == 0) + "\n" for n, row in enumerate(ROWS))
PLAIN = "<|endoftext|>".join(row["text"] for row in ROWS)  # type: ignore[misc]
names = st.sampled_from(["a.jsonl", "a.json", "a.txt", "a.JSONL", "a.parquet", "a.gz", "a"])


def test_json_lines(try_: Fuzz, text_of: Callable[..., None]) -> None:
    array = json.dumps(ROWS, indent=1)
    valid = st.sampled_from(
        [JSON_LINES.encode(), array.encode(), gzip.compress(array.encode(), mtime=0)]
    )
    rows = st.builds(
        lambda values, ascii: "".join(
            json.dumps({"text": value}, ensure_ascii=ascii) + "\n" for value in values
        ).encode("utf-8", "surrogatepass"),
        st.lists(json_values | st.text(max_size=30), max_size=5),
        st.booleans(),
    )
    contents = st.builds(damaged, valid, damage()) | st.builds(damaged, rows, damage())
    try_(lambda name, content: text_of(name, content), names, contents)


def test_plain_text(try_: Fuzz, text_of: Callable[..., None]) -> None:
    valid = st.sampled_from(
        [PLAIN.encode(), gzip.compress(PLAIN.encode(), mtime=0), PLAIN.encode("utf-16")]
    )
    any_text = st.builds(lambda content: content.encode("utf-8", "surrogatepass"), st.text())
    options = st.sampled_from(["--seed=1", "--format=text", "--format=jsonl", "--separator=\n",
                               "--field=", "--field=é", "--separator=\ud800"])  # fmt: skip
    contents = st.builds(damaged, valid | any_text | st.binary(), damage())
    try_(lambda name, content, option: text_of(name, content, option), names, contents, options)


def test_parquet(try_: Fuzz, text_of: Callable[..., None]) -> None:
    table = pyarrow.table({"text": [row["text"] for row in ROWS], "n": range(len(ROWS))})
    stream = io.BytesIO()
    pyarrow.parquet.write_table(table, stream)
    try_(
        lambda content, done, option: text_of("a.parquet", damaged(content, done), option),
        st.just(stream.getvalue()),
        damage(),
        st.sampled_from(["--field=text", "--field=n", "--field=none"]),
    )


# --- results --------------------------------------------------------------------------------------

POINTS = make_points()
RUN = make_run(POINTS)
TABLES: dict[type, list[Any]] = {
    Run: [RUN, make_run(make_points(floor=4.0), run="b", label='a,"b"')],
    Trial: [make_trial(), make_trial(trial=1, final_loss=None, status="diverged")],
    Validation: POINTS,
    Turn: make_turns(make_run(POINTS, turn_steps=3)),
    Logit: make_logits(POINTS),
    Spectrum: make_spectra(POINTS, {"momentum": 100.0})[4:],
    ScalePoint: [ScalePoint("r", 64, 4096, 100)],
}


def content_of(path: Path, rows: list[Any]) -> bytes:
    path.unlink(missing_ok=True)
    for row in rows:
        store.append(path, row)
    return path.read_bytes()


@pytest.mark.parametrize("cls", TABLES, ids=lambda cls: cls.__name__)
def test_a_table(try_: Fuzz, tmp_path: Path, cls: type) -> None:
    path = tmp_path / "table.csv"
    valid = content_of(path, TABLES[cls][:4])

    def check(done: list[Any]) -> None:
        path.write_bytes(damaged(valid, done))
        no, rows = refused(lambda: store.read(path, cls))
        refused(lambda: store.append(path, TABLES[cls][0]))
        if not no and rows:
            content_of(path, rows)
            assert len(store.read(path, cls)) == len(rows)

    try_(check, damage(1))


def values_of(cls: type) -> st.SearchStrategy[Any]:
    """Instances whose fields have any value of their types."""
    kinds = {
        str: st.text(st.characters(codec="utf-8"), max_size=12) | words,
        int: st.integers(-store.LARGEST, store.LARGEST),
        float: st.floats(allow_nan=False, allow_infinity=False),
        bool: st.booleans(),
    }
    drawn = {}
    for name, hint in get_type_hints(cls).items():
        options = getattr(hint, "__args__", (hint,))
        drawn[name] = st.one_of(*(kinds.get(kind, st.none()) for kind in options))
    if cls is Run:
        drawn["status"] = st.sampled_from(["reached", "missed", "diverged"])
    return st.builds(cls, **drawn)


@pytest.mark.parametrize("cls", [Run, Trial, Validation], ids=lambda cls: cls.__name__)
def test_rows_that_are_written_are_read_back(try_: Fuzz, tmp_path: Path, cls: type) -> None:
    path = tmp_path / "table.csv"

    def check(rows: list[Any]) -> None:
        content_of(path, rows)
        for row, found in zip(rows, store.read(path, cls), strict=True):
            for name in get_type_hints(cls):
                old, new = getattr(row, name), getattr(found, name)
                assert new == (" ".join(old.splitlines()) if isinstance(old, str) else old)
                assert not isinstance(old, float) or math.copysign(1, old) == math.copysign(1, new)

    try_(check, st.lists(values_of(cls), max_size=3).filter(bool))


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Callable[[int, list[Any]], Path]]:
    """Makes a results folder with changes in one of its files, which a number chooses."""
    whole = tmp_path / "whole"
    fill(whole)
    paths = sorted(path for path in whole.rglob("*") if path.is_file())
    files = {str(path.relative_to(whole)): path.read_bytes() for path in paths}
    tables = [name for name in files if name in ("runs.csv", "tuning.csv")]

    def make(number: int, done: list[Any]) -> Path:
        choices = [*files, *tables * 4]
        name = choices[number % len(choices)]
        return fresh(tmp_path / "results", files | {name: damaged(files[name], done)})

    yield make


def test_a_record_that_is_verified(
    try_: Fuzz, results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def check(number: int, done: list[Any]) -> None:
        root = results(number, done)
        code = verify.main([str(root)])
        said = capsys.readouterr()
        assert said.out if code == 1 else ran(code, said.err) == bool(said.out)

    try_(check, st.integers(0, 100), damage(1), examples=3)


def test_tuned_settings_that_are_verified(try_: Fuzz, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    fill_records(whole)
    valid = (whole / "tuned.toml").read_bytes()

    def check(done: list[Any]) -> None:
        path = tmp_path / "tuned.toml"
        path.write_bytes(damaged(valid, done))
        refused(lambda: verify.everything(whole, path))

    try_(check, damage(1), examples=3)


def test_a_record_that_is_reported(
    try_: Fuzz, results: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def check(number: int, done: list[Any]) -> None:
        root = results(number, done)
        ran(report.main(["--root", str(root)]), capsys.readouterr().err)

    try_(check, st.integers(0, 100), damage(1), examples=3)


# --- spellings ------------------------------------------------------------------------------------

LIBRARY = ["lib:torch.optim.NAdam", "lib:torch.optim.Adafactor", "lib:torch.optim.", "lib:",
           "lib:.", "lib:torch.optim.lr_scheduler.StepLR", "lib:os.path",
           "lib:no.Such"]  # fmt: skip
recipes = st.sampled_from([*sorted(optim.recipes()), *LIBRARY, "", "Muon", "adamv"])
keys = st.sampled_from(["lr", "weight_decay", "steps", "momentum", "betas", "warmup", "cooldown",
                        "nesterov", "ns_steps", "ns_coefficients", "eps", "scope", "version",
                        "embed_lr", "refresh", "nothing", ""])  # fmt: skip
numbers = st.one_of(
    st.floats().map(str), st.integers().map(str), words,
    st.sampled_from(["0.9/0.95", "0.9/", "/", "true", "1/2/3", "matrices", "all"]),
)  # fmt: skip


def test_an_entrant(try_: Fuzz) -> None:
    def check(name: str, options: list[tuple[str, str]], done: list[Any]) -> None:
        typed = ",".join(f"{key}={value}" for key, value in options)
        spelled = damaged(f"{name}:{typed}".encode(), done).decode("utf-8", "surrogateescape")
        spelling.display_name(spelled)
        spelling.file_name(spelled.encode("utf-8", "replace").decode())
        no, entrant = refused(lambda: speedrun.enter(spelled, "tiny"))
        if no:
            return
        assert isinstance(entrant, Entrant)
        again = speedrun.enter(entrant.canonical, "tiny")
        assert again.settings == entrant.settings and again.canonical == entrant.canonical
        assert speedrun.enter(entrant.copyable, "tiny").canonical == entrant.canonical
        read_back = {key: str(value) for key, value in entrant.settings.items()}
        assert spelling.options_of(entrant.canonical) == read_back

    try_(
        check,
        recipes,
        st.lists(st.tuples(keys, numbers), max_size=3),
        damage().map(lambda d: d[:1]),
    )


def test_a_command_line(try_: Fuzz, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = speedrun.make_parser("", "speedrun.py")
    flags = sorted(flag for action in parser._actions for flag in action.option_strings)
    word = st.builds("{}={}".format, st.sampled_from([*flags, "--no", "-"]), words | numbers)
    track = st.sampled_from(["--track=tiny", "--track=gpt2", "--track=custom"])

    def check(*typed: str) -> None:
        try:
            arguments = parser.parse_args([each for each in typed if "--help" not in each])
        except SystemExit as end:
            assert end.code == 2 and "error: " in capsys.readouterr().err
            return
        except UserError as error:  # what a flag's type refuses, entry.run prints
            return told(str(error))
        no, _ = refused(lambda: speedrun.chosen_track(arguments))
        no or refused(lambda: speedrun.entrants_of(arguments))
        refused(lambda: speedrun.Options(**command_line.given(arguments, speedrun.Options)))

    entrant = st.sampled_from(["muon", "adamw:lr=1", "--seeds=2"]) | words
    try_(lambda a, b, c, d: check(a, b, c, d), track, entrant, word, word | st.just("--seeds=1"))


def test_tuned_settings(try_: Fuzz, tmp_path: Path) -> None:
    valid = (
        b"[tiny.muon]\nlr = 0.02\nnesterov = true\nsteps = 70\ntrials = [1, 2]\n\n"
        b'[gpt2."lib:torch.optim.NAdam"]\nlr = 0.1\nsteps = 50\nsource = "a log"\nmissed = true\n'
    )
    path, other = tmp_path / "tuned.toml", tmp_path / "other.toml"
    values = st.sampled_from(["[1]", "{a = 1}", "nan", '"x"', "1979-05-27", "[[]]", "-1", "true"])
    sections = st.builds(
        lambda key, value: valid.replace(b"lr = 0.02", f"{key} = {value}".encode()),
        st.sampled_from(["lr", "steps", "x", "missed", '"a b"', "source"]),
        values | st.sampled_from(VALUES),
    )

    def check(content: bytes) -> None:
        path.write_bytes(content)
        no, found = refused(lambda: tuned.read(path))
        for track in ("tiny", "gpt2", "tiny-mla"):
            refused(lambda track=track: tuned.recipes(track, path))
        defaults = {"steps": 9}
        refused(lambda: parse("muon", "tiny", speedrun.Schedule, defaults, {}, path))
        if no:
            return
        other.unlink(missing_ok=True)
        for section in found:
            tuned.write(section, other)
        key = lambda section: (section.track, section.recipe)  # noqa: E731
        assert sorted(tuned.read(other), key=key) == sorted(found, key=key)

    try_(check, sections | st.builds(damaged, st.just(valid), damage(1)))


# --- what it has found ----------------------------------------------------------------------------


def test_a_message_is_one_line_that_a_person_can_read(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    for value in ("x" * 100_000, "[" * 5000, "\x1b[31m", "\u2028", "a\rb"):
        path.write_bytes(content_of(path, [RUN]).replace(b",muon,", f",{value},".encode(), 1))
        path.write_bytes(path.read_bytes().replace(b"seed,", f"{value},".encode(), 1))
        with pytest.raises(UserError) as raised:
            store.read(path, Run)
        told(str(raised.value))
        assert "restore the file" in str(raised.value) and str(raised.value).isprintable()


@pytest.mark.parametrize("value", [
    "{a = 1}", "[1]", "nan", "inf", "1979-05-27", "[" * 5000, "'''", '"\\ud800"',
])  # fmt: skip
def test_a_setting_that_no_option_can_be_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "tuned.toml"
    for key in ("lr", "steps", "trials", "missed"):
        others = {"lr": "1", "steps": "7", "trials": "[1]", "missed": "true"} | {key: value}
        lines = "".join(f"{key} = {value}\n" for key, value in others.items())
        path.write_text(f"[tiny.muon]\n{lines}", encoding="utf-8")
        if (key, value) != ("trials", "[1]"):
            with pytest.raises(UserError, match="git checkout"):
                tuned.read(path)


@pytest.mark.parametrize("word", ["é", "a b", "lib:a.B", '"', "\x7f", "😀", "\\", "-", "1.5"])
def test_settings_are_read_back_whatever_their_names_are(tmp_path: Path, word: str) -> None:
    path = tmp_path / "tuned.toml"
    section = tuned.Tuned(word, word, {word: word, "lr": 1e-300}, 7, source=word)
    tuned.write(section, path)
    assert tuned.read(path) == [section]


def test_a_damaged_header_of_an_array_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, TOKENS)
    for place in range(8, 60):
        path = tmp_path / "train.npy"
        path.write_bytes(flip(stream.getvalue(), place, 0))
        refused(lambda path=path: token_files.raw(path))
