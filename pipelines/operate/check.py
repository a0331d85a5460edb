"""The result of a check, and the advice of `verify` where it fails."""

from dataclasses import dataclass
from enum import StrEnum


class Advice(StrEnum):
    """How to make a failed check pass; words in braces are placeholders.

    All advice of the checks to run a command is here: a test follows each until `verify` passes
    (`tests/operate/test_verify_served.py`).
    """

    PUBLISH = "run `karmalake publish`"
    REFRESH = "run `karmalake refresh`, then `karmalake publish`"
    WAIT = "wait {seconds:g} s and verify again: {holder} holds the warehouse, and replaces it at that interval"
    PUBLISH_FULL = "run `karmalake publish --full`: it writes every document and deletes all others"
    REPLACE_NEWER = "if this lake replaces that one, delete {note} and run `karmalake publish --full`"
    FINISH_ERASURE = "run `karmalake erase` to finish"
    REBUILD_INDEX = "stop ingest, delete {index} and start ingest; it rebuilds the index from the lake"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check; `promise` is the id of the guarantee that it verifies."""

    name: str
    promise: str
    passed: bool | None
    """None if it could not be checked; `evidence` says why."""
    evidence: str
