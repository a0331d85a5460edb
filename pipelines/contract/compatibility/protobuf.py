"""Breaking changes of .proto files in the wire format, where a field is identified by its number and type."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.boundary.extras import extra
from pipelines.contract.compatibility.breaking_changes import (
    REQUIRED_FIELDS,
    BreakingChange,
    SchemaError,
)

_WIRE_COMPATIBLE = (
    {"int32", "int64", "uint32", "uint64", "bool"},
    {"sint32", "sint64"},
    {"fixed32", "sfixed32"},
    {"fixed64", "sfixed64"},
)
"""Groups of types with compatible encodings, from the Protobuf guide on updating message types."""
_MAX_NUMBER = 2**29 - 1


@dataclass(slots=True)
class _Message:
    """Fields by number as (name, type), and the reserved numbers."""

    fields: dict[int, tuple[str, str]] = field(default_factory=dict[int, tuple[str, str]])
    reserved: list[range] = field(default_factory=list[range])


def protobuf_breaking_changes(old: str, new: str) -> list[BreakingChange]:
    """Return the breaking changes between two .proto files; their first messages must have the fields of an event."""
    before, after = _messages(old, 0), _messages(new, 1)
    changes = [item for name, message in before.items() for item in _compare(name, message, after.get(name))]
    return changes + list(_required(next(iter(before.values())), next(iter(after.values()))))


def _compare(name: str, old: _Message, new: _Message | None) -> Iterator[BreakingChange]:
    if new is None:
        yield BreakingChange(name, "the message is gone")
        return
    for number, (label, kind) in old.fields.items():
        if number in new.fields:
            changed = new.fields[number][1]
            if changed != kind and not any({kind, changed} <= group for group in _WIRE_COMPATIBLE):
                yield BreakingChange(f"{name}.{label}", f"field {number} was {kind} and is {changed}")
        elif not any(number in reserved for reserved in new.reserved):
            yield BreakingChange(
                f"{name}.{label}", f"field {number} is gone and free to be used again: add `reserved {number};`"
            )
    for number in sorted(set(new.fields) - set(old.fields)):
        if any(number in reserved for reserved in old.reserved):
            yield BreakingChange(
                f"{name}.{new.fields[number][0]}", f"field {number} was reserved: something else used it before"
            )


def _required(old: _Message, new: _Message) -> Iterator[BreakingChange]:
    """Yield a breaking change for each required field whose number only one of the two messages has."""
    for message, other in ((old, new), (new, old)):
        for number, (name, _) in message.fields.items():
            if name in REQUIRED_FIELDS and number not in other.fields:
                which = "old" if message is old else "new"
                detail = f"field {number} is required for an event, and only the {which} schema has it"
                yield BreakingChange(name, detail, backward=message is new, forward=message is old)


def _messages(text: str, which: int) -> dict[str, _Message]:
    """Return the messages of a file by qualified name, in the order of the file."""
    file = _parsed(text, which)
    found: dict[str, _Message] = {}
    for element in file.file_elements:
        if type(element).__name__ == "Message":
            _add(element, element.name, found)
    if not found:
        raise SchemaError(which, "it has no message")
    return found


def _parsed(text: str, which: int) -> Any:
    with extra("contract", "comparing these schemas"):
        from antlr4.error.ErrorListener import ErrorListener  # noqa: PLC0415 - an extra
        from proto_schema_parser.parser import Parser  # noqa: PLC0415 - an extra

    class Listener(ErrorListener):
        def syntaxError(  # noqa: N802 - the names of the base class
            self,
            recognizer: Any,  # noqa: ARG002
            offendingSymbol: Any,  # noqa: ARG002, N803
            line: int,
            column: int,
            msg: str,
            e: Any,  # noqa: ARG002
        ) -> None:
            raise SchemaError(which, f"line {line}, column {column + 1}: {msg.partition(' expecting ')[0]}")

    def listen(recognizer: Any) -> None:
        recognizer.removeErrorListeners()
        recognizer.addErrorListener(Listener())

    return Parser(setup_lexer=listen, setup_parser=listen).parse(text)


def _add(message: Any, name: str, found: dict[str, _Message]) -> None:
    """Add a message and its nested messages to `found`."""
    described = found[name] = _Message()
    for element in message.elements:
        kind = type(element).__name__
        if kind == "Message":
            _add(element, f"{name}.{element.name}", found)
        elif kind == "Reserved":
            described.reserved += map(_range, element.ranges)
        elif kind == "OneOf":
            described.fields |= dict(_field(item) for item in element.elements if type(item).__name__ == "Field")
        elif kind in {"Field", "MapField"}:
            described.fields |= dict([_field(element)])


def _field(element: Any) -> tuple[int, tuple[str, str]]:
    if type(element).__name__ == "MapField":
        return element.number, (element.name, f"map<{element.key_type}, {element.value_type}>")
    repeated = element.cardinality is not None and element.cardinality.name == "REPEATED"
    return element.number, (element.name, f"repeated {element.type}" if repeated else element.type)


def _range(text: str) -> range:
    first, _, last = text.partition(" to ")
    return range(int(first), (_MAX_NUMBER if last == "max" else int(last or first)) + 1)
