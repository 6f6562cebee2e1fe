"""The board of a track as a Markdown table, for README.md and the docs.

    markdown(entries(RESULTS), "tiny")

The table is made from the same entries as the page (`leaderboard.page`).
"""

import math
import posixpath
import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import quote

from analysis.table import markdown_grid
from leaderboard.board import FAILED, PASSED, UNCHECKED, Entry

STATES = {PASSED: "✓ passed", FAILED: "✗ failed", UNCHECKED: "? cannot be checked"}
LONGEST = 600  # characters of a text that are shown
MARKUP = re.compile(r"([\\`*_{}\[\]<>()#!|~&])")


def plain(text: str) -> str:
    """Text of a record on one line, without characters that no one sees, of a bounded length.

    Left out are control characters, and those that turn the direction of the text around them.
    """
    words = " ".join(text.split())
    shown = "".join(c for c in words if unicodedata.category(c)[0] != "C")
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def href(link: str, above: str) -> str:
    """A link to a path of the results folder, which is at `above`; empty for any other link.

    Only relative paths that stay in the folder are linked.
    """
    parts = link.rstrip("/").split("/")
    odd = any(part in ("", ".", "..") or plain(part) != part for part in parts)
    if odd or ":" in link or "\\" in link:
        return ""
    # quote() refuses surrogates, which have no bytes; `plain` has left them out.
    return posixpath.join(above, quote(link))


def board(entries: Sequence[Entry], name: str) -> list[Entry]:
    """The claimed entries of a board that say their steps, fewest first."""
    claimed = [e for e in entries if e.board == name and e.claimed and e.steps is not None]
    return sorted(claimed, key=lambda e: (e.steps or 0, e.mean_loss or 0, e.record, e.label))


def markdown(entries: Sequence[Entry], track: str, most: int = 10, results: str = "results") -> str:
    """The best entry of each optimizer on a track as a Markdown table, fewest steps first.

    Entries that were made for earlier rules are left out if the track has other rules now.
    most: rows. results: the results folder, as seen from the page.
    """
    header = [
        "entrant", "steps", "seconds", "mean loss", "runs", "p", "hardware", "verified", "record",
    ]  # fmt: skip
    best: dict[str, Entry] = {}
    # Of equals in steps, the newest, and of equals in age the fastest.
    newest = sorted(board(entries, track), key=lambda each: each.seconds or math.inf)
    newest.sort(key=lambda each: each.date, reverse=True)
    for entry in sorted(newest, key=lambda each: each.steps or 0):
        best.setdefault(entry.label, entry)
    rows = [_row(entry, results) for entry in board([*best.values()], track)]
    return markdown_grid(header, rows[:most])


def _row(entry: Entry, results: str) -> list[str]:
    link = href(entry.link, results)
    name = _escaped(entry.record)
    return [
        _escaped(entry.label),
        "" if entry.steps is None else str(entry.steps),
        "" if entry.seconds is None else f"{entry.seconds:.1f}",
        "" if entry.mean_loss is None else f"{entry.mean_loss:.4f}",
        "" if entry.n is None else str(entry.n),
        "" if entry.p is None else f"{entry.p:.2g}",
        _escaped(entry.hardware),
        STATES.get(entry.state, STATES[UNCHECKED]),
        f"[{name}]({link})" if link else name,
    ]


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKUP.sub(r"\\\1", plain(text))
