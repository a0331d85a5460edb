"""The commands of dead letters: list, show, requeue, export, discard."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.boundary.text import amount
from pipelines.cli.options import bare_settings
from pipelines.cli.output import print_fields, print_line, print_table, progress
from pipelines.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.operate.dead_letters import Fate, Selection

app = typer.Typer(no_args_is_help=True, help="List, requeue, export or discard rejected records.")

_Reason = Annotated[str | None, typer.Option(metavar="CODE", help="Only dead letters with this reason code.")]
_Place = Annotated[
    str | None, typer.Option(metavar="TOPIC-PARTITION@OFFSET", help="Only the dead letter of this record.")
]
_COLUMNS = ("place", "reason", "detail", "fate")
_MAX_SHOWN_BYTES, _MAX_HEADERS = 16_384, 100
"""Bytes shown of a key, value or header, and headers shown of a record: a record may take 128 MiB."""


@app.command("list")
def list_letters(
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Include requeued and discarded ones.")] = False,  # noqa: FBT002 - a flag
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Number of dead letters to show, the newest.")] = 20,
) -> None:
    """List dead letters: counts by reason, and the newest ones."""
    from pipelines.operate.dead_letters import count_dead_letters, newest_dead_letters  # noqa: PLC0415

    settings, selection = bare_settings(), _selection(None if every else "open", reason, None)
    counts = count_dead_letters(settings, selection)
    print_table(("reason", "fate", "records"), counts)
    newest = newest_dead_letters(settings, selection, limit)
    print_table(_COLUMNS, [(_place(row), row["reason"], row["detail"], row["fate"]) for row in newest])
    print_line(f"{amount(sum(count.records for count in counts), 'dead letter')}")


@app.command()
def show(place: Annotated[str, typer.Argument(metavar="TOPIC-PARTITION@OFFSET", help="As `list` shows it.")]) -> None:
    """Show one dead letter: key, value and headers, the reason of its rejection, and its fate."""
    from pipelines.operate.dead_letters import stream_dead_letters  # noqa: PLC0415

    found = 0
    for letters in stream_dead_letters(bare_settings(), _selection(None, None, place)):
        for number in range(len(letters)):
            print_fields(_fields(letters.slice(number, 1)))
            found += 1
    if not found:
        raise UsageError(f"there is no dead letter at {place}: `karmalake dead-letters list` shows the places")


@app.command()
def requeue(reason: _Reason = None, place: _Place = None) -> None:
    """Decode open dead letters again, after the contract or its bounds were fixed, and ingest those that are valid now.

    Each event counts once, however often it is requeued or sent again. The next refresh updates the scores.
    For rows of a file, fix the file or the options of `backfill`, and load it again.
    """
    from pipelines.operate.dead_letters import requeue as requeue_selected  # noqa: PLC0415

    with progress("requeuing"):
        done = requeue_selected(bare_settings(), _selection("open", reason, place))
    print_fields(
        [
            ("accepted", done.accepted),
            ("duplicates", done.duplicates),
            ("conflicts", done.conflicts),
            ("still rejected", done.still_rejected),
        ]
    )


@app.command()
def discard(
    why: Annotated[str, typer.Option(help="The reason, recorded with the dead letters.")],
    reason: _Reason = None,
    place: _Place = None,
) -> None:
    """Discard open dead letters, with a reason: they are no longer listed. Their bytes stay in the lake."""
    from pipelines.operate.dead_letters import discard as discard_selected  # noqa: PLC0415

    discarded = discard_selected(bare_settings(), _selection("open", reason, place), why)
    print_line(f"{amount(discarded, 'dead letter')} discarded")


@app.command()
def export(
    file: Annotated[
        Path, typer.Argument(help="The file to write, or to replace: .parquet, or .ndjson with bytes in base64.")
    ],
    reason: _Reason = None,
    every: Annotated[bool, typer.Option("--all", help="Include requeued and discarded ones.")] = False,  # noqa: FBT002 - a flag
) -> None:
    """Export dead letters to a file, for the team that owns the producer."""
    from pipelines.operate.dead_letters import stream_dead_letters  # noqa: PLC0415

    write = {".parquet": _write_parquet, ".ndjson": _write_ndjson}.get(file.suffix)
    if write is None:
        raise UsageError(f"{file}: the file name must end in .parquet or .ndjson")
    selection = _selection(None if every else "open", reason, None)
    try:
        count = write(file, stream_dead_letters(bare_settings(), selection))
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    print_line(f"{amount(count, 'dead letter')} written to {file}")


def _write_parquet(file: Path, letters: "Iterator[pa.Table]") -> int:
    import pyarrow.parquet as pq  # noqa: PLC0415

    count = 0
    with pq.ParquetWriter(file, next(letters).schema) as writer:
        for batch in letters:
            writer.write_table(batch)
            count += len(batch)
    return count


def _write_ndjson(file: Path, letters: "Iterator[pa.Table]") -> int:
    count = 0
    with file.open("w", encoding="utf-8") as written:
        for batch in letters:
            written.writelines(json.dumps(row, default=_json_value) + "\n" for row in batch.to_pylist())
            count += len(batch)
    return count


def _fields(letter: "pa.Table") -> list[tuple[str, object]]:
    """Return the fields of one dead letter for display."""
    (row,) = letter.to_pylist()
    all_headers = row["headers"] or ()
    headers = {header["key"]: _text(header["value"]) for header in all_headers[:_MAX_HEADERS]}
    row |= {"key": _text(row["key"]), "value": _text(row["value"]), "headers": headers or None}
    if len(all_headers) > _MAX_HEADERS:
        row["more headers"] = len(all_headers) - _MAX_HEADERS
    row["bus_time"] = row["bus_time"] or "no valid record time"
    return [(name.replace("_", " "), value) for name, value in row.items()]


def _selection(fate: "Fate | None", reason: str | None, place: str | None) -> "Selection":
    from pipelines.contract.rejection import Reason  # noqa: PLC0415
    from pipelines.operate.dead_letters import Selection  # noqa: PLC0415

    if reason is not None and reason not in set(Reason):
        raise UsageError(f"unknown reason {reason!r}: choose one of {', '.join(Reason)}")
    return Selection(fate, reason, place)


def _place(letter: dict[str, Any]) -> str:
    return f"{letter['topic']}-{letter['topic_partition']}@{letter['offset']}"


def _text(value: bytes | None) -> str | None:
    """Return bytes as text if they are UTF-8, else as a Python literal; truncated if long."""
    if value is None:
        return None
    if len(value) > _MAX_SHOWN_BYTES:
        return f"{value[:_MAX_SHOWN_BYTES]!r}... ({len(value):,} bytes: `karmalake dead-letters export` writes all)"
    try:
        return value.decode()
    except UnicodeDecodeError:
        return repr(value)


def _json_value(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
