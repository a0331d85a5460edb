"""Who is told what: destinations and rules, as a rule file has them. Pure; reading the file is `rule_file.py`."""

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipelines.notify import template
from pipelines.notify.template import Event

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Number = Annotated[Decimal, Field(allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Destination(_Table):
    """What every destination has: where a new one begins, and how it is insisted."""

    begin: Literal["now", "earliest"] = "now"
    """Where a destination without a checkpoint begins: at the end of the topic, or at its start."""
    lanes: int = Field(default=4, ge=1, le=64)
    """Notifications under way at once; those of one user share a lane, and so keep their order."""
    attempts: int = Field(default=8, ge=1)
    """After so many the event becomes a dead letter."""


class Webhook(Destination):
    """An address that notifications are posted to, signed."""

    kind: Literal["webhook"]
    url: str
    secret_env: str | None = None
    """The environment variable that holds the secret of the signature."""
    secret_file: Path | None = None
    """The file that holds it; white space around it does not count."""
    request_seconds: float = Field(default=10.0, gt=0, le=3600)
    """How long one request may take in all, from connecting to the end of the answer."""

    @field_validator("url")
    @classmethod
    def _address(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of a port that is no number
            is_address = False
        if not is_address:
            raise ValueError("must be an address like https://host/path")
        return url

    @model_validator(mode="after")
    def _one_secret(self) -> Self:
        if (self.secret_env is None) == (self.secret_file is None):
            raise ValueError("needs a secret to sign with: give secret_env or secret_file, one of them")
        return self


class RedisStream(Destination):
    """A stream in the Redis of the settings."""

    kind: Literal["redis_stream"]
    key: str = Field(min_length=1)
    max_length: int = Field(default=100_000, ge=1)
    """About so many entries are kept; older ones go."""


class Condition(_Table):
    """A demand on one entry of an event's metadata; an event without the entry does not meet it."""

    key: str
    equal: str | None = None
    at_least: Number | None = None
    at_most: Number | None = None

    @model_validator(mode="after")
    def _demands_something(self) -> Self:
        if self.equal is None and self.at_least is None and self.at_most is None:
            raise ValueError("demands nothing: give equal, at_least or at_most")
        return self

    def is_met(self, metadata: Mapping[str, str]) -> bool:
        """Return whether the entry is as demanded; what is no number is neither at least nor at most anything."""
        value = metadata.get(self.key)
        if value is None or (self.equal is not None and value != self.equal):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        number = _number(value)
        return number is not None and _within(number, self.at_least, self.at_most)


class Rule(_Table):
    """Which events are told to whom, and in what words."""

    name: Name
    actions: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    when: tuple[Condition, ...] = ()
    """All of them must be met."""
    text: Annotated[str, AfterValidator(template.check)]
    to: tuple[Name, ...] = Field(min_length=1)

    def speaks_of(self, event: Event) -> bool:
        """Return whether the event is one that this rule tells of."""
        return event.action_type in self.actions and all(demand.is_met(event.metadata) for demand in self.when)


class RuleFile(_Table):
    """A whole rule file."""

    destinations: dict[Name, Annotated[Webhook | RedisStream, Field(discriminator="kind")]] = Field(min_length=1)
    rules: tuple[Rule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        told = {name for rule in self.rules for name in rule.to}
        names = Counter(rule.name for rule in self.rules)
        for rule in self.rules:
            for name in rule.to:
                if name not in self.destinations:
                    raise ValueError(f"rule {rule.name!r} names {name!r}: add [destinations.{name}], or correct `to`")
            if names[rule.name] > 1:
                raise ValueError(f"two rules are named {rule.name!r}: rename one")
        for name in self.destinations:
            if name not in told:
                raise ValueError(f"no rule names the destination {name!r}: add it to a rule's `to`, or remove it")
        return self

    def rules_for(self, destination: str) -> tuple[Rule, ...]:
        """Return the rules that tell this destination, in the order of the file: of several, the first speaks."""
        return tuple(rule for rule in self.rules if destination in rule.to)


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text)
    except (ArithmeticError, ValueError):
        return None
    return number if number.is_finite() else None


def _within(number: Decimal, least: Decimal | None, most: Decimal | None) -> bool:
    return (least is None or number >= least) and (most is None or number <= most)
