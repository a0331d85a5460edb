"""Fuzz targets: an entry point, a generator of inputs, and an oracle that checks the outcome."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import KarmalakeError
from tests.fuzz.mutation import mutate_bytes

_MAX_PARTS = 64


class WrongError(AssertionError):
    """The entry point returned a wrong result: a valid neighbour is lost, a value differs, or a message is empty."""


def parts(data: bytes, separator: bytes) -> list[bytes]:
    """Return the parts that a target checks one by one: the first 63, and the rest as one more.

    A mutation can repeat a separator thousands of times, and the time of the oracle would count as that of the code.
    """
    return data.split(separator, _MAX_PARTS - 1)


def demand(truth: object, sentence: str) -> None:
    """Raise WrongError with the message unless `truth` is true."""
    if not truth:
        raise WrongError(sentence)


@dataclass(frozen=True, slots=True)
class Target:
    """An entry point. `check` passes it an input, raises for a wrong outcome, and returns its short name.

    Exceptions in `refusals` are valid outcomes. Other exceptions, a death by a signal, more than `seconds` of CPU time
    or of sleep, and more than `megabytes` of additional memory are findings.
    """

    generate: Callable[[random.Random], bytes]
    check: Callable[[bytes], str]
    good: bytes
    """A valid input, which each child checks first, so that nothing is loaded under the limits."""
    refusals: tuple[type[BaseException], ...] = (KarmalakeError,)
    mutate: Callable[[random.Random, bytes, bytes], bytes] = mutate_bytes
    """Makes a new input from two known ones."""
    seconds: float = 20.0
    megabytes: int = 512
