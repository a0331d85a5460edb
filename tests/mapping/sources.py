"""Records of foreign topics, and sources over them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.contract.decode import Decoded
from pipelines.contract.schema import HEADERS, RECORD, TIMESTAMP
from pipelines.mapping.decoder import open_mapping
from pipelines.mapping.source_files import read_source
from pipelines.settings import ContractSettings, Settings

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def records(
    values: Sequence[bytes | None],
    keys: Sequence[bytes | None] | None = None,
    headers: Sequence[Sequence[tuple[str, bytes]]] | None = None,
    first: int = 0,
) -> pa.Table:
    """Return records of one topic partition, from offset `first` on."""
    count = len(values)
    entries = [[{"key": key, "value": value} for key, value in row] for row in headers or [[]] * count]
    columns: list[Any] = [
        pa.array(["id-of-topic"] * count),
        pa.array(["rides"] * count),
        pa.array([0] * count, pa.int32()),
        pa.array(range(first, first + count), pa.int64()),
        pa.array([NOW] * count, TIMESTAMP),
        pa.array(keys or [None] * count, pa.binary()),
        pa.array(values, pa.binary()),
        pa.array(entries, HEADERS),
    ]
    return pa.table(columns, schema=RECORD)


@contextmanager
def mapping(folder: Path, text: str, **contract: Any) -> Generator[Callable[[pa.Table], Decoded]]:
    """Yield a function that maps records by a source file with this text."""
    path = folder / "rides.toml"
    path.write_text(text, encoding="utf-8")
    settings = Settings(contract=ContractSettings(**contract))
    with open_mapping(read_source(path), settings) as decode:

        def at_now(rows: pa.Table) -> Decoded:
            return decode(rows, NOW)

        yield at_now


def events(decoded: Decoded) -> list[tuple[Any, ...]]:
    """Return the events as tuples: event_id, user_id, action_type, metadata."""
    rows = decoded.events.to_pylist()
    return [(row["event_id"], row["user_id"], row["action_type"], dict(row["metadata"])) for row in rows]


def reasons(decoded: Decoded) -> dict[int, str]:
    """Return the reason of each rejected record by offset."""
    return {row["offset"]: row["reason"] for row in decoded.rejected.to_pylist()}
