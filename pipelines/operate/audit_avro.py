"""A value in Avro, for the audit: read in plain Python by the schemas that ingest decodes in bulk.

The rulings are those of ingest's decoder, kept by another reader (`tests/operate/test_audit_values.py` holds both
together): a number has at most ten bytes, of which an `int` has the lower 32 bits, a block of -2^63 items has none,
and texts in fields that are passed over need not be UTF-8. Schemas that `contract/writers.py` does not list are not
read here.
"""

from dataclasses import dataclass, field
from typing import Any

_NUMBER_BYTES = 10


@dataclass(slots=True)
class Reader:
    """Reads one value after another from `data`; ValueError for bytes that are none."""

    data: bytes
    at: int = 0
    named: dict[str, Any] = field(default_factory=dict[str, Any])

    def read(self, schema: Any) -> Any:
        """Return a value of a schema, texts and keys of maps as bytes."""
        if isinstance(schema, list):
            return self.read(_pick(schema, self._long()))  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(schema, str):
            return self._of_name(schema)
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
                return self._of_name(name)

    def _of_name(self, name: str) -> Any:
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
        for place, byte in enumerate(self.data[self.at : self.at + _NUMBER_BYTES]):
            number |= (byte & 0x7F) << 7 * place
            if byte < 0x80:
                self.at += place + 1
                number &= 0xFFFFFFFFFFFFFFFF
                return number >> 1 ^ -(number & 1)
        raise ValueError("a number does not end within ten bytes")

    def _take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise ValueError("the value ends within a field")
        self.at += size
        return self.data[self.at - size : self.at]


def _pick(among: Any, number: int) -> Any:
    if not 0 <= number < len(among):
        raise ValueError("a choice does not exist")
    return among[number]
