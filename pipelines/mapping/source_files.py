"""What a source is: the files `sources/NAME.toml`, read and checked. docs/sources.md explains every key."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import duckdb
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.boundary.database import connect
from pipelines.boundary.extras import is_installed, missing_extra
from pipelines.boundary.locked_sql import identifier, literal
from pipelines.boundary.mistakes import FileFormat, MistakeError, Place
from pipelines.boundary.time_zones import is_time_zone
from pipelines.boundary.toml import did_you_mean, parse_toml, read_toml
from pipelines.errors import ConfigurationError, UsageError
from pipelines.mapping.mapper import ENVELOPE, MapperConfig
from pipelines.mapping.proto_files import DESCRIPTOR_SET, descriptor_set_text
from pipelines.mapping.ready_made import READY_MADE, ReadyMade
from pipelines.mapping.row_wise import ROW
from pipelines.mapping.values import ValueSchema
from pipelines.settings import Format
from pipelines.sources.files import ColumnMapping
from pipelines.sources.options import ReadOptions
from pipelines.sources.times import check_time_options

CONTRACT = "contract"
"""The name of the source of our own contract, which no file has."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_MAX_SCHEMA_BYTES = 4 * 1024 * 1024
_DIGEST_BYTES = 16
_SUFFIXES = {"protobuf": (".proto", ".desc"), "avro": (".avsc",)}
_WORKBOOKS = (".xlsx", ".xlsm", ".xlsb", ".xls", ".ods")
_WITHOUT_COMPILER = (
    "; or name a descriptor set as the schema, which needs none: protoc --include_imports "
    "--descriptor_set_out=NAME.desc"
)
_PLAIN = ("user_id", "time", "action_type", "action_type_column", "metadata", "event_id")
_OPTIONS = ("id", "server", "id_header", "type_header", "rated", "corrected", "retracted")
"""Keys that only ready-made sources have."""
_SELECT_FIELDS = ("event_id", "user_id", "action_type", "timestamp")
_OF_TOPICS = ("format", "schema_file", "message", "registry", "columns", "like")
_OF_FILES = ("reading", "user", "number_rows")
"""Keys that only sources of topics, or of files, have."""
DAY = "{day}"
"""In an address of `files`: the day of the file, for the asset `history`."""
Text = Field(default=None, min_length=1)


class _Reading(BaseModel):
    """How files are written: the table `reading`, with the names of `ReadOptions`."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: str | None = None
    delimiter: str | None = None
    quote: str | None = None
    escape: str | None = None
    comment: str | None = None
    encoding: str | None = None
    columns: list[str] = Field(default_factory=list)
    decimal_comma: bool | None = None
    null: list[str] = Field(default_factory=list)

    def options(self) -> ReadOptions:
        """Return the options of the reader. Raises UsageError for an invalid one."""
        return ReadOptions(
            self.format,
            "\t" if self.delimiter == "tab" else self.delimiter,
            self.quote,
            self.escape,
            self.comment,
            self.encoding,
            tuple(self.columns),
            self.decimal_comma,
            tuple(self.null),
        )


_Problem = tuple[Place, str]
"""The key to fix, none for the whole file, and what is wrong with it."""


class _Keys(BaseModel):
    """The keys of a source file."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True)

    topic: str | None = Text
    topics: list[str] | None = Field(default=None, min_length=1)
    files: list[str] | None = Field(default=None, min_length=1)
    format: Format | None = None
    schema_file: str | None = Field(default=None, alias="schema", min_length=1)
    message: str | None = Text
    registry: bool = False
    columns: dict[str, str] = Field(default_factory=dict)
    like: str | None = None
    select: str | None = Text
    reading: _Reading = Field(default_factory=_Reading)
    user_id: str | None = Text
    user: str | None = Text
    time: str | None = Text
    time_unit: Literal["s", "ms", "us", "ns", "iso", "rfc2822"] | None = None
    time_format: str | None = Text
    time_zone: str | None = None
    number_rows: bool = False
    action_type: str | None = Text
    action_type_column: str | None = Text
    metadata: dict[str, str] = Field(default_factory=dict)
    event_id: str | None = Text
    event_id_from: list[str] = Field(default_factory=list)
    id: str | None = Text
    server: str | None = Text
    id_header: str | None = Text
    type_header: str | None = Text
    rated: str | None = Text
    corrected: str | None = Text
    retracted: str | None = Text

    @model_validator(mode="after")
    def _check(self) -> "_Keys":
        for place, problem in self._problems():
            raise MistakeError(place, problem)
        return self

    def _problems(self) -> Iterator[_Problem]:
        """Yield what keys contradict each other, or are missing."""
        if sum(value is not None for value in (self.topic, self.topics, self.files)) != 1:
            yield (), "give one of topic, topics and files"
        yield from self._problems_of_topics()
        yield from self._problems_of_kind()
        yield from self._problems_of_mapping()
        yield from self._problems_of_format()
        yield from self._problems_of_paths()
        if self.event_id_from and self.event_id:
            yield ("event_id_from",), "event_id and event_id_from exclude each other: remove one"
        if self.time_zone is not None and not is_time_zone(self.time_zone):
            yield ("time_zone",), f"{self.time_zone!r} is not a time zone: write one such as Europe/Berlin"

    def _problems_of_topics(self) -> Iterator[_Problem]:
        key, given = ("topic", [self.topic]) if self.topic is not None else ("topics", self.topics or [])
        for name in given:
            if not _TOPIC.fullmatch(name):
                problem = f"{name!r} is not the name of a topic: it has letters, digits, ., _ and -, and is no pattern"
                yield (key,), problem
        if len(set(given)) < len(given):
            yield (key,), "names a topic twice: remove one"

    def _problems_of_paths(self) -> Iterator[_Problem]:
        """Yield what is no path; the names of columns of files may contain anything."""
        keys = ("user_id", "time", "action_type_column", "event_id")
        paths: dict[Place, str | None] = {(key,): getattr(self, key) for key in keys}
        paths |= {("event_id_from", str(number)): path for number, path in enumerate(self.event_id_from)}
        paths |= {("metadata", name): path for name, path in self.metadata.items()}
        for place, path in paths.items():
            if path == "" or (path and self.files is None and not all(path.split("."))):
                yield place, f"{path!r} is not a path: write names with a dot between them, such as driver.id"

    def _problems_of_kind(self) -> Iterator[_Problem]:
        """Yield the keys that the other kind of source has."""
        is_of_files = self.files is not None
        others = [key for key in (_OF_TOPICS if is_of_files else _OF_FILES) if key in self.model_fields_set]
        if others and is_of_files:
            yield (_written(others[0]),), "is a key of topics: how files are written is in [reading]"
        elif others:
            yield (others[0],), "is a key of files: remove it"
        if self.select is not None and self.user:
            yield ("user",), "select excludes user: write it in the SELECT"
        if self.time_unit and self.time_format:
            yield ("time_format",), "time_unit and time_format exclude each other: remove one"

    def _problems_of_mapping(self) -> Iterator[_Problem]:
        if self.like is not None:
            yield from self._problems_of_ready_made(self.like)
            return
        given = [key for key in _PLAIN if getattr(self, key)]
        if self.select is not None and given:
            yield (given[0],), f"select and {given[0]} exclude each other: remove one"
        if self.select is None:
            needed = ("time",) if self.user else ("user_id", "time")
            remedy = "add it, or select" if self.files else "add it, or select, or like"
            yield from (((key,), f"is missing: {remedy}") for key in needed if not getattr(self, key))
            if self.user and self.user_id:
                yield ("user",), "user and user_id exclude each other: remove one"
            if (self.action_type is None) == (self.action_type_column is None):
                yield (), "give one of action_type and action_type_column"
        others = [key for key in _OPTIONS if getattr(self, key)]
        if others:
            yield (others[0],), "is a key of a ready-made source: add like, or remove it"

    def _problems_of_ready_made(self, like: str) -> Iterator[_Problem]:
        kind = READY_MADE.get(like)
        if kind is None:
            yield ("like",), f"{like!r} is not one of {', '.join(READY_MADE)}{did_you_mean(like, READY_MADE)}"
            return
        allowed = {*kind.options, *(("time_unit",) if "time" in kind.options else ())}
        keys = (
            *_PLAIN,
            *_OPTIONS,
            "select",
            "schema_file",
            "columns",
            "time_unit",
            "time_format",
            "time_zone",
            "event_id_from",
        )
        others = [key for key in keys if getattr(self, key) and key not in allowed]
        if others:
            yield (_written(others[0]),), f"is not an option of {like}: use {', '.join(sorted(allowed))}"
        missing = [key for key, default in kind.options.items() if default is None and not getattr(self, key)]
        if missing:
            yield (missing[0],), f"is missing: {like} needs it"
        if self.format not in {None, "json"}:
            yield ("format",), f"is json for {like}: for another one write select"

    def _problems_of_format(self) -> Iterator[_Problem]:
        if self.files is not None or self.like is not None:
            return
        if self.format is None:
            yield ("format",), "is missing: write protobuf, avro or json"
        elif self.format == "json" and self.schema_file:
            yield ("schema",), "is not for json: give types by columns"
        elif self.format != "json" and bool(self.schema_file) == self.registry:
            yield (), "give one of schema (a file) and registry = true"
        if self.schema_file and not self.schema_file.endswith(_SUFFIXES.get(self.format or "", ())):
            suffixes = " or ".join(_SUFFIXES.get(self.format or "", ()))
            yield ("schema",), f"is not a file {suffixes}, for format {self.format}"
        if self.columns and self.format != "json":
            yield ("columns",), f"are for json: {self.format} has types"
        if self.message and (self.format != "protobuf" or not self.schema_file):
            yield ("message",), "is for protobuf with a schema file"


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
        keys = _Keys.model_validate(values)
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


def _rows(keys: _Keys) -> dict[str, Any]:
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


def _fields(keys: _Keys, reading: ReadOptions) -> ColumnMapping:
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


def _schema(path: Path, keys: _Keys) -> tuple[ValueSchema | None, bytes]:
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


def _config(keys: _Keys) -> MapperConfig:
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


def _options(keys: _Keys, kind: ReadyMade) -> dict[str, str]:
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


def _plain(keys: _Keys) -> str:
    """Return the SELECT of plain fields."""
    if keys.format == "json":
        places = {name: f"value->>{literal(_json_path(path))}" for name, path in _plain_outputs(keys)}
    else:
        places = {name: f"value.{'.'.join(map(identifier, path.split('.')))}" for name, path in _plain_outputs(keys)}
    return _plain_select(keys, places)


def _plain_outputs(keys: _Keys) -> list[tuple[str, str]]:
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


def _plain_select(keys: _Keys, places: dict[str, str]) -> str:
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


def _written(name: str) -> str:
    """Return a key as a file writes it."""
    return _Keys.model_fields[name].alias or name


_FORMAT = FileFormat(_Keys, "source")
