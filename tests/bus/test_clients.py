"""Kafka clients."""

from unittest.mock import Mock, call

from kafka import ConsumerRebalanceListener

from pipelines.bus.clients import subscribe


def test_a_member_knows_the_partitions_before_it_may_lead_its_group() -> None:
    """A leader that joins without them assigns none, and all members idle."""
    member, listener = Mock(), Mock(spec=ConsumerRebalanceListener)
    subscribe(member, ("rides", "payments"), listener)
    assert member.method_calls == [
        call.partitions_for_topic("rides"),
        call.partitions_for_topic("payments"),
        call.subscribe(["rides", "payments"], listener=listener),
    ]
