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
from leaderboard import claims, intake, judge, seal, standing, verify
from leaderboard import rules as rulebook
from leaderboard.claims import FAILED, Race
from leaderboard.form import AVERAGED, NAME, RECORD, SKEPTICAL, WEIGHTS, Claim, Record
from leaderboard.intake import README
from leaderboard.pages import rewrite
from tracking import store
from tracking.files import cannot_write, write_atomic
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
    others = [judge.examine(folder) for folder in verify.folders(results)]
    _require_new(others, target, record.race)
    try:
        home = Path(tempfile.mkdtemp(prefix=".record-", dir=_existing(target.parent)))
        try:  # nothing is left of a record that is refused
            folder = home / "results" / store.RECORDS / record.folder
            _copy_rows(root, folder, target, runs)
            _finish(home, folder, record, others)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(folder, target)
        finally:
            shutil.rmtree(home)
    except OSError as error:
        raise cannot_write(target, error) from error
    return target, reasons


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder


def _require_new(others: Sequence[judge.Report], target: Path, race: str) -> None:
    if os.path.lexists(target):
        raise UserError(f"{target}: is there already; choose another NAME")
    for report in others:
        if any(run.race == race for run in report.rows.runs):
            raise UserError(
                f"race {race}: is in {report.folder} already, and a run has one row; name another "
                "race with --runs, or race again: make speedrun"
            )


def _copy_rows(root: Path, folder: Path, target: Path, runs: Sequence[Run]) -> None:
    """The rows of a race with all that belongs to them, and the program, into a new folder.

    target: where the folder will be.
    """
    digest = runs[0].source_hash
    source = store.source_path(root, digest)
    text = intake.read(source).decode()
    if store.source_hash(text) != digest:
        raise UserError(f"{source}: not the text that it is named after; restore the file")
    if any(run.source_hash != digest for run in runs):
        raise UserError(f"race {runs[0].race}: its runs have several programs; race again")
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
            store.read_spectra(root, run.run),
        )


def _finish(home: Path, folder: Path, record: Record, others: Sequence[judge.Report]) -> None:
    """Write down what the record is and what it sets among the others. Raises UserError.

    home: the folder that has results/records/ with the new record alone. The README is filled from
    there. What `leaderboard verify` would say is said now.
    """
    write_atomic(folder / README, [_page(record).encode()])
    seal.seal(folder, record)
    report = _passed(judge.examine(folder))
    known = [r for r in (*others, report) if r.state == judge.PASSED]
    held = standing.walk([(r.record, r.race) for r in known if r.record and r.race])
    sets = [tuple(held.get((record.folder, claim.label), ())) for claim in record.claims]
    claimed = tuple(replace(c, sets=s) for c, s in zip(record.claims, sets, strict=True))
    seal.seal(folder, replace(record, claims=claimed))
    *after, report = judge.compare([*others, judge.examine(folder)])
    _passed(report)
    for was, now in zip(judge.compare(others), after, strict=True):
        if was.state != now.state:
            raise UserError(
                f"race {record.race}: is older than {now.name}, and would change what that record "
                f"sets ({now.findings[-1].text}); race again: make speedrun"
            )
    page = folder / README
    write_atomic(page, [rewrite(page.read_text("utf-8"), home).encode()])


def _passed(report: judge.Report) -> judge.Report:
    """The report, if it has passed. Raises UserError with what failed first."""
    broken = [each for each in report.findings if each.state == FAILED]
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        raise UserError(f"{report.name}: {broken[0].rule}: {broken[0].text}{more}; see RULES.md")
    return report


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


def _page(record: Record) -> str:
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
    verify.report([verify.of_folder(folder)])
    print(paths.from_here(what_next(folder, reasons)))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, or 2 (a broken rule, or a mistake)."""
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
