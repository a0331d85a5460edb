"""A check's answer, and what `verify` advises where it fails."""

from dataclasses import dataclass
from enum import StrEnum


class Advice(StrEnum):
    """How a failed check is made to pass; words in braces are filled in.

    A sentence that tells a person to run a command stands here, and nowhere else in the checks: each is followed by a
    test until `verify` passes (`tests/operate/test_verify_served.py`).
    """

    PUBLISH = "run `karmalake publish`"
    REFRESH = "run `karmalake refresh`, then `karmalake publish`"
    PUBLISH_FULL = "run `karmalake publish --full`: it writes every document and deletes what does not belong there"
    REPLACE_NEWER = "if this lake replaces that one, delete {note} and run `karmalake publish --full`"
    FINISH_ERASURE = "run `karmalake erase` to finish"
    REBUILD_INDEX = "stop ingest, remove {index} and start again; it is rebuilt from the lake"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer; `promise` is the id of the promise that it guards."""

    name: str
    promise: str
    passed: bool | None
    """None: it could not be checked; the evidence says why."""
    evidence: str
