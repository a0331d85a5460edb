"""Counts how often a folder is listed and how many of its files are opened, by any process, through Linux's inotify."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OPENED, _CLOSED, _IS_FOLDER = 0x20, 0x18, 0x40000000
_EVENT = struct.Struct("iIII")
_BUFFER_BYTES = 1024 * 1024
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass
class Reads:
    """The reads of a folder within the block of `count_reads`."""

    listings: int = 0
    opened_files: int = 0


@contextmanager
def count_reads(folder: Path) -> Iterator[Reads]:
    """Yield the number of reads of a folder, complete once the block ends."""
    reads, descriptor = Reads(), _LIBC.inotify_init1(os.O_NONBLOCK)
    try:
        # With the closings: equal events in a row are reported as one.
        assert _LIBC.inotify_add_watch(descriptor, os.fsencode(folder), _OPENED | _CLOSED) >= 0, ctypes.get_errno()
        yield reads
        for mask in _masks(descriptor):
            reads.listings += bool(mask & _OPENED and mask & _IS_FOLDER)
            reads.opened_files += bool(mask & _OPENED and not mask & _IS_FOLDER)
    finally:
        os.close(descriptor)


def _masks(descriptor: int) -> Iterator[int]:
    """Yield the mask of each event that waits."""
    try:
        while events := os.read(descriptor, _BUFFER_BYTES):
            at = 0
            while at < len(events):
                _, mask, _, name_bytes = _EVENT.unpack_from(events, at)
                at += _EVENT.size + name_bytes
                yield mask
    except BlockingIOError:
        return
