"""Clients of the bus: built from the settings, with their errors said in karmalake's words.

They are typed Any: the published stubs describe a kafka-python of years ago.
"""

import contextlib
import functools
import logging
import socket
import ssl
import struct
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors
from kafka.structs import MemberState  # pyright: ignore[reportAttributeAccessIssue] - its stubs are old

from pipelines.bus.records import Guarded, take_apart_as
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import KafkaSettings

P = ParamSpec("P")
R = TypeVar("R")
_REBALANCE_POLL_MS = 1_000
_CONFIGURATION: tuple[type[Exception], ...] = (
    errors.AuthorizationError,
    errors.InvalidConfigurationError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidTopicError,
    errors.KafkaConfigurationError,
    errors.MessageSizeTooLargeError,
    errors.PolicyViolationError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedCodecError,
    errors.UnsupportedSaslMechanismError,
    errors.UnsupportedVersionError,
)

_MALFORMED: tuple[type[Exception], ...] = (
    AssertionError,
    AttributeError,
    LookupError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)
"""What the client raises of an answer that no Kafka broker gives."""
_CALLS = (
    "alter_group_offsets",
    "beginning_offsets",
    "commit",
    "create_topics",
    "describe_configs",
    "describe_topics",
    "end_offsets",
    "list_group_offsets",
    "offsets_for_times",
    "partitions_for_topic",
    "poll",
    "position",
    "wait_for_topics",
)
"""What is asked of a consumer or an admin client."""


@contextlib.contextmanager
def admin_client(kafka: KafkaSettings) -> Generator[Any]:
    """Yield a KafkaAdminClient; TransientError where nobody listens."""
    with contextlib.closing(_client(KafkaAdminClient, kafka)) as client:
        _make_errors_of_answers_its_own(client)
        yield client


@contextlib.contextmanager
def consumer(kafka: KafkaSettings, **options: object) -> Generator[Any]:
    """Yield a KafkaConsumer, without a group unless `options` name one; no record batch can harm it."""
    with contextlib.closing(_client(KafkaConsumer, kafka, **options)) as client:
        take_apart_as(client, Guarded)
        _make_errors_of_answers_its_own(client)
        yield client


def poll_as_member(member: Any, wait_ms: int, max_records: int) -> dict[Any, list[Any]]:
    """Poll with a consumer that has subscribed: records by topic partition, as `poll` returns them.

    kafka-python 3.0 drops what a rebalance brought if that comes between two polls, and begins another one; and it
    forgets one that a topic with new partitions made it begin, if the poll ends between its two steps: it takes part
    in nothing from then on. So a poll lasts longer while the group is not at rest, and the client is reminded.
    """
    if member.group_metadata().state != MemberState.STABLE:
        wait_ms = max(wait_ms, _REBALANCE_POLL_MS)
    records = member.poll(wait_ms, max_records=max_records)
    coordinator = member._coordinator  # noqa: SLF001 - nothing public tells or reminds it
    if coordinator.rebalance_in_progress() and not coordinator.need_rejoin():
        coordinator.request_rejoin()
    return records


def producer(kafka: KafkaSettings, **options: object) -> Any:
    """Return a KafkaProducer; closing it is the caller's affair."""
    return _client(KafkaProducer, kafka, **options)


@contextlib.contextmanager
def translated(kafka: KafkaSettings, doing: str) -> Generator[None]:
    """Turn what a client raises while `doing` into ConfigurationError (mend it first) or TransientError."""
    where = f"{doing} at {kafka.bootstrap_servers}"
    try:
        yield
    except _CONFIGURATION as error:
        raise ConfigurationError(f"{where} was refused: {error}; check the [kafka] settings and permissions") from error
    except ssl.SSLError as error:
        raise ConfigurationError(f"{where} failed: {error}; check kafka.ssl_* and kafka.security_protocol") from error
    except errors.CorruptRecordError as error:
        raise TransientError(f"{where} failed: {_told(error)}; {_CORRUPT}") from error
    except errors.KafkaError as error:
        raise TransientError(f"{where} failed: {error}; check that the broker runs, then try again") from error


_CORRUPT = (
    "bytes changed on the broker's disk or on the way, which no producer can do: let another replica lead; if none is "
    "whole, `karmalake skip TOPIC-PARTITION@OFFSET --why ...` sets that record batch aside as a dead letter"
)


def _told(error: errors.KafkaError) -> str:
    return str(error.args[0]) if error.args else str(error)


def _client(factory: Any, kafka: KafkaSettings, **options: object) -> Any:
    config = kafka.client_config()
    if "sasl_mechanism" in config:
        _keep_the_wire_out_of_logs()
    _require_files(config)
    _require_a_listener(config["bootstrap_servers"], kafka.request_timeout_seconds)
    try:
        return factory(**config, bootstrap_timeout_ms=config["request_timeout_ms"], **options)
    except errors.KafkaTimeoutError as error:
        # The client does not say why: a refused password looks to it like a broker that is starting.
        raise TransientError(
            f"{kafka.bootstrap_servers} can be reached, but did not let us in within "
            f"{kafka.request_timeout_seconds:g} s: check kafka.security_protocol, the certificates and the "
            "credentials; if they are right, try again"
        ) from error


def _make_errors_of_answers_its_own(client: Any) -> None:
    """Let each call of a client raise KafkaError for an answer that it cannot make sense of, as for any other."""
    for name in _CALLS:
        if hasattr(client, name):
            setattr(client, name, _with_errors_of_its_own(getattr(client, name)))


def _with_errors_of_its_own(call: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(call)
    def asked(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return call(*arguments, **options)
        except errors.KafkaError:
            raise
        except _MALFORMED as error:
            raise errors.KafkaError(
                f"the answer cannot be understood ({type(error).__name__}: {error}): is a Kafka broker there?"
            ) from error

    return asked


def _keep_the_wire_out_of_logs() -> None:
    """Raise the level of what logs every byte that is sent: passwords are among them."""
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


def _require_files(config: dict[str, Any]) -> None:
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if config.get(name) and not Path(config[name]).is_file():
            raise ConfigurationError(f"kafka.{name} names {config[name]}, which is no file")


def _require_a_listener(servers: list[str], timeout_seconds: float) -> None:
    """Fail at once where nobody listens: a client that cannot bootstrap leaves its thread and sockets behind."""
    problems: list[str] = []
    for server in servers:
        try:
            place = urlsplit(f"//{server}")
            socket.create_connection((place.hostname or "", place.port or 9092), timeout_seconds).close()
        except ValueError:
            raise ConfigurationError(f"kafka.bootstrap_servers names {server!r}, which is not host:port") from None
        except OSError as error:
            problems.append(f"{server}: {error}")
        else:
            return
    raise TransientError(f"no Kafka broker answers ({'; '.join(problems)}); check that the broker runs, then try again")
