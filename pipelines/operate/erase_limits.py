"""What an erasure does not reach, by the names that the settings give it, and what to do there.

Each sentence is for the person who has to answer for the erasure: it names a place, and who or what removes a user
from it.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.errors import ConfigurationError
from pipelines.lake.mentions import Mentions
from pipelines.notify.rule_file import load_rules
from pipelines.notify.rules import RedisStream, Webhook
from pipelines.settings import Settings


def beyond_reach(settings: Settings, mentions: Mentions) -> list[str]:
    """Return where an erased user may still be, a sentence for each place."""
    return [
        *_of_others(mentions),
        *_on_the_bus(settings),
        *_at_destinations(settings),
        *_elsewhere(settings),
    ]


def _of_others(mentions: Mentions) -> Iterator[str]:
    if mentions:
        yield f"{mentions}: they are not changed, and `karmalake verify` counts them"
    yield (
        "what is compressed, encrypted or encoded within other users' values and undecodable dead letters: only words "
        "are found there"
    )


def _on_the_bus(settings: Settings) -> Iterator[str]:
    topic = settings.kafka.topic
    if settings.queue.kind:
        name = settings.queue.name if settings.queue.kind == "rabbitmq" else "of SQS"
        yield f"messages that wait in the queue {name}: ingest drops them when it reads them"
    else:
        yield f"the topic {topic}: its retention removes the records; ingest drops what it reads of them"
    yield f"the topic {topic}.dlq, if dead letters were ever copied (ingest.publish_dead_letters): its retention rules"


def _at_destinations(settings: Settings) -> Iterator[str]:
    if settings.notify.rules is None:
        yield f"the topic {settings.kafka.topic}.notify.dlq and the destinations of `karmalake notify`, if it ever ran"
        return
    yield f"the topic {settings.kafka.topic}.notify.dlq: its retention rules"
    try:
        destinations = load_rules(settings.notify.rules).destinations
    except (ConfigurationError, OSError):
        yield f"the destinations in {settings.notify.rules}, which cannot be read now"
        return
    for name, destination in destinations.items():
        match destination:
            case RedisStream():
                yield f"the Redis stream {destination.key} (destination {name}): its max_length rules, or XDEL"
            case Webhook():
                yield f"what {urlsplit(destination.url).hostname} was told (destination {name})"


def _elsewhere(settings: Settings) -> Iterator[str]:
    if settings.relay.database_url is not None:
        yield "the outbox and the tables of the database in relay.database_url"
    else:
        yield "the outboxes and databases of the services that wrote the events"
    if settings.history.path:
        yield f"the files of history at {settings.history.path}: ingest drops what is loaded of them again"
    if settings.lake.uri:
        yield f"old versions of objects in {settings.lake.uri}, if the bucket keeps them: expire them"
    yield (
        "backups, other data_dirs of the same lake, copies by `karmalake copy`, `replay --into` and `dead-letters "
        "export`, outputs of notebooks: erase or delete them there. A lake that is restored beside "
        f"{settings.tombstones_file} is erased from by the next `karmalake erase`; keep that file with the backups"
    )
    yield (
        "Dagster's storage ($DAGSTER_HOME): the evidence of failed checks names up to three users, and `anomalies` of "
        "releases before this one named some: `dagster asset wipe`"
    )
