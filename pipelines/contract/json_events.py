"""A compiled loop that locates the fields and metadata of events in JSON, and checks syntax and types, in one pass.

Positions are indices into `data` (uint8), the bytes of all values. Strings are located without their quotes, and with
their escapes; (0, 0) stands for one that is absent or another value.
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
    OPENING_BRACE,
    QUOTE,
    SMALL_N,
    first_item,
    next_item,
    shift_fault,
    skip_colon,
    skip_name,
)
from pipelines.contract.json_scan import count_colons, enter, leave, skip_member_value
from pipelines.contract.json_text import equals

FIELDS = ("event_id", "user_id", "action_type", "timestamp")
"""The fields that are strings."""
PROBLEMS = (
    "it has a field twice",
    *(f"{field} is not a string" for field in FIELDS),
    "metadata is not an object of strings",
    "metadata has a key twice",
    "",
)
"""The problems of a value in valid JSON, in order of precedence; the last one is none."""
FIELD_TWICE, _NOT_A_STRING, _NOT_STRINGS, KEY_TWICE, NO_PROBLEM = (
    0,
    1,
    len(FIELDS) + 1,
    len(FIELDS) + 2,
    len(FIELDS) + 3,
)
KEYS, ITEMS, UNKNOWN = 0, 2, 4
"""The rows of `EventSpans.others` in which starts are; their ends are in the next one."""
_METADATA, _UNKNOWN = len(FIELDS), len(FIELDS) + 1
"""The numbers of fields that are not in FIELDS."""
_LONGEST_NAME = len("action_type")


class EventSpans(NamedTuple):
    """Where the parts of events are."""

    fields: np.ndarray
    """int32 of shape (2, 4, events): the start and the end of each of FIELDS."""
    others: np.ndarray
    """int32 with the starts and the ends of KEYS and ITEMS of metadata, and of the names of UNKNOWN fields."""
    bounds: np.ndarray
    """int32 of shape (2, events + 1): where those of each event begin in KEYS and ITEMS, and in UNKNOWN."""
    problems: np.ndarray
    """uint8 of shape (events,): the first problem of each event, an index into PROBLEMS; repeated names aside."""
    faults: np.ndarray
    """int64 of shape (events,): 0, or what `describe_fault` describes; the event may lack parts then."""

    def strings(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the starts and the ends of KEYS, ITEMS or UNKNOWN."""
        count = self.bounds[int(part == UNKNOWN), -1]
        return self.others[part, :count], self.others[part + 1, :count]


def locate_events(data: np.ndarray, rows: np.ndarray) -> EventSpans:
    """Locate the parts of the events data[rows[row]:rows[row + 1]] (`rows` is int32)."""
    count, room = len(rows) - 1, count_colons(data, rows)  # for as many as there can be; the rest takes no memory
    spans = EventSpans(
        fields=np.zeros((2, len(FIELDS), count), np.int32),
        others=np.empty((6, room), np.int32),
        bounds=np.zeros((2, count + 1), np.int32),
        problems=np.empty(count, np.uint8),
        faults=np.empty(count, np.int64),
    )
    _locate(data, rows, np.zeros(MAX_JSON_DEPTH + 1, np.uint8), *spans)
    return spans


@njit(cache=True, nogil=True)
def _locate(data, rows, closings, fields, others, bounds, problems, faults):
    data, closings, fields, others = borrow(data), borrow(closings), borrow(fields), borrow(others)
    entry, name = 0, 0
    for row in range(len(faults)):
        start, end, found, problem = np.int64(rows[row]), np.int64(rows[row + 1]), 0, NO_PROBLEM
        at = enter(data, start, end, closings)
        while at >= 0 and byte_at(data, at) != CLOSING_BRACE:
            name_end = skip_name(data, at, end)
            value = skip_colon(data, name_end, end)
            if value >= 0:
                field = _find_field(data, at + 1, name_end - 1)
                problem = min(problem, FIELD_TWICE if found >> field & 1 else NO_PROBLEM)
                found |= 1 << field if field != _UNKNOWN else 0
            else:
                field = _UNKNOWN
            if field == _METADATA and value < end and byte_at(data, value) == OPENING_BRACE:
                after, entry, are_strings = _locate_entries(data, value, end, closings, others, entry)
                problem = min(problem, NO_PROBLEM if are_strings else _NOT_STRINGS)
            else:
                after = skip_member_value(data, value, end, 1, closings)
                if after >= 0 and field == _UNKNOWN:
                    others[UNKNOWN, name], others[UNKNOWN + 1, name] = at + 1, name_end - 1
                    name += 1
                elif after >= 0 and byte_at(data, value) != SMALL_N:
                    if field != _METADATA and byte_at(data, value) == QUOTE:
                        fields[0, field, row], fields[1, field, row] = value + 1, after - 1
                    else:
                        problem = min(problem, _NOT_A_STRING + field)
            at = next_item(data, after, end, CLOSING_BRACE)
        bounds[0, row + 1], bounds[1, row + 1], problems[row] = entry, name, problem
        faults[row] = shift_fault(leave(data, at + 1 if at >= 0 else at, end), start)


@njit(inline="always")
def _locate_entries(data, at, end, closings, others, entry):
    """Locate the entries of the object at `at`, metadata, from number `entry` on.

    Return the position after it, or a fault, the number of the next entry, and whether all of them are strings.
    """
    are_strings = True
    at = first_item(data, at, end)
    while at >= 0 and byte_at(data, at) != CLOSING_BRACE:
        name_end = skip_name(data, at, end)
        value = skip_colon(data, name_end, end)
        after = skip_member_value(data, value, end, 2, closings)
        if after >= 0:
            others[KEYS, entry], others[KEYS + 1, entry] = at + 1, name_end - 1
            is_string = byte_at(data, value) == QUOTE
            others[ITEMS, entry], others[ITEMS + 1, entry] = (value + 1, after - 1) if is_string else (0, 0)
            are_strings &= is_string
            entry += 1
        at = next_item(data, after, end, CLOSING_BRACE)
    return at + 1 if at >= 0 else at, entry, are_strings


@njit(inline="always")
def _find_field(data, at, end):
    """Return the number of a field by its name. An escape makes each name longer than all of them."""
    long, number = end - at > _LONGEST_NAME, 0
    for name in (b"event_id", b"user_id", b"action_type", b"timestamp", b"metadata"):
        if equals(data, at, end, name) if long else end - at == len(name) and has_at(data, at, name):
            break
        number += 1
    return number
