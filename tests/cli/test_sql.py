"""The command sql: one query on the warehouse and the lake, and nothing else."""

import stat
import sys
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.cli.rows import rows_file
from tests.cli.test_trend import data

__all__ = ["data"]


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> object:
    """Run `karmalake sql` through its entry point; return the exit code."""
    monkeypatch.setenv("KARMALAKE_DATA_DIR", str(folder))
    monkeypatch.setattr("pipelines.cli.output.quiet_libraries", lambda: None)  # loggers outlive a test
    monkeypatch.setattr(sys, "argv", ["karmalake", "sql", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize("form", ["table", "csv", "parquet"])
@pytest.mark.parametrize(
    "query", ["FROM read_text('{}/secret.csv')", "FROM '{}/secret.csv'", "COPY (SELECT 1) TO '{}/made'"]
)
def test_no_other_file_is_read_or_written(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    query: str,
    form: str,
) -> None:
    """In any format: the rows of a query pass through a file of their own, which is the only one that it may write."""
    (tmp_path / "secret.csv").write_text("secret\nhidden\n")
    rows = tmp_path / "rows"
    assert run(monkeypatch, data, query.format(tmp_path), "--format", form, "--output", str(rows)) == 2
    output = capfdbinary.readouterr()
    assert b"hidden" not in output.out + output.err
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_rows_pass_through_a_private_file() -> None:
    """No other user of the machine can read it, and it is removed."""
    with rows_file() as path:
        path.write_text("1")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
