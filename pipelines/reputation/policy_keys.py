"""The keys of each table of a policy file, as the file writes them.

Owns the answer to a key in a wrong place; the tables and their keys are those of `policy/`.
"""

import types
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel

from pipelines.boundary.toml import did_you_mean
from pipelines.reputation.policy import Policy
from pipelines.reputation.policy.model import OWN_KEYS

_NAME, _ELEMENT = "NAME", "*"
_VERSION = ("versions", _ELEMENT)
_FIRST_EMISSION = ("emit", _ELEMENT)
_Place = tuple[str, ...]
_STEPS: dict[Any, _Place] = {dict: (_NAME,), tuple: (_ELEMENT,), Union: (), types.UnionType: ()}
"""What a type of several values adds to the place of a table."""


def misplaced(path: Sequence[str], *, has_versions: bool) -> str:
    """Return what is wrong with an unknown key: where it belongs, or which key of its table was meant.

    path: the key's location in a validated policy, from `versions` on and with the index of every array.
    has_versions: whether the file has an array of versions; its own tables are at the top level otherwise.
    """
    key, here = path[-1], _place(path[:-1])
    places = [place for place, keys in known_keys().items() if key in keys]
    if places:
        written = dict.fromkeys(_written(place, has_versions=has_versions) for place in places)
        return f"is not a key here: it belongs to {_joined(list(written))}"
    return f"is not a key here{did_you_mean(key, sorted(_keys_at(here, has_versions=has_versions))) or ': remove it'}"


@cache
def known_keys() -> dict[_Place, set[str]]:
    """Return the keys of every table of a policy file by the table's place.

    In a place, `NAME` stands for any name that the file chooses, and `*` for any element of an array.
    """
    return {
        place: {field.alias or name for name, field in table.model_fields.items()} for place, table in _tables(Policy)
    }


def _tables(table: type[BaseModel], place: _Place = ()) -> Iterator[tuple[_Place, type[BaseModel]]]:
    yield place, table
    for name, field in table.model_fields.items():
        for further, inner in _inner(field.annotation):
            yield from _tables(inner, (*place, field.alias or name, *further))


def _inner(annotation: Any) -> Iterator[tuple[_Place, type[BaseModel]]]:
    """Yield the tables in a type: an optional one, those of a dictionary, or the elements of an array."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield (), annotation
    step = _STEPS.get(get_origin(annotation))
    if step is not None:
        found = (inner for argument in get_args(annotation) for inner in _inner(argument))
        yield from ((step + place, table) for place, table in found)


def _place(path: Sequence[str]) -> _Place:
    """Return the place of the table at a path."""
    fits = [place for place in known_keys() if len(place) == len(path) and all(map(_fits, place, path))]
    return fits[0] if fits else ()


def _fits(part: str, given: str) -> bool:
    return part in (_NAME, given) or (part == _ELEMENT and given.isdecimal())


def _keys_at(place: _Place, *, has_versions: bool) -> set[str]:
    """Return the keys of a table with those that the file may abbreviate: its only version, an action's emission."""
    keys = known_keys()
    if place == _VERSION and not has_versions:
        return keys[place] | OWN_KEYS
    emission = (*place, *_FIRST_EMISSION)
    return keys[place] | keys.get(emission, set())


def _written(place: _Place, *, has_versions: bool) -> str:
    """Return a table as a file writes it; that of an action's only emission, as it is abbreviated."""
    if not has_versions and place[:2] == _VERSION:
        place = place[2:]
    name = ".".join(part for part in place if part not in _FIRST_EMISSION)
    table = f"[[{name}]]" if place == _VERSION else f"[{name}]"
    return table if name else "the top level"


def _joined(places: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(places[:-1]), places[-1]]))
