"""What could not be delivered: the original record, in a topic of this branch, with the reason in its headers.

The topic `{topic}.notify.dlq` is created when a notifier starts. A crash between a dead letter and the checkpoint
behind it writes the dead letter again: destination, topic partition and offset in its headers tell the copy.
"""

from collections.abc import Iterable

from pipelines.emit.clients import translated
from pipelines.emit.producer import Delivery as Sending
from pipelines.emit.producer import Record
from pipelines.notify.lanes import Delivery
from pipelines.settings import KafkaSettings

_PREFIX = "karmalake.notify."
_MOST_REASON_CHARACTERS = 1_000


def dead_letters_of(kafka: KafkaSettings) -> KafkaSettings:
    """Return the settings of the topic of dead letters."""
    return kafka.model_copy(update={"topic": f"{kafka.topic}.notify.dlq"})


def bury(kafka: KafkaSettings, sending: Sending, destination: str, failed: Iterable[tuple[Delivery, str]]) -> None:
    """Write dead letters, each with its reason, and wait for the broker; errors as in `produce`."""
    with translated(kafka, f"writing dead letters to {kafka.topic}"):
        for delivery, reason in failed:
            sending.send(_record(destination, delivery, reason))
        sending.wait()


def _record(destination: str, delivery: Delivery, reason: str) -> Record:
    record = delivery.record
    told = {
        "destination": destination,
        "rule": delivery.notification.rule,
        "reason": reason[:_MOST_REASON_CHARACTERS],
        "topic": record.topic,
        "topic_partition": str(record.partition),
        "offset": str(record.offset),
    }
    ours = [(_PREFIX + name, value.encode()) for name, value in told.items()]
    return Record(record.key, record.value, [*record.headers, *ours])
