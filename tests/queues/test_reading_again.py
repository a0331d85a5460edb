"""Messages of a queue by the contract, also when they are read again as dead letters (`not-blocked`, `erasable`)."""

import json
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest

from pipelines.operate.dead_letters import Requeued, Selection, requeue
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.user_data import user_data
from pipelines.settings import Settings
from tests.draining import assert_verified, drain_all, query, valid_records
from tests.queues.conftest import Queue

_EVENT = {"event_id": "a", "user_id": "u", "action_type": "A", "timestamp": "2026-03-01T12:00:00Z"}
_ENVELOPE = {"version": "0", "detail-type": "rated", "source": "rides"}


def _with_contract(settings: Settings, **changes: object) -> Settings:
    return settings.model_copy(update={"contract": settings.contract.model_copy(update=changes)})


def _values(count: int) -> list[bytes]:
    return [record.value or b"" for record in valid_records(range(count))]


def _send_text(settings: Settings, *bodies: str) -> None:
    client: Any = boto3.client("sqs", region_name="eu-west-1")
    assert settings.queue.url
    for body in bodies:
        client.send_message(QueueUrl=settings.queue.url.get_secret_value(), MessageBody=body)


def test_messages_have_no_key_that_could_be_wrong(queue: Queue) -> None:
    """strict_keys rejects none of them, and a requeue of what was rejected counts none as mis-keyed."""
    strict = _with_contract(queue.settings, strict_keys=True, max_user_id_bytes=1)
    queue.send(_values(5))
    drain_all(strict)
    assert query(strict, "SELECT reason, count(*) FROM dead_letters GROUP BY ALL") == [("oversized_user_id", 5)]
    strict = _with_contract(strict, max_user_id_bytes=100)
    assert requeue(strict, Selection()) == Requeued(5, 0, 0, still_rejected=0)
    queue.send(_values(10)[5:])
    drain_all(strict)
    assert query(strict, "SELECT sum(accepted), sum(mis_keyed) FROM commits") == [(10, 0)]
    assert_verified(strict)


def test_json_under_another_format_is_named(queue: Queue) -> None:
    """The detail of the dead letter says which setting to correct."""
    queue.send([json.dumps(_EVENT).encode()])
    drain_all(queue.settings)
    detail = "The value begins like JSON, but contract.format is protobuf."
    assert query(queue.settings, "SELECT reason, detail FROM dead_letters") == [("undecodable", detail)]
    assert requeue(_with_contract(queue.settings, format="json"), Selection()) == Requeued(1, 0, 0, still_rejected=0)


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_bodies_of_sqs_are_unwrapped_again(queue: Queue) -> None:
    """Under the right contract.format a requeue accepts what the wrong one has rejected."""
    in_json = _with_contract(queue.settings, format="json")
    wrapped = _ENVELOPE | {"detail": _EVENT | {"event_id": "b"}}
    _send_text(queue.settings, json.dumps(_EVENT), json.dumps(wrapped))
    drain_all(queue.settings)
    queue.send(_values(3))
    drain_all(in_json)
    assert query(in_json, "SELECT count(*) FROM dead_letters") == [(5,)]
    assert requeue(in_json, Selection()) == Requeued(2, 0, 0, still_rejected=3)
    assert requeue(queue.settings, Selection()) == Requeued(3, 0, 0, still_rejected=0)
    assert_verified(queue.settings)


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_a_body_that_was_unwrapped_is_not_unwrapped_again(queue: Queue) -> None:
    """A rejected event that has a detail of its own is still that event when it is requeued."""
    early = _with_contract(queue.settings, format="json", earliest=datetime(2027, 1, 1, tzinfo=UTC))
    event = _EVENT | _ENVELOPE | {"detail": _EVENT | {"event_id": "b"}}
    _send_text(early, json.dumps(_ENVELOPE | {"detail": event}))
    drain_all(early)
    assert query(early, "SELECT reason FROM dead_letters") == [("timestamp_too_early",)]
    in_json = _with_contract(queue.settings, format="json")
    assert requeue(in_json, Selection()) == Requeued(1, 0, 0, still_rejected=0)
    assert query(in_json, "SELECT event_id FROM events") == [("a",)]


@pytest.mark.parametrize("queue", ["sqs"], indirect=True)
def test_a_wrapped_dead_letter_names_its_user(queue: Queue) -> None:
    """An export has it and an erasure removes it, although no word of a body in base64 is the user_id."""
    queue.send(_values(3))
    drain_all(_with_contract(queue.settings, format="json"))
    assert len(user_data(queue.settings, "u-1")["dead_letters"]) == 1
    personal = _with_contract(queue.settings, personal_keys=("n",))
    erase_without_documents(personal, ["u-1", "2"])
    assert query(personal, "SELECT count(*) FROM dead_letters") == [(2,)]
    assert requeue(personal, Selection()) == Requeued(2, 0, 0, still_rejected=0)
    assert query(personal, "SELECT count(*) FROM events WHERE metadata['n'] IN ('0', '2')") == [(1,)]
