"""Compiled loops that locate the members of JSON objects (a name and a value each), and check their syntax.

Positions are indices into `data` (uint8), the bytes of all values. The arrays that a loop fills stay in that loop:
passing them on costs as much as scanning a value.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

from typing import NamedTuple

import numpy as np
from numba import njit

from pipelines.contract.buffers import borrow, byte_at, has_at
from pipelines.contract.json_grammar import (
    CLOSING_BRACE,
    MAX_JSON_DEPTH,
    NOT_OBJECT,
    OPENING_BRACE,
    QUOTE,
    SMALL_N,
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
from pipelines.contract.json_text import equals
from pipelines.contract.wire import is_utf8

NAME_START, NAME_END, VALUE_START, VALUE_END = range(4)
"""The rows of `Members.spans`."""
FIELDS = ("event_id", "user_id", "action_type", "timestamp", "metadata")
_LONGEST_NAME = max(map(len, FIELDS))


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

    def column(self, number: int) -> np.ndarray:
        """Return one of the four positions of each member."""
        return self.spans[number, : self.bounds[-1]]


class Fields(NamedTuple):
    """The members of events by field, in the order of FIELDS."""

    spans: np.ndarray
    """int32 of shape (2, 5, events): where each value starts and ends; 0 if it is absent."""
    kinds: np.ndarray
    """uint8 of shape (5, events): the first byte of each value; SMALL_N, as of a null, if it is absent."""
    repeated: np.ndarray
    """bool of shape (events,): whether a field occurs twice."""
    unknown: np.ndarray
    """bool of shape (members,): whether a member is none of the fields."""


def locate_members(data: np.ndarray, starts: np.ndarray, ends: np.ndarray, outer: int) -> Members:
    """Locate the members of the objects data[starts[row]:ends[row]] (int32), within `outer` open objects and arrays."""
    room = _count_colons(data, starts, ends)  # for as many as there can be; what is not used takes no memory
    members = Members(
        np.empty((4, room), np.int32), np.zeros(len(starts) + 1, np.int32), np.zeros(len(starts), np.int64)
    )
    _locate(data, starts, ends, outer, np.zeros(MAX_JSON_DEPTH + 1, np.uint8), *members)
    return members


def assign_fields(data: np.ndarray, members: Members) -> Fields:
    """Find the fields of events among their members."""
    shape = (len(FIELDS), len(members.faults))
    kinds, unknown = np.full(shape, SMALL_N, np.uint8), np.zeros(members.bounds[-1], bool)
    fields = Fields(np.zeros((2, *shape), np.int32), kinds, np.zeros(shape[1], bool), unknown)
    _assign(data, members.spans, members.bounds, *fields)
    return fields


@njit(cache=True, nogil=True)
def _count_colons(data, starts, ends):
    count = 0
    for row in range(len(starts)):
        for at in range(starts[row], ends[row]):
            count += byte_at(data, at) == ord(":")
    return count


@njit(cache=True, nogil=True)
def _locate(data, starts, ends, outer, closings, spans, bounds, faults):
    data, closings = borrow(data), borrow(closings)
    member = 0
    for row in range(len(starts)):
        start, end = np.int64(starts[row]), np.int64(ends[row])
        at = _enter(data, start, end, closings)
        while at >= 0 and byte_at(data, at) != CLOSING_BRACE:
            name_end = skip_name(data, at, end)
            value = skip_colon(data, name_end, end)
            after = _skip_member_value(data, value, end, outer + 1, closings)
            if after >= 0:
                spans[NAME_START, member], spans[NAME_END, member] = at + 1, name_end - 1
                spans[VALUE_START, member], spans[VALUE_END, member] = value, after
                member += 1
            at = next_item(data, after, end, CLOSING_BRACE)
        bounds[row + 1] = member
        faults[row] = shift_fault(_leave(data, at + 1 if at >= 0 else at, end), start)


@njit(inline="always")
def _skip_member_value(data, at, end, outer, closings):
    """Skip a value; pass a fault on. Most are strings."""
    if at < 0:
        return at
    if at < end and byte_at(data, at) == QUOTE:
        return skip_string(data, at + 1, end)
    return skip_value(data, at, end, outer, closings)


@njit
def _enter(data, start, end, closings):
    """Return the position of the first member of the object in data[start:end], or of its closing brace, or a fault."""
    if not is_utf8(data, start, end):
        return fault_at(start, UTF8)
    at = skip_space(data, start, end)
    if at < end and byte_at(data, at) == OPENING_BRACE:
        return first_item(data, at, end)
    fault = _leave(data, skip_value(data, at, end, 0, closings), end)
    return fault or fault_at(at, NOT_OBJECT)


@njit
def _leave(data, at, end):
    """Return the fault at `at`, or of what follows, or 0."""
    if at < 0:
        return at
    at = skip_space(data, at, end)
    return fault_at(at, TRAILING) if at < end else 0


@njit(cache=True, nogil=True)
def _assign(data, members, bounds, spans, kinds, repeated, unknown):
    data = borrow(data)
    for row in range(len(repeated)):
        for member in range(bounds[row], bounds[row + 1]):
            start, end = members[VALUE_START, member], members[VALUE_END, member]
            field = _find_field(data, np.int64(members[NAME_START, member]), np.int64(members[NAME_END, member]))
            unknown[member] = field == len(kinds)
            if field < len(kinds):
                repeated[row] |= spans[1, field, row] > 0
                spans[0, field, row], spans[1, field, row] = start, end
                kinds[field, row] = byte_at(data, start)


@njit
def _find_field(data, at, end):
    """Return the index of a name in FIELDS; of another, their number. An escape makes each longer than all of them."""
    long, number = end - at > _LONGEST_NAME, 0
    for name in (b"event_id", b"user_id", b"action_type", b"timestamp", b"metadata"):
        if equals(data, at, end, name) if long else end - at == len(name) and has_at(data, at, name):
            break
        number += 1
    return number
