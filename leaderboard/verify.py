"""Recomputes every number of a record from its curves, and says which rules hold.

    python -m leaderboard verify              # records, tuned.toml, GPU checks, your results
    python -m leaderboard verify FOLDER ...   # these records, or other folders with rows

A record passes, fails (which rule, which value, which limit), or has parts that cannot be checked.
RULES.md explains the rules by their names. Nothing of a record is run or unpickled, and neither
torch nor the machine of the race is needed. The exit code is 0, or 1 if anything failed.

Without a folder, all records are examined, then what must agree between them: a run has one row,
runs of a track have one model and one batch, recipes of a track had the same number of search
trials. The settings in optim/tuned.toml must come from the trials of the records, or from your own
results/tuning.csv. Each folder of results/gpu that has a race is checked by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import UserError, one_line
from host import entry, paths
from leaderboard import judge
from leaderboard.claims import FAILED, PASSED, Finding, failed
from leaderboard.form import Claim
from leaderboard.intake import FORM
from leaderboard.rows import (
    STUDIES,
    Rows,
    problems,
    problems_between,
    problems_of_tuned,
    read_rows,
)
from tracking import tuned
from tracking.store import RECORDS


@dataclass(frozen=True)
class Section:
    """What is printed of one folder."""

    name: str
    kind: str
    rows: Rows
    findings: Sequence[Finding]
    claims: Sequence[Claim] = field(default=())

    @property
    def failures(self) -> list[Finding]:
        """What failed."""
        return [each for each in self.findings if each.state == FAILED]


def folders(results: Path) -> list[Path]:
    """The folders of records in a results folder."""
    found = sorted(path for path in (results / RECORDS).glob("[!.]*") if path.is_dir())
    return [path for path in found if path.name != "sources"]


def of_report(report: judge.Report) -> Section:
    """The section of a record."""
    record = report.record
    kind, claims = (record.kind, record.claims) if record else ("no record", ())
    return Section(one_line(report.name), kind, report.rows, report.findings, claims)


def of_rows(name: str, root: Path) -> Section:
    """The section of a folder of rows that is no record, such as the user's own results."""
    rows = read_rows(root)
    return Section(name, "rows", rows, [failed("rows", line) for line in problems(root)])


def of_folder(folder: Path) -> Section:
    """The section of a folder that the user names. Raises UserError if it has nothing to verify."""
    own, home = folder.resolve(), folder.resolve().parent
    in_records = home.name == RECORDS and own.is_dir()
    if in_records or (folder / FORM).exists() or (folder / FORM).is_symlink():
        beside = [each for each in folders(home.parent) if each != own] if in_records else []
        return of_report(judge.examine_all([*beside, own])[-1])
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one, as results/records/NAME")
    section = of_rows(str(folder), folder)
    if not section.rows.runs and not section.rows.trials:
        raise UserError(f"nothing to verify in {folder}; run: make speedrun")
    own = folder / tuned.TUNED.name  # never the project's: its trials are not in this folder
    more = [failed("rows", line) for line in problems_of_tuned(own, section.rows.trials)]
    return Section(section.name, section.kind, section.rows, [*section.findings, *more])


def everything(results: Path = paths.RESULTS, settings: Path = tuned.TUNED) -> list[Section]:
    """The sections of all records, of what must agree between them, of GPU checks and of the
    user's own results. Raises UserError if there is nothing to verify.
    """
    reports = judge.examine_all(folders(results))
    sections = [of_report(report) for report in reports]
    if sections:  # between the records that could be read; what is wrong with others is said there
        between = problems_between(results, settings, [r.folder for r in reports if r.rows])
        lines = [failed("rows", line) for line in between]
        sections.append(Section("between records", "rows", Rows([], []), lines))
    own = read_rows(results)
    if own.runs or own.trials or any((results / name).is_dir() for name in STUDIES):
        sections.append(of_rows("your results", results))
    for path in sorted((results / "gpu").glob("*/runs.csv")):
        sections.append(of_rows(f"gpu/{path.parent.name}", path.parent))
    if not sections:
        raise UserError(f"nothing to verify in {results}; run: make speedrun")
    return sections


def report(sections: Sequence[Section]) -> int:
    """Print what was found; the exit code."""
    for section in sections:
        state = FAILED if section.failures else PASSED
        print(f"{section.name} ({section.kind}): {state}; {section.rows}")
        for claim in section.claims:
            sets = f"; sets the record of {' and '.join(claim.sets)}" if claim.sets else ""
            print(
                f"  {claim.label}: {claim.steps} steps, n = {claim.n}, mean loss "
                f"{claim.mean_loss:.4f}, p = {claim.p:.2g}, {claim.seconds:.1f} s{sets}"
            )
        for each in section.findings:
            print(paths.from_here(f"  {each}"))
    rows = sum((section.rows for section in sections), Rows([], []))
    broken = [section.name for section in sections if section.failures]
    if broken:
        print(f"failed: {', '.join(broken)}")
        return 1
    print(f"{rows} verified")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (a claim does not hold) or 2 (a user's mistake)."""
    parser = entry.parser("leaderboard verify", __doc__)
    note = "verify this folder alone; default: all records and your results"
    parser.add_argument("folders", nargs="*", type=paths.typed, metavar="FOLDER", help=note)
    return entry.run(
        parser,
        argv,
        lambda given: report(list(map(of_folder, given.folders)) or everything()),
    )
