"""Avro decoder of the audit: plain Python, for the schemas that ingest decodes in bulk.

Implements the same rules as ingest's decoder independently (`tests/operate/test_audit_values.py` compares the two): a
number has at most ten bytes, of which an `int` keeps the lower 32 bits; a block of -2^63 items is empty; strings in
skipped fields need not be UTF-8. Schemas that `contract/avro_schema.py` does not list are not supported.
"""

from dataclasses import dataclass, field
from typing import Any

_MAX_VARINT_BYTES = 10


@dataclass(slots=True)
class Reader:
    """Reads one value after another from `data`; raises ValueError for malformed bytes."""

    data: bytes
    at: int = 0
    named: dict[str, Any] = field(default_factory=dict[str, Any])

    def read(self, schema: Any) -> Any:
        """Return the next value, of the given schema; strings and map keys are bytes."""
        if isinstance(schema, list):
            return self.read(_pick(schema, self._long()))  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(schema, str):
            return self._read_named(schema)
        match schema["type"]:
            case "record":
                self.named[schema["name"]] = schema
                return {each["name"]: self.read(each["type"]) for each in schema["fields"]}
            case "enum":
                self.named[schema["name"]] = schema
                return _pick(schema["symbols"], self._long())
            case "array":
                return self._blocks(schema["items"], keyed=False)
            case "map":
                return dict(self._blocks(schema["values"], keyed=True))
            case name:
                return self._read_named(name)

    def _read_named(self, name: str) -> Any:
        match name:
            case "null":
                return None
            case "boolean":
                return _pick((False, True), self._take(1)[0])
            case "int":
                return self._int()
            case "long":
                return self._long()
            case "float" | "double":
                self._take(4 if name == "float" else 8)
                return 0.0
            case "string":
                return self._take(self._long())
            case _:
                return self.read(self.named[name])

    def _blocks(self, items: Any, *, keyed: bool) -> list[Any]:
        found: list[Any] = []
        while count := self._long():
            if count < 0:
                self._long()  # the size of the block
            for _ in range(abs(count) % 2**63):
                key = self._take(self._long()) if keyed else None
                found.append((key, self.read(items)) if keyed else self.read(items))
        return found

    def _int(self) -> int:
        number = self._long() & 0xFFFFFFFF
        return number - (number >> 31 << 32)

    def _long(self) -> int:
        number = 0
        for index, byte in enumerate(self.data[self.at : self.at + _MAX_VARINT_BYTES]):
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                self.at += index + 1
                number &= 0xFFFFFFFFFFFFFFFF
                return number >> 1 ^ -(number & 1)
        raise ValueError("a varint is longer than ten bytes")

    def _take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError("the value ends within a field")
        self.at += size
        return self.data[self.at - size : self.at]


def _pick(options: Any, number: int) -> Any:
    if not 0 <= number < len(options):
        raise ValueError("an index is out of range")
    return options[number]
