"""Writers' Avro schemas: what they say of an event's fields, and which of them may be decoded in bulk.

A schema comes from outside. It is bounded in size and depth. Its values are decoded in this process only if it is on a
list of what can neither crash, stall nor swell the decoder; all other values are decoded apart (`apart.py`).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

MAX_SCHEMA_BYTES = 1024 * 1024
MAX_SCHEMA_DEPTH = 128
"""Levels of JSON."""

_NUMBERS = {"boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8}
_MAX_DEPTH, _MAX_BRANCHES, _MAX_CELLS, _MAX_CELLS_A_BYTE = 16, 8, 1_000, 8
_KEPT = ("type", "name", "namespace", "fields", "items", "values", "symbols", "size")


def read_schema(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a schema, and the types of its fields by name. Raises ValueError for one that is no record with fields."""
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise ValueError(f"it is longer than {MAX_SCHEMA_BYTES} bytes")
    try:
        definition: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it cannot be read ({error})") from None
    if _depth(definition) > MAX_SCHEMA_DEPTH:
        raise ValueError(f"it is nested over {MAX_SCHEMA_DEPTH} levels deep")
    if not _is_record(definition):
        raise ValueError("it is no record with fields")
    try:
        return definition, {field["name"]: field["type"] for field in definition["fields"]}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it cannot be read (a field without {error})") from None


def choices(of: Any) -> list[Any]:
    """Return the types that a value of a type may have: of a union its branches."""
    return of if isinstance(of, list) else [of]


def kind(of: Any) -> str:
    """Return what a type is: its logical type, if that is a time; a map with what it holds; else its name."""
    if not isinstance(of, dict):
        return str(of)
    if of.get("type") == "map":
        return f"map of {kind(of.get('values'))}"
    logical = str(of.get("logicalType"))
    return logical if logical.startswith("timestamp-") else kind(of.get("type"))


def bare(of: Any) -> Any:
    """Return a schema with nothing in it but what its values are read by: numbers and texts, as plain ones."""
    if isinstance(of, list):
        return [bare(item) for item in of]
    if isinstance(of, dict):
        return {key: bare(value) for key, value in of.items() if key in _KEPT}
    return of


def cells_in_bulk(schema: dict[str, Any]) -> int | None:
    """Return how many cells a row of a schema takes if it may be decoded in bulk, else None."""
    try:
        return _Costs().of(schema, "", 0)[1]
    except (_NotListedError, KeyError, TypeError, ValueError, AttributeError):
        return None


class _NotListedError(Exception):
    """A type that is not decoded in bulk."""


@dataclass(slots=True)
class _Costs:
    """The list of what is decoded in bulk: for each type the least bytes of a value, and the cells that it takes.

    A value in an array or a map costs a byte at least, and not many cells for each; a type is not within itself.
    """

    named: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def of(self, schema: Any, namespace: str, depth: int) -> tuple[int, int]:
        if depth > _MAX_DEPTH:
            raise _NotListedError
        if isinstance(schema, list):
            return self._of_union(schema, namespace, depth)
        if isinstance(schema, str):
            return self._of_name(schema, namespace)
        match schema["type"]:
            case "record" | "enum":
                return self._of_named(schema, namespace, depth)
            case "array":
                return self._of_many(self.of(schema["items"], namespace, depth + 1))
            case "map":
                least, cells = self.of(schema["values"], namespace, depth + 1)
                return self._of_many((least + 1, cells + 1))
            case str() as name if name in _NUMBERS or name in {"string", "null"}:
                return self._of_name(name, namespace)
            case _:
                raise _NotListedError

    def _of_name(self, name: str, namespace: str) -> tuple[int, int]:
        if name == "null":
            return 0, 1
        if name == "string":
            return 1, 1
        if name in _NUMBERS:
            return _NUMBERS[name], 1
        return self.named[_full(name, namespace)]  # a KeyError for what is unknown, or within itself

    def _of_named(self, schema: dict[str, Any], namespace: str, depth: int) -> tuple[int, int]:
        name = _full(schema["name"], schema.get("namespace") or namespace)
        if name in self.named:
            raise _NotListedError
        if schema["type"] == "enum":
            cost = (1, 1)
        else:
            inner = name.rpartition(".")[0]
            costs = [self.of(each["type"], inner, depth + 1) for each in schema["fields"]]
            cost = (sum(least for least, _ in costs), sum(cells for _, cells in costs))
        if not 0 < cost[1] <= _MAX_CELLS:
            raise _NotListedError
        self.named[name] = cost
        return cost

    def _of_union(self, branches: list[Any], namespace: str, depth: int) -> tuple[int, int]:
        if not 2 <= len(branches) <= _MAX_BRANCHES or any(isinstance(branch, list) for branch in branches):
            raise _NotListedError
        costs = [self.of(branch, namespace, depth + 1) for branch in branches]
        return 1 + min(least for least, _ in costs), sum(cells for _, cells in costs)

    def _of_many(self, one: tuple[int, int]) -> tuple[int, int]:
        least, cells = one
        if least < 1 or cells > least * _MAX_CELLS_A_BYTE:
            raise _NotListedError
        return 1, 1


def _is_record(of: Any) -> bool:
    return isinstance(of, dict) and of.get("type") == "record" and isinstance(of.get("fields"), list)


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _depth(of: Any) -> int:
    """Return how many levels a JSON document has, without recursion."""
    depth, level = 0, [of]
    while level:
        depth, level = depth + 1, [inner for each in level for inner in _inside(each)]
    return depth


def _inside(of: Any) -> Iterator[Any]:
    if isinstance(of, dict):
        yield from of.values()
    elif isinstance(of, list):
        yield from of
