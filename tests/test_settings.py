"""Settings: unknown keys are rejected, secrets are never shown, and each error names its source."""

import re
import threading
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from annotated_types import Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pipelines.errors import ConfigurationError
from pipelines.ingest.kafka import consumer_options
from pipelines.settings import IngestSettings, KafkaSettings, RedisSettings, Settings, load_settings


def test_nothing_set_gives_the_defaults(tmp_path: Path) -> None:
    """Variables and files are optional; variables without the prefix are ignored."""
    assert load_settings({"PATH": "/bin", "KAFKA_TOPIC": "t"}, tmp_path) == Settings()


def test_the_environment_comes_before_the_file_and_the_file_before_the_default(tmp_path: Path) -> None:
    """Precedence holds setting by setting, not section by section."""
    _write(tmp_path, 'data_dir = "lakes"\n[kafka]\ntopic = "of-the-file"\ngroup_id = "g"\npartitions = 7')
    settings = load_settings({"KARMALAKE_KAFKA_TOPIC": "of-the-environment"}, tmp_path)
    assert (settings.kafka.topic, settings.kafka.group_id) == ("of-the-environment", "g")
    assert (settings.kafka.partitions, settings.kafka.retention_hours) == (7, 168)
    assert settings.warehouse_path == Path("lakes/warehouse.duckdb")


@pytest.mark.parametrize(
    "name", ["CONTRACT_PERSONAL_KEYS", "REDIS_LEADERBOARDS", "SOURCES_ONLY", "METRICS_ALLOWED_HOSTS"]
)
def test_a_list_in_brackets_is_refused(tmp_path: Path, name: str) -> None:
    """In the environment names are separated by commas: a key `["rater_id"]` would be found in no event."""
    with pytest.raises(
        ConfigurationError, match=f"KARMALAKE_{name}: .* is a list in brackets: write the names without"
    ):
        load_settings({f"KARMALAKE_{name}": '["rater_id"]'}, tmp_path)


def test_values_of_the_environment_get_their_types(tmp_path: Path) -> None:
    """Numbers, switches, times and paths are read from text."""
    settings = load_settings(
        {
            "KARMALAKE_DATA_DIR": "/srv/karma",
            "KARMALAKE_CONTRACT_STRICT_KEYS": "true",
            "KARMALAKE_CONTRACT_EARLIEST": "2020-01-01T01:00:00+01:00",
            "KARMALAKE_INGEST_MAX_BATCH_RECORDS": "5",
            "KARMALAKE_KAFKA_RETENTION_HOURS": "-1",
        },
        tmp_path,
    )
    assert settings.lake_root == "/srv/karma/lake"
    assert (settings.contract.strict_keys, settings.ingest.max_batch_records) == (True, 5)
    assert settings.contract.earliest == datetime(2020, 1, 1, tzinfo=UTC)
    assert settings.kafka.retention_hours == -1


def test_a_time_of_the_file_is_a_time(tmp_path: Path) -> None:
    """TOML has a type for times, so they need no quotes."""
    _write(tmp_path, "[contract]\nearliest = 2020-01-01T00:00:00Z")
    assert load_settings({}, tmp_path).contract.earliest == datetime(2020, 1, 1, tzinfo=UTC)


def test_a_queue_has_one_ingester(tmp_path: Path) -> None:
    """Sharing the partitions of Kafka means nothing for a queue, where a second ingester would take its messages."""
    shared = {"KARMALAKE_QUEUE_KIND": "rabbitmq", "KARMALAKE_INGEST_SHARE_PARTITIONS": "true"}
    with pytest.raises(ConfigurationError, match=r"KARMALAKE_INGEST_SHARE_PARTITIONS: .*queue\.kind names a queue"):
        load_settings(shared, tmp_path)


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("rabbitmq", "127.0.0.1:27991"),
        ("rabbitmq", "amqp://guest:hush@127.0.0.1:hush/"),
        ("rabbitmq", "amqp://guest:hu#sh@127.0.0.1/"),
        ("rabbitmq", "http://guest:hush@127.0.0.1/"),
        ("rabbitmq", "amqp://[hush/"),
        ("sqs", "amqp://guest:hush@127.0.0.1/ratings"),
        ("sqs", "https://guest:hush@127.0.0.1/1/ratings"),
        ("sqs", "https://127.0.0.1/"),
    ],
)
def test_a_url_of_another_kind_of_queue(tmp_path: Path, kind: str, url: str) -> None:
    """It is reported by its variable, without its value: part of a password may be anywhere in it."""
    given = {"KARMALAKE_QUEUE_KIND": kind, "KARMALAKE_QUEUE_URL": url}
    with pytest.raises(
        ConfigurationError, match=rf"KARMALAKE_QUEUE_URL: .*is not the URL of a queue of {kind}"
    ) as raised:
        load_settings(given, tmp_path)
    assert not re.search(r"hush|hu#sh|27991", "".join(traceback.format_exception(raised.value)))


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("rabbitmq", "amqp://guest:pa%23ss@127.0.0.1:5672/%2F?heartbeat=5"),
        ("rabbitmq", "amqps://localhost"),
        ("sqs", "https://sqs.eu-west-1.amazonaws.com/123456789012/ratings"),
        ("sqs", "http://127.0.0.1:4566/000000000000/ratings"),
    ],
)
def test_a_url_of_a_queue(tmp_path: Path, kind: str, url: str) -> None:
    """Both kinds may be on a machine of one's own, and what clients leave out is left out."""
    settings = load_settings({"KARMALAKE_QUEUE_KIND": kind, "KARMALAKE_QUEUE_URL": url}, tmp_path)
    assert settings.queue.url == SecretStr(url)


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    """Compose files and shells pass unset variables as empty ones."""
    empty = {"KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": "", "KARMALAKE_DATA_DIR": "", "KARMALAKE_CONFIG": ""}
    assert load_settings(empty, tmp_path) == Settings()


def test_a_file_elsewhere_is_named_by_a_variable(tmp_path: Path) -> None:
    """KARMALAKE_CONFIG replaces the file of the working directory."""
    _write(tmp_path, '[kafka]\ntopic = "here"')
    file = tmp_path / "elsewhere.toml"
    file.write_text('[kafka]\ntopic = "elsewhere"')
    assert load_settings({"KARMALAKE_CONFIG": str(file)}, tmp_path).kafka.topic == "elsewhere"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("KARMALAKE_TOPIC", "t", "KARMALAKE_TOPIC: topic: is not a setting"),
        (
            "KARMALAKE_KAFKA_TOPIK",
            "t",
            "KARMALAKE_KAFKA_TOPIK: kafka.topik: is not a setting: did you mean 'KARMALAKE_KAFKA_TOPIC'?",
        ),
        ("KARMALAKE_REPUTATON_POLICY", "p", "is not a setting: did you mean 'KARMALAKE_REPUTATION_POLICY'?"),
        ("KARMALAKE_KAFKA", "t", "KARMALAKE_KAFKA: kafka: is a section of settings, not one setting"),
        ("KARMALAKE_DASHBOARD_TOKEN", "short", "dashboard.token: is too short: at least 16 characters"),
        ("KARMALAKE_KAFKA_TOPIC", "a b", "KARMALAKE_KAFKA_TOPIC: kafka.topic: has to be the name of a topic"),
        (
            "KARMALAKE_KAFKA_PARTITIONS",
            "many",
            "KARMALAKE_KAFKA_PARTITIONS: kafka.partitions: has to be a whole number",
        ),
        ("KARMALAKE_INGEST_MAX_WAIT_SECONDS", "0", "ingest.max_wait_seconds: has to be above 0"),
        ("KARMALAKE_INGEST_MAX_WAIT_SECONDS", "inf", "ingest.max_wait_seconds: has to be a finite number"),
        ("KARMALAKE_INGEST_MAX_WAIT_SECONDS", "1e10", "ingest.max_wait_seconds: has to be at most 86400"),
        ("KARMALAKE_REDIS_SOCKET_TIMEOUT_SECONDS", "1e10", "redis.socket_timeout_seconds: has to be at most 86400"),
        ("KARMALAKE_LAG_INTERVAL_SECONDS", "1e10", "lag.interval_seconds: has to be at most 31622400"),
        ("KARMALAKE_FEED_KEEP_DAYS", "99999999999", "feed.keep_days: has to be at most 36600"),
        ("KARMALAKE_CONTRACT_EARLIEST", "yesterday", "contract.earliest: has to be a time with its zone"),
        ("KARMALAKE_CONTRACT_EARLIEST", "2020-01-01T00:00:00", "contract.earliest: has no time zone"),
        ("KARMALAKE_LAKE_VACUUM_RETENTION_HOURS", "0.5", "lake.vacuum_retention_hours: has to be at least 1"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, variable: str, value: str, message: str) -> None:
    """The error says which variable it is and what is wrong with it."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings({variable: value}, tmp_path)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kafka", "is not TOML"),
        ("\xff", "is not UTF-8"),
        ("[bus]\ntopic = 't'", "karmalake.toml:1: bus: is not a setting"),
        ("[kafka]\ntopik = 't'", "karmalake.toml:2: kafka.topik: is not a setting: did you mean 'topic'?"),
        ("kafka = 't'", "karmalake.toml:1: kafka: is a section of settings, not one setting"),
        ("[[kafka]]\ntopic = 't'", "karmalake.toml:1: kafka: is a section of settings, not one setting"),
        ("[kafka]\ntopic = 5", "karmalake.toml:2: kafka.topic: has to be a text in quotes"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    """The error says which file it is; a variable for the same section is no reason for a traceback."""
    (tmp_path / "karmalake.toml").write_bytes(text.encode("latin-1"))
    for environment in ({}, {"KARMALAKE_KAFKA_GROUP_ID": "g"}):
        with pytest.raises(ConfigurationError) as raised:
            load_settings(environment, tmp_path)
        assert message in str(raised.value)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    """Each has a line and its own source."""
    _write(tmp_path, "[redis]\nport = 1")
    with pytest.raises(ConfigurationError) as raised:
        load_settings({"KARMALAKE_KAFKA_PARTITIONS": "0", "KARMALAKE_X": "1"}, tmp_path)
    places = [line.split(":")[0] for line in str(raised.value).splitlines()]
    assert sorted(places) == sorted(["KARMALAKE_KAFKA_PARTITIONS", "KARMALAKE_X", str(tmp_path / "karmalake.toml")])


@pytest.mark.parametrize("named", ["missing.toml", "."])
def test_a_named_file_must_be_readable(tmp_path: Path, named: str) -> None:
    """If the named file is missing, that is an error, not a default."""
    with pytest.raises(ConfigurationError, match=r"which does not exist|cannot be read"):
        load_settings({"KARMALAKE_CONFIG": str(tmp_path / named)}, tmp_path)


def test_secrets_are_never_shown(tmp_path: Path) -> None:
    """No password is in a repr, or in the error about another setting."""
    secrets = {
        "KARMALAKE_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KARMALAKE_KAFKA_SASL_MECHANISM": "PLAIN",
        "KARMALAKE_KAFKA_SASL_USERNAME": "ann",
        "KARMALAKE_KAFKA_SASL_PASSWORD": "s3cret-one",
        "KARMALAKE_KAFKA_SSL_CERTFILE": "client.pem",
        "KARMALAKE_KAFKA_SSL_PASSWORD": "s3cret-two",
        "KARMALAKE_REDIS_URL": "redis://:s3cret-three@host",
    }
    settings = load_settings(secrets, tmp_path)
    with pytest.raises(ConfigurationError) as raised:
        load_settings(
            secrets | {"KARMALAKE_KAFKA_PARTITIONS": "x", "KARMALAKE_REDIS_PASSWORD": "s3cret-four"}, tmp_path
        )
    assert (
        "s3cret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()} {raised.value}"
    )


def test_settings_do_not_change() -> None:
    """Settings are immutable."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().kafka.topic = "other"


def test_client_config_has_what_the_protocol_needs() -> None:
    """Certificates only with SSL, credentials only with SASL, and the addresses as a list."""
    config = KafkaSettings(bootstrap_servers="a:1, b:2").client_config()
    assert config["bootstrap_servers"] == ["a:1", "b:2"]
    assert not [name for name in config if name.startswith(("ssl", "sasl"))]
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": SecretStr("p")}
    secured = KafkaSettings(
        bootstrap_servers="a:1", security_protocol="SASL_SSL", ssl_cafile=Path("ca.pem"), **login
    ).client_config()
    assert (secured["ssl_cafile"], secured["sasl_plain_username"], secured["sasl_mechanism"]) == (
        "ca.pem",
        "u",
        "PLAIN",
    )


@pytest.mark.parametrize(
    ("given", "wrong", "problem"),
    [
        ("KAFKA_SASL_USERNAME=ann", "KAFKA_SASL_USERNAME", "has no effect with kafka.security_protocol = PLAINTEXT"),
        ("KAFKA_SSL_CAFILE=ca.pem", "KAFKA_SSL_CAFILE", "has no effect .* choose one with SSL"),
        (
            "KAFKA_SECURITY_PROTOCOL=SASL_PLAINTEXT KAFKA_SSL_CAFILE=ca.pem KAFKA_SASL_MECHANISM=PLAIN",
            "KAFKA_SSL_CAFILE",
            "has no effect",
        ),
        ("KAFKA_SECURITY_PROTOCOL=SASL_SSL", "KAFKA_SASL_MECHANISM", "is missing where security_protocol is set"),
        (
            "KAFKA_SECURITY_PROTOCOL=SASL_SSL KAFKA_SASL_MECHANISM=PLAIN KAFKA_SASL_USERNAME=ann",
            "KAFKA_SASL_PASSWORD",
            "is missing",
        ),
        ("KAFKA_SECURITY_PROTOCOL=SSL KAFKA_SSL_KEYFILE=key.pem", "KAFKA_SSL_CERTFILE", "is missing where ssl_keyfile"),
        ("CASSANDRA_HOSTS=a CASSANDRA_PASSWORD=p", "CASSANDRA_USER", "is missing where password is set"),
        ("CASSANDRA_HOSTS=a CASSANDRA_USER=ann", "CASSANDRA_PASSWORD", "is missing where user is set"),
        ("CASSANDRA_SSL_CAFILE=ca.pem", "CASSANDRA_SSL_CAFILE", "has no effect without cassandra.hosts"),
    ],
)
def test_a_login_or_certificate_without_effect_is_refused(given: str, wrong: str, problem: str, tmp_path: Path) -> None:
    """It would look like an outage, or like an encrypted connection."""
    environment = {f"KARMALAKE_{name}": value for name, value in (pair.split("=") for pair in given.split())}
    section, _, key = wrong.lower().partition("_")
    with pytest.raises(ConfigurationError, match=rf"^(KARMALAKE_{wrong}|the settings: {section}\.{key}): .*{problem}"):
        load_settings(environment, tmp_path)


def test_no_broker_is_explained() -> None:
    """Without a broker the error names both ways to configure one."""
    with pytest.raises(ConfigurationError, match=r"karmalake local start.*KARMALAKE_KAFKA_BOOTSTRAP_SERVERS"):
        KafkaSettings().client_config()


def test_a_redis_prefix_is_not_a_pattern() -> None:
    """Redis wildcards are rejected."""
    with pytest.raises(ValueError, match="prefix"):
        RedisSettings(prefix="karma*")


def _write(folder: Path, text: str) -> None:
    (folder / "karmalake.toml").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["a?b", "a\\b", "a%20b"])
def test_a_folder_that_libraries_misread(name: str, tmp_path: Path) -> None:
    """Such a name made the first commit or rebuild a traceback; also in a parent, and beside names that work."""
    for folder in (name, f"{name}/data"):
        with pytest.raises(ConfigurationError, match=r"KARMALAKE_DATA_DIR: data_dir: .* rename it"):
            load_settings({"KARMALAKE_DATA_DIR": folder}, tmp_path)
    assert load_settings({"KARMALAKE_DATA_DIR": "100% [a] b*"}, tmp_path).data_dir == Path("100% [a] b*")


def _numeric_settings() -> dict[str, FieldInfo]:
    sections = {name: field.annotation for name, field in Settings.model_fields.items()}
    fields = {
        f"{name}.{inner}": field
        for name, section in sections.items()
        if isinstance(section, type) and issubclass(section, BaseModel)
        for inner, field in section.model_fields.items()
    }
    return {name: field for name, field in fields.items() if _kinds(field.annotation) & {int, float}}


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation consists of, without those within lists."""
    if get_origin(annotation) in {Union, UnionType, Annotated}:
        return set().union(*map(_kinds, get_args(annotation)))
    return {annotation}


@pytest.mark.parametrize("name", sorted(_numeric_settings()))
@pytest.mark.parametrize("number", ["99999999999999999999999", "1e300"])
def test_every_number_has_an_upper_bound(tmp_path: Path, name: str, number: str) -> None:
    """Else it would fail where it is converted, with a traceback that does not name the setting."""
    variable = f"KARMALAKE_{name.replace('.', '_').upper()}"
    with pytest.raises(ConfigurationError, match=f"^{variable}: {name}: has to be (at most|below|a whole number)"):
        load_settings({variable: number}, tmp_path)


def test_numbers_are_found() -> None:
    """Those without bounds of their own, of each kind."""
    found = _numeric_settings()
    assert len(found) > 30
    assert {"feed.keep_days", "kafka.request_timeout_seconds", "metrics.port", "lake.compact_after_files"} <= set(found)


@pytest.mark.parametrize("name", sorted(_numeric_settings()))
def test_every_largest_number_is_accepted(tmp_path: Path, name: str) -> None:
    """And converts to what its consumers need: a time limit, milliseconds as an int32, a moment in the past."""
    (largest,) = {limit.le for limit in _limits(_numeric_settings()[name]) if isinstance(limit, Le)}
    variable = f"KARMALAKE_{name.replace('.', '_').upper()}"
    settings = load_settings({variable: str(largest)}, tmp_path)
    section, _, field = name.partition(".")
    value = getattr(getattr(settings, section), field)
    assert value == largest
    if field.endswith("_seconds"):
        assert timedelta(seconds=value)
    if field.endswith("_seconds") and name != "contract.max_ahead_seconds":
        ready = threading.Event()
        threading.Timer(0.01, ready.set).start()
        assert ready.wait(10 * value)
    if "timeout" in field:
        assert 2 * 1000 * value < 2**31
    if field.endswith("_days"):
        assert datetime.now(UTC) - timedelta(days=value)


def _limits(field: FieldInfo) -> list[Any]:
    """Return the constraints of a field, also of a type in a union."""
    nested = [each for kind in get_args(field.annotation) if get_origin(kind) is Annotated for each in get_args(kind)]
    inner = [limit for each in nested if isinstance(each, FieldInfo) for limit in each.metadata]
    return [*field.metadata, *inner]


@pytest.mark.parametrize("seconds", [0.5, 149.0, 151.0, 600.0, 86_400.0])
def test_timeouts_fit_together(seconds: float) -> None:
    """kafka-python requires of its options that a fetch waits less than a request, and that less than a connection."""
    settings = Settings(ingest=IngestSettings(max_wait_seconds=seconds), kafka=KafkaSettings(bootstrap_servers="b:1"))
    slow = settings.kafka.model_copy(update={"request_timeout_seconds": seconds})
    for each in (settings, settings.model_copy(update={"kafka": slow})):
        options = each.kafka.client_config() | consumer_options(each)
        assert options["fetch_max_wait_ms"] < options["request_timeout_ms"] < options["connections_max_idle_ms"]
