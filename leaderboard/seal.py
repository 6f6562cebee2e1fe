"""Writes down what a record consists of: manifest.csv, and record.toml where evidence has none.

    python -m leaderboard seal results/records/coverage ...

For the project's evidence: a study writes its tables into a folder of results/records, and this
command lists them by their SHA-256. What was measured again is sealed again. A record of a race is
made by `leaderboard submit`; sealing it keeps what it claims.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from errors import UserError
from host import entry, paths
from leaderboard import form, intake
from leaderboard.form import EVIDENCE, Record
from leaderboard.rows import read_rows
from tracking.store import source_path

AUTHORS = ("the project",)
QUESTION = re.compile(r"^Question(?:, from [^:]+)?: (.*?)\n\n", re.MULTILINE | re.DOTALL)


def seal(folder: Path, record: Record | None = None) -> Record:
    """Write manifest.csv, and record.toml if it changes; what it holds. Raises UserError.

    record: None keeps what record.toml says, or makes it for evidence.
    """
    files = intake.listing(folder)
    if record is None:
        record = form.read(folder, files) if intake.FORM in files else _evidence(folder, files)
    rows = read_rows(folder)
    digests = {row.source_hash for row in (*rows.runs, *rows.trials)}
    programs = {each: intake.read(source_path(folder, each)).decode() for each in digests}
    listed = form.listed(files, programs, each=record.kind != EVIDENCE)
    form.write_manifest(folder, listed)
    form.write(folder, record)
    return record


def _evidence(folder: Path, files: dict[str, bytes]) -> Record:
    """The form of evidence that has none: its question is in its README, its date in its rows."""
    page = files.get(intake.README, b"").decode()
    question = QUESTION.search(f"{page}\n\n")
    if question is None:
        raise UserError(
            f"{folder}/{intake.README}: has no line 'Question: ...'; a record says what it asks: "
            "write it"
        )
    rows = read_rows(folder)
    started = [row.started for row in (*rows.runs, *rows.trials)]
    date = min(started)[:10] if started else f"{datetime.now(UTC):%Y-%m-%d}"
    name, new = folder.resolve().name, " ".join(question[1].split())
    return Record(EVIDENCE, date, name, AUTHORS, re.sub(r"\]\([^)]*\)|[\[`]", "", new))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code: 0, or 2 after a user's mistake."""
    parser = entry.parser("leaderboard seal", __doc__)
    parser.add_argument("folders", nargs="+", type=paths.typed, metavar="FOLDER")
    parser.add_argument("--date", help="of evidence without rows, as 2026-11-27; default: today")

    def command(given: argparse.Namespace) -> None:
        for folder in given.folders:
            record = seal(folder)
            if given.date:
                form.write(folder, replace(record, date=given.date))
            print(f"{folder}: {record.kind}, sealed")

    return entry.run(parser, argv, command)
