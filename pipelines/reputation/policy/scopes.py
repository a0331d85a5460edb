"""Scopes: metadata keys by which a user has reputations beside the overall one, such as one in each city."""

from typing import Annotated

from pydantic import AfterValidator, Field

from pipelines.boundary.mistakes import spelled
from pipelines.reputation.policy.numbers import Name, Section, Whole

MAX_VALUE_CHARS = 100
"""A longer text of the metadata is no value of a scope."""
OMITTED = "_omitted"
"""The end of the member that counts the values that a document leaves out."""


def _no_count(name: str) -> str:
    if name.endswith(OMITTED):
        raise ValueError(f"by_{name} counts the values that a document leaves out: choose another name")
    return name


ScopeName = Annotated[
    str,
    spelled(
        r"[a-z][a-z0-9_]{0,31}", "the name of a scope is a small letter, then at most 31 small letters, digits and _"
    ),
    AfterValidator(_no_count),
]
"""Part of the names of tables and columns."""


class Scope(Section):
    """A reputation for each value of a metadata key: the contributions of the events with that value, nothing else."""

    key: Name = Field(alias="from")
    """The metadata key."""
    default: Annotated[str, Field(min_length=1, max_length=MAX_VALUE_CHARS)] | None = None
    """The value of events without one, and of those whose value is empty or has more than 100 characters. None: they
    are in no value of the scope."""
    limit: Whole = Field(default=20, ge=1, le=1_000)
    """At most so many values of a user are in the document, those with the most events; the others are counted."""
