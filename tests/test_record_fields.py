"""Every field of every row of a record: another value of its type is found, or is known not to be.

A cheat changes one value of a good record, and seals the record again with claims computed anew
(`record_maker.cover`). FREE names the fields that no rule contradicts, each with the reason. Some
value of each of them must not be found, so that the list is what it says.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from errors import UserError
from leaderboard import form, intake, judge
from leaderboard.claims import FAILED
from leaderboard.form import KINDS, Claim, Record
from leaderboard.submit import submit
from tests.record_maker import FIRST, cover, make_race, small_rules
from tracking import store
from tracking.schema import STATUSES, Listed, Run, Turn, Validation

FREE = {
    Run: {
        "started": "a time; only the order of records depends on it",
        "python": "of the machine, and without a part in any number",
        "commit": "the program is known by its hash",
        "clean": "the program is known by its hash",
        "compile_note": "a note",
        "heat": "of which turns are neighbours; no claim is made of the price of a step",
        "data_seconds": "a part of the time, which may be any",
        "forward_backward_seconds": "a part of the time, which may be any",
        "communication_seconds": "a part of the time, which may be any",
        "communication_bytes": "no other value of a row depends on it",
        "compile_seconds": "off the clock",
        "val_seconds": "off the clock",
        "param_bytes": "it depends on the engine's layout",
        "grad_bytes": "it depends on the engine's layout",
        "peak_memory_bytes": "measured once; the claim has the largest of the runs",
    },
    Validation: {
        "train_loss": "no claim is made of it",
        "val_loss": "only the last one and those around the target decide",
        "lr": "of the schedule, which is the program's",
        "grad_norm": "no claim is made of it",
        "peak_memory_bytes": "no claim is made of it",
    },
    Turn: {},
    Claim: {},
    Record: {
        "authors": "who they are stands nowhere else",
        "new": "a sentence",
        "environment": "what the machine had stands nowhere else",
    },
    Listed: {},
}
OTHERS: dict[str, Any] = {  # strategies of fields that have few values
    "status": st.sampled_from(STATUSES),
    "kind": st.sampled_from(KINDS),
    "readout": st.sampled_from(["weights", "averaged"]),
    "started": st.datetimes().map(lambda time: f"{time:%Y-%m-%dT%H:%M:%S}+00:00"),
    "date": st.dates().map(str),
    "authors": st.lists(st.text("abc", min_size=1), min_size=1, max_size=2).map(tuple),
    "sets": st.lists(st.sampled_from(["steps", "seconds"]), unique=True, max_size=2).map(tuple),
    "environment": st.dictionaries(st.text("abc", min_size=1), st.text("abc"), min_size=1),
}
KIND_OF = {
    str: st.text("abcdefghij0123456789", min_size=1, max_size=8),
    int: st.integers(0, 1000),
    float: st.floats(0.125, 1000).map(lambda value: round(value, 3)),
    bool: st.booleans(),
    type(None): st.none(),
}
QUICK = settings(
    max_examples=2, derandomize=True, deadline=None, database=None, phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("fields")
    with small_rules():
        make_race(home, seeds=3)
        submit(home, home / "results", "first", authors=["A. Name"])
        yield home / "results" / "records" / FIRST


def values_of(cls: type, name: str) -> st.SearchStrategy[Any]:
    """Other values of a field."""
    hint = get_type_hints(cls)[name]
    kinds = getattr(hint, "__args__", (hint,))
    return OTHERS[name] if name in OTHERS else st.one_of(*(KIND_OF[kind] for kind in kinds))


def rows_of(cls: type, folder: Path) -> tuple[Path, list[Any]]:
    path = {
        Run: folder / "runs.csv",
        Validation: folder / "curves" / "one-muon-1.csv",
        Turn: folder / "turns" / "one-muon-1.csv",
        Listed: folder / "manifest.csv",
    }[cls]
    return path, store.read(path, cls)


def differs(old: Any, new: Any) -> bool:
    """Whether a value is another one, and not only by its last digits."""
    if isinstance(old, float) and isinstance(new, float):
        return abs(old - new) > 0.01 * max(abs(old), 1)
    return bool(old != new)


def is_found(folder: Path) -> bool:
    (report,) = judge.compare([judge.examine(folder)])
    return report.state == FAILED


def change_row(cls: type, name: str, folder: Path) -> Callable[[tuple[int, Any]], bool | None]:
    """A function that puts a value into a row: whether it is found, None if it is no change."""

    def tried(example: tuple[int, Any]) -> bool | None:
        path, rows = rows_of(cls, folder)
        index, value = example[0] % len(rows), example[1]
        if not differs(getattr(rows[index], name), value):
            return None
        rows[index] = replace(rows[index], **{name: value})
        store.write_rows(path, cls, rows)
        if cls is not Listed:
            with suppress(UserError):  # rows that cannot be sealed
                cover(folder)
        return is_found(folder)

    return tried


def change_form(cls: type, name: str, folder: Path) -> Callable[[tuple[int, Any]], bool | None]:
    """The same with record.toml."""

    def tried(example: tuple[int, Any]) -> bool | None:
        record = form.read(folder, intake.listing(folder))
        index, value = example[0] % len(record.claims), example[1]
        claims = list(record.claims)
        row = record if cls is Record else claims[index]
        if not differs(getattr(row, name), value):
            return None
        if cls is Record:
            record = replace(record, **{name: value})
        else:
            claims[index] = replace(claims[index], **{name: value})
            record = replace(record, claims=tuple(claims))
        (folder / intake.FORM).write_text(form._text(record), "utf-8")
        return is_found(folder)

    return tried


FIELDS = [
    (cls, each.name)
    for cls in FREE
    for each in fields(cls)
    if (cls, each.name) != (Record, "claims")
]


def test_the_list_names_fields() -> None:
    for cls, free in FREE.items():
        assert free.keys() <= {each.name for each in fields(cls)} and all(free.values())


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=lambda each: getattr(each, "__name__", each))
def test_another_value_is_found(cls: type, name: str, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "records" / FIRST
    make = change_form if cls in (Claim, Record) else change_row

    def caught(example: tuple[int, Any]) -> bool | None:
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        return make(cls, name, place)(example)

    examples = st.tuples(st.integers(0, 100), values_of(cls, name))
    if name in FREE[cls]:
        with suppress(NoSuchExample):
            find(
                examples,
                lambda each: caught(each) is False,
                settings=settings(QUICK, max_examples=30),
            )
            return
        pytest.fail(f"every other {name} is found: take it off the list")

    @QUICK
    @given(examples)
    def check(example: tuple[int, Any]) -> None:
        assert caught(example) is not False, f"{name} = {example[1]!r} in row {example[0]}"

    check()
