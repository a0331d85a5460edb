"""Schema evolution: events of all versions in one topic are ingested correctly."""

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from pipelines.emit.producer import Record
from pipelines.errors import TransientError
from pipelines.operate.audit import audit
from pipelines.operate.dead_letters import Requeued, Selection, requeue
from pipelines.settings import Settings
from tests.contract.encoding import VERSIONS, avro_schema, framed, to_avro, to_json, to_protobuf
from tests.contract.fake_registry import running_registry
from tests.draining import NOON, assert_verified, drain_all, query, send, with_ingest

_SECONDS = int(NOON.timestamp())
_LATE_SCHEMA = 40


def _records() -> list[Record]:
    """Return an event of each version in Protobuf (bare and with an id), in Avro and in JSON."""
    values = [
        value
        for version in VERSIONS
        for value in (
            to_protobuf(version, f"bare-{version}", _SECONDS),
            framed(10 + version, b"\x00" + to_protobuf(version, f"protobuf-{version}", _SECONDS)),
            framed(20 + version, _avro(version, f"avro-{version}")),
            framed(30 + version, to_json(version, f"json-{version}", NOON.isoformat())),
        )
    ]
    return [Record(b"u", value) for value in values]


def _avro(version: int, event_id: str) -> bytes:
    row = {"event_id": event_id, "user_id": "u", "action_type": "A", "timestamp": NOON, "metadata": {"rating": "5"}}
    return to_avro(avro_schema(version), row | {"source": "app"})


def _with_contract(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"contract": settings.contract.model_copy(update=changes)})


def test_events_of_three_versions_in_three_formats(settings: Settings, tmp_path: Path) -> None:
    """Versions 1, 2 (a field added) and 3 (a field retired), from a folder and a registry, in one topic (`once`).

    The same event in another format is the same event: sent again, it is a duplicate.
    """
    for version in VERSIONS:
        (tmp_path / f"{20 + version}.avsc").write_text(avro_schema(version))
    with running_registry() as registry:
        registry.schemas = {10 + version: {"schema": "", "schemaType": "PROTOBUF"} for version in VERSIONS}
        registry.schemas |= {30 + version: {"schema": "{}", "schemaType": "JSON"} for version in VERSIONS}
        url = SecretStr(f"http://127.0.0.1:{registry.port}")
        reader = _with_contract(with_ingest(settings), schemas_dir=tmp_path, schema_registry_url=url)
        send(reader, _records())
        send(reader, [Record(b"u", framed(22, _avro(2, "protobuf-2")))])
        drain_all(reader)
    expected = [
        (f"{kind}-{version}", NOON, version < 3)
        for kind in ("avro", "bare", "json", "protobuf")
        for version in VERSIONS
    ]
    found = query(reader, "SELECT event_id, event_time, metadata['rating'] IS NOT NULL FROM events ORDER BY event_id")
    assert found == expected
    assert query(reader, "SELECT sum(duplicates), sum(dead_letters) FROM commits") == [(1, 0)]
    assert_verified(reader)
    assert audit(reader).passed


def test_a_schema_that_appears_later(settings: Settings, tmp_path: Path) -> None:
    """Events with an unknown schema are dead letters, and are accepted on requeue once the schema exists."""
    reader = _with_contract(with_ingest(settings), schemas_dir=tmp_path)
    values = [framed(_LATE_SCHEMA, _avro(2, f"late-{n}")) for n in range(5)]
    send(reader, [Record(b"u", value) for value in values])
    send(reader, [Record(b"u", to_protobuf(1, "bare", _SECONDS))])
    drain_all(reader)
    assert query(reader, "SELECT DISTINCT reason FROM dead_letters") == [("unknown_schema",)]
    assert requeue(reader, Selection(reason="unknown_schema")) == Requeued(0, 0, 0, still_rejected=5)
    (tmp_path / f"{_LATE_SCHEMA}.avsc").write_text(avro_schema(2))
    assert requeue(reader, Selection(reason="unknown_schema")) == Requeued(5, 0, 0, still_rejected=0)
    assert query(reader, "SELECT count(*) FROM events") == [(6,)]
    assert_verified(reader)


def test_a_proxy_before_the_registry_costs_no_event(settings: Settings) -> None:
    """While a proxy responds instead of the registry, nothing is committed; afterwards every event counts (`once`)."""
    with running_registry() as registry:
        registry.schemas = {10: {"schema": "", "schemaType": "PROTOBUF"}}
        registry.forced_response = (404, {"Content-Type": "text/html"}, b"<html>no such page</html>")
        reader = _with_contract(with_ingest(settings), schema_registry_url=SecretStr(registry.url))
        send(reader, [Record(b"u", framed(10, b"\x00" + to_protobuf(1, f"e-{n}", _SECONDS))) for n in range(3)])
        with pytest.raises(TransientError, match="HTTP 404, text/html, '<html>no such page</html>'"):
            drain_all(reader)
        registry.forced_response = None
        drain_all(reader)
    assert query(reader, "SELECT sum(accepted), sum(dead_letters) FROM commits") == [(3, 0)]
    assert_verified(reader)


def test_schema_ids_in_headers(settings: Settings, tmp_path: Path) -> None:
    """The field order of the writer's schema is used: user and event are never swapped, and the audit agrees."""
    schema = json.loads(avro_schema(1))
    schema["fields"][:2] = reversed(schema["fields"][:2])
    (tmp_path / "9.avsc").write_text(json.dumps(schema))
    row = {"event_id": "ride-1", "user_id": "ann", "action_type": "A", "timestamp": NOON, "metadata": {}}
    value = to_avro(json.dumps(schema), row)
    known = ("apicurio.value.globalId", (9).to_bytes(8, "big"))
    unknown = ("__value_schema_id", b"\x01" + bytes(16))
    reader = _with_contract(with_ingest(settings), format="avro", schemas_dir=tmp_path)
    send(reader, [Record(b"ann", value, [unknown]), Record(b"ann", value, [known])])
    drain_all(reader)
    assert query(reader, "SELECT event_id, user_id FROM events") == [("ride-1", "ann")]
    assert query(reader, "SELECT reason FROM dead_letters") == [("unknown_schema",)]
    assert audit(reader).passed
