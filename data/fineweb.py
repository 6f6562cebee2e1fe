"""FineWeb in GPT-2 tokens: the shards of the public speedruns, fetched from the Hugging Face hub.

    python -m data.fineweb --track gpt2        (or: make data TRACK=gpt2)
    python -m data.fineweb --tokens 1_000_000_000

Fetches the validation shard and as many training shards (100M tokens, 200 MB each) as the longest
run of the track needs, several at a time, into data/fineweb10B/. A download that was cut off
goes on where it stopped, also after the command was stopped. Each file's size, header and tokens
are checked, and its SHA-256 against the hub's own; the command may be run again at any time, needs
no network when all is there, and fetches anew what is damaged.

The shards are those of one commit, REVISION, unless --revision names another. The first call keeps
it with the names, tokens and SHA-256 of all shards at that commit in manifest.json: from then on
the folder is pinned to it, and shards of another commit are refused. The manifest's hash goes into
every run's row.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from data import Dataset, bpe, gpt2, manifest, shards
from data.manifest import MANIFEST, File, Manifest
from errors import UserError

REPOSITORY = "kjj0/fineweb10B-gpt2"
REVISION = "889765ea1f903759787add96995d81171b632d0c"  # the commit that every machine gets
SHARD = re.compile(r"fineweb_(train|val)_\d{6}\.bin")
VOCABULARY = "gpt2.tiktoken"
ROOT = Path("data/fineweb10B")
REMEDY = "make data TRACK=gpt2"

# By track: tokens of a step, and steps of an entrant that nobody has tuned. A test compares them
# with the trainer's, which cannot be imported.
TRACKS = {
    "gpt2": (524_288, 5000),
    "gpt2-2024": (524_288, 9500),
    "medium": (524_288, 15_000),
    "xl": (491_520, 20_000),
}
TUNED = Path(__file__).parents[1] / "optim" / "tuned.toml"

WORKERS = 8  # files at a time
ATTEMPTS = 4  # at a file or a question, before giving up
FIRST_WAIT_SECONDS = 1.0  # before the second attempt; doubled each time

T = TypeVar("T")


def track_tokens(track: str) -> int:
    """Training tokens of the track's longest run, be it of an entrant that is tuned or of another.

    Raises UserError if the track does not train on FineWeb, or optim/tuned.toml cannot be read.
    """
    if track not in TRACKS:
        raise UserError(
            f"--track {track}: trains on no FineWeb; one of {', '.join(TRACKS)}; "
            "the embedded corpus is prepared with: make data"
        )
    try:
        tuned = tomllib.loads(TUNED.read_text(encoding="utf-8")).get(track, {})
        steps = [settings["steps"] for settings in tuned.values() if "steps" in settings]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{TUNED}: cannot be read: {error}; git checkout {TUNED}") from error
    batch_tokens, untuned = TRACKS[track]
    return int(max([untuned, *steps])) * batch_tokens


def prepare(
    tokens: int, root: Path = ROOT, revision: str | None = None, workers: int = WORKERS
) -> tuple[Manifest, list[File]]:
    """Have the shards for `tokens` training tokens in `root`, whole; the manifest and the shards.

    Raises UserError if the hub cannot give them, the disk cannot hold them, or the folder holds
    those of another commit than `revision`. What has arrived until then is kept.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("huggingface_hub is not installed; run: make setup")
    with _alone(root):
        found = _settle(root, revision)
        wanted = choose(found, tokens)
        _check_space(root, wanted)
        _Fetch(root, found, wanted).run(workers)
    return found, wanted


def choose(found: Manifest, tokens: int) -> list[File]:
    """The validation shards, and the first training shards with `tokens` and one more.

    Raises UserError if all training shards together hold fewer.
    """
    if tokens < 1:
        raise UserError(f"--tokens {tokens}: must be at least 1; run with --tokens 1_000_000_000")
    chosen, held = list(found.val), 0
    for file in found.train:
        if held > tokens:
            break
        chosen.append(file)
        held += file.tokens
    if held <= tokens:
        raise UserError(
            f"--tokens {tokens}: {REPOSITORY} has {held} training tokens, and the last target "
            f"needs one of its own; run with --tokens {held - 1}"
        )
    return chosen


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder's lock. Raises UserError if another process does."""
    import fcntl

    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}; choose another --root"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is fetching into {root}; wait for its end") from None
        yield


# ---------------------------------------------------------------------------------------------
# What the hub has.


def _settle(root: Path, revision: str | None) -> Manifest:
    """The folder's manifest; made from what the hub has, if there is none yet."""
    path, vocabulary = root / MANIFEST, root / VOCABULARY
    if path.exists():
        kept = manifest.read(root, f"rm {path} && {REMEDY}")
        if kept.source != REPOSITORY:
            raise UserError(f"{root} holds shards of {kept.source}; choose another --root")
        if revision is not None and kept.revision != revision:
            asked = _ask(revision).sha
            if asked != kept.revision:
                raise UserError(
                    f"{root} holds shards of commit {kept.revision}, --revision {revision} is "
                    f"{asked}: commits are not mixed; choose another --root"
                )
        if not vocabulary.exists() or manifest.sha256(vocabulary) != kept.vocabulary.sha256:
            shards.write_atomic(vocabulary, [bpe.dump(gpt2.tokens())])
        return kept
    shards.write_atomic(vocabulary, [bpe.dump(gpt2.tokens())])
    files = [File(VOCABULARY, gpt2.VOCAB_SIZE, manifest.sha256(vocabulary))]
    info = _ask(revision or REVISION)
    for sibling in sorted(info.siblings or [], key=lambda sibling: sibling.rfilename):
        if SHARD.fullmatch(sibling.rfilename) and sibling.lfs is not None:
            tokens = (sibling.lfs.size - shards.HEADER_BYTES) // 2
            files.append(File(sibling.rfilename, tokens, sibling.lfs.sha256))
    made = Manifest(gpt2.VOCAB_SIZE, tuple(files), source=REPOSITORY, revision=info.sha)
    if not (made.train and made.val):
        raise UserError(
            f"{REPOSITORY} at {info.sha} has no shards with a SHA-256; run with another --revision"
        )
    manifest.write(root, made)
    return made


def _ask(revision: str) -> Any:
    """The hub's answer about the repository: commit, files, sizes and SHA-256s."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    return _patiently(
        f"{REPOSITORY} at {revision}",
        lambda: api.dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=30),
    )


class _AgainError(Exception):
    """What failed may succeed if it is tried again; the message says what failed."""


class _StoppedError(Exception):
    """Another download failed, or the user pressed Ctrl-C."""


def _patiently(
    what: str, call: Callable[[], T], pause: Callable[[float], object] = time.sleep
) -> T:
    """The result of `call`, tried again where that may help. Raises UserError where it does not."""
    import httpx2  # the client of huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    for attempt in range(ATTEMPTS):
        if attempt:
            pause(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            reason = f"the hub answers {status}"
            if status < 500 and status != 429:
                remedy = {
                    401: "it does not exist or is private; log in with: hf auth login",
                    403: "no access; log in with: hf auth login",
                    404: "it does not exist; run with another --revision",
                }.get(status, "run again later")
                raise UserError(f"{what}: {reason}: {remedy}") from error
        except OfflineModeIsEnabled as error:
            raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it and run again") from error
        except httpx2.HTTPError as error:
            reason = f"no connection to the hub ({error})"
        except _AgainError as error:
            reason = str(error)
    raise UserError(
        f"{what}: {reason}, {ATTEMPTS} times; what has arrived is kept, so run it again later"
    )


# ---------------------------------------------------------------------------------------------
# Fetching.


def _part(path: Path) -> Path:
    """Where a shard is while it is not whole."""
    return path.with_name(f".{path.name}.part")


def _check_space(root: Path, wanted: Sequence[File]) -> None:
    """Raise UserError unless the disk has room for what is missing."""
    missing = 0
    for file in wanted:
        path = root / file.name
        if not path.exists():
            there = _part(path).stat().st_size if _part(path).exists() else 0
            missing += max(0, file.bytes - there)
    free = shutil.disk_usage(root).free
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.2f} GB are still to fetch into {root}, whose disk has "
            f"{free / 1e9:.2f} GB free: free some space, or choose another --root"
        )


class _Fetch:
    """Checks what is there and fetches the rest, several files at a time, with a progress bar."""

    def __init__(self, root: Path, found: Manifest, wanted: Sequence[File]) -> None:
        self.root, self.wanted = root, wanted
        self.revision = found.revision
        self._stop = threading.Event()
        self._arrived: dict[str, int] = {}  # bytes, by file
        self._report: Callable[[int], None] = lambda arrived: None

    def run(self, workers: int) -> None:
        """Have all files. The first failure, or Ctrl-C, stops the others; parts are kept."""
        from huggingface_hub.utils import disable_progress_bars, logging
        from rich import console, progress

        logging.set_verbosity_error()  # what it warns of is tried again or becomes the UserError
        disable_progress_bars()  # ours counts all files together
        columns = (
            "{task.description}", progress.BarColumn(), progress.DownloadColumn(),
            progress.TransferSpeedColumn(), progress.TimeRemainingColumn(),
        )  # fmt: skip
        total = sum(file.bytes for file in self.wanted)
        with (
            progress.Progress(*columns, console=console.Console(stderr=True)) as bar,
            ThreadPoolExecutor(workers, "fetch") as pool,
        ):
            task = bar.add_task(f"{len(self.wanted)} shards", total=total)
            self._report = lambda arrived: bar.update(task, completed=arrived)
            futures = [pool.submit(self._obtain, file) for file in self.wanted]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        errors = [error for future in done if (error := future.exception())]
        for error in sorted(errors, key=lambda error: not isinstance(error, UserError)):
            raise error

    def count(self, file: File, arrived: int) -> None:
        """Note how much of a file is there."""
        self._arrived[file.name] = arrived
        self._report(sum(list(self._arrived.values())))

    def check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    def _obtain(self, file: File) -> None:
        """Have one shard, whole."""
        path = self.root / file.name
        if path.exists():
            if manifest.sha256(path) == file.sha256:
                self.count(file, file.bytes)
                return
            print(f"{path} is damaged; fetching it anew", file=sys.stderr)
            path.unlink()
        _patiently(file.name, lambda: self._download(file), pause=self._stop.wait)
        os.replace(_part(path), path)

    def _download(self, file: File) -> None:
        """Go on with the part of a shard until it is whole; check it.

        Raises _AgainError, and forgets the part, if it is not what the hub's own record says.
        """
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        self.check_stop()
        part = _part(self.root / file.name)
        url = hf_hub_url(REPOSITORY, file.name, repo_type="dataset", revision=self.revision)
        with open(part, "ab") as content:
            try:
                http_get(
                    url,
                    _Sink(content, self, file),  # type: ignore[arg-type]
                    resume_size=content.tell(),
                    headers=build_hf_headers(),
                    expected_size=file.bytes,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 416:  # our part is longer than the hub's file
                    _empty(content)
                    raise _AgainError("what had come is longer than the file") from error
                raise
            except OSError as error:
                if error.errno is not None:
                    raise UserError(
                        f"cannot write {part}: {error.strerror}; free some space and run it again"
                    ) from error
                held = content.tell()
                _empty(content)
                raise _AgainError(
                    f"{held} bytes came, the hub's record says {file.bytes}"
                ) from error
        digest = manifest.sha256(part)
        if digest != file.sha256:
            part.unlink()
            raise _AgainError(
                f"what came has SHA-256 {digest[:12]}, the hub's record says {file.sha256[:12]}"
            )
        shards.open_shard(part, gpt2.VOCAB_SIZE)


def _empty(content: Any) -> None:
    content.seek(0)
    content.truncate()


class _Sink:
    """The file that a download is written to: counts what arrives, and fails once it must stop."""

    def __init__(self, content: Any, fetch: _Fetch, file: File) -> None:
        self._content, self._fetch, self._file = content, fetch, file
        self.tell, self.seek, self.truncate = content.tell, content.seek, content.truncate

    def write(self, chunk: bytes) -> int:
        self._fetch.check_stop()
        written = int(self._content.write(chunk))
        self._fetch.count(self._file, self._content.tell())
        return written


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The shards that are fetched, up to the first that is not; see data.open_dataset."""
    return manifest.open_folder(root or ROOT, "fineweb", val_tokens, REMEDY)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.fineweb", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--track", help=f"what its longest run needs: {', '.join(TRACKS)}")
    what.add_argument("--tokens", type=int, help="training tokens")
    parser.add_argument(
        "--revision", help=f"a branch, tag or commit of {REPOSITORY} (default: {REVISION[:12]})"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help="where (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=WORKERS, help="files at a time")
    given = parser.parse_args(argv)
    try:
        tokens = given.tokens if given.track is None else track_tokens(given.track)
        if given.workers < 1:
            raise UserError(f"--workers {given.workers}: must be at least 1")
        found, wanted = prepare(tokens, given.root, given.revision, given.workers)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    train = [file for file in wanted if file in found.train]
    print(
        f"{given.root}: {len(train)} training shards, {sum(file.tokens for file in train)} tokens "
        f"(needed: {tokens}), commit {found.revision}, hash {found.hash[:12]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
