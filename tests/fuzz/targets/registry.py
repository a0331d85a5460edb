"""Answers of a schema registry, and of what stands before it: a schema, "no such schema" or an outage to be retried."""

import json
import random
from functools import partial
from typing import Any

from pydantic import SecretStr

from pipelines.contract.avro import OWN_SCHEMA
from pipelines.contract.schemas import WriterSchema, schemas_of
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import ContractSettings
from tests.fuzz.answering import answering
from tests.fuzz.target import Target, demand
from tests.fuzz.targets import http

_TYPES = {"AVRO": "avro", "JSON": "json", "PROTOBUF": "protobuf"}
_LONGEST_SENTENCE = 2_000
_ID = 7


def _body(rng: random.Random) -> bytes:
    schema = rng.choice((OWN_SCHEMA, OWN_SCHEMA, "", "{}", 7, None, ["x"], "[" * 3_000, "x" * 300_000, "\ud800"))
    kind = rng.choice((None, "AVRO", "JSON", "PROTOBUF", "avro", "XML", 7, {}, ""))
    said: dict[str, Any] = {"schema": schema, "schemaType": kind, "references": rng.choice(([], [{"name": "x"}]))}
    bodies = (
        {name: value for name, value in said.items() if value is not None},
        {"error_code": rng.choice((40403, 40401, 404, "40403", 50001)), "message": rng.choice(("no", "\x1b[2J"))},
        rng.choice(([], "text", 7, None, True, {}, {"a": {"a": {}}})),
    )
    texts = ("<html>sign in</html>", "", "\ufeff{}", "[" * 100_000, "NaN", '{"schema":"\\ud800"}', "1" * 5_000)
    return (json.dumps(rng.choice(bodies)) if rng.random() < 0.8 else rng.choice(texts)).encode()


def _expected(data: bytes) -> WriterSchema | None:
    """Return the schema of a well-formed answer that holds one that we know the format of."""
    head, _, body = data.partition(b"\r\n\r\n")
    try:
        said = json.loads(body)
        kind = _TYPES[said.get("schemaType", "AVRO")]
        text = said["schema"]
        plain = isinstance(text, str) and text.encode() and len(body) < 1_000_000 and "references" not in said
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    well_formed = head == b"HTTP/1.1 200 x\r\nContent-Length: %d" % len(body)
    return WriterSchema(kind, text) if well_formed and plain else None  # pyright: ignore[reportArgumentType]


def _says_unknown(data: bytes) -> bool:
    """Return whether an answer may mean that there is no such schema."""
    return b"40403" in data and b" 404 " in data.partition(b"\n")[0]


def check(data: bytes) -> str:
    """Ask for a schema, of a registry that was never asked before."""
    with answering(data) as port:
        url = SecretStr(f"http://user:password@127.0.0.1:{port}")
        try:
            found = schemas_of(ContractSettings(schema_registry_url=url)).get(_ID)
        except (TransientError, ConfigurationError) as error:
            demand(_expected(data) is None, f"a good answer is an error: {error}")
            demand(str(port) in str(error) and "password@" not in str(error), f"not the address: {error}")
            demand(
                len(str(error)) < _LONGEST_SENTENCE and str(error).isprintable(), f"the sentence: {str(error)[:200]!r}"
            )
            raise
    wanted = _expected(data)
    demand(wanted is None or found == wanted, f"a good answer is {found}")
    if found is None:
        demand(_says_unknown(data), "an answer that does not say so means that there is no such schema")
        return "unknown"
    demand(isinstance(found.text, str) and found.format in set(_TYPES.values()), f"no schema: {found!r:.200}")
    return found.format


_GOOD = http.response(200, json.dumps({"schema": OWN_SCHEMA}).encode())
TARGETS = {
    "registry": Target(
        partial(http.generate, body=_body), check, _GOOD, (TransientError, ConfigurationError), seconds=20
    )
}
