"""FineWeb in GPT-2 tokens: the shards of the public speedruns, fetched from the Hugging Face hub.

    python -m data.fineweb --tokens 2_621_440_000
    make data TRACK=gpt2                # as many tokens as the longest run of the track needs

Fetches the validation shard and enough training shards (100M tokens, 200 MB each) into
data/fineweb10B/, several at a time. A file has its final name only when its size, its SHA-256 and
its tokens have been checked against the hub's record. The command can be run again at any time: it
checks the shards that are there, fetches those that are missing or damaged, and needs no network
when none is. A connection that drops is resumed; after Ctrl-C, shards that were not finished are
fetched from their beginning, because the hub's client keeps no unfinished file.

All shards are of one commit, REVISION, unless --revision names another. The first call writes that
commit and the names, tokens and SHA-256 of all its shards to manifest.json. From then on the folder
is pinned to it, and shards of another commit are refused. The manifest's hash goes into every run's
row.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from data import Dataset, bpe, gpt2, manifest, shards
from data.manifest import MANIFEST, File, Manifest
from data.progress import bytes_bar
from errors import UserError
from host import entry, paths
from tracking.files import cannot_write, write_atomic

REPOSITORY = "kjj0/fineweb10B-gpt2"
REVISION = "889765ea1f903759787add96995d81171b632d0c"  # the commit that every machine gets
SHARD = re.compile(r"fineweb_(train|val)_\d{6}\.bin")
VOCABULARY = "gpt2.tiktoken"
ROOT = paths.DATA / "fineweb10B"
REMEDY = "make data TRACK=gpt2"
# Of REPOSITORY at REVISION: 103 training shards, the last one shorter, and one for validation.
SIZES = shards.Sizes(gpt2.VOCAB_SIZE, 100_000_000, 10_255_324_043, 100_000_000)

WORKERS = 8  # files at a time
WAITS_SECONDS = (1.0, 2.0, 4.0)  # between two attempts at a file or at the hub's record

T = TypeVar("T")


def prepare(
    tokens: int, root: Path = ROOT, revision: str | None = None, workers: int = WORKERS
) -> tuple[Manifest, list[File]]:
    """Fetch the shards for `tokens` training tokens into `root`; the manifest and these shards.

    Raises UserError if the hub cannot give them, the disk cannot hold them, or the folder holds
    shards of another commit than `revision`. Shards that have arrived until then are kept.
    """
    _need_client()
    with _locked(root):
        found = _pin(root, revision)
        wanted = choose(found, tokens)
        _check_space(root, wanted)
        incoming = root / ".incoming"
        try:
            shutil.rmtree(incoming, ignore_errors=True)  # of a process that was killed
            _fetch(root, incoming, found, wanted, workers)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return found, wanted


def _need_client() -> None:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError("huggingface_hub is not installed; run: make setup")


def choose(found: Manifest, tokens: int) -> list[File]:
    """The validation shards, and the first training shards that hold more than `tokens`.

    One token more, because the last token needs its target. Raises UserError if all training shards
    together do not hold so many.
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
def _locked(root: Path) -> Iterator[None]:
    """Make the folder and hold its lock. Raises UserError if another process holds it."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "wb")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"cannot write to {root}: {error.strerror}; choose another --root"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is fetching into {root}; wait for its end") from None
        except OSError as error:  # a file system without locks
            raise UserError(
                f"cannot lock {root / '.lock'}: {error.strerror}; choose another --root"
            ) from None
        yield


# ---------------------------------------------------------------------------------------------
# The hub's record of the commit.


def _pin(root: Path, revision: str | None) -> Manifest:
    """The folder's manifest; if there is none yet, write it from the hub's record."""
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
        pinned = kept.vocabulary
        if not (pinned and vocabulary.exists() and manifest.sha256(vocabulary) == pinned.sha256):
            write_atomic(vocabulary, [bpe.dump(gpt2.tokens())])
        return kept
    content = bpe.dump(gpt2.tokens())
    write_atomic(vocabulary, [content])
    made = record(content, revision or REVISION)
    manifest.write(root, made)
    return made


def record(vocabulary: bytes, revision: str = REVISION) -> Manifest:
    """The manifest of a commit, from the hub's record; `vocabulary` is the content of its file.

    Raises UserError if the hub cannot give it.
    """
    _need_client()
    files = [File(VOCABULARY, gpt2.VOCAB_SIZE, hashlib.sha256(vocabulary).hexdigest())]
    info = _ask(revision)
    for sibling in sorted(info.siblings or [], key=lambda sibling: sibling.rfilename):
        if SHARD.fullmatch(sibling.rfilename) and sibling.lfs is not None:
            tokens = (sibling.lfs.size - shards.HEADER_BYTES) // shards.TOKEN_BYTES
            files.append(File(sibling.rfilename, tokens, sibling.lfs.sha256))
    made = Manifest(gpt2.VOCAB_SIZE, tuple(files), source=REPOSITORY, revision=info.sha)
    if not (made.train and made.val):
        raise UserError(
            f"{REPOSITORY} at {info.sha} has no shards with a SHA-256; run with another --revision"
        )
    return made


def _ask(revision: str) -> Any:
    """The hub's record of the repository: commit, files, sizes and SHA-256s."""
    import huggingface_hub

    api = huggingface_hub.HfApi()
    return _retry(
        f"{REPOSITORY} at {revision}",
        lambda: api.dataset_info(REPOSITORY, revision=revision, files_metadata=True, timeout=30),
    )


# ---------------------------------------------------------------------------------------------
# Fetching.


class _DamagedError(Exception):
    """A file came that is not the one in the hub's record."""


class _StoppedError(Exception):
    """Another download failed, or the user pressed Ctrl-C."""


def _check_space(root: Path, wanted: Sequence[File]) -> None:
    """Raise UserError unless the disk has room for the shards that are missing."""
    missing = sum(file.bytes for file in wanted if not (root / file.name).exists())
    free = shutil.disk_usage(root).free
    if missing > free:
        raise UserError(
            f"{missing / 1e9:.2f} GB are still to fetch into {root}, whose disk has "
            f"{free / 1e9:.2f} GB free: free some space, or choose another --root"
        )


def _fetch(
    root: Path, incoming: Path, found: Manifest, wanted: Sequence[File], workers: int
) -> None:
    """Check the shards that are there and fetch the others. The first failure stops them all."""
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # a warning is of what is tried again, or becomes the UserError
    constants.HF_HUB_DISABLE_XET = True  # a download over Xet cannot be stopped halfway
    stop = threading.Event()

    def fetch(file: File) -> None:
        path = root / file.name
        if path.exists():
            if manifest.sha256(path) == file.sha256:
                bar.advance(task, file.bytes)
                return
            print(f"{path} is damaged; fetching it again", file=sys.stderr)
            path.unlink()
        counter = _Counter(lambda count: bar.advance(task, count), stop)
        _retry(file.name, lambda: download(file, counter), pause=stop.wait)

    def download(file: File, counter: _Counter) -> None:
        counter.restart()
        arrived = hf_hub_download(  # type: ignore[call-overload]
            REPOSITORY, file.name, repo_type="dataset", revision=found.revision,
            local_dir=incoming, cache_dir=incoming / "cache",  # the hub's file, not a cached one
            tqdm_class=counter,
        )  # fmt: skip
        _admit(Path(arrived), file, root)

    with bytes_bar() as bar, ThreadPoolExecutor(workers, "fetch") as pool:
        task = bar.add_task(f"{len(wanted)} shards", total=sum(file.bytes for file in wanted))
        futures = [pool.submit(fetch, file) for file in wanted]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    errors = [error for future in done if (error := future.exception())]
    for error in sorted(errors, key=lambda error: not isinstance(error, UserError)):
        raise error


def _admit(arrived: Path, file: File, root: Path) -> None:
    """Check a file that has arrived and move it to its place in `root`.

    Raises _DamagedError, and deletes it, if it is not the file of the hub's record; UserError if it
    is, but is not a shard.
    """
    size, digest = arrived.stat().st_size, manifest.sha256(arrived)
    if (size, digest) != (file.bytes, file.sha256):
        arrived.unlink()
        raise _DamagedError(
            f"{size} bytes with SHA-256 {digest[:12]} came, the hub's record says {file.bytes} "
            f"bytes with {file.sha256[:12]}"
        )
    shards.open_shard(arrived, gpt2.VOCAB_SIZE)
    os.replace(arrived, root / file.name)


class _Counter:
    """The progress bar that the hub's client is given for one file: it advances the common bar.

    Because the client reports every chunk to it, this is also where a download is stopped.
    """

    def __init__(self, advance: Callable[[int], None], stop: threading.Event) -> None:
        self._advance, self._stop = advance, stop
        self._arrived = 0  # bytes

    def restart(self) -> None:
        """Begin the file anew. Raises _StoppedError."""
        self.update(-self._arrived)

    def update(self, count: int) -> None:
        """Count bytes that have arrived, or, below 0, that were dropped. Raises _StoppedError."""
        if self._stop.is_set():
            raise _StoppedError
        self._arrived += count
        self._advance(count)

    def __call__(self, **_: object) -> "contextlib.nullcontext[_Counter]":
        """What the client takes for the making of a bar, which it uses in a `with`."""
        return contextlib.nullcontext(self)


def _retry(what: str, call: Callable[[], T], pause: Callable[[float], object] = time.sleep) -> T:
    """The result of `call`, which is tried again where that may help; else raises UserError."""
    import httpx2  # the HTTP library of huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    for seconds in (*WAITS_SECONDS, 0.0):
        try:
            return call()
        # RuntimeError: the client closes the session of all threads when one cannot connect.
        except (_DamagedError, OSError, RuntimeError, httpx2.HTTPError) as error:
            reason = _reason(what, error)
            if isinstance(error, LocalEntryNotFoundError):
                break  # the client has waited and tried again itself
        pause(seconds)
    raise UserError(
        f"{what}: {reason}, several times; shards that have arrived are kept, so run it again later"
    )


def _reason(what: str, error: BaseException) -> str:
    """Why an attempt failed. Raises UserError if another one would fail too."""
    import httpx2
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status >= 500 or status in (408, 416, 429):  # 416: what had come is longer than the file
            return f"the hub answers {status}"
        remedy = {
            401: "it does not exist or is private; log in with: hf auth login",
            403: "no access; log in with: hf auth login",
            404: "it does not exist; run with another --revision",
        }.get(status, "run again later")
        raise UserError(f"{what}: the hub answers {status}: {remedy}") from error
    if isinstance(error, OfflineModeIsEnabled):
        raise UserError(f"{what}: HF_HUB_OFFLINE is set; unset it and run again") from error
    if isinstance(error, httpx2.HTTPError):
        return f"no connection to the hub ({error})"
    if isinstance(error, OSError) and error.errno is not None:
        raise cannot_write(Path(what), error) from error
    return str(error).partition("\n")[0].rstrip(".")


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The shards that are there, up to the first that is missing; see data.open_dataset."""
    root = root or ROOT
    if (source := manifest.read(root, REMEDY).source) != REPOSITORY:
        raise UserError(
            f"{root} holds shards of {source or 'another data set'}, not of {REPOSITORY}; run with "
            f"--dataset shards:{root}"
        )
    return manifest.open_folder(root, "fineweb", val_tokens, REMEDY)


def command(given: argparse.Namespace) -> None:
    """Prepare the folder, and say what it holds. Raises UserError."""
    if given.workers < 1:
        raise UserError(f"--workers {given.workers}: must be at least 1; leave it out")
    found, wanted = prepare(given.tokens, given.root, given.revision, given.workers)
    train = [file for file in wanted if file in found.train]
    print(
        f"{paths.from_here(str(given.root))}: {len(train)} training shards, "
        f"{sum(file.tokens for file in train)} tokens (needed: {given.tokens}), "
        f"commit {found.revision}, hash {found.hash[:12]}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("data.fineweb", __doc__)
    parser.add_argument("--tokens", type=int, required=True, help="training tokens")
    parser.add_argument(
        "--revision", help=f"a branch, tag or commit of {REPOSITORY} (default: {REVISION[:12]})"
    )
    parser.add_argument(
        "--root", type=paths.typed, default=ROOT, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="files at a time (default: %(default)s)"
    )
    return entry.run(parser, argv, command, "the same command fetches the shards that are missing")


if __name__ == "__main__":
    sys.exit(main())
