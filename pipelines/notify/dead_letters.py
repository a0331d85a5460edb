"""Dead letters of notifications: the original record, in a separate topic, with the reason in its headers.

The topic `{topic}.notify.dlq` is created when a notifier starts. A crash between a dead letter and the checkpoint after
it writes the dead letter again: destination, topic partition and offset in its headers identify the repeat. A record
that is too large for the topic is truncated and marked (`emit/copies.py`); its headers locate the original.
"""

from collections.abc import Iterable

from pipelines.emit.copies import Copy, CopyWriter
from pipelines.emit.producer import Record
from pipelines.notify.lanes import Delivery
from pipelines.settings import KafkaSettings

_PREFIX = "karmalake.notify."
_MAX_REASON_CHARACTERS = 1_000


def dlq_settings(kafka: KafkaSettings) -> KafkaSettings:
    """Return the settings of the dead letter topic."""
    return kafka.model_copy(update={"topic": f"{kafka.topic}.notify.dlq"})


def write_dead_letters(writer: CopyWriter, destination: str, failed: Iterable[tuple[Delivery, str]]) -> None:
    """Write dead letters, each with its reason, and wait for the acknowledgement; errors as in `CopyWriter.write`."""
    writer.write([_copy(destination, delivery, reason) for delivery, reason in failed])


def _copy(destination: str, delivery: Delivery, reason: str) -> Copy:
    record = delivery.record
    details = {
        "destination": destination,
        "rule": delivery.notification.rule,
        "reason": reason[:_MAX_REASON_CHARACTERS],
        "topic": record.topic,
        "topic_partition": str(record.partition),
        "offset": str(record.offset),
    }
    headers = [(_PREFIX + name, value.encode(errors="backslashreplace")) for name, value in details.items()]
    place = f"{record.topic}-{record.partition}@{record.offset}"
    return Copy(Record(record.key, record.value, list(record.headers)), headers, place)
