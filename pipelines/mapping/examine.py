"""Some records of a source, to see what it makes of them, and the fields that it does not use."""
# pyright: reportAttributeAccessIssue=false
# (the functions of pyarrow.compute are created at import)

import base64
import binascii
import json
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
from kafka import TopicPartition

from pipelines.bus.clients import consumer, translate_errors
from pipelines.bus.topics import describe_topic
from pipelines.contract.schema import RECORD
from pipelines.contract.times import bus_times
from pipelines.errors import UsageError
from pipelines.mapping.source_files import SourceFile
from pipelines.settings import KafkaSettings

_MAX_LINE_BYTES = 4 * 1024 * 1024
_SPACE = b" \t\r\n"
"""Of JSON: other white space around a value is not valid, here as in a record of the topic."""
_POLL_MS, _IDLE_SECONDS = 1_000, 30.0


def unused_fields(source: SourceFile, records: pa.Table, fields: Iterable[str]) -> tuple[str, ...]:
    """Return fields that a source does not use; `fields` are those of typed values, which have a schema."""
    known = list(fields) or _members(records)
    return tuple(name for name in known if not _is_used(source, name))


def read_topic(kafka: KafkaSettings, topic: str, count: int) -> pa.Table:
    """Return about the last `count` records of a topic (RECORD columns); it commits no offsets.

    Raises UsageError if there is no such topic, TransientError if the broker does not answer.
    """
    kafka = kafka.model_copy(update={"topic": topic})
    found = describe_topic(kafka)
    if found is None:
        raise UsageError(f"there is no topic {topic} at {kafka.bootstrap_servers}: check `topic` of the source")
    each = -(-count // max(1, len(found.partitions)))
    places = {p.partition: (max(p.begin_offset, p.end_offset - each), p.end_offset) for p in found.partitions}
    rows: list[Any] = []
    with translate_errors(kafka, f"reading {topic}"), consumer(kafka, enable_auto_commit=False) as reader:
        pending = {TopicPartition(topic, number): end for number, (start, end) in places.items() if start < end}
        reader.assign(list(pending))
        for place in pending:
            reader.seek(place, places[place.partition][0])
        deadline = monotonic() + _IDLE_SECONDS
        while pending and monotonic() < deadline:
            for place, polled in reader.poll(_POLL_MS, max_records=1_000).items():
                rows += [record for record in polled if record.offset < places[place.partition][1]]
                deadline = monotonic() + _IDLE_SECONDS
            pending = {place: end for place, end in pending.items() if reader.position(place) < end}
    return _table(found.topic_id, topic, rows[:count])


def read_records(path: Path, source: SourceFile, count: int) -> pa.Table:
    """Return the values of a file (RECORD columns), one a line: JSON as it is, others as base64; skip empty lines.

    A byte order mark begins the file, never a value. The offset of a record is the number of its line. Raises
    UsageError for a file that cannot be read, and a line that is too long or not base64.
    """
    values: dict[int, bytes] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > _MAX_LINE_BYTES:
                    raise UsageError(f"{path}: line {number} is longer than {_MAX_LINE_BYTES} bytes")
                value = line.removeprefix(BOM_UTF8) if number == 1 else line
                if text := value.strip(_SPACE):
                    values[number] = text if source.format == "json" else _from_base64(text, f"{path}: line {number}")
                if len(values) == count:
                    break
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    now = pa.array([datetime.now(UTC)] * len(values), RECORD.field("bus_time").type)
    columns: Mapping[str, Any] = {
        "topic_id": [path.name] * len(values),
        "topic": [source.topics[0] if source.topics else path.name] * len(values),
        "topic_partition": [0] * len(values),
        "offset": list(values),
        "bus_time": now,
        "key": [None] * len(values),
        "value": list(values.values()),
        "headers": [[]] * len(values),
    }
    return pa.table([pa.array(columns[each.name], each.type) for each in RECORD], schema=RECORD)


def _from_base64(text: bytes, place: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise UsageError(f"{place}: is not base64: give one value a line, encoded by `base64 -w 0`") from None


def _table(topic_id: str, topic: str, rows: list[Any]) -> pa.Table:
    headers = [[{"key": key, "value": value} for key, value in row.headers] for row in rows]
    columns: Mapping[str, Any] = {
        "topic_id": [topic_id] * len(rows),
        "topic": [topic] * len(rows),
        "topic_partition": [row.partition for row in rows],
        "offset": [row.offset for row in rows],
        "bus_time": bus_times([row.timestamp for row in rows]),
        "key": [row.key for row in rows],
        "value": [row.value for row in rows],
        "headers": headers,
    }
    return pa.table([pa.array(columns[each.name], each.type) for each in RECORD], schema=RECORD)


def _members(records: pa.Table) -> list[str]:
    """Return the names of the members of JSON values, those of the most values first."""
    names: Counter[str] = Counter()
    for value in pc.drop_null(records["value"]).to_pylist():
        try:
            found: Any = json.loads(value)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            names.update(cast("dict[str, Any]", found).keys())
    return [name for name, _ in names.most_common(100)]


def _is_used(source: SourceFile, name: str) -> bool:
    """Return whether a name is a word of the SELECT or a column of the source."""
    return bool(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", source.config.select)) or any(
        name == column for column, _, _ in source.config.columns
    )
