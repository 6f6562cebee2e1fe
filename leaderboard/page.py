"""Writes the page of the leaderboard: one HTML file, and its data for programs.

    python -m leaderboard page                  # results/leaderboard/index.html and board.json
    python -m leaderboard page --out FOLDER

The page needs no server and asks for nothing: styles, scripts, the charting library and the data
are in the file. It can be opened from a disk, and be put on any web host beside the records.

Everything in a record is text that a stranger wrote. In the page the text is data, which the script
shows by `textContent` alone. Links are relative and stay in the results folder. A policy in the
page's head forbids every request and every script but the ones whose hashes it names.

The same entries give the same bytes.
"""

import argparse
import base64
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from host import entry as command
from host import paths
from leaderboard import board
from leaderboard.board import OURS, SECONDS, STEPS, YOURS, Entry
from leaderboard.board_table import href, plain
from leaderboard.matrix import Matrix, matrix
from leaderboard.published_entries import published_entries
from tracking.files import write_atomic

STATIC = Path(__file__).parent / "static"
OUT = "leaderboard"  # the page's folder in results/
SCRIPTS = ("words.js", "charts.js", "views.js", "page.js")  # in the order that they run
AGAIN = "run: make leaderboard"
PLACE = re.compile(r"\{\{(\w+)\}\}")  # in page.html, what is filled in
SOURCE_MAP = re.compile(r"\n//# sourceMappingURL=\S+\s*$")
DATED = re.compile(r"^\d{4}-\d\d-\d\d_")
CELL = ["first", "second", "ratio", "p", "statistic", "distinct", "bound"]  # as board.json has it
DIGITS = 6  # significant digits of a number that is drawn


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser("leaderboard page", __doc__)
    parser.add_argument(
        "--out",
        type=paths.typed,
        metavar="FOLDER",
        help="where to write the page; default: results/leaderboard",
    )
    return command.run(parser, argv, _write)


def _write(given: argparse.Namespace) -> None:
    found = [*board.entries(paths.RESULTS), *published_entries(paths.RESULTS)]
    path = write(found, given.out or paths.RESULTS / OUT)
    print(f"{len(found)} entries. Open {paths.from_here(str(path))}")


def write(entries: Sequence[Entry], out: Path, results: Path = paths.RESULTS) -> Path:
    """Write the page and its data to a folder; the path of the page. Raises UserError.

    results: the folder of the records, to which the page links.
    """
    above = Path(os.path.relpath(results.resolve(), out.resolve())).as_posix()
    shown = data(entries, above)
    text = json.dumps(shown, sort_keys=True, allow_nan=False, separators=(",", ":"))
    page = out / "index.html"
    write_atomic(page, [html(shown).encode()], AGAIN)
    write_atomic(out / "board.json", [text.encode(), b"\n"], AGAIN)
    return page


# ---- The page ----------------------------------------------------------------------------------


def html(shown: Mapping[str, Any]) -> str:
    """The page with the data in it."""
    css = _static("page.css")
    library = SOURCE_MAP.sub("", _static("vendor/chart.umd.min.js"))
    scripts = [library, *(_static(name) for name in SCRIPTS)]
    parts = {
        "csp": policy(scripts, css),
        "css": css,
        "data": script_json(shown),
        "licence": f"{_static('vendor/LICENSE')}\n{_static('vendor/LICENSE-color')}",
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return PLACE.sub(lambda place: parts[place[1]], _static("page.html"))


def policy(scripts: Sequence[str], css: str) -> str:
    """The content security policy: nothing is loaded, and no other script or style is used.

    The icon is an empty `data:` address, so that no browser asks the host for one.
    """
    allowed = " ".join(_hash(script) for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(css)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: Any) -> str:
    """JSON that is safe within a script element: no character of it can end the element."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _static(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


# ---- Its data ----------------------------------------------------------------------------------


def data(entries: Sequence[Entry], above: str) -> dict[str, Any]:
    """What the page shows, as JSON has it. above: the path from the page to the results folder."""
    ordered = sorted(entries, key=lambda e: (e.track, e.record, e.label, e.entrant))
    boards: dict[str, list[Entry]] = {}
    for entry in ordered:
        boards.setdefault(entry.board, []).append(entry)
    return {
        "first": _first(ordered),
        "tracks": [_track(boards[name], above) for name in sorted(boards)],
    }


def _first(entries: Sequence[Entry]) -> str:
    """The board that is shown first: of the user's newest record, or with most of ours."""
    yours = [entry for entry in entries if entry.origin == YOURS]
    if yours:
        return plain(max(yours, key=lambda e: e.date).board)
    counted = Counter(entry.board for entry in entries if entry.origin == OURS) or Counter(
        entry.board for entry in entries if entry.curve
    )
    return plain(min(counted, key=lambda name: (-counted[name], name))) if counted else ""


def _track(entries: Sequence[Entry], above: str) -> dict[str, Any]:
    seen: Counter[str] = Counter()
    shown = []
    for entry, name in zip(entries, _names(entries), strict=True):
        identity = hashlib.sha256(f"{entry.record}\0{entry.label}".encode(errors="replace"))
        key = identity.hexdigest()[:8]
        seen[key] += 1
        key = key if seen[key] == 1 else f"{key}-{seen[key]}"
        shown.append(_entry(entry, above) | {"id": key, "name": name})
    classes = sorted({entry.hardware for entry in entries if entry.hardware})
    return {
        "name": plain(entries[0].board),
        "target": _number(entries[0].target),
        "entries": shown,
        "pairs": {
            STEPS: _pairs(entries, range(len(entries)), STEPS),
            SECONDS: {plain(name): _pairs_on(entries, name) for name in classes},
        },
    }


def _names(entries: Sequence[Entry]) -> list[str]:
    """Short names of the entries of a track: the label, and the record where labels are alike.

    The date and the track at the beginning of a record's name are left out, if what is left tells
    the entries apart.
    """
    labels = [plain(entry.label) for entry in entries]
    records = [plain(entry.record) for entry in entries]
    short = [DATED.sub("", record).removeprefix(f"{entries[0].track}_") for record in records]
    counted, pairs = Counter(labels), Counter(zip(labels, short, strict=True))
    return [
        label if counted[label] == 1 else f"{label} · {part if pairs[label, part] == 1 else record}"
        for label, part, record in zip(labels, short, records, strict=True)
    ]


def _entry(entry: Entry, above: str) -> dict[str, Any]:
    return {
        "record": plain(entry.record),
        "origin": plain(entry.origin),
        "date": plain(entry.date),
        "rules": entry.rules,
        "label": plain(entry.label),
        "entrant": plain(entry.entrant),
        "authors": [plain(author) for author in entry.authors],
        "new": plain(entry.new),
        "n": entry.n,
        "steps": entry.steps,
        "loss": _number(entry.mean_loss),
        "sd": _number(entry.loss_sd),
        "target": _number(entry.target),
        "p": _number(entry.p),
        "seconds": _number(entry.seconds),
        "hardware": plain(entry.hardware),
        "state_bytes": entry.state_bytes,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "claimed": entry.claimed,
        "state": plain(entry.state),
        "why": [plain(finding) for finding in entry.why],
        "sets": [plain(name) for name in entry.sets],
        "doubts": [
            {"name": plain(name), "href": href(f"records/{name}/", above)} for name in entry.doubts
        ],
        "href": href(entry.link, above),
        "against": plain(entry.against),
        "fewer_steps": _number(entry.fewer_steps),
        "less_time": _number(entry.less_time),
        "curve": [
            [point.step, point.tokens, _number(point.seconds), _number(point.val_loss)]
            for point in entry.curve
        ],
    }


def _pairs_on(entries: Sequence[Entry], hardware: str) -> dict[str, Any]:
    places = [i for i, entry in enumerate(entries) if entry.hardware == hardware]
    return _pairs(entries, places, SECONDS)


def _pairs(entries: Sequence[Entry], places: Sequence[int], unit: str) -> dict[str, Any]:
    """The pairs of some entries, which are named by their places in the track."""
    found: Matrix = matrix([entries[i] for i in places], unit)
    cells = [
        [
            places[cell.first],
            places[cell.second],
            _number(cell.ratio),
            _number(cell.p),
            _number(cell.statistic),
            cell.distinct,
            "at least" if cell.at_least else "at most" if cell.at_most else "",
        ]
        for cell in found.cells
    ]
    return {"test": found.test, "family": found.family, "columns": CELL, "cells": cells}


def _number(value: float | None) -> float | None:
    """A number to DIGITS digits; None where there is none, or it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")
