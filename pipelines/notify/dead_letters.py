"""What could not be delivered: the original record, in a topic of this branch, with the reason in its headers.

The topic `{topic}.notify.dlq` is created when a notifier starts. A crash between a dead letter and the checkpoint
behind it writes the dead letter again: destination, topic partition and offset in its headers tell the copy. A record
that is too large for the topic is cut, with a mark (`emit/copies.py`); its place says where the whole is.
"""

from collections.abc import Iterable

from pipelines.emit.copies import Copy, CopyWriter
from pipelines.emit.producer import Record
from pipelines.notify.lanes import Delivery
from pipelines.settings import KafkaSettings

_PREFIX = "karmalake.notify."
_MOST_REASON_CHARACTERS = 1_000


def dead_letters_of(kafka: KafkaSettings) -> KafkaSettings:
    """Return the settings of the topic of dead letters."""
    return kafka.model_copy(update={"topic": f"{kafka.topic}.notify.dlq"})


def bury(writer: CopyWriter, destination: str, failed: Iterable[tuple[Delivery, str]]) -> None:
    """Write dead letters, each with its reason, and wait for the broker; errors as in `CopyWriter.write`."""
    writer.write([_copy(destination, delivery, reason) for delivery, reason in failed])


def _copy(destination: str, delivery: Delivery, reason: str) -> Copy:
    record = delivery.record
    told = {
        "destination": destination,
        "rule": delivery.notification.rule,
        "reason": reason[:_MOST_REASON_CHARACTERS],
        "topic": record.topic,
        "topic_partition": str(record.partition),
        "offset": str(record.offset),
    }
    ours = [(_PREFIX + name, value.encode(errors="backslashreplace")) for name, value in told.items()]
    place = f"{record.topic}-{record.partition}@{record.offset}"
    return Copy(Record(record.key, record.value, list(record.headers)), ours, place)
