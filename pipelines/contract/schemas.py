"""Writers' schemas by the id that a record names: from a folder, then from a registry. An id never changes meaning.

Any writer of the topic can name any id, so what the ids of one batch may cost is bounded: `_MAX_UNKNOWN` answers that
there is no such schema, and `_BATCH_SECONDS` for all questions. Those that the most records name are asked first. The
ids left then are taken for unknown, unless the time is over before there were many unknown ones: then the registry is
slow. A schema that was read once is not asked for again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from time import monotonic

from pydantic import SecretStr

from pipelines.contract.parsed import Problem
from pipelines.contract.registry import MAX_SCHEMA_BYTES, Format, Registry, WriterSchema
from pipelines.contract.rejection import Reason
from pipelines.contract.schema_ids import SchemaId
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings

Found = WriterSchema | Problem
_ENDINGS: dict[str, Format] = {".proto": "protobuf", ".avsc": "avro", ".json": "json"}
_BATCH_SECONDS = 30.0
_MAX_UNKNOWN = 500
"""Of one batch: half a second at a registry nearby. Far more than the schemas that one topic's writers forgot to
register; a writer who hides a new schema among more has to send as many records with each of them."""
_UNKNOWN_SECONDS = 60.0
"""How long an id that the registry does not know is not asked for again: it may be registered meanwhile."""
_MAX_REMEMBERED = 10_000
_MAX_CHARACTERS = 64 * 1024 * 1024
"""Of the schemas of a batch, and of those that are kept between batches."""
_ASKED_TOGETHER = 16
"""Answers in memory at a time, each of at most `MAX_SCHEMA_BYTES`."""
_MANY_SCHEMAS = 1_000
"""Of one batch that are too large together: no topic's writers have as many, but one may name all of a registry."""
_MANY_UNKNOWN = 100
"""Of one batch whose time is over: the writer has used it up, and would again whenever the batch is tried again."""


@dataclass(slots=True)
class Schemas:
    """What was found so far; may be shared between threads."""

    folder: Path | None
    registry: Registry | None
    known: dict[SchemaId, Found] = field(default_factory=dict[SchemaId, Found])
    unknown: dict[SchemaId, float] = field(default_factory=dict[SchemaId, float])
    """Ids that the registry does not know, and when it said so, oldest first."""
    lock: Lock = field(default_factory=Lock)
    clock: Callable[[], float] = monotonic

    def get(self, schema_id: SchemaId) -> Found:
        """Return one schema, as `get_all` does."""
        return self.get_all({schema_id: 1})[schema_id]

    def get_all(self, records: Mapping[SchemaId, int]) -> dict[SchemaId, Found]:
        """Return the schema of each id, or why there is none; `records` says how many records name it.

        Raises ConfigurationError if the registry refuses to answer or a file cannot be read, TransientError if the
        registry does not answer properly for now. What was found until then is kept.
        """
        with self.lock:
            found = {schema_id: self.known[schema_id] for schema_id in records if schema_id in self.known}
            found |= self._in_folder([schema_id for schema_id in records if schema_id not in found])
            rest = [schema_id for schema_id in records if schema_id not in found]
            try:
                found |= self._in_registry(sorted(rest, key=lambda schema_id: -records[schema_id]), found)
            finally:
                self._forget_some()
        return {schema_id: found[schema_id] if schema_id in found else _not_there(schema_id) for schema_id in records}

    def can_have(self, schema_id: SchemaId) -> bool:
        """Return whether there is a place where a schema of this id could be."""
        return self.folder is not None or (self.registry is not None and self.registry.serves(schema_id))

    def close(self) -> None:
        """Close the connections to the registry."""
        if self.registry is not None:
            self.registry.client.close()

    def _in_folder(self, ids: Sequence[SchemaId]) -> dict[SchemaId, Found]:
        if self.folder is None or not ids:
            return {}
        there = _names_in(self.folder)
        found: dict[SchemaId, Found] = {}
        for schema_id in ids:
            for ending, form in _ENDINGS.items():
                if f"{schema_id.name}{ending}" in there and schema_id not in found:
                    found[schema_id] = WriterSchema(form, _read(self.folder / f"{schema_id.name}{ending}"))
        self.known |= found
        return found

    def _in_registry(self, ids: Sequence[SchemaId], found_before: Mapping[SchemaId, Found]) -> dict[SchemaId, Found]:
        """Ask for ids in their order until too many are unknown, or their schemas too large together."""
        if self.registry is None:
            return {}
        ids = [schema_id for schema_id in ids if self.registry.serves(schema_id) and not self._is_unknown(schema_id)]
        ends = monotonic() + _BATCH_SECONDS
        answered: dict[SchemaId, Found] = {}
        characters = _characters(found_before)
        for start in range(0, len(ids), _ASKED_TOGETHER):
            if start - len(answered) >= _MAX_UNKNOWN:
                return answered | self._not_asked(ids)
            asked = ids[start : start + _ASKED_TOGETHER]
            try:
                for schema_id, found in zip(asked, self.registry.ask(asked, ends), strict=True):
                    answered |= self._remember(schema_id, found)
            except TransientError:
                if monotonic() < ends or sum(map(self._is_unknown, ids)) < _MANY_UNKNOWN:
                    raise
                return answered | self._not_asked(ids)
            characters += sum(_length(answered[schema_id]) for schema_id in asked if schema_id in answered)
            if characters > _MAX_CHARACTERS:
                _check_count(len(found_before) + len(answered))
                return answered | self._not_asked(ids)
        return answered

    def _not_asked(self, ids: Sequence[SchemaId]) -> dict[SchemaId, Found]:
        """Return the problem of those among ids that were not answered."""
        unknown = sum(map(self._is_unknown, ids))
        sentence = (
            f"The value's schema was not looked up: of the {len(ids)} that records of its batch name, others were "
            f"asked for first, and {unknown} are unknown."
        )
        left = [schema_id for schema_id in ids if schema_id not in self.known and not self._is_unknown(schema_id)]
        return dict.fromkeys(left, Problem(Reason.UNKNOWN_SCHEMA, sentence))

    def _is_unknown(self, schema_id: SchemaId) -> bool:
        return self.clock() - self.unknown.get(schema_id, -_UNKNOWN_SECONDS) < _UNKNOWN_SECONDS

    def _remember(self, schema_id: SchemaId, found: Found | None) -> dict[SchemaId, Found]:
        self.unknown.pop(schema_id, None)
        if found is None:
            self.unknown[schema_id] = self.clock()
            return {}
        self.known[schema_id] = found
        return {schema_id: found}

    def _forget_some(self) -> None:
        """Forget the oldest of what is too much to keep."""
        while len(self.unknown) > _MAX_REMEMBERED:
            del self.unknown[next(iter(self.unknown))]
        characters = _characters(self.known)
        while characters > _MAX_CHARACTERS:
            characters -= _length(self.known.pop(next(iter(self.known))))


def schemas_of(contract: ContractSettings) -> Schemas:
    """Return the schemas that the settings name, with what was asked for before."""
    return _schemas(contract.schemas_dir, contract.schema_registry_url)


@cache
def _schemas(folder: Path | None, registry_url: SecretStr | None) -> Schemas:
    if folder is not None:
        _names_in(folder)
    return Schemas(folder, None if registry_url is None else Registry(registry_url))


def _names_in(folder: Path) -> set[str]:
    if not folder.is_dir():
        raise ConfigurationError(f"contract.schemas_dir: there is no folder {folder}")
    try:
        return {path.name for path in folder.iterdir()}
    except OSError as error:
        raise ConfigurationError(f"contract.schemas_dir: {folder} cannot be read: {error.strerror}") from None


def _read(path: Path) -> str:
    """Return the schema in a file; ConfigurationError for what is no file of text of a sensible size."""
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


def _not_there(schema_id: SchemaId) -> Problem:
    where = "in contract.schemas_dir or at contract.schema_registry_url"
    kind = ", an Apicurio globalId, which only contract.schemas_dir can hold" if schema_id.space == "globalIds" else ""
    sentence = f"The value was written by schema {schema_id.name}{kind}, which is not {where}."
    return Problem(Reason.UNKNOWN_SCHEMA, sentence)


def _check_count(schemas: int) -> None:
    """Raise TransientError unless it is by their number that the schemas of a batch are too large together."""
    if schemas < _MANY_SCHEMAS:
        raise TransientError(
            f"the schema registry answers with more than {_MAX_CHARACTERS} characters of schemas for one batch"
        )


def _characters(schemas: Mapping[SchemaId, Found]) -> int:
    return sum(_length(found) for found in schemas.values())


def _length(found: Found) -> int:
    return len(found.text) if isinstance(found, WriterSchema) else 0
