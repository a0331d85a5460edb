"""Random sequences of sends, crashes, restarts, upkeep and publications, compared with a model of ten lines."""

import shutil
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, NamedTuple

import hypothesis
import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from pipelines.bus.topics import ensure_topic
from pipelines.contract.encode import encode
from pipelines.contract.schema import EVENT
from pipelines.drain import Ingest, drain, open_ingest
from pipelines.emit.producer import Record
from pipelines.errors import UsageError
from pipelines.lake.commit import CommitRecord
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.upkeep import compact, vacuum
from pipelines.operate.erase import erase
from pipelines.operate.replay import open_replay, replay
from pipelines.operate.verify_served import verify_served
from pipelines.refresh import publish_warehouse, rebuild_warehouse, refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.serving.client import connect
from pipelines.serving.keys import key_pattern
from pipelines.settings import Settings
from tests.crashes.kills import find_function
from tests.draining import NOON, answers, recreate_topic, send, with_ingest
from tests.services.waiting import wait_for
from tests.share import count

EXAMPLES = count(3, 20)
STEPS = 15
USERS = 5
POLICIES = ("default", "decayed-karma", "marketplace-feedback", "ride-hailing")
SEEN = {
    "events": "SELECT event_id, action_type, event_time, metadata['rating'] FROM events",
    "fates": """SELECT sum("read"), sum(accepted), sum(duplicates), sum(conflicts), sum(dead_letters), sum(erased)
        FROM commits""",
    "dead_letters": "SELECT count(*) FROM dead_letters",
    "conflicts": "SELECT count(*) FROM conflicts",
}
DERIVED = ("reputation", "user_days", "user_reasons", "status_periods", "trends_daily", "trends_scores")
CRASHES = (
    "pipelines.drain:append",
    "pipelines.drain:stage_events",
    "pipelines.drain:commit_batch",
    "pipelines.drain:DedupIndex.extend",
    "pipelines.drain:complete_commits",
)


class Sent(NamedTuple):
    """An event as sent; the other fields follow from these."""

    number: int
    rating: int
    days_ago: int

    @property
    def user(self) -> int:
        """The number of the event's user."""
        return self.number % USERS


class PowerCutError(Exception):
    """The end of a process."""


def model(records: Sequence[Sent | None], erasures: Sequence[tuple[int, int]]) -> tuple[list[Sent], Counter[str]]:
    """Return the events that the lake must have after these records, and the number of records by fate.

    The first event of each id counts; None is a malformed record. An erasure is the number of records read before it,
    and the user.
    """
    events: dict[int, Sent] = {}
    fates = Counter[str]()
    for place, record in enumerate(records):
        if record is None:
            fates["dead_letters"] += 1
        elif any(record.user == user and place >= after for after, user in erasures):
            fates["erased"] += 1
        else:
            first = events.get(record.number)
            fates["accepted" if first is None else "duplicates" if first == record else "conflicts"] += 1
            events.setdefault(record.number, record)
    erased = {user for _, user in erasures}
    return [event for event in events.values() if event.user not in erased], fates


SENT = st.builds(Sent, st.integers(0, 30), st.integers(1, 5), st.integers(0, 3))


class Story(RuleBasedStateMachine):
    """One topic with one topic partition, one lake, one prefix in Redis; the test sets `bus`."""

    bus: ClassVar[Settings]

    def __init__(self) -> None:
        super().__init__()
        unique = uuid.uuid4().hex[:12]
        self.folder = Path(mkdtemp(prefix="karmalake-story-"))
        kafka = self.bus.kafka.model_copy(update={"topic": f"story-{unique}", "group_id": unique, "partitions": 1})
        redis = self.bus.redis.model_copy(update={"prefix": f"story-{unique}"})
        update = {"data_dir": self.folder, "kafka": kafka, "redis": redis}
        self.settings = with_ingest(self.bus.model_copy(update=update), max_batch_records=1)
        self.past: list[Sent | None] = []
        """Records read from deleted topics, and up to the last replay."""
        self.log: list[Sent | None] = []
        """Records in the topic."""
        self.passed = 0
        """The number of the topic's records that are in `past`."""
        self.erasures: list[tuple[int, int]] = []
        """By erasure: the number of records read before it, and the user."""
        self.process = ExitStack()
        self.ingest: Ingest | None = None
        ensure_topic(kafka)
        create_lake(self.settings.lake_root)

    def teardown(self) -> None:
        self.process.close()
        shutil.rmtree(self.folder)

    @rule(records=st.lists(SENT, min_size=1, max_size=8))
    def produce(self, records: list[Sent]) -> None:
        self._send(records)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def produce_again(self, data: st.DataObject) -> None:
        """Resend everything from any offset on, as a producer without a response does."""
        self._send(self.log[data.draw(st.integers(0, len(self.log) - 1), "offset") :])

    @rule(number=st.integers(0, 30), days_ago=st.integers(40, 400))
    def send_late(self, number: int, days_ago: int) -> None:
        self._send([Sent(number, 5, days_ago)])

    @rule(count=st.integers(1, 3))
    def send_malformed(self, count: int) -> None:
        self._send([None] * count)

    @precondition(lambda self: any(self.log))
    @rule(data=st.data())
    def send_conflicting(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from([record for record in self.log if record]))
        self._send([sent._replace(rating=sent.rating % 5 + 1)])

    @rule()
    def drain(self) -> None:
        """Drain until everything is read; several times, since the embedded broker understates its end offset."""
        ingest = self.ingest = self.ingest or self.process.enter_context(open_ingest(self.settings))
        sent = len(self._history())
        wait_for("everything to be read", lambda: drain(ingest, lambda _: None) >= 0 and self._read() == sent)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """Drain, and replay from any offset on; the embedded broker may hide the last part."""
        self.drain()
        start = data.draw(st.integers(0, len(self.log) - 1), "offset")
        records: list[CommitRecord] = []
        with suppress(UsageError), open_replay(self.settings, {0: start}, None) as replayed:
            replay(replayed, self.settings, records.append)
        again = sum(record.total("read") for record in records)
        self.past, self.passed = self._history() + self.log[start : start + again], len(self.log)

    @rule(place=st.sampled_from(CRASHES), after=st.booleans(), call=st.integers(1, 3))
    def crash_in_drain(self, place: str, after: bool, call: int) -> None:
        self.restart()
        owner, name = find_function(place)
        with suppress(PowerCutError), pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, _failing(getattr(owner, name), call, after=after))
            with open_ingest(self.settings) as ingest:
                drain(ingest, lambda _: None)

    @rule()
    def restart(self) -> None:
        self.process.close()
        self.ingest = None

    @rule(data=st.data())
    def recreate_topic(self, data: st.DataObject) -> None:
        """Delete the topic with its unread records, and resend its records from any offset on."""
        lost_log, read = self.log, self._read()
        self.past, self.log, self.passed = self._history()[:read], [], 0
        recreate_topic(self.settings.kafka)
        self._send(lost_log[data.draw(st.integers(0, len(lost_log)), "offset") :])

    @rule()
    def lose_the_index(self) -> None:
        self.restart()
        shutil.rmtree(self.settings.index_dir, ignore_errors=True)

    @rule()
    def compact(self) -> None:
        lake = open_lake(self.settings.lake_root)
        compact(lake, 2)
        vacuum(lake, 0)

    @rule(user=st.integers(0, USERS - 1))
    def erase(self, user: int) -> None:
        if user not in {erased for _, erased in self.erasures}:
            erase(self.settings, [f"u-{user}"])
            self.erasures.append((self._read(), user))

    @rule(name=st.sampled_from(POLICIES))
    def change_policy(self, name: str) -> None:
        activate(open_lake(self.settings.lake_root), load_policy(name))

    @rule()
    def refresh(self) -> None:
        """Refresh the warehouse, and compare it with a rebuild."""
        derived = refresh_warehouse(self.settings)
        refreshed = self._derived()
        rebuild_warehouse(self.settings, derived.as_of)
        assert self._derived() == refreshed

    @precondition(lambda self: self.settings.warehouse_path.exists())
    @rule()
    def publish(self) -> None:
        refresh_warehouse(self.settings)
        publish_warehouse(self.settings)
        assert [check.passed for check in verify_served(self.settings)] == [True]

    @rule()
    def flush_redis(self) -> None:
        with connect(self.settings.redis) as client:
            for key in client.scan_iter(key_pattern(self.settings.redis.prefix)):
                client.delete(key)

    @invariant()
    def the_lake_equals_the_model(self) -> None:
        rows = answers(self.settings, SEEN)
        read, *counts = (count or 0 for count in rows["fates"][0])
        events, fates = model(self._history()[:read], self.erasures)
        assert sorted(rows["events"]) == sorted(map(_row, events))
        assert counts == [fates[name] for name in ("accepted", "duplicates", "conflicts", "dead_letters", "erased")]
        assert rows["dead_letters"] == [(fates["dead_letters"],)]
        assert rows["conflicts"][0][0] <= fates["conflicts"]  # conflicts of erased users are removed

    def _send(self, records: Sequence[Sent | None]) -> None:
        if records:
            send(self.settings, [_record(record) for record in records])
            self.log += records

    def _history(self) -> list[Sent | None]:
        """Return the records read so far, followed by those still to be read."""
        return self.past + self.log[self.passed :]

    def _read(self) -> int:
        return answers(self.settings, SEEN)["fates"][0][0] or 0

    def _derived(self) -> dict[str, list[Any]]:
        with Warehouse(self.settings.warehouse_path) as warehouse:
            return {table: sorted(warehouse.sql(f"FROM {table}").rows(), key=repr) for table in DERIVED}


def _row(sent: Sent) -> tuple[Any, ...]:
    """Return an event in the columns of SEEN."""
    return f"e-{sent.number}", "DriverRated", NOON - timedelta(days=sent.days_ago), str(sent.rating)


def _record(sent: Sent | None) -> Record:
    if sent is None:
        return Record(b"u", b"\xff")
    event_id, action_type, event_time, rating = _row(sent)
    user_id = f"u-{sent.user}"
    row = {"event_id": event_id, "user_id": user_id, "action_type": action_type, "event_time": event_time}
    [value] = encode(pa.Table.from_pylist([row | {"metadata": [("rating", rating)]}], EVENT)).to_pylist()
    return Record(user_id.encode(), value)


def _failing(function: Any, call: int, *, after: bool) -> Any:
    """Return a function that raises PowerCutError before or after its n-th call."""
    calls: list[None] = []

    def wrapper(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == call and not after:
            raise PowerCutError
        answer = function(*arguments)
        if len(calls) == call:
            raise PowerCutError
        return answer

    return wrapper


@pytest.mark.slow
def test_any_story(local_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every step the lake equals the model (`once`, `nothing-lost`, `incremental-equals-rebuild`)."""
    monkeypatch.setattr(Story, "bus", local_settings, raising=False)
    # No shrinking: it would run hundreds of further sequences.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    bounds = hypothesis.settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, phases=phases)
    run_state_machine_as_test(Story, settings=bounds)
