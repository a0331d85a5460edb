"""The result type and the errors of the comparisons of all formats."""

from dataclasses import dataclass

REQUIRED_FIELDS = ("event_id", "user_id", "action_type", "timestamp")
"""The fields that an event requires: a reader that lacks one rejects the record."""


@dataclass(frozen=True, slots=True)
class BreakingChange:
    """A change after which some readers cannot read some values; `place` is the field."""

    place: str
    sentence: str
    backward: bool = True
    """Whether readers with the new schema fail on values of the old one."""
    forward: bool = True
    """Whether readers with the old schema fail on values of the new one."""


class SchemaError(Exception):
    """An invalid schema: the old one (`which` is 0) or the new one (1)."""

    def __init__(self, which: int, message: str) -> None:
        """Create the error of one of the two schemas."""
        super().__init__(message)
        self.which = which
