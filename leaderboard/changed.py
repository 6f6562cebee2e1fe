"""Verifies the records that a branch adds, and refuses what it does to those of other people.

    python -m leaderboard changed origin/main                  # this checkout against a commit
    python -m leaderboard changed BASE --repository ../other   # another checkout, by this program

For pull requests: .github/workflows/records.yml runs it with the program of the base branch on a
checkout of the pull request. Commits are compared, from where they parted. A record belongs to its
authors: a file of a committed record may be changed or removed only in commits of an author who
committed to that record before, by the address in the commits. Then all records are verified, and
the sections of the new ones and of whatever fails are printed. Nothing of the branch is run. The
exit code is 0, or 1 if anything failed.
"""

import argparse
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from host import entry, paths
from leaderboard import intake, verify
from leaderboard.claims import Finding, failed
from tracking.store import RECORDS

PLACE = f"{paths.RESULTS.name}/{RECORDS}/"  # of all records, in a repository
POOL = "sources"  # the folder of the program texts that records share
LINKS = {"120000", "160000"}  # modes that git has for a link and for a repository in a repository
ADDED = "A"


@dataclass(frozen=True)
class Change:
    """One file that differs between two commits."""

    path: str  # in the repository
    mode: str  # afterwards, as git has it
    status: str  # git's letter: A, M, D, T

    @property
    def folder(self) -> str:
        """The folder of results/records that it is in; empty for a file beside the folders."""
        return self.path.removeprefix(PLACE).rpartition("/")[0].partition("/")[0]


@dataclass(frozen=True)
class Branch:
    """What a branch changes."""

    records: Sequence[str]  # folders with a change, but for the shared sources
    elsewhere: Sequence[str]  # changed files that belong to no record
    broken: Sequence[Finding]


def branch(repository: Path, base: str) -> Branch:
    """What the commits of a checkout change since a commit. Raises UserError."""
    base = _git(repository, "rev-parse", "--verify", "--end-of-options", f"{base}^{{commit}}")[0]
    start = _git(repository, "merge-base", base, "HEAD")[0]
    found = list(_changes(repository, start))
    ours = [each for each in found if each.path.startswith(PLACE)]
    listed = _git(repository, "ls-tree", "-z", "--name-only", start, PLACE)
    known = {name.removeprefix(PLACE) for name in listed}
    broken = [text for each in ours if (text := _wrong(each))]
    for name in sorted(known & {each.folder for each in ours} - {POOL}):
        broken += _not_theirs(repository, start, name)
    return Branch(
        sorted({each.folder for each in ours} - {POOL, ""}),
        [each.path for each in found if not each.path.startswith(PLACE)],
        [failed("committed record", text) for text in broken],
    )


def _changes(repository: Path, start: str) -> Iterator[Change]:
    words = _git(repository, "diff", "--raw", "-z", "--no-renames", "--abbrev=40", start, "HEAD")
    for facts, path in zip(words[::2], words[1::2], strict=True):
        _, mode, _, _, status = facts.split()
        yield Change(path, mode, status)


def _wrong(change: Change) -> str:
    """Why nobody may make a change of a file in results/records; empty if an author may."""
    name = change.path.removeprefix(PLACE)
    if not all(re.fullmatch(intake.PLAIN, part) for part in name.split("/")):
        return f"{change.path!r}: a name of other characters than A-Z, a-z, 0-9 and ._+=-"
    if change.mode in LINKS:
        return f"{change.path}: a link, which no record holds"
    if not change.folder and change.status == ADDED:
        return f"{change.path}: lies beside the folders of the records"
    if change.folder == POOL and change.status != ADDED:
        return f"{change.path}: the program of committed records, which stays as it is"
    return ""


def _not_theirs(repository: Path, start: str, name: str) -> list[str]:
    """What is wrong with changes of a committed record: a line, unless its authors made them."""
    place = f"{PLACE}{name}"
    # Addresses as they are in the commits: a .mailmap of the branch has no say.
    owners = {*_git(repository, "log", "-z", "--format=%ae", start, "--", place)}
    range_ = f"{start}..HEAD"
    authors = {*_git(repository, "log", "-z", "--format=%ae", range_, "--", place)}
    if authors and authors <= owners:
        return []
    who = ", ".join(sorted(authors - owners)) or "nobody named in the commits"
    return [
        f"{name}: changed by {who}, but it is of {', '.join(sorted(owners))}; to question a record "
        "send a rerun of it: CONTRIBUTING.md"
    ]


def _git(repository: Path, *arguments: str) -> list[str]:
    """What git prints, in parts that end with a NUL, or as one. Raises UserError if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(
            command, cwd=repository, env=environment, capture_output=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"{repository}: git does not answer ({error}); name a checkout") from error
    if done.returncode:
        said = (done.stderr.decode(errors="replace").splitlines() or ["no reason"])[0]
        raise UserError(
            f"{repository}: git {arguments[0]}: {said}; name a commit that the checkout has, with "
            "its history: git fetch --unshallow"
        )
    text = os.fsdecode(done.stdout).rstrip("\n\0")
    return text.split("\0") if text else []


def report(repository: Path, base: str) -> int:
    """Print what a branch changes, and what its records are worth; the exit code."""
    found = branch(repository, base)
    if not found.records and not found.broken:
        print(f"no record differs from {base}")
        return 0
    if found.elsewhere:
        count, first = len(found.elsewhere), found.elsewhere[0]
        print(f"files outside of {PLACE}: {count}, such as {first!r}; a person reads them")
    if found.broken:  # what has such names or links is not read
        print(*found.broken, sep="\n")
        return 1
    sections = verify.everything(
        repository / paths.RESULTS.name, repository / "optim" / "tuned.toml"
    )
    return verify.report([each for each in sections if each.name in found.records or each.failures])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (something fails) or 2 (a user's mistake)."""
    parser = entry.parser("leaderboard changed", __doc__)
    parser.add_argument("base", metavar="BASE", help="commit to compare with, as origin/main")
    note = "checkout that is examined; default: this one"
    parser.add_argument("--repository", type=paths.typed, default=paths.PROJECT, help=note)

    def command(given: argparse.Namespace) -> int:
        return report(given.repository.resolve(), given.base)

    return entry.run(parser, argv, command)
