"""Reads the values of a JSON text one after the other, in bounded memory.

    for line, value in json_values.Values(file, "a.json"): ...

An array gives its elements, and a text may hold several values. So an array of documents is read
like JSON lines, and so are objects that are laid out over several lines. A file of any size is
read, but one value must fit MOST characters. Numbers are not kept exactly: only text is used.
"""

import codecs
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from data import filetype
from errors import UserError

MOST = 16 << 20  # characters of a value
READ_BYTES = 1 << 20
# A long integer is no error in JSON, but Python refuses to make an int of more than 4300 digits.
DECODER = json.JSONDecoder(parse_int=float)
_SPACE = re.compile("[ \t\r\n\ufeff]*")


class Values:
    """The values of a file. Raises UserError, which names file and line, if it is not JSON."""

    def __init__(self, file: io.BufferedReader, name: str, layers: Sequence[str] = ()) -> None:
        self._file, self._name, self._layers = file, name, layers
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogatepass")
        self._text, self._at, self._line = "", 0, 1  # the line of `at`
        self.in_array = False  # whether the last value is an element

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield each value and the number of the line in which it begins."""
        while sign := self._sign():
            self.in_array = sign == "["
            if not self.in_array:
                yield self._value()
                continue
            self._move(self._at + 1)
            if self._sign() == "]":
                self._move(self._at + 1)
                continue
            sign = ","
            while sign == ",":
                self._sign()
                yield self._value()
                sign = self._sign()
                if sign not in ("]", ","):
                    raise self._error("Expecting ',' or ']'", self._at)
                self._move(self._at + 1)

    def _sign(self) -> str:
        """Go to the next character that is not white space, and return it; "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match
            self._move(match.end())
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def _value(self) -> tuple[int, Any]:
        """The value that begins here; go to its end."""
        while True:
            try:
                value, end = DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Errors of a value that is only not read to its end yet.
                open_end = error.msg.startswith("Unterminated") or error.pos + 16 > len(self._text)
                if open_end and self._more():
                    continue
                reason = error.msg.removesuffix(" starting at")
                raise self._error(reason, error.pos) from error
            except RecursionError as error:
                raise self._error("nested too deeply to be read", self._at) from error
            line = self._line
            self._move(end)
            return line, value

    def _move(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _more(self) -> bool:
        """Read on; False at the end. Forgets what is done with."""
        pending = self._text[self._at :]
        if len(pending) > MOST:
            raise UserError(
                f"{self._name} line {self._line}: a single JSON value of more than {MOST >> 20} "
                "MiB, the limit for memory; make JSON lines of it, for instance: "
                "jq -c '.data[]' FILE | python -m data.text OUT -"
            )
        content = self._file.read(max(READ_BYTES, len(pending)))
        try:
            self._text = pending + self._decoder.decode(content, final=not content)
        except UnicodeDecodeError as error:
            line = self._line + pending.count("\n") + error.object.count(b"\n", 0, error.start)
            remedy = filetype.encoding_remedy(self._name, self._layers, error.object, error.start)
            raise UserError(
                f"{self._name} line {line} is not UTF-8: {error.reason}; {remedy}"
            ) from error
        self._at = 0
        return bool(content)

    def _error(self, reason: str, at: int) -> UserError:
        line = self._line + self._text.count("\n", self._at, at)
        return UserError(f"{self._name} line {line}: not JSON: {reason}; mend or delete it")
