"""Fetching FineWeb: the real client of the hub against a local hub that misbehaves.

    python -m pytest tests/test_fineweb.py

Claims: whatever the hub and the connection do, what is in the folder at the end is what the hub's
record says, or there is one message and what has arrived is kept.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import data
import speedrun
from data import bpe, fineweb, gpt2, manifest, shards
from errors import UserError
from tests.hub import COMMITS, Hub, shard, vocabulary

REPOSITORY = Path(__file__).resolve().parent.parent
VAL = "fineweb_val_000000.bin"
FILES = {VAL: shard(500, 0)} | {
    f"fineweb_train_{n:06d}.bin": shard(400 + n, n) for n in range(1, 6)
}
FIRST = "fineweb_train_000001.bin"


VOCABULARY = vocabulary()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client talks to, and a client that waits for nothing."""
    from huggingface_hub import constants, file_download

    served = Hub(dict(FILES))
    served.start()
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # shards are small here
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(fineweb, "FIRST_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(gpt2, "tokens", lambda: VOCABULARY)
    yield served
    served.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "fineweb"


def shards_in(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("fineweb_*")}


def first(count: int) -> dict[str, bytes]:
    return {VAL: FILES[VAL]} | {name: FILES[name] for name in list(FILES)[1 : count + 1]}


# --- what is fetched ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "count"), [(1, 1), (400, 1), (401, 2), (802, 2), (803, 3), (2014, 5)]
)
def test_the_shards_that_the_tokens_and_one_more_need(
    hub: Hub, root: Path, tokens: int, count: int
) -> None:
    fineweb.prepare(tokens, root)
    assert shards_in(root) == first(count)
    del hub.asked["other"]  # what the client asks on its own account
    assert hub.asked == dict.fromkeys(["record", *first(count)], 1)
    assert not list(root.glob(".*.part"))


@pytest.mark.parametrize(
    ("tokens", "message"), [(2015, "has 2015 .*--tokens 2014$"), (0, "least 1")]
)
def test_more_tokens_than_there_are_are_refused(
    hub: Hub, root: Path, tokens: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"--tokens {tokens}: .*{message}"):
        fineweb.prepare(tokens, root)
    assert shards_in(root) == {}


def test_the_manifest_pins_the_commit_and_opens_what_is_there(hub: Hub, root: Path) -> None:
    found, wanted = fineweb.prepare(500, root)
    kept = json.loads((root / "manifest.json").read_text())
    assert kept["source"] == "kjj0/fineweb10B-gpt2" and kept["revision"] == fineweb.REVISION
    assert [file["name"] for file in kept["files"][1:]] == sorted(FILES)
    assert [file["tokens"] for file in kept["files"][1:]] == [401, 402, 403, 404, 405, 500]
    assert {file.name for file in wanted} == set(first(2))
    few = data.open_dataset(f"fineweb:{root}", val_tokens=100)
    assert [path.name for path in (*few.val, *few.train)] == list(first(2))
    assert few.vocab_size == 50257 and few.hash == found.hash
    targets = shards.open_shard(few.val[0], 50257)[1:101]
    sizes = [len(VOCABULARY[token]) if token < 50256 else 0 for token in targets]
    assert few.bytes_per_token == sum(sizes) / 100
    fineweb.prepare(900, root)
    more = data.open_dataset("fineweb", root, val_tokens=100)
    assert len(more.train) == 3 and more.hash == few.hash  # the same stream, more of it
    more.train[1].unlink()
    assert len(data.open_dataset("fineweb", root).train) == 1  # nothing behind a gap
    more.train[0].unlink()
    with pytest.raises(UserError, match="cannot read .*000001.bin.*make data TRACK=gpt2"):
        data.open_dataset("fineweb", root)


def test_a_second_call_asks_the_hub_for_nothing_that_is_there(hub: Hub, root: Path) -> None:
    fineweb.prepare(500, root)
    hub.asked.clear()
    fineweb.prepare(500, root)
    assert not hub.asked
    (root / "gpt2.tiktoken").unlink()
    fineweb.prepare(900, root)
    assert hub.asked == {"fineweb_train_000003.bin": 1}
    assert bpe.read(root / "gpt2.tiktoken") == VOCABULARY


def test_commits_are_not_mixed(hub: Hub, root: Path) -> None:
    fineweb.prepare(500, root)
    fineweb.prepare(900, root, revision=COMMITS["main"])
    fineweb.prepare(900, root, revision="main")
    with pytest.raises(
        UserError, match=f"{fineweb.REVISION}, --revision next is {'b' * 40}.*--root"
    ):
        fineweb.prepare(900, root, revision="next")
    assert shards_in(root) == first(3)
    other, _ = fineweb.prepare(500, root / "other", revision="next")
    assert other.revision == COMMITS["next"]
    assert other.hash == manifest.read(root, "").hash  # another commit with the same tokens
    with pytest.raises(UserError, match="answers 404: it does not exist.*--revision"):
        fineweb.prepare(500, root / "none", revision="gone")


def test_every_machine_gets_the_same_commit_whatever_the_hub_has_now(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert re.fullmatch("[0-9a-f]{40}", fineweb.REVISION)  # no branch, which moves
    pinned = fineweb.REVISION
    monkeypatch.setattr("tests.hub.COMMITS", {"main": "c" * 40, "pinned": pinned})
    found, _ = fineweb.prepare(500, root)
    assert found.revision == pinned
    newest, _ = fineweb.prepare(500, root / "newest", revision="main")
    assert newest.revision == "c" * 40


# --- what goes wrong ------------------------------------------------------------------------------


def test_a_connection_that_is_cut_is_gone_on_with(hub: Hub, root: Path) -> None:
    hub.cuts = {FIRST: [300, 200], VAL: [64]}
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    starts = [start for name, start in hub.starts if name == FIRST]
    assert starts == [0, 256, 448]  # whole chunks of 64 are kept


def test_a_hub_that_cannot_begin_in_the_middle_begins_again(hub: Hub, root: Path) -> None:
    hub.cuts, hub.ranges = {FIRST: [300, 200]}, False
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)


def test_a_download_that_was_stopped_goes_on_in_the_next_call(hub: Hub, root: Path) -> None:
    hub.cuts = {FIRST: [300] + [0] * 100}
    with pytest.raises(UserError, match=f"{FIRST}: no connection.*is kept.*run it again later"):
        fineweb.prepare(1, root, workers=1)  # the validation shard, then this one
    assert (root / f".{FIRST}.part").read_bytes() == FILES[FIRST][:256]
    hub.cuts, hub.starts = {}, []
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1) and (FIRST, 256) in hub.starts
    assert VAL not in dict(hub.starts)


def test_a_part_that_is_not_what_the_hub_has_is_fetched_anew(hub: Hub, root: Path) -> None:
    root.mkdir()
    (root / f".{FIRST}.part").write_bytes(b"x" * 100)
    (root / f".{VAL}.part").write_bytes(b"x" * 10_000)  # longer than the whole
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)


def test_a_corrupt_file_is_fetched_again_and_then_given_up(hub: Hub, root: Path) -> None:
    bad = bytearray(FILES[FIRST])
    bad[1500] ^= 1
    hub.files[FIRST] = bytes(bad)
    with pytest.raises(UserError, match=f"{FIRST}: what came has SHA-256 .*record says.* 4 times"):
        fineweb.prepare(1, root)
    assert hub.asked[FIRST] == fineweb.ATTEMPTS
    assert FIRST not in shards_in(root) and not list(root.glob(".*.part"))


def test_a_truncated_file_is_given_up(hub: Hub, root: Path) -> None:
    hub.files[FIRST] = FILES[FIRST][:1500]
    with pytest.raises(UserError, match=f"{FIRST}: 1500 bytes came, the hub's record says 1826"):
        fineweb.prepare(1, root)
    assert FIRST not in shards_in(root)
    (root / f".{FIRST}.part").write_bytes(FILES[FIRST][:1600])  # more than the hub has: 416
    hub.asked.clear()
    with pytest.raises(UserError, match="1500 bytes came"):
        fineweb.prepare(1, root)
    hub.files[FIRST] = FILES[FIRST]
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)


def test_a_file_that_is_no_shard_is_refused_though_the_hub_has_it_so(hub: Hub, root: Path) -> None:
    for name, content, reason in (
        (VAL, b"\0" * len(FILES[VAL]), "not a token shard"),
        (FIRST, FILES[FIRST][:1024] + b"\xff" * 802, "holds token 65535"),
    ):
        hub.files = hub.record = FILES | {name: content}
        with pytest.raises(UserError, match=f"{name}.*{reason}"):
            fineweb.prepare(1, root)
        assert name not in shards_in(root)
        shutil.rmtree(root)


def test_a_missing_file_is_one_message_at_once(hub: Hub, root: Path) -> None:
    del hub.files[FIRST]
    with pytest.raises(UserError, match=f"{FIRST}: the hub answers 404: it does not exist"):
        fineweb.prepare(1, root)
    assert hub.asked[FIRST] == 1


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, root: Path) -> None:
    hub.failures = {"record": [503, 500], FIRST: [503, 502], VAL: [503]}
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1) and hub.asked["record"] == 3
    shutil.rmtree(root)
    hub.failures = {"record": [503] * 100}
    with pytest.raises(
        UserError, match=f"at {fineweb.REVISION}: the hub answers 503, 4 times.*run it again"
    ):
        fineweb.prepare(1, root)
    assert not (root / "manifest.json").exists()


def test_a_damaged_shard_is_fetched_anew(
    hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fineweb.prepare(1, root)
    (root / FIRST).write_bytes(FILES[FIRST][:-2])
    with pytest.raises(UserError, match=f"{FIRST} is damaged.*make data TRACK=gpt2"):
        data.open_dataset("fineweb", root)
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    assert f"{FIRST} is damaged; fetching it anew" in capsys.readouterr().err


def test_one_failure_stops_the_other_downloads(hub: Hub, root: Path) -> None:
    del hub.files[VAL]
    with pytest.raises(UserError, match=VAL):
        fineweb.prepare(2014, root, workers=1)
    assert not shards_in(root)  # the validation shard comes first


def test_a_full_disk_is_seen_before_anything_is_fetched(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need = sum(len(content) for content in first(2).values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need - 1))
    with pytest.raises(UserError, match="still to fetch .*GB free.*--root"):
        fineweb.prepare(500, root)
    assert not shards_in(root) and set(hub.asked) == {"record"}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need))
    fineweb.prepare(500, root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    fineweb.prepare(500, root)  # all is there: no room is needed


def test_two_fetches_do_not_share_a_folder(hub: Hub, root: Path) -> None:
    root.mkdir()
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is fetching"):
            fineweb.prepare(1, root)


def test_no_vocabulary_is_said_before_anything_is_fetched(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> list[bytes]:
        raise UserError("run: make vocab")

    monkeypatch.setattr(gpt2, "tokens", missing)
    with pytest.raises(UserError, match="make vocab"):
        fineweb.prepare(1, root)
    assert not hub.asked


def test_ctrl_c_stops_the_threads_and_keeps_the_parts(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fineweb, "wait", interrupted)
    before = threading.active_count()
    assert fineweb.main(["--tokens", "2014", "--root", str(root)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]
    assert threading.active_count() <= before + len(FILES)  # the hub's own threads
    monkeypatch.undo()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_through_the_clients_own_settings(tmp_path: Path) -> None:
    """In a process of its own, as a user with HF_ENDPOINT has it."""
    hub = Hub(dict(FILES))
    hub.start()
    program = (
        "import sys\nfrom data import fineweb, gpt2\nfrom tests import hub\n"
        "gpt2.tokens = hub.vocabulary\nsys.exit(fineweb.main())\n"
    )
    root = tmp_path / "fineweb"
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    command = [sys.executable, "-c", program, "--tokens", "500", "--root", str(root)]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | settings, capture_output=True, text=True
    )
    hub.stop()
    assert done.returncode == 0, done.stderr
    digest = manifest.read(root, "").hash[:12]
    assert done.stdout == (
        f"{root}: 2 training shards, 803 tokens (needed: 500), "
        f"commit {fineweb.REVISION}, hash {digest}\n"
    )
    assert shards_in(root) == first(2)


def test_a_users_mistake_is_one_line(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fineweb.main(["--tokens", "1", "--root", str(root)]) == 2
    said = capsys.readouterr()
    assert "HF_HUB_OFFLINE is set" in said.err and said.err.count("\n") == 1 and not said.out


def test_a_track_needs_what_its_longest_run_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = tmp_path / "tuned.toml"
    tuned.write_text(
        "[gpt2.adamw]\nsteps = 5100\n[gpt2.muon]\nsteps = 3250\n[medium.muon]\nlr = 1\n"
    )
    monkeypatch.setattr(fineweb, "TUNED", tuned)
    assert fineweb.track_tokens("gpt2") == 5100 * 524_288
    assert fineweb.track_tokens("medium") == 15_000 * 524_288  # of whoever is not tuned
    assert fineweb.track_tokens("gpt2-2024") == 9500 * 524_288
    with pytest.raises(UserError, match="--track tiny: trains on no FineWeb.*gpt2"):
        fineweb.track_tokens("tiny")


def test_tracks_are_the_trainers() -> None:
    tuned = tomllib.loads(fineweb.TUNED.read_text())
    on_fineweb = {name: t for name, t in speedrun.TRACKS.items() if t.dataset == "fineweb"}
    known = {name: (track.batch_tokens, track.search_steps) for name, track in on_fineweb.items()}
    assert known == fineweb.TRACKS
    for name, track in on_fineweb.items():
        for settings in tuned.get(name, {}).values():
            assert fineweb.track_tokens(name) >= settings["steps"] * track.batch_tokens
