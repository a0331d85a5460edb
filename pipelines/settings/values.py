"""The types of settings: numbers with a bound, names of topics and places, and the base of a section."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipelines.boundary.mistakes import MistakeError, spelled

_MISREAD = re.compile(r"[?\\]|%[0-9A-Fa-f]{2}")
"""What the lake's library takes for a separator or an escape in a path, and DuckDB for the end of one."""
_MISREAD_ON_S3 = re.compile(r"[#*\[\]{}]")
"""What is read as the end of a URI, or as a pattern, in that of an object only."""


def _comma_separated(value: object) -> object:
    """Return the names in a text. Raises ValueError for a list in JSON, whose brackets would be part of the names."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        raise ValueError("is a list in brackets: write the names without them, separated by commas, such as a,b")
    return [name.strip() for name in value.split(",")]


Names = Annotated[tuple[str, ...], BeforeValidator(_comma_separated)]
Topic = Annotated[
    str, spelled(r"[A-Za-z0-9._-]{1,249}", "has to be the name of a topic: at most 249 letters, digits, ., _ and -")
]
Prefix = Annotated[str, spelled(r"[A-Za-z0-9._-]{1,64}", "has to be 1 to 64 letters, digits, ., _ and -")]
Keyspace = Annotated[
    str, spelled(r"[A-Za-z][A-Za-z0-9_]{0,47}", "has to be a letter, then at most 47 letters, digits and _")
]
LakeUri = Annotated[
    str, spelled(r"(s3://[^/]+)?/.*[^/]", "has to be an absolute path or s3://BUCKET/PATH, without / at its end")
]
StagingUri = Annotated[str, spelled(r"s3://[^/]+/.*[^/]", "has to be s3://BUCKET/PATH, without / at its end")]
TopicOrNone = Annotated[
    str,
    spelled(
        r"[A-Za-z0-9._-]{0,249}", "has to be the name of a topic: at most 249 letters, digits, ., _ and -, or empty"
    ),
]
# A number without an upper bound would be accepted, and fail where a clock, a thread or a client converts it.
Seconds = Annotated[float, Field(le=366 * 86_400)]
"""At most a year: threads wait for less than 2**63 nanoseconds."""
TimeoutSeconds = Annotated[float, Field(le=86_400)]
"""At most a day: clients take milliseconds as an int32, some of them of two timeouts together."""
AheadSeconds = Annotated[int, Field(le=10_000 * 366 * 86_400)]
"""At most the years that a time can have."""
Hours = Annotated[int, Field(le=100 * 366 * 24)]
"""At most a century, as `Days`."""
Days = Annotated[int, Field(le=100 * 366)]
"""At most a century: the moment so many days ago must be one of the calendar."""
Bytes = Annotated[int, Field(le=2**31 - 1)]
"""At most what a value of an Arrow column can have."""
Count = Annotated[int, Field(le=2**31 - 1)]
"""At most an int32, as in Kafka's protocol."""
Format = Literal["protobuf", "avro", "json"]
"""The formats of the contract, and of foreign values that have a schema."""


def require_usable(path: str) -> None:
    """Raise ValueError for the path or URI of a folder that libraries read as another one."""
    if found := _MISREAD.search(path) or (path.startswith("s3:") and _MISREAD_ON_S3.search(path)):
        raise ValueError(
            f"{path} has {found[0]} in its name, which the libraries of the lake and of DuckDB read as something else: "
            "rename it, or choose another one"
        )


class Section(BaseModel):
    """The base of a section: unknown keys are refused, and the docstring of a field is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def is_given(self, name: str) -> bool:
        """Return whether a setting has another value than its default."""
        return getattr(self, name) != type(self).model_fields[name].default

    def require_with(self, name: str, *needed: str) -> None:
        """Raise MistakeError unless all that a setting needs is given, if it is itself."""
        if self.is_given(name) and (missing := [other for other in needed if not self.is_given(other)]):
            raise MistakeError((missing[0],), f"is missing where {name} is set")
