"""The process that reads Avro values of any writer's schema; `apart.py` starts it and speaks to it.

A script of its own, which imports fastavro and nothing of karmalake. It may die of a value: all before it are answered
by then, so the value is known. A value that takes too long is one of those: a timer ends the process by SIGPROF, after
so much time of the CPU (a busy machine delays nothing), and whether or not its parent is still there.

Standard input: requests, each a line of JSON (`schema`, or null for the one before; `names` of the fields; `sizes` of
the values; `cpu_seconds` of the schema and of each value) and then the values. Standard output: a line of JSON as an
answer to a schema, and, unless that is an error, one to each value: `error`, or the `row` of its fields.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any

MEMORY_BYTES = 1024**3


def main() -> None:
    """Answer requests until standard input ends."""
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra, imported before memory is limited

    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _answer({})
    schema: Any = None
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        values = [sys.stdin.buffer.read(size) for size in request["sizes"]]
        seconds = iter(request["cpu_seconds"])
        if request["schema"] is not None:
            signal.setitimer(signal.ITIMER_PROF, next(seconds))
            try:
                schema, answer = parse_schema(json.loads(request["schema"])), {}
            except Exception as error:  # noqa: BLE001 - the package raises whatever it meets in a schema that is none
                answer = {"error": _said(error)}
            _answer(answer)
            if answer:
                continue  # its values are not answered
        for value in values:
            signal.setitimer(signal.ITIMER_PROF, next(seconds))
            try:
                found: Any = schemaless_reader(BytesIO(value), schema, None)
                answer = {"row": [found[name] for name in request["names"]]}
            except Exception as error:  # noqa: BLE001 - a value may make the package raise anything
                answer = {"error": _said(error)}
            _answer(answer)
        signal.setitimer(signal.ITIMER_PROF, 0)


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
