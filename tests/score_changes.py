"""Changes of the feed as a consumer reads them that has only the schemas and knows nothing of karmalake."""

import json
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

from fastavro import parse_schema, schemaless_reader
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from pipelines.settings import Format
from tests.conftest import REPOSITORY

FORMATS: tuple[Format, ...] = get_args(Format)
_CONTRACT = REPOSITORY / "pipelines" / "contract"


def decoded(value: bytes) -> dict[str, Any]:
    """Return the members of a change as JSON has them; its first byte tells the format, as documented."""
    if value[:1] == b"{":
        return json.loads(value)
    change = _of_protobuf(value) if value[0] == 9 else _of_avro(value)
    return members(change | {"recorded": None})


def members(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the lake's table as a consumer should see it."""
    rows = {name: json.loads(row[name] or "null") for name in ("before", "after")}
    shown = row | rows | {"as_of": f"{row['as_of']:%Y-%m-%dT%H:%M:%S.%fZ}"}
    del shown["recorded"]
    return shown


def _of_avro(value: bytes) -> dict[str, Any]:
    assert value[0] % 2 == 0
    stream = BytesIO(value)
    change: Any = schemaless_reader(stream, _avro_schema(), None)
    assert not stream.read()
    return change


@cache
def _avro_schema() -> Any:
    return parse_schema(json.loads((_CONTRACT / "score_change.avsc").read_text(encoding="utf-8")))


def _of_protobuf(value: bytes) -> dict[str, Any]:
    change: Any = _message().FromString(value)
    found = {each.name: getattr(change, each.name) for each in change.DESCRIPTOR.fields}
    found |= {name: None for name in ("before", "after") if not change.HasField(name)}
    assert change.as_of.nanos % 1_000 == 0
    found["as_of"] = datetime.fromtimestamp(change.as_of.seconds, UTC).replace(microsecond=change.as_of.nanos // 1_000)
    found["causes"] = [
        {"cause": each.cause, "event_id": each.event_id if each.HasField("event_id") else None}
        for each in change.causes
    ]
    return found


@cache
def _message() -> type[Message]:
    """Return the class of what protoc makes of the schema."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "descriptors"
        options = [f"-I{_CONTRACT}", "--include_imports", f"--descriptor_set_out={path}", "score_change.proto"]
        subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *options], check=True)
        described = FileDescriptorSet.FromString(path.read_bytes())
    pool = DescriptorPool()
    for file in described.file:
        pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("karmalake.v1.ScoreChange"))
