"""Targets with an injected fault: a harness that misses one of these is broken."""

import ctypes
import os
import random
import re
import time
from collections.abc import Callable
from dataclasses import replace
from threading import Thread

import pyarrow as pa

from pipelines.contract.decode import Decoded, decode
from pipelines.settings import ContractSettings
from tests.fuzz import neighbours
from tests.fuzz.target import Target
from tests.fuzz.targets.protobuf import CONTRACT, NEIGHBOURS
from tests.fuzz.worker import STACK_SIGNAL
from tests.panic import Panic

_TRIGGER = b"!"
_MIB = 1024 * 1024


def _generate(rng: random.Random) -> bytes:
    return rng.choice((b"", b"some", b"other ", b"so! ")) * rng.randint(0, 3) + rng.choice((b"", b"more", _TRIGGER))


def _target(fault: Callable[[], object], seconds: float = 20) -> Target:
    """Return a target with a fault; only targets that hang have a short timeout."""

    def check(data: bytes) -> str:
        if _TRIGGER in data:
            fault()
        return str(len(data) % 7)

    return Target(_generate, check, b"good", (), seconds=seconds, megabytes=100)


def _raise() -> None:
    raise Panic("slice index starts at 10 but ends at 0")


def _hang() -> None:
    """Block the interpreter: neither signals nor other Python threads run."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def _ask_a_busy_child() -> None:
    """Ask for the stack of this process again and again, while it calls functions without end."""
    Thread(target=lambda: [(os.kill(os.getpid(), STACK_SIGNAL), time.sleep(0.001)) for _ in range(300)]).start()
    while True:
        _recurse(50)


def _recurse(depth: int) -> int:
    return depth and _recurse(depth - 1)


def _allocate() -> None:
    bytearray(150 * _MIB)


def _exhaust() -> None:
    bytearray(10_000 * _MIB)


def _die_in_c() -> None:
    ctypes.string_at(0)


def _loses_a_neighbour(data: bytes) -> str:
    """Check a decoder that drops the row after a bad one."""

    def faulty(records: pa.Table, contract: ContractSettings) -> Decoded:
        decoded = decode(records, contract)
        if not len(decoded.rejected):
            return decoded
        lost = decoded.events.filter(pa.compute.not_equal(decoded.events["offset"], 2))
        return replace(decoded, events=lost)

    neighbours.decode, original = faulty, neighbours.decode  # pyright: ignore[reportPrivateImportUsage]
    try:
        return neighbours.check_neighbours(NEIGHBOURS, [data], CONTRACT)
    finally:
        neighbours.decode = original  # pyright: ignore[reportPrivateImportUsage]


RAISES, ALLOCATES, EXHAUSTS, SEGFAULTS, ABORTS = map(_target, (_raise, _allocate, _exhaust, _die_in_c, os.abort))
ENDS = _target(lambda: os._exit(3))
HANGS, SLEEPS = _target(_hang, 0.7), _target(lambda: time.sleep(60), 0.7)
BUSY = _target(_ask_a_busy_child, 0.7)
LOSES = Target(_generate, _loses_a_neighbour, NEIGHBOURS[0], ())
SOUND = _target(lambda: None)
BROKEN = replace(SOUND, good=_TRIGGER, check=RAISES.check)
