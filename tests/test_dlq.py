"""Dead letters are copied after the commit: all of them, at the cost of the new ones, without affecting ingest."""

import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaProducer

from pipelines import dlq
from pipelines.delivery import OnOutage, deliver_until
from pipelines.dlq import CopyProgress, DeadLetterTopic, copying_on_exit, open_dead_letter_topics
from pipelines.emit.copies import MAX_HEADERS, CopyCounts, CopyWriter
from pipelines.emit.producer import Record
from pipelines.errors import TransientError
from pipelines.lake import dead_letter_outbox as outbox_module
from pipelines.lake import dead_letter_rows
from pipelines.lake.copying import copy_lake
from pipelines.lake.delta_commit import commit_actions
from pipelines.lake.tables import Lake, create_lake, open_lake
from pipelines.lake.upkeep import compact
from pipelines.operate.dead_letters import Selection, requeue
from pipelines.operate.erase import erase
from pipelines.operate.replay import open_replay, replay
from pipelines.settings import Settings
from tests.dlq_copies import copied_places, dead_letter_places, read_copies, read_headers
from tests.draining import assert_verified, drain_all, drained, query, send, valid_records, with_ingest
from tests.panic import Panic
from tests.services.kafka_cluster import KafkaCluster
from tests.services.waiting import wait_for
from tests.test_backfill import load
from tests.test_stream import streaming


@pytest.fixture
def publishing(settings: Settings) -> Settings:
    """Return settings of one topic partition, with copies of dead letters switched on."""
    kafka = settings.kafka.model_copy(update={"partitions": 1})
    return with_ingest(settings.model_copy(update={"kafka": kafka}), publish_dead_letters=True)


def without_copies(settings: Settings) -> Settings:
    """Return the same settings without copies."""
    return with_ingest(settings, publish_dead_letters=False)


def bad(number: int, user: bytes = b"u") -> Record:
    return Record(user, b"\xff" + str(number).encode(), [("h", b"1")])


def batch_of(settings: Settings, numbers: range) -> None:
    """Commit a batch with a dead letter and an event for each number, without copying."""
    send(settings, [record for n in numbers for record in (bad(n), *valid_records([n]))])
    drain_all(without_copies(settings))


def drain_without_copies(settings: Settings, batches: int) -> None:
    """Commit batches without copying their dead letters, after the checkpoint was set."""
    open_dead_letter_topics(settings)
    for number in range(batches):
        batch_of(settings, range(10 * number, 10 * number + 3))


def copy_now(settings: Settings) -> list[CopyProgress]:
    topic, turns = open_dead_letter_topics(settings), list[CopyProgress]()
    try:
        topic.copy_pending(turns.append)
    finally:
        topic.close()
    return turns


def test_each_dead_letter_is_copied_with_its_place(publishing: Settings) -> None:
    """Each copy has the original bytes, key and headers, and headers for reason, place and batch."""
    send(publishing, [bad(1), *valid_records(range(5)), bad(2)])
    drain_all(publishing)
    drain_all(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)
    (batch_id,) = query(publishing, "SELECT DISTINCT batch_id FROM dead_letters")[0]
    first = read_copies(publishing)[0]
    assert (first.key, first.value) == (b"u", b"\xff1")
    assert read_headers(first) == {
        "h": b"1",
        "karmalake.reason": b"undecodable",
        "karmalake.detail": query(publishing, "SELECT detail FROM dead_letters LIMIT 1")[0][0].encode(),
        "karmalake.topic": publishing.kafka.topic.encode(),
        "karmalake.topic_partition": b"0",
        "karmalake.offset": b"0",
        "karmalake.batch_id": batch_id.encode(),
    }
    assert_verified(publishing)


def test_copies_begin_with_what_is_committed_from_then_on(publishing: Settings) -> None:
    """Switched on for an existing lake, copies start with the next commit and miss none after it."""
    batch_of(publishing, range(5))
    drain_all(publishing)
    assert read_copies(publishing) == []
    send(publishing, [bad(100)])
    drain_all(publishing)
    assert [copy.value for copy in read_copies(publishing)] == [b"\xff100"]


def test_what_is_committed_while_they_are_off_is_copied_later(publishing: Settings) -> None:
    """Switched off and on again, copying continues from its checkpoint."""
    drain_without_copies(publishing, 2)
    drain_all(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)


def test_only_what_came_from_the_bus_is_copied(publishing: Settings, tmp_path: Path) -> None:
    """Rows of files are in their file; records of a replay or a requeue were copied before."""
    drain_without_copies(publishing, 1)
    file = tmp_path / "rows.csv"
    file.write_text("to,time,from,feature\n,1400000000,1,2\n3,1400000000,1,2\n", "utf-8")
    (record,) = load(publishing, file)
    assert record.total("dead_letters") == 1
    with open_replay(publishing, None, None) as replayed:
        replay(replayed, publishing, lambda _: None)
    requeue(publishing, Selection())
    drain_all(publishing)
    assert len(dead_letter_places(publishing)) == 7
    assert sorted(copy.value for copy in read_copies(publishing)) == [b"\xff0", b"\xff1", b"\xff2"]


def test_a_topic_that_does_not_answer_delays_only_the_copies(
    publishing: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The drain succeeds and logs the failure; the next one copies the pending letters (`isolated`)."""
    for failure in (TransientError("no broker answers"), ZeroDivisionError("a defect"), Panic("of Rust")):
        send(publishing, [bad(1), *valid_records([1])])
        with monkeypatch.context() as patch:
            patch.setattr("pipelines.dlq.connect_copy_writer", raising(failure))
            record = drained(publishing)
        assert record.total("dead_letters") == 1
        assert f"copying dead letters to {publishing.kafka.topic}.dlq: {failure}" in caplog.text
        assert_verified(publishing)
    assert read_copies(publishing) == []
    drain_all(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)
    assert len(read_copies(publishing)) == 3


def raising(failure: BaseException) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise failure

    return fail


def test_a_checkpoint_that_cannot_be_set_does_not_stop_ingest(
    publishing: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Copying is best effort from its first step on."""
    send(publishing, [bad(1), *valid_records([1])])
    monkeypatch.setattr("pipelines.dlq.init_checkpoint", raising(OSError("no space left")))
    drained(publishing)
    assert "no space left; the process continues without it" in caplog.text


def test_committed_dead_letters_are_copied_when_ingest_ends_with_an_error(publishing: Settings) -> None:
    """The error of ingest is raised, and what was committed before it is copied nevertheless (`isolated`)."""

    def ingest() -> None:
        with copying_on_exit(publishing, partial(create_lake, publishing.lake_root)):
            batch_of(publishing, range(2))
            raise TransientError("no broker answers")

    with pytest.raises(TransientError, match="no broker answers"):
        ingest()
    assert copied_places(publishing) == dead_letter_places(publishing)
    assert len(read_copies(publishing)) == 2


@pytest.mark.parametrize("merge", [True, False])
def test_copies_are_found_where_files_were_merged(publishing: Settings, *, merge: bool) -> None:
    """With or without compaction, each letter is copied once, from the checkpoint on."""
    batch_of(publishing, range(900, 905))
    drain_without_copies(publishing, 6)
    if merge:
        merged = [one for one in compact(open_lake(publishing.lake_root), 2) if one.table == "dead_letters"]
        assert (merged[0].files_before, merged[0].files_after) == (7, 1)
    copy_now(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)[5:]


def test_an_erased_user_is_not_copied(publishing: Settings) -> None:
    """A dead letter erased before it is copied is skipped (`erasable`); the others are copied."""
    open_dead_letter_topics(publishing)
    send(publishing, [bad(1, b"ann"), bad(2, b"bob")])
    drain_all(without_copies(publishing))
    send(publishing, [bad(3, b"ann")])
    drain_all(without_copies(publishing))
    erase(publishing, ["ann"])
    turns = copy_now(publishing)
    assert [copy.value for copy in read_copies(publishing)] == [b"\xff2"]
    assert turns[-1].pending_records == 0


def test_a_copy_of_the_lake_continues_from_the_checkpoint(publishing: Settings, tmp_path: Path) -> None:
    """In another folder, nothing is copied again, and nothing is missed."""
    drain_without_copies(publishing, 1)
    copy_now(publishing)
    batch_of(publishing, range(50, 52))
    moved = publishing.model_copy(update={"data_dir": tmp_path / "moved"})
    copy_lake(open_lake(publishing.lake_root), moved.lake_root)
    copy_now(moved)
    assert copied_places(moved) == dead_letter_places(moved)


def test_a_checkpoint_ahead_of_the_lake_is_moved_back(publishing: Settings) -> None:
    """A copy of a lake may have a checkpoint newer than its commits: later commits are copied all the same."""
    drain_without_copies(publishing, 1)
    copy_now(publishing)
    lake = open_lake(publishing.lake_root)
    commit_actions(lake.table("dead_letters"), [], {f"dlq:{publishing.kafka.topic}": 1_000})
    send(publishing, [bad(77)])
    drain_all(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)


def test_an_iteration_costs_only_what_is_new(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After twenty batches are copied, a turn reads none of their log entries and files."""
    drain_without_copies(publishing, 20)
    copy_now(publishing)
    batch_of(publishing, range(500, 502))
    entries, files = counted(monkeypatch, Lake, "read_log"), counted(monkeypatch, dead_letter_rows, "open_file")
    topic = open_dead_letter_topics(publishing)
    topic.copy_pending(lambda _: None)
    assert sum(upto - after for _, after, upto in entries) == 1
    assert len({place for (place,) in files}) == 1
    files.clear()
    entries.clear()
    topic.copy_pending(lambda _: None)
    topic.close()
    assert files == []
    assert sum(upto - after for _, after, upto in entries) == 0


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Record the arguments of every call of a function."""
    calls: list[tuple[Any, ...]] = []
    function = getattr(owner, name)

    def call(*arguments: Any) -> Any:
        calls.append(arguments)
        return function(*arguments)

    monkeypatch.setattr(owner, name, call)
    return calls


def test_a_log_that_was_cleaned_is_read_from_the_commit_records(
    publishing: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a pause longer than the log's retention, copying continues at its checkpoint."""
    drain_without_copies(publishing, 4)

    def fail(*_: object) -> Any:
        raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(Lake, "read_log", fail)
        copy_now(publishing)
    copy_now(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)


def test_batches_without_dead_letters_move_the_checkpoint_now_and_then(
    publishing: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a start does not read a long log without dead letters."""
    monkeypatch.setattr(outbox_module, "_SAVE_INTERVAL_VERSIONS", 3)
    open_dead_letter_topics(publishing)
    saved: list[int | None] = []
    for number in range(4):
        send(publishing, valid_records([number]))
        drain_all(publishing)
        table = open_lake(publishing.lake_root).table("dead_letters")
        saved.append(table.transaction_version(f"dlq:{publishing.kafka.topic}"))
    assert saved == [0, 0, 3, 3]


def test_more_batches_than_are_looked_ahead_for(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a long outage, batches are read in parts: all are copied, and memory stays bounded."""
    monkeypatch.setattr(outbox_module, "_MAX_PENDING_BATCHES", 2)
    drain_without_copies(publishing, 5)
    turns = copy_now(publishing)
    assert copied_places(publishing) == dead_letter_places(publishing)
    assert max(turn.pending_records for turn in turns) == 6


def test_what_another_process_copied_is_not_copied_again(publishing: Settings) -> None:
    """Two processes on one lake follow each other's checkpoint."""
    drain_without_copies(publishing, 2)
    late = open_dead_letter_topics(publishing)
    late.topics[0].outbox.catch_up()
    copy_now(publishing)
    late.copy_pending(lambda _: None)
    assert copied_places(publishing) == dead_letter_places(publishing)


def test_stream_copies_beside_ingest(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits continue while the topic does not respond; afterwards all is copied without a restart (`isolated`)."""
    monkeypatch.setattr("pipelines.delivery._RETRY_SECONDS", 0.05)
    connect, answers = dlq.connect_copy_writer, threading.Event()

    def sometimes(*arguments: Any) -> CopyWriter:
        if not answers.is_set():
            raise TransientError("no broker answers")
        return connect(*arguments)

    monkeypatch.setattr("pipelines.dlq.connect_copy_writer", sometimes)
    create_lake(publishing.lake_root)
    send(publishing, [bad(1), *valid_records(range(7))])
    with streaming(publishing):
        wait_for("a commit", lambda: committed(publishing) == 7)
        send(publishing, [bad(2), *valid_records(range(20, 25))])
        wait_for("another commit", lambda: committed(publishing) == 12)
        assert read_copies(publishing) == []
        answers.set()
        wait_for("the copies", lambda: len(read_copies(publishing)) == 2)
    assert copied_places(publishing) == dead_letter_places(publishing)


def committed(settings: Settings) -> int:
    return query(settings, "SELECT count(*) FROM events")[0][0]


def copy_until(settings: Settings, ended: threading.Event, committed: threading.Event, report_outage: OnOutage) -> None:
    """Run the loop of the copies."""
    deliver_until(
        ended,
        committed,
        lambda: open_dead_letter_topics(settings),
        lambda topics: topics.copy_pending(lambda _: None),
        dlq.describe_copies(settings),
        report_outage,
    )


def test_a_defect_in_copying_does_not_end_the_loop(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any error is reported as an outage of the loop, and retried with growing delays."""
    monkeypatch.setattr("pipelines.delivery._RETRY_SECONDS", 0.01)
    open_dead_letter_topics(publishing)
    batch_of(publishing, range(2))
    failures: list[BaseException] = [Panic("of Rust"), ZeroDivisionError("a defect"), TransientError("no answer")]
    outages: list[str] = []
    stopping, letters = threading.Event(), threading.Event()
    copy = DeadLetterTopic.copy_pending

    def fails_at_first(topic: DeadLetterTopic, report: Callable[[CopyCounts], None]) -> None:
        if failures:
            raise failures.pop(0)
        copy(topic, report)
        stopping.set()
        letters.set()

    monkeypatch.setattr(DeadLetterTopic, "copy_pending", fails_at_first)
    copy_until(publishing, stopping, letters, lambda outage: outages.append(str(outage)))
    doing = f"copying dead letters to {publishing.kafka.topic}.dlq failed"
    assert [outage.split("(")[0] for outage in outages[:3]] == [
        f"{doing}: Panic",
        f"{doing}: ZeroDivisionError",
        "no answer",
    ]
    assert copied_places(publishing) == dead_letter_places(publishing)


def test_an_error_closes_the_client(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic may have been recreated by the time of the next attempt, with another limit: it is connected again."""
    drain_without_copies(publishing, 1)
    topic = open_dead_letter_topics(publishing)
    with monkeypatch.context() as patch:
        patch.setattr(CopyWriter, "write", raising(TransientError("no broker answers")))
        with pytest.raises(TransientError):
            topic.copy_pending(lambda _: None)
    assert topic.topics[0].writer is None
    with closing(topic):
        topic.copy_pending(lambda _: None)
    assert copied_places(publishing) == dead_letter_places(publishing)


class Waits(threading.Event):
    """An event that waits for nothing, and records how long it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        self.seconds.append(timeout)
        return self.is_set()


def test_outages_are_retried_with_growing_delays(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a minute; a success is reported, and the next outage begins with the shortest delay again."""
    stopping, committed, reported = Waits(), Waits(), list[bool]()
    attempts = iter([*[True] * 7, False, True, True, False, False])

    def copy(*_: object) -> None:
        if next(attempts):
            raise TransientError("no broker answers")
        if len(stopping.seconds) > 7:
            stopping.set()

    monkeypatch.setattr(DeadLetterTopic, "copy_pending", copy)
    copy_until(publishing, stopping, committed, lambda outage: reported.append(outage is not None))
    assert stopping.seconds == [2, 4, 8, 16, 32, 60, 60, 2, 4]
    assert reported == [*[True] * 7, False, True, True, False, False]
    assert committed.seconds == [10, 10, 0]


def test_a_termination_ends_the_loop(publishing: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not an outage of the copies: the process is to end."""
    monkeypatch.setattr(DeadLetterTopic, "copy_pending", raising(KeyboardInterrupt()))
    events = threading.Event(), threading.Event()
    with pytest.raises(KeyboardInterrupt):
        copy_until(publishing, *events, lambda _: None)


@pytest.mark.jvm
@pytest.mark.parametrize(("limit", "size"), [(1_048_588, 1_048_400), (8 * 2**20, 3 * 2**20)])
def test_a_record_near_the_limit_does_not_stop_ingest(
    publishing: Settings, kafka: KafkaCluster, limit: int, size: int
) -> None:
    """Its copy does not fit with the added headers: it is cut and marked, and names its place; ingest continues."""
    topic = kafka.new_topic(**{"max.message.bytes": str(limit)})
    settings = publishing.model_copy(update={"kafka": kafka.settings(topic=topic)})
    produce_large(settings, [*valid_records([1]), Record(b"u", b"\xff" * size), *valid_records([2])])
    record = drained(settings)
    assert (record.total("accepted"), record.total("dead_letters")) == (2, 1)
    (copy,) = read_copies(settings)
    headers = read_headers(copy)
    assert headers["karmalake.truncated"] == str(size).encode()
    assert len(copy.value) > 1_047_000
    assert query(settings, 'SELECT octet_length("value") FROM dead_letters') == [(size,)]
    assert copied_places(settings) == dead_letter_places(settings)


@pytest.mark.jvm
@pytest.mark.parametrize(("limit", "truncated", "refused"), [(900, 2, 0), (150, 0, 3)])
def test_a_topic_that_takes_less_than_ours(
    publishing: Settings, kafka: KafkaCluster, limit: int, truncated: int, refused: int
) -> None:
    """Copies are cut to the limits of the dead letter topic; refused ones are counted."""
    topic = kafka.new_topic()
    kafka.create_topic(f"{topic}.dlq", **{"max.message.bytes": str(limit)})
    settings = publishing.model_copy(update={"kafka": kafka.settings(topic=topic)})
    open_dead_letter_topics(settings)
    send(settings, [Record(b"u", b"\xff" * 5_000), Record(b"u", b"\xff", [("h", b"x" * 5_000)]), bad(3)])
    drain_all(without_copies(settings))
    turns = copy_now(settings)
    written = [turn.written for turn in turns]
    assert sum(one.published for one in written) == 3 - refused
    assert (sum(one.truncated for one in written), sum(one.refused for one in written)) == (truncated, refused)
    assert turns[-1].pending_records == 0
    assert len(copied_places(settings)) == 3 - refused


def test_a_bomb_of_headers_is_read_only_as_far_as_it_is_copied(publishing: Settings) -> None:
    """Of a record with 100,000 headers the copy has 1,000, and the number of missing ones."""
    open_dead_letter_topics(publishing)
    send(publishing, [Record(b"u", b"\xff", [("h", b"")] * 100_000)])
    drain_all(publishing)
    (copy,) = read_copies(publishing)
    assert read_headers(copy)["karmalake.headers_left_out"] == b"99000"
    assert len([name for name, _ in copy.headers if name == "h"]) == 1_000


def test_a_dead_letter_is_cut_before_it_is_copied() -> None:
    """Headers as columns, since a hundred thousand objects take memory; a detail, since headers are never truncated."""
    names = ("reason", "detail", "topic", "batch_id")
    letter = {name: name * 1_000 for name in names} | {"key": b"k", "value": b"v", "topic_partition": 0, "offset": 7}
    headers = [{"key": "h", "value": None}] * (MAX_HEADERS + 5)
    [row] = dlq._as_rows(pa.Table.from_pylist([letter | {"headers": headers}]))
    assert (len(row["headers"]), row["header_count"]) == (MAX_HEADERS, MAX_HEADERS + 5)
    copy = dlq._copy_of(row)
    assert copy.more_headers == 5
    assert max(len(content) for _, content in copy.provenance) == 1_000


def produce_large(settings: Settings, records: list[Record]) -> None:
    """Send records larger than karmalake's own producer allows."""
    create: Any = KafkaProducer
    with closing(create(**settings.kafka.client_config(), max_request_size=16 * 2**20)) as producer:
        for record in records:
            producer.send(settings.kafka.topic, record.value, record.key).get(10)
