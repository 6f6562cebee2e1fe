"""Shards that are there already: what is adopted, what is refused by name, and what is on a track.

python -m pytest tests/test_adopt.py
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import data
import speedrun
from data import adopt, bpe, fineweb, gpt2, manifest, shards
from errors import UserError
from tests.hub import Hub, shard, vocabulary

VAL = "fineweb_val_000000.bin"
FIRST, SECOND = "fineweb_train_000001.bin", "fineweb_train_000002.bin"
FILES = {VAL: shard(500, 0), FIRST: shard(400, 1), SECOND: shard(400, 2)}
TOKENS = vocabulary()
DUMP = bpe.dump(TOKENS)
LATE = 50256  # in every shard of GPT-2 tokens


@pytest.fixture(autouse=True)
def known_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """GPT-2's vocabulary without a network, and no FineWeb on this machine."""
    use_vocabulary(monkeypatch)
    monkeypatch.setattr(fineweb, "ROOT", tmp_path / "no_fineweb")


def use_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of 50,257 lines is not written and read anew in every test."""
    dump, read = bpe.dump, bpe.read
    monkeypatch.setattr(gpt2, "tokens", lambda: TOKENS)
    monkeypatch.setattr(bpe, "dump", lambda tokens: DUMP if tokens is TOKENS else dump(tokens))
    monkeypatch.setattr(
        bpe, "read", lambda path: TOKENS if path.name == "gpt2.tiktoken" else read(path)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "shards"
    write(root, FILES)
    return root


def write(root: Path, files: dict[str, bytes]) -> None:
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content)


def content(tokens: list[int], magic: int = shards.MAGIC, version: int = 1, kind: str = "<u2"):
    header = np.zeros(256, "<i4" if kind[0] == "<" else ">i4")
    header[:3] = magic, version, len(tokens)
    return header.tobytes() + np.array(tokens, kind).tobytes()


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = adopt.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def untouched(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """What must stay of each shard: all but its access time, which a reading moves."""
    return {
        name: ((folder / name).read_bytes(), status.st_ino, status.st_mtime_ns)
        for name in FILES
        for status in [(folder / name).stat()]
    }


# --- what is adopted ------------------------------------------------------------------------------


def test_a_folder_of_shards_is_adopted_and_opens(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = untouched(folder)
    code, out, _ = run(capsys, folder)
    assert code == 0
    assert "800 training tokens in 2 shards, 500 validation tokens in 1 shard" in out
    assert f"python speedrun.py --dataset shards:{folder}" in out
    assert untouched(folder) == before
    found = data.open_dataset(f"shards:{folder}", val_tokens=100)
    assert [path.name for path in (*found.val, *found.train)] == list(FILES)
    targets = shards.open_shard(folder / VAL, 50257)[1:101]
    sizes = [len(TOKENS[token]) if token < LATE else 0 for token in targets]
    assert found.bytes_per_token == sum(sizes) / 100
    assert found.bits_per_byte(1.0) == pytest.approx(1 / np.log(2) / found.bytes_per_token)


def test_the_trainer_adopts_a_folder_that_has_no_manifest(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = data.open_dataset(f"shards:{folder}")
    assert "800 training tokens" in capsys.readouterr().err
    assert data.open_dataset(f"shards:{folder}") == found
    assert not capsys.readouterr().err  # the second time it is there


def test_what_has_not_changed_is_not_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt.adopt(folder, adopt.Choice())
    read = []
    scan = adopt.scan
    monkeypatch.setattr(adopt, "scan", lambda path, *rest: read.append(path) or scan(path, *rest))
    adopt.adopt(folder, adopt.Choice())
    assert read == []
    write(folder, {SECOND: shard(300, 9)})
    made, _ = adopt.adopt(folder, adopt.Choice())
    assert read == [folder / SECOND] and [file.tokens for file in made.train] == [400, 300]


def test_files_that_changed_or_came_later_are_refused_until_they_are_adopted(folder: Path) -> None:
    first, _ = adopt.adopt(folder, adopt.Choice())
    later = folder / "fineweb_train_000003.bin"
    for change, message in (
        (lambda: write(folder, {SECOND: shard(400, 9)}), "000002.bin has changed since"),
        (lambda: later.write_bytes(shard(400, 7)), "000003.bin came after"),
        (lambda: (folder / FIRST).unlink(), "cannot read .*000001.bin"),
    ):
        change()
        with pytest.raises(UserError, match=f"{message}.*python -m data.adopt {folder}"):
            data.open_dataset(f"shards:{folder}")
        made, _ = adopt.adopt(folder, adopt.Choice())
        assert made.hash != first.hash
        data.open_dataset(f"shards:{folder}")


def test_a_copy_of_an_adopted_folder_is_the_same_data(folder: Path, tmp_path: Path) -> None:
    made, _ = adopt.adopt(folder, adopt.Choice())
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)  # with other times
    assert data.open_dataset(f"shards:{tmp_path / 'copy'}").hash == made.hash
    assert adopt.adopt(tmp_path / "copy", adopt.Choice())[0].hash == made.hash


def test_a_vocabulary_that_is_not_known_gives_no_bits_per_byte(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {name: content([*range(1, 200 + n)]) for n, name in enumerate(FILES)}
    write(folder, small)
    code, out, _ = run(capsys, folder)
    assert code == 0 and "no token is above 32767" in out
    code, out, _ = run(capsys, folder, "--vocab", 256)
    assert code == 0 and "vocabulary 256," in out and "bytes per token" not in out
    found = data.open_dataset(f"shards:{folder}")
    assert found.vocab_size == 256 and found.bits_per_byte(1.0) is None
    code, out, _ = run(capsys, folder)  # the choice is kept
    assert "vocabulary 256," in out
    code, out, _ = run(capsys, folder, "--vocab", "gpt2")
    assert "vocabulary 50257," in out and "bytes per token" in out
    code, out, _ = run(capsys, folder, "--vocab", "data/tiny/bpe1024.tiktoken")
    assert "vocabulary 1024," in out and "bytes per token" in out
    assert data.open_dataset(f"shards:{folder}").bytes_per_token is not None


@pytest.mark.parametrize(("vocab", "message"), [
    ("65537", "from 2 to 65536"), ("1", "from 2"), ("0", "from 2"), ("9" * 30, "from 2 to 65536"),
    ("-5", "must be gpt2, a number"), ("llama", "must be gpt2, a number"),
    ("no.tiktoken", "cannot read no.tiktoken"),
])  # fmt: skip
def test_a_vocabulary_that_cannot_be_is_refused(folder: Path, vocab: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adopt.adopt(folder, adopt.Choice(vocab))
    assert not (folder / "manifest.json").exists()


def test_own_names_are_divided_by_patterns(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(FILES):
        (folder / name).rename(folder / f"mine{number}.bin")
    code, _, err = run(capsys, folder)
    assert code == 2 and "mine0.bin: the name must have either train or val" in err
    assert "--val mine0.bin" in err
    assert run(capsys, folder, "--val", "mine0.bin")[0] == 0
    found = data.open_dataset(f"shards:{folder}")
    assert [path.name for path in found.train] == ["mine1.bin", "mine2.bin"]
    assert [path.name for path in found.val] == ["mine0.bin"]
    assert run(capsys, folder)[0] == 0  # the choice is kept
    code, out, _ = run(capsys, folder, "--train", "mine2.bin")
    assert "400 training tokens in 1 shard" in out
    assert data.open_dataset(f"shards:{folder}").train == (folder / "mine2.bin",)
    for option in ("--val", "--train"):
        code, _, err = run(capsys, folder, option, "*.txt")
        assert code == 2 and f"{option} *.txt: matches no .bin file" in err


@pytest.mark.parametrize("name", ["tiny_shakespeare_{}.bin", "{}.bin", "my-{}-1.BIN", "{}_00.bin"])
def test_the_word_in_a_name_divides_the_files(tmp_path: Path, name: str) -> None:
    write(tmp_path, {name.format("train"): FILES[FIRST], name.format("val"): FILES[VAL]})
    adopt.adopt(tmp_path, adopt.Choice())
    found = data.open_dataset(f"shards:{tmp_path}")
    assert [path.name for path in (*found.train, *found.val)] == [
        name.format("train"), name.format("val")
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_adopted_by_links(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != folder)
    code, _, err = run(capsys, folder)
    assert code == 2 and f"python -m data.adopt {folder} --out data/NAME" in err
    out = tmp_path / "data" / "mine"
    code, said, _ = run(capsys, folder, "--out", out)
    assert code == 0 and f"shards:{out}" in said
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert (out / FIRST).is_symlink() and [path.name for path in out.parent.iterdir()] == ["mine"]
    linked = data.open_dataset(f"shards:{out}")
    monkeypatch.undo()
    use_vocabulary(monkeypatch)
    assert linked.hash == adopt.adopt(folder, adopt.Choice())[0].hash
    code, _, err = run(capsys, folder, "--out", out)
    assert code == 2 and "exists already" in err


def test_a_folder_of_data_text_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = Path("data/tiny")
    before = (tiny / "manifest.json").read_bytes()
    code, out, _ = run(capsys, tiny)
    assert code == 0 and "has a manifest.json already" in out
    assert (tiny / "manifest.json").read_bytes() == before
    assert data.open_dataset(f"shards:{tiny}").hash == data.open_dataset("sotu").hash


def test_a_manifest_of_other_files_is_refused_with_the_command(tmp_path: Path) -> None:
    shutil.copytree("data/tiny", tmp_path / "tiny")
    path = tmp_path / "tiny" / "other_train_000000.bin"
    path.write_bytes(FILES[FIRST])
    with pytest.raises(UserError, match="other_train_000000.bin is not in manifest.json.*rm "):
        adopt.adopt(tmp_path / "tiny", adopt.Choice())
    path.rename(tmp_path / "tiny" / "tiny_train_000000.bin")
    with pytest.raises(UserError, match="is damaged: SHA-256.*rm .*data.adopt"):
        adopt.adopt(tmp_path / "tiny", adopt.Choice())
    (tmp_path / "tiny" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="manifest.json is damaged.*rm "):
        adopt.adopt(tmp_path / "tiny", adopt.Choice())


def test_a_folder_without_manifest_is_told_of_this_command(folder: Path) -> None:
    for name in ("text", "sotu", "fineweb"):
        with pytest.raises(UserError, match=f"run: .*python -m data.adopt {folder}$"):
            data.open_dataset(f"{name}:{folder}")


# --- what is refused ------------------------------------------------------------------------------

GOOD = [1, 2, LATE]
RAW = np.array(GOOD * 100, "<u2").tobytes()


@pytest.mark.parametrize(("bad", "message"), [
    (content(GOOD, 20240801, 7, "<u4"), r"llama-3 tokens \(magic 20240801, uint32\).*data.text"),
    (content(GOOD, 20240801, 1), "llama-3"),
    (content(GOOD, version=0), "version 0, and only version 1"),
    (content(GOOD, version=2), "version 2, and only version 1"),
    (content(GOOD, kind=">u2"), "big-endian"),
    (content(GOOD, kind="<u4"), "tokens of 4 bytes"),
    (content(GOOD)[:-2], "truncated, or still being written: 1028 of the 1030 bytes"),
    (content(GOOD)[:1000], "truncated, or still being written: 1000 bytes"),
    (content(GOOD)[:8], "truncated, or still being written: 8 bytes"),
    (content(GOOD) + b"\0", "too long: 1031 bytes"),
    (content([]), "header says 0 tokens"),
    (content(GOOD).replace(b"\x03\0\0\0", b"\xff" * 4, 1), "header says -1 tokens"),
    (content([*GOOD, 50257, 60000]), "token 50257 at position 3.*--vocab"),
    (content(GOOD, 20240326, 3), "a GPT-2 model of llm.c"),
    (content(GOOD, 20240328, 2), "a tokenizer of llm.c"),
    (content(GOOD, 20240522, 1), "HellaSwag"),
    (b"", "is empty"),
    (b"PK\x03\x04" + RAW, "a ZIP archive, perhaps a PyTorch model"),
    (b"\x80\x02}q" + RAW, "a Python pickle"),
    (b"\x1f\x8b\x08\0" + RAW, "compressed by gzip"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>Not Found</html>", "text that begins with '<!DOCTYPE html>"),
    ("Grüße, das ist ein Text. ".encode() * 90, "text that begins with 'Grüße"),
    (RAW, "300 raw tokens, as nanoGPT writes them.*--convert --out"),
    (np.array(GOOD * 100, "<i4").tobytes(), "300 raw tokens, as llm.c until May 2024"),
    (bytes(range(256)) * 9, "not a shard: it begins with 50462976"),
    (b"\0", "not a shard"),
])  # fmt: skip
def test_what_is_no_shard_is_refused_by_name(folder: Path, bad: bytes, message: str) -> None:
    write(folder, {SECOND: bad})
    with pytest.raises(UserError, match=f"000002.bin.*{message}"):
        adopt.adopt(folder, adopt.Choice())
    assert not (folder / "manifest.json").exists()


def make(root: Path, what: str) -> None:
    """Bring a folder of shards into a state that is refused."""
    if what == "empty":
        shutil.rmtree(root)
        root.mkdir()
    elif what == "a file":
        shutil.rmtree(root)
        root.write_bytes(FILES[FIRST])
    elif what == "nothing":
        shutil.rmtree(root)
    elif what == "inside":
        (root.parent / "up").mkdir()
        root.rename(root.parent / "up" / "in")
        (root.parent / "up").rename(root)
    elif what == "arrays":
        shutil.rmtree(root)
        root.mkdir()
        np.save(root / "edufineweb_train_000001.npy", np.array(GOOD, np.uint16))
    elif what == "no val":
        (root / VAL).unlink()
    elif what == "no train":
        (root / FIRST).unlink()
        (root / SECOND).unlink()
    elif what == "unfinished":
        (root / f"{SECOND}.incomplete").write_bytes(b"")
    elif what == "dangling":
        (root / SECOND).unlink()
        (root / SECOND).symlink_to("nowhere.bin")
    elif what == "loop":
        (root / SECOND).unlink()
        (root / SECOND).symlink_to(SECOND)
    elif what == "folder":
        (root / SECOND).unlink()
        (root / SECOND).mkdir()
    elif what == "pipe":
        (root / SECOND).unlink()
        os.mkfifo(root / SECOND)
    elif what == "twice":
        (root / SECOND).write_bytes(FILES[FIRST])
    elif what == "leak":
        (root / SECOND).write_bytes(FILES[VAL])
    elif what == "both words":
        (root / SECOND).rename(root / "train_of_val.bin")
    elif what == "hole":
        with open(root / SECOND, "r+b") as file:
            file.write(content([0] * 100_000)[:1024])
            file.truncate(1024)
            file.truncate(shards.shard_bytes(100_000))


@pytest.mark.parametrize(("what", "message"), [
    ("empty", "holds no .bin files; name the folder"),
    ("a file", "is a file; name its folder"),
    ("nothing", "does not exist"),
    ("inside", "holds no .bin files; run: python -m data.adopt .*/shards/in$"),
    ("arrays", "NumPy arrays such as edufineweb.*--convert"),
    ("no val", "no val shard.*--val PATTERN, or fetch one: python -m data.fineweb"),
    ("no train", "no train shard.*--train PATTERN"),
    ("unfinished", "incomplete is a download that is not finished"),
    ("dangling", "000002.bin is a link to nowhere.bin, which is not there"),
    ("loop", "000002.bin"),
    ("folder", "000002.bin is not a file"),
    ("pipe", "000002.bin is not a file"),
    ("twice", "000002.bin has the same content as fineweb_train_000001.bin"),
    ("leak", "same content as fineweb_val.*validated on what it was trained on"),
    ("both words", "train_of_val.bin: the name must have either train or val"),
    ("hole", "was not written at byte"),
])  # fmt: skip
def test_a_folder_that_cannot_be_adopted_is_one_message(
    folder: Path, what: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder, what)
    code, out, err = run(capsys, folder)
    assert code == 2 and not out
    assert re.search(message, err.strip()), err


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grows(path: Path, *rest: object) -> None:
        with open(path, "ab") as file:
            file.write(b"\1\0")

    monkeypatch.setattr(adopt, "check_range", grows)
    with pytest.raises(UserError, match="changed while it was read"):
        adopt.adopt(folder, adopt.Choice())


def test_an_interruption_leaves_the_folder_as_it_was(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "write", interrupted)
    code, _, err = run(capsys, folder)
    assert code == 130 and "run the same command again" in err
    code, _, err = run(capsys, folder, "--out", tmp_path / "out")
    assert code == 130 and {path.name for path in tmp_path.iterdir()} == {"shards"}


# --- tokens without a header ----------------------------------------------------------------------


def test_nanogpts_files_are_copied_into_shards_when_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adopt, "SHARD_TOKENS", 100)
    root, out = tmp_path / "openwebtext", tmp_path / "out"
    train = np.array([*range(250), LATE], "<u2")
    write(root, {"train.bin": train.tobytes(), "val.bin": RAW})
    code, _, err = run(capsys, root)
    assert code == 2 and "251 raw tokens, as nanoGPT writes them" in err
    code, _, err = run(capsys, root, "--convert")
    assert code == 2 and "--out" in err
    code, said, _ = run(capsys, root, "--convert", "--out", out)
    assert code == 0 and "251 training tokens in 3 shards, 300 validation tokens" in said
    found = data.open_dataset(f"shards:{out}")
    held = np.concatenate([shards.open_shard(path, 50257) for path in found.train])
    assert (held == train).all() and sorted(path.name for path in root.iterdir()) == [
        "train.bin", "val.bin"
    ]  # fmt: skip
    code, _, err = run(capsys, root, "--convert", "--out", tmp_path / "b", "--vocab", 100)
    assert code == 2 and "train.bin holds token 100 at position 100" in err
    code, _, err = run(capsys, out, "--convert", "--out", tmp_path / "b")
    assert code == 2 and "is a shard already; run without --convert" in err
    assert {path.name for path in tmp_path.iterdir()} == {"openwebtext", "out"}


@pytest.mark.parametrize("kind", ["uint16", "int32", "int64"])
def test_numpy_arrays_are_copied_too(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "edu"
    root.mkdir()
    for name, count in (("edu_val_0.npy", 50), ("edu_train_1.npy", 70)):
        np.save(root / name, np.array([*range(1, count), LATE], kind))
    adopt.convert(root, adopt.Choice(), tmp_path / "out")
    made, _ = adopt.adopt(tmp_path / "out", adopt.Choice())
    assert [file.tokens for file in (*made.train, *made.val)] == [70, 50]
    np.save(root / "edu_train_1.npy", np.array([1.5]))
    with pytest.raises(UserError, match="an array of float64"):
        adopt.convert(root, adopt.Choice(), tmp_path / "b")
    np.save(root / "edu_train_1.npy", np.array([5, -1, 3]))
    with pytest.raises(UserError, match="holds token -1 at position 1"):
        adopt.convert(root, adopt.Choice(), tmp_path / "b")


# --- FineWeb's own --------------------------------------------------------------------------------


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[manifest.Manifest]:
    """A hub that has FILES and two more shards; the manifest of its record."""
    from huggingface_hub import constants

    third = {f"fineweb_train_{n:06d}.bin": shard(400 if n < 5 else 30, n) for n in (3, 4, 5)}
    hub = Hub(FILES | third)
    hub.start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(fineweb, "WAITS_SECONDS", (0.001,))
    monkeypatch.setattr(fineweb, "SIZES", shards.Sizes(50257, 400, 1630, 500))
    yield fineweb.record(DUMP)
    hub.stop()


def test_fineweb_shards_are_recognised_and_the_race_is_on_the_track(
    folder: Path, official: manifest.Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, folder)
    assert code == 0 and "those of kjj0/fineweb10B-gpt2" in out
    assert f"python speedrun.py --track gpt2 --dataset shards:{folder}" in out
    name = data.settled(f"shards:{folder}")
    assert name == f"fineweb:{folder}" and data.frozen(name) == "fineweb"
    assert data.open_dataset(name).hash == official.hash
    assert [path.name for path in data.open_dataset(name).train] == [FIRST, SECOND]
    parser = speedrun.make_parser("", "")
    flags = ["--track", "gpt2", "--dataset", f"shards:{folder}"]
    track = speedrun.chosen_track(parser.parse_args(flags))
    assert (track.name, track.hash()) == ("gpt2", speedrun.TRACKS["gpt2"].hash())
    for more in (["--target", "3"], ["--steps", "9"], ["--track", "tiny"]):
        assert speedrun.chosen_track(parser.parse_args([*flags, *more])).name == "custom"


def test_shards_that_come_later_are_used_without_adopting_again(
    folder: Path, official: manifest.Manifest
) -> None:
    adopt.adopt(folder, adopt.Choice())
    write(folder, {"fineweb_train_000003.bin": shard(400, 3)})
    found = data.open_dataset(f"shards:{folder}")
    assert len(found.train) == 3 and found.hash == official.hash


def test_the_record_that_is_there_is_enough(
    folder: Path, official: manifest.Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> None:
        raise UserError("no connection to the hub")

    monkeypatch.setattr(fineweb, "_ask", unreachable)
    made, notes = adopt.adopt(folder, adopt.Choice())
    assert made.source is None and "so a race is custom: no connection" in notes[0]
    fineweb.ROOT.mkdir()
    manifest.write(fineweb.ROOT, official)
    made, notes = adopt.adopt(folder, adopt.Choice())
    assert made.hash == official.hash and not notes
    shutil.rmtree(fineweb.ROOT)
    assert adopt.adopt(folder, adopt.Choice())[0].hash == official.hash  # from its own manifest


def test_other_shards_of_fineweb_s_names_are_custom(
    folder: Path, official: manifest.Manifest
) -> None:
    write(
        folder, {name: shard(len(FILES[name]) // 2 - 512, 50 + n) for n, name in enumerate(FILES)}
    )
    made, notes = adopt.adopt(folder, adopt.Choice())
    assert made.source is None and "other tokens" in notes[0]
    assert data.settled(f"shards:{folder}") == f"shards:{folder}"
    track = speedrun.chosen_track(
        speedrun.make_parser("", "").parse_args(["--track=gpt2", f"--dataset=shards:{folder}"])
    )
    assert track.name == "custom" and track.hash() != speedrun.TRACKS["gpt2"].hash()
    with pytest.raises(UserError, match="not of kjj0.*--dataset shards:"):
        data.open_dataset(f"fineweb:{folder}")


def test_one_shard_that_is_not_fineweb_s_among_its_own_is_damaged(
    folder: Path, official: manifest.Manifest
) -> None:
    write(folder, {SECOND: shard(400, 77)})
    with pytest.raises(UserError, match="2 of 3 shards .*000002.bin is not: .*data.fineweb"):
        adopt.adopt(folder, adopt.Choice())


def test_a_gap_is_named(folder: Path, official: manifest.Manifest) -> None:
    (folder / FIRST).unlink()
    made, notes = adopt.adopt(folder, adopt.Choice())
    assert made.hash == official.hash
    assert "000001.bin is missing, so 1 shards after it are not used" in notes[0]


def test_the_next_command_can_be_typed_for_a_folder_with_a_space(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder.rename(tmp_path / "my shards")
    assert run(capsys, root)[1].endswith(f"--dataset 'shards:{root}'\n")
    with pytest.raises(UserError, match=f"run: python -m data.adopt '{root}'"):
        adopt.candidates(tmp_path)


def test_a_set_of_one_token_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder, {"fineweb_val_000000.bin": content([1])})
    code, _, err = run(capsys, folder)
    assert code == 2 and "holds 1 token, and validation needs at least 2" in err
