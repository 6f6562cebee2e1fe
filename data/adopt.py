"""Adopts shards that are there already, from modded-nanogpt, llm.c or a program of your own.

    python -m data.adopt FOLDER                  # then: python speedrun.py --dataset shards:FOLDER
    python -m data.adopt FOLDER --vocab 1024     # another vocabulary than GPT-2's, of 1024 tokens
    python -m data.adopt FOLDER --out OUT        # FOLDER cannot be written to: links in OUT
    python -m data.adopt FOLDER --convert --out OUT     # nanoGPT's train.bin and val.bin: copies

Every `.bin` file of the folder is a shard: 256 int32 of header and then uint16 tokens. Files with
`train` or `val` in their names are training or validation shards, in the order of their names;
--train and --val choose others. The command checks headers, lengths and tokens, hashes the files
and writes manifest.json into the folder, with GPT-2's vocabulary, if it is theirs. It changes no
shard. When it is run again, it reads only the files that have changed.

Shards of FineWeb that the hub's record knows by their SHA-256 are the data of the tracks that train
on FineWeb: a race on them is on its track. A race on other shards is on the track "custom".
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from data import Dataset, bpe, fineweb, gpt2, manifest, shards, token_files, workspace
from data.manifest import MANIFEST, Adopted, File, Manifest
from data.progress import bytes_bar
from errors import UserError
from host import entry, paths
from tracking.files import write_atomic

ROLES = {
    "train": re.compile(r"(?<![a-z])train(ing)?(?![a-z])", re.IGNORECASE),
    "val": re.compile(r"(?<![a-z])val(id|idation)?(?![a-z])", re.IGNORECASE),
}
UNFINISHED = (".incomplete", ".part", ".partial", ".aria2", ".crdownload", ".download", ".tmp")
CHUNK_BYTES = 32 << 20  # of a file that are in memory at once
SHARD_TOKENS = 100_000_000  # of a shard that --convert writes
# GPT-2's later tokens are common enough that any text has some of them; smaller vocabularies do
# not reach so far.
LATE_TOKEN = 1 << 15


@dataclass(frozen=True)
class Choice:
    """What the user said of the shards; None: told by the files."""

    vocab: str | None = None  # gpt2, a number of tokens, or a .tiktoken file
    train: str | None = None  # pattern of file names
    val: str | None = None


@dataclass(frozen=True)
class Scan:
    """What one reading of a shard tells."""

    file: File
    like_gpt2: bool  # whether it has tokens that smaller vocabularies do not have


# ---------------------------------------------------------------------------------------------
# Which files are what.


def candidates(root: Path, suffixes: tuple[str, ...] = (".bin",)) -> list[str]:
    """The names of the files of tokens in a folder. Raises UserError if there are none."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        raise UserError(f"{root} does not exist; name the folder that holds the shards") from None
    except NotADirectoryError:
        raise UserError(f"{root} is a file; name its folder: {root.parent}") from None
    except OSError as error:
        raise UserError(f"cannot read {root}: {error.strerror}; make it readable") from error
    for name in names:
        if name.endswith(UNFINISHED) and ".bin" in name:
            raise UserError(
                f"{root / name} is a download that is not finished; wait for its end, or delete it"
            )
    found = [name for name in names if name.lower().endswith(suffixes)]
    if found:
        return found
    inside = sorted({path.parent for path in root.glob("*/*.bin")})
    if inside:
        raise UserError(f"{root} holds no .bin files; run: {_again(inside[0])}")
    arrays = [name for name in names if name.endswith(".npy")]
    if arrays:
        raise UserError(
            f"{root} holds no .bin files, but NumPy arrays such as {arrays[0]}; to copy them into "
            f"shards, run: {_again(root)} --convert --out data/NAME"
        )
    raise UserError(
        f"{root} holds no .bin files; name the folder that holds the shards, or fetch FineWeb: "
        f"{fineweb.REMEDY}"
    )


def split(root: Path, names: Sequence[str], choice: Choice) -> tuple[list[str], list[str]]:
    """The training and the validation files among `names`. Raises UserError if one has neither."""
    if choice.train is None and choice.val is None:
        found = {role: [n for n in names if word.search(n)] for role, word in ROLES.items()}
        for name in names:
            if (name in found["train"]) == (name in found["val"]):
                raise UserError(
                    f"{root / name}: the name must have either train or val in it; say which files "
                    f"are for validation, for instance with --val {name}; the others are for "
                    "training, or those that --train names"
                )
    else:
        val = [n for n in names if _matches(n, choice.val, ROLES["val"])]
        left = [n for n in names if n not in val]
        train = left if choice.train is None else [n for n in left if fnmatch(n, choice.train)]
        found = {"train": train, "val": val}
    for role, files in found.items():
        if not files:
            asked = getattr(choice, role)
            what = f"--{role} {asked}: matches no .bin file" if asked else f"no {role} shard"
            raise UserError(
                f"{what} in {root}; it has {names[0]}"
                + (f" to {names[-1]}" if len(names) > 1 else "")
                + f"; choose with --{role} PATTERN"
                + (", or fetch one: " + _fetch(root) if _like_fineweb(names) else "")
            )
    return found["train"], found["val"]


def _matches(name: str, pattern: str | None, word: re.Pattern[str]) -> bool:
    return bool(word.search(name)) if pattern is None else fnmatch(name, pattern)


def _like_fineweb(names: Sequence[str]) -> bool:
    return all(fineweb.SHARD.fullmatch(name) for name in names)


def _again(root: Path) -> str:
    return f"python -m data.adopt {shlex.quote(str(root))}"


def _fetch(root: Path) -> str:
    return f"python -m data.fineweb --tokens 1_000_000_000 --root {shlex.quote(str(root))}"


# ---------------------------------------------------------------------------------------------
# Reading.


def scan(path: Path, tokens: int, vocab_size: int, advance: Callable[[int], None]) -> Scan:
    """Hash a shard and check its tokens. `advance` is told the bytes that were read.

    Raises UserError if a token is not in the vocabulary, or the file changes meanwhile.
    """
    digest, largest, place = hashlib.sha256(), 0, 0
    try:
        before = manifest.stamp(path)
        with open(path, "rb") as file:
            digest.update(file.read(shards.HEADER_BYTES))
            advance(shards.HEADER_BYTES)
            while place <= tokens and (chunk := file.read(CHUNK_BYTES)):
                digest.update(chunk)
                part = np.frombuffer(chunk[: len(chunk) // 2 * 2], "<u2")
                check_range(path, part, vocab_size, place)
                largest = max(largest, int(part.max(initial=0)))
                place += len(part)
                advance(len(chunk))
        after = manifest.stamp(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; run it again") from error
    if place != tokens or before != after:
        raise UserError(f"{path} changed while it was read; wait until it is written, then rerun")
    return Scan(File(path.name, tokens, digest.hexdigest()), largest >= LATE_TOKEN)


def check_range(path: Path, tokens: np.ndarray, vocab_size: int, place: int) -> None:
    """Raise UserError for a token outside of the vocabulary; `place` is where `tokens` begin."""
    if not len(tokens) or (int(tokens.max()) < vocab_size and int(tokens.min()) >= 0):
        return
    at = int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
    raise UserError(
        f"{path} holds token {tokens[at]} at position {place + at}, but the vocabulary is 0 to "
        f"{vocab_size - 1}: it was made with another tokenizer; run with its --vocab, the number "
        f"of its tokens (at most {shards.MAX_VOCAB})"
    )


def _scan_all(
    root: Path, counts: Mapping[str, int], vocab_size: int, old: Manifest | None
) -> list[Scan]:
    """A scan of each shard; those that have not changed since `old` are not read again."""
    found = {}
    if old is not None and old.adopted is not None and old.vocab_size == vocab_size:
        seen, like_gpt2 = old.adopted.seen, old.vocabulary is not None
        files = {file.name: file for file in old.files}
        for name in files.keys() & counts.keys():
            if seen.get(name) == manifest.stamp(root / name):
                found[name] = Scan(files[name], like_gpt2)
    new = [name for name in counts if name not in found]
    if new:
        total = sum(shards.shard_bytes(counts[name]) for name in new)
        with bytes_bar() as bar:
            task = bar.add_task("checking", total=total)
            for name in new:
                found[name] = scan(
                    root / name, counts[name], vocab_size, lambda count: bar.advance(task, count)
                )
    return [found[name] for name in counts]


def _refuse_duplicates(root: Path, train: Sequence[File], val: Sequence[File]) -> None:
    seen: dict[str, File] = {}
    for file in (*val, *train):
        other = seen.setdefault(file.sha256, file)
        if other is not file:
            leak = other in val and file in train
            raise UserError(
                f"{root / file.name} has the same content as {other.name}"
                + (": a model would be validated on what it was trained on" if leak else "")
                + "; delete one of them"
            )


# ---------------------------------------------------------------------------------------------
# The vocabulary, and FineWeb's own shards.


def vocabulary(choice: str | None) -> tuple[int, list[bytes] | None]:
    """The number of tokens, and the tokens by rank, if they are known. Raises UserError."""
    if choice is None or choice == "gpt2":
        return gpt2.VOCAB_SIZE, gpt2.tokens()
    if re.fullmatch(r"\d+", choice, re.ASCII):
        size, ranked = int(choice[:9]), None
    elif choice.endswith(".tiktoken"):
        ranked = bpe.read(Path(choice))
        size = len(ranked) + 1
    else:
        raise UserError(
            f"--vocab {choice}: must be gpt2, a number of tokens or a .tiktoken file; "
            "leave it out for gpt2"
        )
    if not 2 <= size <= shards.MAX_VOCAB:
        raise UserError(
            f"--vocab {choice}: must be from 2 to {shards.MAX_VOCAB} tokens, as a shard's are "
            "uint16; leave it out for gpt2"
        )
    return size, ranked


def _official(root: Path, files: Sequence[File]) -> tuple[Manifest | None, str]:
    """The manifest of FineWeb's commit, if `files` could be of it; else why it is not known."""
    if not _like_fineweb([file.name for file in files]):
        return None, ""
    for folder in (root, fineweb.ROOT):
        with contextlib.suppress(UserError):
            kept = manifest.read(folder, "")
            if (kept.source, kept.revision) == (fineweb.REPOSITORY, fineweb.REVISION):
                return kept, ""
    last = fineweb.SIZES.train_tokens % fineweb.SIZES.shard_tokens
    sizes = {
        True: (fineweb.SIZES.val_tokens,), False: (fineweb.SIZES.shard_tokens, last)
    }  # fmt: skip
    if not all(file.tokens in sizes["_val_" in file.name] for file in files):
        return None, ""  # no need to ask the hub
    try:
        return fineweb.record(bpe.dump(gpt2.tokens())), ""
    except UserError as error:
        return None, (
            f"it is not known whether they are FineWeb's own shards, so a race is custom: {error}; "
            "run again with a connection, or beside a data/fineweb10B that has its manifest.json"
        )


def recognise(
    root: Path, train: Sequence[File], val: Sequence[File]
) -> tuple[Manifest | None, list[str]]:
    """FineWeb's manifest, if all files are its shards, and what the user should know.

    Raises UserError if some are and others, of their names, are not: they are damaged.
    """
    files = [*val, *train]
    found, reason = _official(root, files)
    if found is None:
        return None, [reason] if reason else []
    pinned = {file.name: file for file in found.files}
    ours = [file for file in files if pinned.get(file.name) == file]
    others = [file for file in files if file not in ours]
    if ours and others:
        raise UserError(
            f"{len(ours)} of {len(files)} shards in {root} are those of {fineweb.REPOSITORY}, but "
            f"{others[0].name} is not: it is damaged, or of another data set; delete it, then run: "
            f"{_fetch(root)}"
        )
    if not ours:
        return None, [f"they have names of {fineweb.REPOSITORY}, but other tokens"]
    there = {file.name for file in train}
    for number, file in enumerate(found.train):
        if file.name not in there:
            later = len(there) - number
            gap = f"{file.name} is missing, so {later} shards after it are not used; to fetch it: "
            return found, [gap + _fetch(root)] if later else []
    return found, []


# ---------------------------------------------------------------------------------------------
# Adopting.


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Hold the folder's lock, so that the processes of one race adopt it once."""
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield  # it is refused by name later
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def adopt(root: Path, choice: Choice, out: Path | None = None) -> tuple[Manifest, list[str]]:
    """Check the shards of a folder and write its manifest, which is returned with notes for people.

    With `out`, makes that folder with links to the shards, and leaves `root` as it is. A folder
    that was adopted before keeps the choices that are not made anew. Raises UserError if a file is
    not a whole shard, or the manifest cannot be written.
    """
    with _locked(root):
        old = _kept(root) if out is None else None
        if old is not None and old.adopted is not None:
            made_now = {key: value for key, value in vars(choice).items() if value is not None}
            choice = Choice(**(dict(old.adopted.choice) | made_now))
        elif old is not None:
            return _others(root, old), [f"it has a {MANIFEST} already, and its files agree with it"]
        if out is None and root.is_dir() and not os.access(root, os.W_OK):
            raise UserError(
                f"cannot write to {root}, where {MANIFEST} belongs; run: "
                f"{_again(root)} --out data/NAME"
            )
        names = candidates(root)
        train, val = split(root, names, choice)
        counts = {name: token_files.header(root / name) for name in (*train, *val)}
        for role, part in (("training", train), ("validation", val)):
            if sum(counts[name] for name in part) < 2:
                raise UserError(
                    f"{root / part[0]} holds 1 token, and {role} needs at least 2: each is guessed "
                    "from those before it; choose more files with --train and --val"
                )
        stamps = {name: manifest.stamp(root / name) for name in counts}
        vocab_size, ranked = vocabulary(choice.vocab)
        scans = dict(zip(counts, _scan_all(root, counts, vocab_size, old), strict=True))
        parts = [[scans[name].file for name in part] for part in (train, val)]
        _refuse_duplicates(root, *parts)
        found, notes = recognise(root, *parts) if choice.vocab in (None, "gpt2") else (None, [])
        if choice.vocab is None and not any(each.like_gpt2 for each in scans.values()):
            ranked = None
            notes.append(
                f"no token is above {LATE_TOKEN - 1}: the vocabulary does not seem to be GPT-2's, "
                "and there will be no bits per byte; run again with --vocab and the number of its "
                "tokens, or with --vocab gpt2 if it is"
            )
        seen = {name: stamps.get(name, (0, 0)) for name in names}
        given = {key: value for key, value in vars(choice).items() if value is not None}
        adopted = Adopted(seen, given)
        content = None if ranked is None else bpe.dump(ranked)
        with _target(root, out, [*train, *val]) as target:
            if found is None:
                found = _manifest(root, vocab_size, ranked, content, *parts)
            made = replace(found, adopted=adopted)
            if made.vocabulary is not None and content is not None:
                write_atomic(target / made.vocabulary.name, [content])
            manifest.write(target, made)
    return made, notes


def _kept(root: Path) -> Manifest | None:
    """The manifest of the folder, if it has one. Raises UserError if it is damaged."""
    path = root / MANIFEST
    return (
        manifest.read(root, f"rm {shlex.quote(str(path))}, then the same command")
        if path.exists()
        else None
    )


def _others(root: Path, kept: Manifest) -> Manifest:
    """Check the files of a folder that another command of this project has made."""
    remedy = f"rm {shlex.quote(str(root / MANIFEST))} && {_again(root)}"
    manifest.open_folder(root, "", None, remedy)
    extra = {*candidates(root)} - {file.name for file in kept.files}
    if extra:
        raise UserError(
            f"{root / min(extra)} is not in {MANIFEST}; move it out of the folder, or run: {remedy}"
        )
    return kept


def _manifest(
    root: Path,
    vocab_size: int,
    ranked: list[bytes] | None,
    content: bytes | None,
    train: list[File],
    val: list[File],
) -> Manifest:
    """The manifest of shards that are not FineWeb's own."""
    made = Manifest(vocab_size, (*train, *val))
    if [*made.train] != train or [*made.val] != val:
        made = replace(made, val_names=tuple(file.name for file in val))
    if ranked is None or content is None:
        return made
    name = fineweb.VOCABULARY if vocab_size == gpt2.VOCAB_SIZE else f"vocab{vocab_size}.tiktoken"
    digest = hashlib.sha256(content).hexdigest()
    sizes = np.array([len(token) for token in ranked] + [0])
    return replace(
        made,
        files=(File(name, vocab_size, digest), *made.files),
        val_bytes_per_token=manifest.bytes_per_token(
            [root / file.name for file in val], sizes, None
        ),
    )


@contextlib.contextmanager
def _target(root: Path, out: Path | None, names: Sequence[str]) -> Iterator[Path]:
    """The folder that the manifest is written to: `root`, or a new one with links to its shards."""
    if out is None:
        yield root
        return
    with _new_folder(out) as beside:
        for name in names:
            (beside / name).symlink_to((root / name).absolute())
        yield beside


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that gets its name when all is well. Raises UserError."""
    if os.path.lexists(out):
        raise UserError(f"--out {out} exists already; choose another folder, or delete it")
    try:
        with workspace.beside(out) as folder:
            yield folder
            workspace.finish(folder, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be made: {error.strerror or error}; make room, or choose another --out"
        ) from error


def convert(root: Path, choice: Choice, out: Path) -> None:
    """Copy tokens without a header into the shards of a new folder. Raises UserError."""
    train, val = split(root, candidates(root, (".bin", ".npy")), choice)
    vocab_size, _ = vocabulary(choice.vocab)
    sources = {name: token_files.raw(root / name) for name in (*train, *val)}
    size = sum(shards.TOKEN_BYTES * len(tokens) for tokens in sources.values())
    with _new_folder(out) as beside, bytes_bar() as bar:
        task = bar.add_task("copying", total=size)
        for role, names in (("train", train), ("val", val)):
            with shards.ShardWriter(beside, f"own_{role}", SHARD_TOKENS) as writer:
                for name in names:
                    tokens = sources[name]
                    for start in range(0, len(tokens), shards.SCAN_CHUNK):
                        part = tokens[start : start + shards.SCAN_CHUNK]
                        check_range(root / name, part, vocab_size, start)
                        writer.append(part.astype(np.uint16))
                        bar.advance(task, shards.TOKEN_BYTES * len(part))


# ---------------------------------------------------------------------------------------------
# The data set, and the command.


def _adopted(root: Path | None) -> tuple[Path, Manifest]:
    """The folder of `--dataset shards:FOLDER`, adopted if it is not yet, and its manifest."""
    if root is None:
        raise UserError("the data set `shards` needs its folder; write: shards:FOLDER")
    if not (root / MANIFEST).exists():
        made, notes = adopt(root, Choice())
        if os.environ.get("RANK", "0") == "0":
            said = map(paths.from_here, (f"data.adopt: {summary(root, made)}", *notes))
            print(*said, sep="\n", file=sys.stderr)
    return root, manifest.read(root, _again(root))


def is_fineweb(root: Path) -> bool:
    """Whether the folder holds FineWeb's own shards; adopts it if need be. Raises UserError."""
    return _adopted(root)[1].source == fineweb.REPOSITORY


def open_prepared(root: Path | None = None, val_tokens: int | None = None) -> Dataset:
    """The shards of a folder, adopted if it is not yet; see data.open_dataset."""
    root, _ = _adopted(root)
    return manifest.open_folder(root, f"shards:{root}", val_tokens, _again(root))


def summary(root: Path, made: Manifest) -> str:
    """One line on an adopted folder."""
    parts = []
    for what, files in (("training", made.train), ("validation", made.val)):
        files = tuple(file for file in files if (root / file.name).exists())
        parts.append(f"{sum(file.tokens for file in files)} {what} tokens in {_shards(len(files))}")
    if made.revision is not None:
        parts.append(f"those of {made.source} at {made.revision[:12]}")
    parts.append(f"vocabulary {made.vocab_size}")
    if made.vocabulary is not None:
        sizes = manifest.token_bytes(root / made.vocabulary.name)
        size = manifest.bytes_per_token([root / file.name for file in made.val], sizes, None)
        parts.append(f"{size:.4f} bytes per token")
    return f"{root}: {', '.join(parts)}, hash {made.hash[:12]}"


def _shards(count: int) -> str:
    return "1 shard" if count == 1 else f"{count} shards"


def command(given: argparse.Namespace) -> None:
    """Adopt the folder, and say what it holds. Raises UserError."""
    root, out = given.folder, given.out
    choice = Choice(given.vocab, given.train, given.val)
    if given.convert and out is None:
        raise UserError("--convert makes copies, and needs a folder for them: --out data/NAME")
    if given.convert:
        convert(root, choice, out)
        root, out, choice = out, None, Choice(given.vocab)
    made, notes = adopt(root, choice, out)
    root = out or root
    track = "--track gpt2 " if made.source == fineweb.REPOSITORY else ""
    race = (
        f"to race on it, run: python speedrun.py {track}--dataset {shlex.quote(f'shards:{root}')}"
    )
    print(*map(paths.from_here, (summary(root, made), *notes, race)), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, 2 after a user's mistake, 130 after Ctrl-C."""
    parser = entry.parser("data.adopt", __doc__)
    parser.add_argument("folder", type=paths.typed, metavar="FOLDER", help="folder of the shards")
    add = parser.add_argument
    add("--vocab", help="gpt2 (default), a number of tokens, or a .tiktoken file")
    add("--train", metavar="PATTERN", help="training files, such as 'own_0*.bin'")
    add("--val", metavar="PATTERN", help="validation files (default: with `val` in the name)")
    add("--out", type=paths.typed, help="make this folder; FOLDER is left as it is")
    add("--convert", action="store_true", help="copy tokens without a header into shards in OUT")
    return entry.run(parser, argv, command, "the folder is as it was: run the same command again")


if __name__ == "__main__":
    sys.exit(main())
