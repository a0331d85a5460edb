"""Notifiers for tests: in a thread, or as a command in a process that can be killed."""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka.structs import TopicPartition

from pipelines.bus.clients import consumer
from pipelines.notify.branch import DeliveryCounts, Reports
from pipelines.notify.rule_file import load_rules
from pipelines.notify.run import notify, plans
from pipelines.notify.start_offsets import Loss
from pipelines.serving.client import connect
from pipelines.settings import Settings
from tests.commands import KARMALAKE, Started
from tests.notify.receiver import SECRET
from tests.services.waiting import PATIENCE_SECONDS


def webhook(name: str, url: str, options: str = "") -> str:
    """Return the TOML of a webhook destination and of a rule that sends it every event A."""
    return _destination(name, f'kind = "webhook"\nurl = "{url}"\nsecret_env = "NOTIFY_TEST_SECRET"\n{options}')


def stream(name: str, key: str) -> str:
    """Return the TOML of a stream destination and of a rule that sends it every event A."""
    return _destination(name, f'kind = "redis_stream"\nkey = "{key}"\n')


def _destination(name: str, lines: str) -> str:
    rule = f'[[rules]]\nname = "{name}"\nactions = ["A"]\ntext = "{{user_id}}: {{metadata.n}}"\nto = ["{name}"]\n'
    return f'[destinations.{name}]\nbegin = "earliest"\n{lines}\n{rule}'


class Done:
    """The reports of a notifier in a thread, by destination."""

    def __init__(self) -> None:
        self._tallies: list[tuple[str, DeliveryCounts]] = []
        self.failures: list[BaseException] = []
        """Bugs after which a destination restarts; a test that expects one removes it."""

    def report(self, destination: str, counts: DeliveryCounts) -> None:
        self._tallies.append((destination, counts))

    def delivered(self, destination: str) -> int:
        return sum(counts.delivered for name, counts in list(self._tallies) if name == destination)

    def failed_attempts(self, destination: str) -> int:
        return sum(counts.failed_attempts for name, counts in list(self._tallies) if name == destination)

    @property
    def losses(self) -> list[Loss]:
        return [loss for _, counts in list(self._tallies) for loss in counts.losses]

    def malformed(self, destination: str) -> int:
        return sum(counts.malformed for name, counts in list(self._tallies) if name == destination)


@contextmanager
def notifying(settings: Settings, rule_file: Path) -> Iterator[Done]:
    """Run a notifier in a thread; on exit it must stop when asked."""
    client = connect(settings.redis)
    planned = plans(load_rules(rule_file), settings, lambda: client)
    stopping, done = threading.Event(), Done()
    failed: list[BaseException] = []
    reports = Reports(done.report, lambda _, error: failed.append(error), lambda _, error: done.failures.append(error))

    def run() -> None:
        try:
            notify(settings, planned, stopping, reports)
        except Exception as error:  # noqa: BLE001 # whatever it is, the test has to fail by it
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    except AssertionError as error:
        error.add_note(f"what failed in the notifier: {failed}")
        raise
    finally:
        stopping.set()
        thread.join(PATIENCE_SECONDS)
        client.close()
    assert not thread.is_alive()
    assert not failed, f"the notifier failed: {failed}"
    assert not done.failures, f"a destination had to begin again: {done.failures}"


def command(settings: Settings, rule_file: Path, *options: str) -> subprocess.Popen[str]:
    """Start `karmalake notify` in a separate process."""
    environment = os.environ | {
        "KARMALAKE_DATA_DIR": str(settings.data_dir),
        "KARMALAKE_KAFKA_BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "KARMALAKE_KAFKA_TOPIC": settings.kafka.topic,
        "KARMALAKE_NOTIFY_GROUP_ID": settings.notify.group_id,
        "KARMALAKE_NOTIFY_MAX_IN_FLIGHT": str(settings.notify.max_in_flight),
        "KARMALAKE_NOTIFY_STOP_SECONDS": str(settings.notify.stop_seconds),
        "KARMALAKE_NOTIFY_RULES": str(rule_file),
        "KARMALAKE_FEED_ENABLED": str(settings.feed.enabled),
        "NOTIFY_TEST_SECRET": SECRET,
        "PYTHONUNBUFFERED": "1",
    }
    program = [*KARMALAKE, "notify", *options]
    return Started(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def checkpoints(settings: Settings, destination: str) -> dict[int, int | None]:
    """Return the committed offsets of the destination's group, by topic partition."""
    with consumer(settings.kafka, group_id=f"{settings.notify.group_id}.{destination}") as reader:
        places = [TopicPartition(settings.kafka.topic, number) for number in range(settings.kafka.partitions)]
        return {place.partition: reader.committed(place) for place in places}


def lag(settings: Settings, destination: str) -> int:
    """Return the number of records above the destination's checkpoints."""
    with consumer(settings.kafka) as reader:
        places = [TopicPartition(settings.kafka.topic, number) for number in range(settings.kafka.partitions)]
        ends = reader.end_offsets(places)
    return sum(ends.values()) - sum(at or 0 for at in checkpoints(settings, destination).values())
