"""Changes of an Avro schema, by the rules of schema resolution in Apache Avro's own package."""

from typing import Any

from pipelines.contract.compatibility.breaks import Break, SchemaError, missing_package


def avro_breaks(old: str, new: str) -> list[Break]:
    """Return what the package finds when each schema reads what the other wrote."""
    try:
        from avro.compatibility import ReaderWriterCompatibilityChecker  # noqa: PLC0415 - an extra
    except ImportError:
        raise missing_package("avro") from None
    before, after = _parsed(old, 0), _parsed(new, 1)
    compare = ReaderWriterCompatibilityChecker().get_compatibility
    backward = [Break(*found, forward=False) for found in _problems(compare(after, before))]
    forward = [Break(*found, backward=False) for found in _problems(compare(before, after))]
    return backward + forward


def _parsed(text: str, which: int) -> Any:
    from avro.schema import parse  # noqa: PLC0415 - an extra

    try:
        return parse(text)
    except Exception as error:  # noqa: BLE001 - the package raises many kinds
        raise SchemaError(which, f"it is no Avro schema: {error}") from None


def _problems(result: Any) -> list[tuple[str, str]]:
    """Return place and sentence of each; the package keeps them in sets that belong together only as a whole."""
    if result.compatibility.name != "incompatible":
        return []
    kinds = ", ".join(sorted(kind.value.replace("_", " ") for kind in result.incompatibilities))
    return [(", ".join(sorted(result.locations)), f"{kinds}: {'; '.join(sorted(result.messages))}")]
