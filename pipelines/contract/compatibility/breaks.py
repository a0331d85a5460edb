"""What breaks compatibility, as the comparisons of all formats say it."""

from dataclasses import dataclass

from pipelines.errors import ConfigurationError

NEEDED = ("event_id", "user_id", "action_type", "timestamp")
"""The fields without which there is no event: a reader that finds none makes a dead letter."""


@dataclass(frozen=True, slots=True)
class Break:
    """A change after which somebody is not understood; `place` names the field."""

    place: str
    sentence: str
    backward: bool = True
    """Whether readers of the new schema stumble over what the old one wrote."""
    forward: bool = True
    """Whether readers of the old schema stumble over what the new one writes."""


class SchemaError(Exception):
    """A schema that cannot be read: the old one (`which` is 0) or the new one (1)."""

    def __init__(self, which: int, sentence: str) -> None:
        """Say which of the two, and what is wrong with it."""
        super().__init__(sentence)
        self.which = which


def missing_package(name: str) -> ConfigurationError:
    """Return the error of a comparison whose package is not installed."""
    return ConfigurationError(f"{name} is needed to compare these schemas: pip install 'karmalake[contract]'")
