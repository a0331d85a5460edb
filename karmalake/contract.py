"""The Protobuf classes of the contract: `Event`, and `ScoreChange` of the feed, for services that use the topics."""

from pipelines.contract.event_pb2 import Event
from pipelines.contract.score_change_pb2 import ScoreChange

__all__ = ["Event", "ScoreChange"]
