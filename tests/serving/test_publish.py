"""Publishing: Redis holds exactly the documents last published, with the fewest writes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import polars as pl
import pytest
import redis

from pipelines.errors import FencedError, TransientError, UsageError
from pipelines.serving.keys import document_key
from pipelines.serving.publication import begin, finish, write
from pipelines.serving.publish import DOCUMENTS
from pipelines.serving.read import published, read_reputation
from pipelines.serving.redis_store import RedisPublicationWriter, document_keys
from pipelines.settings import RedisSettings, Settings
from tests.commands import Started
from tests.services.waiting import wait_for
from tests.serving.conftest import PrivateValkey, always, documents, documents_of, expected, publish, served, stamp

HOSTILE = [
    "",
    " ",
    "'; DROP TABLE users; --",
    '"quoted"',
    "new\nline\r\n$3\r\nfoo\r\n",
    "\0nul\0",
    "../../etc/passwd",
    "*",
    "[a-z]?\\",
    "\U0001f600 emoji",
    "\u202eright to left",
    ".publication",
    "x" * 65_536,
]


def test_only_changed_documents_are_written(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """A second publication writes the documents whose digest changed and those of new users, and no other."""
    assert publish(always(documents(ann=1, bob=2, cem=3)), stamp(1), cache, tmp_path).full
    client.set(f"{cache.prefix}:ann", "untouched")
    result = publish(always(documents(ann=1, bob=20, cem=3, dan=4)), stamp(2), cache, tmp_path)
    assert (result.written, result.deleted, result.unchanged, result.full) == (2, 0, 2, False)
    assert served(client, cache.prefix) == {
        "ann": "untouched",
        "bob": '{"score":20}',
        "cem": '{"score":3}',
        "dan": '{"score":4}',
    }


def test_nothing_changed_renews_the_stamp_only(settings: Settings, tmp_path: Path) -> None:
    """A publication without changes writes no document, but updates `as_of`."""
    publish(always(documents(ann=1)), stamp(1), settings.redis, tmp_path)
    result = publish(always(documents(ann=1)), stamp(1, 1_800_000_000_000_000), settings.redis, tmp_path)
    assert (result.written, result.unchanged, result.full) == (0, 1, False)
    info = published(settings)
    assert info is not None
    assert info.stamp == stamp(1, 1_800_000_000_000_000)


def test_removed_users_lose_their_documents(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """A user who is no longer published has no document; with no users, there are no documents."""
    publish(always(documents(ann=1, bob=2)), stamp(1), cache, tmp_path)
    assert publish(always(documents(bob=2)), stamp(2), cache, tmp_path).deleted == 1
    assert served(client, cache.prefix) == expected(documents(bob=2))
    assert publish(always(documents_of({})), stamp(3), cache, tmp_path).deleted == 1
    assert served(client, cache.prefix) == {}


def test_a_flushed_redis_is_filled_again(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """After FLUSHALL the next publication is a full one, though no document changed."""
    publish(always(documents(ann=1, bob=2)), stamp(1), cache, tmp_path)
    client.flushall()
    result = publish(always(documents(ann=1, bob=2)), stamp(1), cache, tmp_path)
    assert (result.written, result.full) == (2, True)
    assert served(client, cache.prefix) == expected(documents(ann=1, bob=2))


def test_a_full_publication_removes_what_does_not_belong(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """From another data folder: documents of old users are deleted, whatever their keys hold; other keys stay."""
    publish(always(documents(**{f"old{i}": i for i in range(3_000)})), stamp(1), cache, tmp_path / "one")
    client.set(cache.prefix.encode() + b":\xff\xfe", "not even text")
    client.lpush(f"{cache.prefix}:list", "another type")
    client.lpush(f"{cache.prefix}:ann", "another type")
    client.set(f"{cache.prefix}.neighbour", "not a document")
    result = publish(always(documents(ann=1)), stamp(2), cache, tmp_path / "two")
    assert (result.written, result.deleted, result.full) == (1, 3_002, True)
    assert served(client, cache.prefix) == expected(documents(ann=1))
    assert client.get(f"{cache.prefix}.neighbour") == b"not a document"
    client.delete(f"{cache.prefix}.neighbour")


def test_two_data_folders_take_turns(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """Publishers with separate caches never trust a cache of another publication than the one in Redis."""
    for version in range(1, 7):
        frame = documents(**{f"user{version % 2}": version, "both": version // 3})
        assert publish(always(frame), stamp(version), cache, tmp_path / str(version % 2)).full
        assert served(client, cache.prefix) == expected(frame)


@pytest.mark.parametrize("damage", [b"", b"ARROW1", b"\0" * 1_000, None])
def test_a_damaged_digest_cache_causes_a_full_publication(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path, damage: bytes | None
) -> None:
    """A cache file that is empty, torn or garbage is ignored."""
    publish(always(documents(ann=1, bob=2)), stamp(1), cache, tmp_path)
    file = tmp_path / "published.arrow"
    file.write_bytes(file.read_bytes()[:-20] if damage is None else damage)
    assert publish(always(documents(bob=2)), stamp(2), cache, tmp_path).full
    assert served(client, cache.prefix) == expected(documents(bob=2))
    assert not publish(always(documents(bob=2)), stamp(3), cache, tmp_path).full


def test_no_damage_to_a_digest_cache_ends_the_publisher(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """Whatever bit a disk flips, in the lengths of texts, in names or anywhere, the process lives to publish again."""
    publish(always(documents(ann=1, bob=2)), stamp(1), cache, tmp_path)
    script = """
import sys
from pathlib import Path
from pipelines.serving.digest_cache import open_digest_cache

file = Path(sys.argv[1]) / "published.arrow"
whole = file.read_bytes()
for bit in range(0, 8 * len(whole), 3):
    damaged = bytearray(whole)
    damaged[bit // 8] ^= 1 << bit % 8
    file.unlink()
    file.write_bytes(damaged)
    with open_digest_cache(file.parent):
        pass
print("alive")
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "alive\n", "")
    publish(always(documents(bob=2)), stamp(2), cache, tmp_path)
    assert client.get(f"{cache.prefix}:bob") is not None


def test_hostile_user_ids_are_only_keys(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """Any user_id is found by exactly that user_id, and affects no other key."""
    frame = documents_of({user: json.dumps({"user_id": user}) for user in HOSTILE})
    publish(always(frame), stamp(1), settings.redis, tmp_path)
    assert served(client, settings.redis.prefix) == expected(frame)
    for user in HOSTILE:
        assert client.get(f"{settings.redis.prefix}:{user}".encode()) == json.dumps({"user_id": user}).encode()
        assert read_reputation(user, settings) == {"user_id": user}
    assert publish(always(documents(ann=1)), stamp(2), settings.redis, tmp_path).deleted == len(HOSTILE)
    assert served(client, settings.redis.prefix) == expected(documents(ann=1))


def test_both_ways_to_make_a_key_agree() -> None:
    """The key of one user and the key in a column of users are the same bytes."""
    assert document_keys("p", pl.Series(HOSTILE)).to_list() == [document_key("p", user) for user in HOSTILE]


def test_documents_larger_than_a_chunk_are_published(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """Documents above the chunk size are sent one by one; small ones around them are not lost."""
    texts = {f"user{i}": "x" * (5_000_000 if i in {0, 3, 4} else 10) for i in range(6)}
    publish(always(documents_of(texts)), stamp(1), cache, tmp_path)
    assert served(client, cache.prefix) == texts


def test_many_documents_are_published_in_reasonable_time(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """200,000 documents of 300 bytes: written, then compared, then replaced by others, in seconds."""
    first = documents_of({f"user-{i}": f'{{"score":{i},"pad":"{"x" * 280}"}}' for i in range(200_000)})
    assert publish(always(first), stamp(1), cache, tmp_path).seconds < 20
    assert client.dbsize() >= 200_000
    second = first.tail(100_000)
    result = publish(always(second), stamp(2), cache, tmp_path)
    assert (result.written, result.deleted, result.unchanged) == (0, 100_000, 100_000)
    assert served(client, cache.prefix) == expected(second)
    assert publish(always(documents_of({})), stamp(3), cache, tmp_path).deleted == 100_000


@pytest.mark.parametrize(
    "frame",
    [
        documents(ann=1).drop("digest"),
        documents(ann=1).cast({"digest": pl.String}),
        documents(ann=1).with_columns(document=pl.lit(None, pl.String)),
        pl.concat([documents(ann=1), documents(ann=2)]),
    ],
)
def test_invalid_documents_are_refused(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path, frame: pl.DataFrame
) -> None:
    """Wrong columns, nulls and repeated users are an error before anything is written."""
    with pytest.raises(UsageError, match="documents to publish must"):
        publish(always(frame), stamp(1), cache, tmp_path)
    assert served(client, cache.prefix) == {}


def test_documents_are_published_in_parts(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part is written before the next one is built, in a full publication and in one of the changes."""
    steps, write = list[str](), RedisPublicationWriter.write

    def writing(writer: RedisPublicationWriter, frame: pl.DataFrame) -> None:
        steps.append(f"write {frame.height}")
        write(writer, frame)

    def parts(frame: pl.DataFrame) -> Generator[pl.DataFrame]:
        for part in frame.iter_slices(2):
            steps.append("build")
            yield part

    monkeypatch.setattr(RedisPublicationWriter, "write", writing)
    first, second = documents(ann=1, bob=1, cem=1, dan=1), documents(ann=1, bob=2, cem=1, eve=1)
    assert publish(lambda _: parts(first), stamp(1), cache, tmp_path).written == 4
    result = publish(lambda _: parts(second), stamp(2), cache, tmp_path)
    assert (result.written, result.deleted, result.unchanged, result.full) == (2, 1, 2, False)
    assert steps == ["build", "write 2", "build", "write 2", "build", "write 1", "build", "write 1"]
    assert served(client, cache.prefix) == expected(second)


def test_a_publication_that_is_refused_leaves_no_query_open(cache: RedisSettings, tmp_path: Path) -> None:
    """Not even while its error is kept: the next checkpoint of the warehouse would wait for it."""
    ended = list[str]()

    def parts(frame: pl.DataFrame) -> Generator[pl.DataFrame]:
        try:
            yield from frame.iter_slices(1)
        finally:
            ended.append("parts")

    publish(always(documents(ann=1)), stamp(2), cache, tmp_path)
    with pytest.raises(FencedError) as kept:
        publish(lambda _: parts(documents(ann=1, bob=1)), stamp(1), cache, tmp_path / "of another")
    assert (kept.tb is not None, ended) == (True, ["parts"])


def test_an_error_in_a_later_part_is_repaired_by_the_next(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """A part that fails, or has a user of an earlier one, leaves whole documents; the next publication is full."""
    before, after = documents(ann=1, bob=1), documents(ann=2, cem=2)
    publish(always(before), stamp(1), cache, tmp_path)
    with pytest.raises(UsageError, match="each user once"):
        publish(lambda _: (part for part in [after, after]), stamp(2), cache, tmp_path)
    assert served(client, cache.prefix) == expected(after) | {"bob": '{"score":1}'}
    assert publish(always(before), stamp(2), cache, tmp_path).full
    assert served(client, cache.prefix) == expected(before)


_CHILD = """
import sys
from pathlib import Path
import polars as pl
from pydantic import SecretStr
from pipelines.serving.publish import publish
from pipelines.serving.digest_cache import open_digest_cache
from pipelines.serving.publication import Stamp
from pipelines.settings import RedisSettings
documents, url, prefix, state, version = sys.argv[1:]
settings = RedisSettings(url=SecretStr(url), prefix=prefix)
with open_digest_cache(Path(state)) as kept:
    publish(lambda _: (part for part in [pl.read_parquet(documents)]), Stamp(int(version), 1, "p"), settings, kept)
"""


def test_a_killed_publisher_is_repaired_by_the_next(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """SIGKILL at three points of a publication over an older one: the next one leaves exactly its documents."""
    assert cache.url is not None
    before = documents(ann=0, old=0)
    during = documents_of({f"new-{i}": "x" * 200 for i in range(60_000)})
    after = documents(ann=1, bob=1)
    during.write_parquet(tmp_path / "documents")
    children: dict[str, Started] = {}
    request.addfinalizer(lambda: [child.kill() for child in children.values()])
    for share in ("00", "20", "80"):
        child_cache = cache.model_copy(update={"prefix": f"{cache.prefix}-{share}"})
        publish(always(before), stamp(1), child_cache, tmp_path / share)
        arguments = [tmp_path / "documents", cache.url.get_secret_value(), child_cache.prefix, tmp_path / share, "2"]
        children[share] = Started(["-c", _CHILD, *arguments])
    for share, child in children.items():
        child_cache = cache.model_copy(update={"prefix": f"{cache.prefix}-{share}"})
        last_before = f"{child_cache.prefix}:new-{int(share) * 600}"
        wait_for(f"{share} % of the documents", lambda: client.exists(last_before) == 1)  # noqa: B023 # called here
        child.send_signal(signal.SIGKILL)
        child.wait()
        publish(always(after), stamp(3), child_cache, tmp_path / share)
        assert served(client, child_cache.prefix) == expected(after)


def test_a_server_restored_from_an_older_snapshot_is_detected(
    private_valkey: Callable[..., PrivateValkey], tmp_path: Path
) -> None:
    """Redis is killed and restored to a state during a publication: that one stops, the next fills the gap."""
    server = private_valkey()
    publication = begin(server.client, "reputation", stamp(1))
    server.client.save()
    write(publication, [b"reputation:ann"], [b"1"])
    server.kill()
    server.start()
    with pytest.raises(TransientError, match="without some of the documents"):
        write(publication, [b"reputation:bob"], [b"2"])
    with pytest.raises(TransientError, match="without some of the documents"):
        finish(publication, 2)
    assert publish(always(documents(ann=1, bob=2)), stamp(1), server.settings, tmp_path / "state").full
    assert served(server.client, "reputation") == expected(documents(ann=1, bob=2))


def test_a_server_restored_between_publications_is_filled_again(
    private_valkey: Callable[..., PrivateValkey], tmp_path: Path
) -> None:
    """Redis is restored to an older publication: one in progress stops, the next is full without any change."""
    server = private_valkey()
    publish(always(documents(ann=1, old=1)), stamp(1), server.settings, tmp_path / "state")
    server.client.save()
    publish(always(documents(ann=2)), stamp(2), server.settings, tmp_path / "state")
    under_way = begin(server.client, "reputation", stamp(2))
    server.kill()
    server.start()
    assert served(server.client, "reputation") == expected(documents(ann=1, old=1))
    with pytest.raises(TransientError, match="Redis lost its data"):
        finish(under_way, 1)
    assert publish(always(documents(ann=2)), stamp(2), server.settings, tmp_path / "state").full
    assert served(server.client, "reputation") == expected(documents(ann=2))


def test_documents_schema_is_what_the_docstring_says() -> None:
    """The columns that callers build."""
    assert dict(DOCUMENTS) == {"user_id": pl.String(), "document": pl.String(), "digest": pl.UInt64()}
