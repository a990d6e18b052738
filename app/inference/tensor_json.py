"""Reads the JSON of an inference request without building a Python object for each number.

Design notes:
- A scanner finds ``inputs[].data`` and reads its numbers in pieces, so the memory is that of the tensors.
- What remains is a short document, which the standard parser reads. Its length and depth are limited.
- A number is what `json.loads` accepts, except NaN and infinity. Nested lists must be rectangular.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.sdk.errors import InvalidRequest, MalformedJson

MAX_TEXT_BYTES = 64 * 1024  # of the JSON outside the data
MAX_NESTING = 8

_PIECE = 1024 * 1024
_TOKEN = re.compile(rb'\s*+(?:("(?:[^"\\]|\\.)*+")|([\[\]{}:,])|([^\s"\[\]{}:,]++))', re.DOTALL)
_DATA = re.compile(rb"[\[\]0-9eE+\-., \t\r\n]*+")
_OPENING = re.compile(rb"[\[ \t\r\n]*+")
_NO_BRACKETS = bytes.maketrans(b"[]", b"  ")
_PATH = ("{", "[", "{")  # containers around the data of a tensor


def read(content: bytes | bytearray, end: int, most: int, rule: str) -> tuple[Any, list[NDArray[np.float32]]]:
    """Read one JSON document.

    Args:
        content: Bytes that begin with the document.
        end: Length of the document.
        most: Largest number of values of one tensor.
        rule: Message of the error for more values.

    Returns:
        The document with an empty list in place of each ``inputs[].data``, and the values in their order, flattened.

    Raises:
        MalformedJson: The document is not JSON, or its part outside the data is too long or too deep.
        InvalidRequest: The data of a tensor are not finite numbers, not rectangular, or more than ``most``.
    """
    text, arrays = _Scanner(content, end, most, rule).scan()
    try:
        return json.loads(text, object_pairs_hook=_object), arrays
    except (ValueError, RecursionError):
        raise _malformed() from None


class _Scanner:
    def __init__(self, content: bytes | bytearray, end: int, most: int, rule: str) -> None:
        self._content, self._end, self._most, self._rule = content, end, most, rule
        self._containers: list[str] = []
        self._keys: list[bytes] = []
        self._arrays: list[NDArray[np.float32]] = []

    def scan(self) -> tuple[bytes, list[NDArray[np.float32]]]:
        """Return the text outside the data, and the data."""
        position = start = skipped = 0
        text, string, previous = [], b"", ""
        while token := _TOKEN.match(self._content, position, self._end):
            position = token.end()
            if position - skipped > MAX_TEXT_BYTES:
                break
            mark = (token[2] or b"").decode()
            if mark == "[" and previous == ":" and self._at_data():
                text += [self._content[start : position - 1], b"[]"]
                values, start = _read_numbers(self._content, position - 1, self._end, self._most, self._rule)
                skipped += start - position
                position = start
                self._arrays.append(values)
                mark = "]"
            elif mark:
                self._step(mark, string)
            string, previous = token[1] or b"", mark
        if self._end - skipped > MAX_TEXT_BYTES:
            raise MalformedJson(f"The JSON outside the data may have at most {MAX_TEXT_BYTES // 1024} KiB.")
        text.append(self._content[start : self._end])
        return b"".join(text), self._arrays

    def _step(self, mark: str, string: bytes) -> None:
        if mark in "[{":
            self._containers.append(mark)
            self._keys.append(b"")
            if len(self._containers) > MAX_NESTING:
                raise MalformedJson(f"The JSON outside the data may have at most {MAX_NESTING} levels of nesting.")
        elif mark in "]}":
            if not self._containers:
                raise _malformed()
            self._containers.pop()
            self._keys.pop()
        elif mark == ":" and self._containers:
            self._keys[-1] = string

    def _at_data(self) -> bool:
        return tuple(self._containers) == _PATH and _name(self._keys[0]) == "inputs" and _name(self._keys[2]) == "data"


def _read_numbers(
    content: bytes | bytearray, start: int, end: int, most: int, rule: str
) -> tuple[NDArray[np.float32], int]:
    """Read the list of numbers that begins at ``start``; return its values, flattened, and the position after it."""
    stop = _end_of_data(content, start, end)
    opening = content[start : _matched(_OPENING, content, start, end)].count(b"[")
    rows = _Rows(opening)
    parts: list[NDArray[np.float32]] = []
    count, position = 0, start
    while position < stop:
        cut = stop if stop - position <= _PIECE else content.rfind(b",", position, position + _PIECE) + 1
        piece = content[position:cut]
        if cut <= position or (position > start and piece.lstrip()[:1] == b"]"):
            raise _not_numbers()
        rows.check(piece)
        values = _values(piece if cut == stop else piece[:-1])
        count += len(values)
        if count > most:
            raise InvalidRequest(rule)
        parts.append(values)
        position = cut
    rows.check_total(count)
    return np.concatenate(parts), stop


def _end_of_data(content: bytes | bytearray, start: int, end: int) -> int:
    """Return the position after the list that begins at ``start`` and consists of numbers and lists."""
    limit = _matched(_DATA, content, start, end)
    depth, position = 0, start
    while position < limit:
        codes = np.frombuffer(content, np.uint8, min(_PIECE, limit - position), position)
        depths = depth + np.cumsum((codes == ord("[")).astype(np.int32) - (codes == ord("]")), dtype=np.int32)
        closed = np.flatnonzero(depths == 0)
        if closed.size:
            return position + int(closed[0]) + 1
        depth = int(depths[-1])
        position += codes.size
    raise _malformed() if limit == end else _not_numbers()


class _Rows:
    """Checks that nested lists are rectangular.

    Args:
        depth: Levels of lists around each number.
    """

    def __init__(self, depth: int) -> None:
        if depth > MAX_NESTING:
            raise _not_numbers()
        self._depth = depth
        self._level = 0
        self._commas = 0
        self._closed = [0] * depth
        self._values = [0] * depth  # values of one list of each level, known after the first one

    def check(self, piece: bytes | bytearray) -> None:
        """Check the next piece; it ends after a comma or after the list."""
        codes = np.frombuffer(piece, np.uint8)
        closing = codes == ord("]")
        levels = self._level + np.cumsum((codes == ord("[")).astype(np.int32) - closing, dtype=np.int32)
        if int(levels.max()) > self._depth:
            raise _not_numbers()
        commas = np.cumsum(codes == ord(","), dtype=np.int64)
        places = np.flatnonzero(closing)
        values, closed = self._commas + commas[places] + 1, levels[places]
        for level in range(self._depth):
            ends = values[closed == level]
            if not ends.size:
                continue
            self._values[level] = self._values[level] or int(ends[0])
            last = self._closed[level] + ends.size
            expected = self._values[level] * np.arange(self._closed[level] + 1, last + 1)
            if not np.array_equal(ends, expected):
                raise _not_numbers()
            self._closed[level] = last
        self._level, self._commas = int(levels[-1]), self._commas + int(commas[-1])

    def check_total(self, count: int) -> None:
        """Check that every value is in the innermost lists."""
        if count and any(closed * values != count for closed, values in zip(self._closed, self._values, strict=True)):
            raise _not_numbers()


def _values(piece: bytes | bytearray) -> NDArray[np.float32]:
    try:
        numbers = json.loads(b"[" + piece.translate(_NO_BRACKETS) + b"]")
        with np.errstate(over="ignore"):  # an infinite value is refused with its tensor
            return np.asarray(numbers, np.float64).astype(np.float32)
    except (ValueError, OverflowError):
        raise _not_numbers() from None


def _not_numbers() -> InvalidRequest:
    """Return the error for data that are not a rectangular list of finite numbers."""
    return InvalidRequest("The data do not match the datatype: every value must be a finite number.")


def _malformed() -> MalformedJson:
    return MalformedJson("The inference request is not valid JSON.")


def _matched(pattern: re.Pattern[bytes], content: bytes | bytearray, start: int, end: int) -> int:
    match = pattern.match(content, start, end)
    return match.end() if match else start


def _name(key: bytes) -> str:
    try:
        return str(json.loads(key))
    except ValueError:
        return ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    built = dict(pairs)
    if len(built) < len(pairs):
        raise ValueError
    return built
