"""The cases of a policy: `NAME.test.toml` beside `NAME.toml`, with events and what the policy makes of them.

Owns the format of the file, where it is found, and the messages about an invalid one. `case_results.py` runs the cases.
"""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from pipelines.boundary.mistakes import FileFormat, Lines, MistakeError
from pipelines.boundary.toml import did_you_mean, key_lines, parse_toml, read_toml
from pipelines.contract.time_like import to_utc
from pipelines.errors import PolicyError, UsageError
from pipelines.reputation.policy.numbers import Section
from pipelines.reputation.policy_file import locate_policy

SUFFIX = ".test.toml"
_MAX_REPEAT = 10_000
_LATEST = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def _value(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError('must be a number or a text; write no value as "none"')  # noqa: TRY004 - a mistake in a file
    return value


Value = Annotated[int | Decimal | str, PlainValidator(_value)]


def _moment(value: Any) -> datetime:
    try:
        return to_utc(value)
    except UsageError:
        raise ValueError("has to be a time, such as 2026-01-31 or 2026-01-31T12:00:00Z") from None


def _text(value: Any) -> Any:
    """Return a value of metadata as its text: a number may be written without quotes."""
    return str(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else value


Moment = Annotated[datetime, BeforeValidator(_moment)]


class CaseEvent(Section):
    """An event of a case, with the fields of the contract."""

    event_id: str = ""
    user_id: str
    action_type: str
    timestamp: Moment
    metadata: dict[str, Annotated[str, BeforeValidator(_text)]] = Field(default_factory=dict)
    repeat: Annotated[int, Field(ge=1, le=_MAX_REPEAT)] = 1
    """How many events it stands for, each a second after the one before. Above 1, `-001`, `-002`, ... follow event_id,
    and `{n}` in metadata is that number without zeros."""

    @model_validator(mode="after")
    def _has_times(self) -> Self:
        if _LATEST - self.timestamp < timedelta(seconds=self.repeat):
            raise MistakeError(("timestamp",), "is too late to be repeated: a time ends with the year 9999")
        return self

    def all(self) -> list["CaseEvent"]:
        """Return the events that it stands for."""
        return [self] if self.repeat == 1 else [self._numbered(n) for n in range(1, self.repeat + 1)]

    def _numbered(self, n: int) -> "CaseEvent":
        metadata = {key: text.replace("{n}", str(n)) for key, text in self.metadata.items()}
        moved = {"event_id": f"{self.event_id}-{n:03}", "timestamp": self.timestamp + timedelta(seconds=n - 1)}
        return self.model_copy(update={**moved, "metadata": metadata, "repeat": 1})


class Expected(BaseModel):
    """What is expected of a user: columns of the table `reputation`, beside reasons and points by event."""

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, Value] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    reasons: dict[str, str] = {}
    """By event_id, the reason in an explanation: that of each emission, joined by commas, if they differ."""
    earned: dict[str, Decimal] = {}
    """By event_id, the points that `explain` says it earned."""
    time: dict[str, Decimal] = {}
    """By rule of `[time]`, the points that all its contributions earned."""
    scopes: dict[str, dict[str, Value]] = {}
    """By scope and value, such as `city=berlin`, columns of the table of the scope."""

    @model_validator(mode="before")
    @classmethod
    def _says_something(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if not value:
            raise ValueError("expects nothing: name a column such as all_time_score, or remove it")
        for key, inner in value.items():
            if isinstance(inner, dict) and key not in cls.model_fields:
                raise MistakeError((key,), f"is not a key here{did_you_mean(key, cls.model_fields) or ': remove it'}")
            if key in cls.model_fields and inner in ({}, []):
                raise MistakeError((key,), "expects nothing: remove it")
        return value


class Case(Section):
    """Events in, scores out."""

    name: Annotated[str, Field(min_length=1)]
    as_of: Moment
    events: Annotated[tuple[CaseEvent, ...], Field(min_length=1)]
    expect: Annotated[dict[str, Expected], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _with_event_ids(cls, value: Any) -> Any:
        """Name the events that have no event_id by their place: event-001, event-002, ..."""
        if not isinstance(value, dict) or not isinstance(value.get("events"), list):
            return value
        events = [{"event_id": f"event-{n:03}", **e} if isinstance(e, dict) else e for n, e in _count(value["events"])]
        return {**value, "events": events}

    def all_events(self) -> list[CaseEvent]:
        """Return the events, with those that repeat them."""
        return [each for event in self.events for each in event.all()]

    @model_validator(mode="after")
    def _ids_differ(self) -> Self:
        known: set[str] = set()
        for number, event in enumerate(self.events):
            if again := known.intersection(each.event_id for each in event.all()):
                raise MistakeError(
                    ("events", str(number)), f"event_id {min(again)!r} occurs twice: an event counts once"
                )
            known |= {each.event_id for each in event.all()}
        return self


def _count(items: list[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(items, 1))


class _File(Section):
    """A file of cases."""

    as_of: Moment | None = None
    """The moment of each case that has none of its own."""
    cases: Annotated[tuple[Case, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _with_as_of(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "as_of" not in value or not isinstance(value.get("cases"), list):
            return value
        as_of = {"as_of": value["as_of"]}
        return {**value, "cases": [as_of | case if isinstance(case, dict) else case for case in value["cases"]]}


def case_files(place: str) -> list[Path]:
    """Return the files of cases of a place: a folder, a file of cases, a policy file, or the name of a shipped policy.

    Raises UsageError if there is none, PolicyError if there is no such place.
    """
    folder = Path(place)
    if folder.is_dir():
        if found := sorted(folder.glob(f"*{SUFFIX}")):
            return found
        raise UsageError(f"{folder} has no file *{SUFFIX}: name a policy with cases beside it, or another folder")
    path = locate_policy(place)
    cases = path if path.name.endswith(SUFFIX) else path.with_suffix(SUFFIX)
    if not cases.is_file():
        raise UsageError(f"{path} has no cases: write them to {cases}")
    return [cases]


def policy_of(path: Path) -> Path:
    """Return the policy file that a file of cases is beside."""
    return path.with_name(f"{path.name.removesuffix(SUFFIX)}.toml")


def load_cases(path: Path) -> tuple[tuple[Case, ...], Lines]:
    """Read a file of cases; return them with the line of each key. Raises like `parse_cases`."""
    return parse_cases(read_toml(path, PolicyError), str(path))


def parse_cases(text: str, place: str = "cases") -> tuple[tuple[Case, ...], Lines]:
    """Read cases from TOML text; error messages name `place` instead of a file.

    Raises PolicyError naming place, line and remedy of every mistake.
    """
    values, lines = parse_toml(text, place, PolicyError), key_lines(text)
    try:
        return _File.model_validate(values).cases, lines
    except ValidationError as error:
        raise PolicyError(_FORMAT.explain(error, text, place)) from None


_FORMAT = FileFormat(_File, "cases")
