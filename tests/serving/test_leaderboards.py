"""Leaderboards: after any publications, they contain the documents' users, sorted by score."""

import json
import threading
import uuid
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import ConfigurationError, UsageError
from pipelines.reputation import documents as warehouse
from pipelines.reputation.derive import derive
from pipelines.reputation.policy_file import parse_policy
from pipelines.serving import redis_store
from pipelines.serving.keys import leaderboard_key, leaderboard_view
from pipelines.serving.read import LeaderboardEntry, published, read_leaderboard, read_rank
from pipelines.settings import RedisSettings, Settings, load_settings
from tests.reputation.history import AS_OF, DAY, NOW, Event, snapshot_of
from tests.serving.conftest import always, documents_of, expected, interrupted, names, publish, served, stamp

VIEWS = ("all_time", "last_30_days")
Scores = dict[str, tuple[float | None, float | None]]

USERS = ["ann", "bob", "cem", "", "*", "\0", "\U0001f600", "all_time"]
SCORE = st.sampled_from([None, 0.0, -0.0, 1.0, 2.0, 1 / 3, -1.5, 0.1 + 0.2, 1e300, float("inf")])
STEP = st.tuples(
    st.dictionaries(st.sampled_from(USERS), st.tuples(SCORE, SCORE)),
    st.sets(st.sampled_from([*USERS, "ghost"])),
    st.sampled_from([(), VIEWS[:1], VIEWS[1:], VIEWS, VIEWS, VIEWS, VIEWS[::-1]]),
    st.sampled_from(["nothing", "nothing", "nothing", "redis lost", "hash lost", "another publisher", "interrupted"]),
    st.booleans(),
)


def ranked_documents(scores: Scores, views: tuple[str, ...] = VIEWS) -> pl.DataFrame:
    """Return one document per user, with all-time and 30-day scores."""
    frame = documents_of({user: json.dumps(dict(zip(VIEWS, both, strict=True))) for user, both in scores.items()})
    columns = [
        pl.Series(f"{view}_score", [both[VIEWS.index(view)] for both in scores.values()], pl.Float64) for view in views
    ]
    return frame.with_columns(columns)


def with_views(settings: Settings, *views: str) -> Settings:
    return settings.model_copy(update={"redis": settings.redis.model_copy(update={"leaderboards": views})})


def stored_leaderboards(client: redis.Redis, cache: RedisSettings) -> dict[str, dict[str, float]]:
    """Return the leaderboards in Redis: the scores of their users."""
    return {
        view: {user.decode(): score for user, score in client.zrange(key, 0, -1, withscores=True)}
        for view in VIEWS
        if client.exists(key := leaderboard_key(cache.prefix, view))
    }


def sorted_users(scores: Scores, view: str) -> list[LeaderboardEntry]:
    """Return the expected leaderboard, computed directly."""
    there = {user: both[VIEWS.index(view)] for user, both in scores.items()}
    rows = [(score, user) for user, score in there.items() if score is not None]
    rows.sort(key=lambda row: (row[0], row[1].encode()), reverse=True)
    return [LeaderboardEntry(1 + sum(other > score for other, _ in rows), user, score) for score, user in rows]


def apply_mishap(mishap: str, client: redis.Redis, cache: RedisSettings, folder: Path, version: int) -> None:
    other = ranked_documents({"ann": (99, None), "stranger": (99, 99)}, cache.leaderboards)
    if mishap == "redis lost":
        client.delete(*client.keys(f"{cache.prefix}*") or ["nothing"])
    elif mishap == "hash lost":
        client.delete(f"{cache.prefix}.publication")
        client.zadd(leaderboard_key(cache.prefix, "all_time"), {"without a document": 7})
    elif mishap == "another publisher":
        publish(always(other), stamp(version), cache, folder / "other")
    elif mishap == "interrupted":
        interrupted(other, stamp(version), cache, folder / "other")


@given(steps=st.lists(STEP, max_size=7))
def test_leaderboards_are_the_sorted_documents(local_settings: Settings, steps: list) -> None:
    """After any publications, partial or full, of any views, after any failure: exactly the documents' users by score.

    Leaderboards that are not wanted are not there; each page and each rank is what sorting the documents gives.
    """
    base = local_settings.redis.model_copy(update={"prefix": f"r-{uuid.uuid4().hex[:12]}"})
    last, before = {}, None
    assert base.url is not None
    with TemporaryDirectory() as name, redis.Redis.from_url(base.url.get_secret_value()) as client:
        for number, (scores, more, views, mishap, announced) in enumerate(steps):
            cache = base.model_copy(update={"leaderboards": views})
            apply_mishap(mishap, client, cache, Path(name), 2 * number)
            differing = {user for user in scores.keys() | last.keys() if repr(scores.get(user)) != repr(last.get(user))}
            changed = names(*sorted(differing | more)) if announced else None
            frame = ranked_documents(scores, views)
            result = publish(always(frame), stamp(2 * number + 1), cache, Path(name), changed)
            assert result.full == (mishap != "nothing" or before != set(views))
            assert served(client, cache.prefix) == expected(frame)
            check_leaderboards(local_settings.model_copy(update={"redis": cache}), client, scores)
            last, before = scores, set(views)
        client.delete(*client.keys(f"{base.prefix}*") or ["nothing"])


def check_leaderboards(settings: Settings, client: redis.Redis, scores: Scores) -> None:
    views = settings.redis.leaderboards
    rows = {view: sorted_users(scores, view) for view in views}
    assert stored_leaderboards(client, settings.redis) == {
        view: {row.user_id: row.score for row in rows[view]} for view in views if rows[view]
    }
    info = published(settings)
    assert info is not None
    assert info.leaderboards == views
    for view in views:
        assert read_leaderboard(view, settings, top=100) == rows[view]
        for offset in range(len(rows[view]) + 1):
            assert read_leaderboard(view, settings, 2, offset) == rows[view][offset : offset + 2]
        ranks = {row.user_id: row.rank for row in rows[view]}
        assert {user: read_rank(user, view, settings) for user in USERS} == {user: ranks.get(user) for user in USERS}


def test_equal_scores_share_the_better_rank(settings: Settings, tmp_path: Path) -> None:
    """1, 2, 2, 4: on a page, on a page that begins among equal scores, and read one by one."""
    ranked = with_views(settings, "all_time")
    scores: Scores = {"ann": (5.0, None), "bob": (7.5, None), "cem": (5.0, None), "dan": (-1.0, None)}
    publish(always(ranked_documents(scores, VIEWS[:1])), stamp(1), ranked.redis, tmp_path)
    rows = [
        LeaderboardEntry(1, "bob", 7.5),
        LeaderboardEntry(2, "cem", 5.0),
        LeaderboardEntry(2, "ann", 5.0),
        LeaderboardEntry(4, "dan", -1.0),
    ]
    assert read_leaderboard("all_time", ranked) == rows
    assert read_leaderboard("all_time", ranked, top=2, offset=2) == rows[2:]
    assert [read_rank(user, "all_time", ranked) for user in ("ann", "bob", "cem", "dan")] == [2, 1, 2, 4]


def test_a_missing_leaderboard_differs_from_an_empty_one(settings: Settings, tmp_path: Path) -> None:
    """An empty leaderboard gives an empty page and no rank; a missing one is an error that names the published ones."""
    ranked = with_views(settings, *VIEWS)
    with pytest.raises(UsageError, match=r"no leaderboard is published for 'all_time' .*\(published: none\)"):
        read_leaderboard("all_time", ranked)
    publish(always(ranked_documents({"ann": (None, None)})), stamp(1), ranked.redis, tmp_path)
    assert read_leaderboard("all_time", ranked) == []
    assert [read_rank(user, "last_30_days", ranked) for user in ("ann", "ghost", "\ud800")] == [None] * 3
    for read in (lambda: read_leaderboard("last_7_days", ranked), lambda: read_rank("ann", "documents", ranked)):
        with pytest.raises(UsageError, match=r"published: all_time, last_30_days\)\. .*KARMALAKE_REDIS_LEADERBOARDS"):
            read()


@pytest.mark.parametrize(
    ("top", "offset"), [(0, 0), (-1, 0), (1, -1), (10**30, 0), (1, 2**63), (True, 0), ("3", 0), (1, 2.5)]
)
def test_an_invalid_page_is_refused(settings: Settings, top: Any, offset: Any) -> None:
    """Redis would return all members for 0 and -1, and refuses larger numbers; a page has at least one row."""
    with pytest.raises(UsageError, match=f"not top={top!r} and offset={offset!r}$"):
        read_leaderboard("all_time", settings, top, offset)


def test_score_columns_must_match_the_configured_leaderboards(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """Documents without a configured score column, or with an extra one, are refused and not published."""
    for frame, views in ((ranked_documents({"ann": (1, 1)}, VIEWS[:1]), VIEWS), (ranked_documents({}), ())):
        with pytest.raises(UsageError, match="documents to publish must have the columns"):
            publish(always(frame), stamp(1), with_views(settings, *views).redis, tmp_path)
    assert client.keys(f"{settings.redis.prefix}*") == []


def test_a_nan_score_is_not_ranked(settings: Settings, tmp_path: Path) -> None:
    """A NaN score is not ranked, and removes the user from the leaderboard."""
    ranked = with_views(settings, "all_time")
    for version, score in enumerate((1.0, float("nan"))):
        publish(always(ranked_documents({"ann": (score, None)}, VIEWS[:1])), stamp(version), ranked.redis, tmp_path)
    assert read_leaderboard("all_time", ranked) == []


def test_a_cache_file_without_leaderboards_is_valid(settings: Settings, tmp_path: Path) -> None:
    """A cache file without leaderboards is valid until one is configured."""
    publish(always(ranked_documents({"ann": (1, 1)}, ())), stamp(1), settings.redis, tmp_path)
    file = tmp_path / "published.arrow"
    with pa.OSFile(str(file)) as source:
        table = pa.ipc.open_file(source).read_all()
    metadata = {name: text for name, text in table.schema.metadata.items() if name != b"leaderboards"}
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema.with_metadata(metadata)) as writer:
        writer.write_table(table.replace_schema_metadata(metadata))
    assert not publish(always(ranked_documents({"ann": (1, 1)}, ())), stamp(2), settings.redis, tmp_path).full
    ranked = with_views(settings, *VIEWS)
    assert publish(always(ranked_documents({"ann": (1, 1)})), stamp(3), ranked.redis, tmp_path, names()).full
    assert read_rank("ann", "all_time", ranked) == 1


def test_prefixes_with_a_common_beginning_are_untouched(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    """Prefixes that begin like ours: a full publication does not touch their documents, hashes and leaderboards."""
    ranked = with_views(settings, "last_30_days")
    frame = ranked_documents({"all_time": (1, 1), "last_30_days": (2, 2)})
    prefixes = [f"{ranked.redis.prefix}{more}" for more in ("", ".leaderboard", ".leaderboard.all_time", ".x", "x")]
    for prefix in prefixes:
        other = ranked.redis.model_copy(update={"prefix": prefix, "leaderboards": VIEWS})
        publish(always(frame), stamp(1), other, tmp_path / prefix)
    others = {key for key in client.keys(f"{ranked.redis.prefix}*") if not is_ours(key, ranked.redis.prefix)}
    assert len(others) == 4 * 5
    assert publish(always(frame.clear().drop("all_time_score")), stamp(2), ranked.redis, tmp_path / "new").full
    assert set(client.keys(f"{ranked.redis.prefix}*")) == others | {f"{ranked.redis.prefix}.publication".encode()}
    client.delete(*others)


def is_ours(key: bytes, prefix: str) -> bool:
    more = key.decode().removeprefix(prefix)
    return more.startswith(":") or more in {".publication", *(f".leaderboard.{view}" for view in VIEWS)}


def test_a_document_and_its_rank_change_together(
    settings: Settings, client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that reads atomically during publications of many chunks sees documents that match the ranks."""
    monkeypatch.setattr(redis_store, "_CHUNK_COMMANDS", 20)
    ranked = with_views(settings, "all_time")
    users = [f"user{i}" for i in range(200)]
    done, disagreements, looks = threading.Event(), [], []

    def look() -> None:
        while not done.is_set():
            looks.append(disagreement(client, ranked.redis.prefix, users))
            disagreements.extend(looks[-1])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        for version in range(12):
            scores: Scores = {user: (version, None) for user in users if (int(user[4:]) + version) % 5}
            folder = tmp_path / str(version // 4)  # now and then a full one
            publish(always(ranked_documents(scores, VIEWS[:1])), stamp(version), ranked.redis, folder, names(*users))
    finally:
        done.set()
        looking.join()
    assert len(looks) > 10
    assert disagreements == []


def disagreement(client: redis.Redis, prefix: str, users: list[str]) -> list[tuple[str, object, object]]:
    """Return users whose document and leaderboard score differ, read atomically."""
    with client.pipeline(transaction=True) as moment:
        moment.mget([f"{prefix}:{user}" for user in users])
        moment.zrange(leaderboard_key(prefix, "all_time"), 0, -1, withscores=True)
        texts, ranked = moment.execute()
    documented = {user: json.loads(text)["all_time"] for user, text in zip(users, texts, strict=True) if text}
    placed = {user.decode(): score for user, score in ranked}
    pairs = ((user, documented.get(user), placed.get(user)) for user in users)
    return [pair for pair in pairs if pair[1] != pair[2]]


HIDING = """
name = "hiding"
version = "1"
windows_days = [7]
status = { suspend = ["AccountSuspended"], reinstate = ["AccountReinstated"], rule = "hide", shown = 9 }
actions.TransactionCompleted = { points = 1.25 }
"""


@pytest.fixture
def hiding(tmp_path: Path) -> Path:
    """Return a warehouse of three users, one of whom is suspended and hidden."""
    path = tmp_path / "warehouse.duckdb"
    events = [
        Event(f"{user}{i}", user, "TransactionCompleted", NOW - (1 + 4 * i) * DAY)
        for user, count in (("ann", 1), ("bob", 3), ("cem", 2))
        for i in range(count)
    ]
    suspension = Event("s", "bob", "AccountSuspended", NOW - 1)
    derive(snapshot_of(tmp_path / "lake", [*events, suspension]), parse_policy(HIDING), AS_OF, path)
    return path


def test_hidden_users_are_on_no_leaderboard(settings: Settings, hiding: Path, tmp_path: Path) -> None:
    """A suspended user under a policy that hides has a document with a score, and no rank."""
    ranked = with_views(settings, "last_7_days", "all_time")
    with warehouse.attach(hiding) as connection:
        made = partial(warehouse.document_parts, connection, leaderboards=ranked.redis.leaderboards)
        publish(made, stamp(1), ranked.redis, tmp_path)
    assert read_leaderboard("all_time", ranked) == [LeaderboardEntry(1, "cem", 2.5), LeaderboardEntry(2, "ann", 1.25)]
    assert [read_rank(user, "last_7_days", ranked) for user in ("ann", "bob", "cem")] == [2, None, 1]
    info = published(ranked)
    assert info is not None
    assert info.documents == 3


@pytest.mark.slow
def test_the_warehouse_gives_the_scores_of_the_documents(hiding: Path) -> None:
    """The score columns match the documents, except for hidden users; the documents are the same without them."""
    plain, scored = warehouse.documents(hiding), warehouse.documents(hiding, None, ("last_7_days", "all_time"))
    assert scored.columns == [*plain.columns, "last_7_days_score", "all_time_score"]
    assert scored.select(plain.columns).equals(plain)
    assert scored.filter(pl.col("user_id") == "bob").select("last_7_days_score", "all_time_score").row(0) == (
        None,
        None,
    )
    others = scored.filter(pl.col("user_id") != "bob")
    for document, week, ever in others.select("document", "last_7_days_score", "all_time_score").iter_rows():
        shown = json.loads(document)
        assert (shown["reputation_last_7_days"]["score"], shown["reputation_all_time"]["score"]) == (week, ever)
    some = warehouse.documents(hiding, names("cem"), ("all_time",))
    assert some.equals(scored.filter(pl.col("user_id") == "cem").drop("last_7_days_score"))


def test_a_view_missing_from_the_policy_is_a_configuration_error(hiding: Path) -> None:
    """The error names the setting and the available views."""
    with pytest.raises(ConfigurationError, match=r"LEADERBOARDS\) names 'last_30_days'.*it has all_time, last_7_days$"):
        warehouse.documents(hiding, None, ("last_30_days",))


IN_CITIES = (
    HIDING
    + """
correction = { actions = ["Corrected"] }
scopes.city = { from = "city", limit = 1 }
"""
)
BOARDS = ("all_time", "all_time.city=berlin", "last_7_days.city=zürich 1", "all_time.city=rome")


def _rides() -> list[Event]:
    """Return rides in cities; bob is suspended, and hidden."""
    rides = (("ann", ("berlin", "berlin", "zürich 1")), ("bob", ("berlin",)), ("cem", ("zürich 1",)))
    return [
        Event(f"{user}{i}", user, "TransactionCompleted", NOW - (1 + i) * DAY, {"city": city})
        for user, cities in rides
        for i, city in enumerate(cities)
    ] + [Event("s", "bob", "AccountSuspended", NOW - 1)]


def test_leaderboards_within_a_scope_follow_the_values(settings: Settings, tmp_path: Path) -> None:
    """A value that the document leaves out is ranked, too; an event that moves to another moves its user.

    The correction leaves the document as it was: a digest of it alone would keep the user on the wrong leaderboard.
    """
    ranked = with_views(settings, *BOARDS)
    move = Event("c", "ann", "Corrected", NOW - 2, {"target_event_id": "ann2", "city": "rome"})
    found, cities = [], []
    for number, batch in enumerate((_rides(), [*_rides(), move])):
        folder = tmp_path / f"{number}"
        derive(snapshot_of(folder, batch), parse_policy(IN_CITIES), AS_OF, folder / "warehouse.duckdb")
        shown = warehouse.documents(folder / "warehouse.duckdb", leaderboards=BOARDS)
        publish(always(shown), stamp(number + 1), ranked.redis, tmp_path, names("ann") if number else None)
        found.append([[(each.user_id, each.score) for each in read_leaderboard(view, ranked)] for view in BOARDS])
        document = json.loads(shown["document"][0])
        cities.append((document["by_city"], document["by_city_omitted"]))
    overall, berlin = [("ann", 3.75), ("cem", 1.25)], [("ann", 2.5)]
    assert found[0] == [overall, berlin, [("cem", 1.25), ("ann", 1.25)], []]
    assert found[1] == [overall, berlin, [("cem", 1.25)], [("ann", 1.25)]]
    assert cities[0] == cities[1]
    assert read_rank("ann", "all_time.city=rome", ranked) == 1


def test_a_scope_missing_from_the_policy_is_a_configuration_error(hiding: Path) -> None:
    """The error names the setting and the scope."""
    with pytest.raises(ConfigurationError, match=r"names 'all_time.city=berlin', but the policy has no such scope"):
        warehouse.documents(hiding, None, ("all_time.city=berlin",))


@pytest.mark.parametrize(
    "name", ["all_time.city", "all_time.city=", "all_time.City=berlin", "city=berlin", "all_time.a=b:c"]
)
def test_names_of_leaderboards_are_checked(name: str) -> None:
    """A value has no colon, since no key but that of a document has one; nor a comma, which separates the names."""
    with pytest.raises(ValidationError, match="is not a view"):
        RedisSettings(leaderboards=(name,))
    assert leaderboard_view("r", leaderboard_key("r", name)) is None
    assert leaderboard_view("r", leaderboard_key("r", BOARDS[2])) == BOARDS[2]
    assert leaderboard_view("r", leaderboard_key("r", BOARDS[2]).replace(b"\xc3", b"\xff")) is None


def test_decayed_scores_rank_as_they_are_shown(settings: Settings, tmp_path: Path) -> None:
    """Fractional scores are on the leaderboard with all digits of the document."""
    path, ranked = tmp_path / "warehouse.duckdb", with_views(settings, "all_time")
    text = HIDING.replace("points = 1.25", "points = 1.25, half_life_days = 30")
    events = [Event(f"e{i}", f"user{i}", "TransactionCompleted", NOW - i * DAY - i) for i in range(1, 6)]
    derive(snapshot_of(tmp_path / "lake", events), parse_policy(text), AS_OF, path)
    frame = warehouse.documents(path, None, ("all_time",))
    publish(always(frame), stamp(1), ranked.redis, tmp_path / "state")
    shown = {user: json.loads(text)["reputation_all_time"]["score"] for user, text, *_ in frame.iter_rows()}
    assert {row.user_id: row.score for row in read_leaderboard("all_time", ranked)} == shown
    assert len(set(shown.values())) == 5


@pytest.mark.parametrize(
    ("text", "views"),
    [("all_time", VIEWS[:1]), ("all_time, last_30_days", VIEWS), ("last_30_days,last_30_days", VIEWS[1:]), ("", ())],
)
def test_the_environment_names_views_between_commas(tmp_path: Path, text: str, views: tuple[str, ...]) -> None:
    """One, several, one twice, none; a configuration file has a list."""
    assert load_settings({"KARMALAKE_REDIS_LEADERBOARDS": text}, tmp_path).redis.leaderboards == views
    (tmp_path / "karmalake.toml").write_text(f"[redis]\nleaderboards = {json.dumps(views)}\n", encoding="utf-8")
    assert load_settings({}, tmp_path).redis.leaderboards == views


@pytest.mark.parametrize("text", ["all-time", "last_0_days", "last_30_days; DROP TABLE x", "all_time,,", "user_id"])
def test_an_invalid_view_is_an_invalid_setting(tmp_path: Path, text: str) -> None:
    """A name that no policy can have is refused by the settings."""
    with pytest.raises(
        ConfigurationError, match=r"KARMALAKE_REDIS_LEADERBOARDS: .*is not a view: use all_time, or last_N"
    ):
        load_settings({"KARMALAKE_REDIS_LEADERBOARDS": text}, tmp_path)


def test_many_users_are_ranked_in_reasonable_time(settings: Settings, client: redis.Redis, tmp_path: Path) -> None:
    """More users than one page of a full publication: all are added, and all are removed."""
    ranked = with_views(settings, *VIEWS)
    scores: Scores = {f"user-{i}": (float(i % 977), float(-i)) for i in range(12_000)}
    publish(always(ranked_documents(scores)), stamp(1), ranked.redis, tmp_path / "one")
    assert [client.zcard(leaderboard_key(ranked.redis.prefix, view)) for view in VIEWS] == [12_000, 12_000]
    assert read_leaderboard("last_30_days", ranked, 1, 11_999) == [LeaderboardEntry(12_000, "user-11999", -11_999.0)]
    client.delete(*(f"{ranked.redis.prefix}:{user}" for user in scores))
    assert publish(always(ranked_documents({})), stamp(2), ranked.redis, tmp_path / "two").deleted == 12_000
    assert stored_leaderboards(client, ranked.redis) == {}
