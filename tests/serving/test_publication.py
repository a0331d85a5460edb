"""The fence, driven step by step: an older document never replaces a newer one, in any interleaving (`fenced`)."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.client import Pipeline

from pipelines.errors import FencedError, TransientError
from pipelines.serving import publication as publication_module
from pipelines.serving.keys import publication_key
from pipelines.serving.publication import Publication, begin, finish, remove, write
from pipelines.serving.publication_state import PublicationState, Stamp, read_state
from pipelines.settings import RedisSettings
from tests.serving.conftest import always, documents, documents_of, expected, publish, served, stamp

OLD, NEW = stamp(1), stamp(2)


def put(publication: Publication, user: str, score: int) -> None:
    write(publication, [f"{publication.prefix}:{user}".encode()], [f'{{"score":{score}}}'.encode()])


STEPS: dict[str, Callable[[Publication], None]] = {
    "write": lambda publication: put(publication, "ann", -1),
    "remove": lambda publication: remove(publication, [f"{publication.prefix}:ann".encode()]),
    "finish": lambda publication: finish(publication, 1),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("wrote", [0, 1])
def test_a_publisher_taken_over_in_progress_stops(
    client: redis.Redis, cache: RedisSettings, step: str, wrote: int
) -> None:
    """B (newer) begins while A is in progress: no further step of A has any effect, and B's publication is complete."""
    older = begin(client, cache.prefix, OLD)
    for score in range(wrote):
        put(older, "ann", score)
    newer = begin(client, cache.prefix, NEW)
    put(newer, "ann", 7)
    with pytest.raises(FencedError, match="another publisher has taken over with version 2"):
        STEPS[step](older)
    finish(newer, 1)
    assert served(client, cache.prefix) == expected(documents(ann=7))


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_paused_during_a_newer_one_stops(client: redis.Redis, cache: RedisSettings, step: str) -> None:
    """A resumes after B (newer) has finished: no step of A has any effect."""
    older = begin(client, cache.prefix, OLD)
    newer = begin(client, cache.prefix, NEW)
    put(newer, "ann", 7)
    finish(newer, 1)
    with pytest.raises(FencedError, match="another publisher has taken over with version 2"):
        STEPS[step](older)
    assert served(client, cache.prefix) == expected(documents(ann=7))
    assert begin(client, cache.prefix, stamp(3)).previous_id == newer.id


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("older", [stamp(1, 999), stamp(2, 9), Stamp(2, 9, "other@9")])
def test_an_older_stamp_may_not_begin(client: redis.Redis, cache: RedisSettings, older: Stamp, finished: bool) -> None:
    """An older lake version, or the same with an older as_of, is rejected during and after a newer publication."""
    newer = begin(client, cache.prefix, stamp(2, 10))
    put(newer, "ann", 7)
    if finished:
        finish(newer, 1)
    with pytest.raises(FencedError, match=rf"version 2 as of .* delete the Redis key {cache.prefix}.publication"):
        begin(client, cache.prefix, older)
    if not finished:
        finish(newer, 1)
    assert served(client, cache.prefix) == expected(documents(ann=7))
    assert begin(client, cache.prefix, stamp(3)).previous_id == newer.id


@pytest.mark.parametrize("newer", [stamp(2, 10), stamp(2, 11), stamp(3, 1), Stamp(2, 10, "other@9")])
def test_an_equal_or_newer_stamp_takes_over(client: redis.Redis, cache: RedisSettings, newer: Stamp) -> None:
    """The same stamp again, a later as_of, a newer commit with an earlier as_of, another policy: all may begin."""
    first = begin(client, cache.prefix, stamp(2, 10))
    second = begin(client, cache.prefix, newer)
    with pytest.raises(FencedError):
        put(first, "ann", 1)
    put(second, "ann", 2)
    finish(second, 1)
    begin(client, cache.prefix, newer)
    assert served(client, cache.prefix) == expected(documents(ann=2))


def test_an_older_publisher_is_refused_by_publish(cache: RedisSettings, client: redis.Redis, tmp_path: Path) -> None:
    """The same through `publish`: nothing is written, and the state remains that of the newer publication."""
    publish(always(documents(ann=2)), NEW, cache, tmp_path)
    with pytest.raises(FencedError, match="and newer"):
        publish(always(documents(ann=1, bob=1)), OLD, cache, tmp_path)
    assert served(client, cache.prefix) == expected(documents(ann=2))
    assert not publish(always(documents(ann=2)), NEW, cache, tmp_path).full


def test_deleting_the_publication_state_lets_a_new_lake_begin(
    cache: RedisSettings, client: redis.Redis, tmp_path: Path
) -> None:
    """The advice of the error works: without the hash, version 1 of another lake fully replaces version 500."""
    publish(always(documents(ann=2, bob=2)), stamp(500), cache, tmp_path / "old")
    client.delete(f"{cache.prefix}.publication")
    publish(always(documents(ann=1)), OLD, cache, tmp_path / "new")
    assert served(client, cache.prefix) == expected(documents(ann=1))


@pytest.mark.parametrize("crash_after", ["begin", "write", "remove", "finish"])
@pytest.mark.parametrize("first_ever", [False, True])
def test_a_crash_after_any_step_is_repaired(
    client: redis.Redis, cache: RedisSettings, tmp_path: Path, crash_after: str, first_ever: bool
) -> None:
    """A publication abandoned after any step, or before its state was saved: the next is full and exact."""
    if not first_ever:
        publish(always(documents(ann=1, bob=1, cem=1)), OLD, cache, tmp_path)
    crashed = begin(client, cache.prefix, NEW)
    steps: dict[str, Callable[[], None]] = {
        "begin": lambda: None,
        "write": lambda: put(crashed, "ghost", 2),
        "remove": lambda: remove(crashed, [f"{cache.prefix}:bob".encode()]),
        "finish": lambda: finish(crashed, 3),
    }
    for name, step in steps.items():
        step()
        if name == crash_after:
            break
    after = documents(ann=1, bob=1, dan=3)
    assert publish(always(after), NEW, cache, tmp_path).full
    assert served(client, cache.prefix) == expected(after)
    assert not publish(always(after), NEW, cache, tmp_path).full


@pytest.mark.parametrize("step", STEPS)
def test_emptying_redis_during_a_publication_stops_it(
    client: redis.Redis, cache: RedisSettings, tmp_path: Path, step: str
) -> None:
    """FLUSHALL, or a restart without data, between two steps: the error says to publish again, and that works."""
    publication = begin(client, cache.prefix, NEW)
    put(publication, "ann", 1)
    client.flushall()
    with pytest.raises(TransientError, match="Redis lost its data"):
        STEPS[step](publication)
    assert served(client, cache.prefix) == {}
    publish(always(documents(ann=1)), NEW, cache, tmp_path)
    assert served(client, cache.prefix) == expected(documents(ann=1))


def test_a_step_whose_answer_was_lost_is_done_once(
    client: redis.Redis, cache: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step is repeated because its response was lost: the publication is complete, and builds on the last."""
    last = begin(client, cache.prefix, OLD)
    finish(last, 0)
    execute, lose = Pipeline.execute, itertools.cycle([True, False])

    def execute_and_lose(pipeline: Pipeline) -> list[object]:
        answer = execute(pipeline)
        if next(lose):
            raise redis.WatchError  # what redis-py makes of a broken connection
        return answer

    monkeypatch.setattr(Pipeline, "execute", execute_and_lose)
    publication = begin(client, cache.prefix, NEW)
    assert publication.previous_id == last.id
    put(publication, "ann", 1)
    put(publication, "bob", 2)
    remove(publication, [f"{cache.prefix}:ann".encode()])
    finish(publication, 1)
    assert served(client, cache.prefix) == expected(documents(bob=2))
    state = read_state(client, cache.prefix)
    assert (state.publication_id, state.published, state.announced_id) == (publication.id, NEW, None)


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Run `act` after a step has read the hash and before its commands reach Redis."""
    check = publication_module._check

    def check_then_act(publication: Publication, state: PublicationState) -> None:
        check(publication, state)
        act()

    monkeypatch.setattr(publication_module, "_check", check_then_act)


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_paused_within_a_step_stops(
    client: redis.Redis, cache: RedisSettings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """B begins after A's check and before A's commands arrive: they have no effect."""
    older = begin(client, cache.prefix, OLD)
    put(older, "ann", 7)
    meanwhile(monkeypatch, lambda: begin(client, cache.prefix, NEW))
    with pytest.raises(FencedError, match="another publisher has taken over with version 2"):
        STEPS[step](older)
    assert served(client, cache.prefix) == expected(documents(ann=7))


@pytest.mark.parametrize("step", STEPS)
def test_a_connection_that_breaks_within_a_step_is_reopened(
    client: redis.Redis, cache: RedisSettings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The connection breaks once, just before the commands are sent: the step still completes."""
    publication = begin(client, cache.prefix, NEW)
    put(publication, "ann", 7)
    cuts = iter([True])
    meanwhile(monkeypatch, lambda: next(cuts, False) and client.client_kill_filter(_type="normal", skipme=False))
    STEPS[step](publication)
    expected_documents = {"write": documents(ann=-1), "remove": documents_of({}), "finish": documents(ann=7)}[step]
    assert served(client, cache.prefix) == expected(expected_documents)


def test_endless_contention_ends_in_an_error(
    client: redis.Redis, cache: RedisSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hash that changes between every read and write ends the publisher instead of looping forever."""
    publication = begin(client, cache.prefix, NEW)
    ticks = iter(range(1_000))
    key = publication_key(cache.prefix)
    meanwhile(monkeypatch, lambda: client.hset(key, "documents", next(ticks)))
    with pytest.raises(TransientError, match="kept changing"):
        put(publication, "ann", 1)
    assert served(client, cache.prefix) == {}


def test_chunks_may_not_be_skipped(client: redis.Redis, cache: RedisSettings) -> None:
    """A chunk that Redis has lost is detected by the next chunk but one, and by the finish."""
    publication = begin(client, cache.prefix, NEW)
    publication.chunks += 1
    with pytest.raises(TransientError, match="without some of the documents"):
        put(publication, "ann", 1)
    with pytest.raises(TransientError, match="without some of the documents"):
        finish(publication, 1)
    assert served(client, cache.prefix) == {}


def test_a_chunk_of_many_keys_is_written_and_removed(client: redis.Redis, cache: RedisSettings) -> None:
    """A chunk may contain many more keys than `publish` uses."""
    keys = [f"{cache.prefix}:{i}".encode() for i in range(20_001)]
    publication = begin(client, cache.prefix, NEW)
    write(publication, keys, [str(i).encode() for i in range(20_001)])
    assert served(client, cache.prefix) == {str(i): str(i) for i in range(20_001)}
    remove(publication, keys)
    assert served(client, cache.prefix) == {}


PROGRAM = ("begin", "ann", "bob", "finish")


@pytest.mark.parametrize("versions", [(1, 2), (2, 1), (1, 1)])
def test_no_interleaving_replaces_newer_by_older(
    client: redis.Redis, cache: RedisSettings, versions: tuple[int, int]
) -> None:
    """All 70 interleavings of two publishers: no document becomes older, and a finished publication is complete."""
    for positions in itertools.combinations(range(8), 4):
        client.delete(*client.keys(f"{cache.prefix}*") or ["nothing"])
        programs, running = (iter(PROGRAM), iter(PROGRAM)), {}
        for position in range(8):
            who = 0 if position in positions else 1
            before = served(client, cache.prefix)
            try:
                take_step(client, cache.prefix, next(programs[who]), versions[who], running, who)
            except FencedError:
                running.pop(who, None)
                assert served(client, cache.prefix) == before
            assert all(served(client, cache.prefix)[user] >= score for user, score in before.items())
        assert served(client, cache.prefix) in ({"ann": str(version), "bob": str(version)} for version in versions)
        assert read_state(client, cache.prefix).announced_id is None


def take_step(
    client: redis.Redis, prefix: str, step: str, version: int, running: dict[int, Publication], who: int
) -> None:
    if step == "begin":
        running[who] = begin(client, prefix, stamp(version))
    elif who not in running:
        return
    elif step == "finish":
        finish(running[who], 2)
        assert served(client, prefix) == {"ann": str(version), "bob": str(version)}
    else:
        write(running[who], [f"{prefix}:{step}".encode()], [str(version).encode()])
