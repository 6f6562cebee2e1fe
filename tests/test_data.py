"""Shards, the tokenizer and the embedded corpus.

    python -m pytest tests/test_data.py

Claims: a bad shard is refused with the reason and the command that mends it; `tiny` is made of the
same tokens everywhere.
"""

import itertools
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

import data
from data import bpe, corpus, shards
from errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent


def write(path: Path, tokens: Iterable[int]) -> Path:
    shards.write_shard(path, np.fromiter(tokens, np.uint16))
    return path


def raw_shard(path: Path, magic: int, version: int, count: int, body: bytes) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, count
    path.write_bytes(header.tobytes() + body)
    return path


# --- shards ---------------------------------------------------------------------------------------


def test_a_shard_is_the_standard_format(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", [7, 65535, 0])
    content = path.read_bytes()
    assert content[:12] == (20240520).to_bytes(4, "little") + b"\1\0\0\0" + b"\3\0\0\0"
    assert content[12:1024] == bytes(1012)
    assert content[1024:] == b"\7\0" + b"\xff\xff" + b"\0\0"
    assert shards.open_shard(path, 65536).tolist() == [7, 65535, 0]


@pytest.mark.parametrize(
    ("magic", "version", "count", "body", "reason"),
    [
        (20240519, 1, 2, b"\0\0\0\0", "not a token shard: it begins with 20240519"),
        (20240520, 2, 2, b"\0\0\0\0", "version 2, only version 1"),
        (20240520, 1, 3, b"\0\0\0\0", "truncated: 1028 bytes.*3 tokens.*1030"),
        (20240520, 1, 1, b"\0\0\0\0", "too long: 1028 bytes.*1 tokens.*1026"),
        (20240520, 1, 2, b"\0\0\0", "truncated"),
        (20240520, 1, 0, b"", "empty"),
        (20240520, 1, -1, b"", "empty"),
    ],
)
def test_a_bad_shard_is_refused(
    tmp_path: Path, magic: int, version: int, count: int, body: bytes, reason: str
) -> None:
    path = raw_shard(tmp_path / "bad.bin", magic, version, count, body)
    with pytest.raises(UserError, match=f"bad.bin.*{reason}.*make data"):
        shards.open_shard(path, 1024)


def test_a_header_cut_short_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.bin"
    with pytest.raises(UserError, match="cannot read .*bad.bin: No such file.*make data"):
        shards.open_shard(path, 1024)
    path.write_bytes(write(tmp_path / "good.bin", [1]).read_bytes()[:1000])
    with pytest.raises(UserError, match="bad.bin is truncated: 1000 bytes.*make data"):
        shards.open_shard(path, 1024)


def test_a_token_beyond_the_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.bin", [0, 9, 1, 10])
    assert len(shards.open_shard(path, 11)) == 4
    assert len(shards.open_shard(path, 10, scan=False)) == 4
    monkeypatch.setattr(shards, "SCAN_CHUNK", 2)  # the culprit is in the second chunk
    with pytest.raises(UserError, match="a.bin holds token 10, .*0 to 9.*make data"):
        shards.open_shard(path, 10)


# --- tokenizer ------------------------------------------------------------------------------------

POEM = "the theme then there the other the bother mother the gather rather the lather " * 3


def test_training_takes_the_most_frequent_pair_each_time() -> None:
    ranked = bpe.train([POEM], vocab_size=257 + 12)
    assert ranked[:256] == [bytes([byte]) for byte in range(256)] and len(ranked) == 256 + 12
    words = [[bytes([b]) for b in word.encode()] for word in re.findall(" ?[a-z]+", POEM)]
    for token in ranked[256:]:
        counts = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = [a + b for (a, b), n in counts.items() if n == max(counts.values())]
        assert token in best
        words = [merge(word, token) for word in words]


def merge(word: list[bytes], token: bytes) -> list[bytes]:
    merged: list[bytes] = []
    for part in word:
        if merged and merged[-1] + part == token:
            merged[-1] = token
        else:
            merged.append(part)
    return merged


def test_every_byte_of_a_token_is_the_one_in_the_text() -> None:
    letters = [chr(n) for n in range(0xC0, 0x100)]  # in UTF-8 C3 and each of 80 to BF
    ranked = bpe.train(["\n".join(letters)], vocab_size=257 + 64)
    assert sorted(ranked[256:]) == [letter.encode() for letter in letters]


def test_training_ignores_the_order_of_documents() -> None:
    documents = [POEM, POEM[40:].upper(), POEM[20:90].title(), "äé " * 9]
    forward = bpe.train(documents, vocab_size=290)
    assert bpe.train(documents[::-1], vocab_size=290) == forward


def test_too_little_text_for_the_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="give 3 merges.* 1024 needs 767"):
        bpe.train(["abc abc"])


def test_a_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiktoken"
    with pytest.raises(UserError, match="a.tiktoken.*No such file.*make data"):
        bpe.load(path)
    good = bpe.dump(bpe.train([POEM], vocab_size=260))
    path.write_bytes(good)
    assert bpe.load(path).n_vocab == 260
    lines = good.splitlines(keepends=True)
    for bad in (
        b"".join(lines[:-2] + lines[-1:]),  # a rank missing
        b"".join(lines[:100]),  # bytes missing
        good + lines[-1].replace(b" 258", b" 259"),  # a token twice
        good.replace(b"AQ==", b"?Q=="),  # not base64
        good[:-5],  # cut short
        b"",
    ):
        path.write_bytes(bad)
        with pytest.raises(UserError, match="a.tiktoken.*make data"):
            bpe.load(path)


# --- the corpus -----------------------------------------------------------------------------------


@pytest.fixture
def tiny() -> Path:
    """The corpus as it is prepared for all tests."""
    return corpus.ROOT


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.mark.slow
def test_two_processes_prepare_it_in_one_folder_at_once(tmp_path: Path) -> None:
    root = tmp_path / "tiny"
    command = [sys.executable, "-m", "data.corpus", "--root", str(root)]
    settings = [
        {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": "3"},
        {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
    ]
    processes = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, **extra}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for extra in settings
    ]  # fmt: skip
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0, err
        # The hash is pinned: both processes made the same tokens.
        for part in ("3935593", "219648", "2.9334", corpus.DATA_SHA256[:12], str(root)):
            assert part in out
    names = {corpus.TOKENIZER, corpus.TRAIN, corpus.VAL, corpus.MANIFEST}
    assert {path.name for path in root.iterdir()} == names
    corpus.verify(root)


def test_every_document_stands_behind_a_separator_and_in_one_set_only(tiny: Path) -> None:
    encoding = bpe.load(tiny / corpus.TOKENIZER)
    separator = encoding.encode_single_token(bpe.SEPARATOR)
    assert encoding.n_vocab == 1024 and separator == 1023
    decoded: dict[str, list[str]] = {}
    for name in (corpus.TRAIN, corpus.VAL):
        tokens = shards.open_shard(tiny / name, 1024)
        before, *documents = np.split(tokens, np.flatnonzero(tokens == separator))
        assert before.size == 0
        assert all(document[0] == separator for document in documents)
        decoded[name] = [encoding.decode(document[1:].tolist()) for document in documents]
    texts = dict(corpus.documents())
    assert sorted(decoded[corpus.TRAIN] + decoded[corpus.VAL]) == sorted(texts.values())
    names = sorted(texts)
    expected = [texts[names[n]] for n in range(19, 249, 20)]
    assert sorted(decoded[corpus.VAL]) == sorted(expected) and len(expected) == 12
    assert not set(decoded[corpus.VAL]) & set(decoded[corpus.TRAIN])
    by_name = [texts[name] for name in names if texts[name] in set(decoded[corpus.TRAIN])]
    assert decoded[corpus.TRAIN] != by_name  # not chronological


def test_the_tokenizer_sees_the_training_documents_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def train(texts: Iterable[str]) -> list[bytes]:
        seen.extend(texts)
        raise UserError("enough")

    monkeypatch.setattr(bpe, "train", train)
    with pytest.raises(UserError, match="enough"):
        corpus.build()
    train_set, _ = corpus.split(corpus.documents())
    assert sorted(seen) == sorted(text for _, text in train_set)


def test_encoding_is_applying_the_merges_in_order(tiny: Path) -> None:
    ranked = bpe.read(tiny / corpus.TOKENIZER)
    rank_of = {token: rank for rank, token in enumerate(ranked)}
    encoding = bpe.load(tiny / corpus.TOKENIZER)
    _, val = corpus.split(corpus.documents())
    words = set(re.findall(" ?[A-Za-z]+", val[0][1])) | {" naïveté", "'ll", " $%&", "ἀρχή"}
    assert len(words) > 1500
    for word in words:
        parts = [bytes([byte]) for byte in word.encode()]
        while candidates := [
            rank_of[a + b] for a, b in itertools.pairwise(parts) if a + b in rank_of
        ]:
            parts = merge(parts, ranked[min(candidates)])
        assert encoding.encode_ordinary(word) == [rank_of[part] for part in parts], word


def test_any_text_comes_back(tiny: Path) -> None:
    encoding = bpe.load(tiny / corpus.TOKENIZER)
    rng = random.Random(0)
    valid = [n for n in range(0x110000) if not 0xD800 <= n < 0xE000]
    texts = ["", " ", "\n\n \t\r\n", "don't I'LL", "👩‍👩‍👧 e\u0301 \x00", f"a{bpe.SEPARATOR}b"]
    texts += ["".join(map(chr, rng.choices(valid, k=50))) for _ in range(200)]
    texts += ["".join(map(chr, rng.choices(range(0x250), k=50))) for _ in range(200)]
    for text in texts:
        tokens = encoding.encode_ordinary(text)
        assert encoding.decode(tokens) == text and 1023 not in tokens


def test_preparing_again_does_nothing(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "build", lambda: pytest.fail("made anew"))
    before = {path: path.stat().st_mtime_ns for path in copy.iterdir()}
    assert corpus.prepare(copy).hash == corpus.DATA_SHA256
    assert {path: path.stat().st_mtime_ns for path in copy.iterdir()} == before


@pytest.mark.parametrize("name", [corpus.TOKENIZER, corpus.TRAIN, corpus.VAL, corpus.MANIFEST])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_a_damaged_file_is_refused_and_made_anew(
    copy: Path,
    tiny: Path,
    name: str,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = copy / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-20])
    else:
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(UserError, match=f"{name}.*make data"):
        data.open_dataset("sotu", copy)
    made = {file.name: file.read_bytes() for file in tiny.iterdir() if file.suffix != ".json"}
    monkeypatch.setattr(corpus, "build", lambda: (corpus.verify(tiny), made))
    corpus.prepare(copy)
    assert all((copy / file.name).read_bytes() == file.read_bytes() for file in tiny.iterdir())
    said = capsys.readouterr().err
    if (name, damage) == (corpus.MANIFEST, "missing"):
        assert said == ""  # as on the first run
    else:
        assert name in said and "making it again" in said and said.count("\n") == 1


@pytest.mark.slow
def test_other_tokens_than_the_pinned_ones_are_refused(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked = bpe.read(tiny / corpus.TOKENIZER)
    monkeypatch.setattr(bpe, "train", lambda _: [*ranked[:-2], ranked[-1], ranked[-2]])
    monkeypatch.setattr(sys, "argv", ["corpus", "--root", str(tmp_path / "new")])
    assert corpus.main() == 2
    said = capsys.readouterr().err
    assert "every result is for" in said and "make setup" in said and said.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_missing_or_foreign_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="no_such_package is not installed.*make setup"):
        corpus.documents()
    speeches = tmp_path / "other_speeches" / "data" / "speeches"
    speeches.mkdir(parents=True)
    (speeches.parent.parent / "__init__.py").write_text("raise ImportError('imported')")
    (speeches / "1.txt").write_text("My fellow citizens")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(corpus, "PACKAGE", "other_speeches")
    with pytest.raises(UserError, match="SHA-256.*make setup"):
        corpus.documents()


# --- data sets by name ----------------------------------------------------------------------------


def test_a_data_set_opens_by_name_without_tokenizer_corpus_or_torch(tiny: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('tiktoken', 'tokenizers', 'sotu', 'torch'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "import data, data.loader\n"
        "found = data.open_dataset('sotu', Path(sys.argv[1]), val_tokens=1024)\n"
        "batches = data.loader.Batches(found.train, batch_tokens=4096, seq_len=128,"
        " vocab_size=found.vocab_size, shuffle_seed=0)\n"
        "print(batches.batch(0)[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny)], cwd=REPOSITORY, text=True, capture_output=True
    )
    assert (done.stdout, done.stderr) == ("(32, 128)\n", "")


def test_bytes_per_token_is_that_of_the_targets_asked_for(tiny: Path) -> None:
    whole = data.open_dataset("sotu", tiny)
    _, val = corpus.split(corpus.documents())
    tokens = shards.open_shard(whole.val[0], whole.vocab_size)
    assert whole.bytes_per_token == sum(len(text.encode()) for _, text in val) / len(tokens)
    assert whole.hash == corpus.DATA_SHA256
    encoding = bpe.load(tiny / corpus.TOKENIZER)
    for n in (1000, 102_400):  # the second holds separators
        targets = tokens[1 : n + 1]
        text = encoding.decode_bytes(targets[targets != 1023].tolist())
        assert data.open_dataset("sotu", tiny, n).bytes_per_token == len(text) / n
    for n in (0, len(tokens)):
        with pytest.raises(UserError, match=f"--val-tokens {len(tokens) - 1}"):
            data.open_dataset("sotu", tiny, n)


def test_an_unknown_or_unprepared_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--dataset soto: .*did you mean sotu"):
        data.open_dataset("soto")
    with pytest.raises(UserError, match="no data set is prepared.*make data"):
        data.open_dataset("sotu", tmp_path)
