"""What a fuzz target is: one door, the inputs that are tried on it, and the oracle that judges the outcome."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import KarmalakeError
from tests.fuzz.mutation import mutate_bytes


class WrongError(AssertionError):
    """The door returned, but not what is right: a good neighbour is lost, a value differs, an error says nothing."""


def demand(truth: object, sentence: str) -> None:
    """Raise WrongError with the sentence unless it is true."""
    if not truth:
        raise WrongError(sentence)


@dataclass(frozen=True, slots=True)
class Target:
    """One door. `check` gives it an input and raises for a wrong outcome; its text names the outcome in a few words.

    Errors of `refusals` are outcomes of the door. Everything else that is raised, a death by a signal, `seconds`
    without an outcome and `megabytes` above what the process had before are findings.
    """

    generate: Callable[[random.Random], bytes]
    check: Callable[[bytes], str]
    good: bytes
    """An input that the door accepts: it is checked first in each child, so that nothing is loaded under the limits."""
    refusals: tuple[type[BaseException], ...] = (KarmalakeError,)
    mutate: Callable[[random.Random, bytes, bytes], bytes] = mutate_bytes
    """Makes a new input of two known ones."""
    seconds: float = 20.0
    megabytes: int = 512
