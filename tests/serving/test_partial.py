"""Partial publication: given the changed users, it builds only their documents, with the result of a full one."""

import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import TransientError, UsageError
from pipelines.reputation import documents as warehouse
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import load_policy
from pipelines.serving import publish as publishing
from pipelines.serving.digest_cache import DigestCache, open_digest_cache
from pipelines.serving.publication_state import read_state
from pipelines.serving.read import published
from pipelines.settings import RedisSettings, Settings
from tests.reputation.history import AS_OF, NOW, Event, snapshot_of
from tests.serving.conftest import always, documents, documents_of, expected, interrupted, names, publish, served, stamp

USERS = ["ann", "bob", "cem", "", "*", "\0", "\U0001f600"]
SCORES = st.dictionaries(st.sampled_from(USERS), st.integers(0, 3).map(str))
MISHAPS = ["nothing", "nothing", "nothing", "redis lost", "state lost", "another publisher", "interrupted"]
STEPS = st.lists(
    st.tuples(SCORES, st.sets(st.sampled_from([*USERS, "ghost"])), st.sampled_from(MISHAPS), st.booleans()), max_size=8
)


class Asked:
    """A document builder that records the users it was called for; None means all."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.make, self.calls = always(frame), list[set[str] | None]()

    def __call__(self, users: pl.Series | None) -> pl.DataFrame:
        self.calls.append(None if users is None else set(users))
        return self.make(users)


def apply_mishap(mishap: str, client: redis.Redis, cache: RedisSettings, folder: Path, version: int) -> None:
    """Cause an event after which the cached digests must not be used."""
    other = documents(ann=99, stranger=99)
    if mishap == "redis lost":
        client.delete(*client.keys(f"{cache.prefix}*") or ["nothing"])
    elif mishap == "state lost":
        (folder / "published.arrow").unlink(missing_ok=True)
    elif mishap == "another publisher":
        publish(always(other), stamp(version), cache, folder / "other")
    elif mishap == "interrupted":
        interrupted(documents(ann=98, stranger=98), stamp(version), cache, folder / "other")


@given(steps=STEPS)
def test_partial_publications_equal_full_ones(local_settings: Settings, steps: list) -> None:
    """After any publications, each given a superset of the changed users or None: exactly the last documents remain.

    The digests that are kept are those of all documents, whatever was lost, or done by others, in between.
    """
    cache = local_settings.redis.model_copy(update={"prefix": f"r-{uuid.uuid4().hex[:12]}"})
    assert cache.url is not None
    last: dict[str, str] = {}
    with TemporaryDirectory() as name, redis.Redis.from_url(cache.url.get_secret_value()) as client:
        for number, (texts, more, mishap, announced) in enumerate(steps):
            apply_mishap(mishap, client, cache, Path(name), 2 * number)
            differing = {user for user in texts.keys() | last.keys() if texts.get(user) != last.get(user)}
            maker = Asked(documents_of(texts))
            changed = names(*sorted(differing | more)) if announced else None
            result = publish(maker, stamp(2 * number + 1), cache, Path(name), changed)
            assert served(client, cache.prefix) == texts
            assert result.full == (number == 0 or mishap != "nothing")
            assert maker.calls == [None if result.full or not announced else differing | more]
            assert result.written + result.unchanged == len(texts)
            assert result.full or result.written + result.deleted == len(differing)
            cached = DigestCache(Path(name)).digests(read_state(client, cache.prefix).publication_id, ())
            assert cached is not None
            assert cached.all().equals(documents_of(texts).select("user_id", "digest").sort("user_id"))
            last = texts
        client.delete(*client.keys(f"{cache.prefix}*") or ["nothing"])


def test_only_the_named_users_are_built_and_compared(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """Of 3 named users one changed, one is gone and one is unchanged; the count covers all documents."""
    publish(always(documents(ann=1, bob=1, cem=1, dan=1)), stamp(1), settings.redis, tmp_path)
    maker = Asked(documents(ann=2, bob=1, dan=1))
    result = publish(maker, stamp(2), settings.redis, tmp_path, names("ann", "bob", "cem"))
    assert maker.calls == [{"ann", "bob", "cem"}]
    assert (result.written, result.deleted, result.unchanged, result.full) == (1, 1, 2, False)
    assert served(client, settings.redis.prefix) == expected(documents(ann=2, bob=1, dan=1))
    info = published(settings)
    assert info is not None
    assert (info.documents, info.stamp) == (3, stamp(2))


def test_no_change_renews_the_stamp(settings: Settings, tmp_path: Path) -> None:
    """With no named users, no document is built, and the publication still completes."""
    publish(always(documents(ann=1, bob=1)), stamp(1), settings.redis, tmp_path)
    maker = Asked(documents(ann=1, bob=1))
    result = publish(maker, stamp(2), settings.redis, tmp_path, names())
    assert maker.calls == [set()]
    assert (result.written, result.deleted, result.unchanged, result.full) == (0, 0, 2, False)
    info = published(settings)
    assert info is not None
    assert (info.documents, info.stamp) == (2, stamp(2))


def test_a_publication_while_documents_are_built_is_detected(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """After a whole publication between building the named users' documents and the begin, all documents are built."""
    publish(always(documents(ann=1, bob=1)), stamp(1), cache, tmp_path / "one")
    builder, calls = always(documents(ann=2, bob=1)), []

    def overtaken(users: pl.Series | None) -> pl.DataFrame:
        calls.append(users is None)
        if users is not None:
            publish(always(documents(bob=7, cem=7)), stamp(2), cache, tmp_path / "two")
        return builder(users)

    assert publish(overtaken, stamp(3), cache, tmp_path / "one", names("ann")).full
    assert calls == [False, True]
    assert served(client, cache.prefix) == expected(documents(ann=2, bob=1))


def test_documents_that_cannot_be_built_change_nothing(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """An error while building documents leaves the last publication valid: the next one builds on it."""
    publish(always(documents(ann=1, bob=1)), stamp(1), cache, tmp_path)

    def failing(users: pl.Series | None) -> pl.DataFrame:
        raise TransientError("no warehouse")

    with pytest.raises(TransientError, match="no warehouse"):
        publish(failing, stamp(2), cache, tmp_path, names("ann"))
    assert not publish(always(documents(ann=2, bob=1)), stamp(2), cache, tmp_path, names("ann")).full
    assert served(client, cache.prefix) == expected(documents(ann=2, bob=1))


def test_documents_of_other_users_are_refused(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """A builder that returns all users instead of the requested ones is an error, and nothing is published."""
    publish(always(documents(ann=1, bob=1)), stamp(1), cache, tmp_path)
    with pytest.raises(UsageError, match="must belong to the requested users only"):
        publish(lambda _: (part for part in [documents(ann=2, bob=2)]), stamp(2), cache, tmp_path, names("ann"))
    assert served(client, cache.prefix) == expected(documents(ann=1, bob=1))


@pytest.mark.slow
def test_the_warehouse_makes_the_documents_of_named_users(tmp_path: Path) -> None:
    """Documents of some users are the same rows as among all; unknown and repeated names add nothing."""
    users = ["ann", "bob", "'; DROP TABLE reputation; --", "nul\0", "👩‍🚀"]
    events = [Event(f"e{i}", user, "TransactionCompleted", NOW - 1 - i) for i, user in enumerate(users)]
    path = tmp_path / "warehouse.duckdb"
    derive(snapshot_of(tmp_path / "lake", events, version=1), load_policy("default"), AS_OF, path)
    all_users = warehouse.documents(path)
    assert set(all_users["user_id"]) == set(users)
    for some in (users[1:], [users[3], users[3], "ghost"], []):
        built = warehouse.documents(path, names(*some))
        assert built.equals(all_users.filter(pl.col("user_id").is_in(some)))
        assert built.schema == all_users.schema


def test_unsaved_digests_are_known_only_to_this_process(cache: RedisSettings, tmp_path: Path) -> None:
    """Publications of one process build on each other without a file; after a crash the next one is full."""
    with open_digest_cache(tmp_path) as state:
        assert publishing.publish(always(documents(ann=1, bob=1)), stamp(1), cache, state).full
        assert not publishing.publish(always(documents(ann=2, bob=1)), stamp(2), cache, state, names("ann")).full
        assert publish(always(documents(ann=3, bob=1)), stamp(3), cache, tmp_path).full  # as after a crash
        assert publishing.publish(always(documents(ann=4, bob=1)), stamp(4), cache, state, names("ann")).full
    assert not publish(always(documents(ann=5, bob=1)), stamp(5), cache, tmp_path).full


def test_the_file_is_that_of_the_last_save(cache: RedisSettings, tmp_path: Path) -> None:
    """Later publications are in memory only; saving again writes only if something was published."""
    file = tmp_path / "published.arrow"
    state = DigestCache(tmp_path)
    publishing.publish(always(documents(ann=1)), stamp(1), cache, state)
    assert not file.exists()
    state.save()
    saved = file.stat().st_ino
    state.save()
    assert file.stat().st_ino == saved
    publishing.publish(always(documents(ann=2)), stamp(2), cache, state, names("ann"))
    assert file.stat().st_ino == saved
    state.save()
    assert file.stat().st_ino != saved
