"""Reads and writes the result files. No other code does.

    results/runs.csv            one row for each run              (schema.Run)
    results/tuning.csv          one row for each tuning trial     (schema.Trial)
    results/curves/<run>.csv    one row for each validation       (schema.Validation)
    results/turns/<run>.csv     one row for each turn             (schema.Turn), if it took turns
    results/logits/<run>.csv    one row for each head and step    (schema.Logit), if measured
    results/spectra/<run>.csv   one row for each part of a tensor (schema.Spectrum), if measured
    results/setups/<race>.json  how a race is run, as far as no row says it, for --resume
    results/checkpoints/<race>/ what --resume goes on with within a run (runtime/checkpoints.py)
    results/sources/<hash>.txt  the program text behind the rows

A record, results/records/<name>/, has the same files, but for the sources, which all records share
in results/records/sources/.

A row is one line. It is written whole, under a lock, and synced, so a file survives a kill at any
moment and several races at once. Reading is strict: a file that does not match `schema` is refused
with its line number, because a guessed number is worse than none.
"""

import csv
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from errors import UserError
from tracking.files import cannot_write, check_writable, write_atomic
from tracking.schema import STATUSES, Logit, Run, Spectrum, Trial, Turn, Validation

T = TypeVar("T")
RESUME = "go on with --resume"
RECORDS = "records"  # the folder of committed records in results/
ROOM = 16 << 20  # bytes: several times the size of what a long race writes
TABLES = {"runs.csv": Run, "tuning.csv": Trial}
FOLDERS = ("curves", "turns", "logits", "spectra", "setups", "sources")
LONGEST_NAME = 240  # bytes: a file system takes 255, with a suffix
LOCK_SECONDS, LOCK_WAIT = 30.0, 0.01  # an append takes milliseconds
BOM = "\ufeff"  # spreadsheets begin a file with it

# int() and float() would also take "nan", "1_000" and " 1".
INT = re.compile(r"-?\d+", re.ASCII)
_columns_of: dict[type, dict[str, tuple[type, bool]]] = {}  # what `_columns` has found
LARGEST = 2**63 - 1  # of an int, which pandas then holds
_NAMES: dict[type, str] = {float: "a finite float"}  # of types, in messages
FLOAT = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)

SOURCE_HEAD = re.compile(r"==== (.{1,200}) \((\d{1,9}) characters\) ====\n", re.ASCII)

# ---- The files of a training run ---------------------------------------------------------------


def ready(root: Path, more: Mapping[str, type] = MappingProxyType({})) -> None:
    """Raise UserError before training if results could not be written after it.

    Every folder is tried with a file that is removed again, and every table is opened, locked and
    read: one that this version cannot extend is refused now. Nothing is left behind, so that a
    command that is refused for another reason makes no folder. more: tables beside runs and trials.
    """
    otherwise = "choose another folder with --results"
    check_writable(root, ROOM, otherwise)
    for name in FOLDERS:
        check_writable(root / name, otherwise=otherwise)
    for name, cls in (TABLES | dict(more)).items():
        _check_appendable(root / name)
        read(root / name, cls)
        _check_last_line(root / name, cls)


def _check_appendable(path: Path) -> None:
    """Raise UserError if a row could not be added to a table that is there."""
    if not path.exists():
        return
    try:
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _lock(file, path)
        finally:
            os.close(file)
    except OSError as error:
        raise cannot_write(path, error) from error


def _check_last_line(path: Path, cls: type) -> None:
    """Raise UserError if the last line is a row without its line end, which `append` would cut.

    An editor may leave it so. What a kill or a full disk leaves is hardly ever a row.
    """
    lines = (path.read_bytes() if path.exists() else b"").split(b"\n")
    if not lines[-1]:
        return
    try:
        _row(_cells(lines[0]), _cells(lines[-1]), cls)
    except (ValueError, csv.Error, KeyError, TypeError):  # the header too may be unfinished
        return
    raise UserError(
        f"{path}: its last row has no line end, and the next one would replace it; "
        f"run: echo >> {shlex.quote(str(path))}"
    )


def _lock(file: int, path: Path) -> None:
    """Lock a table until its descriptor is closed. Raises UserError if others do not let go."""
    for _ in range(int(LOCK_SECONDS / LOCK_WAIT)):
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_WAIT)
    raise UserError(
        f"{path}: another process has held its lock for {LOCK_SECONDS:.0f} s; end that process "
        f"(fuser -v {path}), then {RESUME}"
    )


def record(
    root: Path,
    run: Run,
    points: Sequence[Validation],
    source: str,
    logits: Sequence[Logit] = (),
    turns: Sequence[Turn] = (),
    spectra: Sequence[Spectrum] = (),
) -> None:
    """Write a finished run: source, curve, what else was measured and, last, its row in runs.csv.

    The row comes last, so that a row always has its curve and its source, even if the process is
    killed. `source` is the `source_text` of the program. Raises UserError if the disk is full.
    """
    _write_source(root, run.source_hash, source)
    write_rows(curve_path(root, run.run), Validation, points)
    for path, cls, rows in (
        (logits_path(root, run.run), Logit, logits),
        (turns_path(root, run.run), Turn, turns),
        (spectra_path(root, run.run), Spectrum, spectra),
    ):
        if rows:
            write_rows(path, cls, rows)
        else:
            path.unlink(missing_ok=True)  # of the same run, killed before its row was written
    append(root / "runs.csv", run)


def record_trial(root: Path, trial: Trial, source: str) -> None:
    """Write a finished tuning trial: its source and, last, its row in tuning.csv."""
    _write_source(root, trial.source_hash, source)
    append(root / "tuning.csv", trial)


def read_runs(root: Path) -> list[Run]:
    """The rows of runs.csv in the order they were written; none when there is no file yet."""
    return read(root / "runs.csv", Run)


def read_trials(root: Path) -> list[Trial]:
    """The rows of tuning.csv in the order they were written; none when there is no file yet."""
    return read(root / "tuning.csv", Trial)


def read_curve(root: Path, run_id: str) -> list[Validation]:
    """The validations of one run, first to last. Raises UserError when the run has no curve."""
    path = curve_path(root, run_id)
    if not path.exists():
        raise UserError(f"{path} is missing; every run has a curve: restore it or remove the run")
    return read(path, Validation)


def read_logits(root: Path, run_id: str) -> list[Logit]:
    """The largest attention logits of one run; none when they were not measured."""
    return read(logits_path(root, run_id), Logit)


def read_spectra(root: Path, run_id: str) -> list[Spectrum]:
    """The spectra of one run; none when they were not measured."""
    return read(spectra_path(root, run_id), Spectrum)


def read_turns(root: Path, run_id: str) -> list[Turn]:
    """The turns of one run; none when it ran alone."""
    return read(turns_path(root, run_id), Turn)


def curve_path(root: Path, run_id: str) -> Path:
    """The path of a run's curve. Raises UserError if the id cannot be a file name."""
    _check_name("run id", run_id, "curve is curves/<run>.csv")
    return root / "curves" / f"{run_id}.csv"


def _check_name(what: str, name: str, why: str) -> None:
    """Raise UserError for a name from a row that is no file name, such as "../x"."""
    plain = name and Path(name).name == name and not name.startswith(".") and "\0" not in name
    if not plain or len(name.encode()) > LONGEST_NAME:
        raise UserError(f"{what} {name!r}: must be a file name, as its {why}; restore runs.csv")


def logits_path(root: Path, run_id: str) -> Path:
    """The path of a run's attention logits, if they were measured."""
    return root / "logits" / curve_path(root, run_id).name


def spectra_path(root: Path, run_id: str) -> Path:
    """The path of a run's spectra, if they were measured."""
    return root / "spectra" / curve_path(root, run_id).name


def turns_path(root: Path, run_id: str) -> Path:
    """The path of a run's turns, if it took turns with others."""
    return root / "turns" / curve_path(root, run_id).name


def read_setup(root: Path, race: str) -> dict[str, Any]:
    """What `write_setup` wrote for a race; empty if nothing. Raises UserError."""
    path = _setup_path(root, race)
    try:
        setup = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; restore the file or remove it") from error
    if not isinstance(setup, dict):
        raise UserError(f"{path}: must hold a JSON object; restore the file or remove it")
    return setup


def write_setup(root: Path, race: str, setup: Mapping[str, Any]) -> None:
    """Write how a race is run, as far as no row says it. Raises UserError if the disk is full."""
    path, text = _setup_path(root, race), json.dumps(setup) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, [text.encode()], RESUME)


def _setup_path(root: Path, race: str) -> Path:
    return root / "setups" / f"{curve_path(root, race).stem}.json"


def checkpoints_path(root: Path, race: str) -> Path:
    """The folder of a race's checkpoints, while it is under way."""
    return root / "checkpoints" / curve_path(root, race).stem


def source_path(root: Path, digest: str) -> Path:
    """The path of the program text with this hash.

    All records share the folder records/sources, so that a text is stored once. Raises UserError if
    the hash cannot be a file name.
    """
    _check_name("source_hash", digest, "text is sources/<source_hash>.txt")
    own = root / "sources" / f"{digest}.txt"
    if is_record(root) and not own.exists():
        return Path(os.path.abspath(root)).parent / "sources" / own.name
    return own


def is_record(root: Path) -> bool:
    """Whether a folder is a record, from wherever it is named: also "." and ".." have a name."""
    return Path(os.path.abspath(root)).parent.name == RECORDS


def records(root: Path) -> list[Path]:
    """The records in the results folder `root`: its folders records/<name> with runs or trials."""
    tables = ("runs.csv", "tuning.csv")
    folders = sorted(path for path in (root / RECORDS).glob("*") if path.is_dir())
    return [folder for folder in folders if any((folder / name).exists() for name in tables)]


def find_record(results: Path, name: str) -> Path:
    """The folder of a record below a results folder. Raises UserError for an unknown name."""
    known = {path.name: path for path in records(results)}
    if name not in known:
        raise UserError(
            f"no record {name!r} in results/records; known records: {', '.join(known) or 'none'}; "
            "name one of them"
        )
    return known[name]


def source_text(files: Mapping[str, str]) -> str:
    """A program's files (name -> text) as one text, sorted by name.

    The lengths make the text unambiguous for any content.
    """
    return "".join(
        f"==== {name} ({len(text)} characters) ====\n{text}\n"
        for name, text in sorted(files.items())
    )


def source_files(source: str) -> dict[str, str]:
    """The files of a program from its `source_text`. Raises UserError for another text."""
    files, place = {}, 0
    while place < len(source):
        head = SOURCE_HEAD.match(source, place)
        end = head.end() + int(head[2]) if head else len(source)
        if head is None or source[end : end + 1] != "\n":
            raise UserError(
                f"no text of a program at character {place}; restore the file in sources/"
            )
        if head[1] in files:
            raise UserError(f"the program has two files {head[1]}; restore the file in sources/")
        files[head[1]] = source[head.end() : end]
        place = end + 1
    return files


def source_hash(source: str) -> str:
    """First 16 hex digits of the SHA-256 of a source text: its file name in sources/."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _write_source(root: Path, digest: str, source: str) -> None:
    assert digest == source_hash(source), "the row's source_hash is not the hash of its source"
    path = source_path(root, digest)
    if not path.exists():
        write_atomic(path, [source.encode()], RESUME)


def write_rows(path: Path, cls: type, rows: Sequence[Any]) -> None:
    """Write a whole table, or leave the old one. Raises as `append` does."""
    write_atomic(path, [_header(cls).encode(), *(_line(row).encode() for row in rows)], RESUME)


# ---- One CSV file ------------------------------------------------------------------------------


def append(path: Path, row: Any) -> None:
    """Add one dataclass instance to a CSV file as one line, or leave the file as it was.

    Creates the file with its header. Removes a last line without its newline, which a kill or a
    full disk left. Holds the file's lock, so that several processes can append. Raises UserError if
    the file has other columns or cannot be written. Raises ValueError for a value that the reader
    would refuse: of another type, not finite, or too long.
    """
    header = _header(type(row))
    _line(row)  # refuses the row before there is a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _lock(file, path)
            content = os.pread(file, os.fstat(file).st_size, 0)
            length = content.rfind(b"\n") + 1  # of the finished lines
            first = content.partition(b"\n")[0] if length else header.encode()
            try:  # the file's own columns and line ends, such as a spreadsheet's
                names = _cells(first)
                _check_columns(names, type(row))
            except (ValueError, csv.Error):
                raise UserError(
                    f"{path} line 1: not the columns of this version; move the file away and rerun"
                ) from None
            line = _line(row, names, "\r\n" if first.endswith(b"\r") else "\n")
            _extend(file, length, line if length else header + line)
        finally:
            os.close(file)
    except OSError as error:
        raise cannot_write(path, error, RESUME) from error


def _extend(file: int, length: int, text: str) -> None:
    """Cut an open file to `length` bytes and add `text`; if that fails, only cut it."""
    os.ftruncate(file, length)
    data = text.encode()
    try:
        if os.write(file, data) < len(data):  # the disk became full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file)
    except OSError:
        os.ftruncate(file, length)
        raise


def read(path: Path, cls: type[T]) -> list[T]:
    """The rows of a CSV file as instances of a dataclass; none when there is no file.

    A last line without its newline was never finished and is left out. UserError, with path and
    line, is raised for an unknown, missing or repeated column, a wrong number of cells, a wrong
    type, a number that is not finite, and an unknown status.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; restore the file") from error
    if b"\r" in content and b"\n" not in content:  # an append would take it for an unfinished line
        raise UserError(
            f"{path}: its lines end with carriage returns alone; save it with line feeds: "
            f"sed -i 's/\\r/\\n/g' {path}"
        )
    lines = content.split(b"\n")[:-1]
    names: list[str] = []
    rows: list[T] = []
    for number, line in enumerate(lines, start=1):
        try:
            cells = _cells(line)
            if number == 1:
                _check_columns(cells, cls)
                names = cells
            else:
                rows.append(_row(names, cells, cls))
        except (ValueError, csv.Error) as error:  # ValueError: bytes that are not UTF-8, too
            raise UserError(
                f"{path} line {number}: {error}; restore the file or remove the line"
            ) from error
    return rows


def _cells(line: bytes) -> list[str]:
    """The cells of a line, which may end with a carriage return or begin with a BOM."""
    text = line.decode().removeprefix(BOM).removesuffix("\r")
    return next(csv.reader([text], strict=True), [])


def _check_columns(names: list[str], cls: type) -> None:
    declared = _columns(cls)
    for name in names:
        if name not in declared:
            raise ValueError(f"unknown column {name!r}")
        if names.count(name) > 1:
            raise ValueError(f"column {name!r} is repeated")
    for name in declared:
        if name not in names:
            raise ValueError(f"column {name!r} is missing")


def _row(names: list[str], cells: list[str], cls: type[T]) -> T:
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells for {len(names)} columns")
    columns = _columns(cls)
    values = {}
    for name, cell in zip(names, cells, strict=True):
        try:
            values[name] = _parse(cell, *columns[name])
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    if cls is Run and values["status"] not in STATUSES:
        raise ValueError(f"status {values['status']!r} is not one of {', '.join(STATUSES)}")
    return cls(**values)


def _columns(cls: type) -> dict[str, tuple[type, bool]]:
    """Each column's name, its type, and whether it may be empty, in the order of declaration."""
    if cls not in _columns_of:  # to look at the types takes longer than to read a row
        columns = _columns_of[cls] = {}
        for name, hint in get_type_hints(cls).items():
            kinds = [kind for kind in get_args(hint) or (hint,) if kind is not NoneType]
            columns[name] = (kinds[0], NoneType in get_args(hint))
    return _columns_of[cls]


def _parse(cell: str, kind: type, optional: bool) -> Any:
    if optional and not cell:
        return None
    if kind is str:
        return cell
    if kind is bool and cell in ("true", "false", "TRUE", "FALSE"):  # the last of spreadsheets
        return cell.lower() == "true"
    if kind is int and INT.fullmatch(cell) and abs(int(cell)) <= LARGEST:
        return int(cell)
    if kind is float and FLOAT.fullmatch(cell) and math.isfinite(float(cell)):
        return float(cell)
    of = " of 64 bits" if kind is int and INT.fullmatch(cell) else ""
    raise ValueError(f"{cell!r} is not {_NAMES.get(kind, kind.__name__)}{of}")


def _format(value: Any, kind: type, optional: bool) -> str:
    if optional and value is None:
        return ""
    if kind is str and isinstance(value, str):
        if len(value) > csv.field_size_limit():
            raise ValueError(f"has {len(value)} characters, more than csv can read back")
        return " ".join(value.splitlines())  # one line a row: a torn line must not look complete
    if kind is bool and isinstance(value, bool):
        return str(value).lower()
    if kind is int and type(value) is int and abs(value) <= LARGEST:
        return str(value)
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return repr(float(value))
    large = type(value) is int and abs(value) > LARGEST
    shown = f"{value:#x}" if large else repr(value)  # it may have 10,000 digits
    of = " of 64 bits" if kind is int and large else ""
    raise ValueError(f"{shown} is not {_NAMES.get(kind, kind.__name__)}{of}")


def _line(row: Any, names: Sequence[str] | None = None, end: str = "\n") -> str:
    """A row as a line. names: the columns in their order; None: as they are declared."""
    text, columns = io.StringIO(), _columns(type(row))
    cells = []
    for name in names or columns:
        try:
            cells.append(_format(getattr(row, name), *columns[name]))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    csv.writer(text, lineterminator=end).writerow(cells)
    return text.getvalue()


def _header(cls: type) -> str:
    return ",".join(field.name for field in fields(cls)) + "\n"
