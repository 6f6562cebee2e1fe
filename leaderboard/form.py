"""The form of a record: record.toml, what it claims, and manifest.csv, what it consists of.

    record = read(folder, listing(folder))
    write(folder, record)

A record is a folder of results/records. There are three kinds:

    record        one race, and what it claims of its entrants against the target of a track
    evidence      what the project shows or claims of anything else
    skeptical     a rerun that fails, beside the record that it questions

Folders of the first and the last kind are named <date>_<track>_<name>. Claims are written by
`leaderboard submit` from the rows, and `leaderboard verify` computes them again.
"""

import datetime
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from errors import UserError
from leaderboard.intake import FORM, MANIFEST, README, sha256
from tracking import store
from tracking.files import write_atomic
from tracking.schema import Listed

RECORD, EVIDENCE, SKEPTICAL = "record", "evidence", "skeptical"
KINDS = (RECORD, EVIDENCE, SKEPTICAL)
LONGEST_TEXT = 2000  # characters
LONGEST_LIST = 100
LARGEST = 2**63 - 1  # of a whole number, as in the tables
DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,79}")
FOLDER = re.compile(rf"{DATE.pattern}_[a-z0-9-]+_{NAME.pattern}", re.ASCII)
WEIGHTS, AVERAGED = "weights", "averaged"  # what is validated


@dataclass(frozen=True)
class Claim:
    """What a record claims of one entrant of its race."""

    label: str  # as it was typed
    entrant: str  # with every option written out
    n: int  # runs
    steps: int  # at which all its runs stop
    mean_loss: float  # of the runs at that step, nats per token
    p: float  # one-sided, of the track's test that the mean is below the target
    seconds: float  # mean of the training clock at that step
    state_bytes: int  # optimizer state
    peak_memory_bytes: int
    loss_sd: float | None = None  # between the runs; none for a single run
    readout: str = WEIGHTS  # "averaged": an average of weights is validated
    sets: tuple[str, ...] = ()  # boards on which it sets the record of its day


@dataclass(frozen=True)
class Record:
    """The content of record.toml."""

    kind: str
    date: str  # ISO 8601, of the first row
    name: str
    authors: tuple[str, ...]
    new: str  # what is new; of evidence, the question
    track: str = ""  # this and the next six are of a race
    rules: int = 0
    race: str = ""
    hardware: str = ""  # class
    source_hash: str = ""
    data_hash: str = ""
    questions: str = ""  # the record that a skeptical result is about
    environment: Mapping[str, str] = field(default_factory=dict)  # of the machine; empty: unknown
    claims: tuple[Claim, ...] = ()

    @property
    def folder(self) -> str:
        """The name of its folder; evidence keeps its own."""
        return self.name if self.kind == EVIDENCE else f"{self.date}_{self.track}_{self.name}"


# ---- record.toml -------------------------------------------------------------------------------


def read(folder: Path, files: Mapping[str, bytes]) -> Record:
    """The content of record.toml. files: of `intake.listing`. Raises UserError."""
    path = folder / FORM
    if FORM not in files:
        raise UserError(
            f"{path} is missing; make a record from a race with: python -m leaderboard submit, or "
            f"name it as evidence: python -m leaderboard seal {folder}"
        )
    try:
        return _parse(files[FORM].decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}; see RULES.md, or make it again") from error


def _parse(text: str) -> Record:
    """The content of record.toml from its text. Raises ValueError or RecursionError."""
    values = tomllib.loads(text)
    claims = values.pop("claim", [])
    if not isinstance(claims, list) or not all(isinstance(each, dict) for each in claims):
        raise ValueError("claim: must be tables [[claim]]")
    if "claims" in values:
        raise ValueError("'claims' is unknown; a claim is a table [[claim]]")
    if len(claims) > LONGEST_LIST:
        raise ValueError(f"{len(claims)} claims, more than {LONGEST_LIST}")
    record = _build(Record, values)
    record = replace(record, claims=tuple(_build(Claim, each) for each in claims))
    _check(record)
    return record


def _build(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance of a dataclass from a table. Raises ValueError for another form."""
    hints, required = get_type_hints(cls), {f.name for f in fields(cls) if _required(f)}
    for name in [*values, *required]:
        if name not in hints:
            raise ValueError(f"{name!r} is unknown; it has {', '.join(hints)}")
        if name not in values:
            raise ValueError(f"{name!r} is missing")
    return cls(**{name: _typed(name, value, hints[name]) for name, value in values.items()})


def _required(each: Any) -> bool:
    return each.default is MISSING and each.default_factory is MISSING


def _typed(name: str, value: Any, hint: Any) -> Any:
    kind, *_ = [part for part in get_args(hint) or (hint,) if part is not NoneType]
    if hint is float or (kind is float and NoneType in get_args(hint)):
        good = type(value) is float or (type(value) is int and abs(value) <= LARGEST)
        good = good and math.isfinite(value)
    elif hint is int:
        good = type(value) is int and abs(value) <= LARGEST
    elif hint is str:  # one line that shows what it is
        good = type(value) is str and len(value) <= LONGEST_TEXT and value.isprintable()
    elif str(hint).startswith("tuple"):
        if isinstance(value, list | tuple) and len(value) <= LONGEST_LIST:
            return tuple(_typed(name, each, str) if kind is str else each for each in value)
        good = False
    else:  # the environment
        good = isinstance(value, dict) and len(value) <= LONGEST_LIST
        if good:
            return {_typed(name, k, str): _typed(name, v, str) for k, v in value.items()}
    if not good:
        shown = f"{value:#x}" if type(value) is int else str(value)
        what = getattr(hint, "__name__", hint) if hint in (int, float, str) else hint
        raise ValueError(f"{name} = {shown[:80]!r} is not {what}, finite and in one line")
    return float(value) if kind is float else value


def _check(record: Record) -> None:
    """Raise ValueError for a value that no record has."""
    if record.kind not in KINDS:
        raise ValueError(f"kind {record.kind!r} must be one of {', '.join(KINDS)}")
    if not DATE.fullmatch(record.date) or not _is_day(record.date):
        raise ValueError(f"date {record.date!r} must be as 2026-11-27")
    if not NAME.fullmatch(record.name):
        raise ValueError(f"name {record.name!r} must be of a-z, 0-9 and -.+, 80 at most")
    if not record.authors or not all(record.authors):
        raise ValueError("authors: name at least one")
    if record.kind != RECORD and record.claims:
        raise ValueError(f"{record.kind} claims nothing of a target; its kind is record")
    if record.kind == EVIDENCE and (record.track or record.rules or record.race):
        raise ValueError("evidence has no track, rules and race; its kind is record")
    if record.kind == RECORD and not record.claims:
        raise ValueError("a record needs a [[claim]]; without one it is evidence")
    if (record.kind == SKEPTICAL) != bool(record.questions):
        raise ValueError("questions: names a record in a skeptical result, and only there")
    if record.questions and not FOLDER.fullmatch(record.questions):
        raise ValueError(f"questions {record.questions!r}: is no folder <date>_<track>_<name>")


def _is_day(date: str) -> bool:
    try:
        return bool(datetime.date.fromisoformat(date))
    except ValueError:
        return False


def write(folder: Path, record: Record) -> None:
    """Write record.toml. Raises UserError for what could not be read back."""
    text = _text(record)
    try:
        assert _parse(text) == record, "what is read back is another record"
    except ValueError as error:
        raise UserError(f"{folder / FORM}: {error}; see RULES.md") from error
    write_atomic(folder / FORM, [text.encode()])


def _text(record: Record) -> str:
    lines = _table(record)
    if record.environment:
        lines += ["", "[environment]"]
        lines += [f"{_key(k)} = {_value(v)}" for k, v in record.environment.items()]
    for claim in record.claims:
        lines += ["", "[[claim]]", *_table(claim)]
    return "\n".join([*lines, ""])


def _table(row: Record | Claim) -> list[str]:
    """The lines of a TOML table; what has its default is left out."""
    values = {
        each.name: getattr(row, each.name)
        for each in fields(row)
        if each.name not in ("environment", "claims") and getattr(row, each.name) != each.default
    }
    return [f"{name} = {_value(value)}" for name, value in values.items()]


def _key(name: str) -> str:
    """A key of TOML: in quotes if it has other characters."""
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _value(name)


def _value(value: Any) -> str:
    """A value of TOML, which for text, numbers and lists of text is nearly JSON."""
    given = list(value) if isinstance(value, tuple) else value
    return json.dumps(given, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---- manifest.csv ------------------------------------------------------------------------------


def listed(files: Mapping[str, bytes], programs: Mapping[str, str], each: bool) -> list[Listed]:
    """The rows of manifest.csv: the record's own files, and the programs behind its rows.

    files: of the folder. programs: texts by their hash. each: list each file of the programs, too.
    """
    rows = [
        Listed("", name, len(content), sha256(content))
        for name, content in sorted(files.items())
        if name not in (FORM, MANIFEST, README)  # a README is made from the rows, again and again
    ]
    for digest, text in sorted(programs.items()):
        content = text.encode()
        rows.append(Listed(digest, "", len(content), sha256(content)))
        if each:
            rows += [
                Listed(digest, name, len(part.encode()), sha256(part.encode()))
                for name, part in sorted(store.source_files(text).items())
            ]
    return rows


def read_manifest(folder: Path) -> list[Listed]:
    """The rows of manifest.csv. Raises UserError."""
    if not (folder / MANIFEST).exists():
        raise UserError(f"{folder / MANIFEST} is missing; run: python -m leaderboard seal {folder}")
    return store.read(folder / MANIFEST, Listed)


def write_manifest(folder: Path, rows: Sequence[Listed]) -> None:
    """Write manifest.csv."""
    store.write_rows(folder / MANIFEST, Listed, rows)
