"""Clients of the bus: built from the settings, with their errors said in karmalake's words.

They are typed Any: the published stubs describe a kafka-python of years ago.
"""

import contextlib
import socket
import ssl
from collections.abc import Generator
from typing import Any
from urllib.parse import urlsplit

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, errors

from pipelines.errors import ConfigurationError, TransientError
from pipelines.settings import KafkaSettings

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


@contextlib.contextmanager
def admin_client(kafka: KafkaSettings) -> Generator[Any]:
    """Yield a KafkaAdminClient; TransientError where nobody listens."""
    factory: Any = KafkaAdminClient
    with contextlib.closing(factory(**_config(kafka))) as client:
        yield client


@contextlib.contextmanager
def consumer(kafka: KafkaSettings, **options: object) -> Generator[Any]:
    """Yield a KafkaConsumer without a group."""
    factory: Any = KafkaConsumer
    with contextlib.closing(factory(**_config(kafka), **options)) as client:
        yield client


def producer(kafka: KafkaSettings, **options: object) -> Any:
    """Return a KafkaProducer; closing it is the caller's affair."""
    factory: Any = KafkaProducer
    return factory(**_config(kafka), **options)


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
    except errors.KafkaError as error:
        raise TransientError(f"{where} failed: {error}; check that the broker runs, then try again") from error


def _config(kafka: KafkaSettings) -> dict[str, Any]:
    config = kafka.client_config()
    _require_a_listener(config["bootstrap_servers"], kafka.request_timeout_seconds)
    return config | {"bootstrap_timeout_ms": config["request_timeout_ms"]}


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
