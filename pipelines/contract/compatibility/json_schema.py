"""Breaking changes of JSON Schemas of objects: types, required properties and additional properties."""

import json
from collections.abc import Iterator
from typing import Any

from pipelines.contract.compatibility.breaking_changes import BreakingChange, SchemaError

_ANNOTATIONS = {"$schema", "$id", "title", "description", "examples", "default", "$comment", "deprecated"}
_SUPPORTED = {"type", "properties", "required", "additionalProperties", "enum"}


def json_breaking_changes(old: str, new: str) -> list[BreakingChange]:
    """Return the breaking changes between two JSON Schemas; any change of an unsupported keyword is one."""
    return list(_compare("", _parsed(old, 0), _parsed(new, 1)))


def _parsed(text: str, which: int) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise SchemaError(which, f"it is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise SchemaError(which, "it is not a JSON Schema of an object")
    return schema


def _compare(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[BreakingChange]:
    here = place.rstrip(".") or "the event"
    yield from _compare_sets(here, "type", _types(old), _types(new))
    if "enum" in old or "enum" in new:
        yield from _compare_sets(here, "enum", _values(old), _values(new))
    yield from _compare_required(place, set(old.get("required", [])), set(new.get("required", [])))
    yield from _compare_properties(place, old, new)
    others = old.get("additionalProperties", True), new.get("additionalProperties", True)
    if all(isinstance(other, dict) for other in others):
        yield from _compare(f"{place}*.", *others)
    elif others[0] != others[1] and any(isinstance(other, dict) for other in others):
        yield BreakingChange(here, "additionalProperties changed, which cannot be judged")
    for keyword in sorted((set(old) | set(new)) - _ANNOTATIONS - _SUPPORTED):
        if old.get(keyword) != new.get(keyword):
            yield BreakingChange(here, f"{keyword} changed, which cannot be judged")


def _compare_required(place: str, old: set[str], new: set[str]) -> Iterator[BreakingChange]:
    for name in sorted(old ^ new):
        which = "new" if name in new else "old"
        yield BreakingChange(
            f"{place}{name}", f"is required by the {which} schema only", backward=name in new, forward=name in old
        )


def _compare_properties(place: str, old: dict[str, Any], new: dict[str, Any]) -> Iterator[BreakingChange]:
    before, after = old.get("properties", {}), new.get("properties", {})
    for name in sorted(set(before) | set(after)):
        if name in before and name in after:
            yield from _compare(f"{place}{name}.", before[name], after[name])
        elif name in before and new.get("additionalProperties") is False:
            yield BreakingChange(f"{place}{name}", "is gone, and the new schema allows nothing else", forward=False)
        elif name in after and old.get("additionalProperties") is False:
            yield BreakingChange(f"{place}{name}", "is new, and the old schema allows nothing else", backward=False)


def _compare_sets(place: str, keyword: str, old: set[str] | None, new: set[str] | None) -> Iterator[BreakingChange]:
    """Compare the allowed values of a keyword; None allows any."""
    backward = new is not None and (old is None or not old <= new)
    forward = old is not None and (new is None or not new <= old)
    if backward or forward:
        yield BreakingChange(place, f"{keyword} was {_format(old)} and is {_format(new)}", backward, forward)


def _types(schema: dict[str, Any]) -> set[str] | None:
    """Return the allowed types, None if any; "number" includes "integer"."""
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named or ())
    return types | ({"integer"} if "number" in types else set()) or None


def _values(schema: dict[str, Any]) -> set[str] | None:
    return {json.dumps(value) for value in schema["enum"]} if "enum" in schema else None


def _format(allowed: set[str] | None) -> str:
    return "anything" if allowed is None else " or ".join(sorted(allowed))
