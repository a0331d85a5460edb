"""Breaking changes of Avro schemas, by the schema resolution of the Apache Avro package."""

from typing import Any

from pipelines.boundary.extras import extra
from pipelines.contract.compatibility.breaking_changes import BreakingChange, SchemaError


def avro_breaking_changes(old: str, new: str) -> list[BreakingChange]:
    """Return the breaking changes in both directions. Raises SchemaError for an invalid schema."""
    with extra("contract", "comparing these schemas"):
        from avro.compatibility import ReaderWriterCompatibilityChecker  # noqa: PLC0415 - an extra
    before, after = _parsed(old, 0), _parsed(new, 1)
    compare = ReaderWriterCompatibilityChecker().get_compatibility
    backward = [BreakingChange(*found, forward=False) for found in _problems(compare(after, before))]
    forward = [BreakingChange(*found, backward=False) for found in _problems(compare(before, after))]
    return backward + forward


def _parsed(text: str, which: int) -> Any:
    from avro.schema import parse  # noqa: PLC0415 - an extra

    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - the package raises many kinds
        raise SchemaError(which, f"it is not an Avro schema: {error}") from None


def _problems(result: Any) -> list[tuple[str, str]]:
    """Return at most one (place, message); the package does not relate the entries of its sets to each other."""
    if result.compatibility.name != "incompatible":
        return []
    kinds = ", ".join(sorted(kind.value.replace("_", " ") for kind in result.incompatibilities))
    return [(", ".join(sorted(result.locations)), f"{kinds}: {'; '.join(sorted(result.messages))}")]
