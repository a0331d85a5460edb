"""Foreign values and a SELECT over them: an input is the values of a batch, a line each; neighbours become events."""

import atexit
import json
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pyarrow as pa

from pipelines.contract.decode import Decoded
from tests.fuzz.target import Target, demand, parts
from tests.mapping.sources import mapping, records

_GOOD = b'{"id": "r", "driver": {"id": "d"}, "stars": 4.50, "n": 3, "items": [{"sku": "a"}, {"sku": "b"}]}'
_SOURCE = """
topic = "rides"
format = "json"
select = '''
SELECT (value->>'id') || n AS event_id, value->'driver'->>'id' AS user_id, 'Rated' AS action_type,
       bus_time AS timestamp, {'stars': CAST(value->>'stars' AS DECIMAL(6, 2)),
       'sku': value->'items'->>'$[0].sku', 'all': value->'items'} AS metadata
FROM record, range(CAST(value->>'n' AS INTEGER)) AS r(n)
'''
"""


@cache
def _decoder() -> Callable[[pa.Table], Decoded]:
    stack = ExitStack()
    atexit.register(stack.close)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    return stack.enter_context(mapping(folder, _SOURCE))


def generate(rng: random.Random) -> bytes:
    """Return lines of JSON with members of random kinds and numbers."""
    kinds = [1, -0.0, 1e400, "4.5", None, [], {}, True, 2**70, "\ud800", [[[]]], "x" * rng.randrange(2_000)]
    row = json.loads(_GOOD)
    for name in row:
        if rng.random() < 0.3:
            row[name] = rng.choice(kinds)
    return b"\n".join(json.dumps(row).encode() for _ in range(rng.randint(1, 4)))


def check(value: bytes) -> str:
    """Map the lines between two valid values; both become three events, and each record has one fate."""
    lines = parts(value, b"\n")
    found = _decoder()(records([_GOOD, *lines, _GOOD]))
    offsets = found.events["offset"].to_pylist()
    demand(offsets.count(0) == offsets.count(len(lines) + 1) == 3, "a valid neighbour did not become its three events")
    fates = [set(offsets), set(found.filtered["offset"].to_pylist()), set(found.rejected["offset"].to_pylist())]
    demand(sum(map(len, fates)) == len(set().union(*fates)) == len(lines) + 2, "a record has no fate, or two")
    return "+".join(sorted(set(found.rejected["reason"].to_pylist()))) or "events"


TARGETS = {"sources": Target(generate, check, _GOOD, seconds=60.0)}
