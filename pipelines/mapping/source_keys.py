"""The keys of a source file: which there are, and which of them contradict each other or are missing."""

import re
from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipelines.boundary.mistakes import MistakeError, Place
from pipelines.boundary.time_zones import is_time_zone
from pipelines.boundary.toml import did_you_mean
from pipelines.mapping.ready_made import READY_MADE
from pipelines.settings import Format
from pipelines.sources.options import ReadOptions

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SUFFIXES = {"protobuf": (".proto", ".desc"), "avro": (".avsc",)}
_PLAIN = ("user_id", "time", "action_type", "action_type_column", "metadata", "event_id")
_OPTIONS = ("id", "server", "id_header", "type_header", "rated", "corrected", "retracted")
"""Keys that only ready-made sources have."""
_OF_TOPICS = ("format", "schema_file", "message", "registry", "columns", "like")
_OF_FILES = ("reading", "user", "number_rows")
"""Keys that only sources of topics, or of files, have."""
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


class Keys(BaseModel):
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
    def _check(self) -> "Keys":
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


def _written(name: str) -> str:
    """Return a key as a file writes it."""
    return Keys.model_fields[name].alias or name
