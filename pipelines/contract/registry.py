"""A client of schema registries with Confluent's HTTP API, which validates every response.

A response is a schema, "not found", or an outage. Only error code 40403 means "not found": any other 404 may come from
a proxy, and would turn valid events into dead letters.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from time import monotonic
from typing import Any, NamedTuple, cast
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from pipelines.boundary.http import HttpClient, HttpResponse, excerpt
from pipelines.contract.avro_schema import inline_references
from pipelines.contract.parsing import Problem, sanitize_message
from pipelines.contract.rejection import Reason
from pipelines.contract.schema_ids import SchemaId
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import Format

MAX_SCHEMA_BYTES = 4 * 1024 * 1024
"""The maximum size of a response or a schema file. Registries store schemas in Kafka records of 1 MiB."""
MAX_REFERENCES = 200
"""Of a schema, directly or through others."""
_REQUEST_SECONDS = 10.0
_FOLLOW_SECONDS = 30.0
_CONCURRENT_REQUESTS = 4
"""Enough to hide latency, few enough for a small registry."""
_FORMATS: dict[str, Format] = {"PROTOBUF": "protobuf", "AVRO": "avro", "JSON": "json"}
_UNKNOWN_SCHEMA = 40403
_UNKNOWN_VERSIONS = {40401, 40402, 40403}
"""Error codes of a subject, or a version of it, that the registry lacks."""
_NOT_SUPPORTED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_IMPLEMENTED}
"""Responses of registries without the format `resolved`; others ignore the parameter."""
_MAX_SUBJECT_CHARACTERS = 1_000
_MAX_ID = 2**31 - 1
"""Ids are positive 32-bit integers; for a larger one a registry responds with a general 404."""


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """The schema with which a value was written."""

    format: Format
    text: str
    references: tuple["Reference", ...] = ()
    """What the schema names of other subjects, as the registry lists it."""


class Reference(NamedTuple):
    """A schema's reference to a version of another subject, by the name that the schema uses."""

    name: str
    subject: str
    version: int


class MissingReferenceError(ConfigurationError):
    """A schema refers to one that the registry lacks, to too many, or to none that a request can name."""


@dataclass(frozen=True, slots=True)
class Registry:
    """A client of one registry."""

    url: SecretStr
    client: HttpClient = field(default_factory=HttpClient)

    @staticmethod
    def accepts(schema_id: SchemaId) -> bool:
        """Return whether a registry can have a schema of this id."""
        return schema_id.space == "guids" or (schema_id.space == "ids" and int(schema_id.name) <= _MAX_ID)

    def fetch(self, ids: Sequence[SchemaId], deadline: float) -> Iterator[WriterSchema | Problem | None]:
        """Yield the schema of each id, the problem of one that cannot be used, or None if it is unknown, in order.

        Of one that refers to a schema that the registry lacks, the problem has the reason UNKNOWN_SCHEMA.
        `deadline` is a time of the monotonic clock, for all ids. Raises ConfigurationError if the registry denies
        access, TransientError if it is not available.
        """
        paths = [f"schemas/{schema_id.space}/{schema_id.name}" for schema_id in ids]
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            for schema_id, answer in zip(ids, pool.map(self._get, paths, [deadline] * len(paths)), strict=True):
                yield self._read(schema_id, answer, deadline)

    def _read(self, schema_id: SchemaId, answer: HttpResponse, deadline: float) -> WriterSchema | Problem | None:
        body = _json(answer)
        if answer.status == HTTPStatus.NOT_FOUND and _is_not_found(body):
            return None
        if answer.status == HTTPStatus.NOT_FOUND and schema_id.space == "guids" and self._responds(deadline):
            return None
        found = _schema_in(body) if answer.status == HTTPStatus.OK else None
        if found is None:
            raise self._error(answer)
        if isinstance(found, WriterSchema) and found.format == "avro" and found.references:
            return self._resolved(schema_id, found, deadline)
        return found

    def _resolved(self, schema_id: SchemaId, found: WriterSchema, deadline: float) -> WriterSchema | Problem:
        """Request an Avro schema with all its references resolved, in one request."""
        answer = self._get(f"schemas/{schema_id.space}/{schema_id.name}", deadline, {"format": "resolved"})
        resolved = _schema_in(_json(answer)) if answer.status == HTTPStatus.OK else None
        if resolved is None and answer.status not in _NOT_SUPPORTED:
            raise self._error(answer)
        if isinstance(resolved, WriterSchema) and resolved.text != found.text:
            return replace(resolved, references=())
        try:
            named = self.follow(found.references, max(0.0, deadline - monotonic()))
            return WriterSchema("avro", inline_references(found.text, named))
        except (MissingReferenceError, ValueError) as error:
            reason = Reason.UNKNOWN_SCHEMA if isinstance(error, MissingReferenceError) else Reason.UNDECODABLE
            detail = (
                "The value's Avro schema refers to other subjects of the registry, which does not resolve them "
                f"({error}): put the resolved schema into contract.schemas_dir as {schema_id.name}.avsc, then requeue "
                "the dead letters."
            )
            return Problem(reason, sanitize_message(detail))

    def follow(self, references: Sequence[Reference], seconds: float = _FOLLOW_SECONDS) -> dict[str, str]:
        """Return the schemas that references name, and those that they refer to, by name; the innermost come first.

        Raises MissingReferenceError if the registry lacks one, no request can name one, or there are over
        MAX_REFERENCES, and as `fetch` does.
        """
        found: dict[str, str] = {}
        self._follow(references, monotonic() + seconds, found, set())
        return found

    def _follow(
        self, references: Sequence[Reference], deadline: float, found: dict[str, str], requested: set[Reference]
    ) -> None:
        for reference in references:
            if reference in requested:
                continue
            requested.add(reference)
            if not reference.subject:
                raise MissingReferenceError(f"it refers to no version of a subject: {excerpt(reference.name)}")
            if len(requested) > MAX_REFERENCES:
                raise MissingReferenceError(f"a schema of {self._where} refers to over {MAX_REFERENCES} others")
            subject = quote(reference.subject, safe="")
            answer = self._get(f"subjects/{subject}/versions/{reference.version}", deadline)
            schema = _schema_in(_json(answer)) if answer.status == HTTPStatus.OK else None
            if not isinstance(schema, WriterSchema):
                if _error_code(_json(answer)) in _UNKNOWN_VERSIONS:
                    raise MissingReferenceError(f"{self._where} lacks {reference.subject}, version {reference.version}")
                raise self._error(answer)
            self._follow(schema.references, deadline, found, requested)
            found[reference.name] = schema.text

    def _responds(self, deadline: float) -> bool:
        """Return whether the registry responds: an older one has no path for GUIDs."""
        answer = self._get("schemas/types", deadline)
        return answer.status == HTTPStatus.OK and isinstance(_json(answer), list)

    def _error(self, answer: HttpResponse) -> ConfigurationError | TransientError:
        status = f"HTTP {answer.status}"
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return ConfigurationError(f"{self._where} refuses to answer: {status}; check its address and password")
        content_type = excerpt(answer.headers.get("Content-Type", "no content type"))
        body = excerpt(answer.body[:400].decode("utf-8", "replace"))
        truncation = f"; {answer.truncation}" if answer.truncation else ""
        return TransientError(
            f"{self._where} failed, or is not a schema registry: {status}, {content_type}, {body!r}{truncation}"
        )

    def _get(self, path: str, deadline: float, query: dict[str, str] | None = None) -> HttpResponse:
        seconds = min(_REQUEST_SECONDS, deadline - monotonic())
        if seconds <= 0:
            raise TransientError(f"{self._where} is too slow: it did not answer for all schemas of a batch in time")
        try:
            return self.client.exchange(self._request(path, query or {}), seconds, MAX_SCHEMA_BYTES)
        except TransientError as error:
            raise TransientError(f"{self._where} does not answer: {error}") from None

    def _request(self, path: str, query: dict[str, str]) -> httpx.Request:
        url = self._address
        # The password goes into a header, since httpx logs URLs.
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


def _json(answer: HttpResponse) -> Any:
    """Return the body as JSON; None if it is incomplete or not JSON."""
    try:
        return None if answer.truncation else json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _is_not_found(body: Any) -> bool:
    return _error_code(body) == _UNKNOWN_SCHEMA


def _error_code(body: Any) -> object:
    return cast("dict[str, Any]", body).get("error_code") if isinstance(body, dict) else None


def _schema_in(body: Any) -> WriterSchema | Problem | None:
    """Return the schema in a response, or the problem of one that cannot be used; None if there is none."""
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
    return WriterSchema(form, text, tuple(_references(answer.get("references"))))


def _references(listed: Any) -> Iterator[Reference]:
    for each in cast("list[Any]", listed) if isinstance(listed, list) else []:
        match each:
            case {"name": str(name), "subject": str(subject), "version": int(version)} if _is_subject(subject):
                yield Reference(name, subject, version)
            case _:
                yield Reference(str(each), "", 0)  # `follow` refuses it


def _is_subject(text: str) -> bool:
    """Return whether a text can be part of the address of a request."""
    return len(text) <= _MAX_SUBJECT_CHARACTERS and _is_unicode(text)


def _is_unicode(text: str) -> bool:
    """Return whether a text has no lone surrogates, which JSON can escape but no encoding can represent."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
