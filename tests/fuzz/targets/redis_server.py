"""Responses of a server in place of Redis: RESP, truncated RESP, and other protocols."""

import random

from pydantic import SecretStr

from pipelines.errors import ConfigurationError, TransientError, UsageError
from pipelines.serving.read import published, read_leaderboard, read_rank, read_reputation
from pipelines.settings import RedisSettings, Settings
from tests.fuzz.loopback_server import byte_by_byte, respond_with
from tests.fuzz.target import Target, demand

_DOCUMENT = b'{"user_id":"u","status":"active"}'
_OK_COMMANDS = (b"AUTH", b"CLIENT")
_FIRST_WITHOUT_OK = 200
"""From this first byte on, these commands get no OK but the response of the input."""
_MAX_MESSAGE_CHARACTERS = 5_000
_ERRORS = (
    b"ERR no",
    b"WRONGTYPE Operation against a key",
    b"NOAUTH Authentication required.",
    b"LOADING x",
    b"MOVED 1 a:1",
)
_SIZES = (b"-1", b"0", b"1", b"3", b"2147483648", b"9223372036854775808", b"-2", b"x", b"")
_READS = (
    lambda settings: read_reputation("u", settings),
    lambda settings: read_rank("u", "all_time", settings),
    lambda settings: read_leaderboard("all_time", settings),
    published,
)


def generate(rng: random.Random) -> bytes:
    """Return a byte that selects a read function, and the server's response to each of its commands."""
    data = b"".join(_reply(rng, 3) for _ in range(rng.choice((1, 1, 2, 5))))
    if rng.random() < 0.01:
        data = byte_by_byte(data)
    return bytes([rng.randrange(256)]) + data


def _reply(rng: random.Random, depth: int) -> bytes:
    match rng.randrange(9):
        case 0:
            return _bulk(_DOCUMENT)
        case 1:
            texts = (
                b"[]",
                b"7",
                b"{",
                b"\xff",
                b"[" * 5_000,
                b'{"user_id":7}',
                b"NaN",
                b"x" * 100_000,
                b'{"as_of":"never"}',
            )
            return _bulk(rng.choice(texts))
        case 2:
            return b"-" + rng.choice(_ERRORS) + b"\r\n"
        case 3:
            return b":" + rng.choice((b"1", b"-1", b"99999999999999999999", b"x")) + b"\r\n"
        case 4:
            return b"$" + rng.choice(_SIZES) + b"\r\n" + rng.choice((b"", b"x\r\n"))
        case 5:
            return b"*" + rng.choice(_SIZES) + b"\r\n"
        case 6 if depth:
            inner = [_reply(rng, depth - 1) for _ in range(rng.randint(0, 4))]
            return b"*%d\r\n" % len(inner) + b"".join(inner)
        case 7:
            return rng.choice(
                (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n" * 3_000, b"\x00" * 99, b"%1\r\n+a\r\n+b\r\n", b"_\r\n")
            )
        case _:
            return b"+OK\r\n"


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n" % len(data) + data + b"\r\n"


def check(data: bytes) -> str:
    """Read with one of the functions that applications use."""
    first, reply = (data[:1] or b"\0")[0], data[1:]
    read = _READS[first % len(_READS)]
    with respond_with(reply, ok_commands=_OK_COMMANDS if first < _FIRST_WITHOUT_OK else ()) as port:
        redis = RedisSettings(url=SecretStr(f"redis://user:pass-word@127.0.0.1:{port}/0"), socket_timeout_seconds=0.3)
        try:
            found = read(Settings(redis=redis))
        except (TransientError, ConfigurationError, UsageError) as error:
            demand("pass-word" not in str(error), "the message has the password")
            demand(len(str(error)) < _MAX_MESSAGE_CHARACTERS, f"the message has {len(str(error))} characters")
            raise
    return type(found).__name__


_REFUSALS = (TransientError, ConfigurationError, UsageError)
TARGETS = {"redis": Target(generate, check, b"\0" + _bulk(_DOCUMENT), _REFUSALS, seconds=20)}
