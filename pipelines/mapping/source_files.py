"""What a source is: the files `sources/NAME.toml`, read and checked. docs/sources.md explains every key."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, cast

import duckdb
from pydantic import ValidationError

from pipelines.boundary.database import connect
from pipelines.boundary.extras import is_installed, missing_extra
from pipelines.boundary.locked_sql import identifier, literal
from pipelines.boundary.mistakes import FileFormat, MistakeError
from pipelines.boundary.toml import parse_toml, read_toml
from pipelines.errors import ConfigurationError, UsageError
from pipelines.mapping.mapper import ENVELOPE, MapperConfig
from pipelines.mapping.proto_files import DESCRIPTOR_SET, descriptor_set_text
from pipelines.mapping.ready_made import READY_MADE, ReadyMade
from pipelines.mapping.row_wise import ROW
from pipelines.mapping.source_keys import Keys
from pipelines.mapping.values import ValueSchema
from pipelines.settings import Format
from pipelines.sources.files import ColumnMapping
from pipelines.sources.options import ReadOptions
from pipelines.sources.times import check_time_options

CONTRACT = "contract"
"""The name of the source of our own contract, which no file has."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_MAX_SCHEMA_BYTES = 4 * 1024 * 1024
_DIGEST_BYTES = 16
_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_WITHOUT_COMPILER = (
    "; or name a descriptor set as the schema, which needs none: protoc --include_imports "
    "--descriptor_set_out=NAME.desc"
)
_SELECT_FIELDS = ("event_id", "user_id", "action_type", "timestamp")
DAY = "{day}"
"""In an address of `files`: the day of the file, for the asset `history`."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source: where records come from, and what events they are."""

    name: str
    path: Path
    topics: tuple[str, ...]
    files: tuple[str, ...]
    format: Format | Literal["rows"]
    """How values are decoded; `rows`: they are rows of files."""
    config: MapperConfig
    schema: ValueSchema | None
    """How values without a schema id are decoded; None if each has one."""
    registry: bool
    digest: str
    """Of the text and the schema files: 32 hexadecimal digits."""
    reading: ReadOptions
    """Of files: how they are written."""
    number_rows: bool
    """Of files: whether equal rows are separate events."""
    fields: ColumnMapping | None
    """Of files: the plain fields; None if a SELECT says what the events are."""

    def addresses(self) -> list[str]:
        """Return the addresses of its files; relative ones are beside the source, and a day is any."""
        return [self.locate(file.replace(DAY, "*")) for file in self.files]

    def locate(self, file: str) -> str:
        """Return the address of one of its files."""
        return file if "://" in file else os.path.normpath(self.path.parent / file)


def find_source(folder: Path | None, name: str) -> SourceFile:
    """Return the source with a name. Raises UsageError if there is none, ConfigurationError for a mistake in it."""
    if folder is None:
        raise UsageError("there is no folder `sources`: create it with a file NAME.toml, or set sources.folder")
    path = folder / f"{name}.toml"
    if Path(name).name != name or not path.is_file():
        raise UsageError(f"there is no source {name!r} in {folder}: `karmalake sources list` shows those that are")
    return read_source(path)


def read_sources(folder: Path) -> tuple[SourceFile, ...]:
    """Read all files *.toml of a folder, by name. Raises ConfigurationError with file and key of a mistake."""
    if not folder.is_dir():
        raise ConfigurationError(f"sources.folder: there is no folder {folder}")
    sources = tuple(read_source(path) for path in sorted(folder.glob("*.toml")))
    owners: dict[str, SourceFile] = {}
    for source in sources:
        for topic in source.topics:
            other = owners.setdefault(topic, source)
            if other is not source:
                raise ConfigurationError(
                    f"{source.path}: topic: {topic} is a topic of {other.path} already: a record has one fate, so put "
                    "both into one select with UNION ALL"
                )
    return sources


def read_source(path: Path) -> SourceFile:
    """Read one file. Raises ConfigurationError with file and key of a mistake."""
    if not _NAME.fullmatch(path.stem):
        raise ConfigurationError(f"{path}: a source is named by letters, digits, - and _: rename the file")
    if path.stem == CONTRACT:
        raise ConfigurationError(f"{path}: {CONTRACT} is the name of our own contract: rename the file")
    text = read_toml(path, ConfigurationError)
    values = parse_toml(text, str(path), ConfigurationError)
    try:
        keys = Keys.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_FORMAT.explain(error, text, str(path))) from None
    schema, content = _schema(path, keys)
    try:
        config, rows = _config(keys), _rows(keys)
    except MistakeError as error:
        raise ConfigurationError(_FORMAT.report([(error.path, str(error))], 1, text, str(path))) from None
    digest = blake2b(f"{len(text.encode())}:{text}".encode() + content, digest_size=_DIGEST_BYTES).hexdigest()
    topics = (keys.topic,) if keys.topic else tuple(keys.topics or ())
    return SourceFile(
        name=path.stem,
        path=path,
        topics=topics,
        files=tuple(keys.files or ()),
        format="rows" if keys.files else keys.format or "json",
        config=config,
        schema=schema,
        registry=keys.registry,
        digest=digest,
        number_rows=keys.number_rows,
        **rows,
    )


def _rows(keys: Keys) -> dict[str, Any]:
    """Return how files are read, and their plain fields. Raises MistakeError for an invalid option."""
    try:
        reading = keys.reading.options()
    except UsageError as error:
        raise MistakeError(("reading",), str(error)) from None
    try:
        is_plain = keys.files is not None and keys.select is None
        return {"reading": reading, "fields": _fields(keys, reading) if is_plain else None}
    except UsageError as error:
        raise MistakeError((), str(error)) from None


def _fields(keys: Keys, reading: ReadOptions) -> ColumnMapping:
    """Return the plain fields of files."""
    return ColumnMapping(
        keys.user_id,
        keys.time or "",
        keys.time_unit or "iso",
        keys.action_type,
        keys.action_type_column,
        tuple(sorted(keys.metadata.items())),
        keys.event_id,
        reading,
        keys.user,
        keys.time_format,
        keys.time_zone,
        tuple(keys.event_id_from),
        keys.number_rows,
    )


def required_extras(source: SourceFile) -> set[str]:
    """Return the extras that a source needs."""
    is_compiled = source.registry or (source.schema is not None and not source.schema.text.startswith(DESCRIPTOR_SET))
    needed = {
        "avro": source.format == "avro" or any(file.endswith(".avro") for file in source.files),
        "excel": any(file.endswith(_WORKBOOKS) for file in source.files),
        "proto": source.format == "protobuf" and is_compiled,
    }
    return {name for name, is_needed in needed.items() if is_needed}


def require_packages(source: SourceFile) -> None:
    """Raise ConfigurationError, which says what to install, unless the extras that a source needs are there."""
    for name in sorted(required_extras(source)):
        if not is_installed(name):
            remedy = _WITHOUT_COMPILER if name == "proto" and source.schema else ""
            raise ConfigurationError(f"{missing_extra(name, str(source.path))}{remedy}")


def _schema(path: Path, keys: Keys) -> tuple[ValueSchema | None, bytes]:
    """Return the schema of values without a schema id, and the bytes of its file."""
    if keys.schema_file is None:
        return (None if keys.registry or keys.files else ValueSchema("json")), b""
    place = path.parent / keys.schema_file
    try:
        if place.exists() and not place.is_file():  # a pipe may be endless
            raise ConfigurationError(f"{path}: schema: {place} is not a file")
        with place.open("rb") as file:
            content = file.read(_MAX_SCHEMA_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: schema: {place} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_SCHEMA_BYTES:
        raise ConfigurationError(f"{path}: schema: {place} is longer than {_MAX_SCHEMA_BYTES} bytes: shorten it")
    if place.suffix == ".desc":
        return ValueSchema("protobuf", descriptor_set_text(content), keys.message or ""), content
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: schema: {place} is not UTF-8: save it as UTF-8") from None
    if place.suffix == ".proto":
        imports = tuple(_imports(path, place, text).items())
        named = "".join(f"{len(name)}:{name}{len(each)}:{each}" for name, each in imports)
        return ValueSchema("protobuf", text, keys.message or "", imports), content + named.encode()
    return ValueSchema("avro", text), content


_IMPORT = re.compile(r'^[^\S\n]*import\s+(?:public\s+|weak\s+)?"([^"]+)"\s*;', re.MULTILINE)


def _imports(path: Path, main: Path, text: str) -> dict[str, str]:
    """Return the files in the folder of a .proto file that it imports, and what they import, by name.

    Those that are not there are protoc's, or an error that it reports. Raises ConfigurationError for a file elsewhere.
    """
    found = {main.name: text}
    pending = [text]
    while pending:
        for name in _IMPORT.findall(pending.pop()):
            content = None if name in found else _imported(path, main.parent, name)
            if content is not None:
                found[name] = content
                pending.append(content)
        if sum(map(len, found.values())) > _MAX_SCHEMA_BYTES:
            raise ConfigurationError(f"{path}: schema: {main} imports over {_MAX_SCHEMA_BYTES} characters: shorten it")
    del found[main.name]
    return found


def _imported(path: Path, folder: Path, name: str) -> str | None:
    """Return the text of a file that a .proto file imports; None if there is none."""
    try:
        place = os.path.realpath(folder / name)
        if not Path(place).is_relative_to(os.path.realpath(folder)):
            raise ConfigurationError(
                f"{path}: schema: the import {name!r} leads out of {folder}: put the file there, and import its name"
            )
        if not Path(place).is_file():
            return None
        with Path(place).open("rb") as file:
            return file.read(_MAX_SCHEMA_BYTES + 1).decode(errors="replace")
    except (OSError, ValueError):  # no name of a file, or one that cannot be read
        return None


def _config(keys: Keys) -> MapperConfig:
    """Return what the SELECT reads, and how. Raises MistakeError for an invalid format of times, or column."""
    if keys.like is not None:
        kind = READY_MADE[keys.like]
        return MapperConfig(kind.select(_options(keys, kind)), time_unit=cast("Any", keys.time_unit or kind.time_unit))
    try:
        check_time_options(keys.time_format, keys.time_zone)
    except UsageError as error:
        raise MistakeError(("time_format",), str(error)) from None
    for name, problem in _wrong_columns(keys.columns):
        raise MistakeError(("columns", name), problem)
    columns = tuple((name, _json_path(name), _sql_type(kind) or "") for name, kind in keys.columns.items())
    select = keys.select or ("" if keys.files else _plain(keys))
    return MapperConfig(
        select,
        columns,
        cast("Any", keys.time_unit),
        keys.time_zone,
        tuple(keys.event_id_from),
        keys.time_format,
        keys.files is not None,
    )


def _options(keys: Keys, kind: ReadyMade) -> dict[str, str]:
    given = {key: getattr(keys, key) or default or "" for key, default in kind.options.items()}
    return given | {"time_unit": keys.time_unit or "us"}


def _wrong_columns(columns: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the names of what is no new column of `record`, or no type, and why."""
    taken = {"value", ROW, *ENVELOPE}
    for name, kind in columns.items():
        if name.lower() in taken:
            yield name, f"record has a column {name} already: remove it, and read the member by value->>{literal(name)}"
        taken.add(name.lower())
        if _sql_type(kind) is None:
            yield name, f"{kind!r} is not a type of DuckDB"


@cache  # a connection takes 20 ms, and every command reads the same few types several times
def _sql_type(text: str) -> str | None:
    """Return a type as DuckDB writes it, since it becomes part of a statement; None if it is none."""
    try:
        with connect() as connection:
            return str(connection.type(text))
    except duckdb.Error:
        return None


def _plain(keys: Keys) -> str:
    """Return the SELECT of plain fields."""
    if keys.format == "json":
        places = {name: f"value->>{literal(_json_path(path))}" for name, path in _plain_outputs(keys)}
    else:
        places = {name: f"value.{'.'.join(map(identifier, path.split('.')))}" for name, path in _plain_outputs(keys)}
    return _plain_select(keys, places)


def _plain_outputs(keys: Keys) -> list[tuple[str, str]]:
    """Return the columns of the plain case, and the paths that they come from."""
    fixed = {
        "event_id": keys.event_id,
        "user_id": keys.user_id,
        "action_type": keys.action_type_column,
        "time": keys.time,
    }
    named = {name: name for name in keys.event_id_from if name not in _SELECT_FIELDS}
    entries = {f"metadata {name}": path for name, path in keys.metadata.items()}
    return [(name, path) for name, path in (fixed | named | entries).items() if path]


def _plain_select(keys: Keys, places: dict[str, str]) -> str:
    action = places.get("action_type") or literal(keys.action_type or "")
    entries = ", ".join(f"{literal(name)}: CAST({places[f'metadata {name}']} AS VARCHAR)" for name in keys.metadata)
    metadata = f"{{{entries}}}" if entries else "MAP {}"
    columns = [f"{places['user_id']} AS user_id", f"{action} AS action_type", f"{places['time']} AS timestamp"]
    if keys.event_id:
        columns.append(f"{places['event_id']} AS event_id")
    columns += [f"{places[name]} AS {identifier(name)}" for name in keys.event_id_from if name not in _SELECT_FIELDS]
    return f"SELECT {', '.join(columns)}, {metadata} AS metadata FROM record"  # noqa: S608 - quoted


def _json_path(dotted: str) -> str:
    escaped = (part.replace("\\", "\\\\").replace('"', '\\"') for part in dotted.split("."))
    return "$" + "".join(f'."{part}"' for part in escaped)


_FORMAT = FileFormat(Keys, "source")
