"""Retractions and adjustments by an operator: events like any other, on the record, and counted once."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import pipelines.operate.operator_events as operate
from pipelines.backfill import backfill
from pipelines.cli import main
from pipelines.errors import KarmalakeError, UsageError
from pipelines.lake.tables import open_lake
from pipelines.operate.audit import audit
from pipelines.operate.erase import erase_without_documents
from pipelines.operate.operator_events import adjust, preview_adjustment, preview_retraction, retract
from pipelines.operate.verify import verify_index
from pipelines.refresh import rebuild_warehouse, refresh_warehouse
from pipelines.reputation.activation import activate
from pipelines.reputation.policy_file import load_policy, parse_policy
from pipelines.reputation.warehouse import Warehouse
from pipelines.settings import Settings
from pipelines.sources.files import ColumnMapping
from tests.draining import assert_verified, drain_all, query, send, valid_records, with_ingest

_WHY = "fake rating, ticket 81"
_MAPPING = ColumnMapping(
    "user", "t", "iso", None, "action", (("rating", "rating"), ("target_event_id", "target")), "id"
)
_ROWS = [
    ("r1", "ada", "UserRated", 1, "5", None),
    ("r2", "ada", "UserRated", 2, "-7", None),
    ("x1", "ada", "RatingRetracted", 3, None, "r1"),
    ("s1", "max", "AccountSuspended", 1, None, None),
    ("m1", "max", "UserRated", 2, "3", None),
    ("g1", "gone", "UserRated", 1, "3", None),
    ("l1\nscore 0 -> 9", "two\nlines", "UserRated", 1, "3", None),
]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lake(tmp_path: Path) -> Settings:
    """Return settings without a bus, with a lake of these events."""
    settings = Settings(data_dir=tmp_path / "data")
    rows = [(*row[:3], f"2026-03-0{row[3]}T12:00:00Z", *row[4:]) for row in _ROWS]
    backfill(settings, pl.DataFrame(rows, ["id", "user", "action", "t", "rating", "target"], orient="row"), _MAPPING)
    return settings


def scores(settings: Settings) -> dict[str, Any]:
    with Warehouse(settings.warehouse_path) as warehouse:
        return dict(warehouse.reputation().select("user_id", "all_time_score").rows())


@pytest.mark.slow
def test_a_retraction_is_previewed_and_then_an_event_like_any_other(lake: Settings) -> None:
    """It names its target, the reason and the operator; a repeated command does nothing; the lake adds up."""
    found = preview_retraction(lake, "r2", _WHY, "sue")
    assert (found.user_id, found.reason, found.score_before, found.score_after) == ("ada", "retraction", -7, 0)
    assert found.target is not None
    assert (found.target.action_type, found.is_recorded) == ("UserRated", False)
    assert query(lake, "SELECT count(*) FROM events") == [(len(_ROWS),)]
    done, record = retract(lake, "r2", _WHY, "sue")
    assert record is not None
    assert (done.event_id, record.source, record.total("accepted")) == (found.event_id, "operator", 1)
    said = {"target_event_id": "r2", "why": _WHY, "operator": "sue"}
    stored = "SELECT event_id, user_id, action_type, metadata FROM events WHERE metadata['operator'] = 'sue'"
    assert query(lake, stored) == [(done.event_id, "ada", "RatingRetracted", said)]
    again, nothing = retract(lake, "r2", "another reason", "tom")
    assert (again.is_recorded, again.score_before, again.score_after, nothing) == (True, 0, 0, None)
    assert query(lake, "SELECT count(*) FROM events") == [(len(_ROWS) + 1,)]
    assert_verified(lake)
    assert verify_index(lake).passed
    refresh_warehouse(lake)
    with Warehouse(lake.warehouse_path) as warehouse:
        related = warehouse.explain("ada").filter(pl.col("event_id").is_in(["r2", done.event_id]))
    assert related.select("reason", "related_event_id").rows() == [("retracted", done.event_id), ("retraction", "r2")]


@pytest.mark.slow
def test_adjustments_add_up_and_are_retracted(lake: Settings) -> None:
    """Each identity counts once; refreshed and rebuilt scores are the same; an adjustment can be retracted."""
    rebuild_warehouse(lake)
    given, first = adjust(lake, "ada", "5", "kept waiting", "sue")
    _, again = adjust(lake, "ada", Decimal("5.00"), "kept waiting", "tom")
    _, second = adjust(lake, "ada", "5", "kept waiting", "sue", identity="ticket 82")
    taken, third = adjust(lake, "ada", "-100", "abuse", "sue")
    assert [record is None for record in (first, again, second, third)] == [False, True, False, False]
    assert (taken.score_before, taken.score_after, taken.reason) == (-7 + 10, -7 + 10 - 100, "granted")
    with pytest.raises(UsageError, match="'ticket 82' of user 'ada' is recorded with 5 points: name another identity"):
        adjust(lake, "ada", "6", "kept waiting", "sue", identity="ticket 82")
    retract(lake, given.event_id, "wrong user", "sue")
    refresh_warehouse(lake)
    refreshed = scores(lake)
    assert refreshed["ada"] == -7 + 5 - 100
    rebuild_warehouse(lake)
    assert scores(lake) == refreshed
    assert_verified(lake)


@pytest.mark.slow
def test_points_that_a_suspended_user_does_not_get(lake: Settings) -> None:
    """The preview says the reason, and that the score stays."""
    found = preview_adjustment(lake, "max", "5", "kept waiting")
    assert (found.reason, found.score_before, found.score_after) == ("suspended", 0, 0)


@pytest.mark.slow
def test_points_that_the_policy_does_not_allow(lake: Settings) -> None:
    """The sentence says what is allowed, and nothing is committed."""
    refusals = {
        "nan": "'nan' is not a plain decimal number: write points like 5 or -2.5",
        "inf": "'inf' is not a plain decimal number",
        "1e3": "'1e3' is not a plain decimal number",
        "9" * 40: "is not a plain decimal number",
        "0.5": "0.5 has 1 digits after the point: the policy allows 0",
        "101": "101 is out of bounds: the policy allows adjustments from -100 to 100",
        "-0.0": "0 points change nothing",
    }
    for points, message in refusals.items():
        with pytest.raises(UsageError, match=message):
            adjust(lake, "ada", points, _WHY)
    assert query(lake, "SELECT count(*) FROM events") == [(len(_ROWS),)]


@pytest.mark.slow
def test_what_cannot_be_retracted_or_adjusted(lake: Settings) -> None:
    """Unknown, erased, already retracted, a retraction, a status event, no reason, no rule: each has its sentence."""
    erase_without_documents(lake, ["gone"])
    refusals: list[tuple[Callable[[], object], type[KarmalakeError], str]] = [
        (lambda: retract(lake, "r9", _WHY), KarmalakeError, "the lake holds no event 'r9': `karmalake explain USER`"),
        (lambda: retract(lake, "g1", _WHY), UsageError, "the event 'g1' was of a user who was erased"),
        (lambda: retract(lake, "r1", _WHY), UsageError, "'r1' of user 'ada' is already retracted, by the event 'x1'"),
        (lambda: retract(lake, "x1", _WHY), UsageError, "'x1' of user 'ada' is a retraction, which cannot be taken"),
        (lambda: retract(lake, "s1", _WHY), UsageError, "'s1' of user 'max' is a status event, which cannot be"),
        (lambda: retract(lake, "r2", " "), UsageError, r"give the reason \(--why\)"),
        (lambda: retract(lake, "r2", "\udcff"), UsageError, r"the reason \(--why\) is not valid UTF-8"),
        (lambda: retract(lake, "r2", "x" * 70_000), UsageError, "the contract rejects this event: metadata is longer"),
        (lambda: retract(lake, "r2", _WHY, " "), UsageError, r"give the operator \(--operator\)"),
        (lambda: adjust(lake, "nobody", "5", _WHY), KarmalakeError, "the lake holds no event of user 'nobody'"),
        (lambda: adjust(lake, "gone", "5", _WHY), UsageError, "user 'gone' was erased"),
        (lambda: adjust(lake, "ada", "5", ""), UsageError, r"give the reason \(--why\)"),
        (lambda: adjust(lake, "ada", "5", _WHY, identity=""), UsageError, r"give the identity \(--id\)"),
    ]
    for act, error, message in refusals:
        with pytest.raises(error, match=message):
            act()
    activate(open_lake(lake.lake_root), parse_policy('name = "bare"\nversion = "7"\n'))
    for act in (lambda: retract(lake, "r2", _WHY), lambda: adjust(lake, "ada", "5", _WHY)):
        with pytest.raises(UsageError, match="the policy in force, bare 7, does not say how, so"):
            act()
    assert query(lake, "SELECT count(*) FROM events WHERE user_id <> 'gone'") == [(len(_ROWS) - 1,)]


@pytest.mark.slow
@pytest.mark.parametrize("user", ["ada", "max"])
def test_an_event_id_that_a_producer_took(lake: Settings, user: str) -> None:
    """An event with its event_id does not prevent a retraction: the retraction has the next one, and counts once."""
    taken = preview_retraction(lake, "r2", _WHY).event_id
    row = (taken, user, "UserRated", "2026-03-05T12:00:00Z", "1", None)
    backfill(lake, pl.DataFrame([row], ["id", "user", "action", "t", "rating", "target"], orient="row"), _MAPPING)
    done, record = retract(lake, "r2", _WHY)
    assert record is not None
    assert (done.event_id != taken, done.reason, done.score_after - done.score_before) == (True, "retraction", 7)
    again, nothing = retract(lake, "r2", _WHY)
    assert (again.event_id, again.is_recorded, nothing) == (done.event_id, True, None)


def test_an_event_of_a_clock_that_is_ahead(lake: Settings) -> None:
    """Its retraction is previewed as of its time: "no effect" would be wrong then, and it is retracted once."""
    time = f"{datetime.now(UTC) + timedelta(hours=20):%Y-%m-%dT%H:%M:%SZ}"
    row = ("ahead", "ada", "UserRated", time, "5", None)
    backfill(lake, pl.DataFrame([row], ["id", "user", "action", "t", "rating", "target"], orient="row"), _MAPPING)
    found, _ = retract(lake, "ahead", _WHY, "sue")
    assert (found.reason, found.score_after - found.score_before) == ("retraction", -5)
    assert preview_retraction(lake, "ahead", _WHY, "sue").is_recorded


@pytest.mark.slow
def test_a_policy_that_reads_retractions_elsewhere(lake: Settings) -> None:
    """A retraction that the policy in force does not read is made again, and counts once."""
    retract(lake, "r2", _WHY)
    rules = '[retraction]\nactions = ["RatingRetracted"]\ntarget = "event"\n[actions.UserRated]\npoints = 2\n'
    activate(open_lake(lake.lake_root), parse_policy(f'name = "other"\nversion = "1"\n{rules}'))
    done, record = retract(lake, "r2", _WHY)
    assert (done.reason, done.score_after - done.score_before, record is None) == ("retraction", -2, False)
    assert retract(lake, "r2", _WHY)[1] is None
    activate(open_lake(lake.lake_root), parse_policy(f'name = "why"\nversion = "1"\n{rules.replace("event", "why")}'))
    with pytest.raises(UsageError, match="reads the metadata key 'why', which holds the operator's words: rename it"):
        retract(lake, "r2", _WHY)


@pytest.mark.slow
def test_the_clock_of_the_second_operator_is_behind(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repeated command shows the event that was recorded, with its time."""
    done, _ = retract(lake, "r2", _WHY)

    class Behind(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # pyright: ignore[reportIncompatibleMethodOverride]
            return datetime.now(tz) - timedelta(hours=1)

    monkeypatch.setattr(operate, "datetime", Behind)
    again = preview_retraction(lake, "r2", _WHY)
    assert (again.is_recorded, again.reason, again.score_after) == (True, "retraction", 0)
    assert again.event["event_time"] == done.event["event_time"]


def test_a_machine_account_without_a_name(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says who, so the operator must be named."""

    def unknown() -> str:
        raise OSError("no username set in the environment")

    monkeypatch.setattr(operate.getpass, "getuser", unknown)
    with pytest.raises(UsageError, match="say who you are with --operator"):
        retract(lake, "r2", _WHY)


@pytest.mark.slow
def test_two_commands_at_once_count_once(lake: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later commit finds the event_id, and says so; the points are those of the first (`once`)."""
    late = preview_adjustment(lake, "ada", "5", _WHY)
    adjust(lake, "ada", "5", _WHY)
    monkeypatch.setattr(operate, "preview_adjustment", lambda *_: late)
    with pytest.raises(KarmalakeError, match="was not added: while this command ran, another recorded the same"):
        adjust(lake, "ada", "5", _WHY)
    rebuild_warehouse(lake)
    assert scores(lake)["ada"] == -2
    assert_verified(lake)


def test_events_of_an_operator_are_audited_beside_a_topic(settings: Settings) -> None:
    """Ingest goes on after them; nothing is lost or duplicated, in the lake or against the topic (`nothing-lost`)."""
    settings = with_ingest(settings)
    send(settings, valid_records(range(20), "UserRated"))
    drain_all(settings)
    retract(settings, "e-3", _WHY)
    adjust(settings, "u-1", "5", _WHY)
    send(settings, valid_records(range(20, 30), "UserRated"))
    drain_all(settings)
    found = audit(settings)
    assert (found.passed, found.events, sum(each.accepted for each in found.partitions)) == (True, 32, 30)
    assert_verified(settings)


@pytest.fixture
def run(lake: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command on the lake, and returns exit code, output and errors."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(lake.data_dir))

    def karmalake(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["karmalake", *arguments])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0), *capsys.readouterr()

    return karmalake


@pytest.mark.slow
def test_the_commands(run: Run, lake: Settings) -> None:
    """Both have a dry run; points may be negative; explain shows the retraction and what it retracted."""
    code, out, _ = run("adjust", "ada", "-5", "--why", "abuse", "--dry-run")
    assert code == 0
    assert "-7 -> -12" in out
    assert out.endswith("nothing was changed\n")
    code, out, _ = run("retract", "r2", "--why", _WHY, "--operator", "sue")
    assert code == 0
    assert "retracts  r2: UserRated, 2026-03-02 12:00:00Z" in out
    assert "`karmalake refresh` or a running stream updates the scores" in out
    assert "nothing to do: an earlier command recorded this" in run("retract", "r2", "--why", _WHY)[1]
    explained = run("explain", "ada")[1]
    ((identity,),) = query(lake, "SELECT event_id FROM events WHERE metadata['operator'] = 'sue'")
    assert f"retracted by {identity}" in explained
    assert "retraction of r2" in explained
    assert f"  {identity} by sue: {_WHY}\n" in explained
    assert "retracted by x1" in explained
    code, _, err = run("adjust", "ada", "5", "--why", "x", "--wy", "y")
    assert (code, "unexpected extra argument" in err) == (2, True)
    warned = run("adjust", "max", "5", "--why", "kept waiting")[2]
    assert "the event changes no score: its reason is suspended" in warned
    out = run("retract", "l1\nscore 0 -> 9", "--why", _WHY, "--dry-run")[1].splitlines()
    assert [line.split()[0] for line in out] == ["user", "retracts", "event", "reason", "score", "nothing"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decayed-karma", "stackexchange-2018"])
def test_policies_that_decay_or_have_no_retraction(lake: Settings, name: str) -> None:
    """Decaying points begin in full; a policy without retractions still adjusts."""
    activate(open_lake(lake.lake_root), load_policy(name))
    found = preview_adjustment(lake, "ada", "50", _WHY)
    assert (
        round(found.score_after - found.score_before) == 50 if name == "stackexchange-2018" else found.score_after > 0
    )
    if name == "stackexchange-2018":
        with pytest.raises(UsageError, match="nothing can be retracted: give it"):
            retract(lake, "r2", _WHY)
    assert datetime.now(UTC) - found.event["event_time"][0].as_py() < timedelta(hours=1)
