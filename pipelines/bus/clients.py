"""Kafka clients: built from the settings, with kafka-python's errors translated to karmalake's.

Clients are typed Any: the published stubs describe an older kafka-python.
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
from kafka.structs import MemberState  # pyright: ignore[reportAttributeAccessIssue] - outdated stubs

from pipelines.bus.records import SafeBatch, install_batch_types
from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import KafkaSettings

P = ParamSpec("P")
R = TypeVar("R")
_REBALANCE_POLL_MS = 1_000
_CONFIGURATION_ERRORS: tuple[type[Exception], ...] = (
    errors.AuthorizationError,
    errors.InvalidConfigurationError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidTopicError,
    errors.KafkaConfigurationError,
    errors.PolicyViolationError,
    errors.SaslAuthenticationFailedError,
    errors.UnsupportedCodecError,
    errors.UnsupportedSaslMechanismError,
    errors.UnsupportedVersionError,
)

_MALFORMED_RESPONSE_ERRORS: tuple[type[Exception], ...] = (
    AssertionError,
    AttributeError,
    LookupError,
    OverflowError,
    TypeError,
    ValueError,
    struct.error,
)
"""Raised by the client for a response that no Kafka broker sends."""
_WRAPPED_METHODS = (
    "alter_group_offsets",
    "beginning_offsets",
    "commit",
    "create_topics",
    "describe_cluster",
    "describe_configs",
    "describe_groups",
    "describe_topics",
    "end_offsets",
    "list_group_offsets",
    "offsets_for_times",
    "partitions_for_topic",
    "poll",
    "position",
    "wait_for_topics",
)
"""Methods of consumers and admin clients that karmalake calls."""
_CORRUPT_BATCH_HELP = (
    "bytes changed on the broker's disk or in transit, which no producer can cause: let another replica lead; if all "
    "replicas are corrupt, `karmalake skip TOPIC-PARTITION@OFFSET --why ...` stores that record batch as a dead letter"
)


_NO_TOPIC_CREATION = {"allow_auto_create_topics": False}
"""Brokers create a missing topic for a client that asks for it, by default: a deleted one would come back with other
partitions and another retention."""


@contextlib.contextmanager
def admin_client(kafka: KafkaSettings) -> Generator[Any]:
    """Yield a KafkaAdminClient. Raises TransientError if no broker listens."""
    with contextlib.closing(_client(KafkaAdminClient, kafka)) as client:
        _wrap_malformed_responses(client)
        yield client


@contextlib.contextmanager
def consumer(kafka: KafkaSettings, **options: object) -> Generator[Any]:
    """Yield a KafkaConsumer that reads batches safely (`SafeBatch`); it has a group only if `options` name one."""
    with contextlib.closing(_client(KafkaConsumer, kafka, **_NO_TOPIC_CREATION, **options)) as client:
        install_batch_types(client, SafeBatch)
        _wrap_malformed_responses(client)
        yield client


def poll_group_member(member: Any, wait_ms: int, max_records: int) -> dict[Any, list[Any]]:
    """Poll a subscribed consumer; return records by topic partition, like `KafkaConsumer.poll`.

    Works around bugs of kafka-python 3.0 (`join_group_async` in `kafka/coordinator/base.py`). It drops an assignment
    that arrives between two polls, and rejoins: so a poll lasts longer while the group is not stable. And it forgets a
    rejoin that it began because the topic's partitions changed, if the poll ends between its two steps, or if the
    coordinator is lost and the partitions are as before: then it sends no heartbeat and fetches nothing, permanently.
    So a rejoin that has begun is requested again.
    """
    if member.group_metadata().state != MemberState.STABLE:
        wait_ms = max(wait_ms, _REBALANCE_POLL_MS)
    records = member.poll(wait_ms, max_records=max_records)
    coordinator = member._coordinator  # noqa: SLF001 - no public API
    if coordinator.rejoining and not coordinator.need_rejoin():
        coordinator.request_rejoin()
    return records


def producer(kafka: KafkaSettings, **options: object) -> Any:
    """Return a KafkaProducer; the caller closes it."""
    return _client(KafkaProducer, kafka, **_NO_TOPIC_CREATION, **options)


@contextlib.contextmanager
def translate_errors(kafka: KafkaSettings, doing: str) -> Generator[None]:
    """Translate a client's errors while `doing` into ConfigurationError (fix it first) or TransientError (retry)."""
    where = f"{doing} at {kafka.bootstrap_servers}"
    try:
        yield
    except errors.MessageSizeTooLargeError as error:
        raise ConfigurationError(
            f"{where} was refused: {error}; a record, or a batch of up to 256 KiB of them, is larger than its topic "
            "accepts: raise max.message.bytes of the topic. Records above 1 MiB are not sent"
        ) from error
    except _CONFIGURATION_ERRORS as error:
        raise ConfigurationError(f"{where} was refused: {error}; check the [kafka] settings and permissions") from error
    except ssl.SSLError as error:
        raise ConfigurationError(f"{where} failed: {error}; check kafka.ssl_* and kafka.security_protocol") from error
    except errors.CorruptRecordError as error:
        raise TransientError(f"{where} failed: {_describe(error)}; {_CORRUPT_BATCH_HELP}") from error
    except errors.KafkaError as error:
        raise TransientError(f"{where} failed: {error}; check that the broker runs, then try again") from error


def _describe(error: errors.KafkaError) -> str:
    return str(error.args[0]) if error.args else str(error)


def _client(factory: Any, kafka: KafkaSettings, **options: object) -> Any:
    config = kafka.client_config()
    if "sasl_mechanism" in config:
        _suppress_wire_logging()
    _require_files(config)
    _require_listener(config["bootstrap_servers"], kafka.request_timeout_seconds)
    try:
        return factory(**config, bootstrap_timeout_ms=config["request_timeout_ms"], **options)
    except errors.KafkaTimeoutError as error:
        # The client gives no reason: to it, a rejected password looks like a broker that is starting.
        raise TransientError(
            f"{kafka.bootstrap_servers} is reachable, but authentication failed within "
            f"{kafka.request_timeout_seconds:g} s: check kafka.security_protocol, the certificates and the "
            "credentials; if they are right, try again"
        ) from error


def _wrap_malformed_responses(client: Any) -> None:
    """Make each method of a client raise KafkaError for a malformed response."""
    for name in _WRAPPED_METHODS:
        if hasattr(client, name):
            setattr(client, name, _wrapped(getattr(client, name)))


def _wrapped(call: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(call)
    def wrapper(*arguments: P.args, **options: P.kwargs) -> R:
        try:
            return call(*arguments, **options)
        except errors.KafkaError:
            raise
        except _MALFORMED_RESPONSE_ERRORS as error:
            raise errors.KafkaError(
                f"the response is malformed ({type(error).__name__}: {error}): is it a Kafka broker?"
            ) from error

    return wrapper


def _suppress_wire_logging() -> None:
    """Raise the level of loggers that print every byte sent, passwords included."""
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.INFO))


def _require_files(config: dict[str, Any]) -> None:
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        if config.get(name) and not Path(config[name]).is_file():
            raise ConfigurationError(f"kafka.{name} names {config[name]}, which is not a file")


def _require_listener(servers: list[str], timeout_seconds: float) -> None:
    """Fail fast if no server listens: a client that cannot bootstrap leaks its thread and sockets."""
    problems: list[str] = []
    for server in servers:
        try:
            address = urlsplit(f"//{server}")
            socket.create_connection((address.hostname or "", address.port or 9092), timeout_seconds).close()
        except ValueError:
            raise ConfigurationError(f"kafka.bootstrap_servers names {server!r}, which is not host:port") from None
        except OSError as error:
            problems.append(f"{server}: {error}")
        else:
            return
    raise TransientError(f"no Kafka broker answers ({'; '.join(problems)}); check that the broker runs, then try again")
