"""A producer of raw record batches with arbitrary bytes, which no client library would send."""

from typing import Any

from kafka.protocol.producer import ProduceRequest

from pipelines.bus.clients import admin_client
from pipelines.settings import KafkaSettings

_VERSION = 9
_Topic: Any = ProduceRequest.TopicProduceData
_Partition: Any = _Topic.PartitionProduceData


def produce_raw(kafka: KafkaSettings, batch: bytes, partition: int = 0) -> int:
    """Send one record batch to a topic partition; return the broker's error code, 0 if it was accepted."""
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
