"""Every expected error, as a class to catch; the message says what happened, where, and what to do."""

from pipelines.errors import (
    CommitUnknownError,
    ConfigurationError,
    CorruptionError,
    FencedError,
    KarmalakeError,
    LostRecordsError,
    NewerFormatError,
    PolicyError,
    RejectedError,
    TransientError,
    UsageError,
)

__all__ = [
    "CommitUnknownError",
    "ConfigurationError",
    "CorruptionError",
    "FencedError",
    "KarmalakeError",
    "LostRecordsError",
    "NewerFormatError",
    "PolicyError",
    "RejectedError",
    "TransientError",
    "UsageError",
]
