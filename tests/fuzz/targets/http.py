"""HTTP responses of registries, webhooks and intermediaries: well-formed, odd, and not HTTP at all."""

import random
from collections.abc import Callable

from tests.fuzz.loopback_server import byte_by_byte

_STATUSES = (
    200,
    200,
    200,
    201,
    204,
    301,
    302,
    304,
    400,
    401,
    403,
    404,
    404,
    408,
    409,
    422,
    429,
    500,
    503,
    599,
    99,
    1000,
)
_HEADERS = (
    b"Content-Type: application/json",
    b"Content-Type: text/html; charset=latin1",
    b"Content-Type: application/json; charset=no-such-charset",
    b"Content-Encoding: gzip",
    b"Content-Encoding: zstd",
    b"Transfer-Encoding: chunked",
    b"Location: http://127.0.0.1:1/elsewhere",
    b"Location: \x1b[2J",
    b"Connection: close",
    b"Set-Cookie: a=b",
    b"Retry-After: 1",
    b"Retry-After: 0",
    b"Retry-After: -1",
    b"Retry-After: 99999999999999999999999",
    b"Retry-After: 1e999",
    b"Retry-After: \xc2\xb2",
    b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT",
    b"Retry-After: Fri, 31 Dec 9999 23:59:59 -2359",
    b"Retry-After: Mon, 01 Jan 0001 00:00:00 +2359",
    b"Retry-After: Mon, 32 Foo 99999 99:99:99",
    b"Retry-After: " + b"9" * 5_000,
    b"X: " + b"y" * 70_000,
    b"X:\r\n folded",
    b"No-Colon",
    b": no name",
    b"\xff\xfe: x",
)


def response(status: int, body: bytes, *headers: bytes) -> bytes:
    """Return a well-formed response with its content length."""
    head = [b"HTTP/1.1 %d x" % status, *headers, b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*head, b"", body])


def generate(rng: random.Random, body: Callable[[random.Random], bytes]) -> bytes:
    """Return a response with a body from `body`, mostly well-formed; one in a hundred is sent byte by byte."""
    headers = rng.sample(_HEADERS, rng.choice((0, 0, 1, 2)))
    data = response(rng.choice(_STATUSES), body(rng), *headers)
    match rng.randrange(40):
        case 0:
            data = data.replace(b"Content-Length: ", rng.choice((b"Content-Length: 9", b"Content-Length: -", b"C: ")))
        case 1:
            data = data.replace(b"\r\n", b"\n")
        case 2:
            data = rng.choice(
                (b"", b"\r\n", b"SSH-2.0-x\r\n", b"HTTP/9.9 200 OK\r\n\r\n", b"\x15\x03\x01\x00\x02\x02\x46")
            )
        case 3:
            data = b"HTTP/1.1 100 Continue\r\n\r\n" * rng.choice((1, 1_000)) + data
        case 4 if rng.random() < 0.4:
            data = byte_by_byte(data)
        case _:
            pass
    return data
