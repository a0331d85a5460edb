"""`Event`: the Protobuf class of the contract, for services that read or write the topic themselves."""

from pipelines.contract.event_pb2 import Event

__all__ = ["Event"]
