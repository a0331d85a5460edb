"""Encoding of events as record values, in several formats and schema versions."""

import json
import struct
from io import BytesIO
from typing import Any

from fastavro import parse_schema, schemaless_writer
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pipelines.contract import event_pb2
from pipelines.contract.avro import OWN_SCHEMA

VERSIONS = (1, 2, 3)
"""1 is the contract; 2 adds a nullable field `source`; 3 also removes `metadata`."""
_SOURCE_NUMBER = 6


def avro_schema(version: int) -> str:
    """Return the Avro schema of a version."""
    schema = json.loads(OWN_SCHEMA)
    if version > 1:
        schema["fields"].insert(1, {"name": "source", "type": ["null", "string"], "default": None})
    if version > 2:
        schema["fields"] = [field for field in schema["fields"] if field["name"] != "metadata"]
    return json.dumps(schema)


def to_avro(schema: str, row: dict[str, Any]) -> bytes:
    """Return an Avro value without header."""
    out = BytesIO()
    schemaless_writer(out, parse_schema(json.loads(schema)), row)
    return out.getvalue()


def to_protobuf(version: int, event_id: str, seconds: int) -> bytes:
    """Return an event as the Protobuf runtime encodes it with the schema of a version."""
    event: Any = _message(version)(event_id=event_id, user_id="u", action_type="A")
    event.timestamp.seconds = seconds
    if version > 1:
        event.source = "app"
    if version < 3:
        event.metadata["rating"] = "5"
    return event.SerializeToString()


def to_json(version: int, event_id: str, time: str) -> bytes:
    """Return an event as a JSON document of that version."""
    event: dict[str, Any] = {"event_id": event_id, "user_id": "u", "action_type": "A", "timestamp": time}
    if version > 1:
        event["source"] = "app"
    if version < 3:
        event["metadata"] = {"rating": "5"}
    return json.dumps(event).encode()


def framed(schema_id: int, value: bytes) -> bytes:
    """Return a value with a schema id prefix, as the serializers of registries write it."""
    return struct.pack(">bI", 0, schema_id) + value


def _message(version: int) -> type[Message]:
    file = FileDescriptorProto()
    event_pb2.DESCRIPTOR.CopyToProto(file)
    fields = file.message_type[0].field
    if version > 1:
        fields.add(name="source", number=_SOURCE_NUMBER, type=9, label=1)
    if version > 2:
        del fields[next(n for n, field in enumerate(fields) if field.name == "metadata")]
    pool = DescriptorPool()
    for imported in event_pb2.DESCRIPTOR.dependencies:
        needed = FileDescriptorProto()
        imported.CopyToProto(needed)
        pool.Add(needed)
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("karmalake.v1.Event"))
