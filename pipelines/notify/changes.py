"""Changes of what is published of users, as the feed's topic has them (`feed_relay.py`), and as rules match them.

A change becomes an event of its kind, `score.changed`, `level.changed` or `status.changed`, whose id is made of the
change's number and moment, so a repeated record has the same one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from pipelines.notify.template import Event

Kind = Literal["score.changed", "level.changed", "status.changed"]
METADATA = ("before", "after", "direction", "number", "policy", "causes")
"""The keys of the metadata of the event of a change."""
DIRECTIONS = ("up", "down")
STATUSES = ("active", "suspended")
DEFAULT_COLUMN = "all_time_score"
_COLUMNS = {"level.changed": "level", "status.changed": "status"}


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a user's row of `reputation`."""

    number: int
    user_id: str
    as_of: str
    policy: str
    causes: tuple[str, ...]
    """The names of what is behind it, each once."""
    before: Mapping[str, Any]
    """Values by column, numbers as Decimal; empty if there was no row, and `after` if there is none any more."""
    after: Mapping[str, Any]

    def values(self, kind: Kind, column: str) -> tuple[Any, Any]:
        """Return the values before and after that a kind of change is about; `column` is that of `score.changed`."""
        name = _COLUMNS.get(kind, column)
        return self.before.get(name), self.after.get(name)

    def event(self, kind: Kind, column: str) -> Event:
        """Return the event of a kind; its metadata has what changed and why, and `direction` of numbers.

        The direction of another kind is that of the all-time score.
        """
        before, after = self.values(kind, column)
        metadata = {"before": _text(before), "after": _text(after), "number": str(self.number), "policy": self.policy}
        metadata["causes"] = ", ".join(self.causes)
        scores = self.values("score.changed", column if kind == "score.changed" else DEFAULT_COLUMN)
        return Event(self._id(), self.user_id, kind, self.as_of, metadata | _direction(*scores))

    def _id(self) -> str:
        return f"change-{self.number}-{''.join(filter(str.isalnum, self.as_of))}"


def as_number(value: object) -> Decimal | None:
    """Return a value as a number; None if it is none."""
    return Decimal(value) if isinstance(value, int | Decimal) and not isinstance(value, bool) else None


def _direction(before: object, after: object) -> dict[str, str]:
    old, new = as_number(before), as_number(after)
    return {} if old is None or new is None or old == new else {"direction": "up" if new > old else "down"}


def _text(value: object) -> str:
    return "" if value is None else str(value)
