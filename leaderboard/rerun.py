"""Runs a record again with its own program, and compares.

    python -m leaderboard rerun results/records/2026-11-26_tiny_duel
    python -m leaderboard rerun FOLDER --seeds 1 --claim muon    # a quick look
    python -m leaderboard rerun FOLDER --keep                    # one that fails becomes a record

This runs the program of the record on this machine: read it before, if you do not know its authors.
The program is unpacked from the record into an empty folder; packages and data are yours. A rerun
fails if an entrant's mean final loss is above what chance explains (p = 0.01, `rules.rerun_limit`)
or if a run diverges. With --keep it becomes a skeptical result, a folder beside the record that it
questions. Seconds are shown, but decide nothing: they are of another machine. The exit code is 0 if
every claim that was run again holds, else 1.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from analysis import stats
from analysis.table import aligned
from errors import UserError
from host import entry, paths
from leaderboard import intake, judge, submit
from leaderboard.claims import Race
from leaderboard.form import RECORD, Record
from tracking import store
from tracking.schema import Run

PRINTS = "analysis/report.py"  # what the first records do not hold of their programs


def unpack(folder: Path, record: Record, commit: str, place: Path) -> None:
    """Write the program of a record into an empty folder, beside the data of this checkout.

    commit: of the race. The first records hold a program without the part that prints tables, which
    is taken from git. Raises UserError.
    """
    source = store.source_path(folder, record.source_hash)
    files = store.source_files(intake.read(source).decode())
    if PRINTS not in files:
        files = _from_git(folder, commit) | files
    try:
        for name, text in files.items():
            path = place / name
            if ".." in Path(name).parts or Path(name).is_absolute():
                raise UserError(f"{source}: names the file {name}, outside of the program; refused")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (place / "data").mkdir(exist_ok=True)
        for path in paths.DATA.iterdir():  # prepared data sets
            if path.suffix != ".py" and not (place / "data" / path.name).exists():
                (place / "data" / path.name).symlink_to(path)
    except OSError as error:  # such as a file in the place of a folder
        raise UserError(
            f"{source}: cannot be unpacked in {place}: {error.strerror}; make room there, or read "
            "the text: it may be no program"
        ) from error
    if not (place / "speedrun.py").is_file():
        raise UserError(f"{source}: has no speedrun.py, so it is no program of a race")


def _from_git(folder: Path, commit: str) -> dict[str, str]:
    """The Python files of a commit of this checkout. Raises UserError if git does not have it."""
    command = ["git", "archive", "--format=tar", commit]
    try:
        done = subprocess.run(command, cwd=paths.PROJECT, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"{folder}: its program lacks {PRINTS}, and git has no commit {commit or '(unknown)'}; "
            "run: git fetch --unshallow, or name a newer record"
        ) from error
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith((".py", ".toml", ".txt"))]
        return {
            member.name: file.read().decode()
            for member in members
            if (file := archive.extractfile(member))
        }


def command_line(runs: Sequence[Run], seeds: int, place: Path) -> list[str]:
    """The command that races these entrants again, in the folder of the program."""
    run = runs[0]
    program = (place / "speedrun.py").read_text("utf-8")
    launcher = [sys.executable]
    if run.world_size > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        launcher += [f"--nproc_per_node={run.world_size}"]
    entrants = dict.fromkeys(each.entrant for each in runs)
    flags = ["--track", run.track, "--seeds", str(seeds), "--dtype", run.dtype]
    flags += ["--results", str(place / "results")]
    flags += [] if run.compiled else ["--no-compile"]
    if "turn_steps: int = knob(" in program:  # the first programs made a run at a time
        flags += ["--turn-steps", str(run.turn_steps)]
    return [*launcher, "speedrun.py", *entrants, *flags]


def rerun(folder: Path, labels: Sequence[str], seeds: int | None, place: Path) -> Race:
    """Run a record's claimed entrants again in `place`; their race. Raises UserError."""
    report = judge.examine(folder)
    record, race = report.record, report.race
    if record is not None and record.kind != RECORD:
        named = f"run again what it questions: {record.questions}" if record.questions else ""
        raise UserError(
            f"{folder}: {record.kind}, which claims nothing; {named or 'name a record'}"
        )
    if record is None or race is None or report.state != judge.PASSED:
        raise UserError(f"{folder}: does not verify; run: python -m leaderboard verify {folder}")
    known = [claim.label for claim in record.claims]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise UserError(f"--claim {unknown[0]}: the record claims {', '.join(known)}; name one")
    chosen = [run for label in labels or known for run in race.entrants[label]]
    unpack(folder, record, chosen[0].commit, place)
    command = command_line(chosen, seeds or len({run.seed for run in chosen}), place)
    print(f"runs the program of {record.folder} in {place}:\n  {' '.join(command[1:])}", flush=True)
    done = subprocess.run(command, cwd=place)
    if done.returncode or not (place / "results" / "runs.csv").is_file():
        ended = f"with exit code {done.returncode}" if done.returncode else "without a row"
        raise UserError(
            f"{folder}: its program ended {ended}, see above; it needs the packages of its time: "
            "requirements.txt among its sources"
        )
    _add_columns(place / "results" / "runs.csv")
    return submit.race_of(place / "results", None)


def _add_columns(path: Path) -> None:
    """Give the rows of an older program the columns that came later: zero, or empty."""
    header, *lines = path.read_text("utf-8").splitlines()
    missing = [each for each in fields(Run) if each.name not in header.split(",")]
    more = "".join(",0" if each.type in (int, float) else "," for each in missing)
    names = "".join(f",{each.name}" for each in missing)
    path.write_text("".join([header, names, "\n", *(f"{line}{more}\n" for line in lines)]), "utf-8")


def compare(record: Record, race: Race, again: Race) -> tuple[str, Mapping[str, str]]:
    """A table of claimed and repeated losses, and how each claim fails ("": it holds)."""
    found = judge.outcome(record, race, again)
    by_options = {runs[0].entrant: runs for runs in again.entrants.values()}
    lines = [["entrant", "runs", "claimed loss", "rerun", "largest difference", "seconds", "rerun"]]
    for claim in record.claims:
        if claim.label not in found:
            continue
        runs, first = by_options[claim.entrant], race.entrants[claim.label]
        then = {run.seed: run.final_loss for run in first}
        apart = [
            abs(run.final_loss - before)
            for run in runs
            if run.final_loss is not None and (before := then.get(run.seed)) is not None
        ]
        losses = stats.losses(runs)
        mean = f"{sum(losses) / len(losses):.5f}" if losses else "-"
        seconds = sum(run.train_seconds for run in runs) / len(runs)
        lines.append(
            [
                claim.label,
                str(len(runs)),
                f"{claim.mean_loss:.5f}",
                mean,
                f"{max(apart):.2g}" if apart else "-",
                f"{claim.seconds:.1f}",
                f"{seconds:.1f}",
            ]
        )
    return aligned(lines), found


def _free_name(results: Path, name: str) -> str:
    """The name, or with a number if a record has it: a rerun may be repeated."""
    names = [name, *(f"{name}{number}" for number in range(2, 1000))]
    taken = [path.name for path in (results / store.RECORDS).glob("*")]
    return next(each for each in names if not any(x.endswith(f"_{each}") for x in taken))


def command(given: argparse.Namespace) -> int:
    """Run a record again and print what came out; the exit code. Raises UserError."""
    if given.seeds is not None and given.seeds < 1:
        raise UserError(f"--seeds {given.seeds}: must be at least 1; leave it out for all")
    folder = given.folder.resolve()
    place = Path(tempfile.mkdtemp(prefix="rerun-"))
    try:
        again = rerun(folder, given.claim, given.seeds, place)
        report = judge.examine(folder)
        assert report.record is not None and report.race is not None  # as `rerun` has seen
        table, found = compare(report.record, report.race, again)
        print("", table, "", sep="\n")
        for label, text in found.items():
            print(f"{label}: {f'FAILS: {text}' if text else 'holds'}")
        fails = any(found.values())
        if given.keep and not fails:
            raise UserError(f"--keep: every claim of {folder.name} holds, so no doubt is to keep")
        if given.keep:
            record = report.record
            name = _free_name(given.to, f"{record.name[:70]}-rerun")
            new = f"A rerun of {record.folder} does not give what it claims."
            target, _ = submit.submit(
                place / "results", given.to, name, authors=given.author, new=new,
                questions=record.folder,
            )  # fmt: skip
            print(f"written: {target}")
        return int(fails)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (a claim fails) or 2 (a user's mistake)."""
    parser = entry.parser("leaderboard rerun", __doc__)
    parser.add_argument("folder", type=paths.typed, metavar="FOLDER", help="of the record")
    parser.add_argument("--seeds", type=int, metavar="INT", help="runs of each; default: as many")
    note = "run this entrant alone; may be repeated; default: all that are claimed"
    parser.add_argument("--claim", action="append", default=[], metavar="ENTRANT", help=note)
    note = "make a skeptical result of a rerun that fails"
    parser.add_argument("--keep", action="store_true", help=note)
    note = "of the skeptical result; default: git's user.name"
    parser.add_argument("--author", action="append", default=[], metavar="NAME", help=note)
    note = "results folder in whose records/ it is made; default: results"
    parser.add_argument("--to", type=paths.typed, default=paths.RESULTS, help=note)
    return entry.run(parser, argv, command)
