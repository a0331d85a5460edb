"""A producer of raw record batches with arbitrary bytes, which no client library would send."""

from typing import Any

from kafka import errors
from kafka.protocol.producer import ProduceRequest

from pipelines.bus.clients import admin_client
from pipelines.settings import KafkaSettings
from tests.services.waiting import wait_for

_VERSION = 9
_Topic: Any = ProduceRequest.TopicProduceData
_Partition: Any = _Topic.PartitionProduceData
_NO_LEADER_YET = {
    errors.UnknownTopicOrPartitionError.errno,
    errors.LeaderNotAvailableError.errno,
    errors.NotLeaderForPartitionError.errno,
}
"""What a broker that is to lead a topic partition may answer until it knows of it."""


def produce_raw(kafka: KafkaSettings, batch: bytes, partition: int = 0) -> int:
    """Send one record batch to a topic partition; return the broker's error code, 0 if it was accepted."""

    def answered() -> list[int]:
        code = _produce(kafka, batch, partition)
        return [] if code in _NO_LEADER_YET else [code]

    return wait_for("the leader of the topic partition", answered)[0]


def _produce(kafka: KafkaSettings, batch: bytes, partition: int) -> int:
    with admin_client(kafka) as admin:
        [topic] = admin.describe_topics([kafka.topic])
        [leader] = [each["leader_id"] for each in topic["partitions"] if each["partition_index"] == partition]
        request: Any = ProduceRequest
        data = [_Topic(name=kafka.topic, partition_data=[_Partition(index=partition, records=batch)])]
        produce_request = request(
            transactional_id=None, acks=-1, timeout_ms=10_000, topic_data=data, max_version=_VERSION
        )

        async def send() -> Any:
            return await admin._manager.send(produce_request, node_id=leader)

        response = admin._manager.run(send)
    return response.responses[0].partition_responses[0].error_code
