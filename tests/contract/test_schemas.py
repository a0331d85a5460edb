"""The schema store: responses of a folder or a registry, and the bounded cost of lookups."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from pipelines.contract import registry as registry_module
from pipelines.contract import schemas as schemas_module
from pipelines.contract.parsing import Problem
from pipelines.contract.registry import Reference, WriterSchema
from pipelines.contract.registry import Registry as RegistryClient
from pipelines.contract.rejection import Reason
from pipelines.contract.schema_ids import SchemaId
from pipelines.contract.schemas import SchemaStore
from pipelines.contract.values import parse_values
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings
from tests.contract.encoding import avro_schema, framed, to_avro
from tests.contract.fake_registry import Registry, running_registry

_NOON_MICROSECONDS = 1_772_366_400_000_000
_HTML = {"Content-Type": "text/html"}
_OpenSchemas = Callable[..., SchemaStore]


@pytest.fixture
def registry() -> Iterator[Registry]:
    """Return a registry that runs until the test ends."""
    with running_registry() as registry:
        yield registry


@pytest.fixture(scope="module")
def hostile() -> Iterator[Registry]:
    """Return a registry for many examples of one test."""
    with running_registry() as registry:
        yield registry


@pytest.fixture
def open_schemas() -> Iterator[_OpenSchemas]:
    """Return a function that opens schemas at a registry; they are closed with the test."""
    opened: list[SchemaStore] = []

    def open_at(registry: Registry, user: str = "", **more: Any) -> SchemaStore:
        url = SecretStr(registry.url.replace("//", f"//{user}"))
        opened.append(SchemaStore(None, RegistryClient(url), **more))
        return opened[-1]

    yield open_at
    for schemas in opened:
        schemas.close()


def _is_unknown(found: WriterSchema | Problem) -> bool:
    return isinstance(found, Problem) and found.reason is Reason.UNKNOWN_SCHEMA


def test_each_schema_is_requested_once(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """Responses are cached, over one connection, and no URL has the password. A schema without a type is Avro."""
    registry.schemas = {1: {"schema": "A"}, 2: {"schema": "P", "schemaType": "PROTOBUF"}, 3: {"schema": "J"}}
    registry.schemas[3]["schemaType"] = None
    schemas = open_schemas(registry, "reader:hush@")
    for _ in range(2):
        assert schemas.get(SchemaId("1")) == WriterSchema("avro", "A")
        assert schemas.get(SchemaId("2")) == WriterSchema("protobuf", "P")
        assert schemas.get(SchemaId("3")) == WriterSchema("avro", "J")
    assert registry.requests == ["/api/schemas/ids/1", "/api/schemas/ids/2", "/api/schemas/ids/3"]
    assert all(header and header.startswith("Basic ") for header in registry.authorizations)
    assert registry.connections == 1


def test_an_unknown_id_is_requested_again_after_a_minute(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """An unknown id is requested again after a minute: it may have been registered meanwhile."""
    now = [0.0]
    schemas = open_schemas(registry, clock=lambda: now[0])
    assert _is_unknown(schemas.get(SchemaId("1")))
    registry.schemas = {1: {"schema": "A"}}
    now[0] = 59.9
    assert _is_unknown(schemas.get(SchemaId("1")))
    now[0] = 60.0
    assert schemas.get(SchemaId("1")) == WriterSchema("avro", "A")
    assert len(registry.requests) == 2


@pytest.mark.slow
def test_many_unknown_ids_cost_little_and_hide_no_schema(registry: Registry) -> None:
    """Of 50,000 ids about 500 are requested, once a minute; schemas of valid events are among them (`not-blocked`)."""
    schema = avro_schema(1)
    registry.schemas = {7: {"schema": schema}}
    row = {"event_id": "e", "user_id": "u", "action_type": "A", "timestamp": _NOON_MICROSECONDS, "metadata": {}}
    values = [framed(number, b"x") for number in range(1_000, 51_000)] + [framed(7, to_avro(schema, row))] * 2
    contract = ContractSettings(schema_registry_url=SecretStr(registry.url))
    for _ in range(2):
        parsed = parse_values(pa.array(values, pa.binary()), contract)
        assert set(parsed.errors) == set(range(50_000))
        assert {problem.reason for problem in parsed.errors.values()} == {Reason.UNKNOWN_SCHEMA}
        assert parsed.events["event_id"].to_pylist()[-2:] == ["e", "e"]
        assert sum("was not looked up" in problem.detail for problem in parsed.errors.values()) > 48_900
    assert registry.requests.count("/api/schemas/ids/7") == 1
    assert 2 * 500 <= len(registry.requests) <= 2 * 520


@pytest.mark.slow
def test_a_restart_requests_no_more_unknown_ids_than_a_batch_may(
    registry: Registry, open_schemas: _OpenSchemas
) -> None:
    """Unknown ids are remembered for a minute, in memory: a new process begins with one batch's share of requests."""
    for _ in range(2):
        found = open_schemas(registry).get_all({SchemaId(str(number)): 1 for number in range(1, 3_001)})
        assert all(map(_is_unknown, found.values()))
    assert len(registry.requests) <= 2 * 520


@pytest.mark.slow
def test_known_ids_are_not_limited_by_their_number(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """A topic with more schemas than the limit for unknown ids loses no event."""
    registry.schemas = {number: {"schema": str(number)} for number in range(1, 701)}
    found = open_schemas(registry).get_all({SchemaId(str(number)): 1 for number in range(1, 701)})
    assert all(found[SchemaId(str(number))] == WriterSchema("avro", str(number)) for number in range(1, 701))


def test_an_invalid_id_is_not_requested(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """A registry responds to a number beyond 32 bits as to a wrong URL, which would look like an outage."""
    for name in (str(2**31), str(2**32 - 1), str(2**64 - 1)):
        assert _is_unknown(open_schemas(registry).get(SchemaId(name)))
    assert _is_unknown(open_schemas(registry).get(SchemaId("1", "globalIds")))
    assert registry.requests == []


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (200, _HTML, b"<html>please log in</html>", "HTTP 200, text/html, '<html>please log in</html>'"),
        (200, {}, b'{"id": 9}', "HTTP 200, no content type, '{\"id\": 9}'"),
        (200, {}, b"[]", "HTTP 200"),
        (200, {}, b"", "HTTP 200"),
        (200, {}, b'{"schema": 7}', "HTTP 200"),
        (200, {}, b'{"schema": "x", "schemaType": 7}', "HTTP 200"),
        (200, {}, b'{"schema": "\\ud800"}', "HTTP 200"),
        (200, {}, b"[" * 200_000, "HTTP 200"),
        (200, {}, b'{"schema": "x"' + b" " * 5_000_000 + b"}", "the answer is longer than 4194304 bytes"),
        (200, {"Content-Length": "99"}, b'{"schema": "x"}', "RemoteProtocolError"),
        (200, {}, b"\x1b[2J\xff\r\n", "'?[2J\ufffd??'"),
        (203, {}, b'{"schema": "x"}', "HTTP 203"),
        (302, {"Location": "http://127.0.0.1:1/login"}, b"", "HTTP 302"),
        (404, _HTML, b"<html>nothing here</html>", "HTTP 404, text/html"),
        (404, {}, b'{"error_code": 404, "message": "HTTP 404 Not Found"}', "HTTP 404"),
        (404, {}, b'{"error_code": 40401, "message": "Subject not found"}', "HTTP 404"),
        (200, {}, b'{"error_code": 40403}', "HTTP 200"),
        (400, {}, b"", "HTTP 400"),
        (408, {}, b"", "HTTP 408"),
        (429, {}, b"", "HTTP 429"),
        (500, {}, b'{"error_code": 40403}', "HTTP 500"),
        (503, {}, b"x", "HTTP 503"),
    ],
)
def test_an_invalid_response_is_an_outage(
    registry: Registry, open_schemas: _OpenSchemas, status: int, headers: dict[str, str], body: bytes, message: str
) -> None:
    """The records are not at fault: ingest stops; the error has the URL and the response, without the password."""
    registry.forced_response = (status, {"Connection": "close"} | headers, body)
    with pytest.raises(TransientError, match=rf"the schema registry at 127\.0\.0\.1:{registry.port} ") as raised:
        open_schemas(registry, "reader:hush@").get(SchemaId("1"))
    assert message in str(raised.value)
    assert "hush" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(registry.requests) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_login_is_a_configuration_error(registry: Registry, open_schemas: _OpenSchemas, status: int) -> None:
    """A retry does not help."""
    registry.forced_response = (status, {}, b"")
    with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{registry.port} refuses to answer: HTTP {status}"):
        open_schemas(registry).get(SchemaId("1"))


def test_an_unsupported_schema_type_makes_a_dead_letter(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """The registry has responded: the detail names the type, and it is not requested again."""
    registry.schemas = {1: {"schema": "<x/>", "schemaType": "XML\x1b"}}
    schemas = open_schemas(registry)
    for _ in range(2):
        expected = "The value's schema is of type XML?, which cannot be read."
        assert schemas.get(SchemaId("1")) == Problem(Reason.UNDECODABLE, expected)
    assert len(registry.requests) == 1


def test_references_are_resolved_by_the_registry(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """An Avro schema with references is requested resolved; Protobuf is read by numbers and needs no reference."""
    references = [{"name": "com.x.Address", "subject": "address", "version": 1}]
    named = Reference("com.x.Address", "address", 1)
    registry.schemas = {1: {"schema": "A", "references": references}}
    registry.resolved = {1: {"schema": "whole A", "references": references}}
    registry.schemas[2] = {"schema": "P", "schemaType": "PROTOBUF", "references": references}
    schemas = open_schemas(registry)
    for _ in range(2):
        assert schemas.get(SchemaId("1")) == WriterSchema("avro", "whole A")
        assert schemas.get(SchemaId("2")) == WriterSchema("protobuf", "P", (named,))
    assert registry.requests == ["/api/schemas/ids/1", "/api/schemas/ids/1?format=resolved", "/api/schemas/ids/2"]


def test_unresolved_references(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """The detail says what to do; an outage between the two requests is an outage, not a dead letter."""
    registry.schemas = {1: {"schema": "A", "references": [{"name": "com.x.Address"}]}}
    for registry.unresolved_response in (None, (501, {}, b'{"error_code": 501}'), (422, {}, b"")):
        found = open_schemas(registry).get(SchemaId("1"))
        assert isinstance(found, Problem)
        assert "refers to other subjects" in found.detail
        assert "contract.schemas_dir as 1.avsc" in found.detail
    for registry.unresolved_response in ((503, {}, b""), (200, _HTML, b"<html>"), (404, _HTML, b"<html>")):
        with pytest.raises(TransientError, match="failed, or is not a schema registry"):
            open_schemas(registry).get(SchemaId("1"))


def test_a_missing_reference_is_requested_again_after_a_minute(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """It may have been registered meanwhile; until then the problem stays, with its detail (`nothing-lost`)."""
    now, inner = [0.0], {"type": "enum", "name": "K", "symbols": ["A"]}
    outer = {"type": "record", "name": "R", "fields": [{"name": "k", "type": "K"}]}
    references = [{"name": "K", "subject": "k", "version": 1}]
    registry.schemas = {1: {"schema": json.dumps(outer), "references": references}}
    registry.unresolved_response = (422, {}, b"")
    schemas = open_schemas(registry, clock=lambda: now[0])
    for now[0] in (0.0, 59.9):
        found = schemas.get(SchemaId("1"))
        assert _is_unknown(found)
        assert isinstance(found, Problem)
        assert "lacks k, version 1" in found.detail
    registry.subjects = {("k", 1): {"schema": json.dumps(inner)}}
    now[0] = 60.0
    assert isinstance(schemas.get(SchemaId("1")), WriterSchema)


@pytest.mark.parametrize(
    "reference",
    [None, {"name": "a", "subject": "\ud800", "version": 1}, {"name": "a", "subject": "x" * 70_000, "version": 1}],
    ids=["none", "not unicode", "long"],
)
def test_a_reference_that_names_no_subject(registry: Registry, open_schemas: _OpenSchemas, reference: Any) -> None:
    """No request can name it: values of the schema are dead letters, and ingest goes on (`not-blocked`)."""
    registry.schemas = {1: {"schema": "{}", "references": [reference]}}
    found = open_schemas(registry).get(SchemaId("1"))
    assert isinstance(found, Problem)
    assert "it refers to no version of a subject" in found.detail


def test_a_registry_without_guids_is_not_an_outage(registry: Registry, open_schemas: _OpenSchemas) -> None:
    """A header with a GUID does not stop ingest if the registry is too old for GUIDs."""
    registry.schemas = {"00000000-0000-0000-0000-000000000001": {"schema": "A"}}
    guid = SchemaId("00000000-0000-0000-0000-000000000001", "guids")
    assert open_schemas(registry).get(guid) == WriterSchema("avro", "A")
    registry.supports_guids = False
    assert _is_unknown(open_schemas(registry).get(guid))
    registry.forced_response = (404, _HTML, b"<html>nothing here</html>")
    with pytest.raises(TransientError, match="HTTP 404, text/html"):
        open_schemas(registry).get(guid)


def test_an_unreachable_registry_is_an_outage(open_schemas: _OpenSchemas) -> None:
    """The error says that the connection was refused."""
    with running_registry() as registry:
        schemas = open_schemas(registry)
    with pytest.raises(TransientError, match=r"the schema registry at 127\.0\.0\.1:\d+ does not answer"):
        schemas.get(SchemaId("1"))


def test_one_deadline_for_all_ids_of_a_batch(
    registry: Registry, open_schemas: _OpenSchemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow registry is an outage; its responses are cached, so that a retry makes progress."""
    registry.schemas = {number: {"schema": "A"} for number in range(1, 101)}
    schemas = open_schemas(registry)
    ticks = iter(range(1_000))
    monkeypatch.setattr(registry_module, "monotonic", lambda: schemas.clock() + next(ticks))
    with pytest.raises(TransientError, match="too slow"):
        schemas.get_all({SchemaId(str(number)): 1 for number in range(1, 101)})
    assert 0 < len(schemas.known) < 100


@pytest.mark.slow
def test_unknown_ids_that_use_up_the_time_are_not_an_outage(
    registry: Registry, open_schemas: _OpenSchemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distant registry is too slow for 500 ids: otherwise a writer who names them could stop ingest repeatedly."""
    registry.schemas = {7: {"schema": "A"}}
    schemas = open_schemas(registry)
    now = schemas.clock()
    ticks = (now + 0.15 * tick for tick in range(1_000_000))
    for module in (registry_module, schemas_module):
        monkeypatch.setattr(module, "monotonic", lambda: next(ticks))
    found = schemas.get_all({SchemaId(str(number)): 2 if number == 7 else 1 for number in range(1, 1_001)})
    assert found[SchemaId("7")] == WriterSchema("avro", "A")
    assert all(_is_unknown(answer) for schema_id, answer in found.items() if schema_id.name != "7")
    details = [answer.detail for answer in found.values() if isinstance(answer, Problem)]
    assert sum("was not looked up" in detail for detail in details) >= 1_000 - len(registry.requests)
    assert 100 <= len(registry.requests) < 300


def test_all_schemas_of_a_registry_are_not_an_outage(
    registry: Registry, open_schemas: _OpenSchemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer may name every schema: those of most records are read, the others are dead letters."""
    monkeypatch.setattr(schemas_module, "_MAX_CHARACTERS", 10_000)
    monkeypatch.setattr(schemas_module, "_MANY_SCHEMAS", 50)
    registry.schemas = {number: {"schema": "x" * 100} for number in range(1, 201)}
    schemas = open_schemas(registry)
    for _ in range(3):
        found = schemas.get_all({SchemaId(str(number)): 2 if number == 200 else 1 for number in range(1, 201)})
        assert found[SchemaId("200")] == WriterSchema("avro", "x" * 100)
        assert 50 < sum(map(_is_unknown, found.values())) < 150


@pytest.mark.slow
def test_the_cache_is_bounded(registry: Registry, open_schemas: _OpenSchemas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither unknown ids nor large schemas fill the memory of a long-lived process."""
    monkeypatch.setattr(schemas_module, "_MAX_CACHED_UNKNOWN", 100)
    monkeypatch.setattr(schemas_module, "_MAX_CHARACTERS", 10_000)
    schemas = open_schemas(registry)
    for start in range(0, 150, 50):
        schemas.get_all({SchemaId(str(number)): 1 for number in range(start, start + 50)})
    assert {int(schema_id.name) for schema_id in schemas.unknown} == set(range(50, 150))
    registry.forced_response = (200, {}, json.dumps({"schema": "x" * 1_000}).encode())
    for number in range(200, 220):
        schemas.get(SchemaId(str(number)))
    assert {int(schema_id.name) for schema_id in schemas.known} == set(range(210, 220))
    with pytest.raises(TransientError, match="more than 10000 characters"):
        schemas.get_all({SchemaId(str(number)): 1 for number in range(300, 340)})


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
_SCHEMA_RESPONSE = st.fixed_dictionaries(
    {},
    optional={
        "schema": st.sampled_from(["{}", avro_schema(1)]) | _ANY_JSON,
        "schemaType": st.sampled_from(["AVRO", "PROTOBUF", "JSON", "avro", "XML"]) | _ANY_JSON,
        "references": _ANY_JSON,
        "error_code": st.sampled_from([40403, 404]) | _ANY_JSON,
    },
)
_BODY = st.binary() | (_ANY_JSON | _SCHEMA_RESPONSE).map(lambda value: json.dumps(value).encode())
_HEADERS = st.dictionaries(
    st.sampled_from(["Content-Type", "Location", "Content-Encoding", "Set-Cookie", "WWW-Authenticate", "Retry-After"]),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n")),
)


def _outcome(registry: Registry) -> WriterSchema | Problem | TransientError | ConfigurationError:
    schemas = SchemaStore(None, RegistryClient(SecretStr(registry.url)))
    try:
        return schemas.get(SchemaId("1"))
    except (TransientError, ConfigurationError) as error:
        return error
    finally:
        schemas.close()


@pytest.mark.slow
@given(status=st.sampled_from([200, 401, 403, 404]) | st.integers(200, 599), headers=_HEADERS, body=_BODY)
def test_any_answer_has_one_of_four_outcomes(
    hostile: Registry, status: int, headers: dict[str, str], body: bytes
) -> None:
    """A schema, the detail of a dead letter, an outage or a configuration error: nothing else reaches ingest."""
    hostile.forced_response = (status, headers | {"Connection": "close"}, body)
    found = _outcome(hostile)
    if isinstance(found, TransientError):
        assert str(found).isprintable()
    elif isinstance(found, ConfigurationError):
        assert status in {401, 403}
    else:
        assert status == 200 or (status == 404 and _is_unknown(found))


def test_a_folder_comes_first(tmp_path: Path, registry: Registry) -> None:
    """A file is named by id or GUID; a file that appears is found at once."""
    guid = SchemaId("00000000-0000-0000-0000-000000000001", "guids")
    url = SecretStr(registry.url)
    schemas = SchemaStore(tmp_path, RegistryClient(url))
    (tmp_path / "9.avsc").write_text("A")
    (tmp_path / f"{guid.name}.proto").write_text("P")
    found = schemas.get_all({SchemaId("9"): 1, SchemaId("9", "globalIds"): 1, guid: 1, SchemaId("8"): 1})
    assert found[SchemaId("9")] == found[SchemaId("9", "globalIds")] == WriterSchema("avro", "A")
    assert found[guid] == WriterSchema("protobuf", "P")
    assert _is_unknown(found[SchemaId("8")])
    (tmp_path / "8.json").write_text("J")
    assert schemas.get(SchemaId("8")) == WriterSchema("json", "J")
    assert registry.requests == ["/api/schemas/ids/8"]
    schemas.close()


def _loop(path: Path) -> None:
    path.symlink_to(path)


def _write(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.mkdir, "is not a file"),
        (_loop, "is not a file"),
        (os.mkfifo, "is not a file"),
        (_write(b"\xff"), "is not a schema: it is not UTF-8"),
        (_write(b" " * (4 * 1024 * 1024 + 1)), "is not a schema: it is longer than 4194304 bytes"),
    ],
    ids=["folder", "loop", "pipe", "bytes", "huge"],
)
def test_an_invalid_schema_file_is_a_configuration_error(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    """The error names the file and the problem."""
    make(tmp_path / "9.avsc")
    with pytest.raises(ConfigurationError, match=rf"9\.avsc {message}"):
        SchemaStore(tmp_path, None).get(SchemaId("9"))


def test_a_missing_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """The error names the setting."""
    contract = ContractSettings(schemas_dir=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="schemas_dir: there is no folder"):
        parse_values(pa.array([framed(1, b"\x00")], pa.binary()), contract)


@pytest.mark.parametrize("url", ["registry:8081", "ftp://registry", "http://"])
def test_an_invalid_url_is_a_configuration_error(url: str) -> None:
    """The error is raised at the first request, without the password in the URL."""
    schemas = SchemaStore(None, RegistryClient(SecretStr(url)))
    with pytest.raises(ConfigurationError, match="schema_registry_url is not an http"):
        schemas.get(SchemaId("1"))
    schemas.close()
