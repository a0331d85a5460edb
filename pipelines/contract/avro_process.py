"""The process that reads Avro values of any writer's schema; `apart.py` starts it and speaks to it.

A script of its own, which imports fastavro and nothing of karmalake. It may die of a value or hang at one: then it is
ended, and the value is known, since every other one was answered. Standard input: requests, each a line of JSON
(`schema`, or null for the one before; `names` of the fields; `sizes` of the values) and then the values. Standard
output: a line of JSON as an answer to a schema, and one to each value: `error`, or the `row` of its fields.
"""

import json
import resource
import sys
import time
from contextlib import suppress
from io import BytesIO
from typing import Any

MEMORY_BYTES = 1024**3
_ORPHAN_CPU_SECONDS = 60
"""At one value, after which the process ends by itself, should the one that would end it be gone."""


def main() -> None:
    """Answer requests until standard input ends."""
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra, imported before memory is limited

    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _answer({})
    schema: Any = None
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        if request["schema"] is not None:
            try:
                schema, error = parse_schema(json.loads(request["schema"])), None
            except Exception as wrong:  # noqa: BLE001 - the package raises whatever it meets in a schema that is none
                schema, error = None, _said(wrong)
            _answer({"error": error} if error else {})
        for size in request["sizes"]:
            value = sys.stdin.buffer.read(size)
            _limit(resource.RLIMIT_CPU, int(time.process_time()) + _ORPHAN_CPU_SECONDS)
            try:
                found: Any = schemaless_reader(BytesIO(value), schema, None)
                _answer({"row": [found[name] for name in request["names"]]})
            except Exception as wrong:  # noqa: BLE001 - a value may make the package raise anything
                _answer({"error": _said(wrong)})


def _limit(what: int, most: int) -> None:
    with suppress(ValueError, OSError):  # a system may not know this limit, or have a lower one
        resource.setrlimit(what, (most, resource.getrlimit(what)[1]))


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]


def _answer(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
