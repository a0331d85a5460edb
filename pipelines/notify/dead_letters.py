"""Dead letters of notifications: the original record, in a separate topic, with the reason in its headers.

The topic `{topic}.notify.dlq` is created when a notifier starts. A crash between a dead letter and the checkpoint after
it writes the dead letter again: destination, topic partition and offset in its headers identify the repeat. A record
that is too large for the topic is truncated and marked (`emit/copies.py`); its headers locate the original.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError

from pipelines.contract.names import replace_in_value
from pipelines.emit.copies import Copy, CopyWriter
from pipelines.emit.producer import Record
from pipelines.notify.events import decode_events
from pipelines.notify.lanes import Delivery
from pipelines.notify.template import Event
from pipelines.settings import ContractSettings, KafkaSettings

_PREFIX = "karmalake.notify."
_MAX_REASON_CHARACTERS = 1_000


def dlq_settings(kafka: KafkaSettings) -> KafkaSettings:
    """Return the settings of the dead letter topic."""
    return kafka.model_copy(update={"topic": f"{kafka.topic}.notify.dlq"})


def without_names(record: Any, before: Event, event: Event, contract: ContractSettings) -> Any:
    """Return a record of the event `before` as one of `event`, in which names of erased users are replaced.

    The value is left out where that cannot be done, as with a schema id.
    """
    names = {key: name for key, name in event.metadata.items() if before.metadata[key] != name}
    if not names:
        return record
    pseudonyms = {before.metadata[key]: name for key, name in names.items()}
    with suppress(DecodeError, ValueError):
        replaced = record._replace(value=replace_in_value(record.value, contract.format, [*names], pseudonyms.get))
        [(_, written)] = decode_events([replaced], contract).events
        if written == event:
            return replaced
    return record._replace(value=b"")


def write_dead_letters(writer: CopyWriter, destination: str, failed: Iterable[tuple[Delivery, Any, str]]) -> None:
    """Write dead letters, each of a record for a reason, and wait for the acknowledgement.

    Errors as in `CopyWriter.write`.
    """
    writer.write(
        [_copy(destination, delivery.notification.rule, record, reason) for delivery, record, reason in failed]
    )


def _copy(destination: str, rule: str, record: Any, reason: str) -> Copy:
    details = {
        "destination": destination,
        "rule": rule,
        "reason": reason[:_MAX_REASON_CHARACTERS],
        "topic": record.topic,
        "topic_partition": str(record.partition),
        "offset": str(record.offset),
    }
    headers = [(_PREFIX + name, value.encode(errors="backslashreplace")) for name, value in details.items()]
    place = f"{record.topic}-{record.partition}@{record.offset}"
    return Copy(Record(record.key, record.value, list(record.headers)), headers, place)
