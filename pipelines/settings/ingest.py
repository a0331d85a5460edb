"""The settings of what comes in: the relay of an outbox, the contract, sources, ingest and history."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, Field, SecretStr, field_validator

from pipelines.settings.values import AheadSeconds, Bytes, Count, Format, Names, Section, TimeoutSeconds


class RelaySettings(Section):
    """The relay from a service's outbox to Kafka: `karmalake relay`."""

    database_url: SecretStr | None = None
    """The postgresql://, mysql://, mariadb:// or sqlite:/// URL of the service's database; may contain a password."""


class ContractSettings(Section):
    """The format of events, and the limits of a valid event; events beyond them become dead letters."""

    format: Format = "protobuf"
    """The format of values without a schema id. The schema determines the format of a value with an id."""
    schemas_dir: Path | None = None
    """A folder with the writers' schemas, each named by its id or GUID: 7.proto, 8.avsc, 9.json."""
    schema_registry_url: SecretStr | None = None
    """The URL of a schema registry (Confluent's HTTP API) for other schema ids; may contain a password."""

    max_event_id_bytes: Bytes = Field(default=256, ge=1)
    """The maximum size of an event_id."""
    max_user_id_bytes: Bytes = Field(default=256, ge=1)
    """The maximum size of a user_id."""
    max_action_type_bytes: Bytes = Field(default=128, ge=1)
    """The maximum size of an action_type."""
    max_metadata_bytes: Bytes = Field(default=65_536, ge=0)
    """The maximum total size of the metadata keys and values of an event."""
    earliest: AwareDatetime = datetime(2000, 1, 1, tzinfo=UTC)
    """The earliest valid event_time."""
    max_ahead_seconds: AheadSeconds = Field(default=86_400, ge=0)
    """How far event_time may be ahead of the record time or of the clock of this machine, whichever is earlier."""
    strict_keys: bool = False
    """Whether a record whose key is not its user_id becomes a dead letter; otherwise it is only counted. Messages of a
    queue have no keys."""
    personal_keys: Names = ()
    """The metadata keys whose values are user_ids, such as rater_id; comma-separated in the environment. From a
    `karmalake user merge` or `rename` on, former user_ids there stand for the current one. An erasure replaces the
    user_ids of the erased person there by a pseudonym. Every process needs the same keys."""


class SourcesSettings(Section):
    """Topics that are not in our own contract: files that say what their events are."""

    folder: Path | None = None
    """The folder of the source files, NAME.toml; unset means the folder `sources` beside the configuration file or in
    the working directory, if there is one."""
    only: Names = ()
    """The sources to use: names of source files, and `contract` for the topic kafka.topic; comma-separated in the
    environment. Empty means all of them."""


class IngestSettings(Section):
    """The limits of a batch, and when ingest halts."""

    max_batch_records: int = Field(default=500_000, ge=1, le=5_000_000)
    """The approximate maximum of records per commit; with `max_batch_bytes` it bounds memory (for two batches)."""
    max_batch_bytes: int = Field(default=32 * 1024 * 1024, ge=1024, le=1024 * 1024 * 1024)
    """The maximum of decompressed bytes per commit; the last record batch may exceed it by up to 128 MiB."""
    max_wait_seconds: TimeoutSeconds = Field(default=0.5, gt=0)
    """How long `stream`, `ingest` or a poll of a queue waits for the first record."""
    linger_seconds: TimeoutSeconds = Field(default=0.4, ge=0)
    """How long they then fill the batch before it is committed: longer means fewer commits, files and refreshes. The
    default leaves the rest of 0.6 s to commit, refresh and publish an event that comes alone; with 0 they wait for
    nothing."""
    publish_dead_letters: bool = False
    """Whether dead letters are copied to the topic `{topic}.dlq` after the commit, with the reason in headers."""
    share_partitions: bool = False
    """Whether several ingesters share the topic partitions through the consumer group; requires Apache Kafka, and is
    refused with a queue."""
    max_dead_letter_share: float = Field(default=0.5, ge=0, le=1)
    """The maximum share of rejected records in a batch; above it, the topic partition halts."""
    min_records_for_share: Count = Field(default=5_000, ge=1)
    """The smallest batch for which `max_dead_letter_share` is checked."""
    max_dead_letter_run: Count = Field(default=5_000, ge=1)
    """The maximum of consecutive rejected records; above it, the topic partition halts and the others continue."""


class HistorySettings(Section):
    """Files of history by day, for the Dagster asset `history`; they match the options of `karmalake backfill`."""

    path: str | None = None
    """The path of the file of a day, with {day} as the placeholder: /history/rides-{day}.parquet."""
    source: str | None = None
    """The source file, sources/NAME.toml, that says what the rows are, instead of the columns below; without a `path`,
    the address with {day} of its `files` is the file of a day."""
    user_id: str = "user_id"
    """The column with the user whose reputation the event is about."""
    time: str = "timestamp"
    """The column with the event time."""
    time_unit: Literal["s", "ms", "us", "ns", "iso", "rfc2822"] = "iso"
    """The unit of that column, unless its type specifies it."""
    time_format: str | None = None
    """The format of that column in the names of strptime, such as %d.%m.%Y, instead of `time_unit`."""
    time_zone: str | None = None
    """The zone of times that name none, such as Europe/Berlin; unset means UTC."""
    user: str | None = None
    """The user of every row; unset means that the column `user_id` holds it."""
    action_type: str | None = None
    """The action_type of every row; unset means that `action_type_column` holds it."""
    action_type_column: str = "action_type"
    """The column with the action_type."""
    metadata: dict[str, str] = {}
    """The metadata keys and their columns; in the environment rating=stars,rater_id=rider."""
    event_id: str | None = None
    """The column with the event id; unset means a digest of the row."""
    identity: list[str] = []
    """The columns that make a row an event of its own, without an `event_id`; empty means all of them."""
    number_rows: bool = False
    """Whether equal rows of a file are separate events."""
    format: str | None = None
    """csv, json, parquet, arrow, orc, avro or xlsx; unset means what the name or the content of a file says."""
    delimiter: str | None = None
    """The delimiter of a CSV file, or `tab`; unset means the one that its header has."""
    quote: str | None = None
    """The quote of a CSV file; empty means that no value is quoted, unset that it is found in the file."""
    escape: str | None = None
    """The character before a quote within a quoted value of a CSV file; unset means that quotes are doubled."""
    comment: str | None = None
    """The character that begins lines of a CSV file that are not rows."""
    encoding: str | None = None
    """The encoding of text files, such as cp1252; unset means that it is found in the file."""
    columns: list[str] = []
    """The names of the columns of CSV files without a header."""
    decimal_comma: bool | None = None
    """Whether 4,5 is the number 4.5 in a CSV file; unset means that the file shows it."""
    null: list[str] = []
    """Texts that stand for no value, such as NULL."""
    days_may_be_missing: bool = False
    """Whether a day without a file counts as a day without events; otherwise it is an error."""

    @field_validator("metadata", mode="before")
    @classmethod
    def _parse_pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [pair.strip().split("=", 1) for pair in value.split(",")]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("write name=column pairs, separated by commas")
        return dict(pairs)
