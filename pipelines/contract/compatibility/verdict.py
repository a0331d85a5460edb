"""Two schemas to a verdict: who understands whom when old and new writers and readers meet on one topic."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pipelines.contract.compatibility.avro import avro_breaks
from pipelines.contract.compatibility.breaks import Break, SchemaError
from pipelines.contract.compatibility.json_schema import json_breaks
from pipelines.contract.compatibility.protobuf import protobuf_breaks
from pipelines.errors import UsageError

_BREAKS: dict[str, Callable[[str, str], list[Break]]] = {
    ".proto": protobuf_breaks,
    ".avsc": avro_breaks,
    ".json": json_breaks,
}


class Compatibility(StrEnum):
    """Who understands whom."""

    FULL = "full"
    BACKWARD = "backward"
    """Readers of the new schema understand what was written by the old one."""
    FORWARD = "forward"
    """Readers of the old schema understand what is written by the new one."""
    NONE = "none"

    def covers(self, wanted: "Compatibility") -> bool:
        """Return whether this is at least what is wanted."""
        return self is Compatibility.FULL or wanted in {self, Compatibility.NONE}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How compatible a change is, and what breaks it."""

    compatibility: Compatibility
    breaks: list[Break]


def judge_change(old: Path, new: Path) -> Verdict:
    """Compare two schema files of one format: .proto, .avsc (Avro) or .json (JSON Schema).

    Raises UsageError for a file that is missing, of another format or no schema.
    """
    if old.suffix != new.suffix or old.suffix not in _BREAKS:
        raise UsageError(f"{old} and {new}: compare two files that both end in .proto, .avsc or .json")
    texts = _read(old), _read(new)
    try:
        breaks = _BREAKS[old.suffix](*texts)
    except SchemaError as error:
        raise UsageError(f"{(old, new)[error.which]}: {error}") from None
    backward = not any(item.backward for item in breaks)
    forward = not any(item.forward for item in breaks)
    names = {(True, True): "full", (True, False): "backward", (False, True): "forward", (False, False): "none"}
    return Verdict(Compatibility(names[backward, forward]), breaks)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
