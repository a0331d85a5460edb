"""The topic of the feed: a consumer that knows only its records has each change once, and what is published."""

import json
import random
import re
import signal
import subprocess
import sys
import uuid
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from kafka import KafkaConsumer
from kafka.structs import TopicPartition

from pipelines.contract.registry import Format
from pipelines.dashboard import queries
from pipelines.emit.producer import BulkProducer
from pipelines.errors import ConfigurationError, KarmalakeError, TransientError
from pipelines.feed_relay import RelayProgress, open_feed_topic
from pipelines.lake.commit import CommitRecord
from pipelines.lake.erasure import erase_users
from pipelines.lake.score_changes import read_changes
from pipelines.lake.tables import create_lake, open_lake
from pipelines.lake.tombstones import open_tombstones, tombstone
from pipelines.lake.upkeep import compact
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.erase_limits import list_unreached
from pipelines.refresh import publish_warehouse, refresh_warehouse
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import FeedSettings, KafkaSettings, Settings
from pipelines.stream import stream
from tests.commands import KARMALAKE, Started, run
from tests.conftest import REPOSITORY
from tests.draining import drain_all, send, valid_records, with_ingest
from tests.emit.test_producer import read_topic
from tests.score_changes import FORMATS, decoded, members
from tests.services.kafka_cluster import KafkaCluster
from tests.services.process import ended
from tests.services.waiting import PATIENCE_SECONDS, wait_for
from tests.share import count
from tests.test_crashes import environment
from tests.test_feed import opened, record
from tests.test_stream import THREE, activate, score, streaming


def with_feed(settings: Settings, form: Format = "json") -> Settings:
    """Return settings with the feed on, and a topic of its own for it."""
    topic = f"scores-{uuid.uuid4().hex[:12]}"
    reputation = settings.reputation.model_copy(update={"derive_interval_seconds": 0.2})
    feed = FeedSettings(enabled=True, topic=topic, format=form)
    return with_ingest(settings.model_copy(update={"feed": feed, "reputation": reputation}))


@pytest.fixture
def fed(settings: Settings) -> Settings:
    """Return settings of a lake without an event, with the feed on."""
    settings = with_feed(settings)
    create_lake(settings.lake_root)
    return settings


def in_format(settings: Settings, form: Format) -> Settings:
    """Return settings with another format of the feed."""
    return settings.model_copy(update={"feed": settings.feed.model_copy(update={"format": form})})


def relay(settings: Settings) -> list[RelayProgress]:
    """Relay what is pending, as a new process would."""
    turns = list[RelayProgress]()
    with closing(open_feed_topic(settings)) as topic:
        topic.relay_pending(turns.append)
    return turns


def scores_topic(settings: Settings) -> KafkaSettings:
    return settings.kafka.model_copy(update={"topic": settings.feed.topic})


def relayed(settings: Settings) -> list[tuple[bytes, bytes | None]]:
    """Return key and value of all records of the topic, by topic partition."""
    return [(each.key, each.value) for each in read_topic(scores_topic(settings))]


def rebuilt(servers: str, topic: str) -> dict[str, Any]:
    """Rebuild what is published from the topic alone, as any consumer may: it keeps the last number of a partition."""
    consumer = KafkaConsumer(bootstrap_servers=servers)
    with closing(consumer):
        places = [TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic) or ()]
        shown = dict[str, Any]()
        for place in places:
            consumer.assign([place])
            consumer.seek_to_beginning(place)
            end, last = consumer.end_offsets([place])[place], 0
            while (consumer.position(place) or 0) < end:
                for each in consumer.poll(timeout_ms=1000).get(place, []):
                    last = _take(shown, each.key.decode(), each.value, last)
        return shown


def _take(shown: dict[str, Any], user_id: str, value: bytes | None, last: int) -> int:
    """Take one record over; return the last number."""
    change: dict[str, Any] = decoded(value) if value else {"number": last + 1, "after": None}
    if change["number"] <= last:
        return last
    if value:
        assert change["user_id"] == user_id
        assert change["before"] == shown.get(user_id)
    shown.pop(user_id, None)
    shown |= {} if change["after"] is None else {user_id: change["after"]}
    return change["number"] if value else last


def rebuilt_from(settings: Settings) -> dict[str, Any]:
    return rebuilt(str(settings.kafka.bootstrap_servers), settings.feed.topic)


@pytest.mark.parametrize("form", FORMATS)
def test_changes_are_on_the_topic_in_order(fed: Settings, form: Format) -> None:
    """`feed-equals-reputation`: once each, by number in a topic partition, also from files that were merged."""
    fed = in_format(fed, form)
    with opened(fed) as feed:
        for version in range(1, 4):
            record(feed, version, ann=version, bob=version // 2)
        compact(open_lake(fed.lake_root), 2)
        record(feed, 4, "ann", ann=9, bob=1)
    turns = relay(fed)
    assert turns[0].waiting == sum(turn.relayed for turn in turns) == len(relayed(fed))
    assert turns[-1].waiting == 0
    assert rebuilt_from(fed) == {"ann": 9, "bob": 1}
    assert relay(fed) == [RelayProgress(0, 0)]
    rows = [
        row for part in read_changes(open_lake(fed.lake_root).table("score_changes"), 0) for row in part.to_pylist()
    ]
    sent = sorted((decoded(value) for _, value in relayed(fed) if value), key=itemgetter("number"))
    assert sent == sorted(map(members, rows), key=itemgetter("number"))


def test_the_format_may_change(fed: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Earlier records stay as they are; a change that a crash repeats in another format has the same number."""
    with opened(fed) as feed:
        for version, form in enumerate(FORMATS, start=1):
            record(feed, version, ann=version, bob=version)
            with monkeypatch.context() as patch:
                patch.setattr("pipelines.feed_relay.mark_relayed", _fail)
                with pytest.raises(TransientError):
                    relay(in_format(fed, FORMATS[version - 2]))
            relay(in_format(fed, form))
    starts = [value[:1] for _, value in relayed(fed) if value]
    assert (starts.count(b"{"), starts.count(b"\x09"), len(starts)) == (4, 4, 12)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert rebuilt_from(fed) == consumed_in_any_format(fed) == {"ann": 3, "bob": 3}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("step", ["BulkProducer.flush", "mark_relayed"])
def test_what_is_repeated_has_the_same_bytes(
    fed: Settings, step: str, form: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`feed-equals-reputation`: killed before or after the brokers acknowledged; a consumer takes each change once."""
    fed = in_format(fed, form)
    with opened(fed) as feed:
        record(feed, 1, ann=1, bob=1)
        record(feed, 2, ann=2, bob=1)
        with monkeypatch.context() as patch:
            patch.setattr(f"pipelines.feed_relay.{step}", _fail)
            with pytest.raises(TransientError):
                relay(fed)
        record(feed, 3, ann=3)
    relay(fed)
    sent = relayed(fed)
    assert len(set(sent)) == 5
    assert step != "mark_relayed" or len(sent) == 8
    assert rebuilt_from(fed) == {"ann": 3}


def _fail(*_: object) -> None:
    raise TransientError("killed")


@pytest.mark.parametrize("enabled", [True, False])
def test_an_erased_user_gets_a_record_without_a_value(fed: Settings, enabled: bool) -> None:
    """`erasable`: consumers remove what they have of the user; later changes of others are still relayed.

    Also where the feed is off meanwhile, or only where `erase` runs: the topic has the user.
    """
    now = fed.model_copy(update={"feed": fed.feed.model_copy(update={"enabled": enabled})})
    with opened(fed) as feed:
        record(feed, 1, ann=1, bob=1)
        relay(fed)
        erase_without_documents(now, ["ann"])
        erase_without_documents(now, ["ann"])
    assert any(f"the topic {fed.feed.topic}:" in each for each in list_unreached(now, None))
    nameless = now.model_copy(update={"feed": FeedSettings(enabled=enabled, topic="")})
    assert any("the former topic of the feed" in each for each in list_unreached(nameless, None))
    with opened(fed) as feed:
        record(feed, 2, bob=2)
    relay(fed)
    assert [value for key, value in relayed(fed) if key == b"ann"][1:] == [None, None]
    assert rebuilt_from(fed) == {"bob": 2}


@pytest.mark.parametrize("step", ["send_tombstones", "forget_erased"])
def test_a_user_in_a_tombstone_of_another_lake_gets_it_too(
    fed: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """`erasable`: only the table of changes names the user; where a kill removed no row of it, the next call does."""
    erased = [tombstone(b"ann", "another")]
    with opened(fed) as feed:
        record(feed, 1, ann=1, bob=1)
    relay(fed)
    with monkeypatch.context() as patch:
        patch.setattr(f"pipelines.operate.erase.{step}", _fail)
        with pytest.raises(TransientError, match="killed"):
            erase_without_documents(fed, [], erased)
    erase_without_documents(fed, [], erased)
    assert [value for key, value in relayed(fed) if key == b"ann"][1:] == [None]
    assert rebuilt_from(fed) == {"bob": 1}


def test_an_erasure_without_a_broker_names_the_way_out(fed: Settings) -> None:
    """`erasable`: nothing is erased before the topic can be reached, or is said not to exist."""
    gone = KafkaSettings(bootstrap_servers="127.0.0.1:9", request_timeout_seconds=1)
    with opened(fed) as feed:
        record(feed, 1, ann=1)
    relay(fed)
    for enabled in (True, False):
        feed_settings = fed.feed.model_copy(update={"enabled": enabled})
        for kafka in (gone, KafkaSettings()):
            without = fed.model_copy(update={"kafka": kafka, "feed": feed_settings})
            with pytest.raises(KarmalakeError, match=r"nothing was erased; .* set feed\.topic = \"\""):
                erase_without_documents(without, ["ann"])
    unnamed = feed_settings.model_copy(update={"topic": ""})
    assert erase_without_documents(without.model_copy(update={"feed": unnamed}), ["ann"]).rows.score_changes == 1


def test_a_user_who_is_erased_while_relayed_gets_it_too(fed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`erasable`: the erasure may have sent its record before the relay sends a change that it read earlier.

    Also where the erasure has not removed the changes from the table by then, or never does.
    """
    lake, flush = open_lake(fed.lake_root), BulkProducer.flush

    def erase_before(producer: BulkProducer) -> None:
        monkeypatch.undo()
        with pytest.raises(TransientError, match="killed"):
            erase_users(lake, open_tombstones(lake, fed), ["ann"], announce=_fail)
        flush(producer)

    with opened(fed) as feed:
        record(feed, 1, ann=1, bob=1)
    monkeypatch.setattr(BulkProducer, "flush", erase_before)
    relay(fed)
    assert [value for key, value in relayed(fed) if key == b"ann"][1:] == [None]
    assert rebuilt_from(fed) == {"bob": 1}
    assert relay(fed) == [RelayProgress(0, 0)]


def test_a_topic_that_is_ingested_is_refused(fed: Settings) -> None:
    """Its records would be read as events."""
    feed = FeedSettings(enabled=True, topic=fed.kafka.topic)
    with pytest.raises(ConfigurationError, match=r"feed\.topic"), streaming(fed.model_copy(update={"feed": feed})):
        pass


def test_a_format_whose_packages_are_missing_is_refused(fed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, not with the first change."""
    monkeypatch.setattr("pipelines.boundary.extras.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"karmalake\[avro\]"), streaming(in_format(fed, "avro")):
        pass


def test_stream_relays_beside_publications(fed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """`isolated`: scores are served while the topic cannot be written; then the topic has all changes of them."""
    monkeypatch.setattr("pipelines.delivery._RETRY_SECONDS", 0.05)
    activate(open_lake(fed.lake_root), THREE)
    send(fed, valid_records(range(3)))
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.feed_relay.ensure_compacted_topic", _fail)
        with streaming(fed):
            wait_for("a score", lambda: score(fed, "u-1") is not None)
    with streaming(fed):
        send(fed, valid_records(range(10, 14)))
    assert rebuilt_from(fed) == consumed_as_documented(fed) == reputation(fed)
    with Warehouse(fed.warehouse_path) as warehouse:
        changes, replayed, ranked = (warehouse.sql(query.replace("1200", "0")).rows() for query in examples("sql"))
        of_user = warehouse.changes("u-1")
        everything = warehouse.changes()
        newest = everything["as_of"].to_list()[-1]
        from_then = warehouse.changes(since=newest)
        listed = queries.changes(warehouse, "u-1", 2)
    assert [number for number, *_ in changes] == list(range(1, len(changes) + 1)) == everything["number"].to_list()
    assert of_user.equals(everything.filter(user_id="u-1"))
    assert of_user["score_before"].to_list() == [None, *of_user["score_after"][:-1]]
    assert of_user["score_after"][-1] == score(fed, "u-1")
    assert from_then.equals(everything.filter(as_of=newest))
    assert listed["score"].to_list() == of_user["score_after"].to_list()[:-3:-1]
    assert listed["causes"].to_list()[-1] in {"start", "new event e-1"}
    assert {user_id: json.loads(shown) for user_id, shown in replayed} == reputation(fed)
    scores = {user_id: shown["all_time_score"] for user_id, shown in reputation(fed).items()}
    ranks = [(1 + sum(other > score for other in scores.values()), user_id, score) for user_id, score in scores.items()]
    assert ranked == sorted(ranks)
    assert_published_apart(fed)


def assert_published_apart(fed: Settings) -> None:
    """Check that `karmalake publish`, which has no draft, finds the events behind changes in the lake."""
    send(fed, valid_records(range(20, 22)))
    drain_all(fed)
    refresh_warehouse(fed)
    publish_warehouse(fed)
    refresh_warehouse(fed)  # its views have the feed of now
    with Warehouse(fed.warehouse_path) as warehouse:
        found = [each["event_id"] for causes in warehouse.changes()["causes"] for each in causes if each["event_id"]]
    assert {"e-20", "e-21"} <= set(found)
    assert len(set(found)) == len(found)


def examples(language: str) -> list[str]:
    """Return the code in a language on the page about the feed."""
    page = (REPOSITORY / "docs" / "score-changes.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def consumed_as_documented(settings: Settings) -> dict[str, Any]:
    """Return what the documented consumer of JSON has, once it had a second without a record."""
    return _consumed(settings, examples("python")[0])


def consumed_in_any_format(settings: Settings) -> dict[str, Any]:
    """Return what the documented consumer of all formats has; Python has to import from the working folder."""
    commands = re.findall(r"^\$ karmalake (contract show .*) > (.*)$", "\n".join(examples("console")), re.MULTILINE)
    for arguments, name in commands:
        done = run([*KARMALAKE, *arguments.split()], check=True)
        Path(name).write_text(done.stdout)
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", "--python_out=.", "score_change.proto"]
    subprocess.run(command, check=True)
    consumer, decode = examples("python")
    of_json = 'json.loads(record.value or "null")'
    assert of_json in consumer
    return _consumed(settings, decode + consumer.replace(of_json, "record.value and decode(record.value)"))


def _consumed(settings: Settings, code: str) -> dict[str, Any]:
    names = {"karmalake.scores": settings.feed.topic, "localhost:9092": str(settings.kafka.bootstrap_servers)}
    for documented, name in names.items():
        code = code.replace(documented, name)
    scope = dict[str, Any]()
    exec(code.replace("auto_offset_reset", "consumer_timeout_ms=1000, auto_offset_reset"), scope)  # noqa: S102
    scope["consumer"].close()
    return {user_id: shown for user_id, shown in scope["shown"].items() if shown is not None}


def reputation(settings: Settings) -> dict[str, Any]:
    """Return the rows of `reputation`, by user."""
    with Warehouse(settings.warehouse_path) as warehouse:
        rows = warehouse.sql("SELECT user_id, CAST(to_json(shown) AS VARCHAR) FROM reputation AS shown").rows()
    return {user_id: json.loads(shown) for user_id, shown in rows}


@pytest.mark.slow
@pytest.mark.jvm
def test_a_plain_consumer_rebuilds_reputation_after_kills(
    settings: Settings, kafka: KafkaCluster, tmp_path: Path
) -> None:
    """`feed-equals-reputation`: `karmalake stream`, killed while it relays and started in another format, on Kafka."""
    topic = kafka.new_topic(2)
    settings = with_feed(settings.model_copy(update={"kafka": kafka.settings(topic=topic)}))
    activate(create_lake(settings.lake_root), THREE)
    rng = random.Random(7)  # noqa: S311 - reproducible, not secret
    variables = environment(settings) | {
        "KARMALAKE_FEED_ENABLED": "true",
        "KARMALAKE_FEED_TOPIC": settings.feed.topic,
        "KARMALAKE_REPUTATION_DERIVE_INTERVAL_SECONDS": "0.2",
    }
    kills = count(3, 100)
    with closing(KafkaConsumer(bootstrap_servers=str(settings.kafka.bootstrap_servers))) as reader:
        for kill in range(kills + 1):
            send(settings, valid_records(rng.sample(range(100_000), 400)))
            before = _relayed_records(reader, settings)
            variables["KARMALAKE_FEED_FORMAT"] = FORMATS[kill % len(FORMATS)]
            started = Started([*KARMALAKE, "stream"], env=variables, cwd=tmp_path, stdout=subprocess.DEVNULL)
            with ended(started) as process:
                wait_for("changes on the topic", lambda before=before: _relayed_records(reader, settings) > before)
                process.send_signal(signal.SIGKILL if kill < kills else signal.SIGTERM)
                process.wait(PATIENCE_SECONDS)
    refresh_warehouse(settings)
    assert rebuilt_from(settings) == reputation(settings)
    assert len(rebuilt_from(settings)) == 7


def test_what_is_refreshed_after_the_signal_is_relayed(fed: Settings) -> None:
    """`feed-equals-reputation`: the relay ends after the refresh, also if it has a turn between the two."""
    activate(open_lake(fed.lake_root), THREE)
    stopping, refreshed, relayed_again, turns = Event(), Event(), Event(), list[RelayProgress]()

    def on_commit(_record: CommitRecord) -> None:
        assert refreshed.wait(PATIENCE_SECONDS)
        stopping.set()
        assert relayed_again.wait(PATIENCE_SECONDS)

    def on_relayed(turn: RelayProgress) -> None:
        turns.append(turn)
        assert stopping.wait(PATIENCE_SECONDS)
        if len(turns) > 1:
            relayed_again.set()

    send(fed, valid_records(range(7)))
    stream(fed, stopping, on_commit, lambda *_: refreshed.set(), on_relayed=on_relayed)
    refresh_warehouse(fed)
    assert rebuilt_from(fed) == reputation(fed)
    assert len(rebuilt_from(fed)) == 7


def _relayed_records(reader: KafkaConsumer, settings: Settings) -> int:
    partitions = reader.partitions_for_topic(settings.feed.topic) or ()
    return sum(reader.end_offsets([TopicPartition(settings.feed.topic, each) for each in partitions]).values())
