"""The sandbox process that decodes Avro values of any schema; `avro_sandbox.py` starts it and communicates with it.

A standalone script that imports fastavro and no module of karmalake. A value may kill it: all earlier values have
responses by then, so the value is known. A timer of CPU time (independent of the load of the machine and of the
parent) kills the process with SIGPROF if a value takes too long.

Standard input: requests, each a line of JSON (`schema`, or null for the previous one; `names` of the fields; `sizes` of
the values; `cpu_seconds` for the schema and each value), followed by the values. Standard output: a line of JSON as the
response to a schema and, unless that is an error, one for each value: `error`, or the `row` of its fields.
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
    """Respond to requests until standard input ends."""
    from fastavro import parse_schema, schemaless_reader  # noqa: PLC0415 - an extra, imported before memory is limited

    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _limit(resource.RLIMIT_CORE, 0)
    _respond({})
    schema: Any = None
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        values = [sys.stdin.buffer.read(size) for size in request["sizes"]]
        seconds = iter(request["cpu_seconds"])
        if request["schema"] is not None:
            signal.setitimer(signal.ITIMER_PROF, next(seconds))
            try:
                schema, response = parse_schema(json.loads(request["schema"])), {}
            except Exception as error:  # noqa: BLE001 - an invalid schema may make the package raise anything
                response = {"error": _describe(error)}
            _respond(response)
            if response:
                continue  # no responses for its values
        for value in values:
            signal.setitimer(signal.ITIMER_PROF, next(seconds))
            try:
                found: Any = schemaless_reader(BytesIO(value), schema, None)
                response = {"row": [found[name] for name in request["names"]]}
            except Exception as error:  # noqa: BLE001 - a value may make the package raise anything
                response = {"error": _describe(error)}
            _respond(response)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit(resource_id: int, maximum: int) -> None:
    with suppress(ValueError, OSError):  # a system may lack this limit, or have a lower hard limit
        resource.setrlimit(resource_id, (maximum, resource.getrlimit(resource_id)[1]))


def _describe(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]


def _respond(response: dict[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(response).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
