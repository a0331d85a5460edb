"""Writers' schemas by the id that a record names: from a folder, then from a registry. An id never changes meaning."""

from dataclasses import dataclass, field
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Literal, cast

import httpx
from pydantic import SecretStr

from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings

Format = Literal["protobuf", "avro", "json"]
_ENDINGS: dict[str, Format] = {".proto": "protobuf", ".avsc": "avro", ".json": "json"}
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """What a value was written by."""

    format: Format
    text: str


@dataclass(slots=True)
class Schemas:
    """Every schema is asked for once; one that nobody knows is asked for again, for it may appear."""

    folder: Path | None
    registry_url: SecretStr | None
    known: dict[int, WriterSchema] = field(default_factory=dict[int, WriterSchema])

    def get(self, schema_id: int) -> WriterSchema | None:
        """Return a schema, or None if neither folder nor registry has it.

        Raises ConfigurationError if the registry refuses to answer, TransientError if it cannot for now.
        """
        if schema_id not in self.known:
            found = self._in_folder(schema_id) or self._in_registry(schema_id)
            if found is None:
                return None
            self.known[schema_id] = found
        return self.known[schema_id]

    def _in_folder(self, schema_id: int) -> WriterSchema | None:
        for ending, form in _ENDINGS.items():
            path = self.folder and self.folder / f"{schema_id}{ending}"
            if path and path.exists():
                return WriterSchema(form, _read(path))
        return None

    def _in_registry(self, schema_id: int) -> WriterSchema | None:
        if self.registry_url is None:
            return None
        url = httpx.URL(self.registry_url.get_secret_value())
        where = f"the schema registry at {url.host}:{url.port or url.scheme}"
        # Apart from the address: httpx logs that.
        user = httpx.BasicAuth(url.username, url.password) if url.userinfo else None
        place = url.copy_with(userinfo=b"", path=f"{url.path.rstrip('/')}/schemas/ids/{schema_id}")
        try:
            answer = httpx.get(place, auth=user, timeout=_SECONDS)
        except httpx.TransportError as error:
            raise TransientError(f"{where} does not answer: {error}") from None
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        if answer.is_server_error or answer.status_code == HTTPStatus.TOO_MANY_REQUESTS:
            raise TransientError(f"{where} has trouble: HTTP {answer.status_code}")
        if not answer.is_success:
            raise ConfigurationError(
                f"{where} refuses to answer: HTTP {answer.status_code}; check its address and password"
            )
        body = answer.json()
        return WriterSchema(cast("Format", body.get("schemaType", "AVRO").lower()), body["schema"])


def schemas_of(contract: ContractSettings) -> Schemas:
    """Return the schemas that the settings name, with what was asked for before."""
    return _schemas(contract.schemas_dir, contract.schema_registry_url)


@cache
def _schemas(folder: Path | None, registry_url: SecretStr | None) -> Schemas:
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"contract.schemas_dir: there is no folder {folder}")
    return Schemas(folder, registry_url)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
