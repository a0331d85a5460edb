"""The nesting depth of JSON from outside, judged before it is parsed.

A parser's own bound is what its stack has left: Python's differs by its version and by the caller.
"""

import re

_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Also one without an end, so that the time is linear for any text."""
_BRACKET = re.compile(r"[\[\]{}]")


def is_nested_over(text: str, levels: int) -> bool:
    """Return whether objects and arrays in a text, also in malformed JSON, are nested over `levels` deep."""
    if text.count("{") + text.count("[") <= levels:
        return False
    depth = 0
    for bracket in _BRACKET.findall(_STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > levels:
            return True
    return False
