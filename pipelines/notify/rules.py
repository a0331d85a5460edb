"""Destinations and rules as a rule file defines them. Pure; `rule_file.py` reads the file."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, field_validator, model_validator

from pipelines.boundary.mistakes import MistakeError, spelled
from pipelines.boundary.time_zones import is_time_zone
from pipelines.boundary.toml import did_you_mean
from pipelines.contract.change_causes import CAUSES
from pipelines.notify import template
from pipelines.notify.changes import DEFAULT_COLUMN, Change, Kind, as_number
from pipelines.notify.conditions import (
    Condition,
    Number,
    PolicyNames,
    Table,
    impossible,
    unknown_causes,
    unknown_keys,
)
from pipelines.notify.template import Event

Name = Annotated[str, spelled(r"[A-Za-z0-9_-]{1,64}", "has to be 1 to 64 letters, digits, _ and -")]
ClockTime = Annotated[str, spelled(r"([01][0-9]|2[0-3]):[0-5][0-9]", "has to be hours and minutes, such as 22:00")]
"""Hours and minutes, such as 22:00."""
Column = Annotated[
    str,
    spelled(
        r"(all_time|last_[1-9][0-9]*_days)_\w+",
        "has to be a column of `reputation`, such as all_time_score or last_30_days_score",
    ),
]

Causes = Annotated[tuple[str, ...], Field(min_length=1)]


class Quiet(Table):
    """A time of each day, which may span midnight."""

    begins: ClockTime
    ends: ClockTime
    zone: str = "UTC"
    """The time zone, such as Europe/Berlin."""

    @field_validator("zone")
    @classmethod
    def _is_known(cls, zone: str) -> str:
        if zone != "UTC" and not is_time_zone(zone):
            raise ValueError("must be a time zone like Europe/Berlin")
        return zone

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.begins == self.ends:
            raise ValueError("never ends: give different times for begins and ends")
        return self

    def contains(self, moment: datetime) -> bool:
        """Return whether a moment is in it; it contains its beginning, and not its end."""
        now = moment.astimezone(_zone(self.zone)).strftime("%H:%M")
        if self.begins < self.ends:
            return self.begins <= now < self.ends
        return now >= self.begins or now < self.ends


class Destination(Table):
    """Options of every destination: where it begins, and how deliveries are retried."""

    begin: Literal["now", "earliest"] = "now"
    """Where a destination without a checkpoint begins: at the end of the topic, or at its start."""
    lanes: int = Field(default=4, ge=1, le=64)
    """Notifications in flight at once; those of one user share a lane, so they stay in order."""
    attempts: int = Field(default=8, ge=1)
    """Attempts to deliver; after the last the event becomes a dead letter."""
    quiet: Quiet | None = None
    """When nothing is read or delivered; what happens then is delivered afterwards."""


class Webhook(Destination):
    """A URL that signed notifications are posted to."""

    kind: Literal["webhook"]
    url: str
    secret_env: str | None = None
    """The environment variable that holds the signing secret."""
    secret_file: Path | None = None
    """The file that holds the signing secret; surrounding white space is ignored."""
    request_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Time limit of one request in seconds, from connecting to the end of the response."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # the port is not a number
            is_address = False
        if not is_address:
            raise ValueError("must be a URL like https://host/path")
        return url

    @property
    def host(self) -> str:
        """Return the host of the URL, for messages: the rest may hold a password or a token."""
        return urlsplit(self.url).hostname or ""

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError("needs a signing secret: give either secret_env or secret_file")
        return self


class RedisStream(Destination):
    """A stream in the configured Redis."""

    kind: Literal["redis_stream"]
    key: str = Field(min_length=1)
    max_length: int = Field(default=100_000, ge=1)
    """Approximate number of entries to retain; older ones are deleted."""


class Rule(Table):
    """Which events or changes are sent to which destinations, and with which text."""

    name: Name
    actions: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Types of events; a rule has either these or `changes`."""
    changes: tuple[Kind, ...] = ()
    """Kinds of changes of the feed; the first that applies is the event's type."""
    column: Column = DEFAULT_COLUMN
    """The column of `reputation` that `score.changed` is about."""
    falls_below: Number | None = None
    """Only changes of the column from at least this number to less, or with `rises_above` from at most to more."""
    rises_above: Number | None = None
    causes: Causes = ()
    """Only changes of which at least one cause is among these."""
    not_causes: Causes = ()
    """Only changes of which no cause is among these."""
    when: tuple[Condition, ...] = ()
    """All of them must be met."""
    text: Annotated[str, AfterValidator(template.check)]
    to: tuple[Name, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_one_subject(self) -> Self:
        if bool(self.actions) == bool(self.changes):
            raise ValueError("needs either actions, for events, or changes, for changes of the feed")
        of_scores = {"column", "falls_below", "rises_above"} & self.model_fields_set
        if of_scores and self.changes != ("score.changed",):
            raise MistakeError((min(of_scores),), 'needs changes = ["score.changed"]')
        if self.actions and (of_changes := {"causes", "not_causes"} & self.model_fields_set):
            raise MistakeError((min(of_changes),), "needs changes: events have no causes")
        return self

    @model_validator(mode="after")
    def _causes_agree(self) -> Self:
        for key, causes in {"causes": self.causes, "not_causes": self.not_causes}.items():
            for problem in unknown_causes(causes):
                raise MistakeError((key,), problem)
        for cause in self.causes:
            if cause in self.not_causes:
                raise MistakeError(("not_causes",), f"names {cause!r}, as causes does: remove it from one of them")
        if set(CAUSES) <= set(self.not_causes):
            raise MistakeError(("not_causes",), "never applies: it names every cause that a change can have")
        return self

    @model_validator(mode="after")
    def _may_apply(self) -> Self:
        unknown = unknown_keys(template.metadata_keys(self.text), self.when) if self.changes else ()
        problem = next(iter(unknown), None) or impossible(self.changes, self.when)
        if problem:
            raise ValueError(problem)
        return self

    def foreign_names(self, names: PolicyNames) -> Iterator[str]:
        """Yield what the rule names that no change of a policy has."""
        if "score.changed" in self.changes and self.column not in names.columns:
            meant = did_you_mean(self.column, names.columns) or f": it has {', '.join(names.columns)}"
            yield f"names the column {self.column!r}, which the policy {names.policy} does not have{meant}"
        if self.changes == ("level.changed",) and not names.levels:
            yield f"never applies: the policy {names.policy} has no levels"
        elif problem := impossible(self.changes, self.when, names.levels):
            yield problem
        if self.causes and not set(self.causes) & set(names.causes):
            yield f"never applies: no change under the policy {names.policy} has the cause {' or '.join(self.causes)}"

    @property
    def subjects(self) -> set[str]:
        """The types of events, or the kinds of changes, that the rule is about; scores by column."""
        kinds = (f"{kind} of {self.column}" if kind == "score.changed" else kind for kind in self.changes)
        return {*self.actions, *kinds}

    def precludes(self, later: "Rule") -> bool:
        """Return whether this rule, being first, applies wherever a later one does, at the same destination."""
        limits = (self.when, self.causes, self.not_causes)
        is_free = not any(limits) and self.falls_below is None and self.rises_above is None
        return is_free and later.subjects <= self.subjects

    def event_of(self, item: Event | Change) -> Event | None:
        """Return the event, or that of the change, if this rule applies to it."""
        if isinstance(item, Change):
            if not self._is_caused(item):
                return None
            found = (item.event(kind, self.column) for kind in self.changes if self._speaks_of(kind, item))
            return next(filter(self._meets, found), None)
        return item if self.matches(item) else None

    def matches(self, event: Event) -> bool:
        """Return whether this rule applies to an event."""
        return event.action_type in self.actions and self._meets(event)

    def _meets(self, event: Event) -> bool:
        return all(condition.is_met(event.metadata) for condition in self.when)

    def _is_caused(self, change: Change) -> bool:
        """Return whether a change has one of the causes that the rule asks for, and none that it excludes."""
        causes = set(change.causes)
        return causes.isdisjoint(self.not_causes) and (not self.causes or not causes.isdisjoint(self.causes))

    def _speaks_of(self, kind: Kind, change: Change) -> bool:
        """Return whether the values differ and, for a rule with thresholds, cross one."""
        before, after = change.values(kind, self.column)
        if before == after or (self.falls_below is None and self.rises_above is None):
            return before != after
        old, new = as_number(before), as_number(after)
        return old is not None and new is not None and self._crosses(old, new)

    def _crosses(self, old: Decimal, new: Decimal) -> bool:
        falls = self.falls_below is not None and old >= self.falls_below > new
        return falls or (self.rises_above is not None and old <= self.rises_above < new)


class RuleFile(Table):
    """A whole rule file."""

    destinations: dict[Name, Annotated[Webhook | RedisStream, Field(discriminator="kind")]] = Field(min_length=1)
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        used = {name for rule in self.rules for name in rule.to}
        names = Counter(rule.name for rule in self.rules)
        places = {rule.name: ("rules", str(number)) for number, rule in enumerate(self.rules)}
        for rule in self.rules:
            for name in rule.to:
                if name not in self.destinations:
                    message = f"rule {rule.name!r} names {name!r}: add [destinations.{name}], or correct `to`"
                    raise MistakeError((*places[rule.name], "to"), message)
            if names[rule.name] > 1:
                raise MistakeError((*places[rule.name], "name"), f"two rules are named {rule.name!r}: rename one")
        for name in self.destinations:
            if name not in used:
                message = f"no rule names the destination {name!r}: add it to a rule's `to`, or remove it"
                raise MistakeError(("destinations", name), message)
            for first, later in combinations(self.rules_for(name), 2):
                if first.precludes(later):
                    raise MistakeError(
                        places[later.name],
                        f"rule {later.name!r} never applies to {name!r}: {first.name!r} before it applies to all of "
                        f"{', '.join(sorted(later.subjects))}; put {later.name!r} first",
                    )
        return self

    def foreign_names(self, names: PolicyNames) -> list[str]:
        """Return what rules about changes name that no change of a policy has, a sentence each."""
        return [
            f"rule {rule.name!r} {each}" for rule in self.rules if rule.changes for each in rule.foreign_names(names)
        ]

    def rules_for(self, destination: str) -> tuple[Rule, ...]:
        """Return the rules of a destination in the order of the file; the first that matches an event applies."""
        return tuple(rule for rule in self.rules if destination in rule.to)

    def same_addresses(self) -> list[str]:
        """Return which destinations may send one address two notifications under one key, a sentence each."""
        places = {name: each.url if isinstance(each, Webhook) else each.key for name, each in self.destinations.items()}
        return [
            f"the destinations {one!r} and {two!r} have one address, and rules about {', '.join(sorted(both))}: "
            "what a rule of each applies to is sent twice, under one idempotency key, so the receiver may drop the "
            "second; give each an address of its own, or make them one destination"
            for one, two in combinations(self.destinations, 2)
            if places[one] == places[two] and (both := self._subjects(one) & self._subjects(two))
        ]

    def _subjects(self, destination: str) -> set[str]:
        return {subject for rule in self.rules_for(destination) for subject in rule.subjects}

    @property
    def speaks_of_changes(self) -> bool:
        """Whether a rule is about changes of the feed."""
        return any(rule.changes for rule in self.rules)


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)
