import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreChange(_message.Message):
    __slots__ = ("number", "user_id", "before", "after", "policy", "lake_version", "as_of", "causes", "more_causes")
    class Cause(_message.Message):
        __slots__ = ("cause", "event_id")
        CAUSE_FIELD_NUMBER: _ClassVar[int]
        EVENT_ID_FIELD_NUMBER: _ClassVar[int]
        cause: str
        event_id: str
        def __init__(self, cause: _Optional[str] = ..., event_id: _Optional[str] = ...) -> None: ...
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LAKE_VERSION_FIELD_NUMBER: _ClassVar[int]
    AS_OF_FIELD_NUMBER: _ClassVar[int]
    CAUSES_FIELD_NUMBER: _ClassVar[int]
    MORE_CAUSES_FIELD_NUMBER: _ClassVar[int]
    number: int
    user_id: str
    before: str
    after: str
    policy: str
    lake_version: int
    as_of: _timestamp_pb2.Timestamp
    causes: _containers.RepeatedCompositeFieldContainer[ScoreChange.Cause]
    more_causes: int
    def __init__(self, number: _Optional[int] = ..., user_id: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ..., policy: _Optional[str] = ..., lake_version: _Optional[int] = ..., as_of: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., causes: _Optional[_Iterable[_Union[ScoreChange.Cause, _Mapping]]] = ..., more_causes: _Optional[int] = ...) -> None: ...
