"""How much of a large test one run takes; `LONG=1` takes all of it, as in `make test LONG=1`.

Of many cases of a kind, such as the moments of a kill, a run takes a share that changes every day, so that a few days
take all. Of random cases, which differ in every run anyway, it takes fewer. With `--share 4` it takes a quarter of the
test files. `TEST_DAY=20784` takes the share of that day again: pytest prints the day in its first lines.
"""

import os
import time
import zlib
from collections.abc import Sequence
from pathlib import PurePath
from typing import TypeVar

Case = TypeVar("Case")

LONG = os.environ.get("LONG") == "1"
DAY = int(os.environ.setdefault("TEST_DAY", str(int(time.time() // 86_400))))
"""Days since 1970. The processes of a run inherit it: all take the same share, also around midnight."""


def share(cases: Sequence[Case], days: int) -> Sequence[Case]:
    """Return every case whose number leaves the same remainder today, of division by `days`; with LONG=1 all."""
    return cases if LONG else cases[DAY % days :: days]


def is_of_today(file: PurePath, days: int) -> bool:
    """Return whether today's share has a test file: of `days` consecutive days each file is of one; with LONG=1 all."""
    return LONG or zlib.crc32(file.as_posix().encode()) % days == DAY % days


def count(usual: int, long: int) -> int:
    """Return how many random cases to try: `long` with LONG=1."""
    return long if LONG else usual
