"""Avro schemas of writers: the types of their fields, and which schemas may be decoded in bulk.

Schemas are untrusted: their size and depth are bounded. Values are decoded in this process only if all types of their
schema are on an allowlist of types that cannot crash, stall or bloat the decoder; all others are decoded in a sandbox
process (`avro_sandbox.py`).
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

MAX_SCHEMA_BYTES = 1024 * 1024
MAX_SCHEMA_DEPTH = 128
"""Levels of JSON nesting."""
_TOO_DEEP = f"it is nested over {MAX_SCHEMA_DEPTH} levels deep"

_NUMBERS = {"boolean": 1, "int": 1, "long": 1, "float": 4, "double": 8}
_MAX_DEPTH, _MAX_BRANCHES, _MAX_CELLS, _MAX_CELLS_PER_BYTE = 16, 8, 1_000, 8
_DECODING_KEYS = ("type", "name", "namespace", "fields", "items", "values", "symbols", "size")


def read_schema(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parse a schema (JSON); return it and the types of its fields by name. Raises ValueError unless it is a record."""
    if len(text.encode()) > MAX_SCHEMA_BYTES:
        raise ValueError(f"it is longer than {MAX_SCHEMA_BYTES} bytes")
    definition = _parse(text)
    if not _is_record(definition):
        raise ValueError("it is not a record with fields")
    try:
        return definition, {field["name"]: field["type"] for field in definition["fields"]}
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it cannot be read (a field without {error})") from None


def inline_references(text: str, named: Mapping[str, str]) -> str:
    """Return a schema (JSON) with the first use of each name in `named` replaced by its schema.

    Raises ValueError for a text that is not a schema.
    """
    definitions: dict[str, Any] = {name: _parse(schema) for name, schema in named.items()}
    try:
        return json.dumps(_inlined(_parse(text), "", definitions))
    except (KeyError, TypeError) as error:
        raise ValueError(f"it cannot be read ({error})") from None
    except RecursionError:  # names within names
        raise ValueError(_TOO_DEEP) from None


def _parse(text: str) -> Any:
    """Parse JSON. Raises ValueError for other texts, and beyond MAX_SCHEMA_DEPTH."""
    try:
        parsed = json.loads(text)
    except RecursionError:  # at a depth that depends on the release of Python
        raise ValueError(_TOO_DEEP) from None
    except ValueError as error:
        raise ValueError(f"it cannot be read ({error})") from None
    if _depth(parsed) > MAX_SCHEMA_DEPTH:
        raise ValueError(_TOO_DEEP)
    return parsed


def _inlined(schema: Any, namespace: str, definitions: dict[str, Any]) -> Any:
    """Return a schema with its names defined; a name leaves `definitions` at its first use."""
    if isinstance(schema, list):
        return [_inlined(branch, namespace, definitions) for branch in schema]
    if isinstance(schema, str):
        name = next((each for each in (_full_name(schema, namespace), schema) if each in definitions), None)
        return schema if name is None else _inlined(definitions.pop(name), "", definitions)
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = dict(schema)
    full = _full_name(str(found.get("name", "")), str(found.get("namespace") or namespace))
    inner = full.rpartition(".")[0] if "name" in found else namespace
    for key in ("type", "items", "values"):
        if key in found:
            found[key] = _inlined(found[key], inner, definitions)
    if isinstance(found.get("fields"), list):
        fields: list[Any] = found["fields"]
        found["fields"] = [each | {"type": _inlined(each["type"], inner, definitions)} for each in fields]
    return found


def branches(schema: Any) -> list[Any]:
    """Return the branches of a union, or the type itself."""
    return schema if isinstance(schema, list) else [schema]


def type_name(schema: Any) -> str:
    """Return the name of a type: the logical type of a timestamp, "map of T" for a map, else the Avro type."""
    if not isinstance(schema, dict):
        return str(schema)
    if schema.get("type") == "map":
        return f"map of {type_name(schema.get('values'))}"
    logical = str(schema.get("logicalType"))
    return logical if logical.startswith("timestamp-") else type_name(schema.get("type"))


def strip_annotations(schema: Any) -> Any:
    """Return a schema without attributes that do not affect decoding, such as docs, defaults and logical types."""
    if isinstance(schema, list):
        return [strip_annotations(item) for item in schema]
    if isinstance(schema, dict):
        return {key: strip_annotations(value) for key, value in schema.items() if key in _DECODING_KEYS}
    return schema


def bulk_cells_per_row(schema: dict[str, Any]) -> int | None:
    """Return the number of Arrow cells that a row takes, None if the schema may not be decoded in bulk."""
    try:
        return _BulkAllowlist().cost(schema, "", 0)[1]
    except (_NotAllowedError, KeyError, TypeError, ValueError, AttributeError):
        return None


class _NotAllowedError(Exception):
    """A type that may not be decoded in bulk."""


@dataclass(slots=True)
class _BulkAllowlist:
    """The types that may be decoded in bulk, each with its cost: (minimum bytes of a value, cells that it takes).

    An element of an array or map takes at least one byte, and a bounded number of cells per byte; types are not
    recursive.
    """

    named: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])

    def cost(self, schema: Any, namespace: str, depth: int) -> tuple[int, int]:
        if depth > _MAX_DEPTH:
            raise _NotAllowedError
        if isinstance(schema, list):
            return self._union_cost(schema, namespace, depth)
        if isinstance(schema, str):
            return self._name_cost(schema, namespace)
        match schema["type"]:
            case "record" | "enum":
                return self._named_cost(schema, namespace, depth)
            case "array":
                return self._collection_cost(self.cost(schema["items"], namespace, depth + 1))
            case "map":
                least, cells = self.cost(schema["values"], namespace, depth + 1)
                return self._collection_cost((least + 1, cells + 1))
            case str() as name if name in _NUMBERS or name in {"string", "null"}:
                return self._name_cost(name, namespace)
            case _:
                raise _NotAllowedError

    def _name_cost(self, name: str, namespace: str) -> tuple[int, int]:
        if name == "null":
            return 0, 1
        if name == "string":
            return 1, 1
        if name in _NUMBERS:
            return _NUMBERS[name], 1
        return self.named[_full_name(name, namespace)]  # KeyError for an unknown or recursive type

    def _named_cost(self, schema: dict[str, Any], namespace: str, depth: int) -> tuple[int, int]:
        name = _full_name(schema["name"], schema.get("namespace") or namespace)
        if name in self.named:
            raise _NotAllowedError
        if schema["type"] == "enum":
            cost = (1, 1)
        else:
            inner = name.rpartition(".")[0]
            costs = [self.cost(each["type"], inner, depth + 1) for each in schema["fields"]]
            cost = (sum(least for least, _ in costs), sum(cells for _, cells in costs))
        if not 0 < cost[1] <= _MAX_CELLS:
            raise _NotAllowedError
        self.named[name] = cost
        return cost

    def _union_cost(self, branches: list[Any], namespace: str, depth: int) -> tuple[int, int]:
        if not 2 <= len(branches) <= _MAX_BRANCHES or any(isinstance(branch, list) for branch in branches):
            raise _NotAllowedError
        costs = [self.cost(branch, namespace, depth + 1) for branch in branches]
        return 1 + min(least for least, _ in costs), sum(cells for _, cells in costs)

    def _collection_cost(self, one: tuple[int, int]) -> tuple[int, int]:
        least, cells = one
        if least < 1 or cells > least * _MAX_CELLS_PER_BYTE:
            raise _NotAllowedError
        return 1, 1


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and value.get("type") == "record" and isinstance(value.get("fields"), list)


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _depth(value: Any) -> int:
    """Return the nesting depth of a JSON document, without recursion."""
    depth, level = 0, [value]
    while level:
        depth, level = depth + 1, [child for item in level for child in _children(item)]
    return depth


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value
