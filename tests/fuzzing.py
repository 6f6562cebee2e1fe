"""What the fuzzer does to files, and how long it goes on; tests/test_fuzz.py says to which readers.

An example is a valid file and a short list of changes, so that hypothesis can make a failing one
smaller and print it. The suite tries a few examples, the same ones each time. `make fuzz` tries
others each time, for as long as --fuzz-seconds says, and prints the example that fails.
"""

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import UserError

EXAMPLES = 10  # of each target in the suite
ROUNDS = 5  # times as many between two looks at the clock
LONGEST = 2000  # characters of a message that a person still reads

# What numbers and words are replaced by: values at the ends of types, and spellings that some
# parsers take and others do not.
VALUES = [
    "", "0", "-0", "-1", "1", "2", "nan", "NaN", "-inf", "Infinity", "1e999", "1e-999", "9" * 400,
    "9" * 5000, "4294967296", "9223372036854775808", "0x10", "1_000", "٣", " 1", "1.", ".5", "+1",
    "true", "True", "null", "None", '""', "''", "[]", "{}", "[1]", '{"a": 1}', "a" * 10_000, "\0",
    "\ud7ff", "\u2028", "\x85", "\r", "😀", "..", "/", "../../x", "~", "$HOME", "=", ":", ",", ";",
    '"', "'", "#", "\\", "\\ud800", "-", "_", "é",
]  # fmt: skip
ENCODINGS = ["utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin-1", "cp500"]
WORD = re.compile(rb"[\w.+-]+")

places = st.integers(0, (1 << 16) - 1)
words = st.sampled_from(VALUES)
Change = Callable[[bytes], bytes]


class Changed:
    """A change with the arguments that it is printed with."""

    def __init__(self, how: str, *arguments: Any) -> None:
        self.how, self.arguments = how, arguments

    def __repr__(self) -> str:
        spelled = map(repr, self.arguments)
        shown = (each if len(each) < 60 else f"{each[:40]}..." for each in spelled)
        return f"{self.how}({', '.join(shown)})"

    def __call__(self, content: bytes) -> bytes:
        change: Callable[..., bytes] = globals()[self.how]
        return change(content, *self.arguments)


def flip(content: bytes, place: int, bit: int) -> bytes:
    """Flip one bit."""
    if not content:
        return content
    place %= len(content)
    return content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :]


def put(content: bytes, place: int, new: bytes) -> bytes:
    """Insert these bytes."""
    place %= len(content) + 1
    return content[:place] + new + content[place:]


def cut(content: bytes, place: int, length: int) -> bytes:
    """Take some bytes out."""
    place %= len(content) + 1
    return content[:place] + content[place + length :]


def end(content: bytes, place: int) -> bytes:
    """Take the end away."""
    return content[: place % (len(content) + 1)]


def word(content: bytes, number: int, new: str) -> bytes:
    """Replace one word or number of a text."""
    found = list(WORD.finditer(content))
    if not found:
        return content
    one = found[number % len(found)]
    return content[: one.start()] + new.encode() + content[one.end() :]


def lines(content: bytes, first: int, second: int, times: int) -> bytes:
    """Put copies of one line behind another one; without copies, take the line away."""
    parts = content.splitlines(keepends=True)
    if not parts:
        return content
    line = parts[first % len(parts)]
    if not times:
        del parts[first % len(parts)]
    else:
        place = second % (len(parts) + 1)
        parts[place:place] = [line] * times
    return b"".join(parts)


def recode(content: bytes, encoding: str) -> bytes:
    """Write the text in another encoding."""
    return content.decode("latin-1").encode(encoding, "replace")


def ends(content: bytes, new: bytes) -> bytes:
    """Write another end of line."""
    return content.replace(b"\n", new)


def deep(content: bytes, place: int, opening: bytes, depth: int) -> bytes:
    """Open many brackets."""
    return put(content, place, opening * depth)


changes = st.one_of(
    st.builds(Changed, st.just("word"), places, words),
    st.builds(Changed, st.just("flip"), places, st.integers(0, 7)),
    st.builds(Changed, st.just("put"), places, st.binary(min_size=1, max_size=8)),
    st.builds(Changed, st.just("cut"), places, st.integers(1, 64)),
    st.builds(Changed, st.just("end"), places),
    st.builds(Changed, st.just("lines"), places, places, st.integers(0, 3)),
    st.builds(Changed, st.just("recode"), st.sampled_from(ENCODINGS)),
    st.builds(Changed, st.just("ends"), st.sampled_from([b"\r\n", b"\r", b"\0", b"\n\n"])),
    st.builds(
        Changed,
        st.just("deep"),
        places,
        st.sampled_from([b"[", b"{", b'{"a":', b"(", b'"', b"[[[,", b"  "]),
        st.sampled_from([1, 2, 100, 5000, 100_000]),
    ),
)


def damage(least: int = 0) -> st.SearchStrategy[list[Changed]]:
    """Up to six changes."""
    return st.lists(changes, min_size=least, max_size=6)


def damaged(content: bytes, done: list[Changed]) -> bytes:
    """The content after these changes."""
    for change in done:
        content = change(content)
    return content


# What a JSON text can hold, with the values of VALUES among it.
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | st.just("text"), inner, max_size=4)
    ),
    max_leaves=8,
)


def refused(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Whether a call refuses with one line for a person, and what it returns if not."""
    try:
        return False, call()
    except UserError as error:
        told(str(error))
        return True, None


def told(message: str) -> None:
    """A message has one line, which is not too long to read."""
    assert message and "\n" not in message, f"not one line: {message!r:.500}"
    assert len(message) < LONGEST, f"{len(message)} characters: {message:.500}"


def ran(code: int, said: str) -> bool:
    """Whether a command did its work. A refusal is the code 2 and one line on stderr."""
    if code == 2:
        told(said.strip().splitlines()[-1])
    assert code in (0, 2) and "Traceback" not in said, f"code {code}: {said[-2000:]}"
    return code == 0


def fuzz(
    request: pytest.FixtureRequest,
    check: Callable[..., None],
    *strategies: st.SearchStrategy[Any],
    examples: int = EXAMPLES,
) -> None:
    """Try `check` on examples of the strategies: a few, or as many as there is time for."""
    seconds = request.config.getoption("--fuzz-seconds")
    profile = settings(
        max_examples=examples, derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    if not seconds:
        profile(given(*strategies)(check))()
        return
    targets = [
        each for each in request.session.items if "try_" in getattr(each, "fixturenames", ())
    ]
    longer = settings(profile, max_examples=ROUNDS * examples, derandomize=False)
    until = time.monotonic() + seconds / len(targets)
    while time.monotonic() < until:
        longer(given(*strategies)(check))()
