"""Comparison of two schemas: whether old and new readers can read the values of old and new writers."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipelines.contract.compatibility.avro import avro_breaking_changes
from pipelines.contract.compatibility.breaking_changes import BreakingChange, SchemaError
from pipelines.contract.compatibility.json_schema import json_breaking_changes
from pipelines.contract.compatibility.protobuf import protobuf_breaking_changes
from pipelines.errors import UsageError

_COMPARISONS: dict[str, Callable[[str, str], list[BreakingChange]]] = {
    ".proto": protobuf_breaking_changes,
    ".avsc": avro_breaking_changes,
    ".json": json_breaking_changes,
}


class Compatibility(StrEnum):
    """The direction in which values can be read."""

    FULL = "full"
    BACKWARD = "backward"
    """Readers with the new schema can read values of the old one."""
    FORWARD = "forward"
    """Readers with the old schema can read values of the new one."""
    NONE = "none"

    def covers(self, required: "Compatibility") -> bool:
        """Return whether this includes the required compatibility."""
        return self is Compatibility.FULL or required in {self, Compatibility.NONE}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The compatibility of a change, and its breaking changes."""

    compatibility: Compatibility
    breaks: list[BreakingChange]


def compare_schemas(old: Path, new: Path) -> Comparison:
    """Compare two schema files of one format: .proto, .avsc (Avro) or .json (JSON Schema).

    Raises UsageError for a file that is missing, has another format or is not a schema.
    """
    if old.suffix != new.suffix or old.suffix not in _COMPARISONS:
        raise UsageError(f"{old} and {new}: compare two files that both end in .proto, .avsc or .json")
    texts = _read(old), _read(new)
    try:
        breaks = _COMPARISONS[old.suffix](*texts)
    except SchemaError as error:
        raise UsageError(f"{(old, new)[error.which]}: {error}") from None
    except RecursionError:
        raise UsageError(f"{old} and {new}: one of them is nested too deep to be compared: flatten it") from None
    backward = not any(item.backward for item in breaks)
    forward = not any(item.forward for item in breaks)
    names = {(True, True): "full", (True, False): "backward", (False, True): "forward", (False, False): "none"}
    return Comparison(Compatibility(names[backward, forward]), breaks)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
