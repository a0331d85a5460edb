"""The error of a file whose rows cannot be read."""


class RefusedError(Exception):
    """The file is rejected; the message says why."""
