"""Connections to DuckDB are alike, whatever the machine's time zone."""

from pathlib import Path

from pipelines.boundary.database import connect

_SETTINGS = "SELECT current_setting('TimeZone'), current_setting('enable_progress_bar'), current_setting('threads')"


def test_connections_are_in_utc_without_a_progress_bar(tmp_path: Path) -> None:
    """Those in memory, those to a file, and cursors."""
    for path in (None, tmp_path / "file.duckdb"):
        with connect(path, threads=1) as connection, connection.cursor() as cursor:
            assert connection.execute(_SETTINGS).fetchone() == ("UTC", False, 1)
            assert cursor.execute(_SETTINGS).fetchone() == ("UTC", False, 1)
    assert (tmp_path / "file.duckdb").exists()
