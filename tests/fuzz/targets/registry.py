"""Responses of a schema registry or of a proxy: a schema, "no such schema", or an outage that is retried."""

import json
import random
import re
import struct
from functools import partial
from typing import Any

from pydantic import SecretStr

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.decode import decode
from pipelines.contract.schemas import _schemas
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings
from tests.fuzz.loopback_server import respond_with
from tests.fuzz.neighbours import GOOD, event_of, records_of
from tests.fuzz.target import Target, demand
from tests.fuzz.targets import http
from tests.fuzz.targets.avro import NEIGHBOURS

_TYPES = {"AVRO", "JSON", "PROTOBUF"}
_MAX_MESSAGE_CHARACTERS = 2_000
_INFORMATIONAL = re.compile(rb"\A(?:HTTP/\d\.\d 1\d\d [^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n)+")
"""Responses before the one that counts (RFC 9110, 15.2); a line may end without CR (RFC 9112, 2.2)."""
_ID = 7


def _body(rng: random.Random) -> bytes:
    schema = rng.choice((OWN_SCHEMA, OWN_SCHEMA, "", "{}", 7, None, ["x"], "[" * 3_000, "x" * 300_000, "\ud800"))
    kind = rng.choice((None, "AVRO", "JSON", "PROTOBUF", "avro", "XML", 7, {}, ""))
    members: dict[str, Any] = {"schema": schema, "schemaType": kind, "references": rng.choice(([], [{"name": "x"}]))}
    bodies = (
        {name: value for name, value in members.items() if value is not None},
        {"error_code": rng.choice((40403, 40401, 404, "40403", 50001)), "message": rng.choice(("no", "\x1b[2J"))},
        rng.choice(([], "text", 7, None, True, {}, {"a": {"a": {}}})),
    )
    texts = ("<html>sign in</html>", "", "\ufeff{}", "[" * 100_000, "NaN", '{"schema":"\\ud800"}', "1" * 5_000)
    return (json.dumps(rng.choice(bodies)) if rng.random() < 0.8 else rng.choice(texts)).encode()


def _expected(data: bytes) -> str | None:
    """Return the format of the schema in a well-formed response; None for any other response."""
    head, _, body = data.partition(b"\r\n\r\n")
    try:
        document = json.loads(body)
        kind = document.get("schemaType", "AVRO")
        has_usable_schema = (
            isinstance(document["schema"], str) and document["schema"].encode() and "references" not in document
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    well_formed = head == b"HTTP/1.1 200 x\r\nContent-Length: %d" % len(body)
    return kind if well_formed and has_usable_schema and isinstance(kind, str) and kind in _TYPES else None


def _may_be_unknown(data: bytes) -> bool:
    """Return whether a response may mean an unusable schema: it says so, or has a schema of another type."""
    status = _INFORMATIONAL.sub(b"", data).partition(b"\n")[0]
    return (b"40403" in data and b" 404 " in status) or b'"schema"' in data


def check(data: bytes) -> str:
    """Decode a value with a schema id among bare ones, with a new registry client."""
    _schemas.cache_clear()  # a process keeps the client of each address, and each input has an address of its own
    with respond_with(data) as port:
        url = SecretStr(f"http://user:password@127.0.0.1:{port}")
        contract = ContractSettings(format="avro", schema_registry_url=url)
        values = [NEIGHBOURS[0], struct.pack(">bI", 0, _ID) + NEIGHBOURS[1], *NEIGHBOURS[2:]]
        try:
            decoded = decode(records_of(values), contract)
        except (TransientError, ConfigurationError) as error:
            message = str(error)
            demand(_expected(data) is None, f"a valid response is an error: {message}")
            demand(
                str(port) in message and "password@" not in message,
                f"the message lacks the address, or has the password: {message}",
            )
            demand(
                len(message) < _MAX_MESSAGE_CHARACTERS and message.isprintable(),
                f"the message is too long or not printable: {message[:200]!r}",
            )
            raise
    events = {row["offset"]: event_of(row) for row in decoded.events.to_pylist()}
    for place in (0, 2, 3):
        demand(events.get(place) == event_of(GOOD[place]), "a bare neighbour is lost or has other values")
    if _expected(data) == "AVRO" and json.dumps(OWN_SCHEMA).encode() in data:
        demand(events.get(1) == event_of(GOOD[1]), "a value with a good schema is lost or has other values")
    reason = next(iter(decoded.rejected["reason"].to_pylist()), "accepted")
    demand(reason != "unknown_schema" or _may_be_unknown(data), "unknown_schema without such a response")
    return reason


_GOOD = http.response(200, json.dumps({"schema": OWN_SCHEMA}).encode())
TARGETS = {
    "registry": Target(
        partial(http.generate, body=_body), check, _GOOD, (TransientError, ConfigurationError), seconds=20
    )
}
