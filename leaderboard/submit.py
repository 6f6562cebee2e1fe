"""Makes a record from a race of yours, and refuses what the rules forbid.

    python -m leaderboard submit NAME                     # the newest race in results/
    python -m leaderboard submit NAME --runs RACE --claim muon --author "A. Name" --new "A change"

The record is a folder results/records/<date>_<track>_<NAME> with all runs of the race, its curves
and turns, the program that ran and a README made from the numbers. It claims each entrant whose
runs are proven to meet the target; --claim names them. A race is taken whole: no run is left out.
RULES.md has the rules, and CONTRIBUTING.md says how to send a record in.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from analysis.report import select
from errors import UserError
from host import entry, paths
from leaderboard import claims, judge, seal, standing, verify
from leaderboard import rules as rulebook
from leaderboard.claims import FAILED, Race
from leaderboard.form import AVERAGED, NAME, RECORD, SKEPTICAL, WEIGHTS, Claim, Record
from leaderboard.intake import README
from leaderboard.pages import rewrite
from tracking import store
from tracking.files import write_atomic
from tracking.schema import Run
from tracking.spelling import recipe_of

ANONYMOUS = "anonymous"


def race_of(root: Path, name: str | None) -> Race:
    """A race of a folder of rows, the newest for None, with its curves. Raises UserError."""
    runs = select(store.read_runs(root), name)
    return Race(runs[0].track, runs, {run.run: store.read_curve(root, run.run) for run in runs})


def claimable(
    race: Race, wanted: Sequence[str], version: int = rulebook.VERSION
) -> tuple[list[Claim], list[str]]:
    """The claims that the rules allow, and for each other entrant a line with the reason.

    wanted: labels that must be claimed; none: all entrants that can be. Raises UserError if the
    race breaks a rule, or if a wanted entrant or every entrant does.
    """
    rules = rulebook.of(race.track, version)
    if rules is None:
        boards = ", ".join(rulebook.RULES[version])
        raise UserError(
            f"track {race.track}: has no leaderboard; a record is of {boards}, with nothing "
            f"overridden: run: make speedrun TRACK={next(iter(rulebook.RULES[version]))}"
        )
    broken = [each for each in claims.of_race(race, rules) if each.state == FAILED]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(
            f"race {race.runs[0].race}: {broken[0].rule}: {broken[0].text}{more}; see RULES.md"
        )
    made, reasons, unproven = [], [], False
    for label in wanted or race.entrants:
        runs = race.entrants.get(label)
        readout = AVERAGED if runs and rulebook.averages(runs[0].entrant) else WEIGHTS
        refused = claims.of_entrant(race, label, rules, readout)
        if refused:
            reasons.append(f"{refused[0].rule}: {refused[0].text}")
            unproven = unproven or refused[0].rule in ("target", "number of runs")
        else:
            made.append(claims.make(race, label, rules, readout))
    if not made or (wanted and reasons):
        raise UserError(
            f"race {race.runs[0].race}: {'; '.join(reasons)}; "
            f"{'more seeds may prove it: make speedrun SEEDS=10; ' if unproven else ''}see RULES.md"
        )
    return made, reasons


def submit(
    root: Path,
    results: Path,
    name: str,
    race_name: str | None = None,
    wanted: Sequence[str] = (),
    authors: Sequence[str] = (),
    new: str = "",
    questions: str = "",
) -> tuple[Path, list[str]]:
    """Make a record in results/records from a race in `root`: its folder, and what is not claimed.

    questions: makes it a skeptical result about that record. Raises UserError.
    """
    race = race_of(root, race_name)
    made, reasons = ([], []) if questions else claimable(race, wanted)
    runs, setup = race.runs, store.read_setup(root, race.runs[0].race)
    known = setup.get("environment")
    record = Record(
        kind=SKEPTICAL if questions else RECORD,
        date=min(run.started for run in runs)[:10],
        name=name,
        authors=tuple(authors) or (_git_name(),),
        new=new or "Nothing is new; the race was run again.",
        track=race.track,
        rules=rulebook.VERSION,
        race=runs[0].race,
        hardware=rulebook.hardware_class(runs),
        source_hash=runs[0].source_hash,
        data_hash=runs[0].data_hash,
        questions=questions,
        environment=known if isinstance(known, dict) else {},
        claims=tuple(made),
    )
    target = results / store.RECORDS / record.folder
    _require_new(results, target, record.race)
    target.parent.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix=".record-", dir=target.parent))
    try:
        folder = home / store.RECORDS / record.folder
        _copy_rows(root, folder, target, runs)
        write_atomic(folder / README, [_page(record, runs).encode()])
        seal.seal(folder, record)
        os.replace(folder, target)
    finally:
        shutil.rmtree(home)
    _finish(results, target, record)
    return target, reasons


def _require_new(results: Path, target: Path, race: str) -> None:
    if target.exists():
        raise UserError(f"{target}: is there already; choose another NAME")
    for folder in verify.folders(results):
        if any(run.race == race for run in store.read_runs(folder)):
            raise UserError(
                f"race {race}: is in {folder} already, and a run has one row; name another race "
                "with --runs, or race again: make speedrun"
            )


def _copy_rows(root: Path, folder: Path, target: Path, runs: Sequence[Run]) -> None:
    """The rows of a race with all that belongs to them, and the program, into a new folder.

    target: where the folder will be.
    """
    source = store.source_path(root, runs[0].source_hash)
    try:
        text = source.read_bytes().decode()
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}; restore the file") from error
    pool = target.parent / "sources" / source.name
    if not pool.exists():  # what the records share already is not stored again
        write_atomic(folder / "sources" / source.name, [text.encode()])
    for run in runs:
        store.record(
            folder,
            run,
            store.read_curve(root, run.run),
            text,
            store.read_logits(root, run.run),
            store.read_turns(root, run.run),
        )


def _finish(results: Path, target: Path, record: Record) -> None:
    """Write down what the record sets among the others, and fill the README."""
    reports = judge.examine_all(verify.folders(results))
    pairs = [(r.record, r.race) for r in reports if r.record and r.race and not _broken(r)]
    held = standing.walk(pairs)
    sets = [tuple(held.get((record.folder, claim.label), ())) for claim in record.claims]
    claimed = tuple(replace(c, sets=s) for c, s in zip(record.claims, sets, strict=True))
    seal.seal(target, replace(record, claims=claimed))
    page = target / README
    write_atomic(page, [rewrite(page.read_text("utf-8"), results.parent).encode()])


def _broken(report: judge.Report) -> bool:
    """Whether a record fails for another reason than what it sets, which is written last."""
    return any(f.state == FAILED and f.rule != "standing record" for f in report.findings)


def _git_name() -> str:
    """The author as git knows the user."""
    try:
        done = subprocess.run(
            ["git", "config", "user.name"], capture_output=True, text=True, encoding="utf-8",
            timeout=10,
        )  # fmt: skip
        return done.stdout.strip()[:100] or ANONYMOUS
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ANONYMOUS


def _page(record: Record, runs: Sequence[Run]) -> str:
    """The README of a record, with its generated parts still empty."""
    name = record.folder
    parts = ["headline", *(["claims"] if record.claims else []), "race", "machine"]
    marked = "\n\n".join(f"<!-- begin:{part} {name} -->\n<!-- end:{part} -->" for part in parts)
    about = f"It questions [{record.questions}](../{record.questions}/README.md).\n\n"
    return (
        f"# {name}\n\n{record.new}\n\n{about if record.questions else ''}{marked}\n\n"
        f"To check every number, and to run it again:\n\n```\n"
        f"python -m leaderboard verify results/records/{name}\n"
        f"python -m leaderboard rerun results/records/{name}\n```\n"
    )


def default_name(race: Race, made: Sequence[Claim]) -> str:
    """A name for a record: the claimed entrants but for the baseline."""
    labels = [claim.label for claim in made] or list(race.entrants)
    challengers = [label for label in labels if recipe_of(label) != "adamw"] or labels
    words = "-".join(dict.fromkeys(recipe_of(label) for label in challengers[:3]))
    return re.sub(r"[^a-z0-9.+-]+", "-", words.lower()).strip("-.+")[:60] or "race"


def what_next(folder: Path, reasons: Sequence[str]) -> str:
    """What to do with a new record."""
    place = shlex.quote(str(folder))
    left = "".join(f"\nnot claimed: {reason}" for reason in reasons)
    return (
        f"written: {folder}{left}\n"
        f"next:\n"
        f"  make leaderboard      # see it beside the other records\n"
        f"  edit {place}/README.md: say what you did; what is between markers is made\n"
        f"  python -m leaderboard verify {place}\n"
        f"  git add {place}\n"
        f"  commit it, and open a pull request: CONTRIBUTING.md"
    )


def command(given: argparse.Namespace) -> int:
    """Make a record, print its report and what to do next; the exit code. Raises UserError."""
    if given.name is None:
        race = race_of(given.root, given.runs)
        made, _ = claimable(race, given.claim)
        given.name = default_name(race, made)
    if not NAME.fullmatch(given.name):
        raise UserError(
            f"NAME {given.name!r}: must be of a-z, 0-9 and -.+, 80 characters at most; "
            "try muon-wider-heads"
        )
    folder, reasons = submit(
        given.root, given.to, given.name, given.runs, given.claim, given.author, given.new
    )
    if verify.report([verify.of_folder(folder)]):
        remove = f"rm -r {shlex.quote(str(folder))}"
        print(paths.from_here(f"written: {folder}, which nobody can use; remove it: {remove}"))
        return entry.FAILED
    print(paths.from_here(what_next(folder, reasons)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (rows contradict each other) or 2 (a broken rule)."""
    parser = entry.parser("leaderboard submit", __doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="default: the claimed entrants")
    parser.add_argument("--runs", metavar="RACE", help="id of the race; default: the newest")
    note = "an entrant to claim, by its label; may be repeated"
    parser.add_argument("--claim", action="append", default=[], metavar="ENTRANT", help=note)
    note = "may be repeated; default: git's user.name"
    parser.add_argument("--author", action="append", default=[], metavar="NAME", help=note)
    parser.add_argument("--new", default="", metavar="TEXT", help="what is new, in a sentence")
    note = "folder of the rows; default: results"
    parser.add_argument("--root", type=paths.typed, default=paths.RESULTS, help=note)
    note = "results folder in whose records/ it is made; default: results"
    parser.add_argument("--to", type=paths.typed, default=paths.RESULTS, help=note)
    return entry.run(parser, argv, command)
