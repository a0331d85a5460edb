"""A real Redis Cluster: three primaries with a replica each, as processes that can be killed, paused and restarted."""

import contextlib
from collections.abc import Generator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from tests.services.ports import HOST, free_port
from tests.services.redis_server import RedisServer
from tests.services.waiting import wait_for

_PRIMARIES, _SLOTS = 3, 16_384


class ClusterMember(RedisServer):
    """One node, and a client of this node alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        config = {"cluster-enabled": "yes", "cluster-port": str(free_port()), "cluster-node-timeout": "15000"}
        config |= {"repl-diskless-sync-delay": "0", "cluster-allow-replica-migration": "no"}
        super().__init__(folder, config=config)
        self.bus_port = int(config["cluster-port"])
        self.client: Any = redis.Redis(HOST, self.port, socket_timeout=60)

    @property
    def id(self) -> str:
        """The id of the node in the cluster."""
        return self.client.execute_command("CLUSTER MYID").decode()

    @property
    def replication(self) -> dict[str, Any]:
        """The section `replication` of INFO."""
        return self.client.info("replication")

    @property
    def is_primary(self) -> bool:
        """Whether it is a primary, in its own view."""
        return self.replication["role"] == "master"


class TestedCluster:
    """A context manager; `members` are all nodes, whatever their current role."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.members = [ClusterMember(folder / str(number)) for number in range(2 * _PRIMARIES)]

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as started:
            for member in self.members:
                started.push(member)
                started.callback(member.client.close)
                member.launch()
            for member in self.members:
                member.wait_until_ready()
            self._join()
            self._started = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.__exit__(kind, error, trace)

    @property
    def url(self) -> str:
        """The address, with every node."""
        return "redis+cluster://" + ",".join(f"{HOST}:{member.port}" for member in self.members)

    def url_of(self, user: str, password: str) -> str:
        """Return the address for a user, with one node."""
        return f"redis+cluster://{user}:{password}@{HOST}:{self.members[0].port}"

    @contextlib.contextmanager
    def client(self) -> Generator[RedisCluster]:
        """Yield a client of the whole cluster."""
        nodes = [ClusterNode(HOST, member.port) for member in self.members]
        with RedisCluster(startup_nodes=nodes) as client:
            yield client

    def primary_of(self, key: bytes | str) -> ClusterMember:
        """Return the primary of a key's slot."""
        slot = key_slot(key.encode() if isinstance(key, str) else key)
        running = self.members[0].client.execute_command("CLUSTER SLOTS")
        port = next(row[2][1] for row in running if row[0] <= slot <= row[1])
        return next(member for member in self.members if member.port == port)

    def replica_of(self, primary: ClusterMember) -> ClusterMember:
        """Return the replica of a primary."""
        return next(member for member in self.members if member.replication.get("master_port") == primary.port)

    def promote(self, replica: ClusterMember) -> None:
        """Make a replica the primary without waiting for the others to detect the death of the old one."""
        replica.client.execute_command("CLUSTER FAILOVER", "TAKEOVER")
        wait_for("the promotion to be known", lambda: self._all_know(replica))

    def rejoin(self, member: ClusterMember) -> None:
        """Start a killed node, which becomes a replica of its successor, and wait until it has caught up."""
        member.start()
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return when every primary has its replica, and every node agrees that the cluster works."""
        wait_for("the cluster to be whole", self._is_whole)

    def move(self, slot: int, target: ClusterMember) -> "Move":
        """Return the move of a slot to another primary; it ends with the block."""
        port = next(row[2][1] for row in target.client.execute_command("CLUSTER SLOTS") if row[0] <= slot <= row[1])
        return Move(self, slot, next(member for member in self.members if member.port == port), target)

    def _join(self) -> None:
        for number, member in enumerate(self.members[:_PRIMARIES]):
            slots = range(number * _SLOTS // _PRIMARIES, (number + 1) * _SLOTS // _PRIMARIES)
            member.client.execute_command("CLUSTER ADDSLOTS", *slots)
            member.client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        first, *others = self.members
        for member in others:
            member.client.execute_command("CLUSTER MEET", HOST, first.port, first.bus_port)
        wait_for("the nodes to know each other", lambda: all(map(self._knows_all, self.members)))
        for primary, replica in zip(self.members[:_PRIMARIES], self.members[_PRIMARIES:], strict=True):
            replica.client.execute_command("CLUSTER REPLICATE", primary.id)
        self.wait_until_whole()

    def _knows_all(self, member: ClusterMember) -> bool:
        lines = member.client.execute_command("CLUSTER NODES")
        return len(lines) == len(self.members)

    def _all_know(self, primary: ClusterMember) -> bool:
        """Return whether every running node names this primary."""
        running = [member for member in self.members if member.is_running]
        views = [member.client.execute_command("CLUSTER SLOTS") for member in running]
        return all(any(row[2][1] == primary.port for row in view) for view in views)

    def _is_whole(self) -> bool:
        states = [member.replication for member in self.members]
        followed = [state for state in states if state["role"] == "master" and state["connected_slaves"]]
        linked = [state for state in states if state.get("master_link_status") == "up"]
        agreed = all(
            member.client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
            and len({row[2][1] for row in member.client.execute_command("CLUSTER SLOTS")}) == _PRIMARIES
            and all(len(row) > 3 for row in member.client.execute_command("CLUSTER SLOTS"))
            for member in self.members
        )
        return agreed and len(followed) == len(linked) == _PRIMARIES


class Move:
    """A slot that is being moved: both nodes know, and keys move one by one."""

    def __init__(self, cluster: TestedCluster, slot: int, source: ClusterMember, target: ClusterMember) -> None:
        self._cluster, self.slot, self.source, self.target = cluster, slot, source, target

    def __enter__(self) -> Self:
        self.target.client.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", self.source.id)
        self.source.client.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", self.target.id)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.move_keys()
        for member in (self.target, self.source):
            member.client.execute_command("CLUSTER SETSLOT", self.slot, "NODE", self.target.id)
        wait_for("the move to be known", lambda: all(self._owner_of(member) for member in self._cluster.members))

    def move_keys(self) -> None:
        """Move the keys that are still on the source."""
        while keys := self.source.client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 1_000):
            self.source.client.execute_command("MIGRATE", HOST, self.target.port, "", 0, 60_000, "KEYS", *keys)

    def _owner_of(self, member: ClusterMember) -> bool:
        rows = member.client.execute_command("CLUSTER SLOTS")
        return next(row[2][1] for row in rows if row[0] <= self.slot <= row[1]) == self.target.port
