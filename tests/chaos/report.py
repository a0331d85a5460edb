"""The report of a chaos run: all work is done once more without faults, then every check runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli.output import print_fields, print_line
from pipelines.lake.tables import open_lake
from pipelines.lake.upkeep import vacuum
from pipelines.operate.audit import Audit, audit
from pipelines.operate.check import Check
from pipelines.operate.verify import verify
from pipelines.settings import Settings
from tests.chaos import tasks
from tests.chaos.faults import FAULTS
from tests.chaos.world import Story, World
from tests.draining import drain_all, query
from tests.poison import TOPIC_PARTITION

_RECORDED_LOSSES = """
SELECT topic, sum(lost)::BIGINT
FROM (SELECT source, batch_id, unnest(ranges, recursive := true) FROM commits)
WHERE source = 'accepted loss'
GROUP BY topic, batch_id
"""


@dataclass(frozen=True, slots=True)
class Findings:
    """The results of all checks of one lake."""

    expected: int
    """Events that must be in the lake."""
    audits: Sequence[Audit]
    """One per topic."""
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
    def duplicated(self) -> int:
        """Events that are in the lake more than once, by the audits or by what was sent."""
        return max(self.audits[0].duplicated, self.events - self.expected)


def settle(world: World) -> list[Findings]:
    """Do all work once more without faults; return the results of the audit and the other checks of each lake."""
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


def _open(expected: int, topics: Sequence[Settings]) -> Findings:
    failed = [check for check in verify(topics[0]) if check.passed is not True]
    return Findings(expected, [audit(topic) for topic in topics], failed)


def count_missing_dead_letters(world: World) -> int:
    """Return the number of bad records that are not dead letters at their offset."""
    sql = f"""
        SELECT "offset" FROM dead_letters
        WHERE topic = '{world.settings.kafka.topic}' AND topic_partition = {TOPIC_PARTITION}
    """  # noqa: S608 - a name and a number of ours
    return len(world.story.letters - {offset for (offset,) in query(world.settings, sql)})


def count_unrecorded_losses(world: World) -> int:
    """Return the number of accepted losses that differ between the run and the commits table."""
    expected, found = Counter(world.story.losses), Counter(query(world.settings, _RECORDED_LOSSES))
    return ((expected - found) + (found - expected)).total()


def report(story: Story, findings: Sequence[Findings], missing: int = 0, unrecorded: int = 0) -> int:
    """Print the report, and return the exit code: 0 if all happened, and nothing is lost, duplicated or wrong."""
    lake, *others = findings
    print_fields(
        [
            ("rounds", story.rounds),
            *((f"fault: {name}", story.done[name]) for name in FAULTS),
            *((f"killed in {what}", count) for what, count in sorted(story.kills.items())),
            ("processes killed", story.kills.total()),
            *((f"unflushed: {fate}", count) for fate, count in sorted(story.unflushed.items())),
            ("records sent", story.sent),
            ("events that could be read", story.distinct),
            ("events in the lake", lake.events),
            ("events in the lake on the object store", sum(other.events for other in others)),
            ("events that brokers lost before they were read", story.unreadable),
            ("accepted losses", len(story.losses)),
            ("records never read, as accepted", sum(lost for _, lost in story.losses)),
            ("of them not recorded, or with another number", unrecorded),
            ("records and batches of poison", story.poison),
            ("of them dead letters", len(story.letters) - missing),
            ("of them lost", missing),
        ]
    )
    never = [name for name in FAULTS if not story.done[name]]
    for name in never:
        print_line(f"FAILED: {name} never happened")
    failed = [check for each in findings for check in each.failed]
    for check in failed:
        print_line(f"FAILED: {check.name}: {check.evidence}")
    lost, duplicated = sum(max(0, each.lost) for each in findings), sum(max(0, each.duplicated) for each in findings)
    print_line(f"lost {lost}, duplicated {duplicated}")
    return int(bool(lost or duplicated or failed or missing or unrecorded or never))
