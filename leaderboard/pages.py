"""Writes the generated parts of the pages at the root, of the docs and of each record's README.

    python -m leaderboard docs            # writes the pages
    python -m leaderboard docs --check    # exits with 1 if a page would change

A generated part of a page is between `<!-- begin:NAME ARGUMENT -->` and `<!-- end:NAME -->`:

    headline RECORD      what the race shows of each entrant against AdamW
    steps RECORD         that in steps alone, for a race whose seconds other processes disturbed
    board TRACK          the leaderboard of a track
    claims RECORD        what its record.toml claims
    race RECORD          its table
    machine RECORD       the machine that it ran on
    league RECORD        the league table
    verdicts RECORD      which optimizers it shows to need less, and which more
    detectable RECORD    the differences that its number of seeds can show
    finals RECORD,...    final losses and attention logits of one or several races
    moved SEARCH,WIDER   what a wider search found; with LEAGUE,LEAGUE behind them, the order too
    machines SEARCH,SEARCH  settings that two machines confirmed, one in each of the records
    repeats SEARCH       the optimizers that it searched again: how much a search varies
    scale RECORD         speed-ups at other batch sizes and widths
    engines RECORD       losses, memory, traffic and seconds on several engines
    planned RECORD       bytes and step times that the planner predicts, beside measured ones
    sweep SWEEP,LEAGUE   what other learning rates would gain, beside the spread of a league
    tuning RECORD/TRACK  the best losses of a search after some trials and after all
    why_PART RECORD      what is claimed of Muon's updates, checked: a part of analysis.why
    published PART       what others published, recomputed: headline, ratios, xl, claims, records
    tuned                the settings in optim/tuned.toml
    rules VERSION        the numbers of the rules of the leaderboard, per track
    csv FILE             a CSV file as a table; columns with a single value are named below it
    file FILE            a program

RECORD is a folder of results/records; a record of several races is named RECORD/RACE. FILE is
relative to the repository. A further name is a line in MARKERS. Parts called `plan` are written by
`python -m planner docs`; this command leaves them as they are.
"""

import argparse
import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from analysis import (
    engines,
    finals,
    league,
    machines,
    moved,
    planned,
    repeats,
    scale,
    sweep,
    tuning,
    why,
)
from analysis.price import Prices, read_prices
from analysis.report import machine, sentences
from analysis.table import markdown, markdown_grid, note, summarise
from errors import UserError
from host import entry, paths
from leaderboard import board_table, form, intake, published
from leaderboard import rules as rulebook
from leaderboard.board import YOURS, entries
from tracking import tuned
from tracking.files import write_atomic
from tracking.schema import Run, Trial
from tracking.spelling import display_name
from tracking.store import find_record, read_runs, read_trials

REPOSITORY = Path(__file__).parents[1]
MARKED = re.compile(  # groups: first marker, name, argument or None, content, last marker
    r"(<!-- begin:(\w+)(?: (\S+))? -->\n)(.*?)(<!-- end:\2 -->)", re.DOTALL
)

# ---- Parts from the files of the project -------------------------------------------------------


def tuned_table(sections: Sequence[tuned.Tuned]) -> str:
    """The tuned settings as Markdown."""
    if not sections:
        return "Nothing is tuned yet."
    rows = [
        [
            t.track,
            t.recipe,
            ", ".join(f"{key}={value}" for key, value in t.settings.items()),
            f"{t.steps}, missed" if t.missed else str(t.steps),
            t.source or f"our trial {', '.join(map(str, t.trials))}",
        ]
        for t in sections
    ]
    return markdown_grid(["track", "entrant", "settings", "steps", "from"], rows)


def csv_table(path: Path) -> str:
    """A CSV file as Markdown. Raises UserError if there is none, or if a line has lost a cell.

    A column with one value in all rows, such as the machine, stands below the table once.
    """
    headings, *rows = csv.reader(read_file(path).splitlines() or [""])
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(headings):
            raise UserError(
                f"{path} line {number}: {len(cells)} cells for {len(headings)} columns; "
                "restore the file"
            )
    alike = {
        i: cells[0]
        for i, cells in enumerate(zip(*rows, strict=True))
        if len(rows) > 1 and cells[0] and len(set(cells)) == 1
    }

    def shown(cells: Sequence[str]) -> list[str]:
        return [cell for i, cell in enumerate(cells) if i not in alike]

    grid = markdown_grid(shown(headings), list(map(shown, rows)))
    note = "; ".join(f"{headings[i]} {value}" for i, value in alike.items())
    return f"{grid}\n\nIn each row: {note}." if note else grid


def read_file(path: Path) -> str:
    """A text file that a page shows. Raises UserError if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot show {path}: {error.strerror}; restore the file or mend the marker"
        ) from error


# ---- Parts from records ------------------------------------------------------------------------


def find_race(name: str, repository: Path = REPOSITORY) -> tuple[Path, list[Run]]:
    """The folder and the runs of RECORD or RECORD/RACE. Raises UserError if there is none."""
    record, _, race = name.partition("/")
    folder = find_record(repository / "results", record)
    runs = read_runs(folder)
    races = list(dict.fromkeys(run.race for run in runs))
    if not race and len(races) == 1:
        (race,) = races
    if race not in races:
        named = f"no race {race!r}" if race else f"{len(races)} races"
        choices = ", ".join(f"{record}/{each}" for each in races) or "none"
        raise UserError(f"record {record} has {named}; choose one of: {choices}")
    return folder, [run for run in runs if run.race == race]


def _of_race(make: Callable[[Sequence[Run], Prices], str]) -> Callable[[str, Path], str]:
    """A function of RECORD or RECORD/RACE, of one that makes a part of its runs and prices."""

    def part(argument: str, repository: Path) -> str:
        folder, runs = find_race(argument, repository)
        return make(runs, read_prices(folder, runs))

    return part


def _claims(argument: str, repository: Path) -> str:
    folder = find_record(repository / "results", argument)
    record = form.read(folder, intake.listing(folder))
    headings = ["entrant", "n", "steps", "mean loss", "p", "seconds", "optimizer state", "sets"]
    rows = [
        [
            display_name(claim.label),
            str(claim.n),
            str(claim.steps),
            f"{claim.mean_loss:.4f}" + (f" ± {claim.loss_sd:.4f}" if claim.loss_sd else ""),
            f"{claim.p:.2g}",
            f"{claim.seconds:.1f}",
            f"{claim.state_bytes / 1e6:,.2f} MB",
            f"the record of {' and '.join(claim.sets)}" if claim.sets else "-",
        ]
        for claim in record.claims
    ]
    return f"{markdown_grid(headings, rows)}\n\nSeconds are on {record.hardware}."


def _board(argument: str, repository: Path) -> str:
    """The board of a track: committed entries alone, so that a page is the same for all."""
    found = [each for each in entries(repository / "results") if each.origin != YOURS]
    return board_table.markdown(found, argument, most=12)


def _finals(argument: str, repository: Path) -> str:
    return finals.markdown([find_race(each, repository) for each in argument.split(",")])


def _scale(argument: str, repository: Path) -> str:
    points = scale.measured(find_record(repository / "results", argument))
    if not points:
        raise UserError(f"record {argument} has no points.csv; name a record of `make scale`")
    return scale.markdown(points)


def _trials(record: str, repository: Path) -> list[Trial]:
    return read_trials(find_record(repository / "results", record))


def _moved(argument: str, repository: Path) -> str:
    names = argument.split(",")
    if len(names) not in (2, 4):
        raise UserError(f"moved {argument}: name two records of searches, or two of races behind")
    earlier, later = (_trials(each, repository) for each in names[:2])
    races = [find_race(each, repository) for each in names[2:]]
    leagues = [moved.League(runs, read_prices(folder, runs)) for folder, runs in races]
    return moved.markdown(earlier, later, leagues)


def _repeats(argument: str, repository: Path) -> str:
    return repeats.markdown(_trials(argument, repository))


def _machines(argument: str, repository: Path) -> str:
    first, _, second = argument.partition(",")
    return machines.markdown(_trials(first, repository), _trials(second, repository))


def _sweep(argument: str, repository: Path) -> str:
    record, _, league_name = argument.partition(",")
    if not league_name:
        raise UserError(f"sweep {argument}: name a record of a sweep, and a race behind a comma")
    _, runs = find_race(league_name, repository)
    return sweep.markdown(_trials(record, repository), runs)


def _engines(argument: str, repository: Path) -> str:
    found = engines.measured(find_record(repository / "results", argument))
    if not found:
        raise UserError(f"record {argument} has no planned.csv; name a record of make engines")
    return engines.markdown(found)


def _planned(argument: str, repository: Path) -> str:
    found = planned.predicted(find_record(repository / "results", argument))
    if not found:
        raise UserError(f"record {argument} has no planned.csv; name a record of make planned")
    return planned.markdown(found)


def _tuning(argument: str, repository: Path) -> str:
    record, _, track = argument.partition("/")
    return tuning.markdown(tuning.read(find_record(repository / "results", record), track))


def _of_spectra(make: Callable[[why.Race], str]) -> Callable[[str, Path], str]:
    """A function of RECORD or RECORD/RACE, of one that makes a part of its spectra."""
    return lambda argument, repository: make(why.race_of(*find_race(argument, repository)))


def _rules(version: str, _: Path) -> str:
    """The numbers that a version of the rules has for each track, as Markdown."""
    tracks = rulebook.RULES.get(int(version)) if version.isdecimal() else None
    if tracks is None:
        known = ", ".join(map(str, rulebook.RULES))
        raise UserError(f"no version {version!r} of the rules; name one of {known}")
    headings = [
        "track", "target", "tokens of a step", "validated every", "in the last tenth", "runs",
        "test", "track_hash", "data_hash",
    ]  # fmt: skip
    rows = [
        [
            f"`{name}`", f"{track.target:g}", f"{track.batch_tokens:,}", f"{track.val_every} steps",
            f"{track.val_every_late} steps", f"{track.min_runs} or more",
            rulebook.TESTS[track.test], f"`{track.track_hash}`",
            f"`{track.data_hash[:16]}…`" if track.data_hash else "no published list",
        ]
        for name, track in tracks.items()
    ]  # fmt: skip
    return markdown_grid(headings, rows)


def _within(name: str, repository: Path) -> Path:
    """A file of the repository. Raises UserError for another: a page may be anybody's."""
    path = repository / name
    if not path.resolve().is_relative_to(repository.resolve()):
        raise UserError(f"{name}: is outside of the repository; mend the marker")
    return path


# What makes each part from its argument and the folder of the repository.
Markers = Mapping[str, Callable[[str, Path], str]]
MARKERS: dict[str, Callable[[str, Path], str]] = {
    "headline": _of_race(lambda runs, prices: "\n\n".join(sentences(runs, prices))),
    "steps": _of_race(lambda runs, _: "\n\n".join(sentences(runs, None))),
    "board": _board,
    "claims": _claims,
    "race": _of_race(lambda runs, _: f"{markdown(summarise(runs))}\n\n{note(runs)}"),
    "machine": _of_race(lambda runs, _: machine(runs)),
    "league": _of_race(league.markdown),
    "verdicts": _of_race(league.verdicts),
    "detectable": _of_race(lambda runs, _: league.detectable_note(runs)),
    "finals": _finals,
    "published": published.part,
    "moved": _moved,
    **{f"why_{name}": _of_spectra(part) for name, part in why.PARTS.items()},
    "machines": _machines,
    "repeats": _repeats,
    "scale": _scale,
    "engines": _engines,
    "planned": _planned,
    "sweep": _sweep,
    "tuning": _tuning,
    "tuned": lambda _, repository: tuned_table(tuned.read(repository / "optim" / "tuned.toml")),
    "rules": _rules,
    "csv": lambda file, repository: csv_table(_within(file, repository)),
    "file": lambda file, repository: f"```python\n{read_file(_within(file, repository))}```",
}
WITHOUT_ARGUMENT = {"tuned"}
ELSEWHERE = {"plan"}  # parts that another command writes

# ---- The pages ---------------------------------------------------------------------------------


def rewrite(page: str, repository: Path = REPOSITORY, markers: Markers | None = None) -> str:
    """The text of a page with every generated part as the files of `repository` give it.

    markers: what makes the parts; None: MARKERS. Parts that another command writes stay. Raises
    UserError for a marker that is unknown or has no partner, and for an argument that names no
    record, race or file.
    """
    made = MARKERS if markers is None else markers

    def fill(match: re.Match[str]) -> str:
        begin, name, argument, _, end = match.groups()
        if name not in made:
            if name in ELSEWHERE or name in MARKERS:
                return match[0]
            raise UserError(f"marker {name!r} must be one of {', '.join(MARKERS)}; mend the marker")
        if (argument is None) != (name in WITHOUT_ARGUMENT):
            wanted = "takes no argument" if argument else "needs a record or a file"
            raise UserError(f"marker {begin.strip()} {wanted}; see leaderboard/pages.py")
        return f"{begin}{made[name](argument or '', repository)}\n{end}"

    result, pairs = MARKED.subn(fill, page)
    if not page.count("<!-- begin:") == page.count("<!-- end:") == pairs:
        raise UserError(
            f"{pairs} pairs of lines <!-- begin:NAME ARGUMENT --> and <!-- end:NAME --> match, "
            "others do not; mend the markers"
        )
    return result


def pages(repository: Path = REPOSITORY) -> list[Path]:
    """The pages with generated parts: those at the root, docs/*.md and each record's README."""
    notes = (repository / "results" / "records").glob("*/README.md")
    docs = (repository / "docs").glob("*.md")
    return [*sorted(repository.glob("*.md")), *sorted(docs), *sorted(notes)]


def update_pages(
    repository: Path = REPOSITORY,
    write: bool = True,
    markers: Markers | None = None,
    chosen: Sequence[Path] | None = None,
) -> list[Path]:
    """The pages whose generated parts are out of date; writes them anew if `write`.

    markers: as in `rewrite`. chosen: these pages alone; None: all. Raises UserError with the name
    of the page.
    """
    changed = []
    for path in pages(repository) if chosen is None else chosen:
        before = read_file(path)
        try:
            after = rewrite(before, repository, markers)
        except UserError as error:
            raise UserError(f"{path.relative_to(repository)}: {error}") from error
        if after != before:
            changed.append(path)
            if write:
                write_atomic(path, [after.encode()])
    return changed


# ---- The command -------------------------------------------------------------------------------


def command(options: argparse.Namespace) -> int:
    """Write the pages, or say which are out of date; the exit code. Raises UserError."""
    changed = update_pages(REPOSITORY, write=not options.check)
    names = ", ".join(str(path.relative_to(REPOSITORY)) for path in changed)
    if changed and options.check:
        print(paths.from_here(f"out of date: {names}; run: make docs"))
        return 1
    print(f"written: {names}" if changed else "all pages are up to date")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Its exit code is 0, 1 (pages are out of date) or 2 (a user's mistake)."""
    parser = entry.parser("leaderboard docs", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only check the pages")
    return entry.run(parser, argv, command)
