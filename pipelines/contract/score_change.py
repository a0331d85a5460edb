"""A change of the feed as the value of a record, in each format of the contract; the schemas are `score_change.*`.

The rows before and after have the columns of the policy. Protobuf and Avro hold them as JSON, so that one schema is
valid for all policies, and numbers stay exact. Values have no schema id, like the events that we send. The first byte
of a value tells its format: `{` of JSON, 9 of Protobuf (the field `number`, of a fixed size), an even one of Avro
(`number` again, which is positive).
"""

import json
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from importlib.resources import files
from io import BytesIO
from typing import Any

import pyarrow as pa
from ptars import HandlerPool, PtarsConfig

from pipelines.boundary.extras import require_extra
from pipelines.contract.score_change_pb2 import DESCRIPTOR, ScoreChange
from pipelines.settings import Format

AVRO_SCHEMA = files("pipelines.contract").joinpath("score_change.avsc").read_text(encoding="utf-8")
FIELDS = ("number", "user_id", "before", "after", "policy", "lake_version", "as_of", "causes", "more_causes")
_HANDLER = HandlerPool([DESCRIPTOR], PtarsConfig(timestamp_unit="us")).get_for_message(ScoreChange.DESCRIPTOR)
_JSON_START, _PROTOBUF_START = b"{", b"\x09"


def require_packages(form: Format) -> None:
    """Raise ConfigurationError, which says what to install, unless changes can be written and read in a format."""
    if form == "avro":
        require_extra("avro", 'feed.format = "avro"')


def encode_changes(changes: pa.RecordBatch, form: Format) -> list[bytes]:
    """Encode each row, with the columns FIELDS among others; the same row gives the same bytes each time.

    `before` and `after` are JSON, or null. Of Avro the packages are required, see `require_packages`.
    """
    changes = changes.select(FIELDS)
    if form == "protobuf":
        return _HANDLER.record_batch_to_array(changes).to_pylist()
    if form == "avro":
        from pyruhvro import serialize_record_batch  # type: ignore[attr-defined] # noqa: PLC0415 - an extra

        return [value for part in serialize_record_batch(changes, AVRO_SCHEMA, 1) for value in part.to_pylist()]
    return [_to_json(change) for change in changes.to_pylist()]


def decode_change(value: bytes) -> dict[str, Any]:
    """Return the members of a change in any format, as JSON has them; numbers of rows are int or Decimal.

    Types are not checked in JSON. A value that is no change may raise any Exception, of the packages that read it; so
    may one in Avro where these are not installed.
    """
    if value.startswith(_JSON_START):
        return _parse(value)
    change = _from_protobuf(value) if value.startswith(_PROTOBUF_START) else _from_avro(value)
    rows = {name: _parse(change[name] or "null") for name in ("before", "after")}
    return change | rows | {"as_of": _utc(change["as_of"])}


def _to_json(change: dict[str, Any]) -> bytes:
    members = {
        "number": str(change["number"]),
        "user_id": _json(change["user_id"]),
        "before": change["before"] or "null",
        "after": change["after"] or "null",
        "policy": _json(change["policy"]),
        "lake_version": str(change["lake_version"]),
        "as_of": _json(_utc(change["as_of"])),
        "causes": _json(change["causes"]),
        "more_causes": str(change["more_causes"]),
    }
    value = ",".join(f'"{name}":{text}' for name, text in members.items())
    return f"{{{value}}}".encode()


def _from_protobuf(value: bytes) -> dict[str, Any]:
    change = ScoreChange.FromString(value)
    return {name: getattr(change, name) for name in FIELDS} | {
        "before": _optional(change, "before"),
        "after": _optional(change, "after"),
        "as_of": change.as_of.ToDatetime(UTC),
        "causes": [{"cause": each.cause, "event_id": _optional(each, "event_id")} for each in change.causes],
    }


def _optional(message: Any, name: str) -> str | None:
    return getattr(message, name) if message.HasField(name) else None


def _from_avro(value: bytes) -> dict[str, Any]:
    from fastavro import schemaless_reader  # noqa: PLC0415 - an extra

    stream = BytesIO(value)
    change: Any = schemaless_reader(stream, _avro_schema(), None)
    if stream.read(1):
        raise ValueError("not a change: bytes follow it")
    return change


@cache
def _avro_schema() -> Any:
    from fastavro import parse_schema  # noqa: PLC0415 - an extra

    return parse_schema(json.loads(AVRO_SCHEMA))


def _parse(text: str | bytes) -> Any:
    return json.loads(text, parse_float=Decimal)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _utc(moment: datetime) -> str:
    """Return a moment in UTC with microseconds and Z."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
