"""Sources of files: rows become events by plain fields or a SELECT, with the fates and promises of topics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest

from pipelines.backfill import backfill, day_file, day_files, history_rows, summarize_files
from pipelines.errors import ConfigurationError, UsageError
from pipelines.inputs import InputFile, find_files
from pipelines.mapping.source_files import SourceFile, read_source
from pipelines.operate.replay import Comparison
from pipelines.operate.source_diff import diff_source
from pipelines.preview import preview
from pipelines.settings import HistorySettings, IngestSettings, Settings, SourcesSettings
from pipelines.sources.files import ColumnMapping
from tests.crashes.kills import Moment, kill
from tests.draining import assert_verified, query

_PLAIN = """
files = ["rides.csv"]
user_id = "driver"
time = "at"
action_type = "DriverRated"
metadata = { rating = "stars" }
"""
_BOTH = """
files = ["rides.csv"]
select = '''
SELECT id || '/d' AS event_id, driver AS user_id, 'DriverRated' AS action_type, "at" AS timestamp,
       {'rating': CAST(stars AS DECIMAL(4, 2)), 'row': "row"} AS metadata
FROM record WHERE stars IS NOT NULL
UNION ALL
SELECT id || '/r', rider, 'RiderRated', "at", {'rating': NULL, 'row': "row"} FROM record WHERE rider IS NOT NULL
'''
"""
_DERIVED = """
files = ["rides.csv"]
select = '''SELECT driver AS user_id, 'Rated' AS action_type, "at" AS timestamp FROM record, range(2)'''
"""
_ROWS = (
    "id,driver,rider,stars,at\n"
    "1,d,r,4.50,2026-01-31T12:00:00Z\n"
    "2,,,,2026-01-31T12:00:00Z\n"
    "3,d,,five,2026-01-31T12:00:00Z\n"
    "4,d2,,3,2026-01-31T12:00:00Z\n"
)


@pytest.fixture
def busless(tmp_path: Path) -> Settings:
    """Return settings without a bus."""
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Callable[..., SourceFile]:
    """Return a function that writes a source file and the rows that it reads."""

    def write(text: str, rows: str = _ROWS) -> SourceFile:
        if not (tmp_path / "rides.csv").exists():
            (tmp_path / "rides.csv").write_text(rows)
        (tmp_path / "rides.toml").write_text(text)
        return read_source(tmp_path / "rides.toml")

    return write


def _load(settings: Settings, source: SourceFile) -> list[Any]:
    records: list[Any] = []
    for address in source.addresses():
        backfill(settings, Path(address), source, records.append)
    return [offsets for record in records for offsets in record.ranges]


@pytest.mark.slow
def test_rows_have_the_fates_of_records(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """Of four rows one is two events, one is filtered, one is a dead letter; the account names the source."""
    both = source(_BOTH)
    (found,) = _load(busless, both)
    counts = (found.read, found.converted, found.filtered, found.dead_letters, found.made, found.accepted)
    assert counts == (4, 2, 1, 1, 3, 3)
    assert (found.source, found.source_digest) == ("rides", both.digest)
    assert query(busless, 'SELECT event_id, user_id, metadata::VARCHAR, "offset" FROM events ORDER BY event_id') == [
        ("1/d", "d", "{rating=4.50, row=1}", 0),
        ("1/r", "r", "{row=1}", 0),
        ("4/d", "d2", "{rating=3.00, row=4}", 3),
    ]
    [(reason, detail, value)] = query(busless, "SELECT reason, detail, value FROM dead_letters")
    assert reason == "unmappable"
    assert detail.startswith("row 3: The source's SELECT fails on the record: ")
    assert b'"stars": "five"' in value
    (account,) = summarize_files(busless, [Path(both.addresses()[0])], both)
    assert account.reconciles
    assert_verified(busless)


def test_plain_fields_are_those_of_the_options(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """The same rows by a source and by options have the same ids: they count once (`once`)."""
    plain = source(_PLAIN)
    assert _load(busless, plain)[0].accepted == 3
    mapping = ColumnMapping("driver", "at", "iso", "DriverRated", None, (("rating", "stars"),))
    records: list[Any] = []
    backfill(busless, Path(plain.addresses()[0]), mapping, records.append)
    assert (records[0].total("accepted"), records[0].total("duplicates")) == (0, 3)
    assert_verified(busless)


@pytest.mark.slow
def test_a_changed_source_is_another_load(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """It reads the file again; events whose ids do not change count once, an unchanged one reads nothing."""
    assert _load(busless, source(_BOTH))[0].accepted == 3
    assert _load(busless, source(_BOTH)) == []
    (again,) = _load(busless, source(_BOTH + "# said better\n"))
    assert (again.read, again.accepted, again.duplicates) == (4, 0, 3)
    assert_verified(busless)


def _load_in_parts(settings: Settings, path: Path) -> None:
    """Load the rows of a source in several commits."""
    small = settings.model_copy(update={"ingest": IngestSettings(max_batch_records=9)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.sources.csv_rows._BLOCK_BYTES", 60)
        _load(small, read_source(path))


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_killed_load_continues(
    busless: Settings, source: Callable[..., SourceFile], tmp_path: Path, when: Literal["before", "after"]
) -> None:
    """The next one reads the other rows, whose derived ids are those of one load (`once`, `nothing-lost`)."""
    rows = "".join(f"{n},d{n % 7},,,2026-01-31T12:00:00Z\n" for n in range(40))
    derived = source(_DERIVED + "number_rows = true\n", "id,driver,rider,stars,at\n" + rows * 2)
    moment = Moment("pipelines.drain:commit_batch", when, 3)
    kill(moment, tmp_path / "log", _load_in_parts, busless, derived.path)
    read = query(busless, 'SELECT sum("read")::INT FROM commits')[0][0] or 0
    assert 0 < read < 80
    _load(busless, derived)
    assert query(busless, 'SELECT sum("read")::INT, sum(made)::INT FROM (SELECT unnest(ranges, recursive := true) FROM '
                 "(SELECT ranges FROM commits))") == [(80, 160)]  # fmt: skip
    assert_verified(busless)
    other = busless.model_copy(update={"data_dir": tmp_path / "whole"})
    _load(other, derived)
    ids = 'SELECT event_id, "offset" FROM events ORDER BY event_id'
    assert query(other, ids) == query(busless, ids)


@pytest.mark.slow
def test_a_select_that_does_not_fit_is_refused_before_anything_is_read(
    busless: Settings, source: Callable[..., SourceFile]
) -> None:
    """The message has the file, the SELECT's mistake and the columns."""
    wrong = source(_DERIVED.replace("driver AS", "rater AS"))
    with pytest.raises(UsageError, match=r"rides\.csv: .*rides\.toml: select: .*rater.*its columns are 'id', 'driver'"):
        _load(busless, wrong)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('format = "json"', "format: is a key of topics"),
        ("[reading]\nformat = 'txt'", r"toml:\d+: reading: 'txt' is not a format"),
        ("[reading]\nseparator = ';'", "reading.separator: is not a key here"),
        ("user = 'all'", "user: user and user_id exclude each other"),
        ("select = 'FROM record'", "user_id: select and user_id exclude each other"),
    ],
)
def test_mistakes_in_a_source_of_files_are_named(source: Callable[..., SourceFile], text: str, problem: str) -> None:
    """With the key, as for sources of topics."""
    with pytest.raises(ConfigurationError, match=problem):
        source(f"{_PLAIN}{text}\n")


@pytest.mark.slow
def test_a_diff_shows_what_a_changed_source_would_make(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """New, gone and other events with an example and its fields, fates before and after; the lake stays as it is."""
    assert _load(busless, source(_BOTH))[0].accepted == 3
    same = diff_source(busless, source(_BOTH))
    assert (same.records, same.comparison) == (4, Comparison(3, 0, 0, 0, ()))
    assert same.fates == tuple((fate, count, count) for fate, count, _ in same.fates)
    changed = _BOTH.replace("|| '/r'", "|| '/rider'").replace("CAST(stars AS DECIMAL(4, 2))", "stars")
    found = diff_source(busless, source(changed))
    compared = found.comparison
    assert (compared.same, compared.different, compared.missing, compared.extra) == (1, 1, 2, 1)
    assert compared.fields == "metadata {rating=3.00, row=4} -> {rating=3, row=4}"
    assert compared.first == {"different": "4/d", "missing": "1/rider", "extra": "1/r"}
    assert {fate: (before, after) for fate, before, after in found.fates} == {
        "events": (3, 4),
        "conflicts": (0, 0),
        "dead letters": (1, 0),
        "filtered or duplicate": (1, 1),
    }
    assert query(busless, "SELECT count(*) FROM commits") == [(1,)]


@pytest.mark.slow
def test_a_preview_of_a_source_commits_nothing(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """Fates, unused columns, and what the policy in force makes of the events."""
    both = source(_BOTH)
    found = preview(busless, InputFile(Path(both.addresses()[0])), both)
    assert dict(found.fates) == {
        "rows": 4, "filtered": 1, "events": 3, "accepted": 3, "duplicates": 0, "conflicts": 0, "dead letters": 1,
        "erased": 0,
    }  # fmt: skip
    assert found.reasons[0][:2] == ("unmappable", 1)
    assert sum(row[-1] for row in found.scored) == 3
    assert not (busless.data_dir / "lake").exists()


@pytest.mark.slow
def test_history_by_day_may_be_of_a_source(
    busless: Settings, source: Callable[..., SourceFile], tmp_path: Path
) -> None:
    """The address with {day} is the file of a day; columns beside the source, and a source of topics, are refused."""
    both = source(_BOTH.replace("rides.csv", "rides-{day}.csv"))
    days = [f"2026-01-0{day}" for day in (1, 2)]
    for day in days:
        (tmp_path / f"rides-{day}.csv").write_text(_ROWS)
    history = HistorySettings(source="rides")
    settings = busless.model_copy(update={"history": history, "sources": SourcesSettings(folder=tmp_path)})
    rows = history_rows(settings)
    assert rows == both
    found = day_files(settings, rows)
    assert [day_file(settings, rows, day) for day in days] == [*found.values()]
    assert found == {day: tmp_path / f"rides-{day}.csv" for day in days}
    assert sorted(find_files(both.addresses())) == [str(path) for path in found.values()]
    for path in found.values():
        backfill(settings, path, rows)
    assert [(each.rows, each.filtered, each.made, each.accepted, each.reconciles) for each in summarize_files(
        settings, [*found.values()], rows
    )] == [(4, 1, 3, 3, True), (4, 1, 3, 0, True)]  # fmt: skip
    mixed = settings.model_copy(update={"history": HistorySettings(source="rides", user_id="driver")})
    with pytest.raises(ConfigurationError, match=r"history\.user_id and history\.source exclude each other"):
        history_rows(mixed)
    (tmp_path / "rides.toml").write_text(_PLAIN.replace('files = ["rides.csv"]', 'topic = "t"\nformat = "json"'))
    with pytest.raises(UsageError, match="reads topics"):
        history_rows(settings)


@pytest.mark.slow
def test_rows_of_every_format_have_the_same_ids(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """An id that is made of a row does not depend on the format; nested members and types are readable."""
    text = """
files = ["rides.csv"]
select = '''SELECT driver AS user_id, 'Rated' AS action_type, strptime("at" || '', '%Y-%m-%d %H:%M:%S') AS timestamp
FROM record'''
time_zone = "UTC"
"""
    derived = source(text, "driver,n,at\nd1,1.50,2026-01-31 12:00:00\nd2,2,2026-01-31 12:00:00\n")
    assert _load(busless, derived)[0].accepted == 2
    at = "2026-01-31 12:00:00"
    rows = [{"driver": "d1", "n": 1.5, "at": at}, {"driver": "d2", "n": 2.0, "at": at}]
    backfill(busless, pl.DataFrame(rows), derived)
    (derived.path.parent / "rides.ndjson").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    backfill(busless, derived.path.parent / "rides.ndjson", derived)
    counts = query(busless, "SELECT count(*) FROM events") + query(busless, "SELECT count(*) FROM conflicts")
    assert counts == [(2,), (0,)]


@pytest.mark.slow
def test_a_select_reads_the_digits_of_nested_numbers(busless: Settings, source: Callable[..., SourceFile]) -> None:
    """By ->>, which alone would round them; a text that only begins as JSON stays one."""
    nested = source(
        """files = ["nested.ndjson"]
select = '''SELECT "to" AS user_id, 'Rated' AS action_type, "at" AS timestamp,
    {'stars': of->>'stars', 'id': of->>'$.ids[0]', 'note': note} AS metadata FROM record'''"""
    )
    row = '{"to": "a", "at": "2026-01-31", "of": {"stars": 4.50, "ids": [1234567890123456789.5]}, "note": "[sic] 4.50"}'
    (nested.path.parent / "nested.ndjson").write_text(row)
    _load(busless, nested)
    ((metadata,),) = query(busless, "SELECT metadata FROM events")
    assert metadata == {"stars": "4.50", "id": "1234567890123456789.5", "note": "[sic] 4.50"}
