"""Fetching FineWeb: the hub's own client against a local hub that misbehaves.

    python -m pytest tests/test_fineweb.py

Claims: whatever the hub and the connection do, the folder holds whole shards of the hub's record
and nothing else, and a shard that is missing is one message.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import data
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
    from huggingface_hub.utils import _http

    served = Hub(dict(FILES))
    served.start()
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # shards are small here
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr(fineweb, "WAITS_SECONDS", (0.001,) * 3)
    monkeypatch.setattr(gpt2, "tokens", lambda: VOCABULARY)
    yield served
    served.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "fineweb"


def shards_in(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.glob("fineweb_*")}


def names_in(root: Path) -> set[str]:
    """Whatever is in the folder, but for the three files that are always there."""
    return {path.name for path in root.iterdir()} - {".lock", "gpt2.tiktoken", "manifest.json"}


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
    assert names_in(root) == set(first(count))


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


def test_a_connection_that_is_cut_is_resumed(hub: Hub, root: Path) -> None:
    hub.cuts = {FIRST: [300, 200], VAL: [64]}
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    starts = [start for name, start in hub.starts if name == FIRST]
    assert starts == [0, 256, 448]  # whole chunks of 64 are kept


def test_a_hub_that_cannot_begin_in_the_middle_begins_again(hub: Hub, root: Path) -> None:
    hub.cuts, hub.ranges = {FIRST: [300, 200]}, False
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)


def test_a_hub_that_refuses_to_resume_is_asked_for_the_whole_file(hub: Hub, root: Path) -> None:
    hub.cuts, hub.failures = {FIRST: [300]}, {FIRST: [0, 416]}
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    assert [start for name, start in hub.starts if name == FIRST] == [0, 0]


def test_a_download_that_was_stopped_is_finished_by_the_next_call(hub: Hub, root: Path) -> None:
    hub.cuts = {FIRST: [300] + [0] * 100}
    with pytest.raises(UserError, match=f"{FIRST}: no connection.*are kept.*run it again later"):
        fineweb.prepare(1, root, workers=1)  # the validation shard, then this one
    assert names_in(root) == {VAL}
    hub.cuts, hub.starts = {}, []
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    assert hub.starts == [(FIRST, 0)]  # the shard that was there is not fetched again


def test_a_process_that_was_killed_leaves_nothing_that_confuses_the_next(
    hub: Hub, tmp_path: Path
) -> None:
    root = tmp_path / "fineweb"
    hub.hold = FIRST
    process = subprocess.Popen(
        command(root, 1), cwd=REPOSITORY, env=environment(hub, tmp_path),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert hub.holding.wait(60)  # half of the file was sent
    process.kill()
    process.communicate()
    assert FIRST not in shards_in(root) and list(root.rglob("*.incomplete"))
    hub.hold = ""
    hub.released.set()
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1) and names_in(root) == set(first(1))


def test_a_corrupt_file_is_fetched_again_and_then_given_up(hub: Hub, root: Path) -> None:
    bad = bytearray(FILES[FIRST])
    bad[1500] ^= 1
    hub.files[FIRST] = bytes(bad)
    with pytest.raises(UserError, match=f"{FIRST}: 1826 bytes with SHA.*record says.*several"):
        fineweb.prepare(1, root)
    assert hub.asked[FIRST] == 1 + len(fineweb.WAITS_SECONDS)
    assert FIRST not in shards_in(root) and names_in(root) <= {VAL}


def test_a_truncated_file_is_given_up(hub: Hub, root: Path) -> None:
    hub.files[FIRST] = FILES[FIRST][:1500]
    with pytest.raises(UserError, match=f"{FIRST}: .*should be of size 1826 but has size 1500"):
        fineweb.prepare(1, root)
    assert names_in(root) <= {VAL}
    hub.files[FIRST] = FILES[FIRST]
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)


def test_another_file_than_the_records_is_given_up_though_the_hub_calls_it_whole(
    hub: Hub, root: Path
) -> None:
    fineweb.prepare(1, root)
    hub.files = hub.record = FILES | {name: shard(300, 9) for name in list(FILES)[2:]}
    name = list(FILES)[2]
    with pytest.raises(UserError, match=f"{name}: 1624 bytes .* came, .* says 1828 bytes"):
        fineweb.prepare(401, root)
    assert names_in(root) == set(first(1))


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
    assert hub.heads[FIRST] == 1 and not hub.asked[FIRST]


@pytest.mark.parametrize("request_", ["HEAD ", ""])
@pytest.mark.parametrize(("status", "remedy"), [(401, "log in"), (403, "log in"), (400, "later")])
def test_a_file_that_the_hub_refuses_is_one_message_at_once(
    hub: Hub, root: Path, request_: str, status: int, remedy: str
) -> None:
    hub.failures = {f"{request_}{FIRST}": [status] * 100}
    with pytest.raises(UserError, match=f"{FIRST}: the hub answers {status}: .*{remedy}"):
        fineweb.prepare(1, root)
    assert hub.heads[FIRST] == 1 and hub.asked[FIRST] <= 1


def test_a_hub_that_is_busy_is_asked_again(hub: Hub, root: Path) -> None:
    hub.failures = {"record": [503, 500, 429], FIRST: [503, 502], VAL: [429]}
    hub.failures |= {f"HEAD {FIRST}": [500, 429, 503]}
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1) and hub.asked["record"] == 4
    shutil.rmtree(root)
    hub.failures = {"record": [503] * 100}
    with pytest.raises(
        UserError, match=f"at {fineweb.REVISION}: the hub answers 503, several times.*run it again"
    ):
        fineweb.prepare(1, root)
    assert not (root / "manifest.json").exists()
    hub.failures = {f"HEAD {FIRST}": [503] * 100}
    with pytest.raises(UserError, match=f"{FIRST}: the hub answers 503, several times"):
        fineweb.prepare(1, root)
    assert hub.heads[FIRST] < 20  # the client has tried again itself


def test_a_damaged_shard_is_fetched_anew(
    hub: Hub, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fineweb.prepare(1, root)
    (root / FIRST).write_bytes(FILES[FIRST][:-2])
    with pytest.raises(UserError, match=f"{FIRST} is damaged.*make data TRACK=gpt2"):
        data.open_dataset("fineweb", root)
    fineweb.prepare(1, root)
    assert shards_in(root) == first(1)
    assert f"{FIRST} is damaged; fetching it again" in capsys.readouterr().err


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


def test_a_disk_that_fills_up_is_one_message(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(UserError, match="cannot write fineweb_.*No space left.*free some space"):
        fineweb.prepare(1, root)
    assert not names_in(root)


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


def test_ctrl_c_stops_a_download_in_the_middle_of_a_file(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        assert hub.holding.wait(60)
        threading.Timer(0.2, hub.released.set).start()  # after the threads were told to stop
        raise KeyboardInterrupt

    hub.hold = FIRST
    monkeypatch.setattr(fineweb, "wait", interrupted)
    assert fineweb.main(["--tokens", "2014", "--root", str(root)]) == 130
    assert "the same command fetches the shards that are missing" in capsys.readouterr().err
    assert not [t for t in threading.enumerate() if t.name.startswith("fetch")]
    assert FIRST not in shards_in(root)
    assert names_in(root) == set(shards_in(root))


# --- the command ----------------------------------------------------------------------------------


def command(root: Path, tokens: int) -> list[str]:
    program = (
        "import sys\nfrom data import fineweb, gpt2\nfrom tests import hub\n"
        "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = 64\n"
        "gpt2.tokens = hub.vocabulary\nsys.exit(fineweb.main())\n"
    )
    return [sys.executable, "-c", program, "--tokens", str(tokens), "--root", str(root)]


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    """The client's own settings, as a user with another hub has them."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "COLUMNS": "200"}
    return os.environ | settings


def test_the_command_through_the_clients_own_settings(tmp_path: Path) -> None:
    hub = Hub(dict(FILES))
    hub.start()
    root = tmp_path / "fineweb"
    done = subprocess.run(
        command(root, 500), cwd=REPOSITORY, env=environment(hub, tmp_path),
        capture_output=True, text=True,
    )  # fmt: skip
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


def test_a_pinned_folder_says_so_too_when_the_client_is_offline(
    hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    fineweb.prepare(1, root)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fineweb.prepare(1, root)  # all is there
    with pytest.raises(UserError, match="000002.bin: HF_HUB_OFFLINE is set"):
        fineweb.prepare(401, root)


def test_tokens_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fineweb.main([])
    assert "--tokens" in capsys.readouterr().err
