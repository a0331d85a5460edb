"""Lines of JSON in bulk: those with given members, in their order and with plain values, by compiled loops.

A plain value is text, a number, true, false or null. Every other line, valid or not, is left to a parser.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from pipelines.contract.buffers import bounds_and_bytes, byte_at
from pipelines.contract.json_grammar import OPENING_BRACE, QUOTE, SMALL_N
from pipelines.contract.json_scan import NAME_END, NAME_START, VALUE_END, VALUE_START, locate_members
from pipelines.contract.json_text import read_strings

_OPENING_BRACKET, _SMALL_T, _SMALL_F = b"[tf"


@dataclass(frozen=True, slots=True)
class PlainLines:
    """Lines with the same members, and which lines are not such ones."""

    data: np.ndarray
    """The bytes of all lines (uint8)."""
    spans: np.ndarray
    """Where values begin and end in `data`, int32 of shape (2, members, lines); 0 in odd lines."""
    is_odd: np.ndarray
    """Lines of another shape, bool of shape (lines,)."""

    def text(self, member: int) -> pa.StringArray:
        """Return the values of a member: numbers as written, null and odd lines as empty text."""
        starts, ends = self.spans[:, member]
        first = self._first_bytes(member)
        is_text = first == QUOTE
        starts, ends = starts + is_text, np.where(first == SMALL_N, starts, ends - is_text)
        return read_strings(self.data, starts, ends)

    def is_boolean(self, member: int) -> np.ndarray:
        """Return whether the value of a member is true or false, bool of shape (lines,)."""
        first = self._first_bytes(member)
        return (first == _SMALL_T) | (first == _SMALL_F)

    def _first_bytes(self, member: int) -> np.ndarray:
        return np.where(self.is_odd, 0, self.data[self.spans[0, member]])


def scan_lines(lines: pa.StringArray, members: Sequence[str]) -> PlainLines:
    """Return where the values of members are in lines, which have no nulls."""
    bounds, data = bounds_and_bytes(lines)
    found = locate_members(data, bounds)
    names, name_bytes = bounds_and_bytes(pa.array(list(map(_written, members)), pa.string()))
    spans = np.zeros((2, len(members), len(lines)), np.int32)
    is_odd = found.faults != 0
    _match(data, found.spans, found.bounds, names, name_bytes, spans, is_odd)
    return PlainLines(data, spans, is_odd)


def _written(name: str) -> str:
    """Return a name as JSON without its quotes."""
    return json.dumps(name, ensure_ascii=False)[1:-1]


@njit(cache=True, nogil=True)
def _match(data, members, bounds, names, name_bytes, spans, is_odd):
    """Set the spans of the values of each line with the members `names`; the other lines are odd."""
    count = len(names) - 1
    for row in range(len(is_odd)):
        first = bounds[row]
        is_odd[row] |= bounds[row + 1] - first != count
        number = 0
        while number < count and not is_odd[row]:
            is_odd[row] = not _is_plain(data, members, first + number, name_bytes, names[number], names[number + 1])
            number += 1
        if not is_odd[row]:
            for number in range(count):
                spans[0, number, row] = members[VALUE_START, first + number]
                spans[1, number, row] = members[VALUE_END, first + number]


@njit(inline="always")
def _is_plain(data, members, member, name_bytes, start, end):
    """Return whether a member has the name name_bytes[start:end] and a plain value."""
    at, byte = members[NAME_START, member], byte_at(data, members[VALUE_START, member])
    same = members[NAME_END, member] - at == end - start
    place = 0
    while same and place < end - start:
        same = byte_at(data, at + place) == byte_at(name_bytes, start + place)
        place += 1
    return same and byte != OPENING_BRACE and byte != _OPENING_BRACKET  # noqa: PLR1714 - compiled
