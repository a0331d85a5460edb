"""The accepted JSON (RFC 8259) as compiled functions that skip its parts, and name the first error.

Parsers have different extensions (trailing commas, NaN, comments) and nesting depths. This module defines the accepted
language: strict JSON in UTF-8, without a byte order mark and lone surrogates, nested at most MAX_JSON_DEPTH levels
deep. Numbers may have any size, since none is parsed. `pipelines/operate/audit_values.py` implements the same rules
independently, and `tests/operate/test_audit_values.py` compares both.

Each function takes `data` (uint8, the bytes of all values), a position `at`, and the `end` of the value, beyond which
it does not read. It returns the position after the part; a negative one is a fault (`fault_at`). None is cached: LLVM
inlines only functions that are compiled with their callers, and these are in the callers' caches.
"""
# pyright: reportMissingParameterType=false
# (numba infers the types of a compiled loop)

from numba import int64, njit, uint64

from pipelines.contract.buffers import byte_at, has_at, word_at

MAX_JSON_DEPTH = 512
"""Nested objects and arrays, including the object of the event."""

_MESSAGES = (
    "",
    "it is not UTF-8",
    "it is not a JSON object: it ends too early",
    "it is not a JSON object: data follows it",
    "it is not a JSON object: a value is expected",
    "it is not a JSON object: the name of a field is expected",
    "it is not a JSON object: a colon is expected",
    "it is not a JSON object: a comma or the end of an object or array is expected",
    "it is not a JSON object: a comma stands before the end of an object or array",
    "it is not a JSON object: a string contains a control character",
    "it is not a JSON object: a string contains an invalid escape",
    "it is not a JSON object: a string contains a lone surrogate",
    f"it is nested over {MAX_JSON_DEPTH} levels deep",
    "it is not a JSON object: it is another value",
)
UTF8, END, TRAILING, VALUE, NAME, COLON, SEPARATOR, COMMA, CONTROL, ESCAPE, SURROGATE, DEPTH, NOT_OBJECT = range(1, 14)
_FAULTS = len(_MESSAGES)
QUOTE, BACKSLASH, OPENING_BRACE, CLOSING_BRACE, SMALL_N, SMALL_U = b'"\\{}nu'
_COMMA, _COLON, _MINUS, _PLUS, _POINT, _ZERO, _NINE, _OPENING_BRACKET = b",:-+.09["
_SMALL_A, _SMALL_E, _SMALL_F = b"aef"
_LOWER = 0x20
"""The bit that turns a capital letter into a small one."""
_SPACE, _TAB, _LINE_FEED, _CARRIAGE_RETURN = b" \t\n\r"
_EACH = uint64(0x0101010101010101)
"""Times a byte: this byte eight times."""


@njit(inline="always")
def fault_at(at, fault):
    """Return a fault at a position as one negative number."""
    return -(at * _FAULTS + fault)


@njit(inline="always")
def shift_fault(found, start):
    """Return a result with the position of a fault counted from `start`."""
    return found + start * _FAULTS if found < 0 else found


def describe_fault(found: int) -> str:
    """Return what a fault is, and where."""
    position, fault = divmod(-found, _FAULTS)
    return f"{_MESSAGES[fault]}, at byte {position}"


@njit(inline="always")
def skip_space(data, at, end):
    """Skip white space; there may be none."""
    while at < end and _is_space(byte_at(data, at)):
        at += 1
    return at


@njit(inline="always")
def _is_space(byte):
    return byte == _SPACE or byte == _LINE_FEED or byte == _CARRIAGE_RETURN or byte == _TAB  # noqa: PLR1714 - compiled


@njit
def skip_value(data, at, end, outer, closings):
    """Skip a value, and white space before it, within `outer` open objects and arrays.

    `closings` (uint8) is scratch space for the closing bracket of each open level, of shape (MAX_JSON_DEPTH + 1,).
    """
    depth = outer
    while at >= 0:
        at = skip_space(data, at, end)
        if at < end and (byte_at(data, at) == OPENING_BRACE or byte_at(data, at) == _OPENING_BRACKET):
            depth += 1
            if depth > MAX_JSON_DEPTH:
                return fault_at(at, DEPTH)
            closings[depth] = byte_at(data, at) + 2
            at = first_item(data, at, end)
        else:
            at = _skip_scalar(data, at, end)
            if depth > outer:
                at = next_item(data, at, end, closings[depth])
        at, depth = _close(data, at, end, depth, outer, closings)
        if depth == outer:
            return at
        if at >= 0 and closings[depth] == CLOSING_BRACE:
            at = skip_colon(data, skip_name(data, at, end), end)
    return at


@njit(inline="always")
def _close(data, at, end, depth, outer, closings):
    """Leave each level that closes at `at`; return the position of the next item, or after the value, and the depth."""
    while at >= 0 and depth > outer and byte_at(data, at) == closings[depth]:
        depth, at = depth - 1, at + 1
        if depth > outer:
            at = next_item(data, at, end, closings[depth])
    return at, depth


@njit(inline="always")
def first_item(data, at, end):
    """Return the position of the first item of the object or array that opens at `at`, or of its closing bracket."""
    at = skip_space(data, at + 1, end)
    return at if at < end else fault_at(at, END)


@njit
def next_item(data, at, end, closing):
    """Return the position of the item after the one that ended before `at`, or of the `closing` bracket.

    Passes a fault on.
    """
    if at < 0:
        return at
    at = skip_space(data, at, end)
    if at >= end:
        return fault_at(at, END)
    if byte_at(data, at) == closing:
        return at
    if byte_at(data, at) != _COMMA:
        return fault_at(at, SEPARATOR)
    comma, at = at, skip_space(data, at + 1, end)
    if at >= end:
        return fault_at(at, END)
    return fault_at(comma, COMMA) if byte_at(data, at) == closing else at


@njit(inline="always")
def skip_name(data, at, end):
    """Skip the name of a field, which begins at `at`, before `end`."""
    return skip_string(data, at + 1, end) if byte_at(data, at) == QUOTE else fault_at(at, NAME)


@njit
def skip_colon(data, at, end):
    """Skip a colon, and white space around it; pass a fault on."""
    if at < 0:
        return at
    at = skip_space(data, at, end)
    if at >= end:
        return fault_at(at, END)
    return skip_space(data, at + 1, end) if byte_at(data, at) == _COLON else fault_at(at, COLON)


@njit
def _skip_scalar(data, at, end):
    """Skip a string, a number or a literal."""
    if at >= end:
        return fault_at(at, END)
    byte = byte_at(data, at)
    if byte == QUOTE:
        return skip_string(data, at + 1, end)
    if byte == _MINUS or _ZERO <= byte <= _NINE:
        return _skip_number(data, at, end)
    for word in (b"true", b"false", b"null"):
        if at + len(word) <= end and has_at(data, at, word):
            return at + len(word)
    return fault_at(at, VALUE)


@njit
def _skip_number(data, start, end):
    at = start + (byte_at(data, start) == _MINUS)
    at = at + 1 if at < end and byte_at(data, at) == _ZERO else _skip_digits(data, at, end)
    if 0 <= at < end and byte_at(data, at) == _POINT:
        at = _skip_digits(data, at + 1, end)
    if 0 <= at < end and byte_at(data, at) | _LOWER == _SMALL_E:
        signed = at + 1 < end and (byte_at(data, at + 1) == _PLUS or byte_at(data, at + 1) == _MINUS)
        at = _skip_digits(data, at + 1 + signed, end)
    return at if at >= 0 else fault_at(start, VALUE)


@njit
def _skip_digits(data, first, end):
    """Return the position after the digits, -1 if there are none."""
    at = first
    while at < end and _ZERO <= byte_at(data, at) <= _NINE:
        at += 1
    return at if at > first else -1


@njit
def skip_string(data, at, end):
    """Skip a string whose first character is at `at`, and its closing quote."""
    while at < end:
        if at + 8 <= end:
            found = _special(word_at(data, at))
            at += _first_byte(found) if found else 8
            if not found:
                continue
        byte = byte_at(data, at)
        if byte == QUOTE:
            return at + 1
        if byte < _SPACE:
            return fault_at(at, CONTROL)
        at = at + 1 if byte != BACKSLASH else _skip_escape(data, at, end)
        if at < 0:
            return at
    return fault_at(at, END)


@njit(inline="always")
def _special(word):
    """Return a word that has the high bit of the first of eight bytes that ends or escapes text; 0 if none does.

    That is a control character, a quote or a backslash. High bits of the bytes after it are undefined.
    """
    quotes, backslashes = word ^ _EACH * uint64(QUOTE), word ^ _EACH * uint64(BACKSLASH)
    found = (word - _EACH * uint64(_SPACE)) & ~word
    found |= ((quotes - _EACH) & ~quotes) | ((backslashes - _EACH) & ~backslashes)
    return found & _EACH * uint64(0x80)


@njit(inline="always")
def _first_byte(found):
    """Return the number of the first byte with a high bit: the product moves its digit to the top."""
    lowest = (found & (~found + uint64(1))) >> uint64(7)
    return int64((lowest * uint64(0x0001020304050607)) >> uint64(56))


@njit
def _skip_escape(data, at, end):
    """Skip the escape of one character; that of a surrogate pair consists of two."""
    if at + 1 >= end:
        return fault_at(at, END)
    if byte_at(data, at + 1) == SMALL_U:
        return _skip_code_point(data, at, end)
    for known in b'"\\/bfnrt':
        if byte_at(data, at + 1) == known:
            return at + 2
    return fault_at(at, ESCAPE)


@njit
def _skip_code_point(data, at, end):
    """Skip the escape of a code point in hexadecimal digits."""
    first = hexadecimal(data, at + 2, end)
    if first < 0:
        return fault_at(at, ESCAPE)
    if not 0xD800 <= first <= 0xDFFF:
        return at + 6
    if first >= 0xDC00 or at + 7 >= end or byte_at(data, at + 6) != BACKSLASH or byte_at(data, at + 7) != SMALL_U:
        return fault_at(at, SURROGATE)
    return at + 12 if 0xDC00 <= hexadecimal(data, at + 8, end) <= 0xDFFF else fault_at(at, SURROGATE)


@njit
def hexadecimal(data, at, end):
    """Return the value of four hexadecimal digits, -1 if they are not."""
    if at + 4 > end:
        return -1
    number = 0
    for index in range(at, at + 4):
        byte = byte_at(data, index)
        if _ZERO <= byte <= _NINE:
            digit = byte - _ZERO
        elif _SMALL_A <= byte | _LOWER <= _SMALL_F:
            digit = (byte | _LOWER) - _SMALL_A + 10
        else:
            return -1
        number = number * 16 + digit
    return number
