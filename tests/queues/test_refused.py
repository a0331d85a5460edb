"""What a queue cannot do is refused by name, instead of ignored or explained by a missing Kafka (`nothing-lost`)."""

from pathlib import Path

import pytest
from kafka.structs import TopicPartition
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.drain import open_drain
from pipelines.errors import ConfigurationError, UsageError
from pipelines.operate.lag.measure import measure_lag
from pipelines.settings import Settings, SourcesSettings, load_settings
from tests.draining import drain_all, query, valid_records
from tests.queues.conftest import Queue

_RIDES = "topic = 'rides'\nformat = 'json'\nuser_id = 'who'\naction_type = 'R'\ntime = 'at'\n"


@pytest.mark.parametrize(
    "command",
    [
        "audit",
        "replay --from-beginning",
        "topics ensure",
        "topics check",
        "topics describe",
        "simulate",
        "emit rows.csv --user-id u --time t --action-type A",
        "sources check rides",
        "sources diff rides",
        "skip rabbitmq:ratings-0@3 --why x",
        "drain --accept-loss",
        "drain --accept-rejections rabbitmq:ratings-0",
    ],
)
def test_a_command_for_topics_says_that_it_is_none_for_queues(
    command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It neither advises a broker, nor corrects a topic, nor begins to read the queue."""
    _write_source(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in {"KIND": "rabbitmq", "URL": "amqp://127.0.0.1:1/"}.items():
        monkeypatch.setenv(f"KARMALAKE_QUEUE_{name}", value)
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(tmp_path / "data"))
    error = CliRunner().invoke(app, command.split()).exception
    assert isinstance(error, UsageError), error
    assert "is not available with a queue, and queue.kind is rabbitmq: it needs a topic" in str(error)


def test_functions_for_topics_refuse_a_queue(queue: Queue) -> None:
    """As the commands do: nothing of the queue is read."""
    queue.send([record.value or b"" for record in valid_records(range(3))])
    with (
        pytest.raises(UsageError, match="not available with a queue"),
        open_drain(queue.settings, [TopicPartition("rabbitmq:ratings", 0)]),
    ):
        pass
    with pytest.raises(UsageError, match="the lag of a topic is not available with a queue"):
        measure_lag(queue.settings)
    drain_all(queue.settings)
    assert query(queue.settings, "SELECT count(*) FROM events") == [(3,)]


@pytest.mark.parametrize("only", [(), ("rides",), ("contract", "rides")])
def test_sources_of_topics_are_not_ignored(queue: Queue, only: tuple[str, ...], tmp_path: Path) -> None:
    """Their records would become dead letters of our own contract; a source of files reads no bus."""
    _write_source(tmp_path)
    queue.send([record.value or b"" for record in valid_records(range(3))])
    with pytest.raises(ConfigurationError, match=r"rides .*sources.only = \['contract'\]"):
        drain_all(_with_sources(queue.settings, tmp_path, only))
    drain_all(_with_sources(queue.settings, tmp_path, ("contract",)))
    (tmp_path / "sources" / "rides.toml").write_text(
        "files = ['rides.csv']\nuser_id = 'who'\naction_type = 'R'\ntime = 'at'\n", encoding="utf-8"
    )
    drain_all(_with_sources(queue.settings, tmp_path, ()))
    assert query(queue.settings, "SELECT count(*) FROM events") == [(3,)]


def _write_source(folder: Path) -> None:
    (folder / "sources").mkdir()
    (folder / "sources" / "rides.toml").write_text(_RIDES, encoding="utf-8")


def _with_sources(settings: Settings, folder: Path, only: tuple[str, ...]) -> Settings:
    return settings.model_copy(update={"sources": SourcesSettings(folder=folder / "sources", only=only)})


@pytest.mark.parametrize("name", ["URL", "NAME"])
def test_a_queue_without_its_kind_is_not_kafka(name: str, tmp_path: Path) -> None:
    """Ingest would read a topic, or ask for a broker."""
    with pytest.raises(ConfigurationError, match=r"queue\.kind: is missing"):
        load_settings({f"KARMALAKE_QUEUE_{name}": "amqp://127.0.0.1:1/"}, tmp_path)
