"""The fence in a Redis Cluster: each hash slot has a fence of its own, and every write checks it.

A script or transaction cannot span hash slots, so the hash `{prefix}.publication` cannot guard the documents. Instead:

    begin    announces the publication in the hash, as on one server (`publication.py`), then takes a ticket: a number
             that grows with every publication
    claim    sets the fences of all slots to this publication. Only needed if another publication may still be writing:
             the hash was missing, the last publication was interrupted, or a primary lost its history
    write    one script per slot: if the slot's fence names a later publication, the script does nothing; otherwise it
             sets the fence to this one and runs one command
    finish   refused if a primary was replaced or restarted since the beginning; otherwise as on one server

A fence holds (epoch, lake version, as_of, ticket, id) as text of fixed width, so that the later publication has the
greater text. The epoch is when the hash was created: deleting the hash lets another lake begin, as on one server.

Why an older publication never overwrites a newer document (`fenced`): the newer one wrote the document and the fence
of its slot in one script, and a script of the older one reads that fence first. A publication that finds another in
progress claims all slots before it looks for documents to delete; so nothing of the older one arrives later. One that
finds the last publication complete and every history intact claims only the slots that it writes: every earlier
publisher has finished, or was shut out of every slot by a claim.

Replication is asynchronous: a promoted replica may lack the last documents of its slots, and their fences. It also has
another replication id, as has a primary that restarted. A publication compares the ids of all primaries
- when it begins with those of the last publication: if they differ, documents may be missing, so it writes everything;
- when it finishes with those of its beginning: if they differ it fails, and the next one writes everything.
So the next publication notices every loss. Between the loss and the next publication, a reader may get the
previous document of a user, and an overtaken publisher may write again to the slots whose fences were lost.

Weaker than on one server: a document and its user's leaderboard entry are in different slots, so they change one after
the other; and an overtaken publisher is refused per slot, from the moment that the new one has claimed it.
While a slot moves to another node, its documents cannot be written, and a full publication cannot be sure to find all
documents: both raise TransientError.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.cluster import RedisCluster

from pipelines.errors import FencedError, TransientError
from pipelines.serving.client import primaries
from pipelines.serving.keys import HASH_SLOTS, fence_key, publication_key
from pipelines.serving.publication import Command, Publication, begin, finish, register
from pipelines.serving.publication_state import Stamp, utc_time

_SCRIPT = """
local holder = redis.call('GET', KEYS[1])
if holder and holder > ARGV[1] then return holder end
if holder ~= ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
if ARGV[2] then redis.call(unpack(ARGV, 2)) end
"""
_DIGITS = 19
_OFFSET = 10**18
"""Makes negative numbers positive: as_of may be before 1970."""
_CLAIMS = 1_024
"""Slots in one round of claims."""
MOVING = (
    "slots of the cluster are being moved to another node, so documents could be overlooked: publish again when "
    "`redis-cli --cluster check` reports no open slots"
)


@dataclass(frozen=True, slots=True)
class SlotCommand:
    """A command on keys of one slot; without words it only sets the fence."""

    slot: int
    keys: Sequence[bytes] = ()
    words: Command = ()


@dataclass(frozen=True, slots=True)
class ClusterPublication:
    """A publication to a cluster in progress, created by `begin_in_cluster`."""

    client: RedisCluster
    publication: Publication
    claim: str
    """What it writes into fences; a later publication has a greater text."""
    histories: str
    """The replication ids of the primaries when it began."""
    previous_id: str | None
    """Id of the complete publication; None if documents may be missing or another publication may be writing."""


def begin_in_cluster(client: RedisCluster, prefix: str, stamp: Stamp) -> ClusterPublication:
    """Announce a publication and take its ticket. Raises like `publication.begin`."""
    publication = begin(client, prefix, stamp)
    histories = _read_histories(client)
    registered = register(publication, histories)
    order = (registered.epoch_us, stamp.lake_version, stamp.as_of_us, registered.ticket)
    claim = "".join(f"{number + _OFFSET:0{_DIGITS}}" for number in order) + publication.id
    intact = registered.found.histories == histories
    return ClusterPublication(client, publication, claim, histories, publication.previous_id if intact else None)


def claim_all_slots(publication: ClusterPublication) -> None:
    """Shut every earlier publication out of every slot. Raises like `execute`."""
    for first in range(0, HASH_SLOTS, _CLAIMS):
        execute(publication, [SlotCommand(slot) for slot in range(first, min(first + _CLAIMS, HASH_SLOTS))])


def execute(publication: ClusterPublication, commands: Iterable[SlotCommand]) -> None:
    """Run commands, each under the fence of its slot: in one round, in no order.

    Raises FencedError if a later publication has written to one of the slots; others may have been written.
    """
    client, nodes = publication.client, publication.client.nodes_manager
    with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            words = _fenced(publication, command)
            pipeline.execute_command(*words, target_nodes=nodes.get_node_from_slot(command.slot))
        holders = [holder for holder in pipeline.execute() if holder is not None]
    if holders:
        raise FencedError(_refusal(publication, max(holders).decode()))


def finish_in_cluster(publication: ClusterPublication, documents: int, leaderboards: Sequence[str]) -> None:
    """Mark the publication as the published one. Raises like `publication.finish`; TransientError after a failover."""
    if _read_histories(publication.client) != publication.histories:
        raise TransientError(
            f"publishing to {publication.publication.prefix}:* was stopped: a primary of the cluster was replaced or "
            "restarted meanwhile, so documents may be missing. Publish again"
        )
    finish(publication.publication, documents, leaderboards)


def read_layout(client: RedisCluster) -> list[tuple[object, ...]]:
    """Return the slots of every primary; TransientError while a slot is being moved to another node."""
    nodes = [_own_entry(node) for node in primaries(client)]
    if any(node["migrations"] for node in nodes):
        raise TransientError(MOVING)
    return sorted((node["node_id"], node["slots"]) for node in nodes)


def _own_entry(node: redis.Redis) -> dict[str, Any]:
    """Return what a node says of itself in CLUSTER NODES."""
    entries: Any = node.execute_command("CLUSTER NODES")
    return next(entry for entry in entries.values() if "myself" in entry["flags"])


def _read_histories(client: RedisCluster) -> str:
    """Return the replication ids of the primaries: a failover or a restart begins another history."""
    found = [node.info("replication") for node in primaries(client)]
    return ",".join(sorted(str(section.get("master_replid", "")) for section in found))


def _fenced(publication: ClusterPublication, command: SlotCommand) -> Command:
    fence = fence_key(publication.publication.prefix, command.slot)
    keys = [fence, *command.keys]
    return ["EVAL", _SCRIPT, len(keys), *keys, publication.claim, *command.words]


def _refusal(publication: ClusterPublication, holder: str) -> str:
    version, as_of_us = (int(holder[first : first + _DIGITS]) - _OFFSET for first in (_DIGITS, 2 * _DIGITS))
    stamp, prefix = publication.publication.stamp, publication.publication.prefix
    return (
        f"publishing lake version {stamp.lake_version} to {prefix}:* was stopped: another publisher has taken over "
        f"with version {version} as of {utc_time(as_of_us).isoformat()}. No action is needed; run only one publisher "
        "to avoid this. If that version comes from a lake that this one replaces, or from a wrong clock, delete the "
        f"Redis key {publication_key(prefix)} and publish again"
    )
