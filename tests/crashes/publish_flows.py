"""Killing publications: of everything over the keys of an older one, of what changed since, and of canaries."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from pipelines.canary import canary_settings, follow_canary
from pipelines.lake.tables import open_lake
from pipelines.refresh import publish_views
from pipelines.reputation.activation import canary, end_canary, start_canary
from pipelines.reputation.documents import document_parts
from pipelines.reputation.export import export_warehouse
from pipelines.reputation.policy_file import load_policy
from pipelines.reputation.warehouse_file import attach, stored_info
from pipelines.serving.client import connect
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.keys import document_key, key_pattern
from pipelines.serving.redis_store import write
from pipelines.settings import Settings
from tests.crashes.flows import NOON, Flow
from tests.crashes.view_flows import LATER, drain_two, refresh
from tests.draining import drain_all

_OLDER = "older.duckdb"
_VARYING_FIELDS = {b"id", b"published_at_us"}
_PUBLISHING = {
    "pipelines.serving.redis_store:read_state": 2,
    "pipelines.serving.redis_store:begin": 2,
    "pipelines.serving.publish:_begin_to_build": 2,
    "pipelines.serving.publish:_write_parts": 2,
    "pipelines.serving.publish:_strangers": 1,
    "pipelines.serving.publish:_removed": 1,
    "pipelines.serving.redis_store:write": 2,
    "pipelines.serving.redis_store:remove": 1,
    "redis.client:Pipeline.execute": 2,
    "pipelines.serving.redis_store:finish": 2,
    "pipelines.serving.digest_cache:DigestCache.save": 2,
}


def publish_both(settings: Settings) -> None:
    """Publish the older warehouse over a stray document, then the changes of the newer one, in small chunks."""
    with connect(settings.redis) as client:
        client.set(document_key(settings.redis.prefix, "nobody"), "{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.serving.redis_store._CHUNK_COMMANDS", 10)
        _publish(settings, _OLDER)
        _publish(settings)


class _CutError(Exception):
    """Cuts a publication off."""


def publish_after_one_that_was_cut(settings: Settings) -> None:
    """Publish after a publication that was cut off after its first chunk."""

    def write_and_end(*arguments: Any) -> None:
        write(*arguments)
        raise _CutError

    with pytest.MonkeyPatch.context() as patch, suppress(_CutError):
        patch.setattr("pipelines.serving.redis_store._CHUNK_COMMANDS", 10)
        patch.setattr("pipelines.serving.redis_store.write", write_and_end)
        _publish(settings, _OLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.serving.redis_store._CHUNK_COMMANDS", 10)
        _publish(settings)


def _publish(settings: Settings, name: str = "warehouse.duckdb") -> None:
    with attach(settings.data_dir / name) as warehouse, open_digest_cache(settings.published_dir) as state:
        publish_views(stored_info(warehouse), partial(document_parts, warehouse), settings, state, None)


def _prepare(settings: Settings) -> None:
    drain_two(settings)
    refresh(settings, NOON)
    export_warehouse(settings.warehouse_path, settings.data_dir / _OLDER)
    drain_all(settings)
    refresh(settings, LATER)


def _served(settings: Settings) -> dict[bytes, Any]:
    """Return every key with its value, without what differs between equal publications."""
    prefix = settings.redis.prefix
    with connect(settings.redis) as client:
        keys: list[Any] = sorted(client.scan_iter(key_pattern(prefix)))
        return {key.removeprefix(prefix.encode()): _value_of(client, key) for key in keys}


def _value_of(client: Any, key: bytes) -> object:
    match client.type(key):
        case b"string":
            document = json.loads(client.get(key))
            return {name: value for name, value in document.items() if name not in {"as_of", "lake_version"}}
        case b"hash":
            return {name: value for name, value in client.hgetall(key).items() if name not in _VARYING_FIELDS}
        case _:
            return client.zrange(key, 0, -1, withscores=True)


def serve_two_canaries(settings: Settings) -> None:
    """Serve a canary, end it, and serve another one."""
    lake = open_lake(settings.lake_root)
    start_canary(lake, load_policy("marketplace-feedback"))
    follow_canary(settings)
    end_canary(lake, None, "enough")
    follow_canary(settings)
    start_canary(lake, load_policy("ride-hailing"))
    follow_canary(settings)


def _documents(settings: Settings) -> dict[bytes, Any]:
    """Return the documents of the policy in force."""
    return {key: value for key, value in _served(settings).items() if key.startswith(b":")}


def _canary(settings: Settings) -> tuple[object, ...]:
    """Return what is recorded and served of the canary, and the documents of the policy in force."""
    present = canary(open_lake(settings.lake_root))
    return present and present.policy.name, _documents(canary_settings(settings)), _documents(settings)


FLOWS = {
    "canaries": Flow(
        serve_two_canaries,
        {
            "pipelines.reputation.activation:_record": 3,
            "pipelines.canary:publish_draft": 2,
            "pipelines.canary:_remove_documents": 1,
            "pipelines.canary:_remove_files": 1,
            "pipelines.serving.redis_store:finish": 3,
        },
        _prepare,
        sound=_documents,
        seen=_canary,
    ),
    "publish": Flow(publish_both, _PUBLISHING, _prepare, _publish, sound=_served, seen=_served),
    "recovery from a publication that was cut": Flow(
        publish_after_one_that_was_cut,
        {
            "pipelines.serving.publish:_strangers": 1,
            "pipelines.serving.redis_store:begin": 2,
            "pipelines.serving.redis_store:finish": 1,
            "pipelines.serving.digest_cache:DigestCache.save": 1,
        },
        _prepare,
        _publish,
        sound=_served,
        seen=_served,
    ),
}
