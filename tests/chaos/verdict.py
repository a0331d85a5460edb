"""The books of a chaos run: everything is done once without a disturbance, and each route says what it finds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli.output import facts, say
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import vacuum
from pipelines.operate.audit import Audit, audit
from pipelines.operate.check import Check
from pipelines.operate.verify import verify
from pipelines.settings import Settings
from tests.chaos import tasks
from tests.chaos.disturbances import DISTURBANCES
from tests.chaos.world import Story, World
from tests.draining import drain_all, query
from tests.poison import TOPIC_PARTITION

_TOLD = """
SELECT topic, sum(lost)::BIGINT
FROM (SELECT source, batch_id, unnest(ranges, recursive := true) FROM commits)
WHERE source = 'accepted loss'
GROUP BY topic, batch_id
"""


@dataclass(frozen=True, slots=True)
class Books:
    """What is found in a lake once everything is settled."""

    expected: int
    """Events that have to be in it."""
    audits: Sequence[Audit]
    """A topic each."""
    failed: Sequence[Check]

    @property
    def events(self) -> int:
        """Events in the lake."""
        return self.audits[0].events

    @property
    def lost(self) -> int:
        """Events that are not in the lake, by the audits or by what was sent."""
        return max(sum(audit.lost for audit in self.audits), self.expected - self.events)

    @property
    def doubled(self) -> int:
        """Events that are in the lake more than once, by the audits or by what was sent."""
        return max(self.audits[0].doubled, self.events - self.expected)


def settle(world: World) -> list[Books]:
    """Do everything once without a disturbance, and return what the audit and the other checks say of each lake."""
    for bus in (world.settings, *world.buses):
        drain_all(bus)
    for path in world.files:
        tasks.load(path, world.settings)
    drain_all(world.remote)
    for settings in (world.settings, world.remote):
        tasks.merge_files(settings)
        vacuum(open_lake(settings.lake_root), 0)
        tasks.serve(settings)
    return [
        _open(world.story.distinct, [world.settings, *world.buses]),
        _open(world.story.remote, [world.remote]),
    ]


def _open(expected: int, topics: Sequence[Settings]) -> Books:
    failed = [check for check in verify(topics[0]) if check.passed is not True]
    return Books(expected, [audit(topic) for topic in topics], failed)


def not_rejected(world: World) -> int:
    """Return how much of the poison is not where it has to be: among the dead letters, each piece at its offset."""
    sql = f"""
        SELECT "offset" FROM dead_letters
        WHERE topic = '{world.settings.kafka.topic}' AND topic_partition = {TOPIC_PARTITION}
    """  # noqa: S608 - a name and a number of ours
    return len(world.story.letters - {offset for (offset,) in query(world.settings, sql)})


def not_told(world: World) -> int:
    """Return how many accepted losses the commits table has otherwise than they were, or not at all."""
    told, found = Counter(world.story.told), Counter(query(world.settings, _TOLD))
    return ((told - found) + (found - told)).total()


def verdict(story: Story, books: Sequence[Books], missing: int = 0, untold: int = 0) -> int:
    """Print the report, and return the exit code: 0 if all happened, and nothing is lost, doubled or wrong."""
    lake, *others = books
    facts(
        [
            ("rounds", story.rounds),
            *((f"disturbed by {name}", story.done[name]) for name in DISTURBANCES),
            *((f"killed in {what}", count) for what, count in sorted(story.kills.items())),
            ("processes killed", story.kills.total()),
            *((f"unflushed: {fate}", count) for fate, count in sorted(story.unflushed.items())),
            ("records sent", story.sent),
            ("events that could be read", story.distinct),
            ("events in the lake", lake.events),
            ("events in the lake on the object store", sum(other.events for other in others)),
            ("events that brokers lost before they were read", story.unreadable),
            ("accepted losses", len(story.told)),
            ("records never read, as told", sum(lost for _, lost in story.told)),
            ("of them not told, or otherwise", untold),
            ("records and batches of poison", story.poison),
            ("of them dead letters", len(story.letters) - missing),
            ("of them lost", missing),
        ]
    )
    never = [name for name in DISTURBANCES if not story.done[name]]
    for name in never:
        say(f"FAILED: {name} never happened")
    failed = [check for each in books for check in each.failed]
    for check in failed:
        say(f"FAILED: {check.name}: {check.evidence}")
    lost, doubled = sum(max(0, each.lost) for each in books), sum(max(0, each.doubled) for each in books)
    say(f"lost {lost}, doubled {doubled}")
    return int(bool(lost or doubled or failed or missing or untold or never))
