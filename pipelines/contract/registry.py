"""A schema registry, asked by Confluent's HTTP API; what it answers is checked before it is believed.

An answer is a schema, "there is none", or an outage. Only error code 40403 says that there is none: any other 404 may
be a proxy's page, and valid events would become dead letters by it.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any, Literal, TypeGuard, cast

import httpx
from pydantic import SecretStr

from pipelines.boundary.http import HttpAnswer, HttpClient, excerpt
from pipelines.contract.parsed import Problem
from pipelines.contract.rejection import Reason
from pipelines.contract.schema_ids import SchemaId
from pipelines.errors import ConfigurationError, TransientError

Format = Literal["protobuf", "avro", "json"]
MAX_SCHEMA_BYTES = 4 * 1024 * 1024
"""Of an answer, or a file of `contract.schemas_dir`. Registries keep a schema in a Kafka record: 1 MiB by default."""
_EXCHANGE_SECONDS = 10.0
_AT_ONCE = 4
"""Exchanges under way: enough that distance costs little, few enough for a small registry."""
_FORMATS: dict[str, Format] = {"PROTOBUF": "protobuf", "AVRO": "avro", "JSON": "json"}
_UNKNOWN_SCHEMA = 40403
_NOT_SUPPORTED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_IMPLEMENTED}
"""What registries answer that know no format `resolved`; others pass the parameter over."""
_LARGEST_ID = 2**31 - 1
"""A registry's ids are positive 32-bit integers; it answers a larger one as if the address were wrong."""


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """What a value was written by."""

    format: Format
    text: str


@dataclass(frozen=True, slots=True)
class Registry:
    """Connections to one registry."""

    url: SecretStr
    client: HttpClient = field(default_factory=HttpClient)

    @staticmethod
    def serves(schema_id: SchemaId) -> bool:
        """Return whether a registry can be asked for a schema at all."""
        return schema_id.space == "guids" or (schema_id.space == "ids" and int(schema_id.name) <= _LARGEST_ID)

    def ask(self, ids: Sequence[SchemaId], ends: float) -> Iterator[WriterSchema | Problem | None]:
        """Yield what the registry has for each id: a schema, why that cannot be used, or None, in order, until `ends`.

        Raises ConfigurationError if it refuses to answer, TransientError if it does not answer properly for now.
        """
        paths = [f"schemas/{schema_id.space}/{schema_id.name}" for schema_id in ids]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for schema_id, answer in zip(ids, pool.map(self._get, paths, [ends] * len(paths)), strict=True):
                yield self._read(schema_id, answer, ends)

    def _read(self, schema_id: SchemaId, answer: HttpAnswer, ends: float) -> WriterSchema | Problem | None:
        body = _json(answer)
        if answer.status == HTTPStatus.NOT_FOUND and _says_unknown(body):
            return None
        if answer.status == HTTPStatus.NOT_FOUND and schema_id.space == "guids" and self._is_there(ends):
            return None
        found = _schema_in(body) if answer.status == HTTPStatus.OK else None
        if found is None:
            raise self._trouble(answer)
        return self._resolved(schema_id, found, ends) if _refers(found, body) else found

    def _resolved(self, schema_id: SchemaId, found: WriterSchema, ends: float) -> WriterSchema | Problem:
        """Ask for an Avro schema with what it refers to written into it: one more exchange, however deep that is."""
        answer = self._get(f"schemas/{schema_id.space}/{schema_id.name}", ends, {"format": "resolved"})
        whole = _schema_in(_json(answer)) if answer.status == HTTPStatus.OK else None
        if whole is None and answer.status not in _NOT_SUPPORTED:
            raise self._trouble(answer)
        if isinstance(whole, WriterSchema) and whole.text != found.text:
            return whole
        sentence = (
            "The value's Avro schema refers to other subjects of the registry, which does not resolve them: put the "
            f"whole schema into contract.schemas_dir as {schema_id.name}.avsc, then requeue the dead letters."
        )
        return Problem(Reason.UNDECODABLE, sentence)

    def _is_there(self, ends: float) -> bool:
        """Return whether a registry answers at all: an older one does not know the path of GUIDs."""
        answer = self._get("schemas/types", ends)
        return answer.status == HTTPStatus.OK and isinstance(_json(answer), list)

    def _trouble(self, answer: HttpAnswer) -> ConfigurationError | TransientError:
        status = f"HTTP {answer.status}"
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return ConfigurationError(f"{self._where} refuses to answer: {status}; check its address and password")
        content_type = excerpt(answer.headers.get("Content-Type", "no content type"))
        said = excerpt(answer.body[:400].decode("utf-8", "replace"))
        cut = f"; {answer.cut}" if answer.cut else ""
        return TransientError(f"{self._where} has trouble, or is none: {status}, {content_type}, {said!r}{cut}")

    def _get(self, path: str, ends: float, query: dict[str, str] | None = None) -> HttpAnswer:
        seconds = min(_EXCHANGE_SECONDS, ends - monotonic())
        if seconds <= 0:
            raise TransientError(f"{self._where} is too slow: it did not answer for all schemas of a batch in time")
        try:
            return self.client.exchange(self._request(path, query or {}), seconds, MAX_SCHEMA_BYTES)
        except TransientError as error:
            raise TransientError(f"{self._where} does not answer: {error}") from None

    def _request(self, path: str, query: dict[str, str]) -> httpx.Request:
        url = self._address
        # The password goes into a header: httpx logs addresses.
        place = url.copy_with(userinfo=b"", path=f"{url.path.rstrip('/')}/{path}")
        if query:
            place = place.copy_merge_params(query)
        request = httpx.Request("GET", place, headers={"Accept": "application/vnd.schemaregistry.v1+json, */*;q=0.5"})
        return next(httpx.BasicAuth(url.username, url.password).auth_flow(request)) if url.userinfo else request

    @property
    def _address(self) -> httpx.URL:
        try:
            url = httpx.URL(self.url.get_secret_value())
        except (httpx.InvalidURL, ValueError):
            url = None
        if url is None or url.scheme not in {"http", "https"} or not url.host:
            raise ConfigurationError("contract.schema_registry_url is not an http:// or https:// address")
        return url

    @property
    def _where(self) -> str:
        return f"the schema registry at {self._address.host}:{self._address.port or self._address.scheme}"


def _json(answer: HttpAnswer) -> Any:
    """Return the body as JSON; None if it is incomplete or none."""
    try:
        return None if answer.cut else json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _says_unknown(body: Any) -> bool:
    return isinstance(body, dict) and cast("dict[str, Any]", body).get("error_code") == _UNKNOWN_SCHEMA


def _schema_in(body: Any) -> WriterSchema | Problem | None:
    """Return the schema that an answer holds, or why it cannot be used; None if it holds none."""
    if not isinstance(body, dict):
        return None
    answer = cast("dict[str, Any]", body)
    text, kind = answer.get("schema"), answer.get("schemaType")
    kind = "AVRO" if kind is None else kind
    if not isinstance(kind, str) or not isinstance(text, str) or not _is_unicode(text):
        return None
    form = _FORMATS.get(kind.upper())
    if form is None:
        return Problem(Reason.UNDECODABLE, f"The value's schema is of type {excerpt(kind)}, which cannot be read.")
    return WriterSchema(form, text)


def _refers(found: WriterSchema | Problem, body: Any) -> TypeGuard[WriterSchema]:
    """Return whether a schema lacks what other subjects hold; ours is whole without them in Protobuf."""
    return isinstance(found, WriterSchema) and found.format == "avro" and bool(body.get("references"))


def _is_unicode(text: str) -> bool:
    """Return whether a text has no halves of characters, which JSON can escape and nothing can encode."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
