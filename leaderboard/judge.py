"""Examines a record: every number that it claims is computed again from its files.

    report = examine(Path("results/records/2026-11-26_tiny_duel"))
    report.state, report.findings

Nothing of a record is run. What cannot be read is a finding, too, so a damaged record has a report
like any other.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis import stats
from analysis.table import by_label
from errors import UserError
from leaderboard import claims, form, intake, standing
from leaderboard import rules as rulebook
from leaderboard.claims import FAILED, PASSED, SHOWN, UNCHECKED, Finding, Race, failed
from leaderboard.form import EVIDENCE, SKEPTICAL, Record
from leaderboard.rows import Rows, problems, read_rows
from tracking import store
from tracking.schema import Run

SAME = ("source_hash", "data_hash", "track_hash", "dtype")  # of a record and its rerun


@dataclass(frozen=True)
class Report:
    """What was found of one record."""

    folder: Path
    record: Record | None = None  # None if record.toml cannot be read
    rows: Rows = Rows([], [])  # noqa: RUF009
    race: Race | None = None  # of a record, or of a skeptical result
    findings: tuple[Finding, ...] = ()

    @property
    def name(self) -> str:
        """The name of the folder, from wherever it is named."""
        return Path(self.folder).resolve().name

    @property
    def date(self) -> str:
        """When the first run began; empty without a race."""
        return min((run.started for run in self.race.runs), default="") if self.race else ""

    @property
    def state(self) -> str:
        """FAILED if anything has; else PASSED, though something could not be checked."""
        return FAILED if any(each.state == FAILED for each in self.findings) else PASSED

    def with_findings(self, more: Sequence[Finding]) -> "Report":
        """The report with further findings, as many of each rule as can be read."""
        known = Counter(each.rule for each in self.findings)
        kept = []
        for each in more:
            known[each.rule] += 1
            if known[each.rule] <= SHOWN or each.state == UNCHECKED:
                kept.append(each)
            elif known[each.rule] == SHOWN + 1:
                kept.append(failed(each.rule, f"and more than the {SHOWN} above"))
        return replace(self, findings=(*self.findings, *kept))


def examine(folder: Path) -> Report:
    """The report of one record by itself; `compare` adds what it says of other records."""
    try:
        files = intake.listing(folder)
    except UserError as error:
        return Report(folder, findings=(failed("files", str(error)),))
    try:
        report = Report(folder, rows=read_rows(folder))
    except UserError as error:
        report = Report(folder, findings=(failed("rows", str(error)),))
    try:
        record = form.read(folder, files)
    except UserError as error:
        return report.with_findings([failed("form", str(error))])
    report = replace(report, record=record)
    if report.name != record.folder:
        text = f"folder {report.name}, but date, track and name give {record.folder}"
        report = report.with_findings([failed("form", text)])
    try:
        programs, missing = _programs(folder, files, report.rows)
        report = report.with_findings([*missing, *_manifest(folder, record, files, programs)])
        if any(each.rule == "rows" for each in report.findings):
            return report  # rows that cannot be read
        report = report.with_findings([failed("rows", text) for text in problems(folder)])
        if record.kind != EVIDENCE:
            report = _examine_race(report, record)
    except UserError as error:
        report = report.with_findings([failed("rows", str(error))])
    except ArithmeticError as error:  # sums and powers of numbers near the end of their range
        text = f"its numbers cannot be computed with: {error}"
        report = report.with_findings([failed("rows", text)])
    return report


def _programs(
    folder: Path, files: Mapping[str, bytes], found: Rows
) -> tuple[dict[str, str], list[Finding]]:
    """The program texts that the rows name, by their hash; and which are missing or too many."""
    texts, named = {}, {row.source_hash for row in (*found.runs, *found.trials)}
    missing = [
        failed("program", f"{name}: no row names this source")
        for name in files
        if name.startswith("sources/") and Path(name).stem not in named
    ]
    for digest in sorted(named):
        if not intake.DIGEST.fullmatch(digest):
            missing.append(failed("program", f"source_hash {digest[:40]!r} is none"))
            continue
        try:
            texts[digest] = intake.read(store.source_path(folder, digest)).decode()
            if store.source_hash(texts[digest]) != digest:
                missing.append(failed("program", f"{digest}: not the text that it is named after"))
        except UserError as error:
            missing.append(failed("program", str(error)))
    return texts, missing


def _manifest(
    folder: Path, record: Record, files: Mapping[str, bytes], programs: Mapping[str, str]
) -> list[Finding]:
    """Whether manifest.csv lists what is there."""
    try:
        rows = form.read_manifest(folder)
        claimed = {(row.program, row.name): row for row in rows}
        each = record.kind != EVIDENCE
        found = {(r.program, r.name): r for r in form.listed(files, programs, each)}
    except UserError as error:
        return [failed("files", str(error))]
    findings = []
    for key, times in Counter((row.program, row.name) for row in rows).items():
        if times > 1:
            name = "/".join(filter(None, key))
            findings.append(failed("files", f"{name}: {times} rows of manifest.csv"))
    for key in sorted({*claimed} | {*found}):
        rule, name = ("program" if key[0] else "files"), "/".join(filter(None, key))
        if key not in found:
            findings.append(failed(rule, f"{name}: in manifest.csv, but not there"))
        elif key not in claimed:
            findings.append(failed(rule, f"{name}: not in manifest.csv"))
        elif claimed[key] != found[key]:
            what = f"sha256 {found[key].sha256[:16]}, {found[key].bytes} bytes"
            listed = f"{claimed[key].sha256[:16]}, {claimed[key].bytes} bytes"
            findings.append(failed(rule, f"{name}: {what}, but manifest.csv has {listed}"))
    return findings


def _examine_race(report: Report, record: Record) -> Report:
    """Whether the race of a record follows the rules, and gives what the record claims."""
    runs = report.rows.runs
    rules = rulebook.of(record.track, record.rules)
    if rules is None:
        known = ", ".join(rulebook.RULES.get(record.rules, {})) or "no track"
        text = f"{record.track!r} has no board in version {record.rules} of the rules, which has"
        return report.with_findings([failed("track", f"{text} {known}")])
    if not runs:
        return report.with_findings([failed("rows", "runs.csv has no run")])
    curves = {run.run: store.read_curve(report.folder, run.run) for run in runs}
    race = Race(record.track, runs, curves)
    findings = [*_identity(record, runs), *claims.of_race(race, rules)]
    for name in ("torch", "python"):
        noted = record.environment.get(name)
        had = {getattr(run, name).partition("+")[0] for run in runs}
        if noted and had != {noted.partition("+")[0]}:
            text = f"{name} {noted}, but its rows have {', '.join(sorted(had))}"
            findings.append(failed("environment", text))
    if not record.environment:
        text = "not written down: the race is older than this part of the form"
        findings.append(Finding(UNCHECKED, "environment", text))
    labels = [claim.label for claim in record.claims]
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        findings.append(failed("claim", f"{label}: is claimed {labels.count(label)} times"))
    for claim in record.claims:
        broken = claims.of_entrant(race, claim.label, rules, claim.readout)
        findings += broken
        own = race.entrants.get(claim.label, [])
        if own and claims.ended(own):
            computed = claims.make(race, claim.label, rules, claim.readout)
            findings += claims.differences(claim, computed)
    return replace(report, race=race).with_findings(findings)


def _identity(record: Record, runs: Sequence[Run]) -> list[Finding]:
    """Whether record.toml says of the race what its rows say."""
    wanted = {
        "race": {run.race for run in runs},
        "source_hash": {run.source_hash for run in runs},
        "data_hash": {run.data_hash for run in runs},
        "hardware": {rulebook.hardware_class(runs)},
        "date": {min(run.started for run in runs)[:10]},
    }
    return [
        failed("claim", f"{name} {getattr(record, name)}, but its rows have {', '.join(values)}")
        for name, values in ((name, sorted(values)) for name, values in wanted.items())
        if values != [getattr(record, name)]
    ]


# ---- A record among others ---------------------------------------------------------------------


def examine_all(folders: Sequence[Path]) -> list[Report]:
    """The reports of records that stand beside each other, with what they say of each other."""
    return compare([examine(folder) for folder in folders])


def compare(reports: Sequence[Report]) -> list[Report]:
    """Reports of `examine`, with what the records say of each other."""
    held = standing.walk(
        [(r.record, r.race) for r in reports if r.record and r.race and r.state == PASSED]
    )
    return [
        report.with_findings([*_compare(report, reports, held), *copies])
        for report, copies in zip(reports, _copies(reports), strict=True)
    ]


def _copies(reports: Sequence[Report]) -> list[list[Finding]]:
    """The runs of each record that are in another one, too, by another name.

    A run can be repeated to the last digit of its losses, but not of its clock.
    """
    first: dict[tuple[tuple[float, float], ...], tuple[Report, str]] = {}
    found: list[list[Finding]] = [[] for _ in reports]
    in_order = sorted(enumerate(reports), key=lambda each: (each[1].date, each[1].name))
    for index, report in in_order:
        for name, points in report.race.curves.items() if report.race else ():
            key = tuple((p.val_loss, p.train_seconds) for p in points if p.step)
            other, run = first.setdefault(key, (report, name))
            if len(key) > 1 and other is not report:
                text = f"run {name}: has the losses and the clock of run {run} of {other.name}"
                found[index].append(failed("curves", text))
    return found


def _compare(
    report: Report, others: Sequence[Report], held: Mapping[tuple[str, str], Sequence[str]]
) -> list[Finding]:
    record = report.record
    if record is None or report.race is None or report.state == FAILED:
        return []
    if record.kind == SKEPTICAL:
        return _doubt(report, record, others)
    found = []
    for claim in record.claims:
        sets = tuple(held.get((record.folder, claim.label), ()))
        if sets != claim.sets:
            shown = [", ".join(each) or "none" for each in (claim.sets, sets)]
            text = f"{claim.label}: sets the record of {shown[0]}, but the boards give {shown[1]}"
            found.append(failed("standing record", text))
    return found


def _doubt(report: Report, record: Record, others: Sequence[Report]) -> list[Finding]:
    """Whether the runs of a skeptical result do fail to reach what the record claims."""
    named = [r for r in others if r.name == record.questions and r.record and r.race]
    if not named or named[0].record is None or named[0].race is None or report.race is None:
        return [Finding(UNCHECKED, "rerun", f"{record.questions}: is not beside this folder")]
    for column in SAME:  # a rerun is of the record's own program
        own, first = (getattr(race.runs[0], column) for race in (report.race, named[0].race))
        if own != first:
            return [failed("rerun", f"{column} {own}, but {record.questions} has {first}")]
    found = outcome(named[0].record, named[0].race, report.race)
    if not found:
        return [failed("rerun", f"shares no entrant with the claims of {record.questions}")]
    if not any(text for text in found.values()):
        return [failed("rerun", f"its runs give what {record.questions} claims: no doubt follows")]
    return []


def outcome(record: Record, race: Race, rerun: Race) -> dict[str, str]:
    """For each claimed entrant that was run again: how the rerun fails, or "" if it does not."""
    rules, again = rulebook.of(record.track, record.rules), by_label(rerun.runs)
    by_options = {runs[0].entrant: runs for runs in again.values()}
    found = {}
    for claim in record.claims:
        runs = by_options.get(claim.entrant)
        if runs is None or rules is None:
            continue
        losses = stats.losses(runs)
        steps = sorted({run.steps_planned for run in runs})
        if len(losses) < len(runs):
            found[claim.label] = f"{len(runs) - len(losses)} of {len(runs)} runs diverged"
        elif steps != [claim.steps]:
            found[claim.label] = f"stopped at {steps}, not at {claim.steps}"
        else:
            mean = sum(losses) / len(losses)
            limit = rulebook.rerun_limit(
                stats.losses(race.entrants[claim.label]), len(losses), rules
            )
            over = mean > limit
            found[claim.label] = f"mean loss {mean:.5f}, above {limit:.5f}" if over else ""
    return found
