"""Compiled loops that locate the members of JSON objects (a name and a value each), and check their syntax.

Positions are indices into `data` (uint8), the bytes of all values. The arrays that a loop fills stay in that loop:
passing them on costs as much as scanning a value.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

from typing import NamedTuple

import numpy as np
from numba import njit

from pipelines.contract.buffers import borrow, byte_at
from pipelines.contract.json_grammar import (
    CLOSING_BRACE,
    MAX_JSON_DEPTH,
    NOT_OBJECT,
    OPENING_BRACE,
    QUOTE,
    TRAILING,
    UTF8,
    fault_at,
    first_item,
    next_item,
    shift_fault,
    skip_colon,
    skip_name,
    skip_space,
    skip_string,
    skip_value,
)
from pipelines.contract.wire import is_utf8

NAME_START, NAME_END, VALUE_START, VALUE_END = range(4)
"""The rows of `Members.spans`."""


class Members(NamedTuple):
    """The members of objects."""

    spans: np.ndarray
    """int32 with a row each of NAME_START, NAME_END, VALUE_START and VALUE_END, and room for more members.

    Names are located without their quotes, and with their escapes; strings as values with both.
    """
    bounds: np.ndarray
    """int32 of shape (objects + 1,): where the members of each object begin; one with a fault may lack some."""
    faults: np.ndarray
    """int64 of shape (objects,): 0, or what `describe_fault` describes."""


def locate_members(data: np.ndarray, rows: np.ndarray) -> Members:
    """Locate the members of the objects data[rows[row]:rows[row + 1]] (`rows` is int32)."""
    room = count_colons(data, rows)  # for as many as there can be; what is not used takes no memory
    members = Members(np.empty((4, room), np.int32), np.zeros(len(rows), np.int32), np.zeros(len(rows) - 1, np.int64))
    _locate(data, rows, np.zeros(MAX_JSON_DEPTH + 1, np.uint8), *members)
    return members


@njit(cache=True, nogil=True)
def count_colons(data, rows):
    """Return how many colons are in data[rows[0]:rows[-1]]: no fewer than members."""
    count = 0
    for at in range(rows[0], rows[len(rows) - 1]):
        count += byte_at(data, at) == ord(":")
    return count


@njit(cache=True, nogil=True)
def _locate(data, rows, closings, spans, bounds, faults):
    data, closings = borrow(data), borrow(closings)
    member = 0
    for row in range(len(faults)):
        start, end = np.int64(rows[row]), np.int64(rows[row + 1])
        at = enter(data, start, end, closings)
        while at >= 0 and byte_at(data, at) != CLOSING_BRACE:
            name_end = skip_name(data, at, end)
            value = skip_colon(data, name_end, end)
            after = skip_member_value(data, value, end, 1, closings)
            if after >= 0:
                spans[NAME_START, member], spans[NAME_END, member] = at + 1, name_end - 1
                spans[VALUE_START, member], spans[VALUE_END, member] = value, after
                member += 1
            at = next_item(data, after, end, CLOSING_BRACE)
        bounds[row + 1] = member
        faults[row] = shift_fault(leave(data, at + 1 if at >= 0 else at, end), start)


@njit(inline="always")
def skip_member_value(data, at, end, outer, closings):
    """Skip a value; pass a fault on. Most are strings."""
    if at < 0:
        return at
    if at < end and byte_at(data, at) == QUOTE:
        return skip_string(data, at + 1, end)
    return skip_value(data, at, end, outer, closings)


@njit
def enter(data, start, end, closings):
    """Return the position of the first member of the object in data[start:end], or of its closing brace, or a fault."""
    if not is_utf8(data, start, end):
        return fault_at(start, UTF8)
    at = skip_space(data, start, end)
    if at < end and byte_at(data, at) == OPENING_BRACE:
        return first_item(data, at, end)
    fault = leave(data, skip_value(data, at, end, 0, closings), end)
    return fault or fault_at(at, NOT_OBJECT)


@njit
def leave(data, at, end):
    """Return the fault at `at`, or of what follows, or 0."""
    if at < 0:
        return at
    at = skip_space(data, at, end)
    return fault_at(at, TRAILING) if at < end else 0
