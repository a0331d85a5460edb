"""What an erasure does not reach: one sentence a location, named as in the settings, with what removes a user there.

The reader is the person who is accountable for the erasure.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from pipelines.boundary.text import escape_text
from pipelines.errors import ConfigurationError
from pipelines.feed_relay import may_be_relayed
from pipelines.ingest.sources import topic_sources
from pipelines.lake.mentions import Mentions
from pipelines.lake.tables import is_lake, open_lake
from pipelines.lake.tombstones import open_tombstones
from pipelines.notify.rule_file import load_rules
from pipelines.notify.rules import RedisStream, Webhook
from pipelines.refresh import policy_in_force
from pipelines.reputation.query_limits import spilled_folders
from pipelines.settings import Settings


def list_unreached(settings: Settings, mentions: Mentions | None) -> list[str]:
    """Return where data of an erased user may remain, one sentence per location.

    mentions: of erased users in other users' events; None if they were not counted.
    """
    return [
        *_in_other_events(mentions),
        *_in_the_policy(settings),
        *_on_the_bus(settings),
        *_at_destinations(settings),
        *_in_other_copies(settings),
    ]


def _in_other_events(mentions: Mentions | None) -> Iterator[str]:
    if mentions is None:
        yield (
            "events, conflicts and dead letters of other users that name the users (in a comment, or at a metadata key "
            "that is not in contract.personal_keys): unchanged, and not counted here; `karmalake verify` and `erase "
            "--count-mentions` count them, which reads all events"
        )
    elif mentions:
        yield f"{mentions}: unchanged; `karmalake verify` counts them"
    yield (
        "compressed, encrypted or encoded content within other users' values and undecodable dead letters: only plain "
        "words are found there"
    )


def _in_the_policy(settings: Settings) -> Iterator[str]:
    """Name versions of the policy with an erased user as a seed or in a condition, and what to write instead."""
    if not is_lake(settings.lake_root):
        return
    tombstones, policy = open_tombstones(open_lake(settings.lake_root), settings), policy_in_force(settings)
    for rules in policy.versions:
        conditions = [condition.equals for _, _, condition in rules.conditions if condition.equals]
        for name in dict.fromkeys([*(rules.raters.seeds if rules.raters else ()), *conditions]):
            if replacement := tombstones.pseudonym_of(name):
                yield (
                    f"version {escape_text(rules.version)} of the policy {policy.name}, which names an erased user (in "
                    f"raters.seeds or a condition): write {replacement} instead, as other users' events do at a "
                    "personal key, and activate it; versions that were in force before stay on record"
                )


def _on_the_bus(settings: Settings) -> Iterator[str]:
    if settings.queue.kind:
        name = settings.queue.name if settings.queue.kind == "rabbitmq" else "of SQS"
        yield f"messages waiting in the queue {name}: ingest drops them when it reads them"
    for topic in () if settings.queue.kind else topic_sources(settings):
        yield f"the topic {topic}: its retention removes the records; ingest drops those it still reads"
    for topic in [settings.kafka.topic] if settings.queue.kind else topic_sources(settings):
        yield f"the topic {topic}.dlq, if dead letters were ever published (ingest.publish_dead_letters): by retention"
    if not may_be_relayed(settings):
        return
    if not settings.feed.topic:
        yield "the former topic of the feed, whose name feed.topic was: delete it, or set that and erase again"
    else:
        yield (
            f"the topic {settings.feed.topic}: each user who was erased has a record without a value there, after "
            "which compaction removes the others; consumers remove what they have of the user when they read it"
        )
        yield f"the topic {settings.feed.topic}.notify.dlq, if `karmalake notify` has rules about changes: by retention"


def _at_destinations(settings: Settings) -> Iterator[str]:
    if settings.notify.rules is None:
        yield f"the topic {settings.kafka.topic}.notify.dlq and the destinations of `karmalake notify`, if it ever ran"
        return
    yield f"the topic {settings.kafka.topic}.notify.dlq: its retention removes the records"
    try:
        destinations = load_rules(settings.notify.rules).destinations
    except (ConfigurationError, OSError):
        yield f"the destinations in {settings.notify.rules}, which cannot be read"
        return
    for name, destination in destinations.items():
        match destination:
            case RedisStream():
                yield f"the Redis stream {destination.key} (destination {name}): by max_length or XDEL"
            case Webhook():
                yield f"what {urlsplit(destination.url).hostname} received (destination {name})"


def _in_other_copies(settings: Settings) -> Iterator[str]:
    if settings.cassandra.hosts:
        yield (
            f"the files of Cassandra: deleted documents leave those of keyspace {settings.cassandra.keyspace} with a "
            "compaction after gc_grace_seconds of the table documents (10 days by default); snapshots keep them"
        )
    if settings.relay.database_url is not None:
        yield "the outbox and the other tables of the database in relay.database_url"
    else:
        yield "the outboxes and databases of the services that wrote the events"
    if settings.history.path:
        yield f"the files of history at {settings.history.path}: ingest drops their rows if they are loaded again"
    if settings.lake.on_s3:
        yield f"old object versions in {settings.lake.uri}, if the bucket is versioned: expire them"
        yield (
            "the caches of people who opened the warehouse on S3 (~/.cache/karmalake on their machines): replaced when "
            "they open it again; ask them to, or to delete that folder"
        )
    if settings.spark_staging:
        yield f"what a killed `rebuild --engine spark` left in {settings.spark_staging}: have the bucket expire it"
    if spilled := spilled_folders(settings.data_dir):
        names = ", ".join(each.name for each in spilled)
        yield f"what readers' queries spilled ({names}): removed when they end; delete what killed processes left"
    yield (
        "backups, other data_dirs of the same lake, copies by `karmalake copy`, `replay --into`, `dead-letters "
        "export` and `user export`, notebook outputs: erase or delete them there. After a restore, the next "
        f"`karmalake erase` applies {settings.tombstones_file} again; keep that file with the backups"
    )
    yield (
        "Dagster's storage ($DAGSTER_HOME): the evidence of failed checks names up to three users, and `anomalies` of "
        "earlier releases named some: run `dagster asset wipe`"
    )
