"""RULES.md explains every rule that the leaderboard can print, with the numbers of the code."""

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import speedrun
from analysis import stats
from data import corpus
from errors import UserError
from leaderboard import claims, pages, rules

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "RULES.md").read_text("utf-8")


def texts(node: ast.expr) -> set[str]:
    """The texts that an expression can be; a name is none."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def printed(tree: ast.Module) -> Iterator[tuple[ast.expr, set[str]]]:
    """Each place that names a rule, and the rules that it can name."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name == "failed":
            continue
        named: dict[str, set[str]] = {}  # what a variable of the function can be
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    parts = zip(
                        target.elts if isinstance(target, ast.Tuple) else [target],
                        node.value.elts if isinstance(node.value, ast.Tuple) else [node.value],
                        strict=False,
                    )
                    for name, value in parts:
                        if isinstance(name, ast.Name):
                            named.setdefault(name.id, set()).update(texts(value))
        for node in ast.walk(function):
            called = getattr(getattr(node, "func", None), "id", "")
            if isinstance(node, ast.Call) and called in ("failed", "Finding"):
                rule = node.args[called == "Finding"]
                if isinstance(rule, ast.Attribute):  # of a finding that was named before
                    continue
                yield rule, named.get(rule.id, set()) if isinstance(rule, ast.Name) else texts(rule)


def every_rule() -> set[str]:
    found: set[str] = set()
    for path in sorted((ROOT / "leaderboard").glob("*.py")):
        for node, names in printed(ast.parse(path.read_text("utf-8"))):
            assert names, f"{path.name} line {node.lineno}: no name of a rule: {ast.unparse(node)}"
            found |= names
    return found


def test_every_rule_that_can_be_printed_is_explained_by_its_name() -> None:
    found = every_rule()
    assert {"files", "data", "program", "dropped run", "committed record", "rerun"} <= found
    explained = re.findall(r"\*\*([^*]+)\*\*:", PAGE)
    assert sorted(explained) == sorted(found)  # each once


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert pages.rewrite(PAGE) == PAGE, "run: make docs"
    assert f"<!-- begin:rules {rules.VERSION} -->" in PAGE
    assert PAGE.startswith(f"# Rules of the leaderboard, version {rules.VERSION}\n")
    first = pages.rewrite("<!-- begin:rules 1 -->\n<!-- end:rules -->")
    assert "| `tiny` | 3.68 |" in first
    table = pages.rewrite(f"<!-- begin:rules {rules.VERSION} -->\n<!-- end:rules -->")
    assert "| `tiny` | 3.6 | 6,144 | 20 steps | 4 steps | 3 or more | Student, p < 0.01 |" in table
    assert table.count("(target − mean) √n ≥ 0.004") == 1
    assert f"{100 * stats.TRACK3_SLOPE:.4f} · steps saved / 100" in PAGE
    assert f"agree to {claims.ALIKE:.4f}" in PAGE


@pytest.mark.parametrize("version", ["0", "one", "²"])
def test_a_marker_with_no_version_is_refused(version: str) -> None:
    with pytest.raises(UserError, match="no version .* name one of 1, 2"):
        pages.rewrite(f"<!-- begin:rules {version} -->\n<!-- end:rules -->")


def test_both_pages_of_the_root_are_kept_up_to_date() -> None:
    names = {path.name for path in pages.pages() if path.parent == ROOT}
    assert names == {"README.md", "RULES.md", "CONTRIBUTING.md"}


# ---- The newest version, and the trainer -------------------------------------------------------


def test_the_newest_rules_are_those_of_the_trainer() -> None:
    assert max(rules.RULES) == rules.VERSION
    boards = rules.RULES[rules.VERSION]
    assert set(boards) == set(speedrun.TRACKS)
    for name, board in boards.items():
        track = speedrun.TRACKS[name]
        assert board.track_hash == track.hash()
        assert (board.target, board.batch_tokens) == (track.target, track.batch_tokens)
        for steps in (1, 19, 70, 250, 251, 3250, 4999):
            every = range(steps + 1)
            ours = [step for step in every if board.validates(step, steps)]
            assert ours == [step for step in every if track.validates(step, steps)]
        moved = replace(board, val_every_late=board.val_every_late + 1)
        every = range(5000)
        assert any(moved.validates(step, 5000) != track.validates(step, 5000) for step in every)


def test_the_page_names_the_frozen_values_of_each_track() -> None:
    for name in rules.RULES[rules.VERSION]:
        track = speedrun.TRACKS[name]
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
        order = "shuffled by the seed" if track.shuffle else "the same for all seeds"
        assert row.endswith(f"| {track.seq_len:,} | {track.val_tokens:,} | {order} |")


def test_the_data_of_tiny_are_those_of_its_manifest() -> None:
    expected = rules.RULES[rules.VERSION]["tiny"].data_hash
    assert expected == corpus.DATA_SHA256 == corpus.verify(corpus.ROOT).hash
