"""Objects and arrays of JSON as text, with the numbers as written: Python's encoder would round them."""

import json
import re
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any, cast

from pipelines.boundary.nesting import is_nested_over

MAX_DEPTH = 100
_MAX_CHARS = 100
_FRACTION = re.compile(r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?")


class Number(str):
    """The text of a number."""

    __slots__ = ()


class UnclearError(ValueError):
    """JSON that is valid, but not read; the message continues "row 7 ..."."""


def parse_json(text: str) -> Any:
    """Return the value of JSON, its numbers as Number.

    Raises ValueError for what is not JSON; UnclearError, which is one, if it is nested over MAX_DEPTH levels, or if
    an object has a member twice: readers of JSON differ in which value they take.
    """
    if is_nested_over(text, MAX_DEPTH):
        raise UnclearError(f"is nested over {MAX_DEPTH} levels deep: flatten it")
    return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=Number, object_pairs_hook=_members)


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise UnclearError(
            f"has the member {twice[:_MAX_CHARS]!r} twice: remove one, since readers differ in which one counts"
        )
    return members


def to_json(value: Any) -> str:
    """Return what `parse_json` returned as JSON, with sorted members."""
    return _written(value, str)


def canonical_json(text: str) -> str:
    """Return JSON in one form: numbers by their value, members sorted and without null; other text as it is."""
    try:
        return _written(_without_nulls(parse_json(text)), _canonical_number)
    except ValueError:
        return text


def _written(value: Any, number: Callable[[Number], str]) -> str:
    match value:
        case Number():
            return number(value)
        case dict():
            members = cast("dict[str, Any]", value)
            return (
                f"{{{', '.join([f'{_quoted(name)}: {_written(members[name], number)}' for name in sorted(members)])}}}"
            )
        case list():
            return f"[{', '.join([_written(item, number) for item in cast('list[Any]', value)])}]"
        case _:
            return _quoted(value)


_quoted = json.JSONEncoder(ensure_ascii=False).encode


def _without_nulls(value: Any) -> Any:
    """Return a value without members that are null: a column of structs has all members in every row."""
    match value:
        case dict():
            members = cast("dict[str, Any]", value)
            return {name: _without_nulls(member) for name, member in members.items() if member is not None}
        case list():
            return [_without_nulls(item) for item in cast("list[Any]", value)]
        case _:
            return value


def _canonical_number(text: str) -> str:
    """Return a number without exponent and trailing zeros, as `canonicalize` writes one of a column."""
    if len(text) > _MAX_CHARS or not _FRACTION.fullmatch(text):
        return text
    plain = format(Decimal(text), "f")
    plain = plain.rstrip("0").rstrip(".") if "." in plain else plain
    return "0" if plain == "-0" else plain
