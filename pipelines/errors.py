"""Everything karmalake raises on purpose.

KarmalakeError                the message says what, where and what to do; the CLI prints it and exits 1
+-- UsageError                a mistake in a command, a file or a call (exit 2)
+-- ConfigurationError        a setting is missing, unknown or contradicts another (exit 2)
+-- PolicyError               a policy file says something that cannot be meant; names file and line (exit 2)
+-- TransientError            a service did not answer; trying again may help
+-- RejectedError             too many records were rejected: the schema is wrong, not the record
+-- LostRecordsError          the broker no longer has records that no checkpoint has passed
+-- FencedError               somebody else has moved the checkpoint, or published something newer
+-- CommitUnknownError        a commit whose outcome could not be learned; reopening the lake tells
+-- CorruptionError           the lake contradicts itself; nothing was changed
"""


class KarmalakeError(Exception):
    """Base of the tree: every message is written for the person who has to act on it."""

    exit_code = 1


class UsageError(KarmalakeError):
    """A mistake in a command, a file or a call."""

    exit_code = 2


class ConfigurationError(KarmalakeError):
    """A setting is missing, unknown or contradicts another."""

    exit_code = 2


class PolicyError(KarmalakeError):
    """A policy file says something that cannot be meant."""

    exit_code = 2


class TransientError(KarmalakeError):
    """A service did not answer; trying again may help."""


class RejectedError(KarmalakeError):
    """Too many records were rejected: the schema is wrong, not the record (`not-blocked`)."""


class LostRecordsError(KarmalakeError):
    """The broker no longer has records that no checkpoint has passed (`nothing-lost`)."""


class FencedError(KarmalakeError):
    """Somebody else has moved the checkpoint, or published something newer (`fenced`)."""


class CommitUnknownError(KarmalakeError):
    """A commit whose outcome could not be learned; reopening the lake tells."""


class CorruptionError(KarmalakeError):
    """The lake contradicts itself; nothing was changed."""
