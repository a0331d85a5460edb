"""The schemas of writers by id: from a folder, then from a registry, with a cache. Schemas are immutable.

Any writer of the topic can send any id, so the cost of the ids of a batch is bounded: at most `_MAX_UNKNOWN` ids may
turn out to be unknown, within `_BATCH_SECONDS` for all requests. The ids of most records are requested first. The
remaining ids then count as unknown, unless the time ran out before many ids were unknown: then the registry is slow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from time import monotonic

from pydantic import SecretStr

from pipelines.contract.parsing import Problem
from pipelines.contract.registry import MAX_SCHEMA_BYTES, Registry, WriterSchema
from pipelines.contract.rejection import Reason
from pipelines.contract.schema_ids import SchemaId
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings, Format

LookupResult = WriterSchema | Problem
_FORMATS_BY_SUFFIX: dict[str, Format] = {".proto": "protobuf", ".avsc": "avro", ".json": "json"}
_BATCH_SECONDS = 30.0
_MAX_UNKNOWN = 500
"""Unknown ids per batch: half a second with a nearby registry. Far more than the schemas that the writers of a topic
fail to register; to hide a new schema, a writer would have to send as many records with each of as many ids."""
_UNKNOWN_SECONDS = 60.0
"""How long an unknown id is not requested again; it may be registered in the meantime."""
_MAX_CACHED_UNKNOWN = 10_000
_MAX_CHARACTERS = 64 * 1024 * 1024
"""The total size of the schemas of a batch, and of the cache."""
_REQUEST_BATCH_SIZE = 16
"""Responses in memory at a time, each of at most `MAX_SCHEMA_BYTES`."""
_MANY_SCHEMAS = 1_000
"""Schemas in a batch above which their total size is the writer's fault: one writer may send all ids of a registry."""
_MANY_UNKNOWN = 100
"""Unknown ids in a batch above which a timeout is the writer's fault, and would recur with each retry."""


@dataclass(slots=True)
class SchemaStore:
    """A cache of the schemas of a folder and a registry. Thread-safe."""

    folder: Path | None
    registry: Registry | None
    known: dict[SchemaId, LookupResult] = field(default_factory=dict[SchemaId, LookupResult])
    unknown: dict[SchemaId, tuple[float, Problem]] = field(default_factory=dict[SchemaId, tuple[float, Problem]])
    """Ids that the registry does not have, or not all that they refer to, with the time of its response, oldest first.
    """
    lock: Lock = field(default_factory=Lock)
    clock: Callable[[], float] = monotonic

    def get(self, schema_id: SchemaId) -> LookupResult:
        """Return the schema of one id, or the problem; see `get_all`."""
        return self.get_all({schema_id: 1})[schema_id]

    def get_all(self, records: Mapping[SchemaId, int]) -> dict[SchemaId, LookupResult]:
        """Return the schema of each id, or the problem. `records` maps ids to the number of records that use them.

        Raises ConfigurationError if the registry denies access or a file cannot be read, TransientError if the registry
        is not available. Schemas that were found before the error stay in the cache.
        """
        with self.lock:
            found = {schema_id: self.known[schema_id] for schema_id in records if schema_id in self.known}
            found |= self._find_in_folder([schema_id for schema_id in records if schema_id not in found])
            rest = [schema_id for schema_id in records if schema_id not in found]
            try:
                found |= self._find_in_registry(sorted(rest, key=lambda schema_id: -records[schema_id]), found)
            finally:
                self._evict()
        return {
            schema_id: found[schema_id] if schema_id in found else self._problem(schema_id) for schema_id in records
        }

    def can_look_up(self, schema_id: SchemaId) -> bool:
        """Return whether the folder or the registry can contain a schema of this id."""
        return self.folder is not None or (self.registry is not None and self.registry.accepts(schema_id))

    def close(self) -> None:
        """Close the connections to the registry."""
        if self.registry is not None:
            self.registry.client.close()

    def _find_in_folder(self, ids: Sequence[SchemaId]) -> dict[SchemaId, LookupResult]:
        if self.folder is None or not ids:
            return {}
        names = _names_in(self.folder)
        found: dict[SchemaId, LookupResult] = {}
        for schema_id in ids:
            for suffix, form in _FORMATS_BY_SUFFIX.items():
                if f"{schema_id.name}{suffix}" in names and schema_id not in found:
                    found[schema_id] = WriterSchema(form, _read(self.folder / f"{schema_id.name}{suffix}"))
        self.known |= found
        return found

    def _find_in_registry(
        self, ids: Sequence[SchemaId], found_before: Mapping[SchemaId, LookupResult]
    ) -> dict[SchemaId, LookupResult]:
        """Request ids in their order, until too many are unknown or the schemas are too large in total."""
        if self.registry is None:
            return {}
        ids = [schema_id for schema_id in ids if self.registry.accepts(schema_id) and not self._is_unknown(schema_id)]
        deadline = monotonic() + _BATCH_SECONDS
        answered: dict[SchemaId, LookupResult] = {}
        characters = _characters(found_before)
        for start in range(0, len(ids), _REQUEST_BATCH_SIZE):
            if start - len(answered) >= _MAX_UNKNOWN:
                return answered | self._not_requested(ids)
            requested = ids[start : start + _REQUEST_BATCH_SIZE]
            try:
                for schema_id, found in zip(requested, self.registry.fetch(requested, deadline), strict=True):
                    answered |= self._remember(schema_id, found)
            except TransientError:
                if monotonic() < deadline or sum(map(self._is_unknown, ids)) < _MANY_UNKNOWN:
                    raise
                return answered | self._not_requested(ids)
            characters += sum(_length(answered[schema_id]) for schema_id in requested if schema_id in answered)
            if characters > _MAX_CHARACTERS:
                _check_count(len(found_before) + len(answered))
                return answered | self._not_requested(ids)
        return answered

    def _not_requested(self, ids: Sequence[SchemaId]) -> dict[SchemaId, LookupResult]:
        """Return the problem of those ids that were not requested."""
        unknown = sum(map(self._is_unknown, ids))
        detail = (
            f"The value's schema was not looked up: its batch uses {len(ids)} schema ids, others were "
            f"requested first, and {unknown} are unknown."
        )
        remaining = [schema_id for schema_id in ids if schema_id not in self.known and not self._is_unknown(schema_id)]
        return dict.fromkeys(remaining, Problem(Reason.UNKNOWN_SCHEMA, detail))

    def _is_unknown(self, schema_id: SchemaId) -> bool:
        return schema_id in self.unknown and self.clock() - self.unknown[schema_id][0] < _UNKNOWN_SECONDS

    def _problem(self, schema_id: SchemaId) -> Problem:
        return self.unknown[schema_id][1] if schema_id in self.unknown else _not_found(schema_id)

    def _remember(self, schema_id: SchemaId, found: LookupResult | None) -> dict[SchemaId, LookupResult]:
        self.unknown.pop(schema_id, None)
        result = _not_found(schema_id) if found is None else found
        if isinstance(result, Problem) and result.reason is Reason.UNKNOWN_SCHEMA:  # it may be registered later
            self.unknown[schema_id] = self.clock(), result
            return {}
        self.known[schema_id] = result
        return {schema_id: result}

    def _evict(self) -> None:
        """Remove the oldest entries beyond the limits of the cache."""
        while len(self.unknown) > _MAX_CACHED_UNKNOWN:
            del self.unknown[next(iter(self.unknown))]
        characters = _characters(self.known)
        while characters > _MAX_CHARACTERS:
            characters -= _length(self.known.pop(next(iter(self.known))))


def open_schema_store(contract: ContractSettings) -> SchemaStore:
    """Return the schema store for the settings; the same one, with its cache, for the same settings."""
    return _schemas(contract.schemas_dir, contract.schema_registry_url)


@cache
def _schemas(folder: Path | None, registry_url: SecretStr | None) -> SchemaStore:
    if folder is not None:
        _names_in(folder)
    return SchemaStore(folder, None if registry_url is None else Registry(registry_url))


def _names_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise ConfigurationError(f"contract.schemas_dir: there is no folder {folder}")
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ConfigurationError(f"contract.schemas_dir: {folder} cannot be read: {error.strerror}") from None


def _read(path: Path) -> str:
    """Return the schema in a file. Raises ConfigurationError if it cannot be read, is not UTF-8, or is too large."""
    if not path.is_file():
        raise ConfigurationError(f"{path} is not a file: a schema is a file named by its id")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SCHEMA_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path} is not a schema: it is not UTF-8") from None
    if len(content) > MAX_SCHEMA_BYTES:
        raise ConfigurationError(f"{path} is not a schema: it is longer than {MAX_SCHEMA_BYTES} bytes")
    return text


def _not_found(schema_id: SchemaId) -> Problem:
    where = "in contract.schemas_dir or at contract.schema_registry_url"
    kind = ", an Apicurio globalId, which only contract.schemas_dir can hold" if schema_id.space == "globalIds" else ""
    detail = f"The value was written by schema {schema_id.name}{kind}, which is not {where}."
    return Problem(Reason.UNKNOWN_SCHEMA, detail)


def _check_count(schemas: int) -> None:
    """Raise TransientError if a batch with few schemas exceeds the total size: then the registry is at fault."""
    if schemas < _MANY_SCHEMAS:
        raise TransientError(
            f"the schema registry answers with more than {_MAX_CHARACTERS} characters of schemas for one batch"
        )


def _characters(schemas: Mapping[SchemaId, LookupResult]) -> int:
    return sum(_length(found) for found in schemas.values())


def _length(found: LookupResult) -> int:
    return len(found.text) if isinstance(found, WriterSchema) else 0
